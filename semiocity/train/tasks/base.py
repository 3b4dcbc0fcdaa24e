"""What a training task is: its phases, its losses, how it samples and what it exports.

The loop does the rest: order, engines, freezing, EMA, checkpoints, metrics. See `semiocity/train/README.md`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from semiocity.data.loader import Arrays, Room
from semiocity.data.order import Batch
from semiocity.errors import UserError
from semiocity.train.options import OptimizerOptions, TrainJob, ZeroOptions

Modules = Mapping[str, nn.Module]
Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Phase:
    """One optimizer and what it moves. A step runs its phases in the order in which the task lists them."""

    name: str
    modules: Modules
    """Modules that this phase trains, by a name that no other phase uses. Parameters that do not require gradients stay
    frozen and are left out of checkpoints."""
    optimizer: OptimizerOptions
    zero: ZeroOptions
    every: int = 1
    """The phase runs at each step that is a multiple of this."""
    ema: bool = True
    """Whether its weights are averaged; without, sampling and export take the weights themselves."""
    group: Callable[[str], tuple[str, float]] | None = None
    """Parameter (MODULE.NAME) -> its group and the factor of the group's learning rate; None makes one group. Besides
    rates by layer this caps memory: under ZeRO-1 and 2 the fp32 gradient exists for one group at a time."""


class Loss(NamedTuple):
    """What a phase minimises for one part of a batch, and what to show of it."""

    total: Tensor
    """Scalar, the mean over the part's samples, each times its weight."""
    shown: dict[str, tuple[Tensor, Tensor | float]]
    """Name -> (sum, count), detached; the loop adds up both over all parts and ranks and shows their quotient. `loss`
    must be there. The names must not depend on the samples: every rank has to send the same."""


class DatasetFacts(NamedTuple):
    """What a task may know of the dataset."""

    name: str
    digest: str
    classes: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]
    ignore_id: int | None


class Task(ABC):
    """A training task. Made on every rank alike, under the same torch seed, before anything is distributed."""

    def __init__(self, job: TrainJob, facts: DatasetFacts) -> None:
        self.job = job
        self.facts = facts

    @abstractmethod
    def phases(self) -> list[Phase]:
        """The phases, with new modules in fp32 on the CPU. Called once."""

    def frozen(self) -> Mapping[str, nn.Module]:
        """Modules that are used but never trained, such as a VAE. The loop puts them on the device, in eval mode."""
        return {}

    def start_bytes(self, modules: Modules) -> int:
        """What a rank's device holds at most before its optimizer is made, with these modules there in the end: more
        than they when something is loaded for a while. For `semiocity fit`."""
        return 0

    def frozen_digests(self) -> Mapping[str, str]:
        """Digest of the weights of each of `frozen`, and of frozen parameters inside phases. A checkpoint names them
        instead of copying them; a run does not go on with others."""
        return {}

    def notes(self, rows: int) -> list[str]:
        """Lines that the log begins with, for a training of `rows` rows: what it costs, and what would cost less."""
        return []

    # -- reading ------------------------------------------------------------------------------------------------------

    @abstractmethod
    def decode(self, row: Mapping[str, bytes | None], size: tuple[int, int], room: Room) -> Arrays:
        """Arrays of a row, by role (see `TrainJob.fields_by_role`). Random choices belong in `collate`.

        `size`: height and width in pixels that the row is brought to: `data.size`, or those of its bucket. `room(name,
        shape, dtype)` is an array to fill and return under that name, which spares a copy of large ones.

        Raises ValueError or OSError for damaged payloads and UserError for what the user can mend.
        """

    @abstractmethod
    def collate(self, batch: Batch, decoded: Sequence[Arrays]) -> Tensors:
        """Tensors of a rank's slice, first dimension b = len(batch.rows), with everything random that the losses use.

        Randomness is keyed by (seed, step, row): see `semiocity.train.noise`. `batch.weights` must multiply the losses:
        it is 0 for rows that only fill up a batch.
        """

    def example(self, samples: int, height: int, width: int) -> Tensors:
        """Empty tensors of the shapes and types that `collate` makes for `samples` rows of this size, on the default
        device. `semiocity fit` runs `loss` on them, where nothing has contents."""
        raise UserError(f"task {self.job.task} does not say the shapes of its batches (Task.example): fit cannot work")

    def collate_fixed(self, batch: Batch, decoded: Sequence[Arrays], shares: NDArray[np.float64]) -> Tensors:
        """As `collate`, for the validation loss: nothing is mirrored or dropped, times are at the quantiles `shares`
        [b] of their distribution, and noise is keyed by place and row alone. Without, it is `collate` at step 0, whose
        times are drawn and whose noise depends on the job's seed."""
        return self.collate(batch, decoded)

    # -- training -----------------------------------------------------------------------------------------------------

    @abstractmethod
    def loss(self, phase: str, modules: Modules, batch: Tensors, step: int) -> Loss:
        """The loss of a phase. `modules` holds those of all phases and `frozen`; only the phase's own are trained."""

    def validate(self, phase: str, modules: Modules, batch: Tensors) -> Mapping[str, tuple[Tensor, Tensor | float]]:
        """What the validation shows of a phase, as `Loss.shown`; nothing for phases whose loss says nothing. Called
        under no_grad, in eval mode, with the averaged weights, on what `collate_fixed` makes. A task whose loss takes
        gradients of its own (a penalty) gives something else here."""
        return self.loss(phase, modules, batch, 0).shown

    def flops(self, height: int, width: int) -> float | None:
        """FLOPs of a step for one sample of this size: forward and backward passes of what is trained, the mean over
        steps where phases do not run at each. Neither what is computed again to save memory nor frozen encoders count.
        None where nobody has worked it out; then no TFLOP/s and no MFU are shown."""
        return None

    # -- results ------------------------------------------------------------------------------------------------------

    @property
    def grid_of_rows(self) -> bool:
        """Whether the pictures of a grid are of rows of the dataset. Otherwise rows lend their shape alone, and come
        again where there are fewer than the grid has places."""
        return True

    @property
    def grid_title(self) -> str:
        """What a grid shows, column by column: its name in TensorBoard and Weights & Biases."""
        return "samples"

    @abstractmethod
    def sample(self, modules: Modules, batch: Tensors) -> Tensor:
        """A row of pictures for each sample of `batch`: uint8 [b, height, width, 3]. Called under no_grad, in eval
        mode, with the averaged weights. Every rank calls it with as many samples, on its own part of the grid."""

    @abstractmethod
    def export(self, weights: Mapping[str, Tensors], folder: Path, facts: dict[str, Any]) -> None:
        """Write the finished model into `folder`. `weights`: module name -> averaged state dict in fp32 on the CPU;
        `facts`: step, seed and digests to store with it. Called on rank 0 alone."""
