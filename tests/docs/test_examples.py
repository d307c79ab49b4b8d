"""Every example of README, CONTRIBUTING and the site is run, in smoke size, in the order of its page."""

from __future__ import annotations

import fcntl
import os
import shutil
from pathlib import Path

import pytest

from tests.docs.blocks import Block, blocks, matches
from tests.docs.workshop import ROOT, build, shell, smoke

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


@pytest.fixture(scope="session")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built once for all processes of the test run."""
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    folder = shared / "workshop"
    with (shared / "workshop.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return folder if folder.exists() else build(folder)


def prepare(page: Path, workshop: Path, folder: Path) -> Path:
    """The folder a page is run in: a copy of the workshop; of the whole source tree where the page changes it."""
    shutil.copytree(workshop, folder)
    if page.name == "CONTRIBUTING.md":
        for part in ("trivium", "recipes", "tests", "docs"):
            shutil.copytree(
                ROOT / part, folder / part, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__", "runs")
            )
        for file in ("pyproject.toml", "constraints.txt", "mkdocs.yml"):
            shutil.copy(ROOT / file, folder / file)
    return folder


def run_console(block: Block, folder: Path) -> None:
    commands = block.commands()
    for number, (command, expected) in enumerate(commands):
        result = shell(smoke(command, block.comments.get("smoke", "")), folder)
        code = int(block.comments.get("exit", "0")) if number == len(commands) - 1 else 0
        assert result.returncode == code, f"{block.where}: {command}\n{result.stdout}"
        assert matches(expected, result.stdout), f"{block.where}: {command} says something else:\n{result.stdout}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_examples_of(page: Path, workshop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    todo = [block for block in blocks(page) if not block.skipped]
    if not any(block.title or block.language in {"console", "python"} for block in todo):
        return
    folder = prepare(page, workshop, tmp_path / "page")
    monkeypatch.chdir(folder)
    names: dict[str, object] = {"__name__": "__page__"}
    for block in todo:
        if block.title:
            target = folder / block.title
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(block.text, encoding="utf-8")
        elif block.language == "console":
            run_console(block, folder)
        elif block.language == "python":
            exec(compile(block.text, block.where, "exec"), names)
