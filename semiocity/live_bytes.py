"""Bytes of live tensors, counted while something runs on torch's meta device, where tensors have shapes but no
contents.

Bytes are those of tensor storages, as an allocator would have to hold them, without the workspaces that kernels take
for themselves.
"""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of all meta storages made inside and still referenced; `peak` is the most at one time."""

    def __init__(self, twice: bool = False) -> None:
        """`twice`: convolutions hold what they read and make twice for a moment, as oneDNN's on CPUs do, which has a
        layout of its own."""
        super().__init__()
        self.twice = twice
        self.now = self.peak = 0
        self._seen: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default and args[0].is_meta:
            return 0  # what a loop asks its data, as "is every answer finished?": it goes on to its end
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor) and leaf.is_meta:
                self._note(leaf.untyped_storage())
                if self.twice and func is torch.ops.aten.convolution.default:
                    self.peak = max(self.peak, self.now + leaf.nbytes + args[0].nbytes)
        return out

    def ignore(self, tensor: Tensor) -> None:
        """Do not count a tensor that was there before."""
        self._seen[tensor.untyped_storage()._cdata] = 0

    def _note(self, storage: Any) -> None:
        key = storage._cdata
        if key not in self._seen:
            self._seen[key] = storage.nbytes()
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._drop, key)

    def _drop(self, key: int) -> None:
        self.now -= self._seen.pop(key)
