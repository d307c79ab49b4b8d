"""The folder is the registry."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from trivium import registry
from trivium.config import StrictModel
from trivium.errors import ConfigError
from trivium.registry import component, first_line, names

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("folder", ["methods", "optim"])
def test_every_name_leads_to_one_class_with_settings(folder: registry.Folder) -> None:
    assert names(folder)
    for name in names(folder):
        cls = component(folder, name)
        assert issubclass(cls.Config, StrictModel)
        assert first_line(cls)


def test_helpers_are_no_components() -> None:
    files = {path.stem for path in (ROOT / "trivium" / "optim").glob("*.py")}
    assert {"groups", "schedule"} <= files
    assert {"adamw", "muon"} <= set(names("optim")) <= files - {"groups", "schedule", "stepper"}


def test_listing_and_reading_settings_import_no_torch() -> None:
    code = (
        "import sys\nfrom trivium.registry import component, names\n"
        "assert names('methods') and not any('trivium.methods' in name for name in sys.modules)\n"
        "[component('methods', name).Config for name in names('methods')]\n"
        "assert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_a_new_file_is_a_new_component(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "methods").mkdir()
    (tmp_path / "methods" / "mine.py").write_text("class Mine:\n    class Config:\n        pass\n")
    (tmp_path / "methods" / "_private.py").write_text("class Mine:\n    class Config:\n        pass\n")
    (tmp_path / "methods" / "helper.py").write_text("class Helper:\n    pass\n")
    monkeypatch.setattr(registry, "__file__", str(tmp_path / "registry.py"))
    names.cache_clear()
    try:
        assert names("methods") == ("mine",)
    finally:
        monkeypatch.undo()
        names.cache_clear()


@pytest.mark.parametrize(("name", "near"), [("dpoo", "dpo"), ("SFT", "sft"), ("distil", "distill"), ("gpro", "grpo")])
def test_unknown_name(name: str, near: str) -> None:
    with pytest.raises(ConfigError) as caught:
        component("methods", name, where="recipe.yaml:3")
    assert f"did you mean {near}?" in str(caught.value)
    assert "recipe.yaml:3" in str(caught.value)


def test_outside_code_needs_permission() -> None:
    with pytest.raises(ConfigError):
        component("methods", "subprocess:Popen")
    with pytest.raises(ConfigError, match="Config"):
        component("methods", "subprocess:Popen", outside=True)


@pytest.mark.parametrize("name", ["../methods/dpo", "trivium.methods.dpo", "dpo.py", "", "__init__", "_base"])
def test_paths_are_no_names(name: str) -> None:
    with pytest.raises(ConfigError):
        component("methods", name)


def test_a_module_that_fails_is_an_error_of_the_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken_method.py").write_text("1 / 0\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="ZeroDivisionError"):
        component("methods", "broken_method:Mine", outside=True)
