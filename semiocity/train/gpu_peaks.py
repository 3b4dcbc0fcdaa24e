"""What GPUs can compute at best, by their names. Importable on a login node."""

from __future__ import annotations

import re

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
    ("v100", 125.0, "NVIDIA V100 data sheet (SXM2, fp16: it has no bf16)"),
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


def peak_tflops(name: str) -> float | None:
    """Peak of a GPU in bf16 by the name that torch or a cluster gives it ("NVIDIA A100-SXM4-80GB", "a100",
    "rtx_a6000", "rtx3090"); None for one that is not in the table, and for parts of one."""
    words = set(re.findall(r"[a-z0-9]+", name.lower()))
    if words & SLICED or any(re.fullmatch(r"\dg", word) for word in words):
        return None
    return next(
        (peak for known, peak, _ in PEAK_TFLOPS if set(known.split()) <= words or known.replace(" ", "") in words), None
    )
