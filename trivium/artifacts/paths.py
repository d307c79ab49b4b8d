"""Names that come from a file (manifest, shard index, archive) are only ever used through `inside`."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from trivium.errors import ArtifactError


def inside(root: Path, name: str) -> Path:
    """The path of the entry `name` of the folder `root`; an error if it could lie anywhere else.

    Absolute names, `..`, backslashes, drive letters, control characters and links that leave `root` are refused.
    """
    path = root / relative_name(name, root=root)
    if not path.resolve().is_relative_to(root.resolve()):
        raise _outside(root, name)
    return path


def relative_name(name: str, *, root: Path) -> str:
    """`name` if, links apart, it can only mean an entry below `root`."""
    pure = PurePosixPath(name)
    printable = not any(ord(character) < 32 or character in "\\\x7f" for character in name)
    relative = bool(pure.parts) and not pure.is_absolute() and ".." not in pure.parts and ":" not in pure.parts[0]
    if not (printable and relative and str(pure) == name):
        raise _outside(root, name)
    return name


def _outside(root: Path, name: str) -> ArtifactError:
    return ArtifactError(
        "a file name points outside its folder",
        where=root,
        value=name,
        fix="do not use this folder: it was damaged, or made to read or write files elsewhere",
    )
