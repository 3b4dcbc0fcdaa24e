"""Losses that are not finite, damaged and half-written checkpoints, slow and killed ranks."""

import json
import random
import shutil
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny import SDM, STEPS, checkpoint, differing, gan, history, sdm
from train_ranks import Ranks, train

from semiocity.errors import UserError
from semiocity.train.metrics import read_metrics

FP32_ALONE = {"stage": 0, "precision": "fp32"}


@pytest.mark.parametrize(
    ("phase", "zero"),
    [("judge", FP32_ALONE), ("maker", FP32_ALONE), ("maker", {"stage": 2, "precision": "fp32"})],
    ids=["judge-0", "maker-0", "maker-2"],
)
def test_a_step_that_is_not_finite_changes_nothing(
    ranks: Ranks, city: Path, tmp_path: Path, phase: str, zero: dict[str, Any]
) -> None:
    model = {"poison_phase": phase, "poison_steps": [2], "generator_every": 1}
    settings = gan(zero, model, checkpoint_every=1, keep_last=STEPS + 1)
    # bad_steps is large, so the run goes on; a checkpoint is left out while the last step was bad.
    assert ranks.call(train, settings, tmp_path, city, 0, 0) == [True, True]

    lines = list(read_metrics(tmp_path / "metrics.jsonl"))
    assert [line[f"{phase}/gradient_norm"] == torch.inf for line in lines] == [i == 2 for i in range(STEPS)]
    assert not (tmp_path / "checkpoints" / "step-00000003").exists()
    before, after = checkpoint(tmp_path, 2), checkpoint(tmp_path, 4)
    for file, tensors in after.items():
        if file.startswith(phase) and "buffers" not in file:
            # Four steps were done and three counted.
            assert {float(t) for name, t in tensors.items() if name.endswith("/step")} == {3.0}
            assert differing(before[file], tensors)
    assert all(t.isfinite().all() for tensors in checkpoint(tmp_path).values() for t in tensors.values())


def test_a_bad_loss_in_bf16_is_refused_too(ranks: Ranks, city: Path, tmp_path: Path) -> None:
    model = {"poison_phase": "maker", "poison_steps": [0, 2], "generator_every": 1}
    settings = gan({"stage": 2, "precision": "bf16"}, model)
    assert ranks.call(train, settings, tmp_path, city, 0, 0) == [True, True]
    lines = list(read_metrics(tmp_path / "metrics.jsonl"))
    assert [line["maker/gradient_norm"] == torch.inf for line in lines] == [i in (0, 2) for i in range(STEPS)]
    assert all(t.isfinite().all() for tensors in checkpoint(tmp_path).values() for t in tensors.values())


def test_rolls_back_to_the_last_good_checkpoint(ranks: Ranks, city: Path, tmp_path: Path) -> None:
    common: dict[str, Any] = {"checkpoint_every": 2, "bad_steps": 2}
    whole, troubled = tmp_path / "whole", tmp_path / "troubled"
    assert ranks.call(train, gan(FP32_ALONE, **common), whole, city, 0, 0) == [True, True]
    model = {"poison_steps": [3, 4], "poison_until_file": str(tmp_path / "healed")}
    assert ranks.call(train, gan(FP32_ALONE, model, **common), troubled, city, 0, 0) == [True, True]
    # The trouble was passing, so after going back everything is as if it had never been.
    assert (tmp_path / "healed").exists()
    assert differing(checkpoint(whole), checkpoint(troubled)) == []
    assert (whole / "metrics.jsonl").read_text() == (troubled / "metrics.jsonl").read_text()


def test_lasting_trouble_fails_naming_the_samples(ranks: Ranks, city: Path, tmp_path: Path) -> None:
    settings = gan(FP32_ALONE, {"poison_steps": [3, 4, 5]}, checkpoint_every=2, bad_steps=2)
    with pytest.raises(UserError, match=r"steps 4 to 5 again after going back.*[0-9a-f]{10}-"):
        ranks.call(train, settings, tmp_path, city, 0, 0)
    assert checkpoint(tmp_path, 2)


@pytest.mark.parametrize("damage", ["cut", "flip", "gone", "incomplete"])
def test_damaged_newest_checkpoint_falls_back(
    ranks: Ranks, city: Path, tmp_path: Path, damage: str, chance: random.Random
) -> None:
    settings = gan(FP32_ALONE, checkpoint_every=2)
    whole, hurt = tmp_path / "whole", tmp_path / "hurt"
    assert ranks.call(train, settings, whole, city, 0, 0) == [True, True]
    assert ranks.call(train, settings, hurt, city, 1, 5) == [False, False]
    newest = hurt / "checkpoints" / "step-00000005"
    file = chance.choice(sorted(newest.glob("*.safetensors")))
    print(f"{damage}: {file.name}")
    match damage:
        case "cut":
            file.write_bytes(file.read_bytes()[:-1])
        case "flip":
            content = bytearray(file.read_bytes())
            content[chance.randrange(len(content))] ^= 1
            file.write_bytes(content)
        case "gone":
            file.unlink()
        case "incomplete":
            (newest / "complete.json").unlink()
    assert ranks.call(train, settings, hurt, city, 0, 0) == [True, True]
    assert [attempt["first_step"] for attempt in history(hurt)] == [0, 4]
    assert differing(checkpoint(whole), checkpoint(hurt)) == []
    assert (whole / "metrics.jsonl").read_text() == (hurt / "metrics.jsonl").read_text()


