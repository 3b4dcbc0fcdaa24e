"""Images depend on model, layouts, settings and seed: not on how the work was divided or interrupted."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_model import SIZE, export_model

from semiocity.data.columns import Dataset, View
from semiocity.errors import UserError
from semiocity.evaluate import generate, noise
from semiocity.evaluate.images import decode_image
from semiocity.evaluate.options import GenerateJob
from semiocity.evaluate.painter import Painter, choose_device
from semiocity.evaluate.samples import Samples, merge_samples


def _job(dataset: Path, **settings: Any) -> GenerateJob:
    # Two layouts a group, the last group with one only; steps enough for guidance to matter.
    defaults = {"images_per_layout": 3, "steps": 4, "guidance": 1.5, "batch": 7, "device": "cpu"}
    return GenerateJob.model_validate({"dataset": dataset, **defaults, **settings})


def _run(job: GenerateJob, run: Path, index: int = 0, of: int = 1, stop: Any = lambda: False) -> bool:
    return generate.run(job, run, job.dataset, index, of, stop)


def _bytes(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def whole(packed: Path, exported: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The samples of a run that one task made. Not to be changed."""
    run = tmp_path_factory.mktemp("whole") / "demo"
    shutil.copytree(exported, run / "export")
    assert _run(_job(packed), run)
    return run / "samples"


def test_every_layout_has_its_images_and_the_manifest_names_them(whole: Path, packed: Path) -> None:
    manifest = json.loads((whole / "manifest.json").read_text())
    view = Dataset.open(packed).view(["base.label"], "val")
    expected = [(view.key(i), number) for i in range(7) for number in range(3)]
    assert [(image["key"], image["number"]) for image in manifest["images"]] == expected
    for image in manifest["images"]:
        data = (whole / image["file"]).read_bytes()
        assert hashlib.sha256(data).hexdigest() == image["sha256"]
        assert decode_image(data).shape == (SIZE, SIZE, 3)
    assert len({image["sha256"] for image in manifest["images"]}) == 21
    assert len(list(whole.glob("*/sample.json"))) == 7


def test_one_task_and_three_tasks_make_the_same_bytes(whole: Path, packed: Path, run_folder: Path) -> None:
    job = _job(packed, tasks=3)
    for index in (2, 0, 1):
        assert not (run_folder / "samples" / "manifest.json").exists()
        assert _run(job, run_folder, index, 3)
    found, expected = _bytes(run_folder / "samples"), _bytes(whole)
    for files in (found, expected):  # these two say where model and dataset lie
        assert json.loads(files.pop("plan.json"))["settings_digest"]
        files.pop("manifest.json")
    assert found == expected
    assert Samples(run_folder / "samples").manifest["images"] == Samples(whole).manifest["images"]


def test_a_stopped_task_keeps_what_it_has_and_makes_the_rest(whole: Path, packed: Path, run_folder: Path) -> None:
    job = _job(packed)
    asked = iter([False, True])
    assert not _run(job, run_folder, stop=lambda: next(asked))
    done = {path.parent.name: path.stat().st_ino for path in (run_folder / "samples").glob("*/sample.json")}
    assert len(done) == 2
    with pytest.raises(UserError, match="5 of 7 layouts are missing"):
        merge_samples(run_folder / "samples")
    assert _run(job, run_folder)
    for key, inode in done.items():
        assert (run_folder / "samples" / key / "sample.json").stat().st_ino == inode
    assert Samples(run_folder / "samples").manifest["images"] == Samples(whole).manifest["images"]


