"""What a training job says (`jobs/train-*.toml`). Importable on a login node: pydantic only."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from semiocity.config import Job, Strict, check
from semiocity.data.buckets import BucketOptions
from semiocity.errors import UserError
from semiocity.files import digest, read_json
from semiocity.train.optimizer_options import OptimizerOptions, ZeroOptions, refuse_pair
from semiocity.train.schedule import check_steps, end_is_open
from semiocity.train.tasks import TASKS


class TaskOptions(Strict):
    """Base of a task's own options, the [model] table."""

    def roles(self) -> dict[str, str]:
        """What the task reads: role -> default field, such as {"image": "base.image"}."""
        raise NotImplementedError

    def averages(self) -> bool:
        """Whether any phase keeps an average of its weights ([ema])."""
        return True

    def check_size(self, height: int, width: int) -> None:
        """Raise ValueError when the model cannot work at this size in pixels."""

    def check_bucket(self, height: int, width: int) -> None:
        """Raise ValueError when the model cannot work at this size of a bucket. A task that takes several sizes
        overrides this; the others take one."""
        raise ValueError("data.buckets: this task trains at one size, data.size; leave data.buckets out")

    def paths(self) -> list[Path]:
        """Folders outside run and dataset that the task reads; they are mounted into the container."""
        return []

    def check_reading(self, job: TrainJob, columns: Mapping[str, Mapping[str, Any]]) -> None:
        """Refuse before submission what could not run: weights that are missing, or columns that do not fit them.
        `columns`: name -> manifest of every column that is read. Raises UserError."""
        return


