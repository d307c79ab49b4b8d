"""Nested training state as safetensors plus JSON, and back, exactly.

`<name>.safetensors` holds the tensors, `<name>.json` the structure around them. In the JSON, plain dictionaries with
text keys, lists, text, numbers, booleans and null stand for themselves; anything else is an object with the key
`"$"`: `{"$": "tensor", "name": ...}`, `{"$": "tuple", "items": [...]}`, `{"$": "dict", "items": [[key, value], ...]}`
and `{"$": "float", "bits": "7ff8000000000000"}` for not-a-number and the infinities.

What comes back: every number bit for bit, integers of any size, tuples as tuples, dictionary keys with their type and
order, tensors with their dtype and shape on the CPU, and one tensor that stood in two places again as one tensor.
Subclasses (OrderedDict, named tuples, parameters) come back as their plain kind.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trivium.artifacts.manifest import unreadable
from trivium.artifacts.writer import write_plain
from trivium.errors import ArtifactDamaged, ArtifactError
from trivium.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

_DTYPES = {
    "BOOL": "bool",
    "U8": "uint8",
    "I8": "int8",
    "U16": "uint16",
    "I16": "int16",
    "F16": "float16",
    "BF16": "bfloat16",
    "U32": "uint32",
    "I32": "int32",
    "F32": "float32",
    "U64": "uint64",
    "I64": "int64",
    "F64": "float64",
    "C64": "complex64",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "F8_E8M0": "float8_e8m0fnu",
}
_WRITE_CHUNK = 64 << 20


def save_state(folder: Path, name: str, state: Any) -> None:
    """Write `state` (nested dictionaries, lists, tuples, tensors, numbers, text, booleans, None) into `folder`.

    Raises ArtifactError naming the place of the first value of another type. Call it inside `write_artifact`.
    """
    collector = _Collector()
    structure = collector.encode(state, "")
    text = json.dumps(structure, allow_nan=False)
    write_tensors(folder / f"{name}.safetensors", collector.tensors)
    write_plain(folder / f"{name}.json", iter([text.encode()]))


def load_state(folder: Path, name: str) -> Any:
    """The exact inverse of `save_state`; tensors are on the CPU and own their memory."""
    path = folder / f"{name}.json"
    tensors = read_tensors(folder / f"{name}.safetensors")
    try:
        return _decode(json.loads(path.read_bytes()), tensors)
    except PermissionError as error:
        raise unreadable(path, error) from error
    except (OSError, ValueError, LookupError, TypeError, struct.error, RecursionError) as error:
        raise ArtifactDamaged(
            "the saved state cannot be read",
            where=path,
            value=f"{type(error).__name__}: {error}",
            fix="use another checkpoint; this one is damaged or was not written by Trivium",
        ) from error


def write_tensors(path: Path, tensors: Mapping[str, Tensor], *, metadata: Mapping[str, str] | None = None) -> None:
    """Write a safetensors file, one tensor in memory at a time; any device, any strides.

    Largest element type first and then by name, as the safetensors library does, so that every tensor is aligned.
    """
    names = {getattr(torch, name): key for key, name in _DTYPES.items() if hasattr(torch, name)}
    header: dict[str, Any] = {} if metadata is None else {"__metadata__": dict(metadata)}
    order = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    offset = 0
    for name in order:
        tensor = tensors[name]
        problem = _unsupported(tensor, names)
        if problem:
            raise ArtifactError(f"{problem} cannot be stored", where=path, value=name)
        end = offset + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": names[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)

    def chunks() -> Iterator[bytes | memoryview]:
        yield struct.pack("<Q", len(text)) + text
        for name in order:
            data = _bytes_of(tensors[name])
            for start in range(0, len(data), _WRITE_CHUNK):
                yield data[start : start + _WRITE_CHUNK]

    write_plain(path, chunks())


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file, each in its own memory. ArtifactDamaged if it is not a valid one."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    except PermissionError as error:
        raise unreadable(path, error) from error
    except (SafetensorError, OSError) as error:
        raise ArtifactDamaged(
            "the tensors cannot be read",
            where=path,
            value=str(error),
            fix="restore the file from a copy, or make it again",
        ) from error


class _Collector:
    """Turns nested state into JSON values and gathers the tensors under names that say where they stood."""

    def __init__(self) -> None:
        self.tensors: dict[str, Tensor] = {}
        self._seen: dict[tuple[Any, ...], str] = {}

    def encode(self, value: Any, path: str) -> Any:
        kind = type(value)
        if value is None or kind in (bool, int, str):
            return value
        if kind is float:
            return value if math.isfinite(value) else {"$": "float", "bits": struct.pack(">d", value).hex()}
        if isinstance(value, dict):
            return self._dictionary(value, path)
        if isinstance(value, list | tuple):
            items = [self.encode(item, f"{path}/{index}") for index, item in enumerate(value)]
            return items if isinstance(value, list) else {"$": "tuple", "items": items}
        if isinstance(value, torch.Tensor):
            return {"$": "tensor", "name": self._tensor(value, path)}
        raise ArtifactError(
            f"a value of type {kind.__module__}.{kind.__qualname__} cannot be stored",
            where=path or "the state itself",
            value=value,
            fix="store tensors, numbers, text, booleans, None, and dictionaries, lists and tuples of them",
        )

    def _dictionary(self, value: dict[Any, Any], path: str) -> Any:
        if all(type(key) is str for key in value) and "$" not in value:
            return {key: self.encode(item, f"{path}/{key}") for key, item in value.items()}
        pairs = [[self._key(key, path), self.encode(item, f"{path}/{key}")] for key, item in value.items()]
        return {"$": "dict", "items": pairs}

    def _key(self, key: Any, path: str) -> Any:
        if key is None or isinstance(key, str | int | float | tuple):
            return self.encode(key, f"{path}/{key}")
        raise ArtifactError(f"a dictionary key of type {type(key).__name__} cannot be stored", where=path, value=key)

    def _tensor(self, tensor: Tensor, path: str) -> str:
        plain = tensor.detach()
        problem = "" if type(plain) is torch.Tensor else f"a {type(plain).__name__} (gather it first)"
        problem = problem or _unsupported(plain, {getattr(torch, name, None) for name in _DTYPES.values()})
        if problem:
            raise ArtifactError(f"{problem} cannot be stored", where=path or "the state itself")
        view = (plain.shape, plain.stride(), plain.dtype, plain.device, plain.is_conj(), plain.is_neg())
        place = (plain.data_ptr(), *view) if plain.numel() else (id(tensor),)
        if place not in self._seen:
            name = base = path.strip("/") or "tensor"
            while name in self.tensors or name == "__metadata__":
                name = f"{base}#{len(self.tensors)}"
            self._seen[place] = name
            self.tensors[name] = plain
        return self._seen[place]


def _decode(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(value, list):
        return [_decode(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    kind = value.get("$")
    if kind is None:
        return {key: _decode(item, tensors) for key, item in value.items()}
    if kind == "tensor":
        return tensors[value["name"]]
    if kind == "float":
        return struct.unpack(">d", bytes.fromhex(value["bits"]))[0]
    if kind == "tuple":
        return tuple(_decode(item, tensors) for item in value["items"])
    if kind == "dict":
        return {_decode(key, tensors): _decode(item, tensors) for key, item in value["items"]}
    raise ValueError(f"unknown kind of value {kind!r}")


def _unsupported(tensor: Tensor, dtypes: Any) -> str:
    """Why a tensor has no place in a safetensors file; empty if it has."""
    if tensor.layout != torch.strided or tensor.is_quantized:
        return "a sparse or quantised tensor"
    if tensor.device.type == "meta":
        return "a tensor without data (meta device)"
    return "" if tensor.dtype in dtypes else f"a tensor of {tensor.dtype}"


def _bytes_of(tensor: Tensor) -> memoryview:
    flat = tensor.detach().resolve_conj().resolve_neg().to("cpu").contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data
