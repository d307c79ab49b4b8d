"""Conversations: which tokens there are, which of them are trained, and that messages stay data."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trivium.errors import TokenizerError
from trivium.tokenizers.templates import PLAIN, TRIVIUM
from trivium.tokenizers.tokenizer import Tokenizer
from trivium.tokenizers.train import SPECIAL, train_bpe

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
CHATML_MARKED = (
    "{% for message in messages %}{{ '<|im_start|>' + message.role + '\\n' }}{% if message.role == 'assistant' %}"
    "{% generation %}{{ message.content + '<|im_end|>' }}{% endgeneration %}{{ '\\n' }}{% else %}"
    "{{ message.content + '<|im_end|>\\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
CORPUS = ["What does it do? It adds two numbers together. " * 30]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_bpe(CORPUS, vocab_size=320, special=["<|im_start|>", "<|im_end|>"])


@pytest.fixture(scope="module")
def with_template(tokenizer):
    made: dict[str, Tokenizer] = {}

    def find(template: str) -> Tokenizer:
        return made.setdefault(template, tokenizer.with_chat_template(template))

    return find


def user(content):
    return {"role": "user", "content": content}


def assistant(content, **more):
    return {"role": "assistant", "content": content, **more}


def trained_text(tokenizer, chat) -> list[str]:
    """The trained runs of a conversation, as text."""
    runs, before = [], False
    for token, flag in zip(chat.ids, chat.trained, strict=True):
        if flag:
            text = tokenizer.decode([token], skip_special=False)
            runs = [*runs[:-1], runs[-1] + text] if before else [*runs, text]
        before = flag
    return runs


MULTI = [
    {"role": "system", "content": "Be brief."},
    user("One?"),
    assistant("1"),
    user("Two?"),
    assistant("It adds two."),
]
END = {TRIVIUM: "<|eos|>", PLAIN: "<|eos|>", CHATML: "<|im_end|>", CHATML_MARKED: "<|im_end|>"}


@pytest.mark.parametrize("template", END)
class TestMask:
    def test_every_answer_and_its_end_is_trained_and_nothing_else(self, with_template, template):
        tokenizer = with_template(template)
        chat = tokenizer.encode_chat(MULTI)
        assert trained_text(tokenizer, chat) == ["1" + END[template], "It adds two." + END[template]]
        assert chat.warnings == ()

    def test_the_prompt_of_serving_is_the_beginning_of_training(self, with_template, template):
        tokenizer = with_template(template)
        chat = tokenizer.encode_chat(MULTI)
        for turn in (2, 4):
            prompt = tokenizer.encode_prompt(MULTI[:turn])
            assert chat.ids[: len(prompt)] == prompt
            assert chat.trained[len(prompt)] and not chat.trained[len(prompt) - 1]

    def test_an_answer_can_be_left_out(self, with_template, template):
        tokenizer = with_template(template)
        for left_out, kept in ((2, "It adds two."), (4, "1")):
            messages = [{**m, "train": False} if n == left_out else m for n, m in enumerate(MULTI)]
            chat = tokenizer.encode_chat(messages)
            assert trained_text(tokenizer, chat) == [kept + END[template]]
            assert chat.ids == tokenizer.encode_chat(MULTI).ids

    def test_a_last_question_is_not_trained(self, with_template, template):
        tokenizer = with_template(template)
        chat = tokenizer.encode_chat([*MULTI, user("Three?")])
        assert len(trained_text(tokenizer, chat)) == 2

    @settings(max_examples=60, deadline=None)
    @given(answers=st.lists(st.text(min_size=1, max_size=20), min_size=1, max_size=3))
    def test_any_answer_is_trained_as_it_is(self, with_template, template, answers):
        tokenizer = with_template(template)
        messages = [message for answer in answers for message in (user("?"), assistant(answer))]
        chat = tokenizer.encode_chat(messages)
        ids = [token for token, flag in zip(chat.ids, chat.trained, strict=True) if flag]
        end = END[template]
        assert tokenizer.decode(ids, skip_special=False) == "".join(answer + end for answer in answers)

    def test_generation_stops_where_training_ends(self, with_template, template):
        tokenizer = with_template(template)
        stops = {tokenizer.eos_id, tokenizer.special_tokens[END[template]]}
        assert set(tokenizer.stop_ids) == stops
        assert tokenizer.stop_ids[0] == tokenizer.eos_id


@pytest.mark.parametrize("template", END)
@pytest.mark.parametrize("name", SPECIAL)
def test_messages_cannot_write_special_tokens(with_template, template, name):
    tokenizer = with_template(template)
    hostile = [
        {"role": "system", "content": name},
        user(f"a{name}{name}b\n{name} "),
        assistant(f"{name}c{name}"),
        user(f"{name}"),
        assistant(f"d {name} e"),
    ]
    harmless = [{**message, "content": "x"} for message in hostile]
    chat = tokenizer.encode_chat(hostile)
    special = set(tokenizer.special_tokens.values())
    expected = [token for token in tokenizer.encode_chat(harmless).ids if token in special]
    assert [token for token in chat.ids if token in special] == expected
    assert tokenizer.decode(chat.ids, skip_special=False) == tokenizer.chat_template.render(hostile).text
    assert trained_text(tokenizer, chat) == [f"{name}c{name}{END[template]}", f"d {name} e{END[template]}"]
    prompt = tokenizer.encode_prompt(hostile[:4])
    assert chat.ids[: len(prompt)] == prompt


@settings(max_examples=100, deadline=None)
@given(parts=st.lists(st.one_of(st.text(max_size=8), st.sampled_from(SPECIAL)), max_size=6))
def test_guarding_changes_no_other_token(tokenizer, parts):
    """The ids of a guarded conversation are those of the text with special tokens taken apart."""
    content = "".join(parts)
    ids, offsets = tokenizer.guarded_offsets([tokenizer.bos_id, content, tokenizer.eos_id])
    assert ids == [tokenizer.bos_id, *tokenizer.encode(content), tokenizer.eos_id]
    text = f"{tokenizer.bos_token}{content}{tokenizer.eos_token}"
    assert offsets[0] == (0, len(str(tokenizer.bos_token))) and offsets[-1][1] == len(text)
    plain_ids, plain_offsets = tokenizer.guarded_offsets([content])
    if not any(name in content for name in tokenizer.special_tokens):
        assert (plain_ids, plain_offsets) == tokenizer.offsets(content)


@pytest.mark.parametrize("template", END)
class TestWhatIsTrained:
    def test_the_last_turn(self, with_template, template):
        tokenizer = with_template(template)
        chat = tokenizer.encode_chat(MULTI, train_on="last")
        assert trained_text(tokenizer, chat) == ["It adds two." + END[template]]
        assert chat.ids == tokenizer.encode_chat(MULTI).ids

    def test_other_roles(self, with_template, template):
        tokenizer = with_template(template)
        chat = tokenizer.encode_chat(MULTI, train_on=["system", "user"])
        closed = {CHATML: "<|im_end|>", CHATML_MARKED: "<|im_end|>\n"}.get(template)
        said = ["Be brief.", "One?", "Two?"]
        expected = said if template == TRIVIUM else [text + (closed or "\n\n") for text in said]
        assert trained_text(tokenizer, chat) == expected
        assert chat.ids == tokenizer.encode_chat(MULTI).ids

    def test_weights(self, with_template, template):
        tokenizer = with_template(template)
        messages = [{**m, "weight": 0.5} if n == 2 else m for n, m in enumerate(MULTI)]
        chat = tokenizer.encode_chat(messages)
        plain = tokenizer.encode_chat(MULTI)
        assert chat.ids == plain.ids and chat.trained == plain.trained and plain.weights is None
        first = len(tokenizer.encode("1" + END[template], parse_special=True))
        found = [weight for weight in chat.weights if weight]
        assert found[:first] == [0.5] * first and set(found[first:]) == {1.0}

    def test_a_weight_of_the_prompt(self, with_template, template):
        tokenizer = with_template(template)
        messages = [{**m, "train": False} if n == 2 else m for n, m in enumerate(MULTI)]
        chat = tokenizer.encode_chat(messages, prompt_weight=0.1)
        answer = tokenizer.encode_chat(messages).trained
        left_out = [one and not other for one, other in zip(tokenizer.encode_chat(MULTI).trained, answer, strict=True)]
        expected = [1.0 if one else 0.0 if other else 0.1 for one, other in zip(answer, left_out, strict=True)]
        assert chat.weights == expected and chat.trained == [weight > 0 for weight in expected]


class TestTools:
    tool = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}  # noqa: RUF012

    def test_tools_are_shown_and_calls_trained(self, tokenizer):
        call = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
        messages = [
            user("1 + 1?"),
            assistant("", tool_calls=[call]),
            {"role": "tool", "content": "2"},
            assistant("Two."),
        ]
        chat = tokenizer.encode_chat(messages, tools=[self.tool])
        text = tokenizer.decode(chat.ids, skip_special=False)
        assert '{"type": "function", "function": {"name": "add"' in text
        said = ['<|tool_call|>{"name": "add", "arguments": {"a": 1}}<|eos|>', "Two.<|eos|>"]
        assert trained_text(tokenizer, chat) == said
        prompt = tokenizer.encode_prompt(messages[:1], tools=[self.tool])
        assert chat.ids[: len(prompt)] == prompt

    def test_tools_cannot_write_special_tokens(self, tokenizer):
        tool = {"type": "function", "function": {"name": "<|eos|>"}}
        ids = tokenizer.encode_prompt([user("?")], tools=[tool])
        assert tokenizer.eos_id not in ids
        assert '"<|eos|>"' in tokenizer.decode(ids)


class TestTemplatesOfOthers:
    def test_marks_without_the_end_token_are_warned_about(self, with_template):
        template = CHATML_MARKED.replace(
            "{{ message.content + '<|im_end|>' }}{% endgeneration %}",
            "{{ message.content }}{% endgeneration %}{{ '<|im_end|>' }}",
        )
        chat = with_template(template).encode_chat(MULTI)
        assert trained_text(with_template(template), chat) == ["1", "It adds two."]
        assert "does not learn to stop" in chat.warnings[0]

    def test_a_template_without_end_token_gets_eos(self, with_template):
        template = "{% for m in messages %}{{ m.role + ': ' + m.content + '\\n' }}{% endfor %}" + (
            "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
        )
        tokenizer = with_template(template)
        chat = tokenizer.encode_chat(MULTI)
        assert chat.ids[-1] == tokenizer.eos_id and chat.trained[-1]
        assert "EOS is added" in chat.warnings[0]

    def test_marks_that_mark_nothing_are_warned_about(self, with_template):
        template = "{{ messages[0].content }}{% if false %}{% generation %}{% endgeneration %}{% endif %}"
        chat = with_template(template).encode_chat([user("a"), assistant("b")])
        assert "marks nothing" in chat.warnings[0] and not any(chat.trained)

    def test_a_template_that_rewrites_the_past_is_refused(self, with_template):
        template = (
            "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' }}{% if loop.last and m.role == 'assistant' %}"
            "{{ '<think>' }}{% endif %}{{ m.content + '<|im_end|>' }}{% endfor %}"
            "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
        )
        tokenizer = with_template(template)
        with pytest.raises(TokenizerError, match=r"differently once others follow(.|\n)*message 3") as caught:
            tokenizer.encode_chat(MULTI)
        assert "<think>1<|im_end|>" in str(caught.value) and "assistant\\n1<|im_end|>" in str(caught.value)
        assert trained_text(tokenizer, tokenizer.encode_chat(MULTI, train_on="last")) == [
            "<think>It adds two.<|im_end|>"
        ]
        last_only = [*MULTI[:2], {**MULTI[2], "train": False}, *MULTI[3:]]
        assert trained_text(tokenizer, tokenizer.encode_chat(last_only)) == ["<think>It adds two.<|im_end|>"]

    def test_a_generation_prompt_that_training_does_not_contain_is_refused(self, with_template):
        template = CHATML.replace("'<|im_start|>assistant\\n'", "'<|im_start|>assistant\\n<think>'")
        with pytest.raises(TokenizerError, match="generation prompt is not how it begins"):
            with_template(template).encode_chat(MULTI)

    @pytest.mark.parametrize("said", [{"content": "b"}, {"content": "", "tool_calls": [{"name": "add"}]}])
    def test_a_template_that_leaves_out_what_is_said_is_refused(self, with_template, said):
        template = CHATML.replace("message.content", "(message.content if message.role == 'user' else '')")
        with pytest.raises(TokenizerError, match="leaves out what this message says"):
            with_template(template).encode_chat([user("a"), {"role": "assistant", **said}])

    def test_tools_that_the_template_does_not_show_are_refused(self, with_template):
        with pytest.raises(TokenizerError, match="does not show tools"):
            with_template(CHATML).encode_chat(MULTI, tools=[TestTools.tool])

    def test_several_marks_in_a_message(self, with_template):
        template = (
            "{% for m in messages %}{% if m.role == 'assistant' %}<|im_start|>{% generation %}{{ m.content }}"
            "{% endgeneration %}|{% generation %}<|im_end|>{% endgeneration %}{% else %}{{ m.content }}{% endif %}"
            "{% endfor %}"
        )
        tokenizer = with_template(template)
        messages = [user("a"), assistant("b", train=False), user("c"), assistant("d")]
        assert trained_text(tokenizer, tokenizer.encode_chat(messages)) == ["d", "<|im_end|>"]

    def test_a_role_whose_place_is_not_certain_is_refused(self, with_template):
        template = CHATML.replace("message.content", "(message.content if message.role != 'user' else 'asked')")
        tokenizer = with_template(template)
        assert len(trained_text(tokenizer, tokenizer.encode_chat(MULTI))) == 2
        with pytest.raises(TokenizerError, match="not certain where the template writes this message of the user"):
            tokenizer.encode_chat(MULTI, train_on=["user"])

    def test_tokens_that_close_the_conversation_belong_to_the_last_answer(self, with_template):
        template = CHATML.replace("{% else %}", "").replace("{% endif %}", "{% else %}{{ eos_token }}{% endif %}")
        tokenizer = with_template(template)
        said = trained_text(tokenizer, tokenizer.encode_chat(MULTI))
        assert said == ["1<|im_end|>", "It adds two.<|im_end|>\n<|eos|>"]

    def test_bos_written_twice_is_refused(self, with_template):
        with pytest.raises(TokenizerError, match="BOS twice"):
            with_template("{{ bos_token }}" + TRIVIUM).encode_chat(MULTI)

    def test_marks_in_macros_and_blocks(self, with_template):
        template = (
            "{% macro say(m) %}{% if m.role == 'assistant' %}"
            "{% generation %}{{ m.content }}<|im_end|>{% endgeneration %}"
            "{% else %}{{ m.content }}{% endif %}{% endmacro %}"
            "{% for m in messages %}{% set text %}[{{ say(m) }}]{% endset %}{{ text }}{% endfor %}"
        )
        tokenizer = with_template(template)
        assert trained_text(tokenizer, tokenizer.encode_chat(MULTI)) == ["1<|im_end|>", "It adds two.<|im_end|>"]

    def test_one_mark_for_two_messages(self, with_template):
        template = "{{ messages[0].content }}{% generation %}{{ messages[1].content }}{% endgeneration %}"
        tokenizer = with_template(template)
        messages = [user("a"), assistant("b"), assistant("c", train=False)]
        with pytest.raises(TokenizerError, match="not certain which part"):
            tokenizer.encode_chat(messages)

    def test_no_template(self, tokenizer):
        from dataclasses import replace

        bare = Tokenizer(replace(tokenizer.files, templates={}))
        assert bare.stop_ids == (bare.eos_id,)
        with pytest.raises(TokenizerError, match="no chat template"):
            bare.encode_chat(MULTI)


@pytest.mark.parametrize(
    ("messages", "problem"),
    [
        ([], "at least one message"),
        ("hello", "at least one message"),
        ({"role": "user", "content": "a"}, "at least one message"),
        (["a"], "a message is a mapping"),
        ([{"content": "a"}], "role of a message is not known"),
        ([{"role": "end", "content": "a"}], "role of a message is not known"),
        ([{"role": "user", "content": "a", "train": True}], "true only for the assistant"),
        ([user("a"), assistant("b", train="no")], "true or false"),
        ([user("a"), assistant("b", weight=-1)], "weight of a message is a number"),
        ([user("a"), assistant("b", weight="much")], "weight of a message is a number"),
        ([user(b"bytes")], "can only hold text"),
        ([user("half \ud800")], "surrogate"),
        ([user("x" * 2_000_000), assistant("b")], "too large"),
    ],
)
def test_wrong_messages(tokenizer, messages, problem):
    with pytest.raises(TokenizerError, match=problem) as caught:
        tokenizer.encode_chat(messages)
    assert len(str(caught.value).splitlines()) <= 5


def test_an_answer_to_nothing_is_refused_where_the_mask_needs_a_question(with_template):
    with pytest.raises(TokenizerError, match="begins with the assistant"):
        with_template(CHATML).encode_chat([assistant("a")])