def test_only_damaged_checkpoints_are_an_error(ranks: Ranks, city: Path, tmp_path: Path) -> None:
    settings = gan(FP32_ALONE, checkpoint_every=2)
    assert ranks.call(train, settings, tmp_path, city, 1, 3) == [False, False]
    for file in (tmp_path / "checkpoints").glob("*/*.safetensors"):
        file.write_bytes(b"")
    with pytest.raises(UserError, match="all 2 checkpoints are damaged"):
        ranks.call(train, settings, tmp_path, city, 0, 0)


def test_a_slow_rank_never_leaves_half_a_checkpoint(ranks: Ranks, city: Path, tmp_path: Path) -> None:
    settings = sdm({"stage": 2, "precision": "bf16"}, steps=2, rehearse={"slow_save_s": [0, 1.0]})
    folder, seen, over = tmp_path / "checkpoints", [], threading.Event()

    def watch() -> None:
        while not over.is_set():
            names = {path.name for path in folder.glob("*")}
            final = folder / "step-00000002"
            seen.append(".step-00000002.tmp" in names and final.name not in names)
            if final.name in names:
                listed = json.loads((final / "complete.json").read_text())["files"]
                assert "sdm-00001.safetensors" in listed
                assert all((final / name).stat().st_size == seal["bytes"] for name, seal in listed.items())
            time.sleep(0.01)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        assert ranks.call(train, settings, tmp_path, city, 0, 0) == [True, True]
    finally:
        over.set()
        watcher.join()
    assert sum(seen) > 10, "the rename must wait for the slow rank"
    assert (folder / "latest").read_text() == "step-00000002\n"


def test_old_checkpoints_and_leftovers_are_removed(ranks: Ranks, city: Path, tmp_path: Path) -> None:
    left = tmp_path / "checkpoints" / ".step-00000099.tmp"
    left.mkdir(parents=True)
    (left / "judge-00000.safetensors").write_bytes(b"half")
    (tmp_path / "checkpoints" / ".latest.k1lled.tmp").write_bytes(b"step-000")
    settings = gan(FP32_ALONE, checkpoint_every=1, keep_last=2)
    assert ranks.call(train, settings, tmp_path, city, 0, 0) == [True, True]
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == ["latest", "step-00000005", "step-00000006"]


def test_goes_on_with_another_number_of_ranks(
    ranks: Ranks, lone_rank: Ranks, city: Path, tmp_path: Path, chance: random.Random
) -> None:
    """2 ranks, 1, 2, 1, each time with another ZeRO stage: only rounding may differ from an undisturbed run."""
    whole, moved = tmp_path / "whole", tmp_path / "moved"
    # Dropout is keyed by rank, so it would not be the same. A large eps keeps Adam from blowing rounding up.
    plain = {"optimizer": {"lr": 1e-2, "clip": None, "eps": 1e-2}, "model": {**SDM, "dropout": 0.0}}
    assert ranks.call(train, sdm({"stage": 2, "precision": "fp32"}, **plain), whole, city, 0, 0) == [True, True]
    stages = chance.sample([0, 1, 2, 3], 4)
    print(f"stages {stages}")
    for i, (stage, group) in enumerate(zip(stages, (ranks, lone_rank, ranks, lone_rank))):
        stop = 0 if i == 3 else [2, 1, 1][i]
        settings = sdm({"stage": stage, "precision": "fp32"}, **plain)
        assert set(group.call(train, settings, moved, city, 0, stop)) == {stop == 0}
    assert [(a["first_step"], a["ranks"]) for a in history(moved)] == [(0, 2), (2, 1), (3, 2), (4, 1)]
    expected = [line["loss"] for line in read_metrics(whole / "metrics.jsonl")]
    assert [line["loss"] for line in read_metrics(moved / "metrics.jsonl")] == pytest.approx(expected, rel=1e-4)
    one, other = (load_file(run / "export" / "model.safetensors") for run in (whole, moved))
    assert one.keys() == other.keys()
    for name in one:
        torch.testing.assert_close(other[name], one[name], rtol=1e-4, atol=1e-5)


def test_export_is_whole_or_absent(ranks: Ranks, city: Path, tmp_path: Path) -> None:
    settings = gan(FP32_ALONE)
    assert ranks.call(train, settings, tmp_path, city, 0, 0) == [True, True]
    (tmp_path / "done.json").unlink()  # as if killed between the export and the mark
    shutil.rmtree(tmp_path / "export")
    assert ranks.call(train, settings, tmp_path, city, 0, 0) == [True, True]
    assert (tmp_path / "export" / "model.safetensors").exists()
    assert history(tmp_path)[-1]["first_step"] == STEPS