class DataOptions(Strict):
    """What is read, and how."""

    fields: dict[str, str] = Field(default_factory=dict)
    """Fields other than the task's defaults, by role: {label = "annotate.label"}."""
    view: str | None = Field(None, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*(@[0-9a-f]+)?$")
    """A saved view (`semiocity view`) to take rows from, NAME or NAME@REVISION; None takes the whole dataset. A
    submission pins the revision."""
    split: str = "train"
    """Split of the dataset, or of the view; "" takes all rows."""
    size: int | tuple[int, int] = Field(256)
    """Side, or [height, width], in pixels. Rows of another size are cropped to this shape in the middle and resized."""
    flip: bool = False
    """Mirror half of the samples (keyed by step and row)."""
    buckets: BucketOptions | None = None
    """Aspect buckets: every global batch has one shape, and rows go into the bucket nearest to their own. `size` is
    then that of the image grids alone."""
    workers: int = Field(0, ge=0)
    """Processes that read ahead, for each rank; 0 reads between the steps."""
    prefetch: int = Field(2, ge=1)
    """Slices that each of them reads ahead."""
    window: int = Field(4, ge=1)
    """Shards whose rows are shuffled together."""
    tail: Literal["drop", "pad"] = "drop"
    """What to do with the rows at the end of an epoch, of each bucket, that fill no global batch."""
    ledger: bool = False
    """Write down which samples went into each batch, for `semiocity ledger RUN`."""
    stage_to: str | None = None
    """Folder on the node's own disk that shards are copied to ahead of their reading, such as "$TMPDIR/shards"."""
    stage_mb: int = Field(100_000, ge=1)
    """Most MB (10⁶ bytes) of copies there."""
    cache_mb: int = Field(0, ge=0)
    """Memory of each rank for decoded rows; a small dataset is then decoded once. Divided among the workers."""

    @property
    def height_width(self) -> tuple[int, int]:
        return (self.size, self.size) if isinstance(self.size, int) else self.size

    @property
    def bucket_sizes(self) -> tuple[tuple[int, int], ...]:
        """Width and height of each bucket; empty without buckets."""
        return self.buckets.resolved() if self.buckets else ()

    @field_validator("size")
    @classmethod
    def _positive(cls, size: int | tuple[int, int]) -> int | tuple[int, int]:
        if min((size,) if isinstance(size, int) else size) < 1:
            raise ValueError("must be at least 1 pixel")
        return size


class EmaOptions(Strict):
    """Exponential moving average of the fp32 master weights; it is what is sampled and exported.

    After update n (from 0): ema += (1 - d)·(weights - ema) with d = min(decay, (1 + n) / (10 + n)) if `warmup`, else
    d = decay. Buffers are not averaged: see semiocity.train.batch_statistics.
    """

    decay: float = Field(0.9999, ge=0, lt=1)
    warmup: bool = True


class RehearseOptions(Strict):
    """Rehearsing trouble on a cluster before a long run depends on it."""

    slow_save_s: tuple[float, ...] = ()
    """Seconds that rank i waits before it writes its part of a checkpoint; ranks beyond the list do not wait."""
    slow_step_s: float = Field(0.0, ge=0)
    """Seconds added to every step."""
    fail: tuple[int, int] | None = None
    """[rank, step]: that rank raises an error in that step."""


class HangOptions(Strict):
    """When a training counts as hung. Every rank then writes its stacks into the attempt folder, and the job comes back
    from its newest checkpoint."""

    times: float = Field(20.0, ge=0)
    """No step for so many times the median step; 0 never. Saving, sampling and the first steps do not count."""
    at_least_s: float = Field(600.0, gt=0)
    """But not before so many seconds."""
    requeues: int = Field(3, ge=0)
    """How often a training asks to come back after a hang; on a cluster `retries.hung` has a say, too."""


class WandbOptions(Strict):
    """Curves and pictures for Weights & Biases, too. Its key comes from the environment alone (WANDB_API_KEY)."""

    project: str = Field("semiocity", min_length=1)
    entity: str | None = None
    """Team or user; by default the key's own."""
    mode: Literal["offline", "online"] = "offline"
    """`offline` writes into the run folder, for `wandb sync` on a login node; `online` needs the internet on compute
    nodes."""
    tags: tuple[str, ...] = ()
    pictures: bool = True
    """Whether image grids are sent, too."""


AUTO = ("zero.stage", "zero.offload", "model.recompute", "model.checkpoint")
"""Settings that may be left to the submission."""


class TrainJob(Job):
    """A training."""

    task: str
    """What is trained, a key of semiocity.train.tasks.TASKS."""
    data: DataOptions = DataOptions()
    optimizer: OptimizerOptions = OptimizerOptions()
    ema: EmaOptions = EmaOptions()
    zero: ZeroOptions = ZeroOptions()
    steps: int = Field(ge=1)
    """Optimizer steps altogether."""
    global_batch: int = Field(ge=1)
    """Samples of a step, over all ranks."""
    accumulation: int = Field(1, ge=1)
    """Parts into which a rank divides its samples of a step, one after the other, to save memory."""
    seed: int = Field(0, ge=0, lt=2**63)
    checkpoint_every: int = Field(1000, ge=1)
    """Steps between checkpoints. There is one at the end and one at each stop as well."""
    keep_last: int = Field(3, ge=2)
    """Checkpoints to keep. At least 2: a damaged newest one must have somewhere to fall back to."""
    keep_every: int | None = Field(None, ge=1)
    """Besides those, keep the checkpoints of steps that are multiples of this, for good."""
    checkpoint_async: bool = True
    """Write checkpoints while training goes on, from copies in the host's memory. Without that memory, or at a stop and
    at the end, the training waits (docs/checkpoints.md)."""
    sample_every: int = Field(1000, ge=0)
    """Steps between image grids; 0 makes none."""
    sample_images: int = Field(8, ge=1)
    """Rows of a grid."""
    sample_split: str | None = None
    """Split that grids take their rows from; the training's by default."""
    validate_every: int = Field(0, ge=0)
    """Steps between validation losses, one before the first step included; 0 makes none."""
    validate_split: str = "val"
    """Split whose rows the validation takes; it must not be trained on."""
    validate_samples: int = Field(64, ge=1)
    """Samples of a validation: rows spread over the split, with times spread evenly. Where the split has fewer rows,
    they come again with other noise."""
    validate_batch: int = Field(4, ge=1)
    """Samples that a rank computes at a time. The loss does not depend on the ranks, but on this by rounding."""
    log_every: int = Field(50, ge=1)
    """Steps between lines in the log and points in TensorBoard."""
    wandb: WandbOptions | None = None
    """Weights & Biases beside TensorBoard."""
    bad_steps: int = Field(5, ge=1)
    """Steps in a row without a finite loss and gradient after which the run goes back to the last good checkpoint,
    once; the second time it fails."""
    export_dtype: Literal["fp32", "bf16"] = "fp32"
    """Type of the exported weights."""
    compile: Literal["none", "blocks"] = "none"
    """Compile each repeated block of the model (torch.compile): the first step takes minutes, later ones less. Needs
    Triton and a C compiler where the job runs."""
    choose: tuple[str, ...] = ()
    """Settings that said "auto" (docs/optimizers.md): zero.stage, zero.offload, model.recompute, model.checkpoint. They
    are chosen when the job is submitted."""
    hang: HangOptions = HangOptions()
    rehearse: RehearseOptions = RehearseOptions()
    model: dict[str, Any] = Field({}, validate_default=True)
    """The task's own options, checked against its model of them."""

    @model_validator(mode="before")
    @classmethod
    def _take_out_auto(cls, data: Any) -> Any:
        """`zero.stage = "auto"` and the like: the default, until the submission has chosen."""
        if not isinstance(data, dict):
            return data
        entry = TASKS.get(data.get("task", ""))
        known = {"zero": set(ZeroOptions.model_fields), "model": set(load(entry.options).model_fields) if entry else ()}
        chosen = []
        for key in AUTO:
            table, _, name = key.partition(".")
            inner = data.get(table)
            if isinstance(inner, dict) and inner.get(name) == "auto" and name in known[table]:
                data = {**data, table: {k: v for k, v in inner.items() if k != name}}
                chosen.append(key)
        return {**data, "choose": chosen} if chosen else data

    @field_validator("task")
    @classmethod
    def _task_exists(cls, task: str) -> str:
        if task not in TASKS:
            raise ValueError(f"no such task: {task!r}; there are: {', '.join(sorted(TASKS))}")
        return task

    @field_validator("model")
    @classmethod
    def _model_fits(cls, model: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
        if "task" not in info.data or "data" not in info.data:
            return model  # those have their own message
        try:
            options = task_options(info.data["task"], model)
        except UserError as error:
            raise ValueError(str(error)) from None
        options.check_size(*info.data["data"].height_width)
        for width, height in info.data["data"].bucket_sizes:
            options.check_bucket(height, width)
        unknown = set(info.data["data"].fields) - set(options.roles())
        if unknown:
            roles = ", ".join(sorted(options.roles()))
            raise ValueError(f"data.fields.{min(unknown)}: task {info.data['task']} reads only: {roles}")
        return options.model_dump(mode="json")

    @model_validator(mode="after")
    def _kept_ones_are_made(self) -> TrainJob:
        if self.keep_every and self.keep_every % self.checkpoint_every:
            near = -(-self.keep_every // self.checkpoint_every) * self.checkpoint_every
            raise ValueError(
                f"keep_every is {self.keep_every}, no multiple of checkpoint_every = {self.checkpoint_every}, so there "
                f"would be no checkpoint to keep; {near} would do"
            )
        return self

    @model_validator(mode="after")
    def _validation_is_held_out(self) -> TrainJob:
        if self.validate_every and self.validate_split == self.data.split:
            raise ValueError(
                f"validate_split: {self.validate_split!r} is the split that is trained on (data.split); name another"
            )
        if self.validate_every and not self.data.split:
            raise ValueError(
                "validate_every: data.split is empty, so every row is trained on and none is held out; name a split to "
                "train on, or set validate_every = 0"
            )
        return self

    @model_validator(mode="after")
    def _average_is_kept(self) -> TrainJob:
        if self.model and self.ema != EmaOptions() and not self.options.averages():
            raise ValueError("ema would not be used: no average is kept; leave [ema] out, or set model.average = true")
        return self

    @model_validator(mode="after")
    def _batch_divides(self) -> TrainJob:
        check_batch(self, self.resources.nodes * self.resources.ranks_per_node)
        return self

    @model_validator(mode="after")
    def _optimizer_fits(self) -> TrainJob:
        refuse_pair(self.optimizer, self.zero, self.accumulation)
        check_steps(self.optimizer, self.steps)
        if self.zero.offload != "none" and self.resources.mem_gb is None:
            raise ValueError(
                "resources.mem_gb: missing; zero.offload fills the host's memory, so say how much there is"
            )
        if self.compile != "none" and self.zero.stage == 3:
            raise ValueError(
                'compile = "blocks" does not go with zero.stage 3, which fetches weights inside the blocks'
            )
        return self

    @property
    def options(self) -> TaskOptions:
        """The [model] table as the task's own type."""
        return task_options(self.task, self.model)

    def fields_by_role(self) -> dict[str, str]:
        """Field that each role of the task reads."""
        return {**self.options.roles(), **self.data.fields}


def task_options(task: str, model: dict[str, Any]) -> TaskOptions:
    """Check a [model] table; UserError with a line a fault."""
    return check(model, load(TASKS[task].options), where="model")


def check_batch(job: TrainJob, ranks: int) -> None:
    """ValueError unless the global batch divides evenly among ranks and accumulation."""
    parts = ranks * job.accumulation
    if job.global_batch % parts:
        below = job.global_batch // parts * parts
        near = f"{below} or {below + parts}" if below else str(parts)
        raise ValueError(
            f"global_batch is {job.global_batch}, no multiple of {ranks} ranks × accumulation {job.accumulation} "
            f"= {parts}; {near} would do"
        )


def needs(job: TrainJob) -> tuple[str, ...]:
    """Fields that a training reads, for the check on the login node."""
    return tuple(sorted(set(job.fields_by_role().values())))


def load(reference: str) -> Any:
    """The object that "module:name" names."""
    module, _, name = reference.partition(":")
    return getattr(importlib.import_module(module), name)


# Settings that may differ when a run goes on: they change neither the samples nor what is computed from them (but for
# rounding, where they change how sums are divided).
FREE = {
    "accumulation",
    "bad_steps",
    "checkpoint_async",
    "checkpoint_every",
    "choose",
    "compile",
    "data.cache_mb",
    "data.ledger",
    "data.prefetch",
    "data.stage_mb",
    "data.stage_to",
    "data.workers",
    "dataset",
    "export_dtype",
    "hang",
    "image",
    "keep_every",
    "keep_last",
    "log_every",
    "model.checkpoint",
    # Where weights lie; what they are is in the checkpoint, by digest.
    "model.pretrained",
    "model.export_frozen",
    "model.attention",
    "model.export_original",
    "model.recompute",
    "model.sample_guidance",
    "model.sample_prompts",
    "model.sample_steps",
    "rehearse",
    "resources",
    "run",
    "sample_every",
    "sample_images",
    "sample_split",
    "validate_batch",
    "validate_every",
    "validate_samples",
    "validate_split",
    "wandb",
    "zero.offload",
    "zero.stage",
}

# Settings that came after the first checkpoints, and what those were written with.
LATER = {
    "optimizer.decay_steps": 0,
    "optimizer.kind": "adamw",
    "optimizer.min_lr": 0.0,
    "optimizer.momentum": 0.95,
    "model.base_dtype": "same",
}


def identity(job: TrainJob) -> dict[str, Any]:
    """Dotted setting -> value of everything that a resumed run must share with its checkpoint.

    `steps` belongs to it only when the schedule of the rate depends on it.
    """
    free = FREE | ({"steps", "optimizer.decay_steps"} if end_is_open(job.optimizer) else set())
    flat: dict[str, Any] = {}

    def walk(prefix: str, value: Any) -> None:
        if prefix in free:
            return
        if isinstance(value, dict) and value:
            for name, inner in value.items():
                walk(f"{prefix}.{name}" if prefix else name, inner)
        elif prefix not in LATER or value != LATER[prefix]:
            flat[prefix] = value

    walk("", job.model_dump(mode="json"))
    return flat


def is_done(run: Path, job: TrainJob) -> bool:
    """Whether the run in this folder finished with these settings and as many steps."""
    try:
        done = read_json(run / "done.json")
    except FileNotFoundError:
        return False
    return done["step"] == job.steps and done["settings"] == digest(identity(job))
