"""`semiocity compare`: what differs, curves, scores and costs, as tables, JSON and a page; any part may be missing."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from semiocity.cli import main
from semiocity.compare import collect, page, text
from semiocity.errors import UserError
from semiocity.files import write_json
from semiocity.launch.runs import find_runs, new_attempt
from semiocity.train.lines import Lines

JOB: dict[str, Any] = {
    "task": "sdm",
    "dataset": "data/city",
    "run": None,
    "steps": 100,
    "global_batch": 8,
    "optimizer": {"lr": 1e-3, "warmup_steps": 5},
    "validate_every": 10,
    "validate_split": "val",
    "validate_samples": 16,
    "resources": {"nodes": 2, "gpus_per_node": 4},
}
SCORES = {"miou": {"value": 0.5}, "frechet": {"value": 12.0}, "kid": {"value": 0.01}, "diversity": {"value": None}}


def make_run(root: Path, name: str, lr: float, steps: int = 100, scores: dict[str, Any] | None = None) -> Path:
    """A training as it leaves its folder: two hours on eight GPUs, come back once."""
    run = root / name
    attempt = new_attempt(run)
    job = {**JOB, "run": name, "optimizer": {**JOB["optimizer"], "lr": lr}}
    attempt.write(
        {
            "kind": "train",
            "executor": "slurm",
            "dataset": "/x/data/city",
            "job": job,
            "resources": job["resources"],
            "tasks": [[]],
            "merge": None,
            "jobs": ["7"],
            "columns": {"base": "aa"},
            "code": "/x/code/abc",
        }
    )
    state = {"state": "done", "job": "7", "started": 1000.0, "updated": 4600.0, "spent_s": 3600.0, "restart": 1}
    write_json(attempt.task_file(0), state)
    metrics, validation, speed = (Lines(run / f"{n}.jsonl", 0) for n in ("metrics", "validation", "speed"))
    for step in range(1, steps + 1):
        metrics.write(step, {"loss": lr * 1000 / step, "lr": lr, "gradient_norm": 1.0})
        if step % 10 == 0:
            validation.write(step, {"loss": 2.0 + lr * (1 + abs(step - 40))})
            speed.write(step, {"time": 1.0, "speed/samples_per_s": 20.0, "speed/mfu": 0.4, "memory/gb": 10.0}, False)
    for lines in (metrics, validation, speed):
        lines.close()
    write_json(run / "progress.json", {"state": "training", "step": steps, "steps": 100})
    if steps == 100:
        write_json(run / "done.json", {"step": 100, "settings": ""})
    if scores:
        write_json(run / "scores.json", scores)
    return run


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    root = tmp_path / "runs"
    make_run(root, "lr--lr-0.001", 1e-3, scores={**SCORES, "protocol": {"size": [64, 64]}})
    make_run(root, "lr--lr-0.1", 1e-1, steps=60)
    make_run(root, "other", 1e-3)
    return root


def test_what_differs_and_what_came_out(runs: Path) -> None:
    found = collect.collect(find_runs("lr", runs))
    assert [entry["run"] for entry in found["runs"]] == ["lr--lr-0.001", "lr--lr-0.1"], "the prefix stands for both"
    assert found["settings"] == {"optimizer.lr": {"lr--lr-0.001": 1e-3, "lr--lr-0.1": 1e-1}}
    one, other = found["runs"]
    assert (one["state"], one["step"]) == ("done", 100)
    assert (other["state"], other["step"]) == ("training", 60)
    assert one["loss"] == pytest.approx((1000 * 1e-3 / 99 + 1000 * 1e-3 / 100) / 2)
    assert one["validation"] == pytest.approx({"first": 2.031, "last": 2.061, "best": 2.001, "best_step": 40})
    assert one["scores"] == {"miou": 0.5, "frechet": 12.0, "kid": 0.01}
    cost = one["cost"]
    assert cost["hours"] == pytest.approx(2.0)
    assert cost["gpu_hours"] == pytest.approx(16.0)
    assert cost["images_per_gpu_hour"] == pytest.approx(800 / 16)
    assert (cost["images_per_s"], cost["mfu"], cost["memory_gb"], cost["returns"]) == (20.0, 0.4, 10.0, 1)
    assert any("not finished: lr--lr-0.1" in warning for warning in found["warnings"])


def test_a_missing_part_is_a_gap_and_no_error(tmp_path: Path) -> None:
    run = make_run(tmp_path / "runs", "bare", 1e-3)
    for name in ("metrics.jsonl", "validation.jsonl", "speed.jsonl", "done.json", "progress.json"):
        (run / name).unlink()
    found = collect.collect([run])
    assert found["runs"][0]["loss"] is None and found["runs"][0]["state"] == "not started"
    assert "bare" in text.render(found)
    assert "No run has a curve yet" in page.write(found, tmp_path / "page.html").read_text()


def test_what_cannot_be_compared_is_said(tmp_path: Path) -> None:
    root = tmp_path / "runs"
    one = make_run(root, "one", 1e-3, scores={**SCORES, "protocol": {"size": [64, 64]}})
    other = make_run(root, "two", 1e-3, scores={**SCORES, "protocol": {"size": [32, 32]}})
    attempt = other / "attempts/0001/attempt.json"
    data = json.loads(attempt.read_text())
    data["job"]["validate_samples"] = 4
    write_json(attempt, data)
    said = " ".join(collect.collect([one, other])["warnings"])
    assert "validation losses were taken on other rows" in said
    assert "scores were measured in different ways" in said


def test_the_table_stars_the_best(runs: Path) -> None:
    lines = text.render(collect.collect(find_runs("lr", runs))).splitlines()
    (results,) = [i for i, line in enumerate(lines) if line.startswith("results")]
    header = re.split(r"\s{2,}", lines[results])
    rows = [dict(zip(header, re.split(r"\s{2,}", line))) for line in lines[results + 1 : results + 3]]
    assert [row["lowest"] for row in rows] == ["2.001*", "2.1"]
    assert rows[0]["validation"] == "2.061" and rows[1]["validation"] == "4.1"
    assert all(len(line) == len(line.rstrip()) for line in lines)


def test_many_settings_are_listed_one_a_line() -> None:
    settings = {f"key_{i}": {"a": i, "b": None} for i in range(9)}
    entry = {"run": "a"}
    drawn = text.settings_table({"runs": [entry, {"run": "b"}], "settings": settings}).splitlines()
    assert len(drawn) == 10
    assert drawn[1].split() == ["key_0", "0", "–"]


def test_the_page_holds_curves_of_all_and_escapes_names(runs: Path, tmp_path: Path) -> None:
    found = collect.collect([runs / "lr--lr-0.001", runs / "lr--lr-0.1", runs / "other"])
    found["settings"]["<b>&"] = {"other": "<script>"}
    source = page.write(found, tmp_path / "deep" / "page.html").read_text()
    assert "<script" not in source and "&lt;b&gt;&amp;" in source and "http" not in source.replace("http-equiv", "")
    (loss,) = re.findall(r"<h3>Loss</h3>(.*?)</svg>", source, re.DOTALL)
    assert [re.search(r's(\d)"', tag)[1] for tag in re.findall("<polyline[^>]*>", loss)] == ["0", "1", "2"]  # type: ignore[index]
    assert "MFU" in source


def test_runs_of_other_batches_are_drawn_over_images(runs: Path) -> None:
    found = collect.collect([runs / "lr--lr-0.001", runs / "other"])
    found["runs"][1]["global_batch"] = 80
    charts = dict(page._charts(found["runs"], {"lr--lr-0.001": "s0", "other": "s1"}, by_images=True))
    first, second = re.findall(r'points="([^"]*)"', charts["Loss"])
    ends = [float(points.split()[-1].split(",")[0]) for points in (first, second)]
    assert ends[0] < 120 < 540 < ends[1]


def test_the_command(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", "lr", "other", "--runs", str(runs), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [entry["run"] for entry in found["runs"]] == ["lr--lr-0.001", "lr--lr-0.1", "other"]
    assert found["runs"][0]["curves"]["validation/loss"][0] == [10, pytest.approx(2.031)]
    assert main(["compare", "lr", "--runs", str(runs), "--page", str(tmp_path / "page.html")]) == 0
    assert "optimizer.lr" in capsys.readouterr().out
    assert (tmp_path / "page.html").exists()
    assert main(["compare", "lrr", "--runs", str(runs)]) == 2
    assert "no such run" in capsys.readouterr().err


def test_a_run_without_a_training_is_refused(tmp_path: Path) -> None:
    attempt = new_attempt(tmp_path / "runs" / "caption-city")
    attempt.write({"kind": "stage", "executor": "local", "tasks": [[0]], "merge": None, "jobs": [], "job": {}})
    with pytest.raises(UserError, match="no training was submitted here"):
        collect.collect([tmp_path / "runs" / "caption-city"])


def test_long_curves_are_thinned_and_keep_their_mean() -> None:
    curve = [(float(i), 1.0 + i % 2) for i in range(10_000)] + [(10_000.0, float("nan"))]
    thin = collect.thinned(curve)
    assert len(thin) == collect.POINTS
    assert all(value == pytest.approx(1.5, abs=0.05) for _, value in thin)
