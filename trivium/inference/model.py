"""A model with its tokenizer: text in, text out.

model = load("runs/quickstart/final")
model.generate("def add(a, b):", max_new_tokens=40, temperature=0)
for piece in model.stream([{"role": "user", "content": "What does textwrap.dedent do?"}]):
    print(piece, end="", flush=True)
"""

from __future__ import annotations

import secrets
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypedDict, Unpack, overload

import torch
from torch import Tensor, nn

from trivium.data.batch import make_batch
from trivium.errors import ModelError, TriviumError
from trivium.inference import classify
from trivium.inference.classify import Answer, Classified, Texts
from trivium.inference.decisions import Decisions, read_decisions
from trivium.inference.defaults import Defaults, read_defaults
from trivium.inference.engine import Sample, check_room, decode, evaluating
from trivium.inference.request import FinishReason, check_number, check_seed, random_stream
from trivium.inference.stopping import TextStream, check_stop
from trivium.losses.tokens import token_logprobs
from trivium.models.folder import DTYPES, load_model
from trivium.models.transformer import Transformer
from trivium.nearest import nearest
from trivium.tokenizers.tokenizer import Tokenizer

Messages = Sequence[Mapping[str, Any]]
Prompt = str | Messages
"""A text to continue, or a conversation to answer."""

DEFAULT_NEW_TOKENS = 256
"""Longest answer where neither the caller nor the model folder names one."""

_MOST_ROWS = 64
_SCORED_AT_ONCE = 1 << 14
_FILTERS = ("top_k", "top_p", "min_p")


class Options(TypedDict, total=False):
    """Settings of one generation; what is missing or None comes from the model folder's generation_config.json.

    max_new_tokens: longest answer; default 256, or what the context leaves.
    temperature, top_k, top_p, min_p, repetition_penalty: see `trivium.inference.request.Sampling`; default: the
                    model's own distribution (temperature 1). 0 is greedy.
    stop:           one or several strings at which the answer ends; they are not part of it.
    seed:           the same seed gives a prompt the same answers; default: a new one each time.
    should_stop:    asked before each token; True ends the answers as they stand.
    max_rows:       answers computed side by side; default 64.
    """

    max_new_tokens: int | None
    temperature: float | None
    top_k: int | None
    top_p: float | None
    min_p: float | None
    repetition_penalty: float | None
    stop: str | Sequence[str] | None
    seed: int | None
    should_stop: Callable[[], bool] | None
    max_rows: int | None


@dataclass(frozen=True)
class Generation:
    """One answer with everything known about it.

    text:              up to a stop string; the end token is not shown.
    ids:               tokens, with the end token.
    logprobs:          natural-log probability of each under the model itself (temperature 1, nothing filtered).
    sampling_logprobs: the same under the distribution it was drawn from.
    finish_reason:     "eos", "stop" (a stop string), "length" or "cancelled".
    prompt_tokens:     how many tokens the prompt has.
    seed, sample:      with these the answer can be had again.
    """

    text: str
    ids: list[int]
    logprobs: list[float]
    sampling_logprobs: list[float]
    finish_reason: FinishReason
    prompt_tokens: int
    seed: int
    sample: int


@dataclass(frozen=True)
class Score:
    """How likely a model finds a text.

    tokens, ids: the text's tokens as strings and numbers.
    logprobs:    natural-log probability of each given those before it; None for a first one with nothing before it.
    total:       their sum.
    """

    tokens: list[str]
    ids: list[int]
    logprobs: list[float | None]

    @property
    def total(self) -> float:
        return sum(value for value in self.logprobs if value is not None)


@dataclass(eq=False)
class _Answer:
    """A sample on its way to text."""

    sample: Sample
    text: TextStream
    seed: int
    number: int
    done: bool = False

    def advance(self) -> str:
        """The text that the newest token releases, with all that is left if it was the last."""
        completion = self.sample.completion
        piece = "" if completion.finish_reason == "eos" else self.text.push(completion.ids[-1])
        if self.text.stopped:
            self.sample.end("stop")
        return piece + self.finish() if self.sample.ended else piece

    def finish(self) -> str:
        """The text that was still held back."""
        self.done = True
        return self.text.flush()

    def result(self) -> Generation:
        completion = self.sample.completion
        return Generation(
            self.text.text,
            completion.ids,
            completion.logprobs,
            completion.sampling_logprobs,
            completion.finish_reason,
            prompt_tokens=len(self.sample.prompt),
            seed=self.seed,
            sample=self.number,
        )


