"""DeepSpeed: the process group, and one engine a phase. The only file that imports deepspeed.

What differs between ZeRO stages is behind `Engine`: where the fp32 master weights are, how they get back into the
model, and how a step is refused when a gradient is not finite.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, NamedTuple, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn

from semiocity.errors import UserError
from semiocity.ranks import Place
from semiocity.train import optimizers, rendezvous
from semiocity.train.muon import Muon, is_for_muon
from semiocity.train.optimizer_options import refuse_pair
from semiocity.train.tasks.base import Loss, Modules, Phase, Task, Tensors

TIMEOUT_MIN = 30
"""How long a rank waits for the others; the slowest save of a checkpoint must fit in."""
BUCKET_ELEMENTS = 50_000_000


class World(Place, Protocol):
    """What training needs to know of the ranks (see `semiocity.launch.world`)."""

    @property
    def local_rank(self) -> int: ...
    @property
    def master_addr(self) -> str: ...
    @property
    def master_port(self) -> int: ...
    def port(self, attempt: int) -> int: ...


@contextmanager
def session(world: World, threads: int) -> Iterator[torch.device]:
    """Join the process group of `world` and leave it at the end; yields this rank's device.

    The one place that writes to the environment: DeepSpeed reads its place among the ranks from there, and its
    accelerator when it is imported. `threads` is what a rank on CPUs may use. A session inside another one shares its
    group, since DeepSpeed keeps its groups for the life of the process.
    """
    gpus = torch.cuda.device_count()
    # With one visible GPU a task, every rank's is number 0.
    index = world.local_rank % gpus if gpus else world.local_rank
    os.environ.update(
        RANK=str(world.rank),
        WORLD_SIZE=str(world.size),
        LOCAL_RANK=str(index),
        MASTER_ADDR=world.master_addr,
        MASTER_PORT=str(world.master_port),
        DS_ACCELERATOR="cuda" if gpus else "cpu",
    )
    if gpus:
        device = torch.device("cuda", index)
        torch.cuda.set_device(device)
    else:
        device = torch.device("cpu")
        torch.set_num_threads(threads)
    if dist.is_initialized():
        yield device
        return
    store, port = rendezvous.meet(world, TIMEOUT_MIN * 60)
    os.environ["MASTER_PORT"] = str(port)
    timeout = timedelta(minutes=TIMEOUT_MIN)
    backend = "nccl" if gpus else "gloo"
    dist.init_process_group(backend, store=store, rank=world.rank, world_size=world.size, timeout=timeout)
    try:
        yield device
    finally:
        dist.destroy_process_group()


def start_deepspeed() -> None:
    """Import DeepSpeed into the running session, quietly."""
    import deepspeed
    from deepspeed.utils import logger

    logger.setLevel(logging.WARNING)
    # Its shared-memory collectives for CPUs would be compiled at the first use, and images have no compiler.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(dist_init_required=False, verbose=False)


class Stepped(NamedTuple):
    """What became of an optimizer step."""

    applied: bool
    """False when a gradient was not finite: nothing was changed, on any rank."""
    gradient_norm: float
    """Before clipping, over all ranks; infinite when not applied."""


class Bundle(nn.Module):
    """A phase's modules as the one module that an engine trains; its forward pass is the phase's loss.

    So the engine sees one forward and one backward pass, whatever the task calls inside and how often.
    """

    def __init__(self, phase: Phase, task: Task, everything: Modules) -> None:
        super().__init__()
        self.parts = nn.ModuleDict(dict(phase.modules))
        self._name = phase.name
        self._task = task
        # Outside torch's registration: other phases' modules are used here but neither trained nor saved.
        self._everything = lambda: everything

    def forward(self, batch: Tensors, step: int) -> tuple[Tensor, dict[str, tuple[Tensor, Tensor | float]]]:
        loss: Loss = self._task.loss(self._name, self._everything(), batch, step)
        return loss.total, loss.shown


class Fragment(NamedTuple):
    """Elements of a parameter inside a rank's master weights."""

    name: str
    start: int
    """First element of the flattened parameter."""
    length: int
    part: int
    """Index into `Engine.masters`."""
    offset: int
    """First element of that part, flattened."""


