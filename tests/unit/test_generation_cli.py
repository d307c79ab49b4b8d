"""`trivium generate` and `trivium chat`, as commands."""

from __future__ import annotations

import io
import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from trivium.artifacts.writer import write_artifact
from trivium.cli.main import run
from trivium.inference.model import load
from trivium.models.build import build_model, preset
from trivium.models.folder import save_model
from trivium.tokenizers.train import train_bpe

ROOT = Path(__file__).parents[2]
Command = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tokenizer = train_bpe(
        ["def add(a, b):\n    return a + b\nimport os\nThe quick brown fox jumps.\n"] * 3, vocab_size=300
    )
    shape = dict(
        vocab_size=tokenizer.vocab_size,
        hidden_size=32,
        num_layers=2,
        num_heads=4,
        num_kv_heads=4,
        head_dim=8,
        intermediate_size=64,
        max_positions=4096,
        init_std=0.3,
        bos_id=tokenizer.bos_id,
        eos_id=tokenizer.eos_id,
    )
    config = preset("llama-1m", shape)
    target = tmp_path_factory.mktemp("models") / "tiny"
    with write_artifact(target, kind="model") as path:
        save_model(path, config, build_model(config, seed=3).state_dict())
        tokenizer.save(path)
    return target


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, folder: Path) -> Command:
    """Runs `trivium VERB <folder> ...`; returns exit code, output and messages."""

    def call(verb: str, *words: str, typed: str = "") -> tuple[int, str, str]:
        monkeypatch.setattr("sys.stdin", io.StringIO(typed))
        code = run([verb, str(folder), *words])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


def test_generate_prints_the_text_streamed_or_not(command: Command, folder: Path) -> None:
    words = ["--max-new-tokens", "8", "--seed", "3"]
    expected = load(folder).generate("def add", max_new_tokens=8, seed=3) + "\n"
    assert command("generate", "def add", *words) == (0, expected, "")
    assert command("generate", "def add", "--no-stream", *words) == (0, expected, "")


@pytest.mark.parametrize("word", [[], ["-"]])
def test_the_prompt_may_come_through_a_pipe(command: Command, folder: Path, word: list[str]) -> None:
    expected = load(folder).generate("def add", max_new_tokens=8, temperature=0) + "\n"
    assert command("generate", *word, "--max-new-tokens", "8", "--temperature", "0", typed="def add\n")[1] == expected


@pytest.mark.parametrize(
    "words",
    [
        ["--temperature", "0"],
        ["--temperature", "3"],
        ["--top-k", "2"],
        ["--top-p", "0.2"],
        ["--min-p", "0.9"],
        ["--repetition-penalty", "5"],
        ["--max-new-tokens", "5"],
        ["--stop", "e", "--stop", "a"],
        ["--chat"],
    ],
)
def test_every_option_changes_the_text(command: Command, words: list[str]) -> None:
    common = ["--seed", "3", "--max-new-tokens", "30"]
    assert command("generate", "def add", *common)[1] != command("generate", "def add", *common, *words)[1]


