"""`trivium verify`: is an artifact still what was written?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from trivium.cli.output import Json, show


def verify(
    folder: Annotated[Path, typer.Argument(help="A model, checkpoint, tokenizer or data folder.")],
    as_json: Json = False,
) -> None:
    """Check that an artifact is what was written.

    Reads every byte and compares it with the manifest.
    """
    from trivium.artifacts.manifest import verify as check

    manifest = check(folder)
    result = {"folder": str(folder), "files": len(manifest.files), "bytes": manifest.size, "content": manifest.content}
    text = f"{folder}: all {len(manifest.files)} files ({manifest.size} bytes) are what was written"
    show(result, as_json=as_json, text=text)
