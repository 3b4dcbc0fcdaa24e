"""Configuration: strict pydantic models and TOML loading with `--set`.

A wrong file is refused before anything is submitted, with the file, the dotted key, and what would be right.
Importable on a login node (pydantic only).
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from semiocity import sbatch_options, secrecy
from semiocity.errors import UserError
from semiocity.files import canonical, digest, fsync_folder, json_bytes, read_json, write_atomic, write_json

__all__ = [
    "Cluster",
    "Container",
    "Job",
    "Notify",
    "Purged",
    "ReduceJob",
    "Resources",
    "Retries",
    "StageJob",
    "Strict",
    "apply_set",
    "canonical",
    "check",
    "digest",
    "fsync_folder",
    "json_bytes",
    "load_toml",
    "read_json",
    "write_atomic",
    "write_json",
]


class Strict(BaseModel):
    """Base of every configuration model: unknown keys are errors, values do not change after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


Model = TypeVar("Model", bound=BaseModel)


# ---------------------------------------------------------------- loading


def load_toml(path: Path, model: type[Model], sets: Iterable[str] = (), **defaults: Any) -> Model:
    """Read `path` as TOML, apply `--set a.b=value` overrides, and check it against `model`.

    `defaults` are top-level keys used when the file does not give them.
    Raises UserError naming the file, the dotted key and what would be right.
    """
    try:
        data = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not valid TOML: {error}") from None
    for key, value in defaults.items():
        data.setdefault(key, value)
    for item in sets:
        apply_set(data, item)
    return check(data, model, where=str(path))


def apply_set(data: dict[str, Any], item: str) -> None:
    """Apply one `a.b=value` to nested `data`. The value is read as TOML; what is no TOML value is a plain string."""
    key, equals, text = item.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts):
        raise UserError(f"--set {item}: expected KEY=VALUE with a dotted key, such as --set resources.timeout_min=30")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text
    for part in parts[:-1]:
        data = data.setdefault(part, {})
        if not isinstance(data, dict):
            raise UserError(f"--set {item}: {part} is a value, not a table")
    data[parts[-1]] = value


def check(data: Mapping[str, Any], model: type[Model], where: str) -> Model:
    """Validate `data` against `model`; UserError with one line a fault, each beginning with `where: dotted.key`."""
    try:
        return model.model_validate(data)
    except ValidationError as error:
        lines = [_explain(where, item, model) for item in error.errors()]
        raise UserError("\n".join(lines)) from None


