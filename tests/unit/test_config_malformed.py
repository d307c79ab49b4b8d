"""Malformed recipes and overrides: each refused by the command in at most five lines with place, value and fix."""

from __future__ import annotations

from pathlib import Path

import pytest

from trivium.cli.main import run
from trivium.errors import EXIT_INPUT

GOOD = """\
# trivium train recipe.yaml
name: run
method:
  name: dpo
  beta: 0.1
model: {preset: llama-1m}
tokenizer: runs/tokenizer
data:
  train: pairs.jsonl
train:
  steps: 10
  lr: 3e-4
"""


def changed(old: str, new: str) -> bytes:
    assert old in GOOD
    return GOOD.replace(old, new).encode()


# name -> (bytes of the recipe, what the message must contain)
FILES: dict[str, tuple[bytes, list[str]]] = {
    "empty file": (b"", ["the recipe is empty", "recipe.yaml", "fix:"]),
    "only comments": (b"# nothing\n", ["the recipe is empty"]),
    "a list": (b"- name: run\n", ["key: value", "recipe.yaml:1"]),
    "a sentence": (b"train a model please\n", ["key: value", "recipe.yaml:1"]),
    "tab as indentation": (changed("  steps: 10", "\tsteps: 10"), ["a tab", "recipe.yaml:11", "spaces"]),
    "wrong indentation": (changed("  lr: 3e-4", " lr: 3e-4"), ["indentation", "recipe.yaml:12", "lr: 3e-4"]),
    "two colons": (changed("name: run", "name: run: one"), ["colon", "recipe.yaml:2", "quotes"]),
    "no colon": (changed("tokenizer: runs/tokenizer", "tokenizer"), ["key: value", "recipe.yaml:7"]),
    "open quote": (changed("name: run", 'name: "run'), ["never closed", "recipe.yaml:2"]),
    "open bracket": (changed("{preset: llama-1m}", "{preset: llama-1m"), ["not closed", "recipe.yaml:7"]),
    "reserved character": (changed("name: run", "name: @run"), ["reserves", "recipe.yaml:2", "quotes"]),
    "bad escape": (changed("name: run", r'name: "C:\q"'), ["escape", "recipe.yaml:2"]),
    "key twice": (GOOD.encode() + b"  lr: 1\n", ["'lr' is given twice", "recipe.yaml:13", "recipe.yaml:12"]),
    "section twice": (GOOD.encode() + b"train:\n  steps: 1\n", ["'train' is given twice", "recipe.yaml:13"]),
    "tag": (changed("name: run", "name: !!python/object/apply:os.system [ls]"), ["tags", "recipe.yaml:2", "os.system"]),
    "alias without anchor": (changed("name: run", "name: *other"), ["alias", "recipe.yaml:2", "*other"]),
    "two documents": (GOOD.encode() + b"---\nname: b\n", ["more than one document", "recipe.yaml:13"]),
    "key is a list": (GOOD.encode() + b"? [a, b]\n: 1\n", ["key must be a word", "recipe.yaml:13"]),
    "merge of a number": (GOOD.encode() + b"<<: 3\n", ["'<<' merges mappings", "recipe.yaml:13"]),
    "control character": (changed("name: run", "name: r\x07n"), ["control character", "recipe.yaml:2", "U+0007"]),
    "not UTF-8": (
        GOOD.encode().replace(b"name: run", b"name: r\xfcn"),
        ["not UTF-8", "byte 35", "recipe.yaml:2", "0xfc"],
    ),
    "UTF-16": (GOOD.encode("utf-16"), ["UTF-16", "save it as UTF-8"]),
    "a data file": (b"text " * 60_000, ["256 KiB", "recipe.yaml"]),
    "nested too deep": (b"name: " + b"[" * 200 + b"]" * 200, ["nested deeper", "recipe.yaml:1"]),
    "bomb of aliases": (
        b"a0: &a0 [x, x, x, x, x, x, x, x]\n"
        + b"".join(b"a%d: &a%d [%s]\n" % (n, n, b", ".join([b"*a%d" % (n - 1)] * 8)) for n in range(1, 12)),
        ["expands to more than", "recipe.yaml:"],
    ),
    "unknown section": (
        changed("train:\n  steps", "trian:\n  steps"),
        ["unknown key trian", "recipe.yaml:10", "did you mean train?"],
    ),
    "unknown key": (changed("  lr:", "  lrr:"), ["unknown key train.lrr", "recipe.yaml:12", "train.lr?"]),
    "unknown key of the method": (changed("  beta:", "  bata:"), ["method.bata", "recipe.yaml:5", "method.beta?"]),
    "key of another section": (
        GOOD.encode() + b"lr: 1\n",
        ["unknown key lr", "recipe.yaml:13", "lr belongs under train: train.lr"],
    ),
    "key of the method at the top": (
        GOOD.encode() + b"label_smoothing: 0.1\n",
        ["belongs under method", "recipe.yaml:13"],
    ),
    "name of another tool": (GOOD.encode() + b"learning_rate: 1e-3\n", ["did you mean train.lr?", "recipe.yaml:13"]),
    "dots in the file": (GOOD.encode() + b"train.lr: 1\n", ["recipe.yaml:13", "nested", "command line"]),
    "unknown method": (
        changed("name: dpo", "name: dpoo"),
        ["no method 'dpoo'", "recipe.yaml:4", "did you mean dpo?", "clm"],
    ),
    "method without a name": (changed("  name: dpo\n", ""), ["method.name is missing", "recipe.yaml:", "dpo"]),
    "method is a number": (
        changed("method:\n  name: dpo\n  beta: 0.1", "method: 3"),
        ["method must be", "recipe.yaml:3"],
    ),
    "unknown preset": (changed("llama-1m", "lama-1m"), ["unknown preset", "recipe.yaml:6", "did you mean llama-1m?"]),
    "shape that cannot be": (
        changed("{preset: llama-1m}", "{preset: llama-1m, config: {num_heads: 7}}"),
        ["not divisible by num_heads 7", "recipe.yaml:6"],
    ),
    "missing section": (
        changed("data:\n  train: pairs.jsonl\n", ""),
        ["data is missing", "recipe.yaml", "train and validate"],
    ),
    "missing key": (changed("  train: pairs.jsonl", "  shuffle: true"), ["data.train is missing", "recipe.yaml:8"]),
    "no value": (
        changed("steps: 10", "batch_size:"),
        ["train.batch_size has no value", "recipe.yaml:11", "whole number"],
    ),
    "text for a number": (changed("3e-4", "fast"), ["train.lr must be a number", "recipe.yaml:12", "fast", "0.0003"]),
    "truth for a number": (
        changed("steps: 10", "steps: true"),
        ["train.steps must be a whole number", "recipe.yaml:11"],
    ),
    "half a step": (changed("steps: 10", "steps: 1.5"), ["must be a whole number", "recipe.yaml:11", "1.5"]),
    "below the limit": (changed("3e-4", "-1"), ["train.lr must be greater than 0", "recipe.yaml:12", "-1"]),
    "infinite": (changed("3e-4", ".inf"), ["train.lr must be a finite number", "recipe.yaml:12"]),
    "not one of the choices": (
        GOOD.encode() + b"  schedule: cosin\n",
        ["train.schedule", "recipe.yaml:13", "did you mean cosine?", "wsd, constant"],
    ),
    "number for a text": (changed("name: run", "name: 12"), ["name must be text", "recipe.yaml:2", "12"]),
    "path as a name": (changed("name: run", "name: ../run"), ["name has characters", "recipe.yaml:2", "../run"]),
    "section is a number": (
        changed("train:\n  steps: 10\n  lr: 3e-4", "train: 3"),
        ["train must be a section", "recipe.yaml:10"],
    ),
    "two starts": (changed("{preset: llama-1m}", "{preset: llama-1m, path: a}"), ["exactly one of", "recipe.yaml:6"]),
    "two lengths": (
        GOOD.encode() + b"  epochs: 1\n",
        ["exactly one of train.steps", "steps and epochs", "recipe.yaml:10"],
    ),
    "newer recipe": (GOOD.encode() + b"schema_version: 99\n", ["newer Trivium", "recipe.yaml:13", "upgrade"]),
}


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """What the command says; it must be short, without a traceback, and say what to do."""
    code = run(arguments)
    said = capsys.readouterr()
    assert code == EXIT_INPUT, said
    assert said.out == ""
    message = said.err.rstrip("\n")
    assert 2 <= len(message.splitlines()) <= 5, message
    assert "Traceback" not in message and "fix:" in message and "where:" in message
    return message


