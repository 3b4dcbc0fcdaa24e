"""`make demo` in small: every step by its real job file, on this machine, and again from where it stopped."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SMALL = {
    "shards/city.toml": {"train = .*": "train = 48", "val = .*": "val = 6", "size = .*": "size = [32, 32]"},
    "jobs/demo-train.toml": {
        "^steps = .*": "steps = 6",
        "checkpoint_every = .*": "checkpoint_every = 3",
        "sample_every = .*": "sample_every = 6",
        "warmup_steps = .*": "warmup_steps = 2",
        "^size = .*": "size = 32",
        "channels = .*": "channels = 8",
    },
    "jobs/generate.toml": {"^steps = .*": "steps = 2", "images_per_layout = .*": "images_per_layout = 2"},
    "jobs/evaluate.toml": {"^steps = .*": "steps = 5", "subset_images = .*": "subset_images = 5"},
}


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("project")
    for name in ("jobs", "shards"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("cluster.toml"))
    for name, changes in SMALL.items():
        text = (folder / name).read_text()
        for pattern, line in changes.items():
            text = re.sub(pattern, line, text, flags=re.MULTILINE)
        (folder / name).write_text(text)
    done = semiocity("demo", cwd=folder)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return folder


def semiocity(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "semiocity", *arguments], cwd=cwd, capture_output=True, text=True)


def test_scores_and_page_are_there(demo: Path) -> None:
    scores = json.loads((demo / "runs/demo/scores.json").read_text())
    assert 0 < scores["miou"]["ceiling"] <= 1
    assert scores["frechet"]["noise"] > 0 and scores["frechet"]["extractor"]
    assert {"segmenter", "size", "resize", "images"} <= set(scores["protocol"])
    page = (demo / "runs/demo/report.html").read_text()
    assert "<html" in page and not re.search(r"(src|href)=\"https?:", page)
    assert len(list((demo / "runs/demo/samples").glob("*/*.png"))) == 6 * 2


def test_the_same_command_again_trains_and_packs_nothing_anew(demo: Path) -> None:
    before = (demo / "runs/demo/done.json").stat().st_mtime_ns
    done = semiocity("demo", cwd=demo)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("nothing to do") == 4  # pack, caption, segment, train
    assert (demo / "runs/demo/done.json").stat().st_mtime_ns == before


def test_the_manifest_makes_the_same_images_again(demo: Path) -> None:
    done = semiocity(
        "generate", "jobs/generate.toml", "--from", "runs/demo/samples/manifest.json", "--out", "again", cwd=demo
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    assert "the same images" in done.stdout
    made = sorted((demo / "again").glob("*/*.png"))
    assert len(made) == 12
    assert all(
        path.read_bytes() == (demo / "runs/demo/samples" / path.relative_to(demo / "again")).read_bytes()
        for path in made
    )


def test_a_changed_setting_of_a_finished_training_is_refused_with_its_name(demo: Path) -> None:
    done = semiocity("train", "jobs/demo-train.toml", "--set", 'run="demo"', "--set", "optimizer.lr=0.5", cwd=demo)
    assert done.returncode != 0
    assert "optimizer.lr" in done.stderr


def test_a_pack_and_a_training_are_repeated_from_their_folders(demo: Path, tmp_path: Path) -> None:
    """What an archive keeps: the run folders, without data, checkpoints or anything that came of them."""
    archive, other = tmp_path / "archive", tmp_path / "other"
    other.mkdir()
    for run in ("pack-city", "demo"):
        for part in ("attempts", "code"):
            shutil.copytree(demo / "runs" / run / part, archive / run / part)
    for attempt in (archive / "demo" / "attempts").iterdir():
        if json.loads((attempt / "attempt.json").read_text())["kind"] != "train":
            shutil.rmtree(attempt)
    for run in ("pack-city", "demo"):
        done = semiocity("repeat", str(archive / run), cwd=other)
        assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    digests = [json.loads((place / "data/city/manifest.json").read_text())["digest"] for place in (demo, other)]
    assert digests[0] == digests[1]
    losses = [(place / "runs/demo/metrics.jsonl").read_text() for place in (demo, other)]
    assert losses[0] == losses[1], "step by step the same training, to the last bit"
    assert "nothing to do" in semiocity("repeat", "demo", cwd=other).stdout
