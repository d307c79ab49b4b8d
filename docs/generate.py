"""What the site says about settings, commands and presets is read from the code while the site is built.

A page asks for it with a comment on a line of its own:

    <!-- generated: settings -->            all settings of a recipe
    <!-- generated: settings methods.dpo -->   the settings of one component
    <!-- generated: settings sweep -->      the settings of a search
    <!-- generated: components methods -->  a table of the components of a folder
    <!-- generated: commands -->            the help of every verb
    <!-- generated: presets -->             the shapes a model can start from
    <!-- generated: families -->            the families of models, their presets and heads
    <!-- generated: decisions -->           the pages of docs/decisions
    <!-- generated: benchmarks -->          table and plot of the files in benchmarks/results
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, cast

from pydantic.fields import FieldInfo

from trivium import registry
from trivium.config import StrictModel, recipe_keys
from trivium.problems import fields_below, type_words
from trivium.schema import sweep_keys

MARK = re.compile(r"^<!-- generated: (\w+) ?([\w.]*) ?-->$", re.MULTILINE)

FOLDERS: dict[registry.Folder, str] = {"methods": "method", "optim": "train.optimizer", "transforms": "transforms.0"}
"""Folder of components -> the key of a recipe under which their settings stand."""


def on_page_markdown(markdown: str, **_: Any) -> str:
    """MkDocs calls this with the text of each page."""
    return MARK.sub(lambda mark: GENERATORS[mark[1]](mark[2]), markdown)


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def one_line(text: str | None) -> str:
    return " ".join((text or "").split())


def default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if isinstance(value, StrictModel):
        return "see below"
    return f"`{json.dumps(value, default=str)}`"


def settings_table(fields: Iterable[tuple[str, FieldInfo]]) -> str:
    rows = [
        (f"`{key.replace('.0.', '.N.')}`", one_line(field.description), type_words(field), default(field))
        for key, field in fields
    ]
    return table(["setting", "meaning", "values", "default"], rows) if rows else "It has no settings of its own."


def settings(component: str) -> str:
    """All settings of a recipe, by section; or those of `folder.name`, or of the section `sweep`."""
    if component == "sweep":
        return settings_table(sweep_keys().items())
    if component:
        folder, _, name = component.partition(".")
        return component_settings(cast(registry.Folder, folder), name)
    sections: dict[str, list[tuple[str, FieldInfo]]] = {"": []}
    for key, field in recipe_keys().items():
        section, _, rest = key.partition(".")
        sections.setdefault(section if rest else "", []).append((key, field))
    parts = [settings_table(sections.pop(""))]
    parts += [f"## {section}\n\n{settings_table(fields)}" for section, fields in sections.items()]
    for folder in FOLDERS:
        for name in registry.names(folder):
            title = f"{registry.SINGULAR[folder]}: {name}"
            parts.append(f"## {title}\n\n{registry.first_line(registry.component(folder, name))}.")
            parts.append(component_settings(folder, name))
    return "\n\n".join(parts)


def component_settings(folder: registry.Folder, name: str) -> str:
    """The settings of one method, optimiser or transform."""
    return settings_table(fields_below(registry.component(folder, name).Config, f"{FOLDERS[folder]}."))


def components(folder: str) -> str:
    """Name and first line of every file of a folder."""
    place = cast(registry.Folder, folder)
    lines = {name: registry.first_line(registry.component(place, name)) for name in registry.names(place)}
    rows = [(f"[`{name}`]({name}.md)", line) for name, line in lines.items()]
    return table(["name", "what it does"], rows)


def commands(_: str) -> str:
    """The help text of every verb."""
    import typer

    from trivium.cli.main import app

    found: list[tuple[str, Any]] = []

    def collect(name: str, command: Any) -> None:
        found.append((name, command))
        for child, inner in sorted(getattr(command, "commands", {}).items()):
            collect(f"{name} {child}", inner)

    collect("trivium", typer.main.get_command(app))
    parts = []
    for name, command in found:
        context = command.make_context(name, [], resilient_parsing=True, terminal_width=100, max_content_width=100)
        parts.append(f"## {name}\n\n```text\n{command.get_help(context)}\n```")
    return "\n\n".join(parts)


def presets(_: str) -> str:
    """Name and shape of every preset, with its exact number of parameters."""
    from trivium.models.build import preset
    from trivium.models.build import presets as names

    rows = []
    for name in names():
        shape = preset(name)
        heads = f"{shape.num_heads}" + (f" / {shape.num_kv_heads}" if shape.num_kv_heads != shape.num_heads else "")
        rows.append(
            (
                f"`{name}`",
                f"{shape.parameters():,}",
                str(shape.hidden_size),
                str(shape.num_layers),
                heads,
                str(shape.vocab_size),
                str(shape.max_positions),
            )
        )
    return table(["preset", "parameters", "width", "layers", "heads / key-value heads", "vocabulary", "context"], rows)


def families(_: str) -> str:
    """Every file of trivium/models/families: how it begins, its presets and the heads that transformers has for it."""
    from trivium.models.build import family, family_names

    rows = []
    for name in family_names():
        file = family(name)
        about = one_line(file.__doc__)
        heads = [head for head in file.HEADS if head != "none"]
        rows.append((f"`{name}`", about, ", ".join(f"`{preset}`" for preset in file.PRESETS), ", ".join(heads)))
    return table(["family", "what it is", "presets", "heads"], rows)


def decisions(_: str) -> str:
    """Every numbered page of docs/decisions, by its title."""
    pages = sorted((Path(__file__).parent / "decisions").glob("[0-9]*.md"))
    titles = [page.read_text(encoding="utf-8").partition("\n")[0].lstrip("# ") for page in pages]
    return "\n".join(f"* [{title}]({page.name})" for page, title in zip(pages, titles, strict=True))


def benchmarks(_: str) -> str:
    """What benchmarks/results holds: the plot, and the table."""
    folder = Path(__file__).parents[1] / "benchmarks"
    sys.path.insert(0, str(folder))
    try:
        import record  # its modules find each other as scripts do
    finally:
        sys.path.remove(str(folder))
    found = record.read(record.RESULTS)
    return f"{record.plot(found)}\n{record.table(found)}" if found else "Nothing has been published yet."


GENERATORS: dict[str, Callable[[str], str]] = {
    "settings": settings,
    "components": components,
    "commands": commands,
    "presets": presets,
    "families": families,
    "decisions": decisions,
    "benchmarks": benchmarks,
}
