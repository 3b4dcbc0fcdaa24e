"""bench/flux_step.py: all of it with a tiny transformer on the CPU, and one clear message where there is no GPU."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).parents[2] / "bench" / "flux_step.py"


def flux_step(*words: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, str(SCRIPT), *words], capture_output=True, text=True, env=environment)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_without_a_gpu_it_says_so() -> None:
    done = flux_step()
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.splitlines() == [
        "flux_step.py: no GPU here; it needs one with 80 GB or more. --tiny runs all of it on the CPU"
    ]


def test_tiny_measures_what_can_be_measured_here() -> None:
    done = flux_step("--tiny", "--steps", "1", "--contenders", "ours", "diffusers")
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout.splitlines()[-1])
    print(done.stdout)
    assert set(facts["ours"]) == {"kept", "recomputed"}
    both = [case for case, times in facts["peer"].items() if set(times) == {"ours", "diffusers"}]
    assert {case.split(",")[0] for case in both} >= {"lora"}
    assert all(seconds > 0 for times in facts["peer"].values() for seconds in times.values())
