"""From a job file to `Work`: everything that is checked and decided on the login node before anything is queued."""

from __future__ import annotations

import hashlib
import re
import sys
import tomllib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from semiocity.config import Cluster, Job, ReduceJob, Resources, StageJob, Strict, apply_set, check, load_toml
from semiocity.data import corrections, manifest
from semiocity.data.views import check_fresh, check_reading, read_view
from semiocity.errors import UserError
from semiocity.files import read_json
from semiocity.launch import signatures

if TYPE_CHECKING:
    from semiocity.stages.base import Stage
    from semiocity.train.options import TrainJob

CLUSTER_FILE = Path("jobs/cluster.toml")
_OF_THE_CLUSTER = re.compile(r"\s*(resources\s*[.=]|image\s*=(?!\s*\{))")

Asked = TypeVar("Asked", bound=Strict)


@dataclass(frozen=True)
class Work:
    """One job, resolved: what its tasks will read from attempt.json, and what it asks of the cluster."""

    kind: str
    """Key of semiocity.launch.task.KINDS."""
    run: Path
    dataset: Path
    job: dict[str, Any]
    """The job file with every default filled in, as JSON."""
    resources: Resources
    image: Path | None = None
    column: str = ""
    revision: str = ""
    shards: int = 0
    """Shards of the column to make; 0 for work that makes none."""
    together: int = 1
    """Shards that one task must make together: the multiples of this number that a file of several shards begins at."""
    units: int = 1
    """Independent tasks of work that makes no shards (generation)."""
    columns: dict[str, str] = field(default_factory=dict)
    """Column → revision of what the tasks read; empty for a column that is made, whose receipts name its parents."""
    inputs: dict[str, str] = field(default_factory=dict)
    """What it reads → digest, of work whose results are in a run folder and have no receipts."""
    binds: tuple[Path, ...] = field(default=())
    """Folders outside run and dataset that tasks read."""
    files: dict[str, Path] = field(default_factory=dict)
    """Key of the job -> the user's own small file that it names; tasks read the copy that the attempt takes."""


def load_cluster(path: Path | None) -> Cluster:
    """`path`, or jobs/cluster.toml when there is one, or the local executor."""
    if path is None and not CLUSTER_FILE.exists():
        return Cluster()
    return load_toml(path or CLUSTER_FILE, Cluster)


def image_of(job_image: Path | None, cluster: Cluster) -> Path | None:
    """The image a job runs in, as an absolute path; UserError when it does not exist, or must be signed and is not."""
    image, settings = job_image or cluster.container.image, cluster.container
    if image is None:
        if settings.verify_key is not None:
            raise UserError("container.verify_key is set, so jobs must name a signed image: container.image is missing")
        return None
    if settings.runtime == "none":
        raise UserError(f'image {image}: jobs/cluster.toml says container.runtime = "none"; drop one of the two')
    if settings.runtime == "pyxis" and cluster.executor == "local":
        raise UserError(f'image {image}: container.runtime = "pyxis" needs SLURM, whose srun starts the container')
    if not image.is_file():
        raise UserError(f"image {image}: no such file; build it with `make image`, or drop the key to run without one")
    if settings.runtime == "apptainer" and settings.verify_key is not None:
        signatures.require(image, settings.verify_key, settings.apptainer)
    return image.resolve()


def run_folder(name: str | None, *default: str) -> Path:
    return (Path("runs") / (name or "-".join(default))).resolve()


class PackJob(Strict):
    """What packing asks of the cluster (`jobs/pack.toml`); what is packed is the recipe's affair."""

    image: Path | None = None
    resources: Resources = Resources()


def sets_of(sets: Sequence[str], job: bool) -> list[str]:
    """Where what is done and what it asks of the cluster are two files (packing, exports): the overrides of what is
    asked, `resources` and `image`, or the others."""
    return [item for item in sets if (_OF_THE_CLUSTER.match(item) is not None) == job]


def load_asked(job_file: Path, model: type[Asked], sets: Sequence[str]) -> Asked:
    """What such a job asks of the cluster: its file, if there is one, overridden by `sets`."""
    if job_file.exists():
        return load_toml(job_file, model, sets)
    data: dict[str, Any] = {}
    for item in sets:
        apply_set(data, item)
    return check(data, model, where="--set")


