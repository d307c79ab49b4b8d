"""A row as the model sees it: tokens, targets, mask and loss; on the terminal, as JSON and as a page."""

from __future__ import annotations

import json
import math
from html.parser import HTMLParser
from io import StringIO

import pytest
import torch
from rich.console import Console

from trivium.data.dataset import open_dataset
from trivium.data.inspect import inspect_rows, print_rows, rows_as_html, rows_as_json, visible
from trivium.models.build import build_model
from trivium.models.config import ModelConfig
from trivium.recipe import DataSection
from trivium.tokenizers.train import train_bpe

QUESTION = "What is <b>this</b>?\n\x1b[31mred\x00"
ANSWER = "A [bold]word[/bold] 😀"


@pytest.fixture(scope="module")
def tokenizer():
    return train_bpe(["What is this? A word. " * 20], vocab_size=290)


@pytest.fixture(scope="module")
def dataset(tokenizer, tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "chat.jsonl"
    row = {"messages": [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": ANSWER}]}
    path.write_text((json.dumps(row) + "\n") * 3)
    settings = DataSection(train=str(path), sequence_length=128)
    return open_dataset(settings.train, kind="instructions", tokenizer=tokenizer, settings=settings)


@pytest.fixture(scope="module")
def model(tokenizer):
    config = ModelConfig(
        family="llama",
        vocab_size=tokenizer.vocab_size,
        hidden_size=16,
        num_layers=1,
        num_heads=2,
        num_kv_heads=2,
        head_dim=8,
        intermediate_size=32,
        max_positions=128,
    )
    return build_model(config, seed=0)


def test_tokens_targets_and_mask(dataset, tokenizer):
    rows = inspect_rows(dataset, tokenizer, count=2)
    assert [row.sample for row in rows] == ["chat.jsonl:1", "chat.jsonl:2"]
    tokens = rows[0].tokens
    assert tokens[0].token == "<|bos|>"
    assert tokens[1].token == "<|user|>" == tokens[0].target
    assert [token.target for token in tokens[:-1]] == [token.token for token in tokens[1:]]
    assert tokens[-1].token == "<|eos|>" and tokens[-1].target is None and not tokens[-1].trained
    said = tokenizer.encode(ANSWER, eos=True)
    assert rows[0].trained == len(said)
    assert all(token.trained for token in tokens[-len(said) - 1 : -1])
    assert rows[0].loss is None


def test_losses_are_those_of_the_model(dataset, tokenizer, model):
    (row,) = inspect_rows(dataset, tokenizer, model=model, count=1, first=2)
    ids = torch.tensor([list(dataset.sample(2).sequences[0].ids)])
    logprobs = model(ids[:, :-1]).log_softmax(-1)[0].gather(1, ids[0, 1:, None])[:, 0].tolist()
    assert [token.loss for token in row.tokens[:-1]] == pytest.approx([-value for value in logprobs], abs=1e-5)
    assert row.tokens[3].probability == pytest.approx(math.exp(logprobs[3]), abs=1e-5)
    trained = [-value for value, token in zip(logprobs, row.tokens, strict=False) if token.trained]
    assert row.loss == pytest.approx(sum(trained) / len(trained), abs=1e-5)
    assert model.training


def test_the_terminal_shows_text_and_never_obeys_it(dataset, tokenizer, model):
    out = StringIO()
    print_rows(
        inspect_rows(dataset, tokenizer, model=model, count=1), Console(file=out, width=120, force_terminal=True)
    )
    assert "\x1b[31mred" not in out.getvalue() and "\x00" not in out.getvalue()
    assert "\\x1b" in out.getvalue() and "probability" in out.getvalue()
    plain = StringIO()
    print_rows(inspect_rows(dataset, tokenizer, count=1), Console(file=plain, width=120))
    assert "│ [ " in plain.getvalue() and "probability" not in plain.getvalue()


def test_json_has_everything(dataset, tokenizer, model):
    (row,) = json.loads(json.dumps(rows_as_json(inspect_rows(dataset, tokenizer, model=model, count=1))))
    assert row["sample"] == "chat.jsonl:1" and row["trained"] > 0 and row["loss"] > 0
    assert set(row["tokens"][0]) == {"position", "id", "token", "target", "trained", "weight", "probability", "loss"}


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.trained = ""
        self.inside = False

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.inside = tag == "span" and ("class", "trained") in attributes

    def handle_endtag(self, tag):
        self.inside = False

    def handle_data(self, data):
        self.trained += data if self.inside else ""


def test_the_page_is_closed_and_marks_what_is_trained(dataset, tokenizer, model):
    page = rows_as_html(inspect_rows(dataset, tokenizer, model=model, count=2), title="<script>")
    tags = Tags()
    tags.feed(page)
    assert not {"script", "link", "img", "iframe", "b"} & set(tags.tags)
    assert "http:" not in page and "https:" not in page
    assert "&lt;script&gt;" in page and "\x1b" not in page
    assert tags.trained.startswith("A [bold]word[/bold] ") and tags.trained.endswith("<|eos|>")
    plain = rows_as_html(inspect_rows(dataset, tokenizer, count=1))
    assert "probability" not in plain and "coloured: trained" in plain


def test_visible_keeps_spaces_and_spells_out_the_rest():
    assert visible(" a\n\t\x00é😀") == " a\\n\\t\\x00é😀"
