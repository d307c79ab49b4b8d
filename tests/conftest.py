"""What all tests share: one thread for each process, no network, one folder for what they leave lying about, and a
browser where there is one."""

from __future__ import annotations

import os
import shutil
import tempfile

# Before anything imports torch or transformers. One thread keeps two test processes off each other's core.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_OFFLINE"] = "1"
# Messages are compared as text: no colours, and a width that does not depend on the terminal.
os.environ["NO_COLOR"] = "1"
os.environ["COLUMNS"] = "120"
os.environ.pop("FORCE_COLOR", None)

# Folders of tests that fail stay where pytest keeps them; everything else goes when the session ends.
os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", tempfile.gettempdir())
os.environ["TMPDIR"] = tempfile.tempdir = tempfile.mkdtemp(prefix="trivium-")

import pytest

SCRATCH = tempfile.gettempdir()
BROWSERS = ("chromium", "chromium-browser", "google-chrome")


def pytest_unconfigure() -> None:
    """Deletes the session's folder."""
    shutil.rmtree(SCRATCH, ignore_errors=True)


@pytest.fixture(scope="session")
def chromium() -> str:
    """Path of a headless browser; the test is skipped where there is none."""
    for name in BROWSERS:
        if found := shutil.which(name):
            return found
    pytest.skip(f"no browser on this machine (looked for {', '.join(BROWSERS)})")
