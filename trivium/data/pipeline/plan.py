"""The shape of a pipeline file, and its check: what `trivium data run` reads. Nothing here imports torch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from trivium.config import Chooser, ChosenComponent, StrictModel, read_tree
from trivium.errors import ConfigError
from trivium.recipe import Component, Sources

SHORTHAND = {"sources": "[]", "sources.*": "path", "steps.*": "name"}

_OF_TRAINING = ("weight", "tokens", "max_epochs")
"""Settings of a source that only a training recipe can use."""


class Pipeline(StrictModel):
    """Sources, the steps their documents pass in order, and where they go."""

    name: str = Field("pipeline", pattern=r"^[\w.-]+$")
    """Name of the pipeline, for people."""
    output: str
    """Folder to write: documents.train.jsonl and the other splits, report.json, steps/."""
    sources: Sources = Field(min_length=1)
    """What is read: a path or a list of sources."""
    steps: list[Component] = Field(default_factory=list)
    """Steps in order: names, or `{name: ..., <settings>}`."""
    seed: int = Field(0, ge=0)
    """Of everything that is drawn at random."""
    on_error: Literal["error", "quarantine"] = "quarantine"
    """A document that cannot be read or used is set aside and counted, or stops the run."""
    workers: int | None = Field(None, ge=1, le=4096)
    """Processes; default: all cores. The result does not depend on it."""
    engine: Literal["local", "ray"] = "local"
    """Processes of this machine, or tasks on a Ray cluster (extra `ray`). The result does not depend on it."""

    @model_validator(mode="after")
    def _whole_sources(self) -> Pipeline:
        for number, source in enumerate(self.sources):
            for name in sorted(source.model_fields_set.intersection(_OF_TRAINING)):
                raise ConfigError(
                    f"sources.{number}.{name} is for training; a pipeline reads each source once",
                    where=f"sources.{number}.{name}",
                    value=getattr(source, name),
                    fix="delete it here, and give it in the recipe that trains on the output",
                )
        return self


@dataclass(frozen=True)
class ResolvedPipeline:
    """A checked pipeline and its steps."""

    pipeline: Pipeline
    steps: tuple[ChosenComponent, ...]

    @property
    def output(self) -> Path:
        """The folder to write."""
        return Path(self.pipeline.output).expanduser()

    @cached_property
    def depends(self) -> dict[str, Any]:
        """All settings that the result depends on."""
        exclude: Any = {"output": True, "workers": True, "engine": True, "steps": True}
        exclude["sources"] = {"__all__": set(_OF_TRAINING)}
        plain = self.pipeline.model_dump(mode="json", exclude=exclude)
        return {**plain, "steps": [step.dump() for step in self.steps]}

    def key(self, *further: Any) -> str:
        """Says what a pass was made with; parts of a pass with another key are not used."""
        return hashlib.sha256(json.dumps([self.depends, *further]).encode()).hexdigest()


def resolve_pipeline(
    pipeline: str | Path | Mapping[str, Any] | Pipeline, overrides: Sequence[str] = ()
) -> ResolvedPipeline:
    """Read and check a pipeline: a YAML file, or the same tree in Python. ConfigError with file, line and the fix."""
    from trivium.problems import fields_below, raise_first

    plain = pipeline.model_dump(exclude_unset=True) if isinstance(pipeline, Pipeline) else pipeline
    tree = read_tree(plain, overrides, shorthand=SHORTHAND, what="pipeline")
    choose = Chooser(tree, dict(fields_below(Pipeline)))
    steps = choose.all("data/steps", "steps")
    checked = choose.rest(Pipeline)
    raise_first(choose.problems)
    assert isinstance(checked, Pipeline)
    return ResolvedPipeline(checked, tuple(steps))
