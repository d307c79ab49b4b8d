"""Folders written here read the same in transformers, and folders written there read the same here."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from trivium.errors import TriviumError
from trivium.tokenizers.chat import ChatTemplate
from trivium.tokenizers.tokenizer import Tokenizer
from trivium.tokenizers.train import SPECIAL, train_bpe

transformers = pytest.importorskip("transformers")
import tokenizers as hf_tokenizers  # noqa: E402
from transformers import AutoTokenizer, PreTrainedTokenizerFast  # noqa: E402

CORPUS = [
    "The quick brown fox jumps over the lazy dog. " * 20,
    "def add(a, b):\n    return a + b\n\n" * 20,
    "Größe naïve 東京 привет 😀👍🏽 e\u0301 \u200d 1234567 3.14\t\r\n" * 20,
]
SAMPLES = [
    "",
    " ",
    "   leading and   inner   spaces  ",
    "\n\n\n\t\t  \r\n x",
    "nul \x00 in the middle \x00",
    "😀👍🏽👩‍👩‍👧‍👦 flags 🇩🇪",
    "e\u0301 ﬁ ① ﷺ",
    "\ufeffbyte order mark",
    "a" * 3000,
    " " * 3000,
    "東京" * 500,
    "1234567890 " * 100,
    "don't CAN'T we'LL",
]
CHATS = [
    [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello 😀\n"}],
    [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "one\n\n"},
        {"role": "assistant", "content": "1"},
        {"role": "user", "content": " two"},
        {"role": "assistant", "content": "2"},
    ],
]
anything = st.text(max_size=60)
mixed = st.lists(st.one_of(anything, st.sampled_from([*SPECIAL, "\n", "  ", "\x00", "😀"])), max_size=8).map("".join)
relaxed = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("own")
    train_bpe(CORPUS, vocab_size=700).save(place)
    return place


@pytest.fixture(scope="module")
def ours(folder: Path) -> Tokenizer:
    return Tokenizer.load(folder)


@pytest.fixture(scope="module")
def theirs(folder: Path):
    return AutoTokenizer.from_pretrained(folder)


def same(ours: Tokenizer, theirs, text: str) -> None:
    """Equal ids and equal text for a string, with and without special tokens."""
    assert ours.encode(text) == theirs(text, add_special_tokens=False, split_special_tokens=True).input_ids
    assert ours.encode(text, parse_special=True) == theirs(text, add_special_tokens=False).input_ids
    framed = ours.encode(text, bos=ours.adds_bos, parse_special=True)
    assert framed == theirs(text, split_special_tokens=False).input_ids
    for skip in (True, False):
        assert ours.decode(framed, skip_special=skip) == theirs.decode(framed, skip_special_tokens=skip)


@pytest.mark.parametrize("text", SAMPLES)
def test_samples(ours, theirs, text):
    same(ours, theirs, text)


@relaxed
@given(text=mixed)
def test_any_text(ours, theirs, text):
    same(ours, theirs, text)


@relaxed
@given(ids=st.lists(st.integers(0, 699), max_size=40))
def test_any_ids_decode_to_the_same_text(ours, theirs, ids):
    for skip in (True, False):
        assert ours.decode(ids, skip_special=skip) == theirs.decode(ids, skip_special_tokens=skip)


def test_a_long_text(ours, theirs):
    same(ours, theirs, "".join(CORPUS) * 100)


def test_roles(ours, theirs):
    assert (ours.bos_id, ours.eos_id, ours.pad_id) == (
        theirs.bos_token_id,
        theirs.eos_token_id,
        theirs.pad_token_id,
    )
    assert ours.vocab_size == len(theirs)
    assert set(ours.special_tokens.values()) == set(theirs.all_special_ids)


@pytest.mark.parametrize("messages", CHATS)
def test_chats(ours, theirs, messages):
    text = theirs.apply_chat_template(messages, tokenize=False)
    assert ours.chat_template.render(messages).text == text
    both = theirs.apply_chat_template(messages, return_dict=True, return_assistant_tokens_mask=True)
    chat = ours.encode_chat(messages)
    assert chat.ids == both["input_ids"]
    assert [int(flag) for flag in chat.trained] == both["assistant_masks"]
    prompt = theirs.apply_chat_template(messages[:-1], add_generation_prompt=True, return_dict=True)["input_ids"]
    assert ours.encode_prompt(messages[:-1]) == prompt == chat.ids[: len(prompt)]


@relaxed
@given(
    contents=st.lists(anything.filter(lambda text: not any(name in text for name in SPECIAL)), min_size=1, max_size=5)
)
def test_any_content_without_special_tokens(ours, theirs, contents):
    """transformers lets a message write special tokens; that is the one difference."""
    messages = [{"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(contents)]
    expected = theirs.apply_chat_template(messages, return_dict=True)["input_ids"]
    assert ours.encode_chat(messages).ids == expected


@pytest.mark.parametrize("family", ["llama", "gpt2", "mistral"])
def test_beside_a_model_of_any_family(folder, ours, tmp_path, family):
    """transformers looks at config.json too, and has special classes for some families."""
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "config.json").write_text(json.dumps({"model_type": family}))
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    for text in SAMPLES[:8]:
        same(ours, theirs, text)
    assert theirs.apply_chat_template(CHATS[1], return_dict=True)["input_ids"] == ours.encode_chat(CHATS[1]).ids


def write(place: Path, backend: hf_tokenizers.Tokenizer, **roles: object) -> Path:
    """A folder as transformers writes it."""
    PreTrainedTokenizerFast(tokenizer_object=backend, **roles).save_pretrained(place)
    return place


def byte_level(special: list[str]) -> hf_tokenizers.Tokenizer:
    backend = hf_tokenizers.Tokenizer(hf_tokenizers.models.BPE())
    backend.pre_tokenizer = hf_tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = hf_tokenizers.decoders.ByteLevel()
    trainer = hf_tokenizers.trainers.BpeTrainer(
        vocab_size=500,
        special_tokens=special,
        initial_alphabet=hf_tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(CORPUS, trainer)
    return backend


def llama3(place: Path) -> Path:
    backend = byte_level(["<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>", "<|reserved_special_token_0|>"])
    backend.post_processor = hf_tokenizers.processors.Sequence(
        [
            hf_tokenizers.processors.ByteLevel(trim_offsets=False),
            hf_tokenizers.processors.TemplateProcessing(
                single="<|begin_of_text|> $A", special_tokens=[("<|begin_of_text|>", 0)]
            ),
        ]
    )
    return write(place, backend, bos_token="<|begin_of_text|>", eos_token="<|eot_id|>")


def gpt2(place: Path) -> Path:
    backend = byte_level(["<|endoftext|>"])
    backend.post_processor = hf_tokenizers.processors.ByteLevel(trim_offsets=True)
    roles = dict.fromkeys(("bos_token", "eos_token", "unk_token"), "<|endoftext|>")
    return write(place, backend, **roles)


def llama2(place: Path) -> Path:
    backend = hf_tokenizers.Tokenizer(hf_tokenizers.models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    backend.pre_tokenizer = hf_tokenizers.pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    backend.decoder = hf_tokenizers.decoders.Sequence(
        [
            hf_tokenizers.decoders.Replace("▁", " "),
            hf_tokenizers.decoders.ByteFallback(),
            hf_tokenizers.decoders.Fuse(),
            hf_tokenizers.decoders.Strip(content=" ", left=1),
        ]
    )
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    splitter = backend.pre_tokenizer
    backend.pre_tokenizer = hf_tokenizers.pre_tokenizers.Metaspace()
    trainer = hf_tokenizers.trainers.BpeTrainer(vocab_size=600, special_tokens=special, show_progress=False)
    backend.train_from_iterator(CORPUS, trainer)
    backend.pre_tokenizer = splitter
    definition = json.loads(backend.to_str())
    definition["added_tokens"] = definition["added_tokens"][:3]
    backend = hf_tokenizers.Tokenizer.from_str(json.dumps(definition))
    backend.post_processor = hf_tokenizers.processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return write(place, backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def unigram(place: Path) -> Path:
    backend = hf_tokenizers.Tokenizer(hf_tokenizers.models.Unigram())
    backend.normalizer = hf_tokenizers.normalizers.NFKC()
    backend.pre_tokenizer = hf_tokenizers.pre_tokenizers.Metaspace()
    backend.decoder = hf_tokenizers.decoders.Metaspace()
    trainer = hf_tokenizers.trainers.UnigramTrainer(
        vocab_size=250, special_tokens=["<pad>", "</s>", "<unk>"], unk_token="<unk>", show_progress=False
    )
    backend.train_from_iterator(CORPUS, trainer)
    backend.post_processor = hf_tokenizers.processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return write(place, backend, eos_token="</s>", pad_token="<pad>", unk_token="<unk>")


def wordpiece(place: Path) -> Path:
    backend = hf_tokenizers.Tokenizer(hf_tokenizers.models.WordPiece(unk_token="[UNK]"))
    backend.normalizer = hf_tokenizers.normalizers.BertNormalizer()
    backend.pre_tokenizer = hf_tokenizers.pre_tokenizers.BertPreTokenizer()
    backend.decoder = hf_tokenizers.decoders.WordPiece()
    trainer = hf_tokenizers.trainers.WordPieceTrainer(
        vocab_size=300, special_tokens=["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"], show_progress=False
    )
    backend.train_from_iterator(CORPUS, trainer)
    backend.post_processor = hf_tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    roles = {f"{name.lower()}_token": f"[{name}]" for name in ("PAD", "UNK", "CLS", "SEP", "MASK")}
    return write(place, backend, **roles)


KINDS = {"llama3": llama3, "gpt2": gpt2, "llama2": llama2, "unigram": unigram, "wordpiece": wordpiece}


@pytest.mark.parametrize("kind", KINDS)
def test_folders_of_transformers(tmp_path, kind):
    theirs_at = KINDS[kind](tmp_path / "theirs")
    theirs, ours = AutoTokenizer.from_pretrained(theirs_at), Tokenizer.load(theirs_at)
    ours.save(tmp_path / "ours")
    again, ours_in_theirs = Tokenizer.load(tmp_path / "ours"), AutoTokenizer.from_pretrained(tmp_path / "ours")
    assert again.fingerprint() == ours.fingerprint()
    assert ours.adds_bos == (kind in ("llama3", "llama2", "wordpiece"))
    assert ours.pad_id != ours.eos_id
    for text in [*SAMPLES, "text with </s> and [SEP] and <|eot_id|> and <|endoftext|> inside"]:
        assert ours.encode(text, parse_special=True) == theirs(text, add_special_tokens=False).input_ids
        assert theirs(text).input_ids == ours_in_theirs(text).input_ids
        whole = ours.encode_document(text)
        assert ours.eos_id not in whole[:-1] or kind == "gpt2"
        assert ours.bos_id is None or whole.count(ours.bos_id) <= 1
        for skip in (True, False):
            assert ours.decode(whole, skip_special=skip) == theirs.decode(whole, skip_special_tokens=skip)
        stream = ours.stream()
        assert "".join([*map(stream.push, whole), stream.flush()]) == ours.decode(whole)


def test_transformers_writes_what_it_read(folder, ours, theirs, tmp_path):
    """Saved again by transformers 5, which moves the template into a file of its own."""
    theirs.save_pretrained(tmp_path)
    assert (tmp_path / "chat_template.jinja").is_file()
    again = Tokenizer.load(tmp_path)
    assert again.encode_chat(CHATS[1]) == ours.encode_chat(CHATS[1])
    assert again.encode_document("a 😀") == ours.encode_document("a 😀")


TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "weather <now> & then",
            "parameters": {
                "type": "object",
                "properties": {
                    "city": {"type": "string", "description": "Zürich"},
                    "days": {"type": "array", "items": {"type": "integer"}},
                },
                "required": ["city"],
            },
        },
    }
]
CALL = {"name": "get_weather", "arguments": {"city": "Zürich", "days": [1, 2]}}
CONVERSATIONS = [
    *((chat, None) for chat in CHATS),
    (
        [
            {"role": "user", "content": "a"},
            {"role": "assistant", "content": "b", "reasoning_content": "c"},
            {"role": "user", "content": "d"},
            {"role": "assistant", "content": "e", "reasoning_content": "f"},
        ],
        None,
    ),
    (
        [
            {"role": "system", "content": "x"},
            {"role": "user", "content": "rain?"},
            {
                "role": "assistant",
                "content": "",
                "tool_calls": [{"id": "a12345678", "type": "function", "function": CALL}],
            },
            {"role": "tool", "name": "get_weather", "tool_call_id": "a12345678", "content": '{"rain": 3}'},
            {"role": "assistant", "content": "yes"},
        ],
        TOOLS,
    ),
    ([{"role": "user", "content": [{"type": "text", "text": "a"}]}, {"role": "assistant", "content": "b"}], None),
]


def shipped_templates() -> list[Path]:
    trl = pytest.importorskip("trl")
    return sorted((Path(trl.__file__).parent / "chat_templates").glob("*.jinja"))


@pytest.mark.filterwarnings("ignore")
def test_templates_of_real_models_render_as_in_transformers():
    from transformers.utils.chat_template_utils import render_jinja_template

    roles = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    compared = 0
    for path in shipped_templates():
        source = path.read_text()
        ours = ChatTemplate(source, roles=roles, special={"<s>": 1, "</s>": 2, "<|im_end|>": 3}, where=path.name)
        for messages, tools in CONVERSATIONS:
            for prompt in (False, True):
                try:
                    (text,), spans = render_jinja_template(
                        [messages],
                        tools=tools,
                        chat_template=source,
                        add_generation_prompt=prompt,
                        return_assistant_tokens_mask=ours.marked,
                        **roles,
                    )
                except Exception:
                    with pytest.raises(TriviumError):
                        ours.render(messages, tools=tools, generation_prompt=prompt)
                    continue
                rendered = ours.render(messages, tools=tools, generation_prompt=prompt, marks=ours.marked)
                assert rendered.text == text, path.name
                assert rendered.spans == (spans[0] if spans else []), path.name
                compared += 1
    assert compared > 500 or not shipped_templates()
