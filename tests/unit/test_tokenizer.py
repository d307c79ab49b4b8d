"""Tokenizers: training, folders, text to ids and back, and the rules about special tokens."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import tokenizers as backend
from hypothesis import given, settings
from hypothesis import strategies as st

from trivium.errors import TokenizerError
from trivium.tokenizers.tokenizer import Tokenizer
from trivium.tokenizers.train import SPECIAL, train_bpe

CORPUS = ["The quick brown fox jumps over the lazy dog. " * 20, "def add(a, b):\n    return a + b # 東京 😀\n" * 20]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_bpe(CORPUS, vocab_size=400)


@pytest.fixture(scope="module")
def folder(tokenizer, tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("tokenizer")
    tokenizer.save(place)
    return place


def change(folder: Path, target: Path, name: str, **values: object) -> Path:
    """A copy of the folder with other values in one of its JSON files; None removes a key."""
    for path in folder.iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    content = json.loads((target / name).read_text())
    content.update(values)
    (target / name).write_text(json.dumps({key: value for key, value in content.items() if value is not None}))
    (target / "special_tokens_map.json").unlink()
    return target


class TestTraining:
    def test_special_tokens_come_first_and_are_all_different(self, tokenizer):
        assert [tokenizer.special_tokens[name] for name in SPECIAL] == list(range(len(SPECIAL)))
        assert len({tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id}) == 3

    def test_the_same_text_gives_the_same_vocabulary_in_any_process(self, tokenizer):
        program = (
            "import sys\nfrom trivium.tokenizers.train import train_bpe\n"
            f"print(train_bpe({CORPUS!r}, vocab_size=400).fingerprint())"
        )
        found = set()
        for threads in ("1", "2"):
            environment = {**os.environ, "RAYON_NUM_THREADS": threads, "PYTHONHASHSEED": threads, "PYTHONPATH": "."}
            result = subprocess.run(
                [sys.executable, "-c", program], capture_output=True, text=True, env=environment, check=True
            )
            found.add(result.stdout.strip())
        assert found == {tokenizer.fingerprint()}

    def test_texts_are_a_stream(self):
        assert train_bpe((text for text in CORPUS), vocab_size=300).vocab_size == 300

    def test_split(self):
        texts = ["in 12345678 CAN'T\n\n\n" * 50]
        gpt4, gpt2 = (train_bpe(texts, vocab_size=400, split=split) for split in ("gpt4", "gpt2"))
        assert max(len(token) for token in gpt4.vocabulary if token.isdigit()) == 3
        assert " 12345678".replace(" ", "Ġ") in gpt2.vocabulary
        assert gpt4.fingerprint() != gpt2.fingerprint()

    def test_min_frequency(self):
        texts = ["abab " * 3]
        assert train_bpe(texts, vocab_size=300, min_frequency=2).vocab_size > 266
        with pytest.raises(TokenizerError, match="min_frequency=50"):
            train_bpe(texts, vocab_size=300, min_frequency=50)

    def test_a_small_text_says_that_it_gave_fewer_tokens(self):
        tokenizer = train_bpe(["abab " * 3], vocab_size=5000)
        assert tokenizer.vocab_size < 5000
        assert "not 5000" in tokenizer.messages[0]

    def test_further_special_tokens_and_length(self, tmp_path):
        tokenizer = train_bpe(CORPUS, vocab_size=400, special=["<|image|>"], sequence_length=128)
        assert tokenizer.special_tokens["<|image|>"] == len(SPECIAL)
        tokenizer.save(tmp_path)
        assert json.loads((tmp_path / "tokenizer_config.json").read_text())["model_max_length"] == 128

    @pytest.mark.parametrize(
        ("arguments", "problem"),
        [
            ({"vocab_size": 100}, "must be larger"),
            ({"vocab_size": 400, "special": ["<|eos|>"]}, "must be different"),
            ({"vocab_size": 400, "special": [""]}, "not empty"),
            ({"vocab_size": 400, "split": "gpt5"}, "no such way"),
        ],
    )
    def test_wrong_settings(self, arguments, problem):
        with pytest.raises(TokenizerError, match=problem):
            train_bpe(CORPUS, **arguments)

    def test_empty_and_broken_texts(self):
        with pytest.raises(TokenizerError, match="empty"):
            train_bpe([], vocab_size=400)
        with pytest.raises(TokenizerError, match="text number 1, character 2"):
            train_bpe(["fine", "ab\ud800"], vocab_size=400)


class TestText:
    @settings(max_examples=200, deadline=None)
    @given(text=st.text())
    def test_nothing_is_lost(self, tokenizer, text):
        assert tokenizer.decode(tokenizer.encode(text)) == text

    @pytest.mark.parametrize("text", ["", "a" * 100_000, " " * 10_000, "\n" * 10_000, "\x00", "\ufeff", "e\u0301"])
    def test_nothing_is_lost_in_odd_texts(self, tokenizer, text):
        assert tokenizer.decode(tokenizer.encode(text)) == text

    def test_bos_exactly_once_and_eos_at_the_end(self, tokenizer):
        ids = tokenizer.encode_document("fox")
        assert (ids[0], ids[-1]) == (tokenizer.bos_id, tokenizer.eos_id)
        assert ids.count(tokenizer.bos_id) == ids.count(tokenizer.eos_id) == 1
        assert tokenizer.encode_prompt("fox") == ids[:-1]
        assert tokenizer.encode("fox") == ids[1:-1]
        assert tokenizer.encode("fox", bos=True, eos=True) == ids

    def test_many_texts_at_once(self, tokenizer):
        texts = [*CORPUS, "", "<|eos|> 😀"]
        assert tokenizer.encode_documents(texts) == [tokenizer.encode_document(text) for text in texts]
        with pytest.raises(TokenizerError, match="surrogate"):
            tokenizer.encode_documents(["fine", "\ud800"])

    @pytest.mark.parametrize("name", SPECIAL)
    def test_text_never_becomes_a_special_token(self, tokenizer, name):
        text = f"before {name}{name} after"
        for ids in (tokenizer.encode(text), tokenizer.encode_prompt(text)[1:], tokenizer.encode_document(text)[1:-1]):
            assert not set(ids) & set(tokenizer.special_tokens.values())
            assert tokenizer.decode(ids) == text
        assert tokenizer.encode(text, parse_special=True).count(tokenizer.special_tokens[name]) == 2

    def test_half_a_character_is_an_error_with_its_place(self, tokenizer):
        with pytest.raises(TokenizerError, match=r"character 3\n.*U\+D83D") as caught:
            tokenizer.encode("abc\ud83d")
        assert len(str(caught.value).splitlines()) <= 5

    def test_byte_lengths_add_up(self, tokenizer):
        lengths = tokenizer.byte_lengths()
        assert lengths.shape == (tokenizer.vocab_size,) and lengths.dtype == "int32"
        for text in [*CORPUS, "é東😀\x00\n", "<|eos|>"]:
            assert lengths[tokenizer.encode_document(text)].sum() == len(text.encode())
        assert all(lengths[identifier] == 0 for identifier in tokenizer.special_tokens.values())

    def test_ids_that_are_none(self, tokenizer):
        assert tokenizer.decode([10**6]) == ""
        with pytest.raises(TokenizerError, match="negative"):
            tokenizer.decode([5, -100])


class TestStream:
    @settings(max_examples=200, deadline=None)
    @given(ids=st.lists(st.integers(0, 399), max_size=30), skip=st.booleans())
    def test_pieces_make_the_whole(self, tokenizer, ids, skip):
        stream = tokenizer.stream(skip_special=skip)
        pieces = [stream.push(token) for token in ids]
        whole = tokenizer.decode(ids, skip_special=skip)
        assert "".join([*pieces, stream.flush()]) == whole

    @settings(max_examples=100, deadline=None)
    @given(text=st.text(alphabet=st.characters(min_codepoint=0x80, exclude_categories=["Cs"]), max_size=10))
    def test_only_whole_characters_come_out(self, tokenizer, text):
        stream, out = tokenizer.stream(), ""
        for token in tokenizer.encode(text):
            out += stream.push(token)
            assert text.startswith(out)
        assert out == text and stream.flush() == ""


def wordlevel(tmp_path: Path) -> Tokenizer:
    words = {"[UNK]": 0, "[PAD]": 1, "[EOS]": 2, "fox": 3, "dog": 4}
    definition = backend.Tokenizer(backend.models.WordLevel(words, unk_token="[UNK]"))
    definition.pre_tokenizer = backend.pre_tokenizers.WhitespaceSplit()
    definition.add_special_tokens(["[UNK]", "[PAD]", "[EOS]"])
    definition.save(str(tmp_path / "tokenizer.json"))
    config = {"eos_token": "[EOS]", "pad_token": "[PAD]", "unk_token": "[UNK]"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    return Tokenizer.load(tmp_path)


def unigram(tmp_path: Path) -> Tokenizer:
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -3.0), *((c, -4.0) for c in "fox</s>dg")]
    definition = backend.Tokenizer(backend.models.Unigram([*dict(pieces).items()], unk_id=2))
    definition.pre_tokenizer = backend.pre_tokenizers.Metaspace()
    definition.decoder = backend.decoders.Metaspace()
    definition.save(str(tmp_path / "tokenizer.json"))
    config = {"eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    return Tokenizer.load(tmp_path)


class TestOtherKinds:
    """In these kinds the special tokens are entries of the vocabulary, which plain text can reach."""

    def test_word_level(self, tmp_path):
        tokenizer = wordlevel(tmp_path)
        assert tokenizer.encode("fox [EOS] dog [PAD]") == [3, 0, 4, 0]
        assert tokenizer.encode("fox [EOS]", parse_special=True) == [3, 2]
        assert tokenizer.encode_document("dog fox") == [4, 3, 2]

    def test_unigram(self, tmp_path):
        tokenizer = unigram(tmp_path)
        assert tokenizer.eos_id not in tokenizer.encode("fox</s>")
        assert tokenizer.decode(tokenizer.encode("fox</s>")) == "fox</s>"
        assert tokenizer.encode("fox</s>", parse_special=True)[-1] == tokenizer.eos_id
        assert tokenizer.byte_lengths()[tokenizer.vocabulary["▁"]] == 1


class TestFolder:
    def test_round_trip(self, tokenizer, folder, tmp_path):
        again = Tokenizer.load(folder)
        assert again.fingerprint() == tokenizer.fingerprint()
        assert again.encode_document("fox 😀") == tokenizer.encode_document("fox 😀")
        assert again.messages == []
        again.save(tmp_path)
        names = {path.name for path in folder.iterdir()}
        assert names == {"tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"}
        assert {name: (tmp_path / name).read_text() for name in names} == {
            name: (folder / name).read_text() for name in names
        }

    def test_the_fingerprint_tells_tokenizers_apart(self, tokenizer):
        others = [train_bpe(CORPUS, vocab_size=300), tokenizer.with_chat_template("{{ messages[0].content }}")]
        assert len({tokenizer.fingerprint(), *(other.fingerprint() for other in others)}) == 3

    def test_padding_that_is_the_end_token_is_replaced(self, folder, tmp_path):
        place = change(folder, tmp_path, "tokenizer_config.json", pad_token="<|eos|>")
        tokenizer = Tokenizer.load(place)
        assert tokenizer.pad_id == tokenizer.special_tokens["<|pad|>"]
        assert "never learn to stop" in tokenizer.messages[0] and "'<|pad|>'" in tokenizer.messages[0]
        tokenizer.save(place)
        assert json.loads((place / "tokenizer_config.json").read_text())["pad_token"] == "<|pad|>"
        assert Tokenizer.load(place).messages == []

    def test_without_a_spare_token_there_is_no_padding(self, tmp_path):
        definition = backend.Tokenizer(backend.models.BPE({"a": 0, "<|endoftext|>": 1}, []))
        definition.add_special_tokens(["<|endoftext|>"])
        definition.save(str(tmp_path / "tokenizer.json"))
        roles = dict.fromkeys(("eos_token", "bos_token", "unk_token", "pad_token"), "<|endoftext|>")
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(roles))
        tokenizer = Tokenizer.load(tmp_path)
        assert tokenizer.pad_id is None
        assert "without padding token" in tokenizer.messages[0]
        tokenizer.save(tmp_path)
        assert "pad_token" not in json.loads((tmp_path / "tokenizer_config.json").read_text())

    @pytest.mark.parametrize("declared", [True, False])
    def test_add_bos_token_is_obeyed(self, folder, tmp_path, declared):
        place = change(folder, tmp_path, "tokenizer_config.json", add_bos_token=declared)
        assert Tokenizer.load(place).encode_document("fox").count(1) == int(declared)

    def test_without_add_bos_token_the_post_processor_decides(self, folder, tmp_path):
        place = change(folder, tmp_path, "tokenizer_config.json", add_bos_token=None)
        assert Tokenizer.load(place).adds_bos
        definition = json.loads((place / "tokenizer.json").read_text()) | {"post_processor": None}
        (place / "tokenizer.json").write_text(json.dumps(definition))
        assert not Tokenizer.load(place).adds_bos

    def test_truncation_padding_and_dropout_in_the_file_change_nothing(self, folder, tokenizer, tmp_path):
        definition = json.loads((folder / "tokenizer.json").read_text())
        truncation = {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0}
        model = {**definition["model"], "dropout": 0.5}
        place = change(folder, tmp_path, "tokenizer.json", truncation=truncation, model=model)
        text = CORPUS[0]
        assert Tokenizer.load(place).encode(text) == tokenizer.encode(text)

    def test_remote_code_is_neither_run_nor_kept(self, folder, tmp_path):
        code = {"AutoTokenizer": ["evil.Tokenizer", None]}
        place = change(folder, tmp_path, "tokenizer_config.json", auto_map=code)
        Tokenizer.load(place).save(place)
        assert "auto_map" not in json.loads((place / "tokenizer_config.json").read_text())

    def test_templates_in_files_of_their_own(self, folder, tmp_path):
        place = change(folder, tmp_path, "tokenizer_config.json", chat_template="old")
        (place / "chat_template.jinja").write_text("new {{ messages[0].content }}")
        (place / "additional_chat_templates").mkdir()
        (place / "additional_chat_templates" / "tool_use.jinja").write_text("tools {{ tools|length }}")
        tokenizer = Tokenizer.load(place)
        ask = [{"role": "user", "content": "x"}]
        assert tokenizer.decode(tokenizer.encode_prompt(ask)) == "new x"
        assert tokenizer.decode(tokenizer.encode_prompt(ask, tools=[{"name": "f"}])) == "tools 1"
        tokenizer.save(tmp_path / "again")
        assert Tokenizer.load(tmp_path / "again").files.templates == tokenizer.files.templates


def broken(folder: Path, place: Path, name: str, data: str | bytes) -> Path:
    for path in folder.iterdir():
        (place / path.name).write_bytes(path.read_bytes())
    (place / name).write_bytes(data.encode() if isinstance(data, str) else data)
    return place


def definition_with(folder: Path, **values: object) -> str:
    return json.dumps(json.loads((folder / "tokenizer.json").read_text()) | values)


def config_with(folder: Path, **values: object) -> str:
    return json.dumps(json.loads((folder / "tokenizer_config.json").read_text()) | values)


ADDED = {"content": "<|x|>", "single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
BROKEN = {
    "cut JSON": ("tokenizer.json", lambda f: (f / "tokenizer.json").read_text()[:500], r"tokenizer\.json:\d+"),
    "no UTF-8": ("tokenizer.json", lambda f: b'{"model": "\xff"}', "not UTF-8"),
    "a list": ("tokenizer.json", lambda f: "[]", "must hold a JSON object"),
    "deep nesting": ("tokenizer.json", lambda f: "[" * 100_000, "nested too deeply"),
    "no model": ("tokenizer.json", lambda f: '{"added_tokens": []}', 'no usable "model'),
    "added tokens are an object": ("tokenizer.json", lambda f: definition_with(f, added_tokens={}), '"added_tokens"'),
    "unknown model": (
        "tokenizer.json",
        lambda f: definition_with(f, model={"type": "Magic", "vocab": {"<|eos|>": 1, "<|bos|>": 0}}),
        "refuses the file",
    ),
    "vocabulary is text": (
        "tokenizer.json",
        lambda f: definition_with(f, model={"type": "BPE", "vocab": "abc"}),
        "vocab",
    ),
    "vocabulary ids are text": (
        "tokenizer.json",
        lambda f: definition_with(f, model={"type": "BPE", "vocab": {"a": "b"}, "merges": []}),
        "vocab",
    ),
    "added token without id": ("tokenizer.json", lambda f: definition_with(f, added_tokens=[ADDED]), "added_tokens"),
    "added token is text": ("tokenizer.json", lambda f: definition_with(f, added_tokens=["<|x|>"]), "added_tokens"),
    "added token has another id": (
        "tokenizer.json",
        lambda f: definition_with(f, added_tokens=[{**ADDED, "content": "<|eos|>", "id": 50, "special": True}]),
        "does not get the id",
    ),
    "unknown pre-tokenizer": (
        "tokenizer.json",
        lambda f: definition_with(f, pre_tokenizer={"type": "Magic"}),
        "refuses the file",
    ),
    "config is cut": ("tokenizer_config.json", lambda f: '{\n"eos_token": "<|eos|>",\n', r"tokenizer_config\.json:\d"),
    "no end token": ("tokenizer_config.json", lambda f: "{}", "names no end token"),
    "end token is unknown": (
        "tokenizer_config.json",
        lambda f: config_with(f, eos_token="<|fin|>"),
        "eos_token is not in the vocabulary",
    ),
    "start token is unknown": (
        "tokenizer_config.json",
        lambda f: config_with(f, bos_token={"content": "<|start|>"}),
        "bos_token is not in the vocabulary",
    ),
    "template is a number": ("tokenizer_config.json", lambda f: config_with(f, chat_template=3), "must be a string"),
    "template list without text": (
        "tokenizer_config.json",
        lambda f: config_with(f, chat_template=[{"name": "default"}]),
        "must be a string",
    ),
    "template file is no UTF-8": ("chat_template.jinja", lambda f: b"\xff\xfe", "not UTF-8"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_broken_folders_are_named(folder, tmp_path, kind):
    name, content, problem = BROKEN[kind]
    place = broken(folder, tmp_path, name, content(folder))
    if name == "tokenizer_config.json":
        (place / "special_tokens_map.json").unlink()
    with pytest.raises(TokenizerError, match=problem) as caught:
        Tokenizer.load(place)
    message = str(caught.value)
    assert name in message and "fix:" in message
    assert len(message.splitlines()) <= 5


def test_folders_without_a_tokenizer(tmp_path):
    with pytest.raises(TokenizerError, match="no such tokenizer folder"):
        Tokenizer.load(tmp_path / "nowhere")
    with pytest.raises(TokenizerError, match=r"no tokenizer\.json"):
        Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer.model").write_bytes(b"")
    with pytest.raises(TokenizerError, match=r"only tokenizer\.model"):
        Tokenizer.load(tmp_path)
