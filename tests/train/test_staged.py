"""Checkpoints that are written beside the training: the same files, whole or absent, and nothing waits needlessly."""

from __future__ import annotations

import random
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from staged_ranks import train_on_a_full_disk, train_on_a_small_machine
from tiny import STEPS, checkpoint, differing, gan, history, sdm
from train_ranks import Ranks, train

from semiocity.train.shards import Part
from semiocity.train.staged import Writer

FP32_ALONE = {"stage": 0, "precision": "fp32"}


def names(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "checkpoints").iterdir())


def settings_of(kind: str, **more: Any) -> dict[str, Any]:
    return gan({"stage": 1, "precision": "fp32"}, **more) if kind == "gan" else sdm({"stage": 2}, **more)


@pytest.mark.parametrize("kind", ["gan", "sdm"])
def test_saves_in_a_row_are_what_they_are_when_the_training_waits(
    ranks: Ranks, city: Path, tmp_path: Path, kind: str
) -> None:
    """A save at each step, of which one rank's takes longer than the step: all are published, bit by bit the same."""
    common = {"checkpoint_every": 1, "keep_last": STEPS, "steps": 4, "sample_every": 2}
    slow = settings_of(kind, **common, rehearse={"slow_save_s": [0, 0.2]})
    assert ranks.call(train, slow, tmp_path / "beside", city, 0, 0) == [True, True]
    waiting = settings_of(kind, **common, checkpoint_async=False)
    assert ranks.call(train, waiting, tmp_path / "waiting", city, 0, 0) == [True, True]
    assert names(tmp_path / "beside") == ["latest", *(f"step-{step:08d}" for step in (1, 2, 3, 4))]
    for step in (1, 2, 3, 4):
        assert checkpoint(tmp_path / "waiting", step)
        assert differing(checkpoint(tmp_path / "waiting", step), checkpoint(tmp_path / "beside", step)) == []
    # Not one file twice: moments and averages go on moving.
    assert differing(checkpoint(tmp_path / "beside", 3), checkpoint(tmp_path / "beside", 4)) != []


def test_a_stop_waits_for_what_is_being_written_and_saves_again(
    ranks: Ranks, city: Path, tmp_path: Path, chance: random.Random
) -> None:
    slow = {"slow_save_s": chance.choice([[0.5], [0, 0.5]])}
    print(slow)
    settings = settings_of("gan", checkpoint_every=2)
    assert ranks.call(train, {**settings, "rehearse": slow}, tmp_path / "halves", city, 1, 3) == [False, False]
    assert names(tmp_path / "halves") == ["latest", "step-00000002", "step-00000003"]
    assert (tmp_path / "halves" / "checkpoints" / "latest").read_text() == "step-00000003\n"
    assert ranks.call(train, settings, tmp_path / "halves", city, 0, 0) == [True, True]
    assert [attempt["first_step"] for attempt in history(tmp_path / "halves")] == [0, 3]
    assert ranks.call(train, settings, tmp_path / "whole", city, 0, 0) == [True, True]
    assert differing(checkpoint(tmp_path / "whole"), checkpoint(tmp_path / "halves")) == []
    one, other = ((tmp_path / run / "metrics.jsonl").read_text() for run in ("whole", "halves"))
    assert one == other


def test_a_rollback_waits_for_what_is_being_written(ranks: Ranks, city: Path, tmp_path: Path) -> None:
    common: dict[str, Any] = {"checkpoint_every": 2, "bad_steps": 2}
    model = {"poison_steps": [2, 3], "poison_until_file": str(tmp_path / "healed")}
    troubled = gan(FP32_ALONE, model, **common, rehearse={"slow_save_s": [0, 0.5]})
    assert ranks.call(train, troubled, tmp_path / "troubled", city, 0, 0) == [True, True]
    assert (tmp_path / "healed").exists()
    assert ranks.call(train, gan(FP32_ALONE, **common), tmp_path / "whole", city, 0, 0) == [True, True]
    assert differing(checkpoint(tmp_path / "whole"), checkpoint(tmp_path / "troubled")) == []


