"""Special tokens that objectives need, and where words and sentences begin."""

from __future__ import annotations

import json

import numpy as np
import pytest
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors
from typer.testing import CliRunner

from trivium.cli.main import app
from trivium.errors import TokenizerError
from trivium.tokenizers.files import TokenizerFiles
from trivium.tokenizers.special import GROUPS, expanded, mask_id, middle_ids, mode_ids, sentinel_ids
from trivium.tokenizers.tokenizer import Tokenizer
from trivium.tokenizers.train import train_bpe
from trivium.tokenizers.words import ordinary, sentence_ends, word_table

TEXT = "The quick brown fox can't jump. It (really) tried! 12345 \u4f60\u597d na\u00efve\n\nNext? " * 20


@pytest.fixture(scope="module")
def plain() -> Tokenizer:
    return train_bpe([TEXT], vocab_size=360)


@pytest.fixture(scope="module")
def whole() -> Tokenizer:
    return train_bpe([TEXT], vocab_size=480, special=expanded(GROUPS))


def wordpiece() -> Tokenizer:
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "un", "##do", "##ing", "it", ".", "now"]
    backend = tokenizers.Tokenizer(
        models.WordPiece({name: number for number, name in enumerate(names)}, unk_token="[UNK]")
    )
    backend.normalizer = normalizers.BertNormalizer()
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    backend.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    roles = {"cls": "[CLS]", "sep": "[SEP]", "pad": "[PAD]", "unk": "[UNK]", "mask": "[MASK]"}
    return Tokenizer(
        TokenizerFiles(json.loads(backend.to_str()), {f"{role}_token": token for role, token in roles.items()})
    )


def test_groups_give_the_tokens_of_each_objective(whole):
    assert whole.token(mask_id(whole)) == "[MASK]"
    assert whole.role_tokens["mask_token"] == "[MASK]"
    sentinels = sentinel_ids(whole)
    assert len(sentinels) == 100
    assert [whole.token(one) for one in (sentinels[0], sentinels[10])] == ["<extra_id_0>", "<extra_id_10>"]
    assert [whole.token(one) for one in middle_ids(whole)] == list(GROUPS["middle"])
    assert [whole.token(one) for one in mode_ids(whole)] == list(GROUPS["modes"])
    assert whole.encode("[MASK] <extra_id_0>")[0] != mask_id(whole), "text is data"
    assert mask_id(wordpiece()) == 4


@pytest.mark.parametrize(
    ("find", "group"), [(mask_id, "mask"), (sentinel_ids, "sentinels"), (middle_ids, "middle"), (mode_ids, "modes")]
)
def test_a_missing_token_names_the_fix(plain, find, group):
    with pytest.raises(TokenizerError, match="the tokenizer has no tok") as caught:
        find(plain)
    assert caught.value.fix.endswith(f"--special {group}")


def test_too_few_sentinels_name_the_settings(whole):
    with pytest.raises(TokenizerError, match="can have 101 missing spans, the tokenizer has 100") as caught:
        sentinel_ids(whole, least=101)
    assert "data.sequence_length" in caught.value.fix


def test_the_command_takes_groups_and_tokens(tmp_path):
    (tmp_path / "a.txt").write_text(TEXT)
    arguments = [
        "tokenizer",
        "train",
        str(tmp_path / "a.txt"),
        "--output",
        str(tmp_path / "out"),
        "--vocab-size",
        "400",
    ]
    done = CliRunner().invoke(app, [*arguments, "--special", "mask", "--special", "<|mine|>"])
    assert done.exit_code == 0, done.output
    tokenizer = Tokenizer.load(tmp_path / "out")
    assert mask_id(tokenizer) == 8
    assert tokenizer.special_tokens["<|mine|>"] == 9


def words(tokenizer: Tokenizer, text: str) -> list[str]:
    ids = np.array(tokenizer.encode(text))
    parts = np.split(ids, np.flatnonzero(word_table(tokenizer).starts(ids))[1:])
    return [tokenizer.decode(part.tolist()) for part in parts]


def test_words_of_a_byte_level_vocabulary(plain):
    assert words(plain, "The quickest fox (really) na\u00efve.") == [
        "The", " quickest", " fox", " (", "really", ")", " na\u00efve", ".",
    ]  # fmt: skip
    assert words(plain, "\u4f60\u597d") == ["\u4f60", "\u597d"]


def test_words_of_a_wordpiece_vocabulary():
    tokenizer = wordpiece()
    ids = np.array(tokenizer.encode("undoing it."))
    assert [tokenizer.token(token) for token in ids] == ["un", "##do", "##ing", "it", "."]
    assert word_table(tokenizer).starts(ids).tolist() == [True, False, False, True, True]
    assert ordinary(tokenizer).tolist() == [False] * 5 + [True] * 6


def test_words_of_a_sentencepiece_vocabulary():
    pieces = ["<pad>", "</s>", "\u2581the", "\u2581fo", "x", "es", "\u2581"]
    backend = tokenizers.Tokenizer(models.Unigram([(piece, -1.0) for piece in pieces], unk_id=0, byte_fallback=False))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    files = TokenizerFiles(json.loads(backend.to_str()), {"eos_token": "</s>", "pad_token": "<pad>"})
    tokenizer = Tokenizer(files)
    ids = np.array(tokenizer.encode("the foxes"))
    assert word_table(tokenizer).starts(ids).tolist() == [True, True, False, False]


def test_sentences_end_with_their_signs(plain):
    ends = sentence_ends(plain)
    ids = np.array(plain.encode('One two. He said "no!" Then\nlast'))
    parts = [plain.decode(part.tolist()) for part in np.split(ids, np.flatnonzero(ends[ids][:-1]) + 1)]
    assert "".join(parts) == 'One two. He said "no!" Then\nlast'
    assert [part.strip()[-1] for part in parts[:1]] == ["."]
    assert len(parts) >= 4
    assert not ends[list(plain.special_tokens.values())].any()
