"""P-tuning: a soft prompt that a small network makes while it trains.

    [p_1 .. p_n] = network(e_1 .. e_n)        the network is an MLP, or an LSTM that reads the e from both sides

e and the network train, the base is frozen. Training is steadier than that of the p themselves. Stored are the p
alone, as PEFT does; a checkpoint keeps the network too, so a run continues as if it had not stopped.

Liu et al. 2021 (arXiv 2103.10385).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import Field, model_validator

from trivium.config import StrictModel
from trivium.transforms.virtual import VirtualTokens

if TYPE_CHECKING:
    from torch import Tensor, nn

    from trivium.models.transformer import Transformer


class PTuning(VirtualTokens):
    """A soft prompt made by a network."""

    class Config(StrictModel):
        """Settings of P-tuning."""

        tokens: int = Field(20, ge=1)
        """Virtual tokens."""
        encoder: Literal["mlp", "lstm"] = "mlp"
        """The network: three layers, or an LSTM and two layers."""
        hidden_size: int | None = Field(None, ge=1)
        """Width inside the network; default: that of the model."""
        lstm_layers: int | None = Field(None, ge=1)
        """Layers of the LSTM; default 2."""
        lstm_dropout: float = Field(0.0, ge=0, lt=1)
        """Between layers of the LSTM, in training."""

        @model_validator(mode="after")
        def _lstm_settings_for_lstm(self) -> Self:
            for name in ("lstm_layers", "lstm_dropout"):
                if self.encoder == "mlp" and getattr(self, name):
                    raise ValueError(f"{name} has no effect on an MLP: delete it, or set encoder: lstm")
            if self.lstm_dropout and self.lstm_layers == 1:
                raise ValueError("lstm_dropout stands between layers, and there is one: set lstm_layers: 2")
            return self

    config: Config
    peft_type = "P_TUNING"

    def first_vectors(self, model: Transformer, *, seed: int) -> nn.Module:
        """The network."""
        from torch.nn import ReLU

        from trivium.models.virtual import LSTMEncoder, MLPEncoder, start

        width = model.config.embedding_width
        hidden = self.config.hidden_size or width
        module: nn.Module
        count = self.config.tokens
        if self.config.encoder == "mlp":
            module = MLPEncoder(count, width, (hidden, hidden, width), ReLU)
        else:
            module = LSTMEncoder(count, width, hidden, self.config.lstm_layers or 2, self.config.lstm_dropout)
        return start(module, std=1.0, seed=seed, name=f"prompts.{self.name}", like=model.embed.weight)

    def prompt(self, model: Transformer) -> Tensor:
        """[tokens, D]."""
        made: Tensor = model.prompts[self.name]()
        return made

    def settings(self, model: Transformer) -> dict[str, Any]:
        """PEFT's PromptEncoderConfig."""
        config = self.config
        return {
            **super().settings(model),
            "encoder_reparameterization_type": config.encoder.upper(),
            "encoder_hidden_size": config.hidden_size or model.config.embedding_width,
            "encoder_num_layers": config.lstm_layers or 2,
            "encoder_dropout": config.lstm_dropout,
        }
