"""One sentence through one update of a method: what the model reads, what it must predict, how sure it is before and
after, and what that costs.

Everything is what training does: the same reading of data, the same corruption, the same loss, one real update of the
engine (which is thrown away).
"""

from __future__ import annotations

import html
import json
import math
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from trivium.config import resolve
from trivium.core.callbacks import Callback
from trivium.core.method import Update
from trivium.data.batch import IGNORE, Batch
from trivium.data.inspect import plain_page, token_text, visible
from trivium.drivers.session import Session, open_session
from trivium.errors import ConfigError
from trivium.recipe import Recipe

if TYPE_CHECKING:
    from rich.console import Console
    from torch import Tensor

    from trivium.core.engine import StepResult
    from trivium.core.method import RoleModel
    from trivium.core.trainer import Trainer

GUESSES = 3
GENTLE = 0.1
"""Share of the recipe's learning rate: the first update of a fresh optimiser moves every weight by the whole rate."""


@dataclass(frozen=True)
class ExplainedToken:
    """One position: its token and, where it must predict one, the target with the numbers around it.

    probability, after: what the model gives the target before and after the update. loss = -log(probability).
    guesses: the likeliest tokens before the update, with their probabilities.
    """

    position: int
    token: str
    target: str | None = None
    probability: float | None = None
    loss: float | None = None
    after: float | None = None
    guesses: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True)
class ExplainedSequence:
    """A sequence of the model and, for an encoder-decoder, the source it answers."""

    source: list[str] | None
    tokens: list[ExplainedToken]


@dataclass(frozen=True)
class Explanation:
    """One sentence, one update.

    terms: every part of the loss before the update; loss_after: the whole loss of the same tokens after it.
    """

    method: str
    text: str
    purpose: str
    sequences: list[ExplainedSequence]
    terms: dict[str, float]
    loss: float
    loss_after: float
    learning_rate: float
    gradient_norm: float

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


def explain(recipe: Recipe, text: str, *, model: Path | None = None) -> Explanation:
    """One update of the method of `recipe` on `text`: a sentence, or a row of its data as a JSON object.

    model: the folder of the model to look at; default: the recipe's.

    Raises ConfigError for methods that predict no tokens, and what opening the run raises.
    """
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "sentence.jsonl"
        row = text if text.lstrip().startswith("{") else json.dumps({"text": text})
        data.write_text(row.replace("\n", " ") + "\n", encoding="utf-8")
        tree = recipe.model_dump()
        tree["runs"], tree["engine"]["name"] = folder, "single"
        tree["data"].update(train=[{"path": str(data)}], validation=[], packing="none", prefetch=0, max_untrained=1.0)
        tree["train"].update(
            steps=1, epochs=None, tokens=None, batch_size=1, micro_batch_size=None, warmup_steps=0, schedule="constant",
            compile="off",
        )  # fmt: skip
        tree["train"]["lr"] *= GENTLE
        if model is not None:
            tree["tokenizer"] = tree["tokenizer"] or tree["model"]["path"]
            tree["model"] = {"path": str(model), "dtype": tree["model"]["dtype"]}
        session = open_session(resolve(tree))
        try:
            return _one_update(session, text)
        finally:
            session.close()


class _Watch(Callback):
    """Keeps the result of the update."""

    result: StepResult

    def update_end(self, trainer: Trainer, update: Update, result: StepResult, tokens: int) -> None:
        self.result = result


def _one_update(session: Session, text: str) -> Explanation:
    method, trainer = session.trainer.method, session.trainer
    if method.data_kind not in ("documents", "instructions", "preferences", "pairs") or method.backward is not None:
        raise ConfigError(
            "only methods that predict the tokens of their data, in one pass, can be explained token by token",
            where="method.name",
            value=session.recipe.method["name"],
            fix="use a recipe of a method such as clm, mlm, denoise, seq2seq or sft",
        )
    watch = _Watch()
    trainer.callbacks = [watch]
    batches = session.feed.batches()
    reader = _reader(session)
    before = [_logprobs(reader, batch) for batch in batches]
    trainer.advance(Update(batches))
    after = [_logprobs(reader, batch) for batch in batches]
    sequences = [
        sequence
        for batch, first, second in zip(batches, before, after, strict=True)
        for sequence in _sequences(session, batch, first, second)
    ]
    return Explanation(
        method=session.recipe.method["name"],
        text=text,
        purpose=(method.__doc__ or "").strip().splitlines()[0],
        sequences=sequences,
        terms=watch.result.terms,
        loss=watch.result.loss,
        loss_after=trainer.engine.evaluate(batches)["loss"],
        learning_rate=trainer.lr,
        gradient_norm=watch.result.grad_norm,
    )


def _reader(session: Session) -> RoleModel:
    """The role that predicts tokens: the policy, or the generator beside it."""
    roles = session.trainer.context.roles
    for role in (roles["policy"], *roles.values()):
        if role.trainable and role.module.config.head in ("language", "masked"):
            return role
    raise ConfigError("no model of this method predicts tokens", where="method.name", value=session.recipe.method)


