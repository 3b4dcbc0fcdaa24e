"""The rule for buffers: running statistics of norms are the mean over the ranks; a refused step does not touch them.

So every rank has what a checkpoint holds. All other buffers must be equal on the ranks by themselves. Buffers are not
averaged over time: the averaged weights go with the statistics of the moment, and a task whose network uses them in
evaluation should recompute them for the averaged weights in its export.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.modules.batchnorm import _NormBase


class BatchStatistics:
    """The running statistics of all norms in some modules."""

    def __init__(self, modules: Mapping[str, nn.Module]) -> None:
        norms = [m for module in modules.values() for m in module.modules() if isinstance(m, _NormBase)]
        self._means = [b for norm in norms for b in (norm.running_mean, norm.running_var) if b is not None]
        self._all = [*self._means, *(n.num_batches_tracked for n in norms if n.num_batches_tracked is not None)]
        self._before: list[torch.Tensor] = []

    def remember(self) -> None:
        """Call before a step."""
        self._before = [buffer.clone() for buffer in self._all]

    @torch.no_grad()
    def settle(self, applied: bool) -> None:
        """Call after a step, on all ranks: average the statistics, or put them back if the step was refused."""
        if not applied:
            for buffer, before in zip(self._all, self._before):
                buffer.copy_(before)
        elif self._means and dist.get_world_size() > 1:
            flat = torch.cat([buffer.flatten().float() for buffer in self._means])
            dist.all_reduce(flat)
            flat /= dist.get_world_size()
            for buffer, mean in zip(self._means, flat.split([b.numel() for b in self._means])):
                buffer.copy_(mean.view_as(buffer))