def _explain(where: str, item: Mapping[str, Any], model: type[BaseModel]) -> str:
    dotted = ".".join(str(part) for part in item["loc"]) or "(top level)"
    match item["type"]:
        case "extra_forbidden":
            known = _fields_at(model, item["loc"][:-1])
            near = get_close_matches(str(item["loc"][-1]), known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"known keys here: {', '.join(known) or 'none'}"
            return f"{where}: {dotted}: unknown key; {hint}"
        case "missing":
            return f"{where}: {dotted}: missing"
        case "value_error":
            lines = item["msg"].removeprefix("Value error, ").splitlines()
            return "\n".join(f"{where}: {_placed(line, dotted, item['loc'], model)}" for line in lines)
        case _:
            return f"{where}: {dotted}: {item['msg']} (got {item['input']!r})"


def _placed(line: str, dotted: str, loc: tuple[Any, ...], model: type[BaseModel]) -> str:
    """A validator's line, with the key that it is about in front unless it names one itself."""
    named = re.match(r"(\w+)[.:]", line)
    return line if not loc or (named and named[1] in model.model_fields) else f"{dotted}: {line}"


def _fields_at(model: type[BaseModel], loc: tuple[Any, ...]) -> list[str]:
    """Names of the fields that `model` knows at a location; a tagged union's tag in `loc` picks its member."""
    candidates: list[type[BaseModel]] = [model]
    for part in loc:
        nested = [_models(c.model_fields[part].annotation) for c in candidates if part in c.model_fields]
        if nested:
            candidates = [m for group in nested for m in group]
        else:
            tagged = [c for c in candidates if part in [v for f in c.model_fields.values() for v in _literals(f)]]
            candidates = tagged or candidates
    return sorted({name for candidate in candidates for name in candidate.model_fields})


def _models(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [found for argument in get_args(annotation) for found in _models(argument)]


def _literals(field: Any) -> tuple[Any, ...]:
    return get_args(field.annotation) if getattr(field.annotation, "__origin__", None) is Literal else ()


# ---------------------------------------------------------------- jobs and cluster


class Retries(Strict):
    """How often a job may come back by itself after each cause; beyond that it has failed (docs/retries.md)."""

    preemption: int = Field(100, ge=0)
    """Also: a job that was stopped by a signal, saved, and goes on."""
    time_limit: int = Field(10, ge=0)
    crash: int = Field(1, ge=0)
    """Errors that may pass, and signals. Once is enough to find the row that kills a stage."""
    out_of_memory: int = Field(2, ge=0)
    """Of the host and of the GPU."""
    hung: int = Field(3, ge=0)
    """No progress for too long: a batch of a stage, ranks that wait for one another."""
    node_failure: int = Field(3, ge=0)
    """Also: a node that lacks what the job needs; it is excluded."""


class Resources(Strict):
    """What one task of a job asks of the cluster."""

    nodes: int = Field(1, ge=1)
    ranks_per_node: int = Field(1, ge=1)
    """Processes on a node; one a GPU where there are GPUs."""
    gpus_per_node: int = Field(0, ge=0)
    cpus_per_rank: int = Field(1, ge=1)
    mem_gb: float | None = Field(None, gt=0)
    """Memory of a node; None leaves the partition's default."""
    timeout_min: int = Field(60, ge=1)
    signal_delay_s: int = Field(120, ge=10)
    """How long before the time limit the job is told to save and stop; the largest save must fit in."""
    array_parallelism: int = Field(64, ge=1)
    """Most tasks of an array that run at the same time."""
    shards_per_task: int | None = Field(None, ge=1)
    """Shards that one task makes, one after the other. By default as many as fill `task_min`, once measured."""
    task_min: float = Field(20, gt=0)
    """Minutes that a task should take where the number of shards is up to us: long against the start, short against the
    time limit."""
    partition: str | None = None
    """Overrides the cluster's partition for this job."""
    retries: Retries | None = None
    """Budgets of coming back for this job; what is not given is the cluster's."""

    @model_validator(mode="after")
    def _ranks_match_gpus(self) -> Resources:
        if self.gpus_per_node and self.ranks_per_node not in (1, self.gpus_per_node):
            raise ValueError(
                f"ranks_per_node is {self.ranks_per_node} but gpus_per_node is {self.gpus_per_node}; one rank a GPU"
            )
        if self.signal_delay_s >= self.timeout_min * 60:
            raise ValueError(
                f"signal_delay_s ({self.signal_delay_s}) must be below timeout_min ({self.timeout_min} min)"
            )
        return self


class Job(Strict):
    """What every job file has."""

    dataset: Path
    """The dataset's folder, such as data/city."""
    run: str | None = Field(None, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Name of the folder under runs/; by default made of the job's and the dataset's names."""
    image: Path | None = None
    """Apptainer image (.sif) to run in; None takes the cluster's, and without one the job runs in this environment."""
    resources: Resources = Resources()


class StageJob(Job):
    """A stage over a dataset: adds one column (`jobs/caption.toml`)."""

    stage: str
    """Name of the stage, a key of semiocity.stages.base.STAGES."""
    column: str | None = Field(None, pattern=r"^[a-z][a-z0-9_]*$")
    """The new column's name; the stage's own by default."""
    args: dict[str, Any] = {}
    """Arguments of the stage, checked against its own model."""


class ReduceJob(Job):
    """A reduce stage: adds a column that needs to see every shard of its parents first (`jobs/duplicates.toml`)."""

    reduce: str
    """Name of the reduce stage, a key of semiocity.stages.reduce.REDUCES."""
    column: str | None = Field(None, pattern=r"^[a-z][a-z0-9_]*$")
    """The new column's name; the stage's own by default."""
    args: dict[str, Any] = {}
    """Arguments of the reduce stage, checked against its own model."""


class Container(Strict):
    """How images are run on this cluster."""

    runtime: Literal["apptainer", "pyxis", "none"] = "apptainer"
    """Who runs the image: Apptainer; SLURM's plugin Pyxis with Enroot; or nobody, jobs run in this environment."""
    image: Path | None = None
    """Image for every job that names none. With Pyxis a squashfs file, such as one made by `enroot import`."""
    verify_key: Path | None = None
    """Public key (PEM): an image that is not signed with its private half is refused at submission."""
    python: str = "python3"
    """The image's interpreter, where it is not the first `python3` on the image's PATH."""
    binds: list[str] = []
    """Further folders to mount, `/scratch` or `/a:/b:ro`."""
    apptainer: str = "apptainer"
    """The command; a full path when it comes from a module."""
    env: dict[str, str] = {}
    """Environment of every job, in a container or not. No secrets: it is written into the sbatch file."""

    @model_validator(mode="after")
    def _image_has_a_runtime(self) -> Container:
        if self.runtime == "none" and self.image is not None:
            raise ValueError('runtime is "none", so image would not be used; drop one of the two')
        if self.verify_key is not None and self.runtime != "apptainer":
            raise ValueError(f'verify_key needs runtime = "apptainer": images of {self.runtime} carry no signature')
        return self

    @field_validator("env")
    @classmethod
    def _may_be_read_by_all(cls, env: dict[str, str]) -> dict[str, str]:
        """Whatever runs the image: variables are written into sbatch files and attempts."""
        for name, value in env.items():
            if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name) or {"\n", "\0"} & set(value):
                raise ValueError(f"{name!r}: not an environment variable that can be handed to a job")
            if name in ("PYTHONPATH", "PYTHONSAFEPATH"):
                raise ValueError(f"{name}: the submission decides that, so that tasks import the run's own code")
            if secrecy.is_secret(name):
                raise ValueError(f"{name}: a secret must not be in a file, {_EXPORT}")
            if secrecy.holds_password(value):
                raise ValueError(f"{name}: a URL with a password must not be in a file, {_EXPORT}")
        return env


class Notify(Strict):
    """Who hears of it when a run ends or fails (see semiocity.launch.notices)."""

    mail: str | None = Field(None, pattern=r"^[^@\s,]+@[^@\s,]+$")
    """Address that SLURM writes to (`--mail-user`)."""
    mail_on: list[Literal["BEGIN", "END", "FAIL", "REQUEUE", "TIME_LIMIT_80"]] = ["END", "FAIL"]
    webhook_env: str | None = Field(None, pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")
    """Name of the environment variable that holds a webhook's URL; export it in the shell that submits."""
    webhook_file: Path | None = None
    """File that holds a webhook's URL, readable by you alone. The URL itself is never written anywhere."""
    timeout_s: float = Field(10.0, gt=0, le=60)
    """How long the webhook may take. A dead one costs this once, and harms nothing."""

    @model_validator(mode="after")
    def _one_webhook(self) -> Notify:
        if self.webhook_env and self.webhook_file:
            raise ValueError("webhook_env and webhook_file are two places for the same thing; keep one")
        return self


class Purged(Strict):
    """A folder whose old files the site deletes."""

    path: Path
    days: int = Field(ge=1)
    """Files that were not touched for so long are deleted."""
    warn_days: int = Field(7, ge=0)
    """`semiocity doctor` warns from so many days before that."""


class Cluster(Strict):
    """The site (`jobs/cluster.toml`): written once, used by every job. docs/sites.md tells what is for which site."""

    executor: Literal["local", "slurm"] = "local"
    partition: str | None = None
    light_partition: str | None = None
    """Partition of the small jobs without GPUs that merge what an array made; by default the job's own."""
    account: str | None = None
    """What jobs are charged to; many sites refuse jobs without."""
    qos: str | None = None
    constraint: str | None = None
    """Features that nodes must have, such as "a100&ib"."""
    gpu_option: Literal["gpus-per-node", "gres", "none"] = "gpus-per-node"
    """How GPUs are asked for: `--gpus-per-node=8`, `--gres=gpu:8`, or not at all where whole nodes come with theirs."""
    gpu_type: str | None = Field(None, pattern=r"^[A-Za-z0-9_.-]+$")
    """The site's name of the GPUs: `--gres=gpu:a100:8`."""
    gpu_gb: float | None = Field(None, gt=0)
    """Memory of one GPU (10⁹ bytes), for `semiocity fit`."""
    memory_option: Literal["mem", "mem-per-cpu", "mem-per-gpu", "none"] = "mem"
    """How memory is asked for; `none` where `--mem` is refused since nodes are given whole. mem_gb is a node's."""
    exclusive: bool = False
    """Ask for whole nodes."""
    requeue: bool = True
    """Whether jobs may come back by themselves. Without, a job that was stopped has saved and waits for
    `semiocity retry RUN`."""
    setup: list[str] = []
    """Shell lines before each job, such as `module load apptainer`."""
    sbatch: dict[str, str | int | bool] = {}
    """Further sbatch options by their long names. `exclude` and `gres` are added to what a submission asks for itself;
    what a key of this file or of the job decides is refused."""
    srun: list[str] = []
    """Further srun options, such as `--mpi=none`."""
    network_interface: str | None = None
    """Interface for NCCL's and gloo's rendezvous, such as ib0."""
    login_host: str | None = None
    """Name of the login node as seen from outside, for the ssh lines of `semiocity board` and `browse`."""
    max_array: int | None = Field(None, ge=2)
    """The cluster's MaxArraySize; longer arrays are split. By default what `scontrol show config` says."""
    max_submitted: int | None = Field(None, ge=1)
    """Most jobs, each task of an array counted, that one user may have queued or running."""
    shared_group: str | None = Field(None, pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]*$")
    """Unix group (name or number) whose members work in this project folder together: what one makes, all may write."""
    retries: Retries = Retries()
    """How often a job may come back by itself, by cause (docs/retries.md)."""
    local_parallelism: int = Field(2, ge=1)
    """Array tasks at the same time with the local executor."""
    models: Path = Path("models")
    """Shared folder of weights, where `semiocity fetch` puts them."""
    checkpoint_quota_gb: float | None = Field(None, gt=0)
    """Most that the checkpoints of all runs may take together (10⁹ bytes); a training that would pass it is refused."""
    purged: list[Purged] = []
    """Folders whose old files the site deletes."""
    notify: Notify = Notify()
    container: Container = Container()

    @model_validator(mode="before")
    @classmethod
    def _old_keys(cls, data: Any) -> Any:
        if isinstance(data, dict) and "max_restarts" in data:
            raise ValueError(
                "max_restarts is now a budget for each cause: write it as preemption = "
                f"{data['max_restarts']} in the table [retries]"
            )
        return data

    @model_validator(mode="after")
    def _said_once(self) -> Cluster:
        """Further options must not say again, or otherwise, what a key of this file or of the job says."""
        for written, value in self.sbatch.items():
            if why := sbatch_options.refused(
                written.replace("_", "-"),
                value,
                exclusive=self.exclusive,
                mail=self.notify.mail is not None,
                gpus=self.gpu_option != "none",
                memory=self.memory_option != "none",
            ):
                raise ValueError(f"sbatch.{written}: {why}")
        if self.gpu_type and self.gpu_option == "none":
            raise ValueError('gpu_type is given, but gpu_option = "none" asks for no GPUs')
        return self

    @model_validator(mode="after")
    def _no_secret_is_written(self) -> Cluster:
        """Shell lines and options are copied into sbatch files as they stand."""
        if self.notify.webhook_env in self.container.env:
            raise ValueError(
                f"container.env.{self.notify.webhook_env}: the webhook's URL must not be in a file, {_EXPORT}"
            )
        options = [f"{name}={value}" for name, value in self.sbatch.items()]
        for key, lines in (("setup", self.setup), ("srun", self.srun), ("sbatch", options)):
            for line in lines:
                for name in secrecy.assigned(line):
                    raise ValueError(f"{key}: {name}: a secret must not be in a file, {_EXPORT}")
                if secrecy.holds_password(line):
                    raise ValueError(f"{key}: a URL with a password must not be in a file, {_EXPORT}")
        return self


_EXPORT = (
    "and this would be written into the sbatch file, for all to read; export it in the shell that submits, from where "
    "it reaches jobs by itself"
)
