"""The local executor follows the same budgets: what a row killed comes back, finds the row, and ends well."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from faulty_stage import copy_package, job_toml

from semiocity.data.manifest import ShardPath
from semiocity.data.shard import ShardReader

SOURCE = Path(__file__).parents[2]
SETS = ["--set", "source.size=[32, 32]", "--set", "source.train=8", "--set", "source.val=4", "--set", "shard_rows=6"]


def test_a_row_that_kills_its_task_becomes_a_tombstone(tmp_path: Path) -> None:
    code = copy_package(tmp_path / "code")
    project = tmp_path / "project"
    (project / "jobs").mkdir(parents=True)

    def semiocity(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "semiocity", *arguments],
            cwd=project,
            env={**os.environ, "PYTHONPATH": str(code)},
            capture_output=True,
            text=True,
        )

    packed = semiocity("pack", str(SOURCE / "shards/city.toml"), *SETS)
    assert packed.returncode == 0, packed.stderr
    base = next((project / "data/city/columns/base").glob("*/"))
    with ShardReader(ShardPath(base, 1)) as reader:
        victim = reader.keys[2]
    job = project / "jobs" / "faulty.toml"
    job.write_text(job_toml(batch=2, victim=victim, fault="SIGSEGV"))
    done = semiocity("faulty", str(job))
    assert done.returncode == 0, done.stderr
    folder = next((project / "data/city/columns/faulty").glob("*/"))
    with ShardReader(ShardPath(folder, 1)) as reader:
        assert {key: reader.tombstoned(i) for i, key in enumerate(reader.keys) if reader.tombstoned(i)} == {
            victim: ("permanent", "killed its process: SIGSEGV")
        }
    (note,) = (project / "runs/faulty-city/attempts/0001/ends").iterdir()
    assert note.read_text().startswith("cause=crash\nreason=Segmentation fault\n")
    assert semiocity("status").returncode == 0
    # An error in code ends the job the first time, with its words.
    job.write_text(job_toml(batch=2, victim=victim, fault="raise"))
    done = semiocity("faulty", str(job), "--set", 'column="other"', "--set", 'run="other"')
    assert done.returncode != 0 and "crashed: NotImplementedError: not today" in done.stderr
    notes = [path.read_text() for path in (project / "runs/other/attempts/0001/ends").iterdir()]
    assert len([note for note in notes if "cause=crash" in note]) == 1, "the merge has a word of its own"
