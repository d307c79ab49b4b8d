"""How one update runs: forward and backward over its micro-batches, clip, agree that all is finite, step.

One process, DDP or FSDP2; the pipeline is `engine_pipeline.py`, tensor parallelism `engine_tensor.py`. The gradient is
the sum over micro-batches and ranks of (term sums / counts over the whole update), so it does not depend on how the
update was split.
"""

from __future__ import annotations

import contextlib
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from trivium.core.distributed import Processes, by_layout, shard_like, whole_tensors
from trivium.core.float8 import Float8Layers, refuse_without_float8, to_float8
from trivium.core.method import Method, RoleModel, Update, derive_seed
from trivium.core.offload import Twins, activations_beside, recompute
from trivium.core.terms import Counts, Term, Terms, scaled_total
from trivium.data.batch import Batch
from trivium.errors import ConfigError
from trivium.optim.groups import GroupRow, group_table, parameter_settings, refuse_useless_rules, split_groups
from trivium.recipe import Recipe

if TYPE_CHECKING:
    from trivium.core.average import MovingAverage
    from trivium.models.transformer import Transformer

Use = Literal["validation", "checkpoint", "final"]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, "fp8": torch.bfloat16}
"""Of autocast and of gathered shards; beside them `fp8` has products of its own (`trivium.core.float8`)."""


@dataclass
class Player:
    """An optimiser and the trainable parameters it moves, by name `<role>.<parameter>`; `twins` if it is offloaded."""

    roles: list[RoleModel]
    named: dict[str, nn.Parameter]
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    twins: Twins | None = None

    @property
    def moved(self) -> dict[str, nn.Parameter]:
        """What the optimiser moves: the parameters, or their twins."""
        return self.named if self.twins is None else self.twins.named

    def step(self) -> None:
        """One step of the optimiser."""
        if self.twins is not None:
            self.twins.take_gradients()
        self.scaler.step(self.optimizer)
        if self.twins is not None:
            self.twins.give_weights()

    def zero_grad(self) -> None:
        """Frees the gradients."""
        for parameter in self.named.values():
            parameter.grad = None


@dataclass
class StepResult:
    """What one update did.

    loss:      the total that was optimised, over all ranks.
    terms:     each term divided by its count.
    grad_norm: norm of the whole gradient before clipping.
    finite:    False if the update was skipped because loss or gradient was not finite.
    overflow:  True if only the fp16 loss scale was too high; the scale is lowered and nothing is wrong.
    """

    loss: float
    terms: dict[str, float]
    grad_norm: float
    finite: bool
    overflow: bool = False


@dataclass
class _Sums:
    """Sums of the terms of one update on this rank, kept on the device until the end."""

    values: dict[str, Tensor] = field(default_factory=dict)
    units: dict[str, str] = field(default_factory=dict)
    coefficients: dict[str, float] = field(default_factory=dict)

    def add(self, terms: Terms, share: float = 1.0) -> None:
        for name, term in terms.items():
            value = term.sum.detach() * share
            self.values[name] = self.values[name] + value if name in self.values else value
            self.units[name] = term.unit
            self.coefficients[name] = term.coefficient

    def host(self) -> dict[str, float]:
        return {name: float(value) for name, value in self.values.items()}

    def means(self, sums: Mapping[str, float], counts: Counts) -> tuple[float, dict[str, float]]:
        """(total loss, each term per unit) from sums over all ranks."""
        means = {name: sums[name] / counts[unit] if counts[unit] else 0.0 for name, unit in self.units.items()}
        return math.fsum(self.coefficients[name] * mean for name, mean in means.items()), means


