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
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypedDict, Unpack, overload

import torch
from torch import Tensor, nn

from trivium.data.batch import Layout, Source, make_batch
from trivium.data.sides import source_ids, target_frame
from trivium.errors import ModelError, TriviumError
from trivium.inference import classify, encoding
from trivium.inference.beams import Search
from trivium.inference.beams import run as run_searches
from trivium.inference.classify import Answer, Classified, Texts
from trivium.inference.decisions import Decisions, read_decisions
from trivium.inference.defaults import Defaults, read_defaults
from trivium.inference.encoding import Filling
from trivium.inference.engine import Sample, check_generates, check_room, context_length, decode, evaluating, opening
from trivium.inference.request import Beams, FinishReason, Sampling, check_number, check_seed, random_stream
from trivium.inference.settings import Settings, settle
from trivium.inference.shelf import Shelf, open_shelf
from trivium.inference.shelf_folder import is_shelf
from trivium.inference.stopping import TextStream
from trivium.losses.tokens import token_logprobs
from trivium.models.folder import DTYPES, load_model
from trivium.models.quantized import quantize_weights
from trivium.models.sentences import Sentences, read_sentences, sentences_of
from trivium.models.transformer import Transformer
from trivium.nearest import nearest
from trivium.threads import use_threads
from trivium.tokenizers.tokenizer import Tokenizer

Messages = Sequence[Mapping[str, Any]]
Prompt = str | Messages
"""A text to continue, or a conversation to answer."""
Adapter = str | Sequence[str | None] | None
"""An entry of the model's shelf for all rows, or one for each (None: the base alone)."""

_MOST_ROWS = 64
_SCORED_AT_ONCE = 1 << 14


class Options(TypedDict, total=False):
    """Settings of one generation; what is missing or None comes from the model folder's generation_config.json.

    max_new_tokens: longest answer; default 256, or what the context leaves.
    temperature, top_k, top_p, min_p, repetition_penalty, no_repeat_ngram_size, min_new_tokens, forced_bos_id,
    forced_eos_id:  see `trivium.inference.request.Sampling`; default: the model's own distribution (temperature 1),
                    of an encoder-decoder greedy (temperature 0).
    num_beams, length_penalty, early_stopping, num_beam_groups, diversity_penalty: beam search, see
                    `trivium.inference.request.Beams`; default: none. `n` answers are then the n best ones.
    prefix:         text that the answer of an encoder-decoder begins with; it is not part of it.
    stop:           one or several strings at which the answer ends; they are not part of it.
    seed:           the same seed gives a prompt the same answers; default: a new one each time.
    should_stop:    asked before each token; True ends the answers as they stand.
    max_rows:       answers computed side by side; default 64.
    lookup:         most tokens that are guessed from the text at a time; default 0. The answer is the same, and sooner
                    where it repeats what stands before it.
    adapter:        the entry of the model's shelf to answer under, or one for each prompt (None: the base alone).
    """

    max_new_tokens: int | None
    temperature: float | None
    top_k: int | None
    top_p: float | None
    min_p: float | None
    repetition_penalty: float | None
    no_repeat_ngram_size: int | None
    min_new_tokens: int | None
    forced_bos_id: int | None
    forced_eos_id: int | None
    num_beams: int | None
    length_penalty: float | None
    early_stopping: bool | Literal["never"] | None
    num_beam_groups: int | None
    diversity_penalty: float | None
    prefix: str | None
    stop: str | Sequence[str] | None
    seed: int | None
    should_stop: Callable[[], bool] | None
    max_rows: int | None
    lookup: int | None
    adapter: Adapter


@dataclass(frozen=True)
class Generation:
    """One answer with everything known about it.

    text:              up to a stop string; the end token is not shown.
    ids:               tokens, with the end token.
    logprobs:          natural-log probability of each under the model itself (temperature 1, nothing filtered).
    sampling_logprobs: the same under the distribution it was drawn from.
    finish_reason:     "eos", "stop" (a stop string), "length" or "cancelled".
    prompt_tokens:     how many tokens the prompt has; of an encoder-decoder the source.
    seed, sample:      with these the answer can be had again.
    score:             of a beam search: log-probability of the answer over length ** length_penalty.
    """

    text: str
    ids: list[int]
    logprobs: list[float]
    sampling_logprobs: list[float]
    finish_reason: FinishReason
    prompt_tokens: int
    seed: int
    sample: int
    score: float | None = None


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
            prompt_tokens=len(self.sample.source or self.sample.prompt),
            seed=self.seed,
            sample=self.number,
        )


