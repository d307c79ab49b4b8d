"""Imports point one way, and what must start fast does not import torch."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib

import pytest

from tests.governance.source import PACKAGE, ROOT, area, files, imports, module_name, shown

# What each part of the package may import besides itself and the files directly in trivium/ (errors, config, ...).
# Nothing may import `methods` or `cli`: they are found by name, so adding one changes no other line.
MAY_IMPORT = {
    "": {"artifacts", "core", "data", "drivers", "inference", "models", "optim", "tokenizers", "transforms"},
    "artifacts": set(),
    "tokenizers": {"artifacts"},
    "data": {"artifacts", "tokenizers"},
    "models": {"artifacts", "data"},
    "losses": {"data", "models"},
    "optim": set(),
    "transforms": {"artifacts", "core", "losses", "models"},
    "inference": {"artifacts", "data", "losses", "models", "tokenizers"},
    "core": {"artifacts", "data", "losses", "models", "optim", "tokenizers"},
    "rollout": {"core", "data", "inference", "losses", "models", "tokenizers"},
    "methods": {"core", "data", "losses", "models", "rollout", "tokenizers"},
    "evaluation": {"artifacts", "data", "inference", "losses", "models", "tokenizers"},
    "report": {"artifacts", "core", "data"},
    "drivers": {
        "artifacts",
        "core",
        "data",
        "evaluation",
        "inference",
        "losses",
        "models",
        "optim",
        "report",
        "rollout",
        "tokenizers",
    },
    "cli": {
        "artifacts",
        "core",
        "data",
        "drivers",
        "evaluation",
        "inference",
        "models",
        "optim",
        "report",
        "tokenizers",
    },
}

ALSO = {"trivium/data/steps": {"inference"}}
"""Steps of a pipeline stand beside the models they ask, as methods do."""

IMPORT_NAMES = {"pyyaml": "yaml"}
"""Distributions whose import name is not their own."""

OPTIONAL = ("data", "web", "ray", "privacy", "tensorboard", "evaluation", "music", "sweep", "fp8")
"""Extras for users."""

BROUGHT_ALONG = {"markupsafe"}
"""Packages that are part of another one's interface (jinja2's)."""

# Read or run for every command, so never at the price of `import torch`.
LIGHT = ("trivium", "trivium.errors", "trivium.config", "trivium.recipe", "trivium.registry")
LIGHT_AREAS = ("methods", "optim", "transforms", "cli")
HEAVY = ("torch", "transformers", "tokenizers", "numpy", "pyarrow")


def test_every_part_has_its_rule() -> None:
    parts = {path.name for path in PACKAGE.iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert parts == set(MAY_IMPORT) - {""}


def test_imports_point_one_way() -> None:
    wrong = []
    for file in files():
        here = area(module_name(file))
        for node, module in imports(file):
            if module.split(".")[0] != "trivium":
                continue
            there = area(module)
            entry = file == PACKAGE / "__main__.py" and there == "cli"
            also = ALSO.get(file.parent.relative_to(ROOT).as_posix(), set())
            if there not in {"", here, *MAY_IMPORT[here], *also} and not entry:
                wrong.append(f"{shown(file, node)} imports {module}")
    assert not wrong, "\n".join(wrong)


def test_methods_do_not_import_each_other() -> None:
    wrong = [
        f"{shown(file, node)} imports {module}"
        for file in files()
        for node, module in imports(file)
        if module.startswith("trivium.methods.")
    ]
    assert not wrong, "\n".join(wrong)


def declared() -> tuple[set[str], set[str]]:
    """Import names of the core dependencies, and of those plus the optional ones a user can install."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]

    def names(requirements: list[str]) -> set[str]:
        found = {re.split(r"[<>=\[ ]", line)[0].lower() for line in requirements}
        return {IMPORT_NAMES.get(name, name) for name in found}

    core = names(project["dependencies"])
    return core, core.union(*(names(extras[extra]) for extra in OPTIONAL))


def test_every_import_is_declared() -> None:
    core, known = declared()
    allowed = known | BROUGHT_ALONG | set(sys.stdlib_module_names) | {"trivium"}
    wrong = [
        f"{shown(file, node)} imports {module}"
        for file in files()
        for node, module in imports(file)
        if module.split(".")[0] not in allowed
    ]
    assert not wrong, "not in pyproject.toml:\n" + "\n".join(wrong)
    at_top = [
        f"{shown(file, node)} imports {module}"
        for file in files()
        for node, module in imports(file)
        if node.col_offset == 0 and module.split(".")[0] in known - core
    ]
    assert not at_top, "optional packages are imported where they are used:\n" + "\n".join(at_top)


def test_core_stays_small() -> None:
    core, _ = declared()
    assert len(core) <= 20


def run_python(code: str) -> str:
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


LOADED = f"print(' '.join(name for name in {HEAVY!r} if name in sys.modules))"


def test_import_trivium_is_light() -> None:
    assert run_python(f"import sys, trivium; {LOADED}") == ""
    # pydantic and rich are light, but not free: a script that only wants the version does not pay for them.
    extra = "print([name for name in ('pydantic', 'rich', 'typer') if name in sys.modules])"
    assert run_python(f"import sys, trivium; {extra}") == "[]"


def test_settings_are_read_without_torch() -> None:
    modules = [module_name(file) for file in files() if area(module_name(file)) in LIGHT_AREAS]
    code = f"import importlib, sys\nfor name in {[*LIGHT, *modules]!r}: importlib.import_module(name)\n"
    heavy = run_python(code + LOADED)
    assert "torch" not in heavy.split(), heavy


TYPO = "name: x\nmethod: clm\nmodel: {preset: llama-tiny}\ndata: {train: a.txt}\ntrain: {steps: 1, learning_rat: 1}\n"


@pytest.mark.parametrize(
    "arguments", [["--help"], ["train", "--help"], ["--version"], ["train", "{recipe}"]], ids=lambda a: " ".join(a)
)
def test_help_and_refused_recipes_do_not_import_torch(arguments: list[str], tmp_path) -> None:
    recipe = tmp_path / "typo.yaml"
    recipe.write_text(TYPO)
    arguments = [argument.format(recipe=recipe) for argument in arguments]
    code = (
        f"import sys; sys.argv = ['trivium', *{arguments!r}]\n"
        "from trivium.cli.main import main\n"
        "try: main()\n"
        "except SystemExit as end: print('code', end.code)\n"
        f"{LOADED}"
    )
    heavy = run_python(code).splitlines()[-1].split()
    assert "torch" not in heavy and "transformers" not in heavy, heavy
