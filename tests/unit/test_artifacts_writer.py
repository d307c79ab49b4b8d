"""What the writer adds, refuses, replaces, cleans up and keeps to itself."""

from __future__ import annotations

import errno
import json
import math
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from trivium.artifacts import faults, writer
from trivium.artifacts.environment import environment
from trivium.artifacts.manifest import MANIFEST, RECORD, content_hash, verify
from trivium.artifacts.record import parent_of, read_record
from trivium.artifacts.secrets import REDACTED, is_secret_name, redact, redact_command, redact_text
from trivium.artifacts.writer import DiskFull, JsonLines, require_space, write_artifact, write_file
from trivium.errors import ArtifactDamaged, ArtifactError


def save(target: Path, content: str = "a", *, kind: str = "model", replace: bool = False, **more: object) -> None:
    with write_artifact(target, kind=kind, replace=replace, **more) as folder:  # type: ignore[arg-type]
        (folder / "weights").write_text(content)


def leftovers(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if "~trivium" in path.name]


def test_the_record_says_what_it_is_and_from_what(tmp_path: Path) -> None:
    (tmp_path / "corpus.txt").write_text("text")
    save(tmp_path / "runs" / "base", "base")
    parents = (parent_of(tmp_path / "runs" / "base", "start"), parent_of(tmp_path / "corpus.txt", "data"))
    save(tmp_path / "runs" / "tuned", "tuned", seed=7, parents=parents, config={"train": {"lr": 0.1}})
    record = read_record(tmp_path / "runs" / "tuned")
    assert record is not None
    assert (record.kind, record.seed, record.config) == ("model", 7, {"train": {"lr": 0.1}})
    assert [(parent.path, parent.role) for parent in record.parents] == [
        ("../base", "start"),
        ("../../corpus.txt", "data"),
    ]
    assert record.parents[0].hash == content_hash(tmp_path / "runs" / "base")
    assert record.id == content_hash(tmp_path / "runs" / "tuned")
    assert record.code["trivium"]
    assert record.created.endswith("+00:00")


def test_a_failing_block_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyError), write_artifact(tmp_path / "a", kind="model") as folder:
        (folder / "half").write_text("x")
        raise KeyError
    assert list(tmp_path.iterdir()) == []


def test_files_get_the_permissions_of_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        save(tmp_path / "a")
        write_file(tmp_path / "b", "x")
    finally:
        os.umask(before)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o750
    assert (tmp_path / "a" / MANIFEST).stat().st_mode & 0o777 == 0o640
    assert (tmp_path / "b").stat().st_mode & 0o777 == 0o640


def test_the_same_content_again_is_no_error_and_other_content_is(tmp_path: Path) -> None:
    save(tmp_path / "a")
    first = (tmp_path / "a" / RECORD).stat().st_ino
    save(tmp_path / "a")
    assert (tmp_path / "a" / RECORD).stat().st_ino == first
    with pytest.raises(ArtifactError, match="other content"):
        save(tmp_path / "a", "b")
    assert (tmp_path / "a" / "weights").read_text() == "a"
    save(tmp_path / "a", "b", replace=True)
    assert (tmp_path / "a" / "weights").read_text() == "b"
    assert leftovers(tmp_path) == []


def test_the_same_content_repairs_a_damaged_artifact(tmp_path: Path) -> None:
    save(tmp_path / "a")
    (tmp_path / "a" / "weights").write_text("damaged")
    with pytest.raises(ArtifactError):
        save(tmp_path / "a")
    (tmp_path / "a" / RECORD).write_text("{")
    save(tmp_path / "a", replace=True)
    verify(tmp_path / "a")


