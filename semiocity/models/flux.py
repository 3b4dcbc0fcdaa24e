"""Flux.1's mathematics: latents, tokens, times and loss, as pure functions.

Sources: Black Forest Labs' reference code (`flux/sampling.py`, `flux/util.py`), Esser et al. 2024 (rectified flow,
arXiv 2403.03206) and Lipman et al. 2023 (flow matching, arXiv 2210.02747). The transformer itself is diffusers'
`FluxTransformer2DModel`; anything that is called as it is will do.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

PATCH = 2
"""Latent pixels on a token's side."""


@dataclass(frozen=True)
class Shift:
    """How far times are shifted towards noise, by the number of image tokens: `FlowMatchEulerDiscreteScheduler`."""

    base: float = 0.5
    most: float = 1.15
    base_tokens: int = 256
    most_tokens: int = 4096
    dynamic: bool = True
    """False: no resolution enters, times are shifted by the constant factor `factor` (1 for schnell: not at all)."""
    factor: float = 1.0

    def mu(self, tokens: int) -> float:
        """μ, linear in the number of image tokens: 0.5 at 256 (256²), 1.15 at 4096 (1024²). Esser et al., eq. 23 in
        the form of the reference code's `get_lin_function`."""
        if not self.dynamic:
            return math.log(self.factor)
        slope = (self.most - self.base) / (self.most_tokens - self.base_tokens)
        return self.base + slope * (tokens - self.base_tokens)


# -- latents ----------------------------------------------------------------------------------------------------------


def scale_latent(latent: Tensor, scale: float, shift: float) -> Tensor:
    """z = scale·(E(x) − shift): 0.3611 and 0.1159 for Flux.1's VAE."""
    return (latent - shift) * scale


def unscale_latent(latent: Tensor, scale: float, shift: float) -> Tensor:
    """Inverse of `scale_latent`, for the decoder."""
    return latent / scale + shift


def draw_latent(moments: Tensor, noise: Tensor) -> Tensor:
    """A draw of the VAE's posterior N(mean, exp(logvar)): [b, 2c, h, w] and standard normal noise -> [b, c, h, w].

    logvar is kept within [−30, 20], as the VAE's own distribution does.
    """
    mean, logvar = moments.float().chunk(2, dim=1)
    return mean + (0.5 * logvar.clamp(-30.0, 20.0)).exp() * noise


# -- tokens -----------------------------------------------------------------------------------------------------------