class Engine:
    """Runs updates on one device, alone or with equal partners."""

    def __init__(
        self,
        recipe: Recipe,
        method: Method,
        roles: dict[str, RoleModel],
        optimizer: Any,
        *,
        device: torch.device,
        processes: Processes | None = None,
    ) -> None:
        """`optimizer` is an object with `build(named parameters, lr=...)`, as in `trivium/optim`."""
        self.recipe = recipe
        self.method = method
        self.roles = roles
        self.device = device
        self.processes = processes or Processes()
        self.moving_average: MovingAverage | None = None
        self.float8: dict[str, Float8Layers] = {}
        """By role: which of its layers multiply in FP8."""
        check_precision(recipe.train.precision, device)
        for role in roles.values():
            self.place(role)
        self.players = {
            name: self.make_player([roles[role] for role in members], optimizer)
            for name, members in method.players().items()
        }
        refuse_useless_rules(
            [name for player in self.players.values() for name in player.named],
            recipe.train,
            anywhere=lambda here: self.processes.any(here, device),
        )

    @property
    def data_parallel(self) -> Processes:
        """The processes among which the data is dealt out: here all of them."""
        return self.processes

    # Setting up

    def place(self, role: RoleModel) -> None:
        """Moves a role to the device and wraps it for the engine; frozen roles are never wrapped for gradients."""
        if self.recipe.train.precision == "fp8":
            self.float8[role.name] = to_float8(role.module, self.device, trains=role.trainable)
        role.module.to(self.device)
        role.module.train(role.trainable)
        role.forward = role.module
        role.precision = self.autocast
        if not role.trainable:
            role.module.requires_grad_(False)
            return
        self.checkpoint_activations(role.module)
        if self.recipe.engine.name == "fsdp2":
            self.shard(role.module)
        elif self.recipe.engine.name == "ddp":
            role.forward = nn.parallel.DistributedDataParallel(
                role.module, broadcast_buffers=False, gradient_as_bucket_view=True
            )

    def checkpoint_activations(self, module: Transformer) -> None:
        """Lets blocks, or parts of them, compute again what their backward pass needs."""
        what, every = self.recipe.train.activation_checkpointing, self.recipe.train.checkpoint_every_block
        if what == "block":
            module.checkpoint_activations(every)
        elif what != "none":
            names = ("mlp", "moe") if what == "mlp" else ("attention", "cross")
            for block in module.all_blocks[::every]:
                for part in (getattr(block, name, None) for name in names):
                    if part is not None:
                        recompute(part)

    def shard(self, module: Transformer) -> None:
        """FSDP2: every block, then what remains around them."""
        from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

        policy = MixedPrecisionPolicy()
        if self.recipe.train.precision != "fp32":
            policy = MixedPrecisionPolicy(param_dtype=DTYPES[self.recipe.train.precision], reduce_dtype=torch.float32)
        for block in module.all_blocks:
            fully_shard(block, mp_policy=policy)
        fully_shard(module, mp_policy=policy)

    def make_player(self, roles: list[RoleModel], optimizer: Any) -> Player:
        """The optimiser over the trainable parameters of some roles."""
        named = {
            f"{role.name}.{name}": parameter
            for role in roles
            for name, parameter in role.module.named_parameters()
            if parameter.requires_grad
        }
        if not named:
            raise ConfigError(
                "nothing is trainable in this run",
                where="transforms",
                fix="let at least one parameter train",
            )
        twins = Twins(named) if self.recipe.train.offload in ("optimizer", "all") else None
        moved = named if twins is None else twins.named
        return Player(
            roles=roles,
            named=named,
            optimizer=self.grouped(optimizer.build(moved.items(), lr=self.recipe.train.lr), roles, moved),
            scaler=torch.amp.GradScaler(
                self.device.type, init_scale=2.0**14, enabled=self.recipe.train.precision == "fp16"
            ),
            twins=twins,
        )

    def grouped(
        self, optimizer: torch.optim.Optimizer, roles: list[RoleModel], named: dict[str, nn.Parameter]
    ) -> torch.optim.Optimizer:
        """The optimiser with a group for each learning rate and weight decay that the recipe asks for."""
        settings = parameter_settings(
            named,
            self.recipe.train,
            blocks={role.name: count_blocks(role.module) for role in roles},
            factors={f"{role.name}.{name}": factor for role in roles for name, factor in role.lr_factors.items()},
        )
        split_groups(optimizer, {parameter: settings[name] for name, parameter in named.items()})
        return optimizer

    def groups(self) -> list[GroupRow]:
        """What trains, at which learning rate and weight decay; every rank must call it."""
        lr = self.recipe.train.lr
        several = sum(len(player.roles) for player in self.players.values()) > 1
        return [
            row
            for player in self.players.values()
            for row in group_table(player.optimizer, player.moved, lr, several=several)
        ]

    # One update

    def count(self, update: Update) -> dict[str, float]:
        """Count of each unit over the whole update, all ranks; taken before any forward pass."""
        return self.data_parallel.sum(self.counted(update), self.device)

    def counted(self, update: Update) -> dict[str, float]:
        """Count of each unit in the batches of this rank."""
        totals: Counter[str] = Counter()
        for batch in update.batches:
            totals.update(self.method.weights(batch))
        if self.routed(self.players[update.player]):
            totals["routed"] = sum(batch.tokens for batch in update.batches)
        return dict(totals)

    def run(self, update: Update, counts: Counts, *, step: int, lr: float) -> StepResult:
        """One optimiser update; parameters are untouched if anything is not finite."""
        player = self.players[update.player]
        sums = _Sums()
        with self.only(player), self.beside():
            together = self.method.represent is not None
            (self.forward_backward_jointly if together else self.forward_backward)(update, counts, player, sums, step)
        if player.scaler.is_enabled():
            player.scaler.unscale_(player.optimizer)
        norm = self.gradient_norm(player)
        totals = self.data_parallel.sum({**sums.host(), "": float(not math.isfinite(norm))}, self.device)
        loss, terms = sums.means(totals, counts)
        finite = self.agreed(math.isfinite(loss) and totals[""] == 0)
        overflow = not finite and math.isfinite(loss) and player.scaler.is_enabled() and player.scaler.get_scale() > 1
        if finite:
            self.clip(player, norm)
            for group in player.optimizer.param_groups:
                group["lr"] = lr * group["lr_factor"]
            player.step()
        if player.scaler.is_enabled():
            player.scaler.update()
        player.zero_grad()
        return StepResult(loss, terms, norm, finite, overflow)

    def agreed(self, finite: bool) -> bool:
        """The same on every rank; what is found from sums over all of them is so already."""
        return finite

    def forward_backward(self, update: Update, counts: Counts, player: Player, sums: _Sums, step: int) -> None:
        """Accumulates the gradient of the whole update."""
        loss = update.loss or self.method.loss
        for index, batch in enumerate(update.batches):
            batch = self.prepared(batch, step, index)
            final = index == len(update.batches) - 1

            def accumulate(terms: Terms, *, share: float = 1.0, last: bool = True, final: bool = final) -> None:
                self.synchronise(player, final and last)
                # Data-parallel engines average over ranks; the counts are global, so undo the average.
                total = scaled_total(terms, counts) * (share * self.data_parallel.world)
                player.scaler.scale(total).backward()  # type: ignore[no-untyped-call]

            if self.method.backward is not None:
                self.synchronise(player, False)
                sums.add(self.method.backward(batch, accumulate))
                continue
            self.synchronise(player, final)
            terms = {**loss(batch), **self.balance(player, batch)}
            sums.add(terms)
            accumulate(terms)
        if self.method.backward is not None and self.recipe.engine.name == "ddp":
            self.average_gradients(player)

    def forward_backward_jointly(self, update: Update, counts: Counts, player: Player, sums: _Sums, step: int) -> None:
        """The same for a loss that compares all texts of the update: only their vectors are held at once.

        The vectors of all micro-batches and ranks, the gradient of the loss with respect to them, and then each
        micro-batch again, with its part of that gradient (Gao et al. 2021, arXiv:2101.06983). A single micro-batch is
        computed once.
        """
        assert self.method.represent is not None
        single = len(update.batches) == 1
        self.synchronise(player, single)
        with torch.set_grad_enabled(single):
            made = [self.represented(batch, step, index) for index, batch in enumerate(update.batches)]
        together, first = self.together(made)
        for value in together.values():
            value.requires_grad_(value.is_floating_point())
        terms = self.method.joint(together)
        sums.add(terms, share=1 / self.data_parallel.world)  # every rank computes the whole
        total = scaled_total(terms, counts) * self.data_parallel.world
        player.scaler.scale(total).backward()  # type: ignore[no-untyped-call]
        for index, batch in enumerate(update.batches):
            self.synchronise(player, index == len(update.batches) - 1)
            own = made[0] if single else self.represented(batch, step, index)
            size = len(next(iter(own.values())))
            passed = [
                (value * gradient[first : first + size]).sum()
                for name, value in own.items()
                if (gradient := together[name].grad) is not None
            ]
            first += size
            balance = self.balance(player, batch)
            sums.add(balance)
            if balance:
                passed.append(player.scaler.scale(scaled_total(balance, counts) * self.data_parallel.world))
            torch.stack(passed).sum().backward()  # type: ignore[no-untyped-call]

    def represented(self, batch: Batch, step: int, index: int) -> dict[str, Tensor]:
        """What the method compares of a micro-batch."""
        assert self.method.represent is not None
        return self.method.represent(self.prepared(batch, step, index))

    def together(self, made: Sequence[Mapping[str, Tensor]]) -> tuple[dict[str, Tensor], int]:
        """(the parts of all micro-batches of all ranks, where those of this rank begin); without gradients."""
        among = self.data_parallel
        gathered = {name: among.gather(torch.cat([part[name] for part in made]).detach()) for name in made[0]}
        before = next(iter(gathered.values()))[: among.rank]
        return {name: torch.cat(parts) for name, parts in gathered.items()}, sum(map(len, before))

    def routed(self, player: Player) -> list[RoleModel]:
        """The player's mixtures of experts whose balance counts."""
        return [role for role in player.roles if role.module.config.experts and role.module.config.balance_loss]

    def balance(self, player: Player, batch: Batch) -> Terms:
        """How unequally busy the experts were in the latest forward pass.

        A product of two means over the micro-batch, so, as in every implementation, it is the one term that depends on
        the micro-batches; each counts by its tokens.
        """
        terms: Terms = {}
        for role in self.routed(player):
            if role.module.balance is not None:
                share = Term(role.module.balance * batch.tokens, "routed", role.module.config.balance_loss)
                terms["balance" if role.name == "policy" else f"balance_{role.name}"] = share
        return terms

    def average_gradients(self, player: Player) -> None:
        """Mean over ranks, by hand: DDP decides in the forward pass whether to do it, too early for several passes."""
        for parameter in player.named.values():
            if parameter.grad is not None:
                torch.distributed.all_reduce(parameter.grad)
                parameter.grad.div_(self.processes.world)

    def prepared(self, batch: Batch, step: int, index: int) -> Batch:
        """The micro-batch on the device with the fields of frozen roles; seeds the passes that follow."""
        batch = batch.to(self.device)
        torch.manual_seed(derive_seed(self.recipe.seed, step, self.data_parallel.rank, "forward", index))
        with torch.no_grad():
            return self.method.prepare(batch)

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """Lower precision for matrix products; parameters keep their own."""
        precision = self.recipe.train.precision
        if precision == "fp32":
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=DTYPES[precision])

    def beside(self) -> contextlib.AbstractContextManager[Any]:
        """Where what the backward pass needs waits for it."""
        offloaded = self.recipe.train.offload in ("activations", "all")
        return activations_beside() if offloaded else contextlib.nullcontext()

    def synchronise(self, player: Player, now: bool) -> None:
        """Whether the next backward pass exchanges gradients between ranks."""
        for role in player.roles:
            if isinstance(role.forward, nn.parallel.DistributedDataParallel):
                # What `no_sync()` does, but decided for each pass: DDP reads it in forward.
                role.forward.require_backward_grad_sync = now
            elif self.recipe.engine.name == "fsdp2":
                role.module.set_requires_gradient_sync(now)  # type: ignore[operator]

    @contextlib.contextmanager
    def only(self, player: Player) -> Iterator[None]:
        """Inside, only this player's roles get gradients; other trainable roles act as plain functions."""
        others = [role for role in self.roles.values() if role.trainable and role not in player.roles]
        self.reshard(others)
        wrapped = [role.forward for role in others]
        switched = [p for role in others for p in role.module.parameters() if p.requires_grad]
        for role in others:
            role.forward = role.module
        for parameter in switched:
            parameter.requires_grad_(False)
        try:
            yield
        finally:
            self.reshard(others)
            for parameter in switched:
                parameter.requires_grad_(True)
            for role, forward in zip(others, wrapped, strict=True):
                role.forward = forward

    def reshard(self, roles: Iterable[RoleModel]) -> None:
        """Under FSDP2 the outermost weights stay gathered after a forward pass; switches must reach the shards."""
        for role in roles:
            if self.recipe.engine.name == "fsdp2":
                role.module.reshard()  # type: ignore[operator]

    def gradient_norm(self, player: Player) -> float:
        """2-norm of the player's whole gradient, over all shards."""
        gradients = {name: p.grad for name, p in player.named.items() if p.grad is not None}
        norms = {
            names[0]: torch.nn.utils.get_total_norm([gradients[name] for name in names])
            for names in by_layout(gradients)
        }
        return math.hypot(*map(float, whole_tensors(norms).values()))

    def clip(self, player: Player, norm: float) -> None:
        """Scales the gradient down to `train.clip` if it is longer, or cuts its numbers."""
        limit, by_value = self.recipe.train.clip, self.recipe.train.clip_by == "value"
        if limit is None or not (by_value or norm > limit):
            return
        for names in by_layout(player.named):
            parameters = [player.named[name] for name in names]
            if by_value:
                torch.nn.utils.clip_grad_value_(parameters, limit)
            else:
                torch.nn.utils.clip_grads_with_norm_(parameters, limit, torch.tensor(norm))

    # Validation

    @torch.no_grad()
    def evaluate(self, batches: Iterable[Batch]) -> dict[str, float]:
        """Loss, terms and bits per byte over held-out batches, all ranks; dropout off, nothing else changed.

        Every rank gives its share of the data in the same number of batches, as `Loader.evaluation` does. A loss that
        compares texts compares all of them.
        """
        sums, counts, size = _Sums(), dict[str, float](), 0.0
        made: list[Mapping[str, Tensor]] = []
        with self.averaged("validation"), self.evaluating():
            for index, batch in enumerate(batches):
                batch = self.prepared(batch, 0, index)
                if self.method.represent is not None:
                    made.append(self.method.represent(batch))
                else:
                    sums.add(self.method.loss(batch))
                for unit, count in self.method.weights(batch).items():
                    counts[unit] = counts.get(unit, 0.0) + count
                if "target_bytes" in batch.fields:
                    size += float(batch.fields["target_bytes"].sum())
        if not counts:
            return {}
        if made:
            sums.add(self.method.joint(self.together(made)[0]), share=1 / self.data_parallel.world)
        host = self.data_parallel.sum({**sums.host(), "": size}, self.device)
        loss, terms = sums.means(host, self.data_parallel.sum(counts, self.device))
        figures = {"loss": loss, **terms}
        if host[""] and "nll" in host:
            figures["bits_per_byte"] = host["nll"] / math.log(2) / host[""]
        return figures

    @contextlib.contextmanager
    def evaluating(self) -> Iterator[None]:
        """Trainable roles in evaluation mode, unwrapped and not compiled (shapes differ), then back."""
        trainable = [role for role in self.roles.values() if role.trainable]
        wrapped = [role.forward for role in trainable]
        stack = contextlib.ExitStack()
        for role in trainable:
            stack.enter_context(role.eager())
        for role in trainable:
            role.module.eval()
            role.forward = role.module
        try:
            with stack:
                yield
        finally:
            for role, forward in zip(trainable, wrapped, strict=True):
                role.module.train()
                role.forward = forward

    # Weights to use instead of those that train

    def averages(self, use: Use) -> Iterator[tuple[nn.Parameter, Tensor]]:
        """What optimiser or moving average have to offer for this use; a checkpoint's model must be able to go on."""
        for player in self.players.values():
            if getattr(player.optimizer, "averaging", False):
                originals = {moved: player.named[name] for name, moved in player.moved.items()}
                for moved, average in player.optimizer.averages():  # type: ignore[attr-defined]
                    yield originals[moved], average
        if self.moving_average is not None:
            yield from self.moving_average.averages(use).items()

    @contextlib.contextmanager
    def averaged(self, use: Use) -> Iterator[None]:
        """Inside, the averages stand in the place of the weights that train; then those are back, bit for bit."""
        trainable = [role for role in self.roles.values() if role.trainable]
        self.reshard(trainable)
        kept: dict[nn.Parameter, Tensor] = {}
        try:
            with torch.no_grad():
                for parameter, average in self.averages(use):
                    kept[parameter] = parameter.detach().clone()
                    parameter.copy_(average)
            yield
        finally:
            self.reshard(trainable)
            with torch.no_grad():
                for parameter, weight in kept.items():
                    parameter.copy_(weight)

    # State, always whole and by parameter name, whatever the engine

    def collected(self, named: Mapping[str, Any]) -> dict[str, Any]:
        """Tensors by parameter name, whole and on the CPU, from wherever they are; every rank must call it."""
        return whole_tensors(named)

    def weights(self, role: str) -> dict[str, Tensor]:
        """All weights of a role on the CPU, the parameters themselves if they are there; every rank must call it."""
        return whole_tensors(self.roles[role].module.state_dict())

    def load_weights(self, role: str, weights: Mapping[str, Tensor]) -> None:
        """The inverse of `weights`; what is missing there must be frozen, and stays."""
        module = self.roles[role].module
        missing = [name for name, p in module.named_parameters() if p.requires_grad and name not in weights]
        assert not missing, f"nothing is stored for {missing[:3]}"
        with torch.no_grad():
            for name, tensor in module.state_dict().items():
                if name in weights:
                    tensor.copy_(shard_like(weights[name], tensor))
        for player in self.players.values():
            if player.twins is not None:
                player.twins.read()

    def optimizer_state(self, player: str) -> dict[str, Any]:
        """Optimiser state by parameter name, and the loss scale; every rank must call it."""
        entry = self.players[player]
        state = entry.optimizer.state
        slots = {name: dict(state[p]) for name, p in entry.moved.items() if p in state}
        if getattr(entry.optimizer, "averaging", False):  # the model of a checkpoint is the average: keep what trains
            slots = {name: {**slot, "weight": entry.moved[name].detach().clone()} for name, slot in slots.items()}
        slots = {name: whole_tensors(slot) for name, slot in slots.items()}
        return {"slots": slots, "scaler": entry.scaler.state_dict()}

    def load_optimizer_state(self, player: str, saved: Mapping[str, Any]) -> None:
        """The inverse of `optimizer_state`."""
        entry = self.players[player]
        for name, parameter in entry.moved.items():
            if name not in saved["slots"]:
                continue
            slot = {
                key: shard_like(value, parameter) if isinstance(value, Tensor) else value
                for key, value in saved["slots"][name].items()
            }
            if "weight" in slot:
                with torch.no_grad():
                    parameter.copy_(slot.pop("weight"))
            entry.optimizer.state[parameter] = slot
        if entry.twins is not None:
            entry.twins.give_weights()
        if saved["scaler"]:
            entry.scaler.load_state_dict(dict(saved["scaler"]))


def count_blocks(model: nn.Module) -> tuple[int, int]:
    """Blocks of a model, and of its encoder if that is another stack."""
    encoder = getattr(model, "encoder", None)
    return len(getattr(model, "blocks", ())), len(getattr(encoder, "blocks", ()))


def check_precision(precision: str, device: torch.device) -> None:
    """Refuses a precision the hardware would only imitate.

    CPUs run bf16 and fp16 everywhere, if slowly; that is `slow_precision`'s warning.
    """
    if precision == "fp8":
        refuse_without_float8(device)
    if device.type == "cuda" and precision == "bf16" and torch.cuda.get_device_capability(device) < (8, 0):
        raise ConfigError(
            "this GPU has no bfloat16 arithmetic (it needs compute capability 8.0)",
            where="train.precision",
            value=precision,
            fix="set train.precision=fp16",
        )


def slow_precision(precision: str, device: torch.device) -> str | None:
    """A warning if the precision is slower than fp32 on this processor, else None."""
    if device.type != "cpu" or precision == "fp32":
        return None
    if precision == "bf16" and torch.cpu._is_amx_tile_supported():
        return None
    return f"this processor has no fast {precision} arithmetic: train.precision=fp32 is quicker and more exact here"
