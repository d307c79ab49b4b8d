"""`trivium config`: what a setting means."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from trivium.cli.complete import complete_key
from trivium.cli.output import Json, show

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo

app = typer.Typer(help="Explain settings.", no_args_is_help=True, rich_markup_mode=None)


@app.callback()
def _group() -> None:
    """Explain settings."""


@app.command()
def explain(
    key: Annotated[str | None, typer.Argument(help="Like train.lr; default: all.", autocompletion=complete_key)] = None,
    as_json: Json = False,
) -> None:
    """Show what a setting means.

    With its type and default, and where it is read.
    """
    found = {name: entries for name, entries in _settings().items() if key is None or name == key}
    if key is not None and not found:
        raise _unknown(key)
    if key is None:
        result: dict[str, Any] = {name: [entry["meaning"] for entry in entries] for name, entries in found.items()}
        width = max(map(len, found))
        text = "\n".join(f"{name:{width}}  {'; '.join(dict.fromkeys(meaning))}" for name, meaning in result.items())
    else:
        entries = found[key]
        for entry in entries:
            entry["read_in"] = _read_in(key)
        result = {"key": key, "meanings": entries}
        text = "\n\n".join(_text(key, entry) for entry in entries)
    show(result, as_json=as_json, text=text)


def _settings() -> dict[str, list[dict[str, Any]]]:
    """Dotted key -> what it is; several entries where methods use the same name."""
    from trivium.schema import every_setting, sweep_keys

    settings: dict[str, list[dict[str, Any]]] = {}
    for key, field, owner in [
        *every_setting(),
        *((key, field, "trivium sweep") for key, field in sweep_keys().items()),
    ]:
        settings.setdefault(key, []).append(_describe(field, owner))
    return settings


def _describe(field: FieldInfo, owner: str | None) -> dict[str, Any]:
    from trivium.problems import type_words

    default: Any = None if field.is_required() else field.get_default(call_default_factory=True)
    return {
        "of": owner,
        "meaning": " ".join((field.description or "").split()),
        "type": type_words(field),
        "required": field.is_required(),
        "default": default.model_dump() if hasattr(default, "model_dump") else default,
    }


def _text(key: str, entry: dict[str, Any]) -> str:
    import json

    owner = f" (of {entry['of']})" if entry["of"] else ""
    default = "none, it must be given" if entry["required"] else json.dumps(entry["default"], default=str)
    lines = [
        f"{key}{owner}",
        f"  {entry['meaning']}",
        f"  type:    {entry['type']}",
        f"  default: {default}",
    ]
    if entry["read_in"]:
        lines.append(f"  read in: {', '.join(entry['read_in'][:6])}")
    return "\n".join(lines)


def _read_in(key: str) -> list[str]:
    """`file:line` of the package where the setting is read, found in the text of the files."""
    import re
    from pathlib import Path

    import trivium

    section, _, name = key.rpartition(".")
    owner = {"method": "config", "train.optimizer": "config", "": "recipe"}.get(section, section.split(".")[-1])
    pattern = re.compile(rf"\b(?:{owner}|settings)\.{name}\b")
    package = Path(trivium.__file__).parent
    return [
        f"{file.relative_to(package.parent)}:{number}"
        for file in sorted(package.rglob("*.py"))
        if "cli" not in file.parts and file.name != "config.py"
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1)
        if pattern.search(line) and "raise " not in line
    ]


def _unknown(key: str) -> Exception:
    from trivium.errors import ConfigError
    from trivium.nearest import nearest

    known = _settings()
    # Of settings with the same last part the one nearest to the top is meant.
    last_parts = {name.rpartition(".")[2]: name for name in sorted(known, key=lambda name: -name.count("."))}
    near = nearest(key, known) or last_parts.get(nearest(key.rpartition(".")[2], last_parts) or "")
    return ConfigError(
        f"there is no setting {key}",
        fix=f"did you mean {near}?" if near else "'trivium config explain' lists all of them",
    )
