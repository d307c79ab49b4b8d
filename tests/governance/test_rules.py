"""Rules over the source text: what may never appear, and how long a file may be."""

from __future__ import annotations

import ast
import re
import statistics
from pathlib import Path

import pytest

from tests.governance.source import PACKAGE, ROOT, files, shown, tree

UNSAFE_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve", "joblib"}
UNSAFE_CALLS = {"eval", "exec"}
UNSAFE_ATTRIBUTES = {("torch", "load"), ("torch", "save"), ("os", "system")}
UNSAFE_ARGUMENTS = {"trust_remote_code", "allow_pickle", "shell"}


def unsafe(node: ast.AST) -> str | None:
    """What is unsafe about a node of the syntax tree."""
    match node:
        case ast.Import(names=names) if found := UNSAFE_MODULES & {name.name.split(".")[0] for name in names}:
            return f"imports {', '.join(found)}"
        case ast.ImportFrom(module=str(module)) if module.split(".")[0] in UNSAFE_MODULES:
            return f"imports {module}"
        case ast.Call(func=ast.Name(id=name)) if name in UNSAFE_CALLS:
            return f"calls {name}"
        case ast.Attribute(value=ast.Name(id=module), attr=name) if (module, name) in UNSAFE_ATTRIBUTES:
            return f"uses {module}.{name}"
        case ast.keyword(arg=str(name), value=value) if name in UNSAFE_ARGUMENTS:
            off = isinstance(value, ast.Constant) and value.value is False
            return None if off else f"sets {name}"
    return None


def test_nothing_runs_or_unpickles_foreign_bytes() -> None:
    wrong = [
        f"{shown(file, node)} {problem}"
        for file in files()
        for node in ast.walk(tree(file))
        if (problem := unsafe(node))
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    "text",
    [
        "import pickle",
        "from marshal import loads",
        "eval('1')",
        "torch.load('x')",
        "np.load('x', allow_pickle=True)",
        "load('x', trust_remote_code=flag)",
    ],
)
def test_the_rule_finds_what_it_forbids(text: str) -> None:
    assert any(unsafe(node) for node in ast.walk(ast.parse(text)))


def test_the_rule_leaves_the_harmless_alone() -> None:
    text = "model.eval()\nnp.load('x', allow_pickle=False)\nre.compile('x')\nsafetensors.torch.load_file('x')"
    assert not any(unsafe(node) for node in ast.walk(ast.parse(text)))


def test_backward_is_called_by_engines_and_declared_backward_passes_only() -> None:
    wrong = []
    for file in files():
        nodes = list(ast.walk(tree(file)))
        declares = any(isinstance(node, ast.FunctionDef) and node.name == "backward" for node in nodes)
        if declares or (file.parent.name == "core" and file.name.startswith("engine")):
            continue
        wrong += [
            shown(file, node)
            for node in nodes
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "backward"
        ]
    assert not wrong, "only an engine, or a file with `def backward`, calls .backward(): " + ", ".join(wrong)


def lines(file: Path) -> int:
    return len(file.read_text(encoding="utf-8").splitlines())


def named(folder: str) -> list[Path]:
    return sorted((PACKAGE / folder).glob("[!_]*.py"))


def test_the_loop_stays_readable() -> None:
    assert lines(PACKAGE / "core" / "trainer.py") < 300


def test_method_files_stay_small() -> None:
    sizes = {shown(file): lines(file) for file in named("methods")}
    assert not {name: size for name, size in sizes.items() if size > 250}
    assert statistics.median(sizes.values()) <= 120, sizes


TWO_STACKS = {"t5", "bart"}
"""Families with the names of an encoder and of a decoder."""


def test_family_files_stay_thin() -> None:
    sizes = {shown(file): lines(file) for file in named("models/families")}
    assert not {name: size for name, size in sizes.items() if size > (210 if Path(name).stem in TWO_STACKS else 160)}


SCREEN = 66
"""Lines of a tall window."""


def test_functions_fit_on_a_screen() -> None:
    wrong = [
        f"{shown(file, node)} {node.name}: {node.end_lineno - node.lineno + 1} lines"
        for file in files()
        for node in ast.walk(tree(file))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno - node.lineno + 1 > SCREEN
    ]
    assert not wrong, "\n".join(wrong)


def test_every_module_says_what_it_is() -> None:
    assert not [shown(file) for file in files() if not ast.get_docstring(tree(file))]


HOME = re.compile(r"(?<![\w.])/(?:root|home/[a-z_]\w*|Users/\w+)/\w")
TEXTS = {".py", ".md", ".yaml", ".yml", ".toml", ".txt", ".cfg", ".html", ".css", ".json", ""}
SKIPPED = {".git", ".venv", "runs", "site", "build", "dist", ".envs", "__pycache__"}


def test_no_path_of_somebodys_home() -> None:
    wrong = []
    for file in sorted(ROOT.rglob("*")):
        parts = set(file.relative_to(ROOT).parts)
        if not file.is_file() or file.suffix not in TEXTS or parts & SKIPPED or file == Path(__file__):
            continue
        if any(part.endswith("_cache") or part == ".hypothesis" for part in parts):
            continue
        for number, line in enumerate(file.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
            if HOME.search(line):
                wrong.append(f"{file.relative_to(ROOT)}:{number}: {line.strip()[:100]}")
    assert not wrong, "\n".join(wrong)
