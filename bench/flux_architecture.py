"""FLUX.1-dev as its config.json files describe it, and a tiny one of the same classes."""

from __future__ import annotations

from typing import Any

DEV: dict[str, Any] = {
    "num_layers": 19,
    "num_single_layers": 38,
    "attention_head_dim": 128,
    "num_attention_heads": 24,
    "joint_attention_dim": 4096,
    "pooled_projection_dim": 768,
    "in_channels": 64,
    "guidance_embeds": True,
    "axes_dims_rope": [16, 56, 56],
    "patch_size": 1,
}
"""FLUX.1-dev's transformer: 11,901,408,320 parameters."""
TINY: dict[str, Any] = {
    **DEV,
    "num_layers": 1,
    "num_single_layers": 2,
    "attention_head_dim": 16,
    "num_attention_heads": 2,
    "joint_attention_dim": 32,
    "pooled_projection_dim": 16,
    "axes_dims_rope": [4, 6, 6],
}
VAE = {
    "latent_channels": 16,
    "block_out_channels": [128, 256, 512, 512],
    "scaling_factor": 0.3611,
    "shift_factor": 0.1159,
}
SCHEDULER = {"base_shift": 0.5, "max_shift": 1.15, "shift": 3.0, "use_dynamic_shifting": True}
