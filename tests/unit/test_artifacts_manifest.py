"""Damage of every kind is found and named; names in manifests never lead out of their folder."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from trivium.artifacts.manifest import (
    MANIFEST,
    RECORD,
    FileEntry,
    Manifest,
    content_hash,
    damages,
    find_artifacts,
    read_manifest,
    verify,
)
from trivium.artifacts.paths import inside
from trivium.artifacts.writer import write_artifact
from trivium.errors import EXIT_DAMAGED, ArtifactDamaged, ArtifactError


def make(target: Path, *, kind: str = "model") -> Path:
    """Four files like those of a sharded model, and 20 KB in the first."""
    with write_artifact(target, kind=kind, seed=1) as folder:
        random_bytes = random.Random(0)
        (folder / "model").mkdir()
        (folder / "model" / "one.safetensors").write_bytes(random_bytes.randbytes(20_000))
        (folder / "model" / "two.safetensors").write_bytes(random_bytes.randbytes(20_000))
        (folder / "config.json").write_text('{"hidden_size": 8}')
        (folder / "empty.txt").write_bytes(b"")
    return target


def damage_is_named(folder: Path, name: str) -> None:
    with pytest.raises(ArtifactDamaged) as caught:
        verify(folder)
    assert name in str(caught.value)
    assert len(str(caught.value).splitlines()) <= 5
    assert caught.value.exit_code == EXIT_DAMAGED


def test_a_whole_artifact_verifies(tmp_path: Path) -> None:
    manifest = verify(make(tmp_path / "a"))
    assert manifest.files["config.json"].size == 18
    assert RECORD in manifest.files
    assert damages(tmp_path / "a") == []


def test_every_flipped_byte_is_found(tmp_path: Path) -> None:
    """500 offsets over all files, the record and the manifest itself included."""
    folder = make(tmp_path / "a")
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.stat().st_size)
    choose = random.Random(1)
    for number in range(500):
        path = files[number % len(files)]
        before = path.read_bytes()
        place = choose.randrange(len(before))
        changed = before[:place] + bytes([before[place] ^ (1 << choose.randrange(8))]) + before[place + 1 :]
        path.write_bytes(changed)
        damage_is_named(folder, path.name)
        path.write_bytes(before)
    verify(folder)


def test_every_truncation_is_found(tmp_path: Path) -> None:
    folder = make(tmp_path / "a")
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.stat().st_size)
    choose = random.Random(2)
    for number in range(500):
        path = files[number % len(files)]
        before = path.read_bytes()
        path.write_bytes(before[: choose.randrange(len(before))])
        damage_is_named(folder, path.name)
        path.write_bytes(before)
    verify(folder)


def zero_page(folder: Path) -> str:
    path = folder / "model" / "one.safetensors"
    content = bytearray(path.read_bytes())
    content[4096:8192] = bytes(4096)
    path.write_bytes(content)
    return path.name


def swap_shards(folder: Path) -> str:
    one, two = folder / "model" / "one.safetensors", folder / "model" / "two.safetensors"
    content = one.read_bytes()
    one.write_bytes(two.read_bytes())
    two.write_bytes(content)
    return one.name


def append_byte(folder: Path) -> str:
    with (folder / "empty.txt").open("ab") as file:
        file.write(b"x")
    return "empty.txt"


def add_file(folder: Path) -> str:
    (folder / "model" / "three.safetensors").write_bytes(b"")
    return "three.safetensors"


def link_instead_of_file(folder: Path) -> str:
    content = (folder / "config.json").read_bytes()
    (folder.parent / "outside.json").write_bytes(content)
    (folder / "config.json").unlink()
    (folder / "config.json").symlink_to(folder.parent / "outside.json")
    return "config.json"


def pipe_instead_of_file(folder: Path) -> str:
    (folder / "config.json").unlink()
    os.mkfifo(folder / "config.json")  # reading it would wait for ever
    return "config.json"


def folder_behind_link(folder: Path) -> str:
    shutil.move(folder / "model", folder.parent / "elsewhere")
    (folder / "model").symlink_to(folder.parent / "elsewhere")
    return "model"


@pytest.mark.parametrize(
    "harm",
    [zero_page, swap_shards, append_byte, add_file, link_instead_of_file, pipe_instead_of_file, folder_behind_link],
)
def test_other_damage_is_found(harm: Callable[[Path], str], tmp_path: Path) -> None:
    folder = make(tmp_path / "a")
    damage_is_named(folder, harm(folder))


def test_each_deleted_file_is_found(tmp_path: Path) -> None:
    folder = make(tmp_path / "a")
    for name in (*read_manifest(folder).files, MANIFEST):
        shutil.copytree(folder, tmp_path / "copy")
        (tmp_path / "copy" / name).unlink()
        damage_is_named(tmp_path / "copy", name)
        shutil.rmtree(tmp_path / "copy")


def test_the_message_has_both_hashes_and_all_damage_is_listed(tmp_path: Path) -> None:
    folder = make(tmp_path / "a")
    expected = read_manifest(folder).files["config.json"].sha256
    (folder / "config.json").write_text('{"hidden_size": 9}')
    (folder / "empty.txt").unlink()
    found = {damage.file: damage for damage in damages(folder)}
    assert set(found) == {"config.json", "empty.txt"}
    with pytest.raises(ArtifactDamaged, match=r"and 1 more") as caught:
        verify(folder)
    assert expected[:16] in str(caught.value)
    assert str(found["config.json"].actual)[-17:] in str(caught.value)


def test_part_of_an_artifact_is_verified_by_the_manifest_around_it(tmp_path: Path) -> None:
    checkpoint = make(tmp_path / "step-00000001", kind="checkpoint")
    assert set(verify(checkpoint / "model").files) == {"one.safetensors", "two.safetensors"}
    (checkpoint / "config.json").write_text("damaged")
    verify(checkpoint / "model")
    (checkpoint / "model" / "one.safetensors").write_bytes(b"x")
    damage_is_named(checkpoint / "model", "one.safetensors")


def test_content_hash_is_that_of_the_same_files_anywhere(tmp_path: Path) -> None:
    checkpoint = make(tmp_path / "a", kind="checkpoint")
    other = make(tmp_path / "b", kind="checkpoint")
    assert content_hash(checkpoint) == content_hash(other)
    shutil.copytree(checkpoint / "model", tmp_path / "copy")
    assert content_hash(tmp_path / "copy") == content_hash(checkpoint / "model")
    assert content_hash(checkpoint) != content_hash(checkpoint / "model")
    (tmp_path / "copy" / ".cache").mkdir()
    (tmp_path / "copy" / ".cache" / "x").write_text("downloads leave such things")
    assert content_hash(tmp_path / "copy") == content_hash(checkpoint / "model")
    (tmp_path / "copy" / "one.safetensors").rename(tmp_path / "copy" / "renamed")
    assert content_hash(tmp_path / "copy") != content_hash(checkpoint / "model")


def test_content_hash_of_a_file_and_of_nothing(tmp_path: Path) -> None:
    (tmp_path / "corpus.txt").write_text("a")
    assert content_hash(tmp_path / "corpus.txt").startswith("ca978112ca1bbdcafac231b39a23dc4d")
    with pytest.raises(ArtifactError, match="no such file"):
        content_hash(tmp_path / "nothing")


def test_find_artifacts(tmp_path: Path) -> None:
    for name in ("runs/b/final", "runs/a/checkpoints/step-00000001", "runs/.hidden/x"):
        make(tmp_path / name)
    found = [path.relative_to(tmp_path).as_posix() for path in find_artifacts(tmp_path)]
    assert found == ["runs/a/checkpoints/step-00000001", "runs/b/final"]
    assert list(find_artifacts(tmp_path / "runs/b/final")) == [tmp_path / "runs/b/final"]


BAD_NAMES = ["../x", "/etc/passwd", "a/../../x", "", ".", "./x", "a//b", "a/", "C:/x", "a\\b", "a\x00b", "..", "a\nb"]


@pytest.mark.parametrize("name", BAD_NAMES)
def test_names_that_leave_the_folder_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError):
        inside(tmp_path, name)
    make(tmp_path / "a")
    (tmp_path / "a" / MANIFEST).write_bytes(Manifest({name: FileEntry(0, "0" * 64)}).to_bytes())
    with pytest.raises(ArtifactError, match="outside its folder"):
        read_manifest(tmp_path / "a")


def test_a_link_that_leaves_is_refused_and_one_that_stays_is_not(tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "out").symlink_to(tmp_path)
    (tmp_path / "root" / "in").symlink_to(tmp_path / "root")
    with pytest.raises(ArtifactError):
        inside(tmp_path / "root", "out/x")
    assert inside(tmp_path / "root", "in/x") == tmp_path / "root" / "in" / "x"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'{"files": []}',
        b'{"files": {"a": 1}}',
        b'{"files": {"a": {"size": "x"}}}',
        b"\xff\xfe",
    ],
)
def test_a_malformed_manifest_is_an_error_of_ours(content: bytes, tmp_path: Path) -> None:
    folder = make(tmp_path / "a")
    (folder / MANIFEST).write_bytes(content)
    damage_is_named(folder, MANIFEST)


def test_a_newer_format_says_update(tmp_path: Path) -> None:
    folder = make(tmp_path / "a")
    content = json.loads((folder / MANIFEST).read_bytes())
    (folder / MANIFEST).write_text(json.dumps(content | {"format": 2}))
    with pytest.raises(ArtifactError, match="newer version"):
        verify(folder)
