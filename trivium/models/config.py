"""The shape of a model: everything that decides which parameters exist and what they compute. Imports no torch.

A family (`families/<name>.py`) gives the defaults and the presets; this class is what all families have in common.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

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


class ModelConfig(StrictModel):
    """The shape of one model."""

    family: str
    """A file of `trivium/models/families`; decides the names in Hugging Face folders."""
    vocab_size: int = Field(ge=1, le=1 << 24)
    """Rows of the embedding, V."""
    hidden_size: int = Field(ge=1, le=1 << 24)
    """Width of the residual stream, D."""
    num_layers: int = Field(ge=1, le=1 << 10)
    """Blocks."""
    num_heads: int = Field(ge=1, le=1 << 16)
    """Query heads, H."""
    num_kv_heads: int = Field(ge=1, le=1 << 16)
    """Key/value heads, K; default: num_heads. Fewer is grouped-query attention."""
    head_dim: int = Field(ge=1, le=1 << 16)
    """Width of one head, C; default: hidden_size / num_heads."""
    intermediate_size: int = Field(ge=1, le=1 << 24)
    """Width inside the MLP."""
    max_positions: int = Field(ge=1, le=1 << 30)
    """Longest sequence: a hard limit with learned positions, the trained length with rotary ones."""
    positions: Literal["rotary", "learned"] = "rotary"
    """How a token knows its place."""
    rope: Rope = Rope()
    """Settings of rotary positions."""
    norm: Literal["rmsnorm", "layernorm"] = "rmsnorm"
    """Normalisation before attention, before the MLP and at the end."""
    norm_eps: float = Field(1e-5, gt=0)
    """Added to the variance inside the norm."""
    mlp: Literal["gated", "plain"] = "gated"
    """down(act(gate(x)) * up(x)), or down(act(up(x)))."""
    activation: Literal["silu", "gelu", "gelu_tanh", "relu"] = "silu"
    """Non-linearity of the MLP."""
    biases: tuple[Literal["attention", "mlp"], ...] = ()
    """Which linear layers have a bias."""
    tie_embeddings: bool = False
    """The head is the transposed embedding."""
    sliding_window: int | None = Field(None, ge=1)
    """A token sees itself and the `sliding_window - 1` tokens before it; null: all before it."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """On the output of attention and MLP, in training."""
    embedding_dropout: float = Field(0.0, ge=0, lt=1)
    """On the embeddings, in training."""
    attention_dropout: float = Field(0.0, ge=0, lt=1)
    """On the attention weights, in training."""
    init_std: float = Field(0.02, gt=0)
    """Standard deviation of the initial weights."""
    bos_id: int | None = Field(None, ge=0)
    """Token that begins a document."""
    eos_id: int | tuple[int, ...] | None = None
    """Token, or tokens, that end a document."""
    pad_id: int | None = Field(None, ge=0)
    """Token that fills rows in other programs; never used here."""

    @model_validator(mode="before")
    @classmethod
    def _fill_heads(cls, values: Any) -> Any:
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
        ends = filled.get("eos_id")
        if isinstance(ends, list | tuple) and len(ends) == 1:
            filled["eos_id"] = ends[0]
        return filled

    @model_validator(mode="after")
    def _fits_together(self) -> ModelConfig:
        if self.num_heads % self.num_kv_heads:
            raise ValueError(f"num_heads {self.num_heads} is not divisible by num_kv_heads {self.num_kv_heads}")
        if self.positions == "rotary" and self.head_dim % 2:
            raise ValueError(f"rotary positions need an even head_dim, not {self.head_dim}")
        scaling = self.rope.scaling
        if isinstance(scaling, LongRopeScaling):
            for name in ("short_factor", "long_factor"):
                if len(getattr(scaling, name)) != self.head_dim // 2:
                    raise ValueError(f"rope.scaling.{name} needs head_dim / 2 = {self.head_dim // 2} numbers")
        for name, ids in (("bos_id", (self.bos_id,)), ("eos_id", self.eos_ids), ("pad_id", (self.pad_id,))):
            if any(token is not None and not 0 <= token < self.vocab_size for token in ids):
                raise ValueError(f"{name} {getattr(self, name)} is outside of the vocabulary of {self.vocab_size}")
        return self

    @model_validator(mode="after")
    def _family_can_hold_it(self, info: ValidationInfo) -> ModelConfig:
        """Refuse now what could not be saved later: the family's config.json must give back the same shape."""
        if info.context == "read back":
            return self
        from trivium.models.build import family, family_names

        if self.family not in family_names():
            raise ValueError(f"unknown family {self.family!r}, known are {', '.join(family_names())}")
        file = family(self.family)
        read = ModelConfig.model_validate(file.from_hf(file.to_hf(self)), context="read back")
        for name in ModelConfig.model_fields:
            mine, theirs = getattr(self, name), getattr(read, name)
            if mine != theirs:
                raise ValueError(f"{name} must be {theirs!r} in the family {self.family}, not {mine!r}")
        return self

    @property
    def eos_ids(self) -> tuple[int, ...]:
        """All tokens that end a document, possibly none."""
        if self.eos_id is None:
            return ()
        return (self.eos_id,) if isinstance(self.eos_id, int) else self.eos_id

    def parameters(self) -> int:
        """Exact number of parameters; a tied head counts once."""
        width, inner = self.hidden_size, self.intermediate_size
        queries, keys = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        norm = width * (2 if self.norm == "layernorm" else 1)
        attention = width * (2 * queries + 2 * keys)
        if "attention" in self.biases:
            attention += queries + 2 * keys + width
        wide = 2 if self.mlp == "gated" else 1
        mlp = width * inner * (wide + 1)
        if "mlp" in self.biases:
            mlp += wide * inner + width
        embedding = self.vocab_size * width
        total = embedding + self.num_layers * (attention + mlp + 2 * norm) + norm
        if self.positions == "learned":
            total += self.max_positions * width
        return total if self.tie_embeddings else total + embedding
