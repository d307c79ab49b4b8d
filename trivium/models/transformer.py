"""The transformer all families are built from: decoder, encoder, or encoder-decoder.

Components are chosen when the model is built, from its `ModelConfig`; `forward` never asks which family it runs.
Tokens are a flat ragged run (see `trivium.data.batch`): T tokens, no padding.

Shapes: T tokens, S sequences, D width, E width of the embeddings (D but in ELECTRA), V vocabulary; T_s tokens of the
sources.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from trivium.data.batch import Layout, Source
from trivium.errors import ModelError
from trivium.models import rotary, tied
from trivium.models.attention import (
    Bias,
    CrossPlan,
    LayerPlan,
    Pattern,
    Plan,
    plan_attention,
    plan_cross_attention,
    plan_picked_attention,
)
from trivium.models.cache import KVCache
from trivium.models.config import ModelConfig, Rope
from trivium.models.heads import LanguageHead, make_head
from trivium.models.layers import Block, Embedding, Linear, make_block, make_norm
from trivium.models.mixing import Mixer
from trivium.models.positions import Alibi, RelativeBias
from trivium.models.transform import Base, Transform
from trivium.models.uncompiled import UNCOMPILED
from trivium.models.virtual import OpenedAttention, Opening, opening

Then = Callable[[Tensor, Any], Any]
Hook = Callable[[Transform, "Transformer"], Tensor | None]
Stepper = Callable[[Tensor, KVCache, Callable[[], Tensor]], Tensor]


class Stack(nn.Module):
    """Blocks one after the other, with what stands before and after them.

    causal: a token sees those before it only. cross: it also sees the source of its sequence.
    activation_checkpointing: of every so many blocks keep the input only, and compute the rest again in the backward
                              pass; 0 for none.
    """

    def __init__(self, config: ModelConfig, layers: int, *, causal: bool, cross: bool = False) -> None:
        super().__init__()
        self.config = config
        self.causal = causal
        self.activation_checkpointing = 0
        self.fused: Callable[[Tensor, Plan], Tensor] | None = None
        """What runs instead of the blocks while text is generated (`trivium.models.fused`)."""
        self.position_embed: Embedding | None = None
        if config.positions == "learned":
            self.position_embed = Embedding(config.max_positions + config.position_offset, config.embedding_width)
        self.embed_norm = make_norm(config, config.embedding_width) if config.embedding_norm else None
        self.embed_dropout = nn.Dropout(config.embedding_dropout)
        self.embed_projection: Linear | None = None
        if config.embedding_size is not None:
            self.embed_projection = Linear(config.embedding_size, config.hidden_size)
        self.relative_bias = RelativeBias(config, causal=causal) if config.positions == "relative" else None
        self.blocks = nn.ModuleList(make_block(config, layer, cross=cross) for layer in range(layers))
        self.final_norm = make_norm(config) if config.final_norm else nn.Identity()

    def plan(
        self,
        layout: Layout,
        *,
        device: torch.device,
        cache: KVCache | None = None,
        memory: Tensor | None = None,
        source: Layout | None = None,
        prefix: Opening | None = None,
        wanted: Tensor | None = None,
    ) -> Plan:
        """Everything the blocks share for tokens that lie as `layout` says: positions, angles, attention calls.

        memory, source: hidden states [T_s, D] and layout of the sources, for a stack that looks at them.
        prefix: keys and values that stand before the sequences.
        wanted: [W] the tokens, ascending, that the last block is run for.
        """
        seen = layout if prefix is None else prefix.layout
        if cache is None:
            totals, positions = list(seen.lengths), seen.positions(device)
        else:
            totals, positions = _check_room(seen, cache), torch.tensor(cache.lengths, device=device)
            if seen.uniform != 1:
                positions = seen.positions(device) + positions[seen.sequence_ids(device)]
        self._check_positions(totals)
        if prefix is not None:
            positions = prefix.drop(positions)
        config = self.config
        drops = self.training and config.attention_dropout > 0

        def layer_plan(*, sliding: bool) -> LayerPlan:
            own, rope = self.layer_kind(sliding=sliding)
            angles = None
            if config.positions == "rotary" and cache is not None and not rotary.depends_on_length(rope):
                angles = _stored_angles(config, rope, positions, cache, sliding=sliding)
            elif config.positions == "rotary":
                angles = rotary.cos_sin(config, rope, positions, layout=layout, totals=totals)
            attend = plan_attention(seen, pattern=own, device=device, cache=cache, dropout=drops)
            if prefix is not None:
                return LayerPlan(angles, OpenedAttention(attend, prefix))
            picked = None if angles is not None else plan_picked_attention(layout, wanted, pattern=own, dropout=drops)
            return LayerPlan(angles, attend, picked)

        kinds = {config.slides(layer) for layer in range(len(self.blocks))}
        cross = None
        if self.blocks and getattr(self.blocks[0], "cross", None) is not None:
            across = Pattern(causal=False, scale=config.attention_scale, softcap=config.attention_softcap)
            attend = plan_cross_attention(layout, source, pattern=across, device=device, cache=cache, dropout=drops)
            cross = CrossPlan(memory, attend)
        return Plan(
            positions,
            layer_plan(sliding=False) if False in kinds else None,
            layer_plan(sliding=True) if True in kinds else None,
            cross,
        )

    def layer_kind(self, *, sliding: bool) -> tuple[Pattern, Rope]:
        """How the layers attend that see a window, or those that see everything, and how their positions turn."""
        config = self.config
        bias: Bias | None = self.relative_bias if config.positions != "alibi" else Alibi(config)
        pattern = Pattern(
            causal=self.causal,
            window=config.sliding_window if sliding else None,
            scale=config.attention_scale,
            softcap=config.attention_softcap,
            bias=bias,
        )
        return pattern, config.local_rope or config.rope if sliding else config.rope

    def _check_positions(self, totals: Sequence[int]) -> None:
        limit = self.config.max_positions
        if self.position_embed is not None and max(totals, default=0) > limit:
            raise ModelError(
                "a sequence is longer than the model has positions",
                value=f"{max(totals)} tokens, {limit} positions",
                fix="use shorter sequences (data.sequence_length), or a model with more positions",
            )

    def enter(self, embedded: Tensor, positions: Tensor, offset: Tensor | None = None) -> Tensor:
        """Token embeddings [T, E] at `positions` [T] -> [T, D], what the first block reads."""
        hidden = embedded
        if self.position_embed is not None:
            hidden = hidden + self.position_embed(positions + self.config.position_offset)
        if offset is not None:
            hidden = hidden + offset
        if self.embed_norm is not None:
            hidden = self.embed_norm(hidden)
        entered: Tensor = self.embed_dropout(hidden)
        return entered if self.embed_projection is None else self.embed_projection(entered)

    def run_blocks(
        self, hidden: Tensor, plan: Plan, blocks: Iterable[nn.Module] | None = None, *, wanted: Tensor | None = None
    ) -> Tensor:
        """[T, D] -> [T, D] through `blocks` (default: all); the last one only for the tokens `wanted` [W]: [W, D]."""
        every = self.activation_checkpointing if torch.is_grad_enabled() else 0
        if self.fused is not None and blocks is None and wanted is None and not torch.is_grad_enabled():
            with UNCOMPILED:
                return self.fused(hidden, plan)
        chosen: list[Any] = list(self.blocks if blocks is None else blocks)
        with nullcontext() if plan.compiles else UNCOMPILED:
            for number, block in enumerate(chosen):
                given = (hidden, plan) if wanted is None or block is not chosen[-1] else (hidden, plan, wanted)
                if every and number % every == 0:
                    hidden = torch.utils.checkpoint.checkpoint(block, *given, use_reentrant=False)
                else:
                    hidden = block(*given)
        return hidden


class Transformer(Stack):
    """Embedding, blocks, final norm and head; the blocks of an encoder-decoder are the decoder's.

    Its parameters have shapes but no memory (device "meta") until `build_model` or `load_model` gives them values.

    encoder: the stack that reads the sources of an encoder-decoder; it shares the embedding.
    transforms: what was applied to it, in order. base: the model folder that its adapters belong to.
    prompts: what makes virtual tokens, by the name of its transform.
    mixer: further adapters, each of which acts on the sequences that ask for it.
    invented: names of parameters that are random although the model was read from a folder: those of a new head.
    key_heads: key/value heads of this process; fewer than the configuration says if the model is divided.
    balance: after a forward pass of a mixture of experts, how unequally busy the experts were (1: equally); a scalar.
    """

    def __init__(self, config: ModelConfig) -> None:
        with torch.device("meta"):
            both = config.kind == "encoder_decoder"
            layers = config.num_decoder_layers if both else config.num_layers
            super().__init__(config, layers or 0, causal=config.kind != "encoder", cross=both)
            self.embed = Embedding(config.vocab_size, config.embedding_width)
            types = config.token_types
            self.token_type_embed = Embedding(types, config.embedding_width) if types else None
            self.encoder = Stack(config, config.num_layers, causal=False) if both else None
            self.head = make_head(config)
        self.key_heads = config.num_kv_heads
        self.prompts = nn.ModuleDict()
        self.mixer = Mixer()
        self.balance: Tensor | None = None
        self.stepper: Stepper | None = None
        """What runs instead of a forward pass of one token for each row of a cache (`trivium.models.graphs`): from the
        tokens, the cache and the forward pass it stands for to the final hidden states."""
        self.transforms: list[Transform] = []
        self.base: Base | None = None
        self.invented: list[str] = []
        self.tie()

    def tie(self) -> None:
        """Make the head use the embedding's weight, if the configuration says so."""
        if self.tied:
            self.head.weight = self.embed.weight

    @property
    def tied(self) -> bool:
        """Whether the head is the transposed embedding."""
        return self.config.tie_embeddings and hasattr(self.head, "weight")

    @property
    def all_blocks(self) -> list[Block]:
        """The blocks of encoder and decoder."""
        stacks: list[Stack] = [self, *([] if self.encoder is None else [self.encoder])]
        return [block for stack in stacks for block in stack.blocks if isinstance(block, Block)]

    @property
    def _can_leave_out(self) -> bool:
        """Whether the last block can do without some tokens: not where others count them."""
        return bool(self.blocks) and self.config.kind != "encoder_decoder" and not self.config.experts

    @contextmanager
    def _one_gradient(self) -> Iterator[None]:
        """A forward pass whose embedding and head, where they are tied, share the gradient of their weight."""
        embed, head = self.embed, self.head
        # The weight of the head last: where rows of new tokens train (`token_rows`), asking for it makes it.
        if not (isinstance(head, LanguageHead) and tied.suits(embed.weight) and head.weight is embed.weight):
            yield
            return
        embed.shared, head.shared = tied.share(embed.weight)
        try:
            yield
        finally:
            embed.shared = head.shared = None

    def virtual_tokens(self, adapter: str = "") -> tuple[int, int]:
        """How many virtual tokens stand before each sequence, and before each source; under `adapter`."""
        pairs = [transform.virtual_tokens(self.config) for transform in self.transforms]
        pairs += [self.mixer.entry(adapter).virtual_tokens()] if adapter else []
        return sum(own for own, _ in pairs), sum(source for _, source in pairs)

    def checkpoint_activations(self, every: int = 1) -> None:
        """Of every so many blocks keep only the input, and compute the rest again in the backward pass."""
        self.activation_checkpointing = every
        if self.encoder is not None:
            self.encoder.activation_checkpointing = every

    def assign(self, weights: Mapping[str, Tensor]) -> None:
        """Make `weights`, by name and without a tied head, the parameters; they are not copied."""
        tied = {"head.weight": weights["embed.weight"]} if self.tied else {}
        self.load_state_dict({**weights, **tied}, assign=True)
        self.tie()

    def forward(
        self,
        input_ids: Tensor,
        layout: Layout | None = None,
        *,
        then: Then | None = None,
        cache: KVCache | None = None,
        offset: Tensor | None = None,
        source: Source | None = None,
        token_types: Tensor | None = None,
        wanted: Tensor | None = None,
        adapters: Sequence[str] | None = None,
    ) -> Any:
        """What the head says, or what `then` makes of the hidden states.

        input_ids:   [B, L] for B sequences of equal length, or [T] with a `layout`. Of an encoder-decoder the
                     decoder's.
        then:        called with the final hidden states [T, D] and the head; its result is returned. Losses go through
                     it because only inside of `forward` are the weights of a sharded model complete.
        cache:       sequence s continues row s of the cache; `layout` counts the new tokens only.
        offset:      [T, E], added to the input embeddings.
        source:      for an encoder-decoder: one source for each sequence; once it is in the cache, None.
        token_types: [T] segment of each token, for models that tell them apart; default: all 0.
        wanted:      [W] tokens, ascending, whose hidden states `then` looks at; the others may be zero, and cost less.
        adapters:    for each sequence the entry of `mixer` that acts on it, empty for none.
        Returns logits [B, L, V] or [T, V] (scores of sequences: [S, N]), or the result of `then`.
        """
        shape = input_ids.shape
        if layout is None:
            layout = Layout((shape[1],) * shape[0])
            input_ids = input_ids.reshape(-1)
        if layout.tokens != input_ids.shape[0]:
            raise ValueError(f"the layout counts {layout.tokens} tokens, input_ids has {input_ids.shape[0]}")
        plain = partial(self._hidden, input_ids, layout, cache, offset, source, token_types, wanted, adapters)
        alone = all(given is None for given in (offset, source, token_types, wanted, adapters))
        with self._one_gradient():
            if self.stepper is not None and cache is not None and alone and layout.uniform == 1:
                hidden = self.stepper(input_ids, cache, plain)
            else:
                hidden = plain()
            if then is not None:
                return then(hidden, self.head)
            result: Tensor = self.head(hidden, layout)
        return result if self.config.head == "sequence" else result.view(*shape, result.shape[-1])

    def _hidden(
        self,
        input_ids: Tensor,
        layout: Layout,
        cache: KVCache | None,
        offset: Tensor | None,
        source: Source | None,
        token_types: Tensor | None,
        wanted: Tensor | None,
        adapters: Sequence[str] | None,
    ) -> Tensor:
        """[T, D] final hidden states; arguments as in `forward`."""
        prompt = self._opening(layout, cache, Transform.prompt, adapters) if self.encoder is None else None
        inside = layout if prompt is None else prompt.layout
        prefix = self._opening(inside, cache, Transform.prefix, adapters)
        heading = None if source is None else self._opening(source.layout, None, Transform.prompt, adapters)
        read = None if source is None else source.layout if heading is None else heading.layout
        if not self._can_leave_out or adapters is not None:
            wanted = None
        places = wanted if prompt is None else self._heard(prompt, layout, wanted, adapters)
        last = None if wanted is None else places
        with self.mixer.acting(self, adapters, inside, read):
            memory = None if source is None else self._read(source, heading)
            plan = self.plan(
                inside, device=input_ids.device, cache=cache, memory=memory, source=read, prefix=prefix, wanted=last
            )
            hidden = self.embed_inputs(input_ids, plan.positions, offset, token_types, prompt)
            hidden = self.run_blocks(hidden, plan, wanted=last)
        if cache is not None:
            cache.advance((inside if prefix is None else prefix.layout).lengths)
        if plan.routing:
            self.balance = balance(plan.routing)
        if wanted is None and places is not None:
            hidden = hidden.index_select(0, places)
        normed: Tensor = self.final_norm(hidden)
        if wanted is None:
            return normed
        return normed.new_zeros(layout.tokens, normed.shape[1]).index_copy(0, wanted, normed)

    def encode(self, source: Source, adapters: Sequence[str] | None = None) -> Tensor:
        """[T_s, D] hidden states of the sources, through the encoder."""
        heading = self._opening(source.layout, None, Transform.prompt, adapters)
        layout = source.layout if heading is None else heading.layout
        with self.mixer.acting(self, adapters, layout, layout):
            memory = self._read(source, heading)
        return memory if heading is None else heading.drop(memory)

    def _read(self, source: Source, heading: Opening | None) -> Tensor:
        """[T_s', D] what the encoder makes of the sources and of the virtual tokens before them."""
        if self.encoder is None:
            raise ValueError("this model has no encoder for a source")
        encoder, embedded = self.encoder, self.embed_tokens(source.ids)
        layout = source.layout if heading is None else heading.layout
        plan = encoder.plan(layout, device=source.ids.device)
        embedded = embedded if heading is None else heading.insert(embedded, heading.vectors)
        hidden = encoder.run_blocks(encoder.enter(embedded, plan.positions), plan)
        normed: Tensor = encoder.final_norm(hidden)
        return normed

    def _opening(
        self, layout: Layout, cache: KVCache | None, hook: Hook, adapters: Sequence[str] | None
    ) -> Opening | None:
        """The virtual tokens before each sequence; rows of a cache that hold something have begun with theirs."""
        if not self.prompts:
            return None
        begun = [0] * layout.sequences if cache is None else cache.lengths
        names = [""] * layout.sequences if adapters is None else adapters
        own = {name: self.mixer.entry(name).transforms for name in set(names) if name}
        acting = [
            () if length else (*self.transforms, *own.get(name, ())) for name, length in zip(names, begun, strict=True)
        ]
        return opening(layout, acting, lambda transform: getattr(transform, hook.__name__)(self))

    def _heard(self, prompt: Opening, layout: Layout, wanted: Tensor | None, adapters: Sequence[str] | None) -> Tensor:
        """Which hidden state stands for each token (each that is `wanted`): its own, with one exception.

        A head that reads the first token of a sequence gets that of the first virtual token, as PEFT has it.
        """
        names = [""] if adapters is None else adapters
        shapes = {name: self.mixer.entry(name).config if name else self.config for name in set(names)}
        reads = {name: shape.head == "sequence" and shape.pooling == "first" for name, shape in shapes.items()}
        places = prompt.places
        if any(reads.values()):
            each = [reads[name] for name in names] * (layout.sequences if adapters is None else 1)
            chosen = torch.tensor(each, device=places.device)
            firsts = torch.tensor(layout.starts(), device=places.device)
            places = places.index_copy(0, firsts[chosen], prompt.starts[chosen])
        return places if wanted is None else places.index_select(0, wanted)

    def embed_tokens(self, input_ids: Tensor) -> Tensor:
        """[T] token ids -> [T, E]."""
        embedded: Tensor = self.embed(input_ids)
        return embedded if self.config.embedding_scale == 1.0 else embedded * self.config.embedding_scale

    def embed_inputs(
        self,
        input_ids: Tensor,
        positions: Tensor,
        offset: Tensor | None = None,
        token_types: Tensor | None = None,
        prompt: Opening | None = None,
    ) -> Tensor:
        """[T] token ids at `positions` -> [T, D], what the first block reads, with the virtual tokens of `prompt`."""
        hidden = self.embed_tokens(input_ids)
        if prompt is not None:
            hidden = prompt.insert(hidden, prompt.vectors)
            token_types, offset = (None if x is None else prompt.spread(x) for x in (token_types, offset))
        if self.token_type_embed is not None:
            types = torch.zeros_like(positions) if token_types is None else token_types
            hidden = hidden + self.token_type_embed(types)
        elif token_types is not None:
            raise ValueError("this model does not tell segments apart, so it takes no token_types")
        return self.enter(hidden, positions, offset)