def pack(
    recipe_file: Path,
    sets: Sequence[str],
    job_file: Path,
    data: Path = Path("data"),
    *,
    anew: bool = False,
    dry_run: bool = False,
) -> Work:
    """Plan a dataset and describe the packing of its shards. Writes the frozen plan, unless `dry_run`; nothing else.

    Of `sets` those of `resources` and `image` are the job file's, the others the recipe's. `anew`: also when what is
    packed would be another revision then. Raises UserError otherwise.
    """
    from semiocity.data import plan_anew
    from semiocity.data.plan import make_plan
    from semiocity.data.recipe import load_recipe

    job = load_asked(job_file, PackJob, sets_of(sets, job=True))
    recipe = load_recipe(recipe_file, sets_of(sets, job=False))
    device = "cpu" if recipe.blur is None else getattr(recipe.blur.detector, "device", "cpu")
    if device == "cuda" and job.resources.gpus_per_node == 0:
        raise UserError(
            f'{recipe_file}: blur.detector.device is "cuda" but {job_file} asks for no GPU (resources.gpus_per_node); '
            "ask for one, or take cpu"
        )
    dataset = (data / recipe.name).resolve()
    plan = make_plan(recipe, dataset, anew, write=not dry_run)
    if note := plan_anew.note(dataset, plan.revision):
        print(f"note: {note}", file=sys.stderr)
    places = [getattr(recipe.source, "root", None), *getattr(recipe.source, "link_roots", ())]
    if recipe.blur is not None:
        places.append(recipe.blur.detector.path)
    return Work(
        kind="pack",
        run=run_folder(None, "pack", recipe.name),
        dataset=dataset,
        job=recipe.model_dump(mode="json"),
        resources=job.resources,
        image=job.image,
        column="base",
        revision=plan.revision,
        shards=plan.shards,
        binds=tuple(Path(place).resolve() for place in places if place),
    )


def stage(job_file: Path, sets: Sequence[str], expect: str | None = None) -> Work:
    """A stage over a dataset. `expect` is the stage that the command line's verb stands for."""
    from semiocity.stages.base import check_needs, parents_of, revision

    job, made = load_stage(job_file, sets, expect)
    dataset = job.dataset.resolve()
    facts = manifest.read_manifest(dataset)
    check_needs(made, facts)
    column = job.column or made.column
    parents = {name: facts["columns"][name]["revision"] for name in parents_of(made)}
    _note_corrections(dataset, column, revision(made, parents))
    return Work(
        kind="stage",
        run=run_folder(job.run, column, dataset.name),
        dataset=dataset,
        job={**_resolved(job), "args": made.args.model_dump(mode="json")},
        resources=job.resources,
        image=job.image,
        column=column,
        revision=revision(made, parents),
        shards=facts["columns"]["base"]["shards"],
        binds=tuple(Path(path).resolve() for path in made.paths()),
    )


def _note_corrections(dataset: Path, column: str, revision: str) -> None:
    """Say which corrections by hand the revision will not have; those of itself come along (`corrected.follow`)."""
    if manifest.corrected(dataset, column, revision) is None:
        for note in corrections.notes(dataset, column, revision):
            print(f"note: {note}", file=sys.stderr)


