"""The shape of a training recipe: everything `trivium train` reads.

Method, transforms and optimiser are named by file (`method: sft` is `trivium/methods/sft.py`); their own settings
are validated by the `Config` class in that file. Nothing here imports torch.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from trivium.config import DEFAULT_OPTIMIZER, SCHEMA_VERSION, StrictModel
from trivium.errors import ConfigError


def _component(value: Any) -> Any:
    """`adamw` and `{name: adamw, beta2: 0.95}` mean the same component."""
    return {"name": value} if isinstance(value, str) else value


def _sources(value: Any) -> Any:
    """A path, one source or a list of either."""
    if value is None:
        return None
    items = value if isinstance(value, list) else [value]
    return [{"path": item} if isinstance(item, str) else item for item in items]


Component = Annotated[dict[str, Any], BeforeValidator(_component)]
"""`{name: ..., <settings>}`; the settings are checked against the named file's `Config`."""


SamplePrompt = str | Annotated[list[dict[str, Any]], Field(min_length=1)]
"""Text, or the messages of a dialogue (`role` and `content`)."""

ChatRole = Literal["system", "developer", "user", "assistant", "tool"]
"""Who says a message of a conversation."""

SHORTHAND = {
    "method": "name",
    "train.optimizer": "name",
    "transforms.*": "name",
    "data.train": "[]",
    "data.train.*": "path",
    "data.validation": "[]",
    "data.validation.*": "path",
    "data.probe": "[]",
    "data.probe.*": "path",
}
"""Where text stands for a section (the key it is the value of) or for a list of one (`[]`); for overrides."""


class ModelSection(StrictModel):
    """Which model to start from: a folder, or a preset with random weights."""

    path: str | None = None
    """A model folder in the Hugging Face layout."""
    preset: str | None = None
    """Name of a preset (`llama-10m`); weights are initialised at random from the seed."""
    config: dict[str, Any] = Field(default_factory=dict)
    """Changes to the preset's shape, by the names of the family's configuration."""
    dtype: Literal["float32", "bfloat16", "float16", "float64"] = "float32"
    """Data type of the master weights."""
    word_vectors: str | None = None
    """Word vectors (a .vec file or a folder of `trivium tokenizer vectors`) that embeddings of a preset start from."""
    word_vectors_width: Literal["project", "exact"] = "project"
    """Word vectors of another size than the model's width are projected at random, or refused."""

    @model_validator(mode="after")
    def _one_start(self) -> ModelSection:
        if (self.path is None) == (self.preset is None):
            raise ConfigError(
                "give exactly one of model.path and model.preset",
                fix="a folder to go on training, a preset to start from random weights; model.path=null removes one",
            )
        if self.path is not None and self.config:
            raise ConfigError(
                "model.config changes a preset, but a model folder (model.path) has its shape already",
                fix="delete model.config, or start from model.preset",
            )
        if self.path is not None and self.word_vectors is not None:
            raise ConfigError(
                "model.word_vectors starts a preset, but a model folder (model.path) has its embeddings already",
                fix="delete model.word_vectors, or start from model.preset",
            )
        return self


class Source(StrictModel):
    """One source of data."""

    path: str
    """File, folder, token-shard folder or the name of a built-in source (`pydocs`)."""
    weight: float = Field(1.0, gt=0)
    """Share of this source in a mixture, relative to the others."""
    format: str = "auto"
    """`auto` or the name of a reader (`jsonl`, `parquet`, `txt`, `messages`, `alpaca`, ...)."""
    text_field: str = "text"
    """Column that holds the text of a document."""
    tokens: int | None = Field(None, ge=1)
    """Tokens of this source in the whole run; the other sources share the rest."""
    max_epochs: float | None = Field(None, gt=0)
    """Most passes over this source in the whole run; the other sources take what is left over."""


Sources = Annotated[list[Source], BeforeValidator(_sources)]


