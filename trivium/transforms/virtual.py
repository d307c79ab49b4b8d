"""What prompt tuning, prefix tuning and P-tuning share: virtual tokens before a sequence, stored as PEFT does.

The parameters are those of one module, `model.prompts[name]`, which makes the vectors.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Self

from trivium.errors import ConfigError, ModelError
from trivium.lazy import torch
from trivium.models.transform import Transform

if TYPE_CHECKING:
    from torch import Tensor, nn

    from trivium.models.config import ModelConfig
    from trivium.models.transformer import Transformer

STORED = "prompt_embeddings"
"""Name of the tensor in PEFT's file."""


class VirtualTokens(Transform):
    """Base of the transforms that put virtual tokens before each sequence."""

    peft_prefix: ClassVar[str] = "base_model."
    attention_only: ClassVar[bool] = False
    """Whether they are keys and values (a prefix) and not vectors that pass through all blocks (a prompt)."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.loaded: Tensor | None = None
        """The vectors of a file, whatever made them."""

    def first_vectors(self, model: Transformer, *, seed: int) -> nn.Module:
        """The module that makes the vectors, with its first values."""
        raise NotImplementedError

    def check(self, config: ModelConfig) -> None:
        """Learned positions end somewhere, and virtual tokens take some of them."""
        if config.positions == "learned" and self.count >= config.max_positions:
            raise ConfigError(
                f"the model has only {config.max_positions} positions, which virtual tokens take too",
                where=f"{self.where}.tokens",
                value=self.count,
                fix="use fewer virtual tokens",
            )

    @property
    def count(self) -> int:
        """How many virtual tokens there are."""
        return len(self.loaded) if self.loaded is not None else int(self.config.tokens)

    def virtual_tokens(self, config: ModelConfig) -> tuple[int, int]:
        """A prompt of an encoder-decoder is read by its encoder, a prefix by its decoder (as in PEFT)."""
        source = config.kind == "encoder_decoder" and not self.attention_only
        return (0, self.count) if source else (self.count, 0)

    def install(self, model: Transformer, *, seed: int) -> None:
        """The vectors, or what makes them. With them the model computes something else from the start."""
        from trivium.models.virtual import Vectors

        self.check(model.config)
        if self.loaded is None:
            model.prompts[self.name] = self.first_vectors(model, seed=seed)
            return
        like = model.embed.weight
        kind = torch.promote_types(like.dtype, torch.float32)
        model.prompts[self.name] = Vectors(self.loaded.to(device=like.device, dtype=kind))

    def remove(self, model: Transformer) -> None:
        """Takes the vectors away."""
        del model.prompts[self.name]

    def settings(self, model: Transformer) -> dict[str, Any]:
        """PEFT's PromptLearningConfig."""
        config = model.config
        both = config.kind == "encoder_decoder" and self.attention_only
        heads = config.num_kv_heads if self.attention_only else config.num_heads
        return {
            "num_virtual_tokens": self.count,
            "token_dim": heads * config.head_dim if self.attention_only else config.embedding_width,
            "num_transformer_submodules": 2 if both else 1,
            "num_attention_heads": heads,
            "num_layers": config.num_layers,
        }

    def tensors(self, model: Transformer, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """`prompt_embeddings` [tokens, W]: what the module makes of its parameters."""
        start = f"prompts.{self.name}."
        own = {name.removeprefix(start): weights[name] for name in self.added}
        module = model.prompts[self.name]
        training = module.training
        with torch.no_grad():
            vectors = torch.func.functional_call(module.eval(), own, ())
        module.train(training)
        return {STORED: vectors.detach().contiguous()}

    @property
    def folds(self) -> bool:
        """Whether a network made the vectors, which a checkpoint must keep beside them."""
        return len(self.added) > 1

    @classmethod
    def from_peft(cls, raw: Mapping[str, Any], tensors: Mapping[str, Tensor], model: Transformer) -> Self:
        """The vectors as PEFT stored them; of two halves for encoder and decoder only the first one is ever used."""
        if STORED not in tensors:
            raise ModelError("the file holds no virtual tokens", where=STORED)
        count, width = int(raw["num_virtual_tokens"]), cls.width(model.config)
        vectors = tensors[STORED][:count]
        if tuple(vectors.shape) != (count, width):
            raise ModelError(
                "the virtual tokens do not fit the base: they have another shape",
                where=STORED,
                value=f"{list(tensors[STORED].shape)}, by the base and adapter_config.json [{count}, {width}]",
                fix="give the base they were trained on",
            )
        self = cls(cls.Config.model_validate({"tokens": count}))
        self.loaded = vectors
        return self

    @classmethod
    def width(cls, config: ModelConfig) -> int:
        """Numbers that one virtual token is stored with."""
        inside = 2 * config.num_layers * config.num_kv_heads * config.head_dim
        return inside if cls.attention_only else config.embedding_width

    def values(self, tensors: Mapping[str, Tensor], model: Transformer) -> dict[str, Tensor]:
        """The reverse of `tensors`, where no network made them."""
        return {} if self.folds else {f"prompts.{self.name}.weight": tensors[STORED][: self.count]}
