"""What a step of a training holds and computes, found without memory or a GPU: forward and backward pass on torch's
meta device, where tensors have shapes but no contents.

    python -m semiocity.train.footprint < question.json      prints the answer as one line of JSON

Bytes are those of live tensor storages, as an allocator would have to hold them, without the workspaces that kernels
take for themselves.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._device import _device_constructors
from torch.utils.flop_counter import FlopCounterMode

from semiocity.live_bytes import LiveBytes
from semiocity.train.options import TrainJob, load
from semiocity.train.tasks import TASKS
from semiocity.train.tasks.base import DatasetFacts, Phase, Task, Tensors


@contextmanager
def fused_attention() -> Iterator[None]:
    """Within, attention on the meta device is the fused kernel that CPUs and GPUs take, which keeps no matrix of
    scores. Torch itself would take the plain formula there."""
    plain = functional.scaled_dot_product_attention

    def attend(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        **more: Any,
    ) -> Tensor:
        if query.device.type != "meta" or any(more.values()) or attn_mask is not None:
            return plain(query, key, value, attn_mask, dropout_p, is_causal, scale=scale, **more)
        fused: Any = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        attended: Tensor = fused(query, key, value, dropout_p, is_causal, scale=scale)[0]
        return attended

    functional.scaled_dot_product_attention = attend  # type: ignore[assignment]
    try:
        yield
    finally:
        functional.scaled_dot_product_attention = plain


def footprint(job: TrainJob, facts: DatasetFacts, samples: int) -> dict[str, Any]:
    """The phases of `job` with `samples` at a time on a rank, in the largest of the job's sizes.

    Returns {"phases": [{"name", "stage", "precision", "offload", "optimizer", "ema", "every", "parameters", "small"
    (parameters of tensors with at most 100,000 elements), "largest" (elements of the largest tensor), "untrained"
    (bytes of what else the modules hold), "pass" (see `_passing`), "flops" (of one sample, recomputed ones too)}],
    "frozen" (bytes of modules that are never trained), "start" (see `Task.start_bytes`), "batch" (bytes of the input)}.
    """
    # Torch notes at the first such context which functions make tensors. accelerate replaces them for a while when it
    # loads a model; if the first context fell into that while, the real ones would be left out for good.
    _device_constructors.cache_clear()
    with torch.device("meta"), fused_attention():
        task: Task = load(TASKS[job.task].task)(job, facts)
        phases = task.phases()
        modules: dict[str, nn.Module] = {name: m for phase in phases for name, m in phase.modules.items()}
        trained = {phase.name: _trained(phase) for phase in phases}
        frozen = {name: module.requires_grad_(False) for name, module in task.frozen().items()}
        modules.update(frozen)
        for phase in phases:
            for module in phase.modules.values():
                module.to(torch.bfloat16 if phase.zero.precision == "bf16" else torch.float32)
        start = task.start_bytes(modules)
        batch = task.example(samples, *largest(job))
        found = [_phase(task, phase, phases, modules, trained, batch, samples) for phase in phases]
    return {
        "phases": found,
        "frozen": sum(map(_bytes, frozen.values())),
        "start": start,
        "batch": sum(t.nbytes for t in batch.values()),
    }


def largest(job: TrainJob) -> tuple[int, int]:
    """Height and width of the largest pictures that the job trains on."""
    sizes = [(height, width) for width, height in job.data.bucket_sizes] or [job.data.height_width]
    return max(sizes, key=lambda size: size[0] * size[1])


def _trained(phase: Phase) -> list[nn.Parameter]:
    return [p for module in phase.modules.values() for p in module.parameters() if p.requires_grad]


def _phase(
    task: Task,
    phase: Phase,
    phases: list[Phase],
    modules: Mapping[str, nn.Module],
    trained: Mapping[str, list[nn.Parameter]],
    batch: Tensors,
    samples: int,
) -> dict[str, Any]:
    for other in phases:  # as the loop has it: only the phase at work takes gradients
        for parameter in trained[other.name]:
            parameter.requires_grad_(other is phase)
            parameter.grad = None

    def compute() -> None:
        task.loss(phase.name, modules, batch, 0).total.backward()

    passing = _passing(trained[phase.name], [*_tensors(modules), *batch.values()], compute)
    # In a pass of its own: its hooks would keep alive what is recomputed.
    with FlopCounterMode(display=False) as counter:
        compute()
    for parameter in trained[phase.name]:
        parameter.grad = None
    sizes = [p.numel() for p in trained[phase.name]]
    return {
        "name": phase.name,
        "stage": phase.zero.stage,
        "precision": phase.zero.precision,
        "offload": phase.zero.offload,
        "optimizer": phase.optimizer.kind,
        "ema": phase.ema,
        "every": phase.every,
        "parameters": sum(sizes),
        "largest": max(sizes),
        "untrained": sum(_bytes(m) for m in phase.modules.values()) - sum(p.nbytes for p in trained[phase.name]),
        "small": sum(size for size in sizes if size <= 100_000),
        "pass": passing,
        "flops": counter.get_total_flops() / samples,
    }


def _passing(
    trained: Sequence[nn.Parameter], there: Iterable[Tensor], compute: Callable[[], None]
) -> list[tuple[int, int]]:
    """Moments of a pass when most is held: (elements whose gradients are done, bytes of everything but those and what
    was `there` before).

    What is kept of gradients differs between ZeRO stages, so that the highest moment does, too. A moment is left out
    when a later one holds as much.
    """
    moments: list[tuple[int, int]] = []
    done = 0
    live = LiveBytes()
    for tensor in there:
        live.ignore(tensor)

    def finish(parameter: Tensor) -> None:
        nonlocal done
        moments.append((done, live.peak))
        done += parameter.numel()
        parameter.grad = None
        live.peak = live.now

    hooks = [parameter.register_post_accumulate_grad_hook(finish) for parameter in trained]
    with live:
        compute()
    for hook in hooks:
        hook.remove()
    kept: list[tuple[int, int]] = []
    for moment in [(done, live.peak), *reversed(moments)]:
        if not kept or moment[1] > kept[-1][1]:
            kept.append(moment)
    return kept


def _tensors(modules: Mapping[str, nn.Module]) -> Iterator[Tensor]:
    for module in modules.values():
        yield from module.parameters()
        yield from module.buffers()


def _bytes(module: nn.Module) -> int:
    return sum(t.nbytes for t in (*module.parameters(), *module.buffers()))


def main() -> None:
    """Answer a question such as {"job": …, "facts": …, "variants": {NAME: {"samples": 4, "model": {…}}}}."""
    question = json.load(sys.stdin)
    facts = DatasetFacts(
        **{
            **question["facts"],
            "classes": tuple(question["facts"]["classes"]),
            "palette": tuple(map(tuple, question["facts"]["palette"])),
        }
    )
    answers = {}
    for name, variant in question["variants"].items():
        # Built without the rule that the batch divides: a variant is about one rank.
        job = TrainJob.model_validate({**question["job"], "model": {**question["job"]["model"], **variant["model"]}})
        answers[name] = footprint(job, facts, variant["samples"])
    print(json.dumps(answers))


if __name__ == "__main__":
    main()