def balance(routing: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """E * sum_e (share of the choices that fell on e) * (mean probability of e) over tokens and layers.

    1 with equally busy experts if each token passes one; `experts_per_token` if it passes several (Fedus et al. 2022,
    arXiv:2101.03961, as transformers computes it).
    """
    counts = torch.stack([count for count, _ in routing]).sum(0)
    chances = torch.stack([chance for _, chance in routing]).sum(0)
    tokens = chances.sum()  # the probabilities of a token sum to 1
    return len(counts) * (counts / tokens.detach() * chances / tokens.detach()).sum()


def _stored_angles(
    config: ModelConfig, rope: Rope, positions: Tensor, cache: KVCache, *, sliding: bool
) -> tuple[Tensor, Tensor]:
    """`rotary.cos_sin` where it does not depend on lengths: computed once for all that the cache has room for."""
    if sliding not in cache.angles:
        everywhere = torch.arange(cache.max_length, device=positions.device)
        cache.angles[sliding] = rotary.cos_sin(
            config, rope, everywhere, layout=Layout((cache.max_length,)), totals=[cache.max_length]
        )
    cos, sin = cache.angles[sliding]
    return cos.index_select(0, positions), sin.index_select(0, positions)


def _check_room(layout: Layout, cache: KVCache) -> list[int]:
    """Length of each row after this forward pass."""
    if layout.sequences != cache.rows:
        raise ValueError(f"{layout.sequences} sequences do not fit a cache of {cache.rows} rows")
    totals = [old + new for old, new in zip(cache.lengths, layout.lengths, strict=True)]
    if max(totals, default=0) > cache.max_length:
        raise ValueError(f"the cache has room for {cache.max_length} tokens a row, {max(totals)} are needed")
    return totals