class LabelSettings(StrictModel):
    """How rows with labels are read: texts with labels, words with tags, questions with answers."""

    text: str | None = None
    """Column of the text; default: the first of text, sentence, review, content, ... that is there."""
    text_pair: str | None = None
    """Column of a second text; default: recognised (text_a and text_b, premise and hypothesis, ...)."""
    label: str | list[str] | None = None
    """Column of the label, or several columns of 0 and 1, or of numbers; default: the first of label, class, score."""
    problem: Literal["auto", "single_label", "multi_label", "regression"] = "auto"
    """One label, any number of labels, or numbers; by default lists are several labels, fractions are numbers."""
    names: dict[str, str] = Field(default_factory=dict)
    """Names of labels that the data writes otherwise: `{"0": negative, "1": positive}`."""
    separator: str | None = Field(None, min_length=1)
    """What stands between several labels written in one text (csv)."""
    words: str | None = None
    """Column of the words of a sentence; default: tokens or words."""
    tags: str | None = None
    """Column of the tags of the words; default: tags, ner_tags, labels or pos_tags."""
    every_piece: bool = False
    """Words of several tokens: all of them carry the tag of the word, not only the first."""
    stride: int = Field(128, ge=0)
    """Tokens that neighbouring windows of a long context share (question answering)."""
    balanced: bool = False
    """Training draws every label equally often, however many rows have it (texts with one label)."""


class PairSettings(StrictModel):
    """How rows of pairs are read: a text to read, and the text to write."""

    source: str | None = None
    """Column of the text to read, or a language of a column `translation`; default: source, document, article, ..."""
    target: str | None = None
    """Column of the text to write; default: target, summary, highlights, ..."""
    prefix: str = ""
    """Text put in front of each source, such as T5's `translate English to German: `."""


class ChatSettings(StrictModel):
    """How conversations are read, and which of their tokens are trained."""

    system: str | None = Field(None, min_length=1)
    """System message of conversations that have none; give the same one in serving."""
    train_on: Literal["all", "last", "each"] | Annotated[list[ChatRole], Field(min_length=1)] = "all"
    """All answers; the last ones (after the last message of the user); each as a sample of its own; or named roles."""
    prompt_loss_weight: float = Field(0.0, ge=0, le=1)
    """How much a token that is not trained otherwise counts in the loss, beside 1 for those of answers."""


class SimilarSettings(StrictModel):
    """How rows of texts that belong together are read: an anchor, its positive, negatives or a score."""

    anchor: str | None = None
    """Column of the anchor, or of the only text; default: anchor, query, question, sentence1, text, ..."""
    positive: str | None = None
    """Column of the text that belongs to the anchor; default: positive, passage, answer, sentence2, ..."""
    negative: str | list[str] | None = None
    """Columns of texts that do not belong to it; default: negative, negatives, negative_1, ..., where there are any."""
    score: str | None = None
    """Column that says how alike both texts are; default: score, similarity or label of two sentences."""
    score_max: float = Field(1.0, gt=0)
    """The score of texts that mean the same; scores are divided by it."""
    text_length: int | None = Field(None, ge=8)
    """Longest text in tokens, with its prefix; default: what the row, which all its texts share, has room for."""
    query_prefix: str = ""
    """Text put in front of each anchor, and of both texts where neither is a passage; kept in the model folder."""
    passage_prefix: str = ""
    """Text put in front of positives and negatives; kept in the model folder."""


class CurriculumSettings(StrictModel):
    """Which samples may be drawn at which time of the run: first the easy ones, in the end all of them."""

    scorer: Literal["length", "rarity", "compressibility", "loss", "column"]
    """What makes a sample hard: its tokens, how rare they are, how badly it compresses, a model's loss, or a column."""
    order: Literal["easy_first", "hard_first", "random"] = "easy_first"
    """`hard_first` is the anti-curriculum, `random` the control: pools of the same size, whatever the difficulty."""
    pacing: Literal["linear", "root", "step", "exponential"] = "root"
    """How the share of samples that may be drawn grows from `start` to 1."""
    start: float = Field(0.1, gt=0, le=1)
    """Share of the samples that may be drawn in the first update."""
    until: float = Field(0.5, gt=0, le=1)
    """Share of the run after which all samples may be drawn."""
    power: float = Field(2.0, ge=1)
    """Of `root`: 2 is the square root; larger values add samples sooner."""
    steps: int = Field(5, ge=1, le=1000)
    """Of `step`: in how many equal steps the share grows."""
    model: str | None = None
    """Of `loss`: the folder of a decoder with the same tokenizer."""
    column: str | None = None
    """Of `column`: the column, or field of `meta`, that holds a number, larger for harder samples."""

    @model_validator(mode="after")
    def _what_the_scorer_needs(self) -> CurriculumSettings:
        for scorer, name, value in (("loss", "model", self.model), ("column", "column", self.column)):
            if (self.scorer == scorer) != (value is not None):
                raise ConfigError(
                    f"data.curriculum.{name} and scorer: {scorer} belong together",
                    fix=f"give both data.curriculum.scorer={scorer} and data.curriculum.{name}=..., or neither",
                )
        return self


