"""Names of diffusers' attention backends that can train: those with a backward pass. Importable on a login node; a test
holds the list against diffusers'."""

from __future__ import annotations

MODULES = {
    "native": "",
    "_native_cudnn": "",
    "_native_efficient": "",
    "_native_flash": "",
    "_native_math": "",
    "flex": "",
    "flash": "flash_attn",
    "flash_varlen": "flash_attn",
    "_flash_3": "flash_attn_interface",
    "_flash_varlen_3": "flash_attn_interface",
    "xformers": "xformers",
}
"""Backend -> the module it needs beside torch."""
ON_CPU = ("native", "_native_math", "_native_flash", "flex")


def check(name: str) -> None:
    """ValueError for a backend that is unknown or cannot train."""
    if name in MODULES:
        return
    known = ", ".join(MODULES)
    if "sage" in name:
        raise ValueError(f"{name!r} has no backward pass, so it cannot train; there are: {known}")
    if name.endswith("_hub"):
        raise ValueError(
            f"{name!r} would be downloaded when the job runs, where there is no internet; there are: {known}"
        )
    raise ValueError(f"no attention backend {name!r}; there are: {known}")
