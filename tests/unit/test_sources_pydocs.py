"""`pydocs` reads the documentation of an installation without importing or running any of it."""

from __future__ import annotations

import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from trivium.data.intake import Intake
from trivium.data.reading import read_documents
from trivium.data.sources import pydocs
from trivium.recipe import Source

SHAPES = '''"""Shapes and their areas, for drawings of any size and for tests of documentation."""

import does_not_exist_anywhere
raise RuntimeError("this file must never be run")

def area(width: float, height: float = 1.0, *, unit="m") -> float:
    """Return the area of a rectangle.

        >>> area(2, 3)
        6

    The unit is squared.
    """

def undocumented(x):
    return x

def _private():
    """A private function whose documentation nobody is meant to read at all."""

class Circle(Base):
    """A round thing that has a radius and nothing else."""

    def __init__(self, radius):
        """Keep the radius."""

    def grow(self, by=2):
        """Make it larger by a factor."""

    def _hidden(self):
        """Not for users."""

async def fetch(url):
    """Fetch a document and wait for it, however long that may take today."""
'''


@pytest.fixture
def installation(tmp_path, monkeypatch):
    """A small installation: a standard library of one module and topics, and a package with a README."""
    files = {
        "lib/shapes.py": SHAPES,
        "lib/test/test_shapes.py": SHAPES,
        "lib/_hidden.py": SHAPES,
        "lib/broken.py": '"""A docstring long enough to be documentation, in a file of Python 2."""\nprint "no"\n',
        "lib/pydoc_data/topics.py": "topics = {'assert': 'The assert statement\\n\\nAssertions are convenient.',}",
        "site/pack/__init__.py": '"""A package that does one thing, and does it reasonably well on good days."""\n',
        "site/pack/deep/inner.py": SHAPES,
        "site/pack/guide.rst": "Guide\n=====\n\n" + "This is how the package is used by most people on most days. " * 8,
        "site/pack/table.txt": "1 2 3\n" * 100,
        "site/pack/LICENSE.txt": "Permission is hereby granted to all people everywhere for ever. " * 8,
        "site/pack-1.0.dist-info/METADATA": (
            "Name: pack\nLicense-Expression: MIT\n\n# Pack\n\n"
            "A package that does one thing, and a readme that says so.\n"
        ),
        "site/pack-1.0.dist-info/RECORD": "pack/__init__.py,,\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    paths = {"stdlib": tmp_path / "lib", "purelib": tmp_path / "site", "platlib": tmp_path / "site"}
    monkeypatch.setattr(pydocs.sysconfig, "get_paths", lambda: {name: str(path) for name, path in paths.items()})
    return tmp_path


def read(intake=None):
    return [d for d in read_documents(Source(path="pydocs"), intake or Intake()) if d.meta["module"] != "builtins"]


def test_what_is_read_and_in_which_order(installation):
    intake = Intake()
    before = set(sys.modules)
    assert [document.id for document in read(intake)] == [
        "help('assert')",
        "shapes",
        "shapes.area",
        "shapes.Circle",
        "shapes.fetch",
        "pack",
        "pack/guide.rst",
        "pack.deep.inner",
        "pack.deep.inner.area",
        "pack.deep.inner.Circle",
        "pack.deep.inner.fetch",
        "pack (README)",
    ]
    assert not {name for name in set(sys.modules) - before if "shapes" in name or "pack" in name}
    assert intake.skipped["not Python that can be parsed"] == 1
    assert intake.formats == {"pydocs": 1}


def test_a_function_looks_as_help_shows_it(installation):
    document = next(document for document in read() if document.id == "shapes.area")
    assert document.text == (
        "Help on function area in module shapes:\n\n"
        "area(width: float, height: float=1.0, *, unit='m') -> float\n"
        "    Return the area of a rectangle.\n\n"
        "        >>> area(2, 3)\n"
        "        6\n\n"
        "    The unit is squared.\n"
    )
    assert document.group == "shapes"
    assert document.licence == "PSF-2.0"
    assert document.source == str(installation / "lib" / "shapes.py")
    assert {name: document.meta[name] for name in ("kind", "module", "name", "summary")} == {
        "kind": "function",
        "module": "shapes",
        "name": "area",
        "summary": "Return the area of a rectangle.",
    }


def test_a_class_holds_its_public_methods(installation):
    text = next(document.text for document in read() if document.id == "shapes.Circle")
    assert text.startswith("Help on class Circle in module shapes:\n\nclass Circle(Base)\n    A round thing")
    assert "\n\n    grow(self, by=2)\n        Make it larger by a factor.\n" in text
    assert "__init__(self, radius)" in text
    assert "_hidden" not in text


def test_licences_of_packages(installation):
    found = {document.id: document.licence for document in read()}
    assert found["pack"] == found["pack (README)"] == found["pack/guide.rst"] == "MIT"


def test_a_package_has_a_limited_share_and_its_surface_comes_first(installation, monkeypatch):
    monkeypatch.setattr(pydocs, "_PACKAGE_CHARACTERS", 100)
    intake = Intake()
    ids = [document.id for document in read(intake)]
    assert "pack" in ids
    assert not any("deep" in name for name in ids)
    assert intake.skipped["documentation of a package beyond its share"] > 1


def test_builtins_are_there_without_any_file(installation):
    found = {document.id: document for document in read_documents(Source(path="pydocs"), Intake())}
    assert "Return True if all" not in found["builtins.len"].text
    assert "len(obj, /)" in found["builtins.len"].text
    assert "join(self, iterable, /)" in found["builtins.str"].text


def test_the_fingerprint_follows_the_installation(installation):
    first = pydocs.fingerprint()
    assert pydocs.fingerprint() == first
    (installation / "site/pack/deep/more.py").write_text('"""More."""')
    assert pydocs.fingerprint() != first


@pytest.mark.slow
def test_this_installation_has_megabytes_of_documentation():
    start = time.process_time()
    found = list(read_documents(Source(path="pydocs"), Intake()))
    assert time.process_time() - start < 30
    ids = Counter(document.id for document in found)
    assert max(ids.values()) == 1
    assert ids["textwrap.dedent"] == 1
    assert sum(len(document.text) for document in found) > 5_000_000
    assert all(Path(document.source).exists() for document in found if document.meta["module"] != "builtins")
