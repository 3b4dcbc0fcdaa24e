"""How fast a training is, what share of the GPUs' peak it uses, and how long it waits for data.

TFLOP/s are the task's own arithmetic (`Task.flops`) by the time of the steps: work that is done a second time to save
memory does not count, nor do frozen encoders. MFU (model FLOPs utilisation: Chowdhery et al. 2022, arXiv 2204.02311,
appendix B) is their share of the GPU's peak.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch


def memory_gb() -> float:
    """Most memory that this rank held, in 10⁹ bytes: of the GPU if there is one, else of the process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


class Meter:
    """Measures a training on one rank, from one look to the next."""

    def __init__(self, ranks: int, global_batch: int, peak_tflops: float | None = None) -> None:
        self.ranks, self.global_batch, self.peak = ranks, global_batch, peak_tflops
        self._pauses = 0
        self.begin()

    def begin(self) -> None:
        """Measure from now on."""
        self._from = time.monotonic()
        self._steps = 0
        self._flops: float | None = 0.0
        self._waited_s = self._paused_s = 0.0

    def step(self, waited_s: float, flops: float | None) -> None:
        """A step is done; it waited so long for data, and computed so much for each sample (None: not known)."""
        self._steps += 1
        self._waited_s += waited_s
        self._flops = None if flops is None or self._flops is None else self._flops + flops * self.global_batch

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Within, something else is done than steps: saving, validation, sampling. It lowers no speed."""
        if self._pauses:  # of two around each other the outer one counts
            yield
            return
        began = time.monotonic()
        self._pauses += 1
        try:
            yield
        finally:
            self._pauses -= 1
            self._paused_s += time.monotonic() - began

    def own(self) -> tuple[float, float]:
        """What this rank alone knows: seconds that it waited for data since the last look, and its memory in GB."""
        return self._waited_s, memory_gb()

    def look(self, others: Sequence[tuple[float, float]]) -> dict[str, float]:
        """What to show of the time since the last look, and begin anew. `others`: every rank's `own`.

        samples_per_s and TFLOP/s are by the time of the steps, data_wait_share is that of the rank that waited longest;
        pause_share is by all time: saving, validation, sampling.
        """
        whole_s = max(time.monotonic() - self._from, 1e-9)
        stepping_s = max(whole_s - self._paused_s, 1e-9)
        waited, memory = zip(*others)
        found = {
            "speed/samples_per_s": self._steps * self.global_batch / stepping_s,
            "speed/step_s": stepping_s / max(self._steps, 1),
            "speed/data_wait_share": min(max(waited) / stepping_s, 1.0),
            "speed/pause_share": self._paused_s / whole_s,
            "memory/gb": max(memory),
        }
        if self._flops:
            tflops = self._flops / stepping_s / self.ranks / 1e12
            found["speed/tflops_per_gpu"] = tflops
            if self.peak:
                found["speed/mfu"] = tflops / self.peak
        self.begin()
        return found
