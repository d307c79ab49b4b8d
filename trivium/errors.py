"""The errors a user can meet: at most five lines that say what, where, which value, and the fix.

Everything wrong with the *input* (a recipe, a data file, a model folder, a checkpoint) is a `TriviumError`.
Anything else that escapes is a defect of Trivium itself and is reported as such, with exit code 1.
"""

from __future__ import annotations

from pathlib import Path

EXIT_OK = 0
EXIT_DEFECT = 1
EXIT_INPUT = 2
EXIT_DAMAGED = 3
EXIT_DIVERGED = 4
EXIT_INTERRUPTED = 5

_UNSET = object()
_VALUE_WIDTH = 120


class TriviumError(ValueError):
    """Wrong input, said in at most five lines.

    problem: one sentence, without a full stop at the end.
    where:   file, `file:line`, or the dotted key of the configuration.
    value:   the offending value; shown shortened to one line.
    fix:     one sentence that says what to do.
    """

    exit_code = EXIT_INPUT

    def __init__(
        self,
        problem: str,
        *,
        where: str | Path | None = None,
        value: object = _UNSET,
        fix: str | None = None,
    ) -> None:
        self.problem = problem
        self.where = None if where is None else str(where)
        self.value = value
        self.fix = fix
        super().__init__(self.render())

    @property
    def has_value(self) -> bool:
        """Whether there is an offending value to show."""
        return self.value is not _UNSET

    def render(self) -> str:
        """The message: `problem`, then `where`, `value` and `fix`, one line each."""
        lines = [_one_line(self.problem, 400)]
        if self.where is not None:
            lines.append(f"  where: {_one_line(self.where, 300)}")
        if self.value is not _UNSET:
            shown = self.value if isinstance(self.value, str) else repr(self.value)
            lines.append(f"  value: {_one_line(shown, _VALUE_WIDTH)}")
        if self.fix is not None:
            lines.append(f"  fix:   {_one_line(self.fix, 400)}")
        return "\n".join(lines)


class ConfigError(TriviumError):
    """A recipe, an override or a combination of settings that cannot be used."""


class DataError(TriviumError):
    """A data file or a row that cannot be read or must not be trained on."""


class TokenizerError(TriviumError):
    """A tokenizer folder, chat template or text that cannot be used."""


class ModelError(TriviumError):
    """A model folder that cannot be loaded or does not fit what is asked of it."""


class ArtifactError(TriviumError):
    """An artifact that cannot be written (disk full, permission) or has the wrong kind."""


class ArtifactDamaged(ArtifactError):
    """An artifact whose bytes are not those that were written."""

    exit_code = EXIT_DAMAGED


class TrainingDiverged(TriviumError):
    """Too many non-finite steps, or a loss that means nothing is learnt."""

    exit_code = EXIT_DIVERGED


class Interrupted(TriviumError):
    """SIGTERM or Ctrl-C: everything is saved, and the same command goes on."""

    exit_code = EXIT_INTERRUPTED


def _one_line(text: str, width: int) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= width else flat[: width - 1] + "…"