def test_where_memory_is_short_the_training_waits(ranks: Ranks, city: Path, tmp_path: Path) -> None:
    settings = gan(FP32_ALONE, checkpoint_every=2)
    made = ranks.call(train_on_a_small_machine, settings, tmp_path / "small", city, 1000)
    assert made == [[False] * 3] * 2
    made = ranks.call(train_on_a_small_machine, settings, tmp_path / "large", city, 10**9)
    assert made == [[True, True, False]] * 2, "the last one is waited for"
    assert differing(checkpoint(tmp_path / "small", 4), checkpoint(tmp_path / "large", 4)) == []


def test_a_full_disk_ends_all_ranks_alike_and_keeps_what_is_there(ranks: Ranks, city: Path, tmp_path: Path) -> None:
    settings = gan(FP32_ALONE, checkpoint_every=2)
    said = ranks.call(train_on_a_full_disk, settings, tmp_path, city, 4)
    assert said[0] == said[1]
    assert "the checkpoint of step 4 could not be written (rank 1: [Errno 28] No space left on device)" in said[0]
    assert "step-00000002" in names(tmp_path)
    assert "step-00000004" not in names(tmp_path)
    assert ranks.call(train, settings, tmp_path, city, 0, 0) == [True, True]
    assert history(tmp_path)[-1]["first_step"] == 2


def test_every_nth_checkpoint_stays_for_good(ranks: Ranks, city: Path, tmp_path: Path) -> None:
    settings = gan(FP32_ALONE, checkpoint_every=1, keep_last=2, keep_every=2)
    assert ranks.call(train, settings, tmp_path, city, 0, 0) == [True, True]
    assert names(tmp_path) == ["latest", *(f"step-{step:08d}" for step in (2, 4, 5, 6))]


def waited_for(go: threading.Event) -> None:
    go.wait()


def test_what_is_trained_on_may_change_once_it_is_copied(tmp_path: Path) -> None:
    """The files hold the values of the moment of saving, though everything has changed before the first byte."""
    weights, statistics = torch.arange(10_000.0), torch.arange(5)
    expected = weights.clone()
    go = threading.Event()
    writer = Writer(torch.device("cpu"))
    parts = [
        Part("weights.safetensors", {"w": weights}, {"about": "x"}),
        Part("statistics.safetensors", {"s": statistics}, {}, volatile=True),
    ]
    for turn in range(2):  # the second time into the same memory
        go.clear()
        assert writer.missing_bytes(parts) == (0 if turn else weights.nbytes + statistics.nbytes)
        folder = tmp_path / str(turn)
        folder.mkdir()
        work = writer.write(parts, folder, copy=True, before=lambda: waited_for(go))
        statistics += 1  # as the next forward pass does
        writer.wait_copied()
        weights += 1
        assert not work.done()
        assert list(folder.iterdir()) == []
        go.set()
        assert set(work.result()) == {"weights.safetensors", "statistics.safetensors"}
        assert torch.equal(load_file(folder / "weights.safetensors")["w"], expected + turn)
        assert torch.equal(load_file(folder / "statistics.safetensors")["s"], torch.arange(5) + turn)
    writer.close()


def test_what_nobody_waits_for_is_given_up(tmp_path: Path) -> None:
    """A rank that fails does not go on writing for minutes before it ends."""
    writer, go = Writer(torch.device("cpu")), threading.Event()
    part = Part("a.safetensors", {"w": torch.zeros(10)}, {})
    work = writer.write([part], tmp_path, copy=True, before=lambda: waited_for(go))
    threading.Timer(0.2, go.set).start()
    writer.close()
    with pytest.raises(Exception, match=r"a\.safetensors"):
        work.result()
