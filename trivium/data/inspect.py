"""Samples as the model sees them: each token, what it must predict, whether that is trained, and its loss.

`inspect_rows` gives the facts; `print_rows` shows them on a terminal as tables and `print_text` as running text,
`rows_as_json` as plain values, and `rows_as_html` as one page without anything from outside, in which the trained
tokens are coloured by their loss.
"""

from __future__ import annotations

import html
import itertools
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from trivium.data.samples import TokenSequence
from trivium.lazy import torch

if TYPE_CHECKING:
    from rich.console import Console

    from trivium.data.dataset import Dataset
    from trivium.tokenizers.tokenizer import Tokenizer


@dataclass(frozen=True)
class InspectedToken:
    """One position of a sequence.

    id, token:   its number and its text.
    target:      text of the next token, which this position must predict; None at the last one.
    trained:     whether that prediction is part of the loss.
    weight:      how much it counts there; 0 where it is not trained.
    probability: what the model gives the target, and loss = -log of it; None without a model.
    """

    position: int
    id: int
    token: str
    target: str | None
    trained: bool
    weight: float
    probability: float | None = None
    loss: float | None = None


@dataclass(frozen=True)
class InspectedSequence:
    """A sequence of a sample; preferences have two, the chosen one first."""

    sample: str
    sequence: int
    tokens: list[InspectedToken]

    @property
    def trained(self) -> int:
        """How many positions are trained."""
        return sum(token.trained for token in self.tokens)

    @property
    def loss(self) -> float | None:
        """Mean loss of the trained positions, in nats; None without a model."""
        losses = [token.loss for token in self.tokens if token.trained and token.loss is not None]
        return sum(losses) / len(losses) if losses else None

    @property
    def title(self) -> str:
        """The sample, its length and what is trained of it."""
        loss = "" if self.loss is None else f", mean loss {self.loss:.3f}"
        number = f", sequence {self.sequence + 1}" if self.sequence else ""
        return f"{self.sample}{number}: {len(self.tokens)} tokens, {self.trained} of them with a trained target{loss}"


def inspect_rows(
    dataset: Dataset, tokenizer: Tokenizer, *, model: Any = None, count: int = 4, first: int = 0
) -> list[InspectedSequence]:
    """The sequences of `count` samples from number `first` on.

    model: a language model, or its module: token ids [1, L] to logits [1, L, V].
    """
    found = []
    for number in range(first, min(first + count, len(dataset))):
        sample = dataset.sample(number)
        for place, sequence in enumerate(sample.sequences):
            losses = None if model is None else _losses(getattr(model, "module", model), sequence.ids)
            found.append(InspectedSequence(sample.id, place, _tokens(sequence, tokenizer, losses)))
    return found


def print_rows(rows: Sequence[InspectedSequence], console: Console) -> None:
    """One table for each sequence; what is not trained is dimmed."""
    from rich.table import Table
    from rich.text import Text

    for row in rows:
        with_loss = row.loss is not None
        weighted = any(token.weight not in (0, 1) for token in row.tokens)
        console.print(Text(row.title, style="bold"))
        table = Table(header_style="bold")
        named = (*(("weight",) if weighted else ()), *(("probability", "loss") if with_loss else ()))
        for name in ("position", "token", "target", "trained", *named):
            table.add_column(name, justify="left" if name in ("token", "target", "trained") else "right")
        for token in row.tokens:
            target = "" if token.target is None else visible(token.target)
            cells = [str(token.position), visible(token.token), target, "yes" if token.trained else "no"]
            if weighted:
                cells.append(f"{token.weight:g}")
            if token.probability is not None and token.loss is not None:
                cells += [f"{token.probability:.4f}", f"{token.loss:.3f}"]
            table.add_row(*map(Text, cells), style=None if token.trained else "dim")
        console.print(table)


def print_text(rows: Sequence[InspectedSequence], console: Console, *, tokenizer: Tokenizer) -> None:
    """Each sequence as text: what is trained is coloured, or stands in brackets where there are no colours."""
    from rich.text import Text

    colours = console.is_terminal and not console.no_color
    for row in rows:
        console.print(Text(row.title, style="bold"))
        shown = Text()
        weights = [0.0, *(token.weight for token in row.tokens)]  # each token's own as a target
        for weight, run in itertools.groupby(zip(row.tokens, weights, strict=False), key=lambda pair: pair[1]):
            lines = tokenizer.decode([token.id for token, _ in run], skip_special=False).split("\n")
            text = "\n".join(map(visible, lines))
            if colours:
                shown.append(text, style="black on green" if weight >= 1 else "black on yellow" if weight else "dim")
            else:
                times = "" if weight == 1 else f" x {weight:g}"
                shown.append(f"⟦{text}⟧{times}" if weight else text)
        console.print(shown, soft_wrap=True)
    key = "green: trained; yellow: trained with a smaller weight" if colours else "⟦in brackets⟧: trained"
    console.print(Text(f"({key})", style="dim"))