class MixtureSettings(StrictModel):
    """How the sources share the run."""

    temperature: float | None = Field(None, ge=1)
    """Shares are sizes ** (1 / temperature), times the weights: 1 as the sizes are, large values towards equal."""


class DataSection(StrictModel):
    """What to train and validate on."""

    train: Sources
    """Training data: a path or a list of sources."""
    validation: Sources = Field(default_factory=list)
    """Held-out data of the same kind."""
    probe: Sources = Field(default_factory=list)
    """General text: what the model forgets of it by this run is measured at the end, against its start."""
    sequence_length: int = Field(512, ge=8, le=1 << 20)
    """Tokens in one row; longer documents are cut into several sequences (documents) or handled by `truncation`."""
    packing: Literal["best_fit", "none"] = "best_fit"
    """Several short sequences in one row, or one sequence per row. The loss is the same either way."""
    group_by_length: bool = False
    """Without packing: the rows of an update are of similar length, so that micro-batches need alike much memory."""
    truncation: Literal["error", "right", "drop"] = "error"
    """What to do with an instruction, preference or pair longer than a row. Always counted, never silent."""
    on_error: Literal["error", "quarantine"] = "error"
    """A malformed row stops the run, or is set aside and counted."""
    max_untrained: float = Field(0.02, ge=0, le=1)
    """Largest share of rows without a single trained token that is accepted."""
    shuffle: bool = True
    """A new order each epoch, from the seed; otherwise the order of the files."""
    prefetch: int = Field(4, ge=0, le=1024)
    """Updates prepared ahead by a background thread."""
    sealed: list[str] = Field(default_factory=list)
    """Sealed test sets that the training data must not overlap, besides those in `sealed/` beside the runs."""
    sealed_action: Literal["error", "drop", "report"] = "error"
    """Rows with text of a sealed set stop the run, are left out, or are only reported."""
    sealed_limit: float = Field(0.0, ge=0, le=1)
    """Largest share of training rows with text of a sealed set that does not stop the run."""
    labels: LabelSettings = Field(default_factory=LabelSettings)
    """How rows with labels are read."""
    pairs: PairSettings = Field(default_factory=PairSettings)
    """How rows of pairs are read."""
    chat: ChatSettings = Field(default_factory=ChatSettings)
    """How conversations are read, and which of their tokens are trained."""
    similar: SimilarSettings = Field(default_factory=SimilarSettings)
    """How rows of texts that belong together are read."""
    mixture: MixtureSettings = Field(default_factory=MixtureSettings)
    """How the sources share the run, beside their weights, token budgets and limits."""
    curriculum: CurriculumSettings | None = None
    """An order of difficulty; default: all samples from the first update on."""

    @model_validator(mode="after")
    def _curriculum_draws_at_random(self) -> DataSection:
        if self.curriculum is not None and not self.shuffle:
            raise ConfigError(
                "data.curriculum draws at random, data.shuffle=false walks in the order of the files",
                fix="delete data.shuffle, or data.curriculum",
            )
        return self

    @model_validator(mode="after")
    def _groups_of_rows(self) -> DataSection:
        if not self.group_by_length:
            return self
        mixed = any(source.weight != 1 or source.tokens or source.max_epochs for source in self.train)
        others = {
            "data.packing is best_fit, which fills every row": self.packing != "none",
            "data.shuffle=false walks in the order of the files": not self.shuffle,
            "data.curriculum has an order of its own": self.curriculum is not None,
            "a mixture takes the rows of an update from several sources": mixed or self.mixture.temperature is not None,
        }
        for reason, so in others.items():
            if so:
                raise ConfigError(
                    f"data.group_by_length has no effect: {reason}",
                    fix="delete data.group_by_length, or set data.packing=none (with data.shuffle, and without "
                    "a curriculum and a mixture)",
                )
        return self