class Stream:
    """Pieces of one answer, as they appear; after the last one `result` knows everything about it."""

    def __init__(self, pieces: Iterator[str], answer: _Answer) -> None:
        self._pieces, self._answer = pieces, answer

    def __iter__(self) -> Iterator[str]:
        return self._pieces

    def __next__(self) -> str:
        return next(self._pieces)

    @property
    def result(self) -> Generation:
        """The answer as far as it has come."""
        return self._answer.result()


class LanguageModel:
    """A `Transformer` with its `Tokenizer`.

    module:    calling it on token ids [B, L] returns logits [B, L, V].
    tokenizer: turns text and messages into ids and back.
    defaults:  settings where the caller gives none.
    decisions: how the scores of a head for labels become labels.
    """

    def __init__(
        self,
        module: Transformer,
        tokenizer: Tokenizer,
        *,
        defaults: Defaults | None = None,
        decisions: Decisions | None = None,
    ) -> None:
        if tokenizer.vocab_size > module.config.vocab_size:
            raise ModelError(
                "the tokenizer has more tokens than the model",
                value=f"{tokenizer.vocab_size} in the tokenizer, {module.config.vocab_size} in the model",
                fix="put the tokenizer that the model was trained with into its folder",
            )
        self.module = module
        self.tokenizer = tokenizer
        self.defaults = defaults or Defaults()
        self.decisions = decisions or Decisions()

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.module.parameters()).device

    @property
    def context_length(self) -> int:
        """Most tokens that prompt and answer may have together."""
        return self.module.config.max_positions

    @overload
    def generate(
        self, prompt: Prompt, *, n: Literal[1] = 1, details: Literal[False] = False, **options: Unpack[Options]
    ) -> str: ...

    @overload
    def generate(
        self, prompt: Prompt, *, n: Literal[1] = 1, details: Literal[True], **options: Unpack[Options]
    ) -> Generation: ...

    @overload
    def generate(
        self, prompt: Prompt | Sequence[Prompt], *, n: int = 1, details: bool = False, **options: Unpack[Options]
    ) -> Any: ...

    def generate(
        self, prompt: Prompt | Sequence[Prompt], *, n: int = 1, details: bool = False, **options: Unpack[Options]
    ) -> Any:
        """The answer to a prompt, or to each of a list of prompts (computed together).

        prompt:  a text to continue, a list of messages (`{"role": ..., "content": ...}`), or a list of either.
        n:       answers to each prompt; above 1 the result is a list for each prompt.
        details: return `Generation` objects instead of text.
        options: see `Options`.

        A prompt has the same answer alone and in a batch: rounding aside, an answer is a function of seed and prompt.
        """
        prompts, single = _as_list(prompt)
        answers = self.answers(prompts, n=n, **options)
        results = [answer if details else answer.text for answer in answers]
        if n == 1:
            return results[0] if single else results
        groups = [results[start : start + n] for start in range(0, len(results), n)]
        return groups[0] if single else groups

    def answers(self, prompts: Sequence[Prompt], *, n: int = 1, **options: Unpack[Options]) -> Iterator[Generation]:
        """The answers to many prompts, in order, each as soon as it and those before it are ready.

        Every prompt is checked before the first answer. The n answers to one prompt follow each other.
        """
        answers = self._answers(_as_list(prompts)[0], n, options)
        return self._in_order(answers, options)

    def stream(self, prompt: Prompt, **options: Unpack[Options]) -> Stream:
        """The same answer as `generate`, piece by piece as it appears; text that may still change is held back."""
        prompts, single = _as_list(prompt)
        if not single:
            raise TriviumError("only one prompt can be streamed", value=f"{len(prompts)} prompts", fix="use generate")
        answers = self._answers(prompts, 1, options)
        return Stream((piece for _, piece in self._run(answers, options) if piece), answers[0])

    def chat(self, messages: Messages, **options: Unpack[Options]) -> str:
        """The assistant's next message in a conversation, as text."""
        return self.generate(messages, **options)

    def classify(self, texts: Sequence[Texts], *, truncate: bool = False) -> list[Classified]:
        """The labels of each text (or pair of texts), or numbers, with their probabilities; needs a head for labels.

        truncate: cut texts that are too long for the model, which are an error otherwise.
        """
        return classify.classify(self, texts, truncate=truncate)

    def tag(self, sentences: Sequence[Sequence[str]]) -> list[list[str]]:
        """The tag of each word of each sentence; needs a head for tokens."""
        return classify.tag(self, sentences)

    def answer(self, question: str, context: str, *, stride: int = 128, allow_none: bool = True) -> Answer:
        """The answer as it stands in the context, empty if that does not say; needs a head for spans."""
        return classify.answer(self, [(question, context)], stride=stride, allow_none=allow_none)[0]

    @overload
    def score(self, text: str) -> Score: ...

    @overload
    def score(self, text: list[str]) -> list[Score]: ...

    def score(self, text: str | list[str]) -> Score | list[Score]:
        """The log-probability of each token of a text, or of each of several texts (computed together)."""
        texts = [text] if isinstance(text, str) else text
        opened = self.tokenizer.adds_bos
        rows = [self.tokenizer.encode(each, bos=opened) for each in texts]
        for number, ids in enumerate(rows):
            self._check_scored(ids, opened, f"text {number}")
        scores = []
        for ids, logprobs in zip(rows, self._logprobs(rows), strict=True):
            own = ids[1:] if opened else ids
            known: list[float | None] = [*logprobs] if opened else [None, *logprobs]
            scores.append(Score([self.tokenizer.decode([token], skip_special=False) for token in own], own, known))
        return scores[0] if isinstance(text, str) else scores

    def _check_scored(self, ids: Sequence[int], opened: bool, where: str) -> None:
        if len(ids) <= opened:
            raise TriviumError("there is no text to score", where=where, fix="give at least one character")
        if len(ids) - 1 > self.context_length:
            raise TriviumError(
                "the text is too long for the model",
                where=where,
                value=f"{len(ids)} tokens; the last of at most {self.context_length + 1} can be scored",
                fix="score it in parts",
            )

    def _logprobs(self, rows: Sequence[Sequence[int]]) -> list[list[float]]:
        """Log-probability of each token but the first, row by row."""
        results: list[list[float]] = [[] for _ in rows]
        for numbers in _groups([len(ids) - 1 for ids in rows]):
            batch = make_batch([rows[number] for number in numbers]).to(self.device)
            targets = batch.targets

            def then(hidden: Tensor, head: nn.Linear, targets: Tensor = targets) -> Tensor:
                return token_logprobs(hidden, head, targets)

            with torch.no_grad(), evaluating(self.module):
                values = self.module(batch.input_ids, batch.layout, then=then).tolist()
            for number, (start, end) in zip(numbers, batch.layout.spans(), strict=True):
                results[number] = values[start:end]
        return results

    def _answers(self, prompts: Sequence[Prompt], n: int, options: Options) -> list[_Answer]:
        """Everything checked and encoded, before any work: n answers for each prompt."""
        _check_names(options)
        check_number("n", n, at_least=1, whole=True, fix="use a whole number from 1 up")
        given: dict[str, Any] = {name: value for name, value in options.items() if value is not None}
        check_number("max_rows", given.get("max_rows", 1), at_least=1, whole=True, fix="use a whole number from 1 up")
        sampling = replace(
            self.defaults.sampling,
            **{name: value for name, value in given.items() if name in self.defaults.sampling.__dataclass_fields__},
        )
        if sampling.greedy:
            _check_greedy(given, n)
        stop = check_stop(given["stop"]) if "stop" in given else self.defaults.stop
        answers = []
        for number, prompt in enumerate(prompts):
            ids = self.tokenizer.encode_prompt(prompt)
            where = "prompt" if len(prompts) == 1 else f"prompt {number}"
            room = self._room(ids, given.get("max_new_tokens"), where)
            eos_ids = self._eos_ids(chat=not isinstance(prompt, str))
            seed = given.get("seed", secrets.randbits(32))
            check_seed(seed)
            for sample in range(n):
                stream = random_stream(seed, ids, sample)
                text = TextStream(self.tokenizer.stream(), stop)
                answers.append(_Answer(Sample(ids, sampling, room, stream, eos_ids), text, seed, sample))
        return answers

    def _room(self, ids: Sequence[int], wanted: int | None, where: str) -> int:
        """How many tokens the answer may have; an answer asked for explicitly must fit the context."""
        if wanted is not None:
            check_number("max_new_tokens", wanted, at_least=1, whole=True, fix="use a whole number from 1 up")
            check_room(ids, wanted, context=self.context_length, where=where)
            return wanted
        check_room(ids, 1, context=self.context_length, where=where)
        defaults = self.defaults
        limits = [self.context_length - len(ids), defaults.max_new_tokens or DEFAULT_NEW_TOKENS]
        if defaults.max_new_tokens is None and defaults.max_length is not None and defaults.max_length > len(ids):
            limits[1] = defaults.max_length - len(ids)
        return min(limits)

    def _run(self, answers: Sequence[_Answer], options: Options) -> Iterator[tuple[_Answer, str]]:
        """Decodes; yields each answer with the text it has just released."""
        owners = {id(answer.sample): answer for answer in answers}
        batches = decode(
            self.module,
            [answer.sample for answer in answers],
            max_rows=options.get("max_rows") or _MOST_ROWS,
            should_stop=options.get("should_stop"),
        )
        for decoding in batches:
            for sample in decoding.live:
                answer = owners[id(sample)]
                yield answer, answer.advance()
        for answer in answers:
            if not answer.done:
                yield answer, answer.finish()

    def _in_order(self, answers: Sequence[_Answer], options: Options) -> Iterator[Generation]:
        waiting = deque(answers)
        for _ in self._run(answers, options):
            while waiting and waiting[0].done:
                yield waiting.popleft().result()

    def _eos_ids(self, *, chat: bool) -> frozenset[int]:
        """Tokens that end an answer: the model's own, in a conversation also those that end a turn."""
        ids = frozenset(self.module.config.eos_ids) or frozenset([self.tokenizer.eos_id])
        return ids.union(self.tokenizer.stop_ids) if chat else ids