@pytest.mark.parametrize("name", FILES)
def test_malformed_recipe(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    content, expected = FILES[name]
    monkeypatch.chdir(tmp_path)
    Path("recipe.yaml").write_bytes(content)
    message = refused(["train", "recipe.yaml"], capsys)
    for fragment in expected:
        assert fragment in message, message
    assert sorted(path.name for path in tmp_path.iterdir()) == ["recipe.yaml"], "something was written"


OVERRIDES: dict[str, tuple[list[str], list[str]]] = {
    "no equals sign": (["train.lr"], ["key=value", "train.lr"]),
    "spaces": (["train.lr =3"], ["without spaces", "train.lr"]),
    "empty key": (["=3"], ["key=value"]),
    "empty part": (["train..lr=3"], ["key=value"]),
    "empty value": (["train.lr="], ["no value", "train.lr=null"]),
    "twice": (["train.lr=1", "train.lr=2"], ["overridden twice", "train.lr=2"]),
    "not YAML": (["train.sample_prompts=[a, b"], ["not valid YAML", "[a, b", "quotes"]),
    "unknown key": (["train.lrr=3"], ["unknown key train.lrr", "override train.lrr=3", "did you mean train.lr?"]),
    "key at the wrong level": (["lr=3"], ["lr belongs under train: train.lr"]),
    "unknown setting of the method": (["method.bet=3"], ["did you mean method.beta?"]),
    "unknown optimiser": (["train.optimizer=adamww"], ["no optimizer 'adamww'", "did you mean adamw?"]),
    "unknown setting of the optimiser": (["train.optimizer.beta3=1"], ["train.optimizer.beta3", "did you mean"]),
    "below a single value": (["train.lr.x=3"], ["train.lr is a single value", "train.lr=value"]),
    "item that does not exist": (["data.train.4=x"], ["list of 1", "data.train.0 to data.train.1"]),
    "item by name": (["data.train.0.weight=2", "data.train.first=x"], ["list of 1", "'first'"]),
    "wrong type": (["train.steps=soon"], ["train.steps must be a whole number", "soon"]),
    "unknown class": (["method=nowhere.at_all:Method"], ["cannot import nowhere", "installed"]),
    "not a class name": (["method=a b:c"], ["not the name of a class", "package.module:Class"]),
    "outside class without settings": (["method=fractions:Fraction"], ["no nested class Config", "StrictModel"]),
    "misspelt outside class": (["method=fractions:Fractoin"], ["has no class Fractoin"]),
    "transform that does not exist": (["transforms=[lorra]"], ["no transform 'lorra'"]),
    "several": (["train.lrr=3", "train.steps=x", "method.beta=-1"], ["2 more problems", "train.steps", "method.beta"]),
}


@pytest.mark.parametrize("name", OVERRIDES)
def test_malformed_override(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    overrides, expected = OVERRIDES[name]
    monkeypatch.chdir(tmp_path)
    Path("recipe.yaml").write_text(GOOD)
    message = refused(["train", "recipe.yaml", *overrides], capsys)
    for fragment in expected:
        assert fragment in message, message


def test_unchanged_base_is_well_formed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("recipe.yaml").write_text(GOOD)
    assert run(["train", "recipe.yaml", "--print"]) == 0
    assert "beta: 0.1" in capsys.readouterr().out


@pytest.mark.parametrize("marker", [b"\xef\xbb\xbf", b""], ids=["BOM", "no BOM"])
def test_windows_files_are_read(
    marker: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("recipe.yaml").write_bytes(marker + GOOD.replace("\n", "\r\n").encode())
    assert run(["train", "recipe.yaml", "--print"]) == 0
    assert "lr: 0.0003" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        ("recipe.yml", ["no such file", "did you mean recipe.yaml?"]),
        ("folder", ["folder, not a recipe"]),
        ("x" * 300, ["cannot read the file: File name too long"]),
        ("nothing/at/all.yaml", ["no such file", "current folder"]),
    ],
)
def test_recipe_that_is_not_there(
    argument: str,
    expected: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("recipe.yaml").write_text(GOOD)
    Path("folder").mkdir()
    message = refused(["train", argument], capsys)
    for fragment in expected:
        assert fragment in message, message