def test_a_layout_lost_from_its_group_comes_back_with_the_same_bytes(
    whole: Path, packed: Path, run_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its whole group is painted again, so that it sees the batch that it saw before; the others stay as they are."""
    painted: list[list[int]] = []
    really = generate.paint

    def noting(painter: Painter, view: View, ignore_id: int | None, group: Sequence[int]) -> Any:
        painted.append(list(group))
        return really(painter, view, ignore_id, group)

    monkeypatch.setattr(generate, "paint", noting)
    shutil.copytree(whole, run_folder / "samples")
    samples = Samples(whole)
    kept, lost = list(samples.layouts)[:2]
    inode = (run_folder / "samples" / kept / "00.png").stat().st_ino
    shutil.rmtree(run_folder / "samples" / lost)
    (run_folder / "samples" / f".{lost}.1234.partial").mkdir()
    assert _run(_job(packed), run_folder)
    assert painted == [[0, 1]]
    assert _bytes(run_folder / "samples" / lost) == _bytes(whole / lost)
    assert (run_folder / "samples" / kept / "00.png").stat().st_ino == inode
    assert not list((run_folder / "samples").glob(".*")), "leftovers of a killed task"


def test_a_limit_takes_the_first_layouts_and_makes_the_same_images(whole: Path, packed: Path, run_folder: Path) -> None:
    assert _run(_job(packed, limit=4), run_folder)
    assert Samples(run_folder / "samples").manifest["images"] == Samples(whole).manifest["images"][:12]


def test_regenerating_a_manifest_gives_the_same_bytes(whole: Path, tmp_path: Path) -> None:
    assert generate.regenerate(whole / "manifest.json", tmp_path / "again") == []
    for image in Samples(whole).manifest["images"]:
        assert (tmp_path / "again" / image["file"]).read_bytes() == (whole / image["file"]).read_bytes()


def test_regenerating_names_what_differs(whole: Path, packed: Path, exported: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(whole, moved)
    manifest = json.loads((moved / "manifest.json").read_text())
    manifest["images"][4].update(sha256="0" * 64, pixels="0" * 64)
    manifest["images"][9].update(sha256="0" * 64)
    (moved / "manifest.json").write_text(json.dumps(manifest))
    differing = generate.regenerate(moved / "manifest.json", tmp_path / "again", model=exported, dataset=packed)
    assert differing == [
        f"{manifest['images'][4]['file']}: other pixels",
        f"{manifest['images'][9]['file']}: the same pixels in another encoding",
    ]


def test_regenerating_refuses_another_model_and_its_own_folder(whole: Path, packed: Path, tmp_path: Path) -> None:
    other = export_model(packed, tmp_path / "other", seed=1)
    with pytest.raises(UserError, match="made with another model"):
        generate.regenerate(whole / "manifest.json", tmp_path / "again", model=other)
    with pytest.raises(UserError, match="choose another folder"):
        generate.regenerate(whole / "manifest.json", whole)


def test_other_settings_replace_images_and_their_manifest(whole: Path, packed: Path, run_folder: Path) -> None:
    shutil.copytree(whole, run_folder / "samples")
    job = _job(packed, seed=1)
    asked = iter([False, True])
    assert not _run(job, run_folder, stop=lambda: next(asked))
    assert not (run_folder / "samples" / "manifest.json").exists(), "it would name images that are being replaced"
    assert _run(job, run_folder)
    old, new = Samples(whole), Samples(run_folder / "samples")
    assert not {i["sha256"] for i in old.manifest["images"]} & {i["sha256"] for i in new.manifest["images"]}


@pytest.mark.parametrize(
    ("settings", "model"),
    [
        ({"sampler": "ancestral", "guidance": 1.0}, {"learn_sigma": True}),
        ({"eta": 1.0}, {}),
        ({"dtype": "bfloat16"}, {}),
        ({}, {"edges": True}),
    ],
    ids=["ancestral", "eta", "bfloat16", "edges"],
)
def test_every_sampler_repeats_itself(
    settings: dict[str, Any], model: dict[str, Any], packed: Path, tmp_path: Path
) -> None:
    export = export_model(packed, tmp_path / "export", **model)
    job = _job(packed, limit=2, images_per_layout=2, batch=2, model=export, **settings)
    assert _run(job, tmp_path / "demo")
    assert generate.regenerate(tmp_path / "demo" / "samples" / "manifest.json", tmp_path / "again") == []


def test_the_layout_decides_the_image(packed: Path, tmp_path: Path) -> None:
    """The same noise on two layouts gives two images; on one layout, two seeds give two images."""
    export = export_model(packed, tmp_path / "export")
    painter = Painter(export, _job(packed), choose_device("cpu"))
    data = Dataset.open(packed)
    view = data.view(["base.label"], "val")
    layouts = torch.cat([painter.layout(view.read(i), data.ignore_id) for i in (0, 0, 1)])
    one, other, elsewhere = painter.paint(layouts, ["0" * 32, "1" * 32, "0" * 32])
    assert (one != other).any()
    assert (one != elsewhere).any()


def test_noise_is_standard_normal_and_keyed() -> None:
    seed = noise.image_seed(0, "0123456789-street", 2)
    found = noise.normal(seed, (3, 64, 64))
    assert found.dtype == np.float32
    assert abs(found.mean()) < 0.05
    assert abs(found.std() - 1) < 0.05
    assert np.array_equal(found, noise.normal(seed, (3, 64, 64)))
    others = [
        noise.normal(noise.image_seed(1, "0123456789-street", 2), (3, 64, 64)),
        noise.normal(noise.image_seed(0, "0123456789-streets", 2), (3, 64, 64)),
        noise.normal(noise.image_seed(0, "0123456789-street", 3), (3, 64, 64)),
        noise.normal(seed, (3, 64, 64), stream=5),
    ]
    assert all(abs(np.corrcoef(found.ravel(), other.ravel())[0, 1]) < 0.05 for other in others)


def test_refuses_what_does_not_fit(packed: Path, run_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="steps: 21, but the model was trained with 20"):
        _run(_job(packed, steps=21), run_folder)
    with pytest.raises(UserError, match="no exported model"):
        _run(_job(packed), tmp_path / "empty")
    with pytest.raises(UserError, match="no split test"):
        _run(_job(packed, split="test"), run_folder)
    plain = export_model(packed, tmp_path / "plain", label_dropout=0)
    with pytest.raises(UserError, match="never saw the null label"):
        _run(_job(packed, model=plain), run_folder)


def test_refuses_a_dataset_of_other_classes(city: Path, run_folder: Path) -> None:
    manifest = json.loads((city / "manifest.json").read_text())
    manifest["recipe"]["classes"][0]["name"] = "water"
    (city / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=r"its classes are water.*trained with sky"):
        _run(_job(city), run_folder)


def test_a_changed_image_is_not_scored(whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path / "samples")
    samples = Samples(tmp_path / "samples")
    image = samples.manifest["images"][0]
    (tmp_path / "samples" / image["file"]).write_bytes(b"something else")
    with pytest.raises(UserError, match="changed since it was generated"):
        samples.read(image)
    (tmp_path / "samples" / image["file"]).unlink()
    with pytest.raises(UserError, match="missing, though the manifest lists it"):
        samples.read(image)