def rows_as_json(rows: Sequence[InspectedSequence]) -> list[dict[str, Any]]:
    """Plain JSON values: every field, and the counts."""
    return [{**asdict(row), "trained": row.trained, "loss": row.loss} for row in rows]


def rows_as_html(rows: Sequence[InspectedSequence], *, title: str = "Rows as the model sees them") -> str:
    """A page of its own: no scripts, nothing loaded; all text is escaped."""
    body = "\n".join(
        f"<section><h2>{html.escape(row.title)}</h2><p class=row>{_spans(row)}</p></section>" for row in rows
    )
    with_loss = any(row.loss is not None for row in rows)
    scale = "green: expected by the model, red: a surprise" if with_loss else "coloured: trained"
    lead = f"Grey tokens are read and not trained; {scale}. Point at a token for its numbers."
    return plain_page(title, f"<p>{lead}</p>\n{body}", style=_STYLE)


def plain_page(title: str, body: str, *, style: str) -> str:
    """A page with this heading that may load nothing and run nothing; `body` is HTML."""
    shown = html.escape(title)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{shown}</title>\n'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n"
        f'<meta name="viewport" content="width=device-width">\n<style>{style}</style></head>\n'
        f"<body><h1>{shown}</h1>\n{body}\n</body></html>\n"
    )


def visible(text: str) -> str:
    """Text on one line: line breaks, control characters and lone bytes are spelled out; a space stays a space."""
    return "".join(character if character.isprintable() else repr(character)[1:-1] for character in text)


_STYLE = """
:root { color-scheme: light dark; }
body { font: 15px/1.6 system-ui, sans-serif; margin: 2rem auto; max-width: 60rem; padding: 0 1rem; }
h1 { font-size: 1.3rem; } h2 { font-size: 0.95rem; font-weight: 600; margin: 1.5rem 0 0.3rem; }
.row { font: 14px/1.9 ui-monospace, monospace; margin: 0; overflow-wrap: anywhere; white-space: pre-wrap; }
.row span { border-bottom: 1px solid #8885; color: #888; padding: 0.1rem 0; }
.row span.trained { background: hsl(var(--hue, 215) 75% 82%); box-shadow: inset -1px 0 #0003; color: #111; }
.row span.light { opacity: 0.6; }
"""


def _tokens(sequence: TokenSequence, tokenizer: Tokenizer, losses: list[float] | None) -> list[InspectedToken]:
    texts = [token_text(tokenizer, token) for token in sequence.ids]
    tokens = []
    for place, text in enumerate(texts):
        last = place + 1 == len(texts)
        trained = not last and bool(sequence.trained[place + 1])
        loss = None if losses is None or last else losses[place]
        tokens.append(
            InspectedToken(
                position=place,
                id=sequence.ids[place],
                token=text,
                target=None if last else texts[place + 1],
                trained=trained,
                weight=float(trained if not trained or sequence.weights is None else sequence.weights[place + 1]),
                probability=None if loss is None else math.exp(-loss),
                loss=loss,
            )
        )
    return tokens


def token_text(tokenizer: Tokenizer, token: int) -> str:
    """The text of one token; bytes that are only part of a character are spelled out."""
    if tokenizer.byte_level and 0 <= token < tokenizer.vocab_size:
        return tokenizer.token_bytes[token].decode("utf-8", "backslashreplace")
    return tokenizer.decode([token], skip_special=False)


def _losses(module: Any, ids: Sequence[int]) -> list[float]:
    """-log p of each token after the first; L - 1 numbers."""
    was_training = module.training
    device = next(module.parameters()).device
    whole = torch.tensor([list(ids)], device=device)
    try:
        with torch.no_grad():
            logits = module.eval()(whole[:, :-1]).float()
    finally:
        module.train(was_training)
    losses: list[float] = torch.nn.functional.cross_entropy(logits[0], whole[0, 1:], reduction="none").tolist()
    return losses


def _spans(row: InspectedSequence) -> str:
    """Each token coloured as a target: by the loss of the position before it."""
    parts = []
    before: InspectedToken | None = None
    for token in row.tokens:
        text = html.escape(visible(token.token))
        if token.token.endswith("\n"):
            text += "\n"
        title = f"{token.position}: {visible(token.token)!r}"
        if before is not None and before.weight not in (0, 1):
            title += f", weight {before.weight:g}"
        style = ""
        if before is not None and before.loss is not None and before.probability is not None:
            title += f", probability {before.probability:.4f}, loss {before.loss:.3f}"
            style = f' style="--hue:{round(130 * math.exp(-before.loss / 3))}"'
        kind = ""
        if before is not None and before.trained:
            kind = f" class=trained{style}" if before.weight >= 1 else f' class="trained light"{style}'
        parts.append(f'<span{kind} title="{html.escape(title)}">{text}</span>')
        before = token
    return "".join(parts)