class GroupSettings(StrictModel):
    """How the parameters with certain names are trained."""

    match: str | Annotated[list[str], Field(min_length=1)]
    """Patterns for whole names (`embed.*`, `*.attention.query.weight`), or `re:` and a regular expression."""
    lr: float | None = Field(None, gt=0)
    """Their peak learning rate, whatever `layer_lr_decay` says."""
    lr_factor: float | None = Field(None, gt=0)
    """Or a factor of the learning rate that they would have."""
    weight_decay: float | None = Field(None, ge=0)
    """Their weight decay; default: the optimiser's, none for biases and norm weights."""

    @property
    def patterns(self) -> list[str]:
        """The patterns, however many there are."""
        return [self.match] if isinstance(self.match, str) else self.match

    @model_validator(mode="after")
    def _says_something(self) -> GroupSettings:
        for pattern in self.patterns:
            try:
                re.compile(pattern.removeprefix("re:") if pattern.startswith("re:") else "")
            except re.error as error:
                raise ConfigError(
                    f"train.groups: no regular expression: {error}", value=pattern, fix="patterns with * need no re:"
                ) from None
        if self.lr is not None and self.lr_factor is not None:
            raise ConfigError("train.groups: a group has lr or lr_factor, not both", fix="delete one of them")
        if self.lr is None and self.lr_factor is None and self.weight_decay is None:
            raise ConfigError(
                "train.groups: this group changes nothing",
                value=", ".join(self.match),
                fix="give lr, lr_factor or weight_decay",
            )
        return self


class EmaSettings(StrictModel):
    """An exponential moving average of the weights."""

    decay: float = Field(0.999, ge=0, lt=1)
    """Share of the average that an update keeps."""
    warmup: bool = True
    """Keep less at first: (1 + n) / (10 + n) in update n, if that is smaller."""
    validation: bool = True
    """Validate and sample with the average."""
    final: bool = True
    """Write the average into `final`; checkpoints hold both."""

    @model_validator(mode="after")
    def _used(self) -> EmaSettings:
        if not self.validation and not self.final:
            raise ConfigError(
                "train.ema is not used: neither for validation nor for final", fix="set train.ema.final=true"
            )
        return self