@pytest.mark.parametrize("replace", [False, True])
def test_what_is_no_artifact_is_never_replaced(replace: bool, tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.txt").write_text("years of work")
    (tmp_path / "file").write_text("x")
    for name in ("home", "file"):
        with pytest.raises(ArtifactError, match="something else"):
            save(tmp_path / name, replace=replace)
    assert (tmp_path / "home" / "thesis.txt").read_text() == "years of work"


def test_another_kind_is_refused_before_work_starts_and_an_empty_folder_is_used(tmp_path: Path) -> None:
    save(tmp_path / "a", kind="tokenizer")
    with pytest.raises(ArtifactError, match="holds a tokenizer"), write_artifact(tmp_path / "a", kind="model"):
        pytest.fail("the block must not run")
    (tmp_path / "empty").mkdir()
    save(tmp_path / "empty")
    verify(tmp_path / "empty")


def test_replacing_follows_a_link_to_the_folder(tmp_path: Path) -> None:
    save(tmp_path / "real", "old")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    save(tmp_path / "link", "new", replace=True)
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real" / "weights").read_text() == "new"


def test_links_cannot_be_part_of_an_artifact(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="links"), write_artifact(tmp_path / "a", kind="model") as folder:
        (folder / "weights").symlink_to("/etc/passwd")


def test_leftovers_of_dead_processes_go_and_those_of_the_living_stay(tmp_path: Path) -> None:
    body = (
        "import os, sys; from pathlib import Path; from trivium.artifacts.writer import write_artifact\n"
        "with write_artifact(Path(sys.argv[1]), kind='x') as f:\n (f/'half').write_text('x'); {}"
    )
    arguments = [str(tmp_path / "other")]
    subprocess.run([sys.executable, "-c", body.format("os._exit(9)"), *arguments], check=False)
    assert len(leftovers(tmp_path)) == 1
    living = subprocess.Popen(
        [sys.executable, "-c", body.format("print(flush=True); input()"), *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert living.stdout is not None
    living.stdout.readline()
    assert len(leftovers(tmp_path)) == 1  # the living one removed that of the dead
    save(tmp_path / "mine")
    assert len(leftovers(tmp_path)) == 1
    living.communicate(b"\n")
    assert living.returncode == 0
    assert leftovers(tmp_path) == []
    verify(tmp_path / "other")


def test_a_replacement_that_stopped_half_way_is_undone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without an exchange of names, a stop between the two renames leaves the old artifact without its name."""
    save(tmp_path / "a", "old")
    (tmp_path / "a").rename(tmp_path / ".a.old-01234567~trivium")
    save(tmp_path / "b")
    assert (tmp_path / "a" / "weights").read_text() == "old"


def test_a_full_disk_is_an_error_with_the_fix(tmp_path: Path) -> None:
    """A real limit: no file may grow beyond 1 MB. Files that the block writes itself count as well."""
    save(tmp_path / "a", "old")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, hard))
    try:
        with pytest.raises(DiskFull, match=r"(?s)cannot be written: File too large.*fix:.*free some space"):
            save(tmp_path / "a", "x" * (2 << 20), replace=True)
        with pytest.raises(DiskFull):
            write_file(tmp_path / "f", "x" * (2 << 20))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (tmp_path / "a" / "weights").read_text() == "old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a"]


def test_space_is_checked_before_writing(tmp_path: Path) -> None:
    require_space(tmp_path / "not" / "yet", 1, purpose="a model")
    with pytest.raises(DiskFull, match=r"a model needs 1000000000\.00 GB of disk"):
        require_space(tmp_path / "not" / "yet", 10**18, purpose="a model")


def test_a_place_without_permission_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(operation: str, path: Path) -> None:
        if operation == "mkdir":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr(faults, "hook", refuse)
    with pytest.raises(ArtifactError, match="Permission denied"):
        save(tmp_path / "a")


def test_other_errors_of_the_block_stay_what_they_are(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), write_artifact(tmp_path / "a", kind="model"):
        (tmp_path / "input that is not there").read_text()


def test_two_writers_of_the_same_target(tmp_path: Path) -> None:
    """The second finds what the first wrote meanwhile."""
    with pytest.raises(ArtifactError, match="other content"), write_artifact(tmp_path / "a", kind="model") as folder:
        (folder / "weights").write_text("second")
        save(tmp_path / "a", "first")
    assert (tmp_path / "a" / "weights").read_text() == "first"


def test_a_folder_that_appears_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    with (
        pytest.raises(ArtifactError, match="something else"),
        write_artifact(tmp_path / "a", kind="model", replace=True) as folder,
    ):
        (folder / "weights").write_text("x")
        (tmp_path / "a").mkdir()
        (tmp_path / "a" / "thesis.txt").write_text("years of work")
    assert (tmp_path / "a" / "thesis.txt").exists()


def test_without_locks_nothing_is_ever_taken_for_a_leftover(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unsupported(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOTSUP, "locks")

    monkeypatch.setattr("fcntl.flock", unsupported)
    (tmp_path / ".a.new-01234567~trivium").mkdir()
    save(tmp_path / "a")
    assert leftovers(tmp_path) == [".a.new-01234567~trivium"]


# ---------------------------------------------------------------- lines


def test_lines_come_back_exactly(tmp_path: Path) -> None:
    lines = JsonLines(tmp_path / "deep" / "metrics.jsonl")
    assert lines.read() == []
    rows = [{"step": 2**60, "loss": 0.1 + 0.2, "text": "\u2028 é \ud800", "list": [1, None, {"a": True}]}, {}]
    for row in rows:
        lines.append(row)
    lines.sync()
    assert JsonLines(lines.path).read() == rows


def test_lines_are_strict_json_and_keep_infinities(tmp_path: Path) -> None:
    lines = JsonLines(tmp_path / "m")
    lines.append({"loss": math.nan, "norms": [math.inf, -math.inf]})
    assert "NaN" in json.loads(lines.path.read_text(), parse_constant=pytest.fail)["loss"]
    (row,) = lines.read()
    assert math.isnan(row["loss"])
    assert row["norms"] == [math.inf, -math.inf]


@pytest.mark.parametrize("tail", [b'{"step": 2', b'{"step"', b"\0\0\0", b"\0\0\n", b"\0\n\0\n\0"])
def test_a_torn_last_line_is_ignored_and_then_removed(tail: bytes, tmp_path: Path) -> None:
    lines = JsonLines(tmp_path / "m")
    lines.append({"step": 0})
    lines.append({"step": 1})
    lines.close()
    with lines.path.open("ab") as file:
        file.write(tail)
    assert JsonLines(lines.path).read() == [{"step": 0}, {"step": 1}]
    assert lines.path.read_bytes().endswith(tail), "reading must not change the file of a run that goes on"
    again = JsonLines(lines.path)
    again.append({"step": 2})
    assert lines.path.read_bytes() == b'{"step": 0}\n{"step": 1}\n{"step": 2}\n'


def test_a_line_that_failed_half_way_does_not_spoil_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = JsonLines(tmp_path / "m")
    lines.append({"step": 1})
    calls = iter([4, OSError(errno.ENOSPC, "No space left on device")])

    def full(operation: str, path: Path) -> int | None:
        result = next(calls) if operation == "write" else None
        if isinstance(result, OSError):
            raise result
        return result

    monkeypatch.setattr(faults, "hook", full)
    with pytest.raises(DiskFull):
        lines.append({"step": 2})
    monkeypatch.setattr(faults, "hook", None)
    assert lines.path.read_bytes().endswith(b'\n{"st')
    lines.append({"step": 3})
    assert lines.read() == [{"step": 1}, {"step": 3}]


def test_cut_back_keeps_lines_byte_for_byte(tmp_path: Path) -> None:
    lines = JsonLines(tmp_path / "m")
    lines.path.write_bytes(b'{"step":1,   "loss":1e0}\n{"step": 2}\n{"step": 3}\n{"st')
    lines.cut_back(lambda row: row["step"] <= 2)
    assert lines.path.read_bytes() == b'{"step":1,   "loss":1e0}\n{"step": 2}\n'
    lines.append({"step": 3})
    lines.cut_back(lambda row: True)
    assert len(lines.read()) == 3


@pytest.mark.parametrize("line", [b"{", b"[1]", b"\xff", b"1", b""])
def test_a_damaged_line_is_named(line: bytes, tmp_path: Path) -> None:
    (tmp_path / "m").write_bytes(b'{"step": 1}\n' + line + b'\n{"step": 2}\n')
    with pytest.raises(ArtifactDamaged, match=r"m:2"):
        JsonLines(tmp_path / "m").read()


def test_a_value_that_is_no_json_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TypeError):
        JsonLines(tmp_path / "m").append({"a": object()})
    assert not (tmp_path / "m").exists()


# ---------------------------------------------------------------- secrets


@pytest.mark.parametrize(
    "name", ["token", "hub_token", "HF_TOKEN", "apiKey", "api-key", "DB_PASSWORD", "client_secret",
             "aws_access_key", "x.auth"]
)  # fmt: skip
def test_secret_names(name: str) -> None:
    assert is_secret_name(name)


@pytest.mark.parametrize(
    "name",
    ["eos_token", "pad_token", "bos_token_id", "tokens", "max_new_tokens", "tokenizer", "sample_tokens",
     "num_key_value_heads", "author", "key", "keyboard", "special_tokens", "decoder_start_token", "passwordless"],
)  # fmt: skip
def test_names_that_are_no_secrets(name: str) -> None:
    assert not is_secret_name(name)


CANARY = "canary-7f3a9b2c5d"


def test_secrets_do_not_reach_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_API_KEY", f"{CANARY}-env")
    config = {
        "hub": {"token": CANARY, "user": "me"},
        "credentials": {"any": {"depth": [CANARY]}},
        "url": f"https://me:{CANARY}@host/x",
        "note": f"used {CANARY}-env here",
        "header": f"Authorization: Bearer {CANARY}",
        "key": "hf_" + "A" * 30,
        "eos_token": "</s>",
        "lr": 0.1,
    }
    save(tmp_path / "a", config=config)
    stored = b"".join(path.read_bytes() for path in (tmp_path / "a").iterdir())
    assert CANARY.encode() not in stored
    assert b"hf_AAAA" not in stored
    record = read_record(tmp_path / "a")
    assert record is not None and record.config is not None
    assert record.config["hub"] == {"token": REDACTED, "user": "me"}
    assert record.config["eos_token"] == "</s>"
    assert record.config["url"] == f"https://{REDACTED}@host/x"
    assert config["hub"] == {"token": CANARY, "user": "me"}


@pytest.mark.parametrize(
    ("given", "stored"),
    [
        (["train", "r.yaml", f"hub.token={CANARY}"], ["train", "r.yaml", f"hub.token={REDACTED}"]),
        (["--hub-token", CANARY, "lr=1"], ["--hub-token", REDACTED, "lr=1"]),
        ([f"--password={CANARY}", "eos_token=</s>"], [f"--password={REDACTED}", "eos_token=</s>"]),
        (["sk-" + "a1" * 20], [REDACTED]),
    ],
)
def test_command_lines_lose_their_secrets(given: list[str], stored: list[str]) -> None:
    assert redact_command(given) == stored


def test_ordinary_text_is_left_alone() -> None:
    text = "The sky- and sk-8 board; tokens: 12; hf_short; http://host:80/path@2x"
    assert redact_text(text) == text
    assert redact({"a": [1, None, 2.5, True]}) == {"a": [1, None, 2.5, True]}


def test_environment_is_json_without_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["trivium", "train", f"--hub-token={CANARY}"])
    monkeypatch.setenv("HF_TOKEN", CANARY)
    found = environment()
    text = json.dumps(found)
    assert CANARY not in text
    assert found["python"].startswith("3.")
    assert found["cpu"]["cores"] == os.cpu_count()
    assert found["packages"]["pydantic"]
    assert found["command"][:2] == ["trivium", "train"]


def test_recording_needs_no_torch(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from trivium.artifacts.writer import write_artifact\n"
        "from trivium.artifacts import checkpoints, environment, lineage, manifest\n"
        "with write_artifact(Path(sys.argv[1]), kind='x') as f: (f/'a').write_text('a')\n"
        "assert environment.environment()['torch'] is None\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program, str(tmp_path / "a")], check=True)


def test_all_names_of_the_writer_exist() -> None:
    assert all(hasattr(writer, name) for name in writer.__all__)
