"""Models that turn a text into one vector, as folders in the layout of sentence-transformers.

    config.json, model.safetensors, tokenizer.json ...   the body, an ordinary model folder
    modules.json                        what follows on the body, in order: pooling, dense layers, length 1
    1_Pooling/config.json               which hidden state stands for the text
    2_Dense/{config.json, model.safetensors}   a dense layer with an activation; there may be none, or several
    config_sentence_transformers.json   text put in front of queries and of passages, and what compares two vectors
    sentence_bert_config.json           the longest text, in tokens
    README.md                           a card

Other parts that sentence-transformers has (weighted or several poolings, a residual in a dense layer, experts) are
refused by name.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trivium.artifacts.paths import inside
from trivium.errors import ModelError
from trivium.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

    from trivium.models.transformer import Transformer

MODULES, SETTINGS, LENGTH = "modules.json", "config_sentence_transformers.json", "sentence_bert_config.json"
QUERY, PASSAGE = "query", "document"
"""Names of the prompts of sentence-transformers for the two sides of a search."""

_POOLINGS = {"first": "cls", "last": "lasttoken", "mean": "mean", "max": "max"}
_FLAGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
"""How versions before 5.7 say the pooling, which all versions read."""
_ACTIVATIONS = {
    "linear": "torch.nn.modules.linear.Identity",
    "tanh": "torch.nn.modules.activation.Tanh",
    "relu": "torch.nn.modules.activation.ReLU",
    "gelu": "torch.nn.modules.activation.GELU",
}
_WEIGHTS = "model.safetensors"
_SIMILARITIES = {"cosine": "cosine", "dot": "dot"}


@dataclass(frozen=True)
class Dense:
    """act(weight x + bias); weight [out, in], bias [out] or None."""

    weight: Tensor
    bias: Tensor | None
    activation: str

    def __call__(self, vectors: Tensor) -> Tensor:
        """[N, in] -> [N, out]."""
        from trivium.models.kernels import ACTIVATIONS

        made = torch.nn.functional.linear(vectors, self.weight, self.bias)
        return made if self.activation == "linear" else ACTIVATIONS[self.activation](made)


@dataclass(frozen=True)
class Sentences:
    """How the hidden states of a text become its vector.

    pooling:    which of them stand for it.  dense: layers behind it.  normalize: whether the vector has length 1.
    prompts:    text put in front, by name.  prompt: the name of the one that is used unless another is named.
    similarity: cosine or dot.
    dimensions: lengths to which a vector may be cut (Matryoshka), beside its own.
    max_length: longest text in tokens; None: what the model takes.
    lowercase:  whether texts are read in lower case.
    """

    pooling: str = "mean"
    dense: Sequence[Dense] = ()
    normalize: bool = True
    prompts: Mapping[str, str] = field(default_factory=dict)
    prompt: str | None = None
    similarity: str = "cosine"
    dimensions: tuple[int, ...] = ()
    max_length: int | None = None
    lowercase: bool = False

    def to(self, like: Tensor) -> Sentences:
        """The same with its layers in the type and on the device of `like`."""
        dense = [
            Dense(one.weight.to(like), None if one.bias is None else one.bias.to(like), one.activation)
            for one in self.dense
        ]
        return replace(self, dense=dense)

    def size(self, width: int) -> int:
        """Numbers in a vector, of a body of this width."""
        return self.dense[-1].weight.shape[0] if self.dense else width

    def vectors(self, pooled: Tensor, *, dimensions: int | None = None, normalize: bool | None = None) -> Tensor:
        """[N, D] -> [N, E], or the first `dimensions` of each."""
        for layer in self.dense:
            pooled = layer(pooled)
        pooled = pooled if dimensions is None else pooled[:, :dimensions]
        wanted = self.normalize if normalize is None else normalize
        return torch.nn.functional.normalize(pooled, dim=-1) if wanted else pooled


def sentences_of(module: Transformer) -> Sentences | None:
    """What a head for vectors says; None of a model with another head."""
    config = module.config
    if config.head != "embedding":
        return None
    dense = module.head.dense
    if dense is None:
        return Sentences(pooling=config.pooling)
    bias = None if dense.bias is None else dense.bias.detach()
    return Sentences(pooling=config.pooling, dense=(Dense(dense.weight.detach(), bias, config.head_dense),))


def take_dense(module: Transformer, start: Sentences | None) -> None:
    """Makes the only layer of `start` the dense layer of a head for vectors, where it is alike; else the head stays."""
    own, layers = module.head.dense, start.dense if start else ()
    if own is None or len(layers) != 1:
        return
    layer = layers[0]
    if own.weight.shape != layer.weight.shape or module.config.head_dense != layer.activation:
        return
    with torch.no_grad():
        own.weight.copy_(layer.weight)
        own.bias.copy_(torch.zeros_like(own.bias) if layer.bias is None else layer.bias)


# Writing


def write_sentences(folder: Path, sentences: Sentences, *, width: int, max_length: int, card: str) -> None:
    """The layout beside the files of a model, into a folder that `write_artifact` yielded.

    width: of the body.  max_length: longest text in tokens.  card: the README.
    """
    from trivium.artifacts.tensors import write_tensors
    from trivium.artifacts.writer import write_plain

    def write(name: str, content: Any) -> None:
        (folder / name).parent.mkdir(exist_ok=True)
        write_plain(folder / name, iter([(json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()]))

    parts = [("Transformer", ""), ("Pooling", "1_Pooling")]
    pooling = _POOLINGS[sentences.pooling]
    write("1_Pooling/config.json", {"word_embedding_dimension": width, **_flags(pooling), "include_prompt": True})
    for layer in sentences.dense:
        name = f"{len(parts)}_Dense"
        parts.append(("Dense", name))
        out, size = layer.weight.shape
        settings = {"in_features": size, "out_features": out, "bias": layer.bias is not None}
        write(f"{name}/config.json", {**settings, "activation_function": _ACTIVATIONS[layer.activation]})
        tensors = {"linear.weight": layer.weight, **({} if layer.bias is None else {"linear.bias": layer.bias})}
        plain = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
        write_tensors(folder / name / _WEIGHTS, plain, metadata={"format": "pt"})
    if sentences.normalize:
        name = f"{len(parts)}_Normalize"
        parts.append(("Normalize", name))
        write(f"{name}/config.json", {})
    listed = [
        {"idx": number, "name": str(number), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for number, (kind, path) in enumerate(parts)
    ]
    write(MODULES, listed)
    more = {"matryoshka_dimensions": list(sentences.dimensions)} if sentences.dimensions else {}
    about: dict[str, Any] = {
        "model_type": "SentenceTransformer",
        "prompts": dict(sentences.prompts),
        "default_prompt_name": sentences.prompt,
        "similarity_fn_name": sentences.similarity,
        **more,
    }
    write(SETTINGS, about)
    write(LENGTH, {"max_seq_length": max_length, "do_lower_case": sentences.lowercase})
    write_plain(folder / "README.md", iter([card.encode()]))


def _flags(pooling: str) -> dict[str, bool]:
    return {name: mode == pooling for name, mode in _FLAGS.items()}


def card(sentences: Sentences, *, name: str, base: str | None, size: int, max_length: int, method: str) -> str:
    """The README of a folder, with the header that model hubs read."""
    tags = "".join(f"- {tag}\n" for tag in ("sentence-transformers", "sentence-similarity", "feature-extraction"))
    cut = f", usable cut to {', '.join(map(str, sentences.dimensions))}" if sentences.dimensions else ""
    prompts = "".join(f"* in front of a {kind}: `{text}`\n" for kind, text in sentences.prompts.items() if text)
    return (
        f"---\nlibrary_name: sentence-transformers\npipeline_tag: sentence-similarity\ntags:\n{tags}---\n\n"
        f"# {name}\n\n"
        f"Turns a text of up to {max_length} tokens into a vector of {size} numbers{cut}. "
        f"Pooling: {sentences.pooling}; vectors are compared by {sentences.similarity} similarity.\n{prompts}\n"
        f"Trained by Trivium with the method `{method}`"
        + (f", from `{base}`" if base else "")
        + ".\n\n```python\nimport trivium as tv\n\n"
        'vectors = tv.load("FOLDER").embed(["a text", "another"])\n```\n\n'
        "```python\nfrom sentence_transformers import SentenceTransformer\n\n"
        'vectors = SentenceTransformer("FOLDER").encode(["a text", "another"])\n```\n'
    )


# Reading


def read_sentences(folder: Path | str) -> Sentences | None:
    """What a model folder says about vectors; None if nothing. ModelError where it is malformed or not supported."""
    path = Path(folder)
    if not (path / MODULES).is_file():
        return None
    listed = _read(path / MODULES, list)
    if not all(isinstance(part, dict) and isinstance(part.get("type"), str) for part in listed):
        raise ModelError("the modules are not named", where=path / MODULES, value=listed)
    kinds = [(part["type"].rpartition(".")[2], str(part.get("path", ""))) for part in listed]
    if [kind for kind, _ in kinds[:2]] != ["Transformer", "Pooling"] or kinds[0][1]:
        raise ModelError(
            "only folders that hold a transformer, with pooling behind it, are loaded",
            where=path / MODULES,
            value=", ".join(f"{kind} in {name or 'the folder itself'}" for kind, name in kinds),
        )
    dense: list[Dense] = []
    normalize = False
    for kind, name in kinds[2:]:
        if kind == "Normalize":
            normalize = True
        elif kind == "Dense" and not normalize:
            dense.append(_dense(inside(path, name)))
        elif kind != "Dropout":
            raise ModelError(
                "this part of a model of sentence-transformers is not supported", where=path / MODULES, value=kind
            )
    settings = _optional(path / SETTINGS)
    prompts = {str(name): str(text) for name, text in (settings.get("prompts") or {}).items() if text}
    pooling = _pooling(inside(path, kinds[1][1]) / "config.json", prompts=bool(prompts))
    found = settings.get("similarity_fn_name") or "cosine"
    if found not in _SIMILARITIES:
        raise ModelError("unsupported similarity", where=path / SETTINGS, value=found, fix="cosine or dot")
    default = settings.get("default_prompt_name")
    cuts = settings.get("matryoshka_dimensions") or ()
    return Sentences(
        pooling=pooling,
        dense=dense,
        normalize=normalize,
        prompts=prompts,
        prompt=default if default in prompts else None,
        similarity=found,
        dimensions=tuple(int(size) for size in cuts),
        max_length=_max_length(path),
        lowercase=bool(_optional(path / LENGTH).get("do_lower_case")),
    )


def _read(path: Path, kind: type[Any]) -> Any:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError("the file is not readable JSON", where=path, value=str(error)) from None
    if not isinstance(content, kind):
        raise ModelError("the file holds something else than it should", where=path, value=content)
    return content


def _optional(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = _read(path, dict) if path.is_file() else {}
    return content


def _max_length(path: Path) -> int | None:
    """The longest text in tokens; newer versions leave it to the tokenizer, where huge numbers stand for no limit."""
    found = _optional(path / LENGTH).get("max_seq_length")
    found = found or _optional(path / "tokenizer_config.json").get("model_max_length")
    return int(found) if isinstance(found, int | float) and 0 < found < 1 << 30 else None


def _pooling(path: Path, *, prompts: bool) -> str:
    settings = _read(path, dict)
    mode = settings.get("pooling_mode")
    modes = [mode] if isinstance(mode, str) else mode
    if not modes:
        modes = [name for flag, name in _FLAGS.items() if settings.get(flag)] or ["mean"]
    ours = {theirs: name for name, theirs in _POOLINGS.items()}
    if len(modes) != 1 or modes[0] not in ours:
        raise ModelError(
            "unsupported pooling", where=path, value=", ".join(map(str, modes)), fix=f"one of {', '.join(ours)}"
        )
    if prompts and settings.get("include_prompt") is False:
        raise ModelError("vectors without the tokens of the prompt are not supported", where=f"{path}: include_prompt")
    return ours[modes[0]]


def _dense(folder: Path) -> Dense:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    settings = _read(folder / "config.json", dict)
    names = {theirs: ours for ours, theirs in _ACTIVATIONS.items()}
    activation = settings.get("activation_function", _ACTIVATIONS["tanh"])
    if activation not in names or settings.get("use_residual"):
        value = "use_residual" if activation in names else activation
        raise ModelError("unsupported dense layer", where=folder / "config.json", value=value)
    if not (folder / _WEIGHTS).is_file():
        raise ModelError("the dense layer has no weights as safetensors", where=folder, fix=f"put {_WEIGHTS} there")
    try:
        tensors = load_file(folder / _WEIGHTS)
        weight = tensors["linear.weight"]
    except (SafetensorError, OSError, KeyError) as error:
        raise ModelError("the weights of the dense layer are damaged", where=folder, value=str(error)) from None
    return Dense(weight, tensors.get("linear.bias"), names[activation])
