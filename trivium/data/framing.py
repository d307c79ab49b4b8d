"""How a text, or two, become the tokens that an encoder was trained on: `[CLS] text [SEP]`, `[CLS] a [SEP] b [SEP]`.

The frame is the tokenizer's own (`post_processor` of tokenizer.json). Where it closes a text with no special token,
as those of decoders do, the end token follows each text, so that the last hidden state has seen all of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from trivium.tokenizers.files import TokenizerFiles
    from trivium.tokenizers.tokenizer import Tokenizer

Piece = tuple[int | Literal["A", "B"], int]
"""(token, or the place of a text; number of the segment)."""


@dataclass(frozen=True)
class Framed:
    """ids with special tokens; `second`: where the second segment begins, len(ids) if there is none; `starts`: where
    each text begins."""

    ids: list[int]
    second: int
    starts: tuple[int, ...]


@dataclass(frozen=True)
class Framing:
    """The special tokens around one text and around two.

    closing: the frame ends in a token of its own kind ([SEP]); the first token then stands for the whole.
    """

    single: tuple[Piece, ...]
    pair: tuple[Piece, ...]
    closing: bool

    def room(self, length: int, *, pair: bool) -> int:
        """How many tokens of text fit into a sequence of `length` tokens."""
        return length - sum(isinstance(token, int) for token, _ in (self.pair if pair else self.single))

    def frame(self, first: Sequence[int], second: Sequence[int] | None = None) -> Framed:
        """The sequence of one text, or of two."""
        ids: list[int] = []
        segments: list[int] = []
        starts: list[int] = []
        for token, segment in self.single if second is None else self.pair:
            if isinstance(token, int):
                inside: Sequence[int] = [token]
            else:
                inside = first if token == "A" else second or []
                starts.append(len(ids))
            ids += inside
            segments += [segment] * len(inside)
        return Framed(ids, segments.index(1) if 1 in segments else len(ids), tuple(starts))

    def empty_answer(self, length: int) -> int:
        """The position that stands for "no answer" in a sequence: the first token, or the last where order counts."""
        return 0 if self.closing else length - 1


def framing_of(tokenizer: Tokenizer) -> Framing:
    """The frame of a tokenizer; see the file docstring."""
    found = next(_processors(tokenizer.files.definition.get("post_processor")), None)
    if found is not None and isinstance(found[0][-1][0], int):
        return Framing(tuple(found[0]), tuple(found[1]), closing=True)
    start, end = (tokenizer.vocabulary.get(tokenizer.role_tokens.get(role, "")) for role in ("cls_token", "sep_token"))
    if found is None and start is not None and end is not None:
        single: list[Piece] = [(start, 0), ("A", 0), (end, 0)]
        return Framing(tuple(single), (*single, ("B", 1), (end, 1)), closing=True)
    opening: list[Piece] = [(tokenizer.bos_id, 0)] if tokenizer.adds_bos and tokenizer.bos_id is not None else []
    single = [*opening, ("A", 0), (tokenizer.eos_id, 0)]
    return Framing(tuple(single), (*single, ("B", 1), (tokenizer.eos_id, 1)), closing=False)


def framed_files(tokenizer: Tokenizer) -> TokenizerFiles:
    """The files of a tokenizer that frames by itself, in other programs too, and names a token that pads.

    Tokenizers of language models frame nothing, since a text goes on; a model of whole texts is trained on frames.
    """
    files, framing = tokenizer.files, framing_of(tokenizer)
    config = dict(files.config)
    config.setdefault("pad_token", tokenizer.eos_token)
    found = files.definition.get("post_processor")
    if next(_processors(found), None) == (list(framing.single), list(framing.pair)):
        return replace(files, config=config)
    ids = sorted({token for token, _ in framing.pair if isinstance(token, int)})
    names = {token: tokenizer.token(token) for token in ids}
    template = {
        "type": "TemplateProcessing",
        "single": _pieces(framing.single, names),
        "pair": _pieces(framing.pair, names),
        "special_tokens": {name: {"id": name, "ids": [token], "tokens": [name]} for token, name in names.items()},
    }
    listed = found.get("processors", [found]) if isinstance(found, Mapping) else []
    kept = [
        one for one in listed if one.get("type") not in ("TemplateProcessing", "BertProcessing", "RobertaProcessing")
    ]
    processor = {"type": "Sequence", "processors": [*kept, template]} if kept else template
    return replace(files, config=config, definition={**files.definition, "post_processor": processor})


def _pieces(frame: Sequence[Piece], names: Mapping[int, str]) -> list[dict[str, Any]]:
    return [
        {"SpecialToken": {"id": names[token], "type_id": segment}}
        if isinstance(token, int)
        else {"Sequence": {"id": token, "type_id": segment}}
        for token, segment in frame
    ]


def shares(lengths: Sequence[int], room: int) -> list[int]:
    """How much of each text stays so that all fit: short ones stay whole, the longest is cut first."""
    keep = list(lengths)
    while sum(keep) > room:
        longest = max(range(len(keep)), key=keep.__getitem__)
        others = sorted(keep)[-2] if len(keep) > 1 else 0
        excess = sum(keep) - room
        keep[longest] -= min(excess, max(1, keep[longest] - others))
    return keep


def _processors(processor: Any) -> Iterator[tuple[list[Piece], list[Piece]]]:
    """(frame of one text, frame of two) of each processor of tokenizer.json that adds special tokens."""
    if not isinstance(processor, Mapping):
        return
    kind = processor.get("type")
    if kind == "Sequence":
        for inner in processor.get("processors", ()):
            yield from _processors(inner)
    elif kind == "TemplateProcessing":
        ids = {name: token["ids"] for name, token in processor.get("special_tokens", {}).items()}
        yield _template(processor["single"], ids), _template(processor["pair"], ids)
    elif kind in ("BertProcessing", "RobertaProcessing"):
        start, end = processor["cls"][1], processor["sep"][1]
        single: list[Piece] = [(start, 0), ("A", 0), (end, 0)]
        if kind == "BertProcessing":
            yield single, [*single, ("B", 1), (end, 1)]
        else:
            yield single, [*single, (end, 0), ("B", 0), (end, 0)]


def _template(pieces: Sequence[Mapping[str, Any]], ids: Mapping[str, Sequence[int]]) -> list[Piece]:
    found: list[Piece] = []
    for piece in pieces:
        if "Sequence" in piece:
            found.append((piece["Sequence"]["id"], piece["Sequence"]["type_id"]))
        else:
            special = piece["SpecialToken"]
            found += [(token, special["type_id"]) for token in ids[special["id"]]]
    return found