class TrainSection(StrictModel):
    """How one run is optimised."""

    steps: int | None = Field(None, ge=1)
    """Length of the run in updates. Give one of steps, epochs and tokens."""
    epochs: float | None = Field(None, gt=0)
    """Length of the run in passes over the training data."""
    tokens: int | None = Field(None, ge=1)
    """Length of the run in tokens."""
    batch_size: int = Field(8, ge=1)
    """Rows in one update, over all micro-batches and ranks."""
    micro_batch_size: Annotated[int, Field(ge=1)] | Literal["auto"] | None = None
    """Rows in one forward pass of one rank; default: the whole update. `auto`: the most that fit into the memory. Never
    changes the result, only the memory."""
    lr: float = Field(3e-4, gt=0)
    """Peak learning rate."""
    layer_lr_decay: float | None = Field(None, gt=0, le=1)
    """Each block learns at this share of the rate of the block above it; the head at `lr`, embeddings at the least."""
    groups: list[GroupSettings] = Field(default_factory=list)
    """Learning rates and weight decay by names of parameters; the first rule that fits a name counts."""
    schedule: Literal["cosine", "cosine_restarts", "linear", "polynomial", "inverse_sqrt", "wsd", "constant"] = "cosine"
    """Shape of the learning rate after warm-up; `wsd` is warm-up, stable, decay."""
    warmup_steps: int | None = Field(None, ge=0)
    """Updates of warm-up; default: 2 % of the run, at most 1000."""
    warmup_shape: Literal["linear", "cosine"] = "linear"
    """How the learning rate rises."""
    warmup_start_ratio: float = Field(0.0, ge=0, lt=1)
    """Learning rate that warm-up starts from, divided by the peak."""
    decay_fraction: float = Field(0.2, gt=0, le=1)
    """Share of the run in which `wsd` decays."""
    decay_shape: Literal["linear", "cosine", "sqrt", "exponential"] = "linear"
    """How `wsd` decays; `sqrt` is 1 - sqrt(progress), which falls fast at first."""
    schedule_power: float = Field(1.0, gt=0)
    """Of `polynomial`: (1 - progress) to this power."""
    schedule_cycles: int = Field(2, ge=1)
    """Of `cosine_restarts`: how often the cosine starts from the peak."""
    min_lr_ratio: float = Field(0.1, ge=0, le=1)
    """Final learning rate divided by the peak."""
    optimizer: Component = Field(default_factory=lambda: {"name": DEFAULT_OPTIMIZER})
    """`adamw`, or `{name: adamw, weight_decay: 0.1, ...}`."""
    clip: float | None = Field(1.0, gt=0)
    """Largest norm of the whole gradient; null for no clipping."""
    clip_by: Literal["norm", "value"] = "norm"
    """Whether `clip` shortens the whole gradient, or cuts each number of it."""
    ema: EmaSettings | None = None
    """A moving average of the weights beside those that train; `{}` for the defaults."""
    precision: Literal["fp32", "bf16", "fp16", "fp8"] = "fp32"
    """Arithmetic of forward and backward; master weights keep model.dtype. `fp8` is for the products of the blocks."""
    compile: Literal["auto", "on", "off"] = "auto"
    """torch.compile: `auto` compiles only when the run is long enough to win the time back."""
    activation_checkpointing: Literal["none", "block", "attention", "mlp"] = "none"
    """`block` keeps only each block's input and computes the rest again in the backward pass; or only a part of it."""
    checkpoint_every_block: int = Field(1, ge=1)
    """Of activation checkpointing: 2 does so with every second block, and so on."""
    offload: Literal["none", "optimizer", "activations", "all"] = "none"
    """Keep the optimiser's state, or what the backward pass needs, in the processor's memory, not in the GPU's."""
    max_nonfinite: int = Field(5, ge=0)
    """Consecutive updates with a non-finite loss or gradient that are skipped before the run stops."""
    checkpoint_every: int | None = Field(None, ge=1)
    """Updates between checkpoints; default: a tenth of the run."""
    keep_checkpoints: int = Field(2, ge=2)
    """Verified checkpoints kept; never fewer than two."""
    validate_every: int | None = Field(None, ge=1)
    """Updates between validations; default: a tenth of the run."""
    validation_batches: int | None = Field(None, ge=1)
    """Micro-batches in one validation, about, spread over the validation data; default: all of it."""
    log_every: int = Field(1, ge=1)
    """Updates between two lines of metrics."""
    sample_every: int | None = Field(None, ge=1)
    """Updates between samples from `sample_prompts`; default: with each validation."""
    sample_prompts: list[SamplePrompt] = Field(default_factory=list)
    """Prompts continued during training, shown side by side in the report; text, or messages of a dialogue."""
    sample_tokens: int = Field(48, ge=1)
    """New tokens in one sample."""
    tensorboard: bool = False
    """Mirror the metrics into TensorBoard event files (extra `tensorboard`)."""
    deterministic: bool = True
    """Deterministic kernels, so that a resumed run ends bit-identical."""
    threads: int | None = Field(None, ge=1)
    """CPU threads; default: OMP_NUM_THREADS for one process, else all cores (divided by the ranks of this machine)."""

    @property
    def micro_rows(self) -> int | None:
        """Rows in one forward pass as far as the recipe says; None for the whole update, and for what fits."""
        return None if self.micro_batch_size == "auto" else self.micro_batch_size

    @model_validator(mode="after")
    def _one_length(self) -> TrainSection:
        given = [name for name in ("steps", "epochs", "tokens") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ConfigError(
                f"give exactly one of train.steps, train.epochs and train.tokens, not {' and '.join(given) or 'none'}",
                fix="keep the one that says how long the run is; train.steps=null removes one",
            )
        return self


class EngineSection(StrictModel):
    """How one update runs on the machine."""

    name: Literal["single", "ddp", "fsdp2", "tensor", "pipeline"] = "single"
    """`single` is one process; the others are started with torchrun: `ddp` copies the model, `fsdp2` shards it,
    `tensor` divides every matrix, `pipeline` deals out the layers."""
    device: str = "auto"
    """`auto`, `cpu`, `cuda`, `cuda:1`, `mps`."""
    pipeline_schedule: Literal["1f1b", "gpipe"] = "1f1b"
    """Order of micro-batches under `pipeline`."""


class Recipe(StrictModel):
    """A whole training run."""

    schema_version: int = Field(SCHEMA_VERSION, ge=1)
    """Version of the shape of this file; older files are brought up to date when read."""
    trivium_version: str | None = None
    """Version of Trivium that resolved this file; written into a run's config.yaml, no effect."""
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")
    """Name of the run; its folder is `<runs>/<name>`."""
    runs: str = "runs"
    """Folder that holds the runs."""
    seed: int = Field(0, ge=0, lt=1 << 63)
    """Seed of everything random."""
    method: Component
    """What is optimised: a file of `trivium/methods`, or `package.module:Class`."""
    model: ModelSection
    """Where the model comes from."""
    tokenizer: str | None = None
    """A tokenizer folder; default: the tokenizer inside model.path."""
    transforms: list[Component] = Field(default_factory=list)
    """Model changes before training (adapters and the like), in order."""
    data: DataSection
    """What to train and validate on."""
    train: TrainSection
    """How the run is optimised."""
    engine: EngineSection = Field(default_factory=EngineSection)
    """How one update runs on the machine."""
