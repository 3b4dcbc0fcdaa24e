"""How fast a training is, what share of the GPUs' peak it uses, and how long it waits for data.

TFLOP/s are the task's own arithmetic (`Task.flops`) by the time of the steps: work that is done a second time to save
memory does not count, nor do frozen encoders. MFU (model FLOPs utilisation: Chowdhery et al. 2022, arXiv 2204.02311,
appendix B) is their share of the GPU's peak.
"""

from __future__ import annotations

import re
import resource
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

PEAK_TFLOPS: tuple[tuple[str, float, str], ...] = (
    ("h100 pcie", 756.5, "NVIDIA H100 Tensor Core GPU data sheet"),
    ("h100 nvl", 835.5, "NVIDIA H100 Tensor Core GPU data sheet"),
    ("h100", 989.5, "NVIDIA H100 Tensor Core GPU data sheet (SXM)"),
    ("h200 nvl", 835.5, "NVIDIA H200 Tensor Core GPU data sheet"),
    ("h200", 989.5, "NVIDIA H200 Tensor Core GPU data sheet (SXM)"),
    ("gh200", 989.5, "NVIDIA GH200 Grace Hopper Superchip data sheet"),
    ("h800", 989.5, "as the H100 SXM, with slower NVLink"),
    ("h20", 148.0, "NVIDIA H20 data sheet"),
    ("b200", 2250.0, "NVIDIA HGX B200 data sheet"),
    ("gb200", 2500.0, "NVIDIA GB200 NVL72 data sheet"),
    ("a100", 312.0, "NVIDIA A100 Tensor Core GPU data sheet"),
    ("a800", 312.0, "as the A100, with slower NVLink"),
    ("a40", 149.7, "NVIDIA A40 data sheet"),
    ("a30", 165.0, "NVIDIA A30 data sheet"),
    ("a10", 125.0, "NVIDIA A10 data sheet"),
    ("rtx a6000", 154.8, "NVIDIA RTX A6000 data sheet"),
    ("rtx 6000 ada", 364.2, "NVIDIA RTX 6000 Ada data sheet"),
    ("l40s", 362.05, "NVIDIA L40S data sheet"),
    ("l40", 181.05, "NVIDIA L40 data sheet"),
    ("l4", 121.0, "NVIDIA L4 data sheet"),
    ("rtx 3090", 71.0, "NVIDIA Ampere GA102 whitepaper, appendix A"),
    ("rtx 4090", 165.2, "NVIDIA Ada GPU architecture whitepaper, appendix A"),
)
"""Words of the device's name, dense bf16 TFLOP/s with sums in fp32 (half of what data sheets say for sparse matrices),
and the source. The first line whose words are all there counts."""
SLICED = {"mig", "laptop", "max", "ti", "super"}
"""Words of names that mean less, or other, than the whole card."""


def peak_tflops(device_name: str) -> float | None:
    """Peak of a GPU in bf16 by the name that torch gives it; None for one that is not in the table."""
    words = set(re.findall(r"[a-z0-9]+", device_name.lower()))
    if words & SLICED:
        return None
    return next((peak for name, peak, _ in PEAK_TFLOPS if set(name.split()) <= words), None)


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
