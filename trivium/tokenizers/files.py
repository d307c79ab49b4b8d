"""The files of a tokenizer folder, in the layout of Hugging Face, read and written; nothing is run or guessed.

`tokenizer.json` holds the algorithm and its vocabulary, `tokenizer_config.json` the roles of special tokens and the
chat template, `special_tokens_map.json` the roles again (older readers). Newer folders keep the template in
`chat_template.jinja`, and further ones in `additional_chat_templates/<name>.jinja`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trivium.errors import TokenizerError

ROLES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
"""Keys of `tokenizer_config.json` that name one special token each."""

_CONVERT = "AutoTokenizer.from_pretrained(folder).save_pretrained(folder)"


@dataclass(frozen=True)
class TokenizerFiles:
    """What a tokenizer folder says.

    definition: tokenizer.json.
    config:     tokenizer_config.json without the template; the roles of special_tokens_map.json where it has none.
    templates:  chat templates by name; the one that counts is called "default".
    where:      the folder, for messages.
    """

    definition: dict[str, Any]
    config: dict[str, Any]
    templates: dict[str, str] = field(default_factory=dict)
    where: str = "tokenizer"


def read_files(folder: Path) -> TokenizerFiles:
    """Read a tokenizer folder; TokenizerError names the file, and the line where there is one."""
    if not folder.is_dir():
        raise TokenizerError("there is no such tokenizer folder", where=folder, fix="check the path")
    path = folder / "tokenizer.json"
    if not path.is_file():
        older = [name for name in ("tokenizer.model", "vocab.json", "vocab.txt") if (folder / name).is_file()]
        raise TokenizerError(
            "the folder has no tokenizer.json" + (f", only {older[0]}" if older else ""),
            where=folder,
            fix=f"convert it once with transformers: {_CONVERT}" if older else "name a folder with a tokenizer",
        )
    definition = _read_object(path)
    _check_definition(definition, path)
    config = _read_object(folder / "tokenizer_config.json") if (folder / "tokenizer_config.json").is_file() else {}
    if (folder / "special_tokens_map.json").is_file():
        config = {**_read_object(folder / "special_tokens_map.json"), **config}
    templates = _templates(folder, config.pop("chat_template", None))
    return TokenizerFiles(definition, config, templates, str(folder))


def write_files(folder: Path, files: TokenizerFiles) -> None:
    """Write the folder so that transformers (4 and 5) and this package read the same from it."""
    from trivium.artifacts.writer import write_file

    config = dict(files.config)
    if set(files.templates) == {"default"}:
        config["chat_template"] = files.templates["default"]
    elif files.templates:
        config["chat_template"] = [{"name": name, "template": text} for name, text in files.templates.items()]
    roles = {key: config[key] for key in (*ROLES, "additional_special_tokens") if config.get(key) is not None}
    write_file(folder / "tokenizer.json", dump(files.definition))
    write_file(folder / "tokenizer_config.json", dump(config))
    write_file(folder / "special_tokens_map.json", dump(roles))


def dump(value: Any) -> str:
    """JSON as Hugging Face writes it: indented, and text left readable."""
    return json.dumps(value, ensure_ascii=False, indent=2) + "\n"


def _check_definition(definition: dict[str, Any], path: Path) -> None:
    """What is read here of tokenizer.json has the right types; the rest is checked by the library."""
    model, added = definition.get("model"), definition.get("added_tokens")
    vocab = model.get("vocab") if isinstance(model, dict) else None
    if isinstance(vocab, dict):
        good = all(isinstance(identifier, int) for identifier in vocab.values())
    else:
        good = isinstance(vocab, list) and all(isinstance(piece, list) and len(piece) == 2 for piece in vocab)
    if not good:
        raise _unusable(path, "model.vocab", vocab if isinstance(model, dict) else model)
    if not isinstance(added, list):
        raise _unusable(path, "added_tokens", added)
    for number, token in enumerate(added):
        named = isinstance(token, dict) and isinstance(token.get("content"), str)
        if not named or not isinstance(token.get("id"), int):
            raise _unusable(path, f"added_tokens[{number}]", token)


def _unusable(path: Path, key: str, value: Any) -> TokenizerError:
    return TokenizerError(
        f'tokenizer.json has no usable "{key}"',
        where=f"{path}: {key}",
        value=value,
        fix="take the file from the model's source again, or write it with Tokenizer.save",
    )


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise TokenizerError(
            f"the file is not UTF-8 text: {error.reason} at byte {error.start}",
            where=path,
            fix="take the file from its source again",
        ) from None


def _read_object(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(_read_text(path))
    except json.JSONDecodeError as error:
        raise TokenizerError(
            f"the file is not valid JSON: {error.msg} (column {error.colno})",
            where=f"{path}:{error.lineno}",
            fix="correct that line, or take the file from its source again",
        ) from None
    except RecursionError:
        raise TokenizerError(
            "the JSON is nested too deeply", where=path, fix="take the file from its source again"
        ) from None
    if not isinstance(value, dict):
        raise TokenizerError(
            f"the file must hold a JSON object, not {type(value).__name__}",
            where=path,
            fix="take the file from its source again",
        )
    return value


def _templates(folder: Path, inline: Any) -> dict[str, str]:
    """Chat templates by name; files win over the configuration, as in transformers 5."""
    templates: dict[str, str] = {}
    where = folder / "tokenizer_config.json"
    if isinstance(inline, str):
        templates["default"] = inline
    elif isinstance(inline, list) and all(
        isinstance(item, dict) and set(item) >= {"name", "template"} for item in inline
    ):
        templates = {str(item["name"]): str(item["template"]) for item in inline}
    elif inline is not None:
        raise TokenizerError(
            "the chat template must be a string, or a list of objects with name and template",
            where=f"{where}: chat_template",
            value=inline,
            fix="write the template as one string, or put it into chat_template.jinja",
        )
    named = {path.stem: path for path in sorted((folder / "additional_chat_templates").glob("*.jinja"))}
    for name, path in {"default": folder / "chat_template.jinja", **named}.items():
        if path.is_file():
            templates[name] = _read_text(path)
    return templates
