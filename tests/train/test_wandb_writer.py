"""Weights & Biases: one run for all attempts, nothing secret in files, and no trouble of its own ends a training."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny import sdm
from train_ranks import job_of

from semiocity.files import read_json
from semiocity.train.options import TrainJob
from semiocity.train.wandb_writer import open_wandb


def job(**wandb: Any) -> TrainJob:
    return job_of(Path("data/city"), **sdm({"stage": 2}), wandb=wandb)


class Fake:
    """A wandb that notes what it is asked."""

    def __init__(self, broken: str = "") -> None:
        self.broken, self.calls = broken, []  # type: ignore[var-annotated]
        self.Settings, self.Image = SimpleNamespace, lambda pixels: ("image", pixels.shape)

    def init(self, **asked: Any) -> Any:
        self._note("init", asked)
        return SimpleNamespace(
            log=lambda values, step: self._note("log", (values, step)), finish=lambda: self._note("finish", 0)
        )

    def _note(self, name: str, what: Any) -> None:
        self.calls.append((name, what))
        if name == self.broken:
            raise OSError("no route to host")


def test_every_attempt_writes_into_the_same_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = Fake()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    (first,) = open_wandb(job(project="p", entity="team"), tmp_path, 0)
    first.scalars(3, {"loss": 0.5})
    first.picture(3, "grid", torch.zeros(4, 6, 3, dtype=torch.uint8))
    first.close()
    open_wandb(job(project="other"), tmp_path, 3)
    begun = [asked for name, asked in fake.calls if name == "init"]
    assert begun[0]["id"] == begun[1]["id"] == read_json(tmp_path / "wandb.json")["id"]
    assert [asked["project"] for asked in begun] == ["p", "p"]
    assert begun[0]["mode"] == "offline" and begun[0]["config"]["steps"] == 6
    logged = [what for name, what in fake.calls if name == "log"]
    assert logged == [({"loss": 0.5}, 3), ({"grid": ("image", (4, 6, 3))}, 3)]


@pytest.mark.parametrize("broken", ["init", "log"])
def test_its_trouble_is_said_once_and_ends_nothing(
    broken: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", Fake(broken))
    for board in open_wandb(job(project="p"), tmp_path, 0):
        board.scalars(1, {"loss": 0.5})
        board.scalars(2, {"loss": 0.4})
    assert capsys.readouterr().out.count("no route to host") == 1


def test_a_job_without_it_does_not_import_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    plain = job_of(Path("data/city"), **sdm({"stage": 2}))
    assert open_wandb(plain, tmp_path, 0) == []
    assert not (tmp_path / "wandb.json").exists()


def test_the_real_package_writes_offline_and_no_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb", reason="wandb is not installed: it is an extra of its own")
    key = "0123456789abcdef" * 2 + "01234567"
    monkeypatch.setenv("WANDB_API_KEY", key)
    for step in (1, 2):
        (board,) = open_wandb(job(project="p"), tmp_path, step)
        board.scalars(step, {"loss": 1.0 / step})
        board.picture(step, "grid", torch.zeros(4, 6, 3, dtype=torch.uint8))
        board.close()
    name = read_json(tmp_path / "wandb.json")["id"]
    written = sorted(tmp_path.glob(f"wandb/offline-run-*-{name}/run-{name}.wandb"))
    assert len(written) == 2 and all(file.stat().st_size > 0 for file in written)
    for file in tmp_path.rglob("*"):
        assert not file.is_file() or key.encode() not in file.read_bytes()
