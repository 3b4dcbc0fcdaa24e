"""`make demo`: the whole way from a recipe to a report page, by the same job files that a cluster runs."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from semiocity.launch import jobs, submission
from semiocity.launch.jobs import Work

JOBS = Path("jobs")


def run(recipe: Path, root: Path | None, cluster_file: Path | None, sets: Sequence[str]) -> int:
    """Pack, caption, segment, train, generate, evaluate, report; what is there already is not made again.

    `sets` override keys of the training job. Writes runs/demo (city) or runs/demo-NAME.
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
    steps: list[tuple[str, Callable[[], Work]]] = [
        ("pack", lambda: jobs.pack(recipe, source, JOBS / "pack.toml")),
        ("caption", lambda: jobs.stage(JOBS / "caption.toml", common[:1])),
        ("segment", lambda: jobs.stage(JOBS / "segment.toml", common[:1])),
        ("train", lambda: jobs.train(training, [*common, *sets])),
        ("generate", lambda: jobs.generate(JOBS / "generate.toml", common)),
        ("evaluate", lambda: jobs.evaluate(JOBS / "evaluate.toml", common)),
    ]
    print(
        "Captions come from the label maps and masks from superpixels: both need no weights.\n"
        "jobs/caption-blip2.toml and jobs/segment-sam.toml are the same stages with BLIP-2 and SAM.\n"
    )
    began = time.monotonic()
    for number, (step, work) in enumerate(steps, 1):
        start = time.monotonic()
        print(f"[{number}/{len(steps) + 1}] {step}", flush=True)
        submission.submit(work(), cluster, wait=True)
        print(f"    {time.monotonic() - start:.0f} s\n", flush=True)
    return _finish(Path("runs") / run_name, dataset, len(steps) + 1, began)


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
