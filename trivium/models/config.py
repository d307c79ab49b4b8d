"""The shape of a model: everything that decides which parameters exist and what they compute. Imports no torch.

A family (`families/<name>.py`) gives the defaults and the presets; this class is what all families have in common.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, get_args

from pydantic import Field, ValidationInfo, model_validator

from trivium.config import StrictModel

Factor = Annotated[float, Field(ge=1)]
Positions = Annotated[int, Field(ge=1)]


class LinearScaling(StrictModel):
    """Position interpolation: all angles divided by `factor` (Chen et al. 2023, arXiv:2306.15595)."""

    type: Literal["linear"] = "linear"
    factor: Factor


class DynamicScaling(StrictModel):
    """Dynamic NTK: the base grows with the sequence beyond `max_positions` (u/emozilla 2023)."""

    type: Literal["dynamic"] = "dynamic"
    factor: Factor


class YarnScaling(StrictModel):
    """YaRN: interpolate long wavelengths only, and sharpen attention (Peng et al. 2023, arXiv:2309.00071)."""

    type: Literal["yarn"] = "yarn"
    factor: Factor
    original_max_positions: Positions
    attention_factor: float | None = Field(None, ge=0)
    """Factor on cosine and sine; default: 0.1 ln(factor) + 1."""
    beta_fast: float = Field(32.0, gt=0)
    """Dimensions that turn more often than this in the original context keep their angle."""
    beta_slow: float = Field(1.0, gt=0)
    """Dimensions that turn less often than this are interpolated fully."""
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool = True
    """Round the two borders between the regimes to whole dimensions."""


class LongRopeScaling(StrictModel):
    """LongRoPE: one searched factor for each dimension (Ding et al. 2024, arXiv:2402.13753)."""

    type: Literal["longrope"] = "longrope"
    short_factor: tuple[float, ...]
    long_factor: tuple[float, ...]
    original_max_positions: Positions
    factor: float | None = Field(None, gt=0)
    """Growth of the context, for the attention factor; default: max_positions / original_max_positions."""
    attention_factor: float | None = Field(None, ge=0)


class Llama3Scaling(StrictModel):
    """Llama 3.1: long wavelengths divided by `factor`, short ones kept, a smooth ramp between (arXiv:2407.21783)."""

    type: Literal["llama3"] = "llama3"
    factor: Factor
    low_freq_factor: float = Field(1.0, gt=0)
    high_freq_factor: float = Field(4.0, gt=0)
    original_max_positions: Positions

    @model_validator(mode="after")
    def _ordered(self) -> Llama3Scaling:
        if self.high_freq_factor <= self.low_freq_factor:
            raise ValueError("high_freq_factor must be larger than low_freq_factor")
        return self


Scaling = Annotated[
    LinearScaling | DynamicScaling | YarnScaling | LongRopeScaling | Llama3Scaling, Field(discriminator="type")
]


class Rope(StrictModel):
    """Rotary positions (Su et al. 2021, arXiv:2104.09864)."""

    theta: float = Field(default=10000.0, gt=1)
    """Base of the geometric series of wavelengths."""
    scaling: Scaling | None = None
    """How the angles change for contexts longer than the original one."""


Bias = Literal["query_key_value", "attention_output", "mlp"]
LayerType = Literal["full", "sliding"]


class ModelConfig(StrictModel):
    """The shape of one model."""

    family: str
    """A file of `trivium/models/families`; decides the names in Hugging Face folders."""
    kind: Literal["decoder", "encoder", "encoder_decoder"] = "decoder"
    """A token sees those before it, all of its sequence, or another sequence whole and those before it."""
    vocab_size: int = Field(ge=1, le=1 << 24)
    """Rows of the embedding, V."""
    hidden_size: int = Field(ge=1, le=1 << 24)
    """Width of the residual stream, D."""
    embedding_size: int | None = Field(None, ge=1, le=1 << 24)
    """Width of the embeddings where they are narrower than the layers, which see a projection of them (ELECTRA)."""
    num_layers: int = Field(ge=1, le=1 << 10)
    """Blocks; of an encoder-decoder those of the encoder."""
    num_decoder_layers: int | None = Field(None, ge=1, le=1 << 10)
    """Blocks of the decoder of an encoder-decoder; default: as many as the encoder has."""
    num_heads: int = Field(ge=1, le=1 << 16)
    """Query heads, H."""
    num_kv_heads: int = Field(ge=1, le=1 << 16)
    """Key/value heads, K; default: num_heads. Fewer is grouped-query attention."""
    head_dim: int = Field(ge=1, le=1 << 16)
    """Width of one head, C; default: hidden_size / num_heads."""
    intermediate_size: int = Field(ge=1, le=1 << 24)
    """Width inside the MLP."""
    max_positions: int = Field(ge=1, le=1 << 30)
    """Longest sequence: a hard limit with learned positions, the trained length with all others."""
    positions: Literal["rotary", "learned", "alibi", "relative", "none"] = "rotary"
    """How a token knows its place: turned queries and keys, an embedding, or a term added to the attention scores."""
    position_offset: int = Field(0, ge=0)
    """Row of the table of learned positions that the first token has."""
    rope: Rope = Rope()
    """Settings of rotary positions."""
    local_rope: Rope | None = None
    """Settings of rotary positions in sliding layers, if they differ."""
    layers_without_rotary: tuple[Annotated[int, Field(ge=0)], ...] = ()
    """Layers, counted from 0, whose queries and keys do not turn although the others' do (NoPE)."""
    rotary_fraction: float = Field(1.0, gt=0, le=1)
    """Share of each head that turns; the rest knows no place."""
    relative_buckets: int = Field(32, ge=2)
    """Relative positions: how many distances are told apart."""
    relative_max_distance: int = Field(128, ge=2)
    """Relative positions: from here on all distances are alike."""
    alibi_scale: float = Field(1.0, gt=0)
    """ALiBi: factor on the slopes of all heads."""
    sliding_window: int | None = Field(None, ge=1)
    """In a sliding layer a token sees itself and the `sliding_window - 1` tokens before it; null: all before it."""
    layer_types: tuple[LayerType, ...] | None = None
    """Which layers slide, if there is a window; default: all of them."""
    norm: Literal["rmsnorm", "layernorm"] = "rmsnorm"
    """Kind of normalisation."""
    norm_eps: float = Field(1e-5, gt=0)
    """Added to the variance inside the norm."""
    norm_offset: float = 0.0
    """Added to the weight of an RMSNorm; 1 where files store the distance from the identity (Gemma)."""
    norm_placement: Literal["pre", "post", "both", "output"] = "pre"
    """Before each branch, after its sum with the residual, before and after each branch, or on its output only."""
    final_norm: bool = True
    """A norm after the last block."""
    embedding_norm: bool = False
    """A norm on the embeddings."""
    parallel: Literal["none", "one_norm", "two_norms"] = "none"
    """Attention and MLP one after the other, or side by side on the same input with one shared or two own norms."""
    query_key_norm: Literal["none", "head", "projection"] = "none"
    """An RMSNorm on queries and keys, over each head or over all heads together."""
    attention_scale: float | None = Field(None, gt=0)
    """Factor on the attention scores; default: 1 / sqrt(head_dim)."""
    attention_softcap: float | None = Field(None, gt=0)
    """Bound on the attention scores: c * tanh(score / c)."""
    logit_softcap: float | None = Field(None, gt=0)
    """Bound on the logits, alike."""
    mlp: Literal["gated", "plain"] = "gated"
    """down(act(gate(x)) * up(x)), or down(act(up(x)))."""
    activation: Literal["silu", "gelu", "gelu_tanh", "relu"] = "silu"
    """Non-linearity of the MLP."""
    experts: int = Field(0, ge=0, le=1 << 12)
    """Mixture of experts: MLPs in each block, of which each token passes `experts_per_token`; 0: one MLP, no router."""
    experts_per_token: int = Field(2, ge=1)
    """Experts that each token passes."""
    balance_loss: float = Field(0.0, ge=0)
    """Weight of the loss that keeps the experts equally busy."""
    biases: tuple[Bias, ...] = ()
    """Which linear layers have a bias; `attention` stands for all four of its layers."""
    token_types: int = Field(0, ge=0)
    """Kinds of segments with an embedding of their own (BERT: 2)."""
    embedding_scale: float = Field(1.0, gt=0)
    """Factor on the token embeddings."""
    head_scale: float = Field(1.0, gt=0)
    """Factor on the hidden states before the language-model head (T5 v1.0: hidden_size ** -0.5)."""
    tie_embeddings: bool = False
    """The language-model head is the transposed embedding."""
    head: Literal["language", "masked", "sequence", "token", "span", "detector", "embedding", "none"] = "language"
    """What the model ends in: logits of every token, of masked tokens (with a transform before), one set of scores for
    a sequence or for each token, begin and end of a span, one score for each token, one vector for a sequence, or
    hidden states."""
    labels: tuple[str, ...] = ()
    """Names of what a `sequence` or `token` head scores, in order, or an `embedding` head beside its vector."""
    problem: Literal["single_label", "multi_label", "regression"] = "single_label"
    """What the scores of a `sequence` head mean."""
    pooling: Literal["first", "last", "mean", "max"] = "first"
    """Which hidden state stands for a sequence."""
    head_dense: Literal["none", "linear", "tanh", "relu", "gelu"] = "none"
    """A dense layer with this activation before the scores of a `sequence`, `token`, `span` or `detector` head, or
    behind the pooled hidden state of an `embedding` head."""
    head_size: int | None = Field(None, ge=1, le=1 << 16)
    """Width of the dense layer of an `embedding` head; default: hidden_size."""
    head_projection: int = Field(0, ge=0, le=1 << 16)
    """Width of a further layer of an `embedding` head, which training alone looks at; 0: none."""
    head_bias: bool = False
    """Whether the last layer of the head has a bias."""
    head_dropout: float = Field(0.0, ge=0, lt=1)
    """Before the scores of a `sequence`, `token` or `span` head, in training."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """On the output of attention and MLP, in training."""
    embedding_dropout: float = Field(0.0, ge=0, lt=1)
    """On the embeddings, in training."""
    attention_dropout: float = Field(0.0, ge=0, lt=1)
    """On the attention weights, in training."""
    activation_dropout: float = Field(0.0, ge=0, lt=1)
    """Inside of a plain MLP, after the activation, in training."""
    init: Literal["normal", "fan_in"] = "normal"
    """One standard deviation for all initial weights, or each divided by the root of what it adds up (T5)."""
    init_std: float = Field(0.02, gt=0)
    """Standard deviation of the initial weights; with `fan_in` that of the embeddings, and the factor on the others."""
    bos_id: int | None = Field(None, ge=0)
    """Token that begins a document."""
    eos_id: int | tuple[int, ...] | None = None
    """Token, or tokens, that end a document."""
    pad_id: int | None = Field(None, ge=0)
    """Token that fills rows in other programs; never used here."""
    start_id: int | None = Field(None, ge=0)
    """Token with which the decoder of an encoder-decoder starts."""

    @model_validator(mode="before")
    @classmethod
    def _fill_defaults(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        filled = dict(values)
        heads, width = filled.get("num_heads"), filled.get("hidden_size")
        if filled.get("num_kv_heads") is None:
            filled["num_kv_heads"] = heads
        if filled.get("head_dim") is None and isinstance(heads, int) and isinstance(width, int) and heads > 0:
            if width % heads:
                raise ValueError(f"hidden_size {width} is not divisible by num_heads {heads}")
            filled["head_dim"] = width // heads
        if filled.get("embedding_size") == width:
            filled["embedding_size"] = None
        if filled.get("kind") == "encoder_decoder" and filled.get("num_decoder_layers") is None:
            filled["num_decoder_layers"] = filled.get("num_layers")
        ends = filled.get("eos_id")
        if isinstance(ends, list | tuple) and len(ends) == 1:
            filled["eos_id"] = ends[0]
        biases = filled.get("biases")
        if isinstance(biases, list | tuple) and all(isinstance(name, str) for name in biases):
            both = ("query_key_value", "attention_output")
            wanted = {name for given in biases for name in (both if given == "attention" else (given,))}
            known = [name for name in get_args(Bias) if name in wanted]
            filled["biases"] = (*known, *sorted(wanted - set(known)))
        return filled

    @model_validator(mode="after")
    def _fits_together(self) -> ModelConfig:
        if self.num_heads % self.num_kv_heads:
            raise ValueError(f"num_heads {self.num_heads} is not divisible by num_kv_heads {self.num_kv_heads}")
        if self.positions == "rotary":
            self._check_rotary()
        special = ("bos_id", (self.bos_id,)), ("eos_id", self.eos_ids), ("pad_id", (self.pad_id,))
        for name, ids in (*special, ("start_id", (self.start_id,))):
            if any(token is not None and not 0 <= token < self.vocab_size for token in ids):
                raise ValueError(f"{name} {getattr(self, name)} is outside of the vocabulary of {self.vocab_size}")
        if self.layer_types is not None and len(self.layer_types) != self.num_layers:
            raise ValueError(f"layer_types names {len(self.layer_types)} layers, the model has {self.num_layers}")
        if self.kind != "encoder_decoder" and self.num_decoder_layers is not None:
            raise ValueError("num_decoder_layers belongs to models of the kind encoder_decoder")
        if self.experts and self.experts_per_token > self.experts:
            raise ValueError(f"experts_per_token {self.experts_per_token} is more than experts {self.experts}")
        if self.head in ("sequence", "token") and not self.labels:
            raise ValueError(f"a head of the kind {self.head!r} needs labels")
        return self

    def _check_rotary(self) -> None:
        if self.rotary_dim % 2 or not self.rotary_dim:
            part = "head_dim" if self.rotary_fraction == 1 else "head_dim * rotary_fraction"
            raise ValueError(f"rotary positions need an even {part}, not {self.rotary_dim}")
        for rope in (self.rope, self.local_rope):
            scaling = None if rope is None else rope.scaling
            if isinstance(scaling, LongRopeScaling):
                for name in ("short_factor", "long_factor"):
                    if len(getattr(scaling, name)) != self.rotary_dim // 2:
                        raise ValueError(f"rope.scaling.{name} needs head_dim / 2 = {self.rotary_dim // 2} numbers")

    @model_validator(mode="after")
    def _family_can_hold_it(self, info: ValidationInfo) -> ModelConfig:
        """Refuse now what could not be saved later: the family's config.json must give back the same shape."""
        if info.context == "read back":
            return self
        from trivium.models.build import family, family_names
        from trivium.models.huggingface import read_config, write_config

        if self.family not in family_names():
            raise ValueError(f"unknown family {self.family!r}, known are {', '.join(family_names())}")
        file = family(self.family)
        read = ModelConfig.model_validate(read_config(file, write_config(file, self)), context="read back")
        for name in ModelConfig.model_fields:
            mine, theirs = getattr(self, name), getattr(read, name)
            if mine != theirs:
                raise ValueError(f"{name} must be {theirs!r} in the family {self.family}, not {mine!r}")
        return self

    @property
    def embedding_width(self) -> int:
        """Numbers in the embedding of a token."""
        return self.embedding_size or self.hidden_size

    @property
    def rotary_dim(self) -> int:
        """Coordinates of each head that turn."""
        return int(self.head_dim * self.rotary_fraction)

    def slides(self, layer: int) -> bool:
        """Whether `layer` sees a window only."""
        return self.sliding_window is not None and (self.layer_types is None or self.layer_types[layer] == "sliding")

    @property
    def eos_ids(self) -> tuple[int, ...]:
        """All tokens that end a document, possibly none."""
        if self.eos_id is None:
            return ()
        return (self.eos_id,) if isinstance(self.eos_id, int) else self.eos_id

    @property
    def scores(self) -> int:
        """Numbers that a `sequence`, `token`, `span` or `detector` head gives."""
        return {"span": 2, "detector": 1}.get(self.head, len(self.labels))

    @property
    def vector_size(self) -> int:
        """Numbers in the vector of an `embedding` head."""
        return self.hidden_size if self.head_dense == "none" else self.head_size or self.hidden_size

    def parameters(self) -> int:
        """Exact number of parameters; a tied head counts once."""
        total = (self.vocab_size + self.token_types) * self.embedding_width
        total += self._stack(self.num_layers, cross=False)
        if self.num_decoder_layers is not None:
            total += self._stack(self.num_decoder_layers, cross=True)
        return total + self._head()

    def _norm(self, width: int | None = None) -> int:
        return (width or self.hidden_size) * (2 if self.norm == "layernorm" else 1)

    def _stack(self, layers: int, *, cross: bool) -> int:
        """Parameters of `layers` blocks and of what stands around them."""
        width, inner = self.hidden_size, self.intermediate_size
        queries, keys = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        attention = width * (2 * queries + 2 * keys)
        attention += (queries + 2 * keys) * ("query_key_value" in self.biases)
        attention += width * ("attention_output" in self.biases)
        attention += {"none": 0, "head": 2 * self.head_dim, "projection": queries + keys}[self.query_key_norm]
        wide = 2 if self.mlp == "gated" else 1
        mlp = width * inner * (wide + 1) + (wide * inner + width) * ("mlp" in self.biases)
        if self.experts:
            mlp = mlp * self.experts + width * self.experts
        norms = 1 if self.parallel == "one_norm" else 4 if self.norm_placement == "both" else 2
        block = attention + mlp + norms * self._norm() + cross * (attention + self._norm())
        narrow = self.embedding_width
        around = self.final_norm * self._norm() + self.embedding_norm * self._norm(narrow)
        if self.embedding_size is not None:
            around += narrow * width + width
        if self.positions == "learned":
            around += (self.max_positions + self.position_offset) * narrow
        if self.positions == "relative":
            around += self.relative_buckets * self.num_heads
        return layers * block + around

    def _head(self) -> int:
        width, narrow, bias = self.hidden_size, self.embedding_width, int(self.head_bias)
        dense = width * width + width
        if self.head in ("language", "masked"):
            own = 0 if self.tie_embeddings else self.vocab_size * narrow
            before = width * narrow + narrow + self._norm(narrow) if self.head == "masked" else 0
            return own + self.vocab_size * bias + before
        if self.head == "none":
            return 0
        if self.head == "embedding":
            own = 0 if self.head_dense == "none" else self.vector_size * (width + bias)
            return own + self.head_projection * (self.vector_size + bias) + self.scores * (width + bias)
        return self.scores * (width + bias) + (dense if self.head_dense != "none" else 0)