def _logprobs(role: RoleModel, batch: Batch) -> Tensor:
    """[T, V] log-probabilities, with dropout off."""
    was_training = role.module.training
    role.module.eval()
    try:
        with torch.no_grad():
            logits: Tensor = role(batch, lambda hidden, head: head(hidden))
    finally:
        role.module.train(was_training)
    return logits.float().log_softmax(-1)


def _sequences(session: Session, batch: Batch, before: Tensor, after: Tensor) -> list[ExplainedSequence]:
    def text(token: int) -> str:
        return token_text(session.tokenizer, token)

    def explained(at: int, start: int) -> ExplainedToken:
        token, target = text(int(batch.input_ids[at])), int(batch.targets[at])
        if target == IGNORE:
            return ExplainedToken(at - start, token)
        chance = float(before[at, target])
        best = before[at].topk(min(GUESSES, before.shape[1]))
        guesses = zip(best.indices.tolist(), best.values.exp().tolist(), strict=True)
        return ExplainedToken(
            at - start,
            token,
            target=text(target),
            probability=math.exp(chance),
            loss=-chance,
            after=math.exp(float(after[at, target])),
            guesses=tuple((text(guess), probability) for guess, probability in guesses),
        )

    sources = [] if batch.source is None else list(batch.source.layout.spans())
    found = []
    for number, (start, end) in enumerate(batch.layout.spans()):
        source = None
        if batch.source is not None:
            source = [text(token) for token in batch.source.ids[slice(*sources[number])].tolist()]
        found.append(ExplainedSequence(source, [explained(at, start) for at in range(start, end)]))
    return found


# Showing it

_COLUMNS = ("reads", "must say", "chance", "loss", "after", "likeliest before")


def _cells(token: ExplainedToken) -> list[str]:
    if token.target is None or token.probability is None or token.loss is None or token.after is None:
        return [visible(token.token), "", "", "", "", ""]
    guesses = ", ".join(f"{visible(text)} {chance:.3f}" for text, chance in token.guesses)
    numbers = [f"{token.probability:.4f}", f"{token.loss:.3f}", f"{token.after:.4f}"]
    return [visible(token.token), visible(token.target), *numbers, guesses]


def _summary(found: Explanation) -> list[str]:
    terms = ", ".join(f"{name} {value:.4f}" for name, value in found.terms.items())
    return [
        f"loss {found.loss:.4f} ({terms})",
        f"one update with learning rate {found.learning_rate:g}, gradient norm {found.gradient_norm:.3f}: "
        f"loss {found.loss_after:.4f}",
    ]


def print_explanation(found: Explanation, console: Console) -> None:
    """A table for each sequence, then the loss and the update; what is not trained is dimmed."""
    from rich.table import Table
    from rich.text import Text

    console.print(Text(f"{found.method}: {found.purpose}", style="bold"))
    for sequence in found.sequences:
        if sequence.source is not None:
            console.print(Text("the encoder reads: " + " | ".join(map(visible, sequence.source))))
        table = Table(header_style="bold")
        for name in _COLUMNS:
            table.add_column(name, justify="right" if name in _COLUMNS[2:5] else "left")
        for token in sequence.tokens:
            table.add_row(*map(Text, _cells(token)), style=None if token.target is not None else "dim")
        console.print(table)
    for line in _summary(found):
        console.print(Text(line))


_STYLE = """
:root { color-scheme: light dark; }
body { font: 15px/1.6 system-ui, sans-serif; margin: 2rem auto; max-width: 60rem; padding: 0 1rem; }
h1 { font-size: 1.3rem; } table { border-collapse: collapse; width: 100%; margin: 1rem 0; }
th, td { text-align: left; padding: 0.2rem 0.6rem; border-bottom: 1px solid #8884; }
td:nth-child(-n+2), td:last-child { font-family: ui-monospace, monospace; white-space: pre-wrap; }
td:nth-child(n+3):nth-child(-n+5), th:nth-child(n+3):nth-child(-n+5) { text-align: right; }
tr.silent { color: #888; } .source { font-family: ui-monospace, monospace; }
meter { width: 5rem; vertical-align: middle; margin-left: 0.4rem; }
"""


def explanation_as_html(found: Explanation) -> str:
    """A page of its own: no scripts, nothing loaded; all text is escaped."""
    parts = []
    for sequence in found.sequences:
        if sequence.source is not None:
            tokens = " | ".join(html.escape(visible(token)) for token in sequence.source)
            parts.append(f"<p>The encoder reads: <span class=source>{tokens}</span></p>")
        head = "".join(f"<th>{name}</th>" for name in _COLUMNS)
        parts.append(f"<table><tr>{head}</tr>{''.join(map(_html_row, sequence.tokens))}</table>")
    parts += [f"<p>{html.escape(line)}</p>" for line in _summary(found)]
    body = "\n".join([f"<p>{html.escape(found.purpose)}</p>", *parts])
    return plain_page(f"{found.method}: {visible(found.text)}", body, style=_STYLE)


def _html_row(token: ExplainedToken) -> str:
    cells = [html.escape(cell) for cell in _cells(token)]
    if token.probability is None or token.after is None:
        return f"<tr class=silent>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"
    for column, value in ((2, token.probability), (4, token.after)):
        cells[column] += f'<meter value="{value:.4f}"></meter>'
    return f"<tr>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"