def test_json_has_one_line_for_each_answer(command: Command, folder: Path, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("def add\n\nThe quick\n")
    code, out, _ = command(
        "generate", "--file", str(prompts), "-n", "2", "--max-new-tokens", "6", "--seed", "1", "--json"
    )
    rows = [json.loads(line) for line in out.splitlines()]
    assert code == 0
    assert [(row["prompt"], row["sample"]) for row in rows] == [
        ("def add", 0),
        ("def add", 1),
        ("The quick", 0),
        ("The quick", 1),
    ]
    assert [row["text"] for row in rows[:2]] == load(folder).generate("def add", n=2, max_new_tokens=6, seed=1)
    assert rows[0]["finish_reason"] == "length"
    assert len(rows[0]["ids"]) == len(rows[0]["logprobs"]) == 6


def test_several_answers_are_told_apart(command: Command) -> None:
    out = command("generate", "def add", "-n", "2", "--max-new-tokens", "3", "--seed", "1")[1]
    assert "--- def add, answer 1 of 2 ---" in out
    assert "--- def add, answer 2 of 2 ---" in out


@pytest.mark.parametrize(
    ("words", "facts"),
    [
        (["x", "--temperature", "-1"], ["temperature", "-1"]),
        (["x", "--top-p", "0"], ["top_p"]),
        (["x", "--max-new-tokens", "5000"], ["5000", "4096"]),
        ([""], ["empty"]),
        (["x", "--dtype", "int3"], ["float32"]),
        (["x", "--file", "prompts.txt"], ["not both"]),
        (["--file", "nowhere.txt"], ["nowhere.txt"]),
    ],
)
def test_errors_are_short_and_name_the_fix(command: Command, words: list[str], facts: list[str]) -> None:
    code, out, err = command("generate", *words)
    assert code == 2
    assert out == ""
    assert len(err.splitlines()) <= 5
    for fact in [*facts, "fix:"]:
        assert fact in err


def test_an_error_in_a_file_of_prompts_names_the_line(command: Command, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("short\n\n" + "long " * 5000 + "\n")
    code, out, err = command("generate", "--file", str(prompts), "--max-new-tokens", "4")
    assert (code, out) == (2, "")
    assert f"where: {prompts}:3" in err


def test_chat_through_a_pipe(command: Command, folder: Path, tmp_path: Path) -> None:
    saved = tmp_path / "conversation.jsonl"
    typed = f"hello\n\n/system Be brief.\nand then?\n/save {saved}\n/reset\nhello\n/exit\nnever read\n"
    code, out, err = command("chat", "--max-new-tokens", "5", "--seed", "1", typed=typed)
    assert code == 0
    messages = json.loads(saved.read_text())["messages"]
    assert [message["role"] for message in messages] == ["system", "user", "assistant", "user", "assistant"]
    assert messages[0]["content"] == "Be brief."
    model = load(folder)
    first = model.chat([{"role": "user", "content": "hello"}], max_new_tokens=5, seed=1)
    assert messages[2]["content"] == first
    assert messages[4]["content"] == model.chat(messages[:4], max_new_tokens=5, seed=1)
    last = model.chat([messages[0], {"role": "user", "content": "hello"}], max_new_tokens=5, seed=1)
    assert out == f"{first}\n{messages[4]['content']}\n{last}\n"
    assert "saved 5 messages" in err
    assert "cut off after 5 tokens" in err


@pytest.mark.parametrize(
    ("typed", "facts"),
    [
        ("/rest\n", ["/reset", "two slashes"]),
        ("/save\n", ["file name"]),
        ("word " * 9000 + "\n", ["too long", "4096"]),
    ],
)
def test_chat_errors(command: Command, typed: str, facts: list[str]) -> None:
    code, _, err = command("chat", typed=typed)
    assert code == 2
    for fact in facts:
        assert fact in err


def test_chat_never_overwrites_a_file(command: Command, tmp_path: Path) -> None:
    taken = tmp_path / "taken"
    taken.write_text("mine")
    code, _, err = command("chat", "--max-new-tokens", "2", typed=f"hello\n/save {taken}\n")
    assert code == 2
    assert "exists already" in err
    assert taken.read_text() == "mine"


def test_chat_needs_a_template(command: Command, folder: Path) -> None:
    config = folder / "tokenizer_config.json"
    content = config.read_text()
    config.write_text(json.dumps({**json.loads(content), "chat_template": None}))
    try:
        code, _, err = command("chat", typed="hello\n")
    finally:
        config.write_text(content)
    assert code == 2
    assert "chat template" in err
    assert "trivium generate" in err


class Terminal:
    """Python on a pseudo-terminal."""

    def __init__(self, *words: str) -> None:
        self.master, slave = pty.openpty()
        self.process = subprocess.Popen(
            [sys.executable, *words],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            cwd=ROOT,
            start_new_session=True,
            # A test run in the background of a shell ignores Ctrl-C, and so would the programs it starts.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        os.close(slave)
        self.seen = ""

    def expect(self, text: str) -> None:
        self._read_until(lambda: text in self.seen, text)
        self.seen = self.seen.split(text, 1)[1]

    def expect_more(self, characters: int) -> None:
        self._read_until(lambda: len(self.seen) > characters, f"{characters} characters")

    def _read_until(self, done: Callable[[], bool], what: str) -> None:
        end = time.monotonic() + 60
        while not done():
            assert time.monotonic() < end, f"{what} did not come: {self.seen[-500:]!r}"
            if select.select([self.master], [], [], 0.1)[0]:
                self.seen += os.read(self.master, 4096).decode(errors="replace")

    def type(self, text: str) -> None:
        os.write(self.master, text.encode())

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.master)


@pytest.fixture
def terminal(folder: Path) -> Iterator[Terminal]:
    words = ("--temperature", "0", "--max-new-tokens", "4000")
    with closing(Terminal("-m", "trivium", "chat", str(folder), *words)) as session:
        yield session


def test_ctrl_c_stops_the_answer_and_not_the_program(terminal: Terminal, tmp_path: Path) -> None:
    saved = tmp_path / "conversation.jsonl"
    terminal.expect("> ")
    terminal.type("hello\n")
    terminal.expect("hello")
    terminal.expect_more(40)
    terminal.process.send_signal(signal.SIGINT)
    terminal.expect("> ")
    terminal.type("/nonsense\n")
    terminal.expect("unknown command")
    terminal.expect("> ")
    terminal.type(f"/save {saved}\n")
    terminal.expect("saved 2 messages")
    terminal.expect("> ")
    assert json.loads(saved.read_text())["messages"][0]["content"] == "hello"
    terminal.process.send_signal(signal.SIGINT)
    terminal.expect("/exit leaves")
    terminal.type("/exit\n")
    assert terminal.process.wait(timeout=20) == 0


def test_ctrl_c_between_the_prompt_and_the_waiting_for_a_key_is_not_lost() -> None:
    """The hook is a C function that readline calls there: no Python code runs after it that would see the signal."""
    pytest.importorskip("readline")
    code = """
import ctypes, functools, os, readline, signal
from trivium.inference.terminal import _typed
readline.set_pre_input_hook(functools.partial(ctypes.CDLL(None).kill, os.getpid(), int(signal.SIGINT)))
list(_typed())
"""
    with closing(Terminal("-c", code)) as session:
        session.expect("/exit leaves")
        assert session.process.wait(timeout=60) == 0  # the second prompt is interrupted too


def test_beam_search_from_the_command_line(command: Command) -> None:
    code, out, _ = command("generate", "The quick", "--num-beams", "3", "-n", "2", "--max-new-tokens", "6", "--json")
    first, second = (json.loads(line) for line in out.splitlines())
    assert code == 0
    assert first["score"] >= second["score"]
    code, alone, _ = command("generate", "The quick", "--num-beams", "3", "--max-new-tokens", "6")
    assert (code, alone) == (0, first["text"] + "\n")
    groups = ("--num-beams", "4", "--num-beam-groups", "2", "--diversity-penalty", "5", "--early-stopping", "never")
    code, _, _ = command("generate", "The quick", *groups, "--length-penalty", "0.5", "--max-new-tokens", "6")
    assert code == 0
    code, out, _ = command(
        "generate", "The quick", "--no-repeat-ngram-size", "1", "--min-new-tokens", "9", "--max-new-tokens", "9",
        "--temperature", "0", "--json",
    )  # fmt: skip
    ids = json.loads(out)["ids"]
    assert code == 0
    assert len(ids) == len(set(ids)) == 9


@pytest.mark.parametrize(
    ("words", "fact"),
    [
        (("--num-beams", "3", "--temperature", "0.7"), "chance"),
        (("--length-penalty", "2"), "num_beams"),
        (("--num-beams", "3", "--early-stopping", "soon"), "early_stopping"),
        (("--num-beams", "2", "-n", "3"), "beams"),
        (("--prefix", "a"), "encoder-decoders"),
    ],
)
def test_beam_settings_that_do_not_go_together(command: Command, words: tuple[str, ...], fact: str) -> None:
    code, out, err = command("generate", "The quick", *words)
    assert code == 2
    assert not out
    assert fact in err
    assert len(err.splitlines()) <= 5