def pack(latent: Tensor) -> Tensor:
    """b c (h 2) (w 2) -> b (h w) (c 2 2): a token is a patch of 2×2 latent pixels."""
    b, c, h, w = latent.shape
    patches = latent.reshape(b, c, h // PATCH, PATCH, w // PATCH, PATCH)
    return patches.permute(0, 2, 4, 1, 3, 5).reshape(b, (h // PATCH) * (w // PATCH), c * PATCH * PATCH)


def unpack(tokens: Tensor, height: int, width: int) -> Tensor:
    """Inverse of `pack`, for a latent of `height` × `width` latent pixels."""
    b, _, channels = tokens.shape
    patches = tokens.reshape(b, height // PATCH, width // PATCH, channels // PATCH**2, PATCH, PATCH)
    return patches.permute(0, 3, 1, 4, 2, 5).reshape(b, channels // PATCH**2, height, width)


def image_ids(height: int, width: int, device: torch.device | str | None = None) -> Tensor:
    """Positions (0, row, column) of the tokens of a latent of `height` × `width`: fp32 [tokens, 3]."""
    rows = torch.arange(height // PATCH, dtype=torch.float32, device=device)
    columns = torch.arange(width // PATCH, dtype=torch.float32, device=device)
    grid = torch.meshgrid(rows, columns, indexing="ij")
    return torch.stack([torch.zeros_like(grid[0]), *grid], dim=-1).reshape(-1, 3)


def text_ids(tokens: int, device: torch.device | str | None = None) -> Tensor:
    """Positions of text tokens, all zero: fp32 [tokens, 3]."""
    return torch.zeros(tokens, 3, device=device)


# -- times and flow ---------------------------------------------------------------------------------------------------


def logit_normal(share: Tensor) -> Tensor:
    """t = σ(Φ⁻¹(u)): logit-normal times, density highest at 1/2, from uniform u in [0, 1). Esser et al., eq. 19.

    By the inverse of the normal distribution, so that u is also the quantile of t.
    """
    tiny = torch.finfo(torch.float64).eps
    return torch.special.ndtri(share.double().clamp(tiny, 1 - tiny)).sigmoid()


def shift_time(t: Tensor, mu: float) -> Tensor:
    """t ← e^μ / (e^μ + 1/t − 1): more noise for larger pictures. Esser et al., eq. 23."""
    return math.exp(mu) / (math.exp(mu) + 1 / t - 1)


def seen_time(t: Tensor, dtype: torch.dtype) -> Tensor:
    """The time that a model of this dtype sees when it is told `t`: fp32 [b].

    `FluxTransformer2DModel` takes t in its own dtype and multiplies it by 1000, and in bf16 both steps round. Samples
    are mixed at the rounded time, so that their noise is what the model is told.
    """
    return (t.to(dtype) * 1000).float() / 1000


def interpolate(latent: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """x_t = (1 − t)·x + t·ε, in fp32. Lipman et al., example II of section 4.1, in Flux's direction of time."""
    at = t.view(-1, *[1] * (latent.ndim - 1))
    return (1 - at) * latent + at * noise


def flow(latent: Tensor, noise: Tensor) -> Tensor:
    """The velocity dx_t/dt = ε − x that the model learns."""
    return noise - latent


def matching_loss(predicted: Tensor, target: Tensor) -> Tensor:
    """Mean squared error of each sample, in fp32: [b]."""
    return (predicted.float() - target.float()).square().flatten(1).mean(1)


def drop_prompts(prompts: Tensor, empty: Tensor, drop: Tensor) -> Tensor:
    """`empty` [1, …] in place of those prompts [b, …] where `drop` [b] is true (classifier-free guidance: Ho and
    Salimans 2022, arXiv 2207.12598)."""
    return torch.where(drop.view(-1, *[1] * (prompts.ndim - 1)), empty.to(prompts.dtype), prompts)


# -- the model --------------------------------------------------------------------------------------------------------


def velocity(
    model: Callable[..., Any],
    x: Tensor,
    t: Tensor,
    prompts: Tensor,
    pooled: Tensor,
    guidance: float | None,
    dtype: torch.dtype,
) -> Tensor:
    """The model's velocity at a noisy latent.

    x: [b, c, h, w]; t: [b] in [0, 1]; prompts: [b, n, joint width]; pooled: [b, pooled width]; guidance: None for
    models without guidance embedding, else one scale for all, given as a raw fp32 vector. Returns [b, c, h, w].
    """
    b, _, h, w = x.shape
    predicted = model(
        hidden_states=pack(x).to(dtype),
        encoder_hidden_states=prompts.to(dtype),
        pooled_projections=pooled.to(dtype),
        timestep=t,
        img_ids=image_ids(h, w, x.device),
        txt_ids=text_ids(prompts.shape[1], x.device),
        guidance=None if guidance is None else torch.full((b,), guidance, dtype=torch.float32, device=x.device),
        return_dict=False,
    )[0]
    return unpack(predicted, h, w)


def sampling_times(steps: int, mu: float) -> Tensor:
    """Times from 1 to 0, float64 [steps + 1]: 1, 1 − 1/n, …, 1/n shifted, then 0, as `FluxPipeline` takes them."""
    return torch.cat([shift_time(torch.linspace(1, 1 / steps, steps, dtype=torch.float64), mu), torch.zeros(1)])


def sample_euler(
    model: Callable[..., Any],
    noise: Tensor,
    prompts: Tensor,
    pooled: Tensor,
    *,
    steps: int,
    shift: Shift,
    guidance: float | None,
    dtype: torch.dtype,
) -> Tensor:
    """From noise [b, c, h, w] to scaled latents by Euler's method, x ← x + (t' − t)·v, kept in fp32."""
    b, _, h, w = noise.shape
    times = sampling_times(steps, shift.mu((h // PATCH) * (w // PATCH))).float().tolist()
    x = noise.float()
    for t, then in pairwise(times):
        now = torch.full((b,), t, dtype=torch.float32, device=x.device)
        x = x + (then - t) * velocity(model, x, now, prompts, pooled, guidance, dtype).float()
    return x


def recompute_blocks(transformer: torch.nn.Module, blocks: int | None) -> None:
    """Activation checkpointing (Chen et al. 2016, arXiv 1604.06174) of the first `blocks` blocks, or of all (None):
    their activations are computed again in the backward pass instead of being kept."""
    from torch.utils.checkpoint import checkpoint

    def wrap(plain: Callable[..., Any]) -> Callable[..., Any]:
        def forward(*args: Any, **kwargs: Any) -> Any:
            if not torch.is_grad_enabled():
                return plain(*args, **kwargs)
            return checkpoint(plain, *args, use_reentrant=False, preserve_rng_state=True, **kwargs)

        return forward

    held: Any = transformer
    for block in [*held.transformer_blocks, *held.single_transformer_blocks][:blocks]:
        block.forward = wrap(block.forward)
