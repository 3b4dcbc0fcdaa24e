"""Frozen linear layers stored in 8 bits, for adapters beside them.

A weight w of output o is stored as float8_e4m3fn (Micikevicius et al. 2022, arXiv 2209.05433) of w/s_o, where s_o is
the power of two that brings the largest |w| of the row to between 224 and 448, float8's largest number. Its error is at
most 2⁻⁴ of itself, except below 2⁻¹⁵ of the row's largest. Without s_o most weights of a large model would be
subnormal.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

LARGEST = 448.0


class _Linear(torch.autograd.Function):
    """x·Wᵀ with W made of bytes in the forward pass, and again in the backward pass: nothing larger is kept between."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, stored: Tensor, scale: Tensor) -> Tensor:
        ctx.save_for_backward(stored, scale)
        return x @ restore(stored, scale, x.dtype).mT

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        stored, scale = ctx.saved_tensors
        return grads[0] @ restore(stored, scale, grads[0].dtype), None, None


class Float8Linear(nn.Module):
    """A frozen linear layer. Its contents are buffers that no checkpoint holds: the weights are named by digest."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = layer.in_features, layer.out_features
        stored, scale = store(layer.weight.detach())
        # As bytes: what casts a whole module to bf16, as DeepSpeed does, must leave them alone. A power of two is exact
        # in bf16.
        self.register_buffer("stored", stored, persistent=False)
        self.register_buffer("scale", scale, persistent=False)
        self.bias = layer.bias

    def forward(self, x: Tensor) -> Tensor:
        """As `nn.Linear`, in x's type."""
        y = _Linear.apply(x, self.stored, self.scale)
        return y if self.bias is None else y + self.bias.to(y.dtype)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, float8_e4m3fn"


def store(weight: Tensor) -> tuple[Tensor, Tensor]:
    """[out, in] -> bytes [out, in] and scales [out, 1]."""
    wide = weight.float()
    largest = wide.abs().amax(1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny * LARGEST)
    scale = torch.exp2(torch.ceil(torch.log2(largest / LARGEST)))
    return (wide / scale).to(torch.float8_e4m3fn).view(torch.uint8), scale


def restore(stored: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """The weight, rounded, in `dtype`."""
    return stored.view(torch.float8_e4m3fn).to(dtype) * scale.to(dtype)


def store_blocks(model: nn.Module) -> int:
    """Replace the frozen linear layers in a transformer's blocks, those inside adapters too; returns how many."""
    replaced = 0
    for name, blocks in model.named_children():
        if not (name.endswith("transformer_blocks") and isinstance(blocks, nn.ModuleList)):
            continue
        for parent in list(blocks.modules()):
            for child, layer in list(parent.named_children()):
                if isinstance(layer, nn.Linear) and not any(p.requires_grad for p in layer.parameters()):
                    setattr(parent, child, Float8Linear(layer))
                    replaced += 1
    return replaced