def is_stage(job_file: Path, sets: Sequence[str] = ()) -> bool:
    """Whether a job file is that of a stage, by its keys alone."""
    try:
        data = tomllib.loads(job_file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False  # whoever loads it says what is wrong
    for item in sets:
        apply_set(data, item)
    return "stage" in data


def load_stage(job_file: Path, sets: Sequence[str], expect: str | None = None) -> tuple[StageJob, Stage]:
    """A stage's job file and the stage, with all checks that need no dataset."""
    from semiocity.stages.base import make_stage

    job = load_toml(job_file, StageJob, sets)
    if expect is not None and job.stage != expect:
        raise UserError(
            f"{job_file}: stage: this is a {job.stage!r} job; run it with `semiocity {job.stage} {job_file}`"
        )
    made = make_stage(job.stage, job.args, where=f"{job_file}: args")
    if made.args.device == "cuda" and job.resources.gpus_per_node == 0:
        raise UserError(
            f'{job_file}: args.device is "cuda" but resources.gpus_per_node is 0; ask for a GPU, or take cpu'
        )
    made.check()
    return job, made


def view(view_file: Path, sets: Sequence[str]) -> Work:
    """A saved view: which rows of which revisions a training sees."""
    from semiocity.data.views import load_job, plan_view

    job = load_job(view_file, sets)
    plan = plan_view(job, job.name or view_file.stem, view_file)
    pinned = {"name": plan.name, "columns": plan.revisions, "shards": plan.shards, "dataset": str(plan.dataset)}
    sizes = {"buckets": {"sizes": job.buckets.resolved()}} if job.buckets else {}
    return Work(
        kind="view",
        run=run_folder(job.run, "view", plan.name, plan.dataset.name),
        dataset=plan.dataset,
        job={**_resolved(job), **pinned, **sizes},
        resources=job.resources,
        image=job.image,
        column=plan.name,
        revision=plan.revision,
        shards=plan.shards,
        together=manifest.FOLDER_SHARDS,
        columns=plan.revisions,
    )


def reduce(job_file: Path, sets: Sequence[str], expect: str | None = None) -> Work:
    """A reduce stage over a dataset: one task. `expect` is the stage that the command line's verb stands for."""
    from semiocity.stages.reduce import make_reduce, revision

    job = load_toml(job_file, ReduceJob, sets)
    if expect is not None and job.reduce != expect:
        raise UserError(
            f"{job_file}: reduce: this is a {job.reduce!r} job; run it with `semiocity {job.reduce} {job_file}`"
        )
    made = make_reduce(job.reduce, job.args, where=f"{job_file}: args")
    dataset = job.dataset.resolve()
    facts = manifest.read_manifest(dataset)
    manifest.require(facts, made.needs(), dataset)
    column = job.column or made.column
    return Work(
        kind="reduce",
        run=run_folder(job.run, column, dataset.name),
        dataset=dataset,
        job={**_resolved(job), "args": made.args.model_dump(mode="json")},
        resources=job.resources,
        image=job.image,
        column=column,
        revision=revision(made, facts),
        shards=facts["columns"]["base"]["shards"],
    )


def train(job_file: Path, sets: Sequence[str]) -> Work:
    """A training run."""
    from semiocity.train.options import TrainJob, needs

    job = load_toml(job_file, TrainJob, sets)
    dataset = job.dataset.resolve()
    held_out = job.validate_split if job.validate_every else None
    splits = [split for split in (job.data.split, job.sample_split, held_out) if split]
    view, columns = _rows(dataset, job.data.view, needs(job), splits, f"{job_file}: data.view")
    if held_out and view is None and held_out not in (there := manifest.read_manifest(dataset)["splits"]):
        raise UserError(
            f"{job_file}: validate_split: {dataset} has no split {held_out}; it has {', '.join(there) or 'none'}. Name "
            "one that is held out, or set validate_every = 0"
        )
    options = job.options
    try:
        options.check_reading(
            job, {name: manifest.read_column_manifest(dataset, name, made) for name, made in columns.items()}
        )
    except UserError as error:
        raise UserError(f"{job_file}: {error}") from None
    run = run_folder(job.run, job.task, dataset.name)
    _refuse_other_ranks(job, run, job_file)
    return Work(
        kind="train",
        run=run,
        dataset=dataset,
        job=_with_view(job, view),
        resources=job.resources,
        image=job.image,
        columns=columns,
        binds=tuple(Path(path).resolve() for path in options.paths()),
    )


def _refuse_other_ranks(job: TrainJob, run: Path, job_file: Path) -> None:
    """UserError when the newest checkpoint's optimizer state cannot be divided among the ranks that are asked for."""
    from semiocity.train.optimizer_options import refuse_other_ranks

    try:
        latest = (run / "checkpoints" / "latest").read_text(encoding="utf-8").strip()
        saved = read_json(run / "checkpoints" / latest / "state.json")
    except FileNotFoundError:
        return
    kind = saved["settings"].get("optimizer.kind", "adamw")
    if kind != job.optimizer.kind:
        return  # refused with its own words
    stage = saved.get("stage", job.zero.stage)
    now = (job.resources.nodes * job.resources.ranks_per_node, stage if "zero.stage" in job.choose else job.zero.stage)
    if why := refuse_other_ranks(kind, (saved["ranks"], stage), now):
        raise UserError(f"{job_file}: {why}")


def generate(job_file: Path, sets: Sequence[str]) -> Work:
    """Images for held-out layouts from a trained model; tasks share the layouts."""
    from semiocity.evaluate.options import GenerateJob

    job = load_toml(job_file, GenerateJob, sets)
    dataset = job.dataset.resolve()
    view, columns = _rows(dataset, job.view, ("base.label",), [job.split], f"{job_file}: view")
    run = _existing_run(job, job_file)
    done = run / "done.json"
    if job.model is None and not (run / "export" / "config.json").exists():
        raise UserError(
            f"{run}/export: no trained model yet; run `semiocity train` first (`semiocity status` shows it)"
        )
    config = (job.model or run / "export") / "config.json"
    if config.exists() and read_json(config).get("family") == "flux":
        raise UserError(f"{job_file}: prompts: missing; {config.parent} is a Flux, so name a file of prompts to paint")
    return Work(
        kind="generate",
        run=run,
        dataset=dataset,
        job={**_resolved(job), "view": view},
        resources=job.resources,
        image=job.image,
        units=job.tasks,
        columns=columns,
        inputs=seen(dataset, columns) | contents(model=config, training=done),
    )


def evaluate(job_file: Path, sets: Sequence[str]) -> Work:
    """Scores of a run's generated images."""
    from semiocity.evaluate.options import EvaluateJob

    job = load_toml(job_file, EvaluateJob, sets)
    dataset = job.dataset.resolve()
    facts = manifest.read_manifest(dataset)
    manifest.require(facts, ("base.image", "base.label"), dataset)
    run = _existing_run(job, job_file)
    samples = job.samples or run / "samples"
    if not (samples / "manifest.json").exists():
        raise UserError(f"{samples}: no generated images yet; run `semiocity generate {job_file}` first")
    return Work(
        kind="evaluate",
        run=run,
        dataset=dataset,
        job=_resolved(job),
        resources=job.resources,
        image=job.image,
        columns=_read(facts, "base"),
        inputs=seen(dataset, ["base"]) | contents(samples=samples / "manifest.json"),
    )


def seen(dataset: Path, columns: Iterable[str]) -> dict[str, str]:
    """Column → digest of what the dataset's manifest has of it now."""
    facts = manifest.read_manifest(dataset)["columns"]
    return {f"column {name}": facts[name]["digest"] for name in sorted(columns) if name in facts}


def contents(**files: Path) -> dict[str, str]:
    """Name → digest of the file's bytes, of those files that are there."""
    return {name: hashlib.sha256(path.read_bytes()).hexdigest()[:16] for name, path in files.items() if path.exists()}


def _read(facts: dict[str, Any], *references: str) -> dict[str, str]:
    """Column → present revision of the columns of some fields."""
    names = {reference.partition(".")[0] for reference in references}
    return {name: facts["columns"][name]["revision"] for name in sorted(names)}


def _rows(
    dataset: Path, view: str | None, fields: Sequence[str], splits: Sequence[str], where: str
) -> tuple[str | None, dict[str, str]]:
    """Check the rows that a job names, a split of the dataset or of a saved view.

    Returns the view's name with its revision, and the revisions of the columns that are read.
    """
    facts = manifest.read_manifest(dataset)
    if view is None:
        manifest.require(facts, fields, dataset)
        return None, _read(facts, "base", *fields)
    found = read_view(dataset, view)
    check_reading(found, fields, splits, where)
    check_fresh(dataset, found)
    return f"{found['name']}@{found['revision']}", found["columns"]


def _with_view(job: TrainJob, view: str | None) -> dict[str, Any]:
    resolved = _resolved(job)
    return {**resolved, "data": {**resolved["data"], "view": view}}


def _existing_run(job: Job, job_file: Path) -> Path:
    if job.run is None:
        raise UserError(f'{job_file}: run: missing; name the training run whose model is meant, such as run = "demo"')
    return run_folder(job.run)


def _resolved(job: Job) -> dict[str, Any]:
    return job.model_dump(mode="json")
