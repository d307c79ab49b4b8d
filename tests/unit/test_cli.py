"""The command line: help, errors, exit codes, completion, and results for people and programs."""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import typer.main

from trivium.cli import main
from trivium.cli.main import run
from trivium.errors import ArtifactDamaged, ConfigError, Interrupted, TrainingDiverged

ROOT = Path(__file__).resolve().parents[2]
RECIPE = (
    "name: run\nmethod: clm\nmodel: {preset: llama-1m}\ntokenizer: tok\ndata: {train: data.txt}\ntrain: {steps: 1}\n"
)
VERBS = ["quickstart", "data", "tokenizer", "train", "eval", "generate", "chat", "lineage", "report"]
VERBS += ["verify", "doctor", "compress", "config", "plan", "schema", "music", "prompt"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("recipe.yaml").write_text(RECIPE)
    Path("data.txt").write_text("text")
    Path("tok").mkdir()
    Path("tok/tokenizer.json").write_text("{}")
    return tmp_path


@pytest.fixture
def verb(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes `trivium verify x` do what the test wants, to see what the command makes of it."""

    def replace(action: Any) -> None:
        monkeypatch.setattr("trivium.artifacts.manifest.verify", lambda path: action())

    return replace


def raises(error: BaseException) -> Any:
    def action() -> None:
        raise error

    return action


def command(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "trivium", *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, **environment},
        check=False,
        timeout=60,
    )


def test_help_lists_the_verbs_in_the_order_of_the_work(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--help"]) == 0
    listed = capsys.readouterr().out.partition("Commands:")[2].splitlines()
    assert [line.split()[0] for line in listed if line.startswith("  ")][: len(VERBS)] == VERBS[:9] + sorted(VERBS[9:])


@pytest.mark.parametrize("verb_name", VERBS)
def test_every_verb_explains_itself(verb_name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([verb_name, "--help"]) == 0
    assert f"Usage: trivium {verb_name}" in capsys.readouterr().out


def test_no_argument_is_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert run([]) == 0
    assert "Usage: trivium" in capsys.readouterr().out


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--version"]) == 0
    assert capsys.readouterr().out.startswith("trivium ")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["trian"], ["No such command 'trian'", "'train'"]),
        (["quickstrat"], ["'quickstart'"]),
        (["data", "inspct"], ["'inspect'"]),
        (["train"], ["Missing argument", "trivium train --help"]),
        (["train", "r.yaml", "--frsh"], ["--frsh", "--fresh"]),
        (["train", "r.yaml", "--train.lr=3"], ["no dashes", "train.lr=VALUE"]),
        (["generate", "model", "hello", "--temperature", "hot"], ["hot", "generate --help"]),
    ],
)
def test_wrong_usage(arguments: list[str], expected: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(arguments) == 2
    said = capsys.readouterr()
    assert said.out == "" and len(said.err.splitlines()) <= 5
    for fragment in expected:
        assert fragment in said.err


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConfigError("wrong"), 2),
        (ArtifactDamaged("bits"), 3),
        (TrainingDiverged("nan"), 4),
        (Interrupted("saved"), 5),
    ],
)
def test_exit_codes(error: Exception, code: int, verb: Any, capsys: pytest.CaptureFixture[str]) -> None:
    verb(raises(error))
    assert run(["verify", "x"]) == code
    assert capsys.readouterr().err == f"{error}\n"


def test_ctrl_c(verb: Any, capsys: pytest.CaptureFixture[str]) -> None:
    verb(raises(KeyboardInterrupt()))
    assert run(["verify", "x"]) == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_a_defect_is_called_one(
    verb: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    verb(raises(KeyError("x" * 5000 + "\nsecond line")))
    assert run(["verify", "x"]) == 1
    said = capsys.readouterr().err
    assert len(said.splitlines()) == 5 and "defect" in said and "Traceback" not in said
    (trace,) = tmp_path.glob("trivium-traceback-*.txt")
    assert str(trace) in said and "Traceback" in trace.read_text()


@pytest.mark.parametrize("arguments", [["--debug", "verify", "x"], ["verify", "x", "--debug"]])
def test_debug_shows_the_traceback(arguments: list[str], verb: Any) -> None:
    verb(raises(ConfigError("wrong")))
    with pytest.raises(ConfigError):
        run(arguments)


def test_a_closed_pipe_is_no_error() -> None:
    words = f"'{sys.executable}' -m trivium schema | head -c 10; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", words], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.stderr == "" and "Traceback" not in done.stdout


def test_nothing_is_coloured_and_every_terminal_can_show_it() -> None:
    done = command("train", "recipes/é.yaml", PYTHONIOENCODING="ascii", FORCE_COLOR="1")
    assert done.returncode == 2
    assert "\x1b" not in done.stderr and "Traceback" not in done.stderr


def test_control_characters_of_a_file_do_not_reach_the_terminal(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("recipe.yaml").write_text(RECIPE.replace("name: run", r'name: "\x1b]0;owned\x07\x9b31m"'))
    assert run(["train", "recipe.yaml"]) == 2
    said = capsys.readouterr().err
    assert not set(said) & {"\x1b", "\x07", "\x9b"} and "owned" in said


def test_print_shows_the_resolved_recipe(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["train", "recipe.yaml", "train.lr=1e-3", "--runs", "elsewhere", "--print"]) == 0
    text = capsys.readouterr().out
    assert "lr: 0.001" in text and "runs: elsewhere" in text and "beta2: 0.95" in text
    assert run(["train", "recipe.yaml", "--print", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["train"]["lr"] == 3e-4


def test_train_hands_the_resolved_recipe_to_the_driver(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given: dict[str, Any] = {}

    def train(resolved: Any, **options: Any) -> Any:
        given.update(options, lr=resolved.recipe.train.lr)
        return SimpleNamespace(folder=Path("runs/run"), final=Path("runs/run/final"))

    monkeypatch.setitem(sys.modules, "trivium.drivers.single", SimpleNamespace(train=train))
    monkeypatch.setattr("trivium.drivers.single", SimpleNamespace(train=train), raising=False)
    assert run(["train", "recipe.yaml", "train.lr=1", "--fresh", "--json"]) == 0
    assert given == {"dry_run": False, "preflight": False, "fresh": True, "lr": 1}
    assert json.loads(capsys.readouterr().out) == {"folder": "runs/run", "final": "runs/run/final"}
    assert run(["train", "recipe.yaml", "--dry-run"]) == 0
    assert given["dry_run"] and not given["preflight"] and not given["fresh"]
    assert "runs/run/final" in capsys.readouterr().out


@pytest.mark.parametrize("flags", [("--dry-run", "--preflight"), ("--print", "--fresh")], ids=" ".join)
def test_modes_exclude_each_other(flags: tuple[str, str], folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["train", "recipe.yaml", *flags]) == 2
    assert f"{flags[0]} and {flags[1]} exclude each other" in capsys.readouterr().err


def test_only_one_of_several_processes_prints(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RANK", "1")
    assert run(["train", "recipe.yaml", "--print"]) == 0
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("train.lr", ["Peak learning rate", "a number greater than 0", "0.0003", "trivium/"]),
        ("method.beta", ["of dpo", "0.1", "methods/dpo.py"]),
        ("train.optimizer.beta2", ["of adamw", "0.95"]),
        ("data.train", ["it must be given"]),
        ("train.schedule", ["one of cosine, linear, wsd, constant"]),
    ],
)
def test_config_explain(key: str, expected: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["config", "explain", key]) == 0
    text = capsys.readouterr().out
    for fragment in expected:
        assert fragment in text
    assert run(["config", "explain", key, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["key"] == key


def test_config_explain_all_and_unknown(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["config", "explain"]) == 0
    text = capsys.readouterr().out
    assert "train.lr " in text and "method.beta " in text and "model.preset " in text
    for typo in ("train.lrr", "lr"):
        assert run(["config", "explain", typo]) == 2
        assert "did you mean train.lr?" in capsys.readouterr().err


def complete(line: str, shell: str = "bash") -> list[str]:
    """What the shell is offered after `line`."""
    words = line.split(" ")
    environment = {"_TRIVIUM_COMPLETE": f"complete_{shell}", "COMP_WORDS": line, "COMP_CWORD": str(len(words) - 1)}
    if shell != "bash":
        environment |= {"_TYPER_COMPLETE_ARGS": line, "_TYPER_COMPLETE_FISH_ACTION": "get-args"}
    code = "from trivium.cli.main import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, **environment},
        check=False,
    )
    return done.stdout.split()


def test_completion_of_verbs_recipes_and_settings() -> None:
    assert complete("trivium tr") == ["train"]
    assert "recipes/dpo.yaml" in complete("trivium train recipes/d")
    assert complete("trivium train recipes/clm.yaml train.l") == ["train.lr=", "train.log_every="]
    assert "method=dpo" in " ".join(complete("trivium train recipes/clm.yaml method=d", "zsh"))
    assert "model.preset=llama-1m" in complete("trivium train recipes/clm.yaml model.preset=llama-1m", "fish")


def test_every_method_of_the_command_line_is_reachable() -> None:
    """The listing and the commands cannot drift apart."""
    assert set(typer.main.get_command(main.app).commands) == set(VERBS)  # type: ignore[attr-defined]


def test_verify_says_what_it_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from trivium.artifacts.writer import write_artifact

    with write_artifact(tmp_path / "a", kind="test") as target:
        (target / "file.txt").write_text("content")
    assert run(["verify", str(tmp_path / "a"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["files"] >= 1
    (tmp_path / "a" / "file.txt").write_text("changed")
    assert run(["verify", str(tmp_path / "a")]) == 3
    assert "file.txt" in capsys.readouterr().err


def test_help_starts_fast() -> None:
    """Processor time, which a busy machine does not change much; on an idle one it is the time itself."""

    def seconds() -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert command("--help").returncode == 0
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    assert statistics.median(seconds() for _ in range(3)) < 0.3