def load(
    folder: str | Path,
    *,
    dtype: str | torch.dtype | None = None,
    device: str | torch.device = "auto",
    threads: int | None = None,
) -> LanguageModel:
    """The model, tokenizer and generation defaults of a model folder in the Hugging Face layout.

    dtype:   of the weights, as `torch.bfloat16` or "bfloat16"; default: as they are stored.
    device:  "auto" takes a GPU if there is one.
    threads: CPU threads of the whole process; default: unchanged.

    Raises ModelError or TokenizerError naming the file that is missing or wrong.
    """
    if threads is not None:
        check_number("threads", threads, at_least=1, whole=True, fix="use a whole number from 1 up")
        torch.set_num_threads(threads)
    module = load_model(folder, dtype=_dtype(dtype), device=_device(device)).eval()
    path = Path(folder)
    decisions = read_decisions(path, module.config.labels)
    return LanguageModel(module, Tokenizer.load(folder), defaults=read_defaults(path), decisions=decisions)


def _dtype(dtype: str | torch.dtype | None) -> torch.dtype | None:
    if dtype is None or isinstance(dtype, torch.dtype):
        return dtype
    if dtype not in DTYPES:
        raise TriviumError("unknown data type", where="dtype", value=dtype, fix=f"use one of {', '.join(DTYPES)}")
    found: torch.dtype = getattr(torch, dtype)
    return found


