"""Shell completion of recipes, settings and names; reads file names and classes, never torch."""

from __future__ import annotations

from pathlib import Path


def complete_recipe(incomplete: str) -> list[str]:
    """YAML files and folders that continue what was typed; those in recipes/ where nothing was typed."""
    typed = Path(incomplete)
    folder = typed if incomplete.endswith("/") else typed.parent
    if not incomplete and Path("recipes").is_dir():
        folder = Path("recipes")
    if not folder.is_dir():
        return []
    entries = [f"{entry}/" if entry.is_dir() else str(entry) for entry in sorted(folder.iterdir())]
    return [entry for entry in entries if entry.endswith(("/", ".yaml", ".yml")) and entry.startswith(incomplete)]


def complete_key(incomplete: str) -> list[str]:
    """Dotted keys of a recipe."""
    from trivium.schema import every_setting, sweep_keys

    keys = [*(key for key, _, _ in every_setting()), *sweep_keys()]
    return [key for key in dict.fromkeys(keys) if key.startswith(incomplete) and ".KEY." not in key]


def complete_override(incomplete: str) -> list[str]:
    """`key=` and, for settings with a few allowed values, `key=value`."""
    key, equals, _ = incomplete.partition("=")
    if not equals:
        return [f"{found}=" for found in complete_key(incomplete)]
    return [f"{key}={value}" for value in _values(key) if f"{key}={value}".startswith(incomplete)]


def _values(key: str) -> list[str]:
    from trivium.config import recipe_keys
    from trivium.models.build import presets
    from trivium.problems import literals
    from trivium.registry import names

    if key in ("method", "method.name"):
        return list(names("methods"))
    if key in ("train.optimizer", "train.optimizer.name"):
        return list(names("optim"))
    if key == "model.preset":
        return presets()
    field = recipe_keys().get(key)
    if field is None:
        return []
    return ["true", "false"] if field.annotation is bool else list(literals(field.annotation))