@dataclass(frozen=True)
class _Asked:
    """A prompt, encoded and checked; what an answer to it may be."""

    prompt: list[int]
    source: list[int]
    sampling: Sampling
    max_new_tokens: int
    eos_ids: frozenset[int]
    seed: int
    adapter: str = ""


class Stream:
    """Pieces of one answer, as they appear; after the last one `result` knows everything about it."""

    def __init__(self, pieces: Iterator[str], result: Callable[[], Generation]) -> None:
        self._pieces, self._result = pieces, result

    def __iter__(self) -> Iterator[str]:
        return self._pieces

    def __next__(self) -> str:
        return next(self._pieces)

    @property
    def result(self) -> Generation:
        """The answer as far as it has come."""
        return self._result()


class LanguageModel:
    """A `Transformer` with its `Tokenizer`.

    module:    calling it on token ids [B, L] returns logits [B, L, V].
    tokenizer: turns text and messages into ids and back.
    shelf:     soft prompts and adapters in memory, chosen row by row (`adapter=...`).
    defaults:  settings where the caller gives none.
    decisions: how the scores of a head for labels become labels.
    sentences: how hidden states become the vector of a text; None where the model was not trained to give any.
    """

    def __init__(
        self,
        module: Transformer,
        tokenizer: Tokenizer,
        *,
        defaults: Defaults | None = None,
        decisions: Decisions | None = None,
        folder: Path | None = None,
        sentences: Sentences | None = None,
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
        self.shelf = Shelf(module, folder)
        self.sentences = sentences or sentences_of(module)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.module.parameters()).device

    @property
    def context_length(self) -> int:
        """Most tokens that prompt and answer may have together."""
        return context_length(self.module)

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
        settings, asked = self._asked(_as_list(prompts)[0], n, options)
        if settings.searches:
            return self._search(asked, settings.beams, n, options)
        return self._in_order(self._answers(asked, settings.stop, n), options)

    def stream(self, prompt: Prompt, **options: Unpack[Options]) -> Stream:
        """The same answer as `generate`, piece by piece as it appears; text that may still change is held back.

        Beam search knows its answer at the end only, so that comes in one piece.
        """
        prompts, single = _as_list(prompt)
        if not single:
            raise TriviumError("only one prompt can be streamed", value=f"{len(prompts)} prompts", fix="use generate")
        settings, asked = self._asked(prompts, 1, options)
        if settings.searches:
            found = self._search(asked, settings.beams, 1, options)
            results: list[Generation] = []
            return Stream(_texts_of(found, results), lambda: results[0])
        answers = self._answers(asked, settings.stop, 1)
        return Stream((piece for _, piece in self._run(answers, options) if piece), answers[0].result)

    def chat(self, messages: Messages, **options: Unpack[Options]) -> str:
        """The assistant's next message in a conversation, as text."""
        return self.generate(messages, **options)

    def fill(self, text: str, *, top: int = 5) -> list[list[Filling]]:
        """For each mask token in a text the likeliest tokens in its place; needs an encoder pretrained with mlm."""
        return encoding.fill(self, text, top=top)

    def embed(
        self,
        text: str | list[str],
        *,
        prompt: str | None = None,
        dimensions: int | None = None,
        pooling: str | None = None,
        normalize: bool | None = None,
        truncate: bool = False,
        adapter: Adapter = None,
    ) -> Tensor:
        """The vector [D] of a text, or [N, D] of several, as the model was trained to give them.

        prompt:     name of the model's text that is put in front ("query", "document"); default: what the folder says.
        dimensions: only the first numbers of each vector (Matryoshka).
        pooling:    which hidden states stand for the text: first, last, mean or max; default: the model's, else mean.
        normalize:  to length 1, so that the product of two vectors is their cosine; default: the model's, else yes.
        truncate:   cut texts that are too long for the model, which are an error otherwise.
        """
        texts = [text] if isinstance(text, str) else text
        vectors = encoding.embed(
            self,
            texts,
            prompt=prompt,
            dimensions=dimensions,
            pooling=pooling,
            normalize=normalize,
            truncate=truncate,
            adapters=self.shelf.names(adapter, len(texts)),
        )
        return vectors[0] if isinstance(text, str) else vectors

    def classify(self, texts: Sequence[Texts], *, truncate: bool = False, adapter: Adapter = None) -> list[Classified]:
        """The labels of each text (or pair of texts), or numbers, with their probabilities; needs a head for labels.

        truncate: cut texts that are too long for the model, which are an error otherwise.
        """
        names = self.shelf.names(adapter, len(texts))
        return classify.classify(self, texts, truncate=truncate, adapters=names)

    def tag(self, sentences: Sequence[Sequence[str]]) -> list[list[str]]:
        """The tag of each word of each sentence; needs a head for tokens."""
        return classify.tag(self, sentences)

    def answer(self, question: str, context: str, *, stride: int = 128, allow_none: bool = True) -> Answer:
        """The answer as it stands in the context, empty if that does not say; needs a head for spans."""
        return classify.answer(self, [(question, context)], stride=stride, allow_none=allow_none)[0]

    @overload
    def score(self, text: str, *, source: str | None = None, adapter: Adapter = None) -> Score: ...

    @overload
    def score(self, text: list[str], *, source: list[str] | None = None, adapter: Adapter = None) -> list[Score]: ...

    def score(
        self, text: str | list[str], *, source: str | list[str] | None = None, adapter: Adapter = None
    ) -> Score | list[Score]:
        """The log-probability of each token of a text, or of each of several texts (computed together).

        source: of an encoder-decoder what each text answers; the end token is scored too.
        """
        check_generates(self.module.config)
        texts = [text] if isinstance(text, str) else text
        sources = [] if source is None else [source] if isinstance(source, str) else source
        opens = self.module.config.kind == "encoder_decoder"
        if len(sources) != opens * len(texts):
            raise TriviumError(
                "each text needs its source" if opens else "only an encoder-decoder has sources",
                where="source",
                value=f"{len(texts)} texts, {len(sources)} sources",
            )
        rows, names = [self._scored(each) for each in texts], self.shelf.names(adapter, len(texts))
        hidden = opens or self.tokenizer.adds_bos
        for number, (ids, name) in enumerate(zip(rows, names, strict=True)):
            self._check_scored(ids, hidden, f"text {number}", name)
        found = self._logprobs(rows, [self._encoded(each) for each in sources], names)
        scores = []
        for ids, logprobs in zip(rows, found, strict=True):
            own = ids[1:] if hidden else ids
            known: list[float | None] = [*logprobs] if hidden else [None, *logprobs]
            scores.append(Score([self.tokenizer.decode([token], skip_special=False) for token in own], own, known))
        return scores[0] if isinstance(text, str) else scores

    def _scored(self, text: str) -> list[int]:
        """The text, behind what opens it."""
        config = self.module.config
        if config.kind != "encoder_decoder":
            return self.tokenizer.encode(text, bos=self.tokenizer.adds_bos)
        start, _ = opening(self.module, [0], where="text")
        frame = target_frame(self.tokenizer)
        return [*start, *frame.before, *self.tokenizer.encode(text), *frame.after]

    def _check_scored(self, ids: Sequence[int], opened: bool, where: str, adapter: str) -> None:
        context = context_length(self.module, adapter=adapter)
        if len(ids) <= opened:
            raise TriviumError("there is no text to score", where=where, fix="give at least one character")
        if len(ids) - 1 > context:
            raise TriviumError(
                "the text is too long for the model",
                where=where,
                value=f"{len(ids)} tokens; the last of at most {context + 1} can be scored",
                fix="score it in parts",
            )

    def _logprobs(
        self, rows: Sequence[Sequence[int]], sources: Sequence[Sequence[int]], adapters: Sequence[str]
    ) -> list[list[float]]:
        """Log-probability of each token but the first, row by row; `sources`: one for each row, or none."""
        results: list[list[float]] = [[] for _ in rows]
        for numbers in _groups([len(ids) - 1 for ids in rows]):
            batch = make_batch([rows[number] for number in numbers]).to(self.device)
            targets = batch.targets

            def then(hidden: Tensor, head: nn.Linear, targets: Tensor = targets) -> Tensor:
                return token_logprobs(hidden, head, targets)

            source = None
            if sources:
                read = [sources[number] for number in numbers]
                ids = torch.tensor([token for each in read for token in each], device=self.device)
                source = Source(ids, Layout(tuple(map(len, read))))
            with torch.no_grad(), evaluating(self.module):
                own = self.shelf.chosen([adapters[number] for number in numbers])
                values = self.module(batch.input_ids, batch.layout, then=then, source=source, adapters=own).tolist()
            for number, (start, end) in zip(numbers, batch.layout.spans(), strict=True):
                results[number] = values[start:end]
        return results

    def logprobs_after(self, given: str, text: str, *, before: Sequence[int] = (), adapter: str = "") -> list[float]:
        """Log-probability of each token of `text` behind `given` (of an encoder-decoder: of the answer to it).

        before: tokens that stand before all of it. What has nothing before it has none.
        """
        if self.module.config.kind == "encoder_decoder":
            source = [*before, *self._encoded(given)]
            return self._logprobs([self._scored(text)], [source], [adapter])[0]
        opened = [*before, *self.tokenizer.encode_prompt(given)] if given else [*before, *self._scored("")]
        own = self.tokenizer.encode(text)
        rest = len(own) if opened else len(own) - 1
        found = self._logprobs([[*opened, *own]], [], [adapter])[0]
        return found[len(found) - rest :]

    def _asked(self, prompts: Sequence[Prompt], n: int, options: Options) -> tuple[Settings, list[_Asked]]:
        """Everything checked and encoded, before any work."""
        _check_names(options)
        config = self.module.config
        check_generates(config)
        opens = config.kind == "encoder_decoder"
        settings = settle(options, self.defaults, n=n, answers=opens)
        prefix = self.tokenizer.encode(options.get("prefix") or "")
        names = self.shelf.names(options.get("adapter"), len(prompts))
        asked = []
        for number, (prompt, name) in enumerate(zip(prompts, names, strict=True)):
            where = "prompt" if len(prompts) == 1 else f"prompt {number}"
            start, source = opening(self.module, self._encoded(prompt), prefix, where=where, adapter=name)
            context = context_length(self.module, adapter=name)
            check_room(start, settings.max_new_tokens or 1, context=context, where=where)
            length = settings.length(len(start), room=context)
            eos_ids = self._eos_ids(chat=not isinstance(prompt, str))
            seed = options.get("seed")
            seed = secrets.randbits(32) if seed is None else seed
            check_seed(seed)
            sampling = settings.sampling_for(len(start), length)
            asked.append(_Asked(start, source, sampling, length, eos_ids, seed, name))
        return settings, asked

    def _encoded(self, prompt: Prompt) -> list[int]:
        """What a decoder continues, or an encoder reads."""
        if self.module.config.kind != "encoder_decoder":
            return self.tokenizer.encode_prompt(prompt)
        if not isinstance(prompt, str):
            raise TriviumError("an encoder-decoder answers a text, not a conversation", where="prompt", value=prompt)
        return source_ids(self.tokenizer, prompt)

    def _answers(self, asked: Sequence[_Asked], stop: Sequence[str], n: int) -> list[_Answer]:
        """n answers for each prompt, without a token yet."""
        answers = []
        for each in asked:
            for number in range(n):
                stream = random_stream(each.seed, [*each.source, *each.prompt], number)
                text = TextStream(self.tokenizer.stream(), stop)
                sample = Sample(
                    each.prompt, each.sampling, each.max_new_tokens, stream, each.eos_ids, each.source, each.adapter
                )
                answers.append(_Answer(sample, text, each.seed, number))
        return answers

    def _search(self, asked: Sequence[_Asked], beams: Beams, n: int, options: Options) -> Iterator[Generation]:
        """The n best answers to each prompt, in order."""
        opens = self.module.config.kind == "encoder_decoder"
        searches = [
            Search(
                each.prompt, each.max_new_tokens, beams, each.sampling, each.eos_ids, opens, each.source, each.adapter
            )
            for each in asked
        ]
        waiting = deque(zip(asked, searches, strict=True))
        rows, stopped = options.get("max_rows") or _MOST_ROWS, options.get("should_stop")
        for _ in run_searches(self.module, searches, max_rows=rows, should_stop=stopped):
            while waiting and waiting[0][1].done:
                yield from self._found(*waiting.popleft(), n)
        for each, search in waiting:
            yield from self._found(each, search, n)

    def _found(self, asked: _Asked, search: Search, n: int) -> Iterator[Generation]:
        for number, completion in enumerate(search.answers(n)):
            yield Generation(
                self.tokenizer.decode(completion.ids),
                completion.ids,
                completion.logprobs,
                completion.sampling_logprobs,
                completion.finish_reason,
                prompt_tokens=len(asked.source or asked.prompt),
                seed=asked.seed,
                sample=number,
                score=completion.score,
            )

    def _run(self, answers: Sequence[_Answer], options: Options) -> Iterator[tuple[_Answer, str]]:
        """Decodes; yields each answer with the text it has just released."""
        owners = {id(answer.sample): answer for answer in answers}
        batches = decode(
            self.module,
            [answer.sample for answer in answers],
            max_rows=options.get("max_rows") or _MOST_ROWS,
            lookup=options.get("lookup") or 0,
            should_stop=options.get("should_stop"),
        )
        for decoding in batches:
            for sample in decoding.grown:
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
    base: str | Path | None = None,
    weights: str | None = None,
) -> LanguageModel:
    """The model, tokenizer and generation defaults of a model folder, of adapters and their base, or of a shelf.

    dtype:   of the weights, as `torch.bfloat16` or "bfloat16"; default: as they are stored.
    device:  "auto" takes a GPU if there is one.
    threads: CPU threads of the whole process; default: unchanged.
    base:    of adapters, where their base lies; default: where they say.
    weights: "int8" keeps those of the blocks in eight bits, which generates faster on a CPU; default: as they are.

    Raises ModelError or TokenizerError naming the file that is missing or wrong.
    """
    if threads is not None:
        check_number("threads", threads, at_least=1, whole=True, fix="use a whole number from 1 up")
        use_threads(threads)
    path = Path(folder)
    if is_shelf(path):
        return open_shelf(path, lambda found: load(found, dtype=dtype, device=device, weights=weights), base=base)
    module = load_model(folder, dtype=_dtype(dtype), device=_device(device), base=base).eval()
    if weights is not None:
        quantize_weights(module, weights)
    decisions = read_decisions(path, module.config.labels)
    sentences = read_sentences(path)
    if sentences is not None:
        sentences = sentences.to(next(module.parameters()))
    # A folder that PEFT wrote has adapters only, and how to generate is known to the base.
    under = path if module.base is None else Path(module.base.path)
    return LanguageModel(
        module,
        tokenizer_of(path, under),
        defaults=read_defaults(under),
        decisions=decisions,
        sentences=sentences,
        folder=path,
    )


def tokenizer_of(folder: Path, base: Path) -> Tokenizer:
    """The tokenizer of a folder, or of its base where it has none."""
    return Tokenizer.load(folder if (folder / "tokenizer.json").is_file() else base)


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


def _texts_of(found: Iterator[Generation], results: list[Generation]) -> Iterator[str]:
    """The texts of answers, which are put into `results` as they come."""
    for each in found:
        results.append(each)
        yield each.text


def _check_names(options: Mapping[str, Any]) -> None:
    for name in options:
        if name not in Options.__annotations__:
            near = nearest(name, Options.__annotations__)
            raise TypeError(f"unknown option {name!r}" + (f"; did you mean {near!r}?" if near else ""))


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