def _device(device: str | torch.device) -> torch.device:
    if device == "auto":
        accelerator = torch.accelerator.current_accelerator(check_available=True)
        return torch.device("cpu") if accelerator is None else accelerator
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as error:
        problem = str(error).split("\n")[0]
        raise TriviumError(
            f"the device cannot be used: {problem}", where="device", value=str(device), fix="use auto or cpu"
        ) from None


def _as_list(prompt: Prompt | Sequence[Prompt]) -> tuple[list[Prompt], bool]:
    """The prompts as a list, and whether it was a single one."""
    single = isinstance(prompt, str) or not isinstance(prompt, Sequence) or (len(prompt) > 0 and _are_messages(prompt))
    prompts: list[Any] = [prompt] if single else list(prompt)
    for number, each in enumerate(prompts or [""]):
        if not isinstance(each, str) and not _are_messages(each):
            raise TriviumError(
                "a prompt is a text or a list of messages",
                where=f"prompt {number}",
                value=each,
                fix='use "text" or [{"role": "user", "content": "text"}], or a list of those',
            )
        if not each:
            raise TriviumError("the prompt is empty", where=f"prompt {number}", fix="give the model something to go on")
    return prompts, single


def _are_messages(value: object) -> bool:
    return isinstance(value, Sequence) and all(isinstance(item, Mapping) for item in value)


def _check_names(options: Mapping[str, Any]) -> None:
    for name in options:
        if name not in Options.__annotations__:
            near = nearest(name, Options.__annotations__)
            raise TypeError(f"unknown option {name!r}" + (f"; did you mean {near!r}?" if near else ""))


def _check_greedy(given: Mapping[str, Any], n: int) -> None:
    """Refuses what could have no effect without chance."""
    if n > 1:
        raise TriviumError(
            "several answers without chance would all be the same", where="n", value=n, fix="set temperature above 0"
        )
    idle = [name for name in _FILTERS if name in given]
    if idle and "temperature" not in given:
        raise TriviumError(
            f"{idle[0]} has no effect: this model folder asks for greedy decoding",
            where=idle[0],
            value=given[idle[0]],
            fix="set temperature above 0 as well",
        )


def _groups(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Numbers of the rows that are computed together; rows without anything to compute are in none."""
    group: list[int] = []
    total = 0
    for number, length in enumerate(lengths):
        if group and total + length > _SCORED_AT_ONCE:
            yield group
            group, total = [], 0
        if length:
            group.append(number)
            total += length
    if group:
        yield group
