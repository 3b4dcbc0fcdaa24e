"""`make demo`: the whole way from a recipe to a report page, by the same job files that a cluster runs."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from semiocity.config import Cluster
from semiocity.errors import UserError
from semiocity.launch import jobs, submission
from semiocity.launch.pipeline_steps import Step, build, describe

JOBS = Path("jobs")


def run(recipe: Path, root: Path | None, cluster_file: Path | None, sets: Sequence[str], dry_run: bool = False) -> int:
    """Pack, caption, segment, train, generate, evaluate, report; what is there already is not made again.

    `sets` override keys of the training job. With `dry_run` the sbatch files are printed of every step whose inputs
    are there, and nothing is done. Writes runs/demo (city) or runs/demo-NAME.
    """
    import tomllib

    cluster = jobs.load_cluster(cluster_file)
    name = tomllib.loads(recipe.read_text(encoding="utf-8")).get("name", recipe.stem)
    dataset = Path("data") / name
    run_name = "demo" if name == "city" else f"demo-{name}"
    common = [f"dataset={json.dumps(str(dataset))}", f"run={json.dumps(run_name)}"]
    source = [f"source.root={json.dumps(str(root))}"] if root else []
    training = JOBS / f"demo-train-{name}.toml"
    training = training if training.exists() else JOBS / "demo-train.toml"
    steps = [
        Step("pack", "pack", recipe, tuple(source), JOBS / "pack.toml"),
        Step("caption", "stage", JOBS / "caption.toml", tuple(common[:1])),
        Step("segment", "stage", JOBS / "segment.toml", tuple(common[:1])),
        Step("train", "train", training, (*common, *sets)),
        Step("generate", "generate", JOBS / "generate.toml", tuple(common)),
        Step("evaluate", "evaluate", JOBS / "evaluate.toml", tuple(common)),
    ]
    for step in steps:
        describe(step)  # refuses what is wrong in the last of them before the first begins
    if dry_run:
        return _show(steps, cluster)
    print(
        "Captions come from the label maps and masks from superpixels: both need no weights.\n"
        "jobs/caption-blip2.toml and jobs/segment-sam.toml are the same stages with BLIP-2 and SAM.\n"
    )
    began = time.monotonic()
    for number, step in enumerate(steps, 1):
        start = time.monotonic()
        print(f"[{number}/{len(steps) + 1}] {step.name}", flush=True)
        # Pictures and scores are the demo's own: other settings in their job files make them anew.
        submission.submit(build(step), cluster, wait=True, replace=step.kind in ("generate", "evaluate"))
        print(f"    {time.monotonic() - start:.0f} s\n", flush=True)
    return _finish(Path("runs") / run_name, dataset, len(steps) + 1, began)


def _show(steps: Sequence[Step], cluster: Cluster) -> int:
    for step in steps:
        try:
            text = submission.dry_run_of(build(step, dry_run=True), cluster)
        except UserError as error:
            text = f"# to be planned when the steps before it are done: {error}\n"
        print(f"# ---- {step.name}\n{text}")
    return 0


def _finish(run: Path, dataset: Path, number: int, began: float) -> int:
    from semiocity.evaluate.report import write
    from semiocity.files import read_json

    print(f"[{number}/{number}] report", flush=True)
    page = write(run, dataset)
    print(summary(read_json(run / "scores.json")))
    print(f"\nscores  {run / 'scores.json'}\npage    {page}\n{(time.monotonic() - began) / 60:.1f} minutes in all")
    return 0


def summary(scores: dict[str, Any]) -> str:
    """The scores in two lines."""
    miou, frechet = scores["miou"], scores["frechet"]
    return (
        f"    mIoU {miou['value']:.3f}, {miou['value'] / miou['ceiling']:.0%} of the ceiling on real images "
        f"({miou['ceiling']:.3f})\n"
        f"    Fréchet distance {frechet['value']:.3g}, {frechet['value'] / frechet['noise']:.1%} of that of noise "
        f"({frechet['noise']:.3g}), features: {frechet['extractor']}"
    )