class Engine:
    """A phase under DeepSpeed."""

    def __init__(
        self,
        phase: Phase,
        bundle: Bundle,
        *,
        micro_batch: int,
        accumulation: int,
        device: torch.device,
        alone: bool,
    ) -> None:
        """`alone`: no other phase, so that the parameters may take gradients all the time."""
        import deepspeed

        self._alone = alone
        try:
            refuse_pair(phase.optimizer, phase.zero, accumulation)
        except ValueError as error:
            raise UserError(f"phase {phase.name}: {error}") from None

        self.phase = phase
        self.stage = phase.zero.stage
        # Any: DeepSpeed hangs its own attributes on parameters.
        self.trained: list[tuple[str, Any]] = [
            (name, p) for name, p in bundle.parts.named_parameters() if p.requires_grad
        ]
        self._bundle, self._device = bundle, device
        self._shapes = {name: tuple(p.shape) for name, p in self.trained}
        self.optimizer = optimizers.make(phase.optimizer, phase.zero, self._groups(), device)
        plain = nn.functional.linear
        self._engine, *_ = deepspeed.initialize(
            model=bundle,
            optimizer=self.optimizer,
            config=self._config(micro_batch, accumulation),
            dist_init_required=False,
        )
        # At stage 3 DeepSpeed has just replaced it for good and for everybody, by one that rounds otherwise.
        self._linear, nn.functional.linear = nn.functional.linear, plain
        self._require_gradients(alone)
        if phase.optimizer.kind == "adamw_bf16":
            self._share_masters()
        if isinstance(self.optimizer, Muon) and self.stage:
            self.optimizer.lay_out(self.masters(), gather(self.fragments()), self._shapes)

    def _groups(self) -> list[dict[str, Any]]:
        """The optimizer's parameter groups, each with the `factor` of its rate."""
        muon = self.phase.optimizer.kind == "muon"
        groups: dict[tuple[str, float, bool], list[Any]] = {}
        for name, parameter in self.trained:
            label, factor = self.phase.group(name) if self.phase.group else ("", 1.0)
            matrix = muon and is_for_muon(name, parameter.shape)
            groups.setdefault((label, factor, matrix), []).append(parameter)
        if muon and not any(matrix for _, _, matrix in groups):
            raise UserError(
                f'optimizer.kind = "muon": phase {self.phase.name} trains no matrix of a repeated layer; take another'
            )
        own = {"matrices": True}
        return [
            {"params": members, "factor": factor, **(own if matrix else {})}
            for (_, factor, matrix), members in groups.items()
        ]

    def _config(self, micro_batch: int, accumulation: int) -> dict[str, Any]:
        # No more than the model needs (the buffers are made at once), and even, which DeepSpeed asks for.
        bucket = min(BUCKET_ELEMENTS, (sum(p.numel() for _, p in self.trained) + 1) // 2 * 2)
        without_master = self.phase.optimizer.kind == "adamw_bf16"
        # With one part there is nothing to add up, so fp32 would only take memory from those who have none to spare.
        sums = "bf16" if without_master and accumulation == 1 else "fp32"
        return {
            "train_micro_batch_size_per_gpu": micro_batch,
            "gradient_accumulation_steps": accumulation,
            "bf16": {
                "enabled": self.phase.zero.precision == "bf16",
                "check_grad_overflow": True,
                "bf16_master_weights_and_grads": without_master,
                "bf16_optimizer_states": without_master,
            },
            "data_types": {"grad_accum_dtype": sums},
            # At stage 0 the norm is needed anyway to refuse a step, so we clip there ourselves.
            "gradient_clipping": (self.phase.optimizer.clip or 0.0) if self.stage else 0.0,
            "zero_optimization": {
                "stage": self.stage,
                "overlap_comm": False,
                "reduce_bucket_size": bucket,
                "allgather_bucket_size": bucket,
                **self._offload(),
            },
            "zero_force_ds_cpu_optimizer": False,
            "zero_allow_untested_optimizer": True,
            "steps_per_print": None,
        }

    def _offload(self) -> dict[str, Any]:
        """What is kept in the host's memory; pinned where a GPU reads it."""
        kept = {"device": "cpu", "pin_memory": self._device.type == "cuda"}
        match self.phase.zero.offload:
            case "none":
                return {}
            case "optimizer":
                return {"offload_optimizer": kept}
            case "parameters":
                return {"offload_optimizer": kept, "offload_param": kept}

    def _share_masters(self) -> None:
        """Without fp32 master weights the rank's share of the weights is its master weights: let go of the copy that
        DeepSpeed's stage 2 makes."""
        if self.stage != 2:
            return  # stage 3 makes none
        optimizer, rank = self._engine.optimizer, dist.get_rank()
        masters = self.masters()
        for master, shares in zip(masters, optimizer.parallel_partitioned_bit16_groups):
            master.data = shares[rank].data
        for _, parameter in self.trained:
            if (mapping := parameter._hp_mapping) is not None:
                there = mapping.hp_fragment_address
                mapping.hp_fragment = masters[mapping.param_group_index].narrow(0, there.start, there.numel)

    # -- a step -------------------------------------------------------------------------------------------------------

    @contextmanager
    def thawed(self) -> Iterator[None]:
        """Within, the phase's parameters take gradients, and DeepSpeed counts them as trained."""
        self._require_gradients(True)
        try:
            yield
        finally:
            self._require_gradients(self._alone)

    def _require_gradients(self, wanted: bool) -> None:
        for _, parameter in self.trained:
            parameter.requires_grad_(wanted)

    def backward(self, batch: Tensors, step: int, last: bool) -> dict[str, tuple[Tensor, Tensor | float]]:
        """Loss and gradients of one part of a batch; `last` says that `step_with` comes next. Returns what to show."""
        self._engine.set_gradient_accumulation_boundary(last)
        plain, nn.functional.linear = nn.functional.linear, self._linear
        try:
            total, shown = self._engine(batch, step)
            # A loss that is not finite need not have such gradients. Times NaN they are, and every stage refuses the
            # step. Times 1 changes no bit.
            self._engine.backward(total * torch.where(torch.isfinite(total.detach()), 1.0, torch.nan))
        finally:
            nn.functional.linear = plain
        return shown

    def step_with(self, lr: float) -> Stepped:
        """Move the weights at rate `lr`, unless a gradient is not finite."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group["factor"]
        if self.stage == 0:
            norm = self._norm_and_clip()
            if not torch.isfinite(norm):
                self._engine.zero_grad()
                return Stepped(False, float("inf"))
            self._engine.step()
            return Stepped(True, float(norm))
        self._engine.step()
        applied = self._engine.was_step_applied()
        return Stepped(applied, float(self._engine.get_global_grad_norm()) if applied else float("inf"))

    def _norm_and_clip(self) -> Tensor:
        parameters = [p for _, p in self.trained]
        if self.phase.optimizer.clip is not None:
            return nn.utils.clip_grad_norm_(parameters, self.phase.optimizer.clip)
        return nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])

    # -- master weights -----------------------------------------------------------------------------------------------

    def masters(self) -> list[Tensor]:
        """This rank's parts of the master weights, the very tensors that the optimizer moves: fp32, but with
        `adamw_bf16`."""
        optimizer = self._engine.optimizer
        match self.stage, self.phase.zero.precision:
            case 0, _:
                return [p for _, p in self.trained]
            case 1, "bf16":  # DeepSpeed has a class of its own for this pair
                return list(optimizer.fp32_groups_flat_partition)
            case ((1 | 2), _):
                return list(optimizer.single_partition_of_fp32_groups)
            case _:
                return list(optimizer.fp32_partitioned_groups_flat)

    def fragments(self) -> list[Fragment]:
        """Which elements of which parameters `masters` holds on this rank; what they leave out is padding."""
        optimizer, found = self._engine.optimizer, []
        for i, (name, parameter) in enumerate(self.trained):
            if self.stage == 0:
                found.append(Fragment(name, 0, parameter.numel(), i, 0))
            elif self.stage == 3:
                part, offset, count = optimizer.grad_position[optimizer.get_param_id(parameter)]
                start = count * dist.get_rank()
                # Parameters are padded to equal shares, so that the last ranks may hold less, or nothing.
                if (real := min(count, parameter.ds_numel - start)) > 0:
                    found.append(Fragment(name, start, real, part, offset))
            elif (mapping := parameter._hp_mapping) is not None:
                here, there = mapping.lp_fragment_address, mapping.hp_fragment_address
                found.append(Fragment(name, here.start, here.numel, mapping.param_group_index, there.start))
        return found

    def place(self, value: Any, master: Tensor) -> Any:
        """An entry of the optimizer's state where it wants it: beside the weights, counters on the CPU unless fused."""
        beside = isinstance(value, Tensor) and (value.ndim > 0 or self.optimizer.defaults.get("fused"))
        return value.to(master.device) if beside else value

    def buffers(self) -> Tensors:
        """The modules' persistent buffers by name, not copies."""
        kept = self._bundle.parts.state_dict().keys()
        return {name: buffer for name, buffer in self._bundle.parts.named_buffers() if name in kept}

    def publish(self) -> None:
        """Copy the master weights into the model, on all ranks."""
        optimizer = self._engine.optimizer
        if self.stage in (1, 2):
            optimizer.update_lp_params()
        elif self.stage == 3:
            # Small parameters are kept whole on every rank: give them up, renew all shards, gather them again.
            optimizer.checkpoint_event_prologue()
            for group in range(len(optimizer.fp16_groups)):
                optimizer._reassign_or_swap_out_partitioned_parameters(group)
            optimizer.checkpoint_event_epilogue()

    def full_weights(self, keep: bool) -> dict[str, Tensors]:
        """Module -> state dict of the whole master weights and the buffers, fp32 on the CPU. Collective.

        Only ranks with `keep` get something. One parameter is gathered at a time.
        """
        from deepspeed.utils import safe_get_full_fp32_param

        weights: dict[str, Tensors] = {name: {} for name in self.phase.modules}
        with self.thawed():
            for name, parameter in self.trained:
                full = parameter.data if self.stage == 0 else safe_get_full_fp32_param(parameter)
                if keep:
                    module, _, inner = name.partition(".")
                    weights[module][inner] = full.detach().to("cpu", torch.float32, copy=True)
        if not keep:
            return {}
        for name, buffer in self.buffers().items():
            module, _, inner = name.partition(".")
            weights[module][inner] = buffer.detach().to("cpu", copy=True)
        return weights

    def train(self, mode: bool) -> None:
        """Switch the modules between training and evaluation."""
        self._engine.train(mode)

    def close(self) -> None:
        """Give back DeepSpeed's hooks and buffers."""
        self._engine.destroy()


# -- collectives ------------------------------------------------------------------------------------------------------


def add_up(values: Tensor) -> list[float]:
    """Sum of a 1-d tensor over all ranks, in float64."""
    total = values.to(torch.float64)
    dist.all_reduce(total)
    return total.tolist()


def gather(value: Any) -> list[Any]:
    """A small picklable value from every rank, by rank."""
    out: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(out, value)
    return out


def from_first(value: Any) -> Any:
    """Rank 0's value."""
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def barrier() -> None:
    """Wait for all ranks."""
    dist.barrier()
