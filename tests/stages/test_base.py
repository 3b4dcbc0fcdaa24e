"""Stages on a login node: what can be imported there, what is refused there, and what names a column."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from stage_data import stage_revision, street_rows, write_base
from tiny_models import save_sam

from semiocity.config import StageJob, load_toml
from semiocity.data.manifest import read_manifest
from semiocity.errors import UserError
from semiocity.stages.base import Stage, check_needs, make_stage, revision

JOBS = Path(__file__).parents[2] / "jobs"


def test_a_login_node_can_check_every_stage_without_heavy_packages() -> None:
    code = """
import sys
from semiocity.stages import base, caption, runner, segment, weights
for args in ({"captioner": "labels"}, {"captioner": "blip2", "model": "/m"}):
    stage = base.make_stage("caption", args)
    stage.needs(), stage.fields(), stage.scalars(), stage.settings(), stage.execution(), stage.paths()
for args in ({"segmenter": "superpixels"}, {"segmenter": "sam", "model": "/m"}):
    stage = base.make_stage("segment", args)
    stage.needs(), stage.fields(), stage.scalars(), stage.settings(), stage.execution(), stage.paths()
heavy = {"torch", "numpy", "transformers", "PIL", "pyarrow", "skimage", "pycocotools", "scipy"} & set(sys.modules)
assert not heavy, heavy
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_job_files_that_come_with_the_project_are_valid() -> None:
    found = {}
    for path in sorted(JOBS.glob("*.toml")):
        if path.name.startswith(("caption", "segment")):
            job = load_toml(path, StageJob)
            stage = make_stage(job.stage, job.args, where=f"{path}: args")
            found[path.name] = type(stage).__name__
            on_gpu = stage.execution()["device"] == "cuda"
            assert on_gpu == (job.resources.gpus_per_node == 1), path.name
            assert on_gpu == (stage.execution()["dtype"] == "bfloat16"), path.name
    assert found == {
        "caption.toml": "LabelCaption",
        "caption-blip2.toml": "Blip2Caption",
        "segment.toml": "SuperpixelSegment",
        "segment-sam.toml": "SamSegment",
    }


@pytest.mark.parametrize(
    ("stage", "args", "said"),
    [
        ("captoin", {}, "stage 'captoin' does not exist; there are caption, segment"),
        ("caption", {}, "jobs/x.toml: args: captioner: missing; one of labels, blip2"),
        ("caption", {"captioner": "clip"}, "jobs/x.toml: args: captioner: 'clip' does not exist; one of labels, blip2"),
        ("segment", {"segmenter": "superpixels", "mask_max": 3}, "mask_max: unknown key; did you mean masks_max?"),
        ("segment", {"segmenter": "sam"}, "model: missing"),
        ("segment", {"segmenter": "sam", "model": "m", "iou": 2}, "iou: Input should be less than or equal to 1"),
        ("caption", {"captioner": "labels", "device": "cuda"}, "device: Input should be 'cpu'"),
        ("caption", {"captioner": "labels", "batch": 0}, "batch: Input should be greater than or equal to 1"),
    ],
)
def test_wrong_arguments_are_refused_with_their_place(stage: str, args: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError) as refused:
        make_stage(stage, args, where="jobs/x.toml: args")
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_missing_column_or_field_is_refused_with_what_makes_it(tmp_path: Path) -> None:
    rows = {key: {"image": row["image"]} for key, row in street_rows(2).items()}
    facts = read_manifest(write_base(tmp_path / "plain", rows, 2, ()))
    check_needs(make_stage("segment", {"segmenter": "superpixels"}), facts)
    with pytest.raises(UserError, match=r"dataset plain: stage caption needs base\.label: there is no such field"):
        check_needs(make_stage("caption", {"captioner": "labels"}), facts)

    class Overlay(Stage):
        name, version, column = "overlay", 1, "overlay"

        def needs(self) -> tuple[str, ...]:
            return ("base.image", "mask.rle")

        def fields(self) -> dict[str, str]:
            return {}

        def process(self, rows: list[Any]) -> list[Any]:
            return []

    with pytest.raises(UserError, match=r"column mask is missing; run `semiocity segment jobs/segment\.toml` first"):
        check_needs(Overlay(None), facts)
    stale = {**facts, "stale": {"mask": "abc"}}
    with pytest.raises(UserError, match="column mask is out of date"):
        check_needs(Overlay(None), stale)


def test_the_revision_names_what_decides_the_bytes_and_nothing_else(
    street: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def named(dataset: Path = street, **args: Any) -> str:
        return stage_revision(make_stage("segment", {"segmenter": "superpixels", **args}), dataset)

    assert named() == named(rehearse_slow_batch_s=1.5)
    elsewhere = tmp_path / "moved"
    elsewhere.symlink_to(street)
    assert named() == named(elsewhere)
    assert len({named(), named(masks_max=5), named(batch=3), named(join=0.5)}) == 4

    stage = make_stage("segment", {"segmenter": "superpixels"})
    assert revision(stage, {"base": "a"}) != revision(stage, {"base": "b"})
    before = revision(stage, {"base": "a"})
    monkeypatch.setattr(type(stage), "version", type(stage).version + 1)
    assert revision(stage, {"base": "a"}) != before


def test_the_revision_follows_the_weights_not_their_place(tmp_path: Path) -> None:
    def named(folder: Path, **args: Any) -> str:
        return revision(make_stage("segment", {"segmenter": "sam", "model": str(folder), **args}), {"base": "a"})

    first, same, other = (save_sam(tmp_path / name, seed) for name, seed in (("a", 0), ("b", 0), ("c", 1)))
    assert named(first) == named(same)
    assert named(first) != named(other)
    assert named(first) != named(first, dtype="bfloat16")
    assert named(first) != named(first, points_per_side=4)
