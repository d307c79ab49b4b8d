"""`trivium tokenizer extend`: a larger vocabulary, and the model with rows for the new tokens.

A new row starts as the mean of the rows of the tokens that stood for the same text until now (Gee et al. 2022, "Fast
Vocabulary Transfer for Language Model Compression"), in the embedding and in the head. So the model knows roughly what
the token means, and finds it about as likely as its pieces.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from trivium.artifacts.record import parent_of
from trivium.artifacts.writer import check_target, write_artifact
from trivium.data.intake import Intake
from trivium.data.reading import read_documents
from trivium.errors import ModelError
from trivium.lazy import torch
from trivium.recipe import Source
from trivium.tokenizers.extend import extend_tokenizer
from trivium.tokenizers.tokenizer import Tokenizer

if TYPE_CHECKING:
    from torch import Tensor

Start = Literal["mean", "random", "zeros"]


def extend_folder(
    folder: Path,
    output: Path,
    *,
    tokens: Sequence[str] = (),
    special: Sequence[str] = (),
    whole_words: bool = False,
    sources: Sequence[str] = (),
    count: int = 256,
    min_count: int = 10,
    embeddings: Start = "mean",
    seed: int = 0,
    replace: bool = False,
) -> dict[str, Any]:
    """Write `output`, an artifact of the same kind as `folder` (a tokenizer or a model), and say what was added.

    tokens, special, whole_words, count, min_count: as in `extend_tokenizer`; sources are the documents to learn from.
    """
    from trivium.models.adapter_folder import is_adapter
    from trivium.models.folder import CONFIG, load_model, save_model

    if is_adapter(folder):
        raise ModelError(
            "an adapter has no vocabulary of its own, and belongs to a base with the vocabulary it has",
            where=folder,
            fix="extend the base before training, or merge first: trivium export FOLDER --merge --output MODEL",
        )
    kind = "model" if (folder / CONFIG).is_file() else "tokenizer"
    check_target(output, kind=kind, replace=replace)
    old = Tokenizer.load(folder)
    extension = extend_tokenizer(
        old,
        tokens=tokens,
        special=special,
        whole_words=whole_words,
        texts=_texts(sources),
        count=count if sources else 0,
        min_count=min_count,
    )
    new = extension.tokenizer
    settings = {"tokens": list(tokens), "special": list(special), "sources": list(sources), "count": count}
    settings |= {"min_count": min_count, "whole_words": whole_words, "embeddings": embeddings}
    parents = [parent_of(folder, role=kind)]
    parents += [parent_of(Path(name), role="documents") for name in sources if Path(name).exists()]
    result = {"folder": str(output), "kind": kind, "vocab_size": new.vocab_size}
    result["added"] = [new.token(number) for number in sorted(extension.made_of)]
    if kind == "tokenizer":
        with write_artifact(output, kind=kind, parents=parents, config=settings, replace=replace) as place:
            new.save(place)
        return result
    model = load_model(folder)
    size = max(model.config.vocab_size, new.vocab_size)
    config = model.config.model_copy(update={"vocab_size": size})
    state = grown(model.state_dict(), model.config.vocab_size, size, extension.made_of, start=embeddings, seed=seed)
    with write_artifact(output, kind=kind, parents=parents, config=settings, seed=seed, replace=replace) as place:
        save_model(place, config, state)
        new.save(place)
    return {**result, "rows": size}


def grown(
    state: Mapping[str, Tensor],
    old: int,
    new: int,
    made_of: Mapping[int, Sequence[int]],
    *,
    start: Start,
    seed: int = 0,
) -> dict[str, Tensor]:
    """The parameters with `new` rows in the embedding and in the head, whose first `old` rows are the same.

    made_of: for each new token the old ones; rows that belong to no token yet are used, and set, too.
    """
    found = dict(state)
    for name, tensor in state.items():
        if tensor.shape[:1] != (old,) or not name.startswith(("embed.", "head.")):
            continue
        rows = torch.cat([tensor, tensor.new_zeros(new - old, *tensor.shape[1:])])
        for place, numbers in made_of.items():
            rows[place] = _row(tensor, numbers, start, seed=seed, place=place)
        found[name] = rows
    return found


def _row(tensor: Tensor, numbers: Sequence[int], start: Start, *, seed: int, place: int) -> Tensor:
    """One new row; of a bias one number."""
    wide = tensor.detach().float()
    if start == "zeros":
        return torch.zeros_like(tensor[0])
    if start == "mean" and len(numbers):
        return wide[list(numbers)].mean(0).to(tensor.dtype)
    # As the old rows are spread around their mean; also where nothing stood for the text.
    random = torch.Generator().manual_seed(seed * 1_000_003 + place)
    noise = torch.randn(wide.shape[1:], generator=random)
    return (wide.mean(0) + wide.std(0) * noise).to(tensor.dtype)


def _texts(sources: Sequence[str]) -> Iterator[str]:
    intake = Intake()
    for name in sources:
        for document in read_documents(Source.model_validate({"path": name}), intake):
            yield document.text
