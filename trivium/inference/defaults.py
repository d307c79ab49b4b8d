"""What a model folder itself says about generation: `generation_config.json`, as transformers writes it.

Its end tokens are read with the model (`ModelConfig.eos_ids`), because they belong to it in training too.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from trivium.errors import ModelError, TriviumError
from trivium.inference.request import Beams, Sampling
from trivium.inference.stopping import check_stop

_FILE = "generation_config.json"
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "encoder_no_repeat_ngram_size": (0,),
    "encoder_repetition_penalty": (1,),
    "typical_p": (1,),
    "top_h": (),
    "epsilon_cutoff": (0,),
    "eta_cutoff": (0,),
    "penalty_alpha": (0,),
    "guidance_scale": (1,),
    "sequence_bias": (),
    "bad_words_ids": (),
    "suppress_tokens": ([],),
    "begin_suppress_tokens": ([],),
    "exponential_decay_length_penalty": (),
    "watermarking_config": (),
}
"""Settings of transformers that change the text and are not built here, with the values (beside null) that do not."""


@dataclass(frozen=True)
class Defaults:
    """Settings used where the caller gives none.

    sampling:       `do_sample: false` is temperature 0; without a word about it, the model's own distribution.
    chance:         `do_sample`, if the folder says it.
    beams:          beam search, if the folder asks for it.
    max_new_tokens: longest answer, or None.
    max_length:     longest prompt and answer together, or None. Of an encoder-decoder the source does not count.
    min_length:     shortest prompt and answer together, or None.
    stop:           stop strings.
    """

    sampling: Sampling = field(default_factory=Sampling)
    chance: bool | None = None
    beams: Beams = field(default_factory=Beams)
    max_new_tokens: int | None = None
    max_length: int | None = None
    min_length: int | None = None
    stop: tuple[str, ...] = ()


def read_defaults(folder: Path) -> Defaults:
    """The defaults of a model folder; those of `Defaults` where it has no generation_config.json.

    Warns of settings that would change the text and are not supported, so that none is ignored silently.
    """
    path = folder / _FILE
    if not path.is_file():
        return Defaults()
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(values, dict):
            raise ValueError(f"it must hold an object, not {type(values).__name__}")
    except ValueError as error:
        raise ModelError(
            f"the file cannot be read: {error}", where=path, fix="correct the file, or remove it"
        ) from None
    _warn_of_others(values, path)
    try:
        return _defaults(values)
    except TriviumError as error:
        raise ModelError(error.problem, where=f"{path}: {error.where}", value=error.value, fix=error.fix) from None


def _defaults(values: Mapping[str, Any]) -> Defaults:
    def given(key: str, otherwise: Any) -> Any:
        value = values.get(key)
        return otherwise if value is None else value

    greedy = values.get("do_sample") is False
    sampling = Sampling(
        temperature=0.0 if greedy else given("temperature", 1.0),
        top_k=0 if greedy else given("top_k", 0),
        top_p=1.0 if greedy else given("top_p", 1.0),
        min_p=0.0 if greedy else given("min_p", 0.0),
        repetition_penalty=given("repetition_penalty", 1.0),
        no_repeat_ngram_size=given("no_repeat_ngram_size", 0),
        min_new_tokens=given("min_new_tokens", 0),
        forced_bos_id=_one(values.get("forced_bos_token_id")),
        forced_eos_id=_one(values.get("forced_eos_token_id")),
    )
    beams = Beams()
    if given("num_beams", 1) != 1:
        beams = Beams(**{item.name: given(item.name, getattr(beams, item.name)) for item in fields(Beams)})
    stop = given("stop_strings", ())
    return Defaults(
        sampling,
        chance=values.get("do_sample"),
        beams=beams,
        max_new_tokens=values.get("max_new_tokens"),
        max_length=values.get("max_length"),
        min_length=values.get("min_length"),
        stop=check_stop(stop),
    )


def _one(token: Any) -> Any:
    """A token, also where the file has it as a list of one."""
    return token[0] if isinstance(token, list) and len(token) == 1 else token


def _warn_of_others(values: Mapping[str, Any], path: Path) -> None:
    asked = [
        f"{name}={values[name]!r}"
        for name, neutral in _NEUTRAL.items()
        if values.get(name) is not None and values[name] not in neutral
    ]
    if asked:
        warnings.warn(f"{path} asks for {', '.join(asked)}, which is not supported and left out", stacklevel=3)
