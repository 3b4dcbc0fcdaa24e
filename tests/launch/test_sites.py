"""Sites: each example in jobs/cluster-examples is loaded and turned into an sbatch file; and the keys one by one."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from semiocity.config import Cluster, Resources, check, load_toml
from semiocity.errors import UserError
from semiocity.launch import ends, site, slurm
from semiocity.launch.runs import Attempt

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "golden"
RUN = Path("/project/runs/demo")
EIGHT = Resources(
    nodes=2, ranks_per_node=8, gpus_per_node=8, cpus_per_rank=8, mem_gb=480, timeout_min=1440, signal_delay_s=600
)
EXAMPLES = sorted(path.stem for path in (ROOT / "jobs" / "cluster-examples").glob("*.toml"))


def test_there_is_an_example_for_each_kind_of_site() -> None:
    assert EXAMPLES == ["a100-centre", "no-containers", "pyxis-enroot", "small-lab"]


@pytest.mark.parametrize("name", EXAMPLES)
def test_example_gives_its_golden_sbatch_file(name: str) -> None:
    cluster = load_toml(ROOT / "jobs" / "cluster-examples" / f"{name}.toml", Cluster)
    image = Path("/images/semiocity.sif") if cluster.container.image else None
    launch = slurm.Launch("demo", cluster, EIGHT, image, RUN / "code" / "abc", (RUN,), Path("/project"))
    text = slurm.sbatch_file(launch, Attempt(RUN, 1), 1) + "\n"
    text = re.sub(r"^(srun .*?)\S+/python3?(\.\d+)? -u", r"\1PYTHON -u", text, flags=re.MULTILINE)
    path = GOLDEN / f"site-{name}.sbatch"
    if os.environ.get("SEMIOCITY_GOLDEN") == "write":
        path.write_text(text)
    assert text == path.read_text()


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({}, {"gpus_per_node": 8, "mem": "491520M"}),
        ({"gpu_type": "a100"}, {"gpus_per_node": "a100:8", "mem": "491520M"}),
        ({"gpu_option": "gres", "gpu_type": "a100"}, {"gres": "gpu:a100:8", "mem": "491520M"}),
        ({"gpu_option": "gres"}, {"gres": "gpu:8", "mem": "491520M"}),
        ({"gpu_option": "none", "memory_option": "none", "exclusive": True}, {"exclusive": True}),
        ({"memory_option": "mem-per-cpu"}, {"gpus_per_node": 8, "mem_per_cpu": "7680M"}),
        ({"memory_option": "mem-per-gpu"}, {"gpus_per_node": 8, "mem_per_gpu": "61440M"}),
    ],
)
def test_gpus_and_memory_are_asked_for_in_the_sites_words(keys: dict, expected: dict) -> None:
    found = site.request(Cluster(**keys), EIGHT)
    assert {name: value for name, value in found.items() if value is not None} == expected


def test_a_job_without_gpus_asks_for_none_and_for_a_nodes_memory() -> None:
    asked = Resources(mem_gb=4, cpus_per_rank=2)
    found = site.request(Cluster(gpu_option="gres", gpu_type="a100", memory_option="mem-per-gpu"), asked)
    assert {name: value for name, value in found.items() if value is not None} == {"mem": "4096M"}


def test_where_jobs_must_not_come_back_they_say_how_to_go_on(tmp_path: Path) -> None:
    cluster = Cluster(requeue=False)
    assert site.extra(cluster) == {"no-requeue": True}
    attempt = Attempt(tmp_path / "my run", 1)
    attempt.requeue.mkdir(parents=True)
    attempt.requeue_file("12", 0).touch()
    script = "\n".join(["(exit 85)", *ends.teardown(attempt, Path(__file__).parents[2], {"preemption": 1}, False)])
    environment = {"SLURM_JOB_ID": "12", "PATH": "/usr/bin:/bin"}
    done = subprocess.run(["/bin/bash", "-c", script], env=environment, capture_output=True)
    assert done.returncode == 85
    assert b"semiocity retry my run" in done.stderr


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"sbatch": {"no-requeue": True}}, "sbatch.no-requeue: the key requeue"),
        ({"sbatch": {"mem": "3G"}}, r"resources\.mem_gb decides .* or memory_option = \"none\""),
        ({"sbatch": {"time": 3}}, r"sbatch.time: the job's resources\.timeout_min"),
        ({"sbatch": {"account": "b"}}, "sbatch.account: the key account of this file decides that"),
        ({"gpu_option": "none", "gpu_type": "a100"}, "asks for no GPUs"),
        ({"notify": {"webhook_env": "A", "webhook_file": "/b"}}, "two places"),
        ({"notify": {"mail": "nobody"}}, r"notify\.mail"),
        ({"purged": [{"path": "/scratch"}]}, r"purged\.0\.days: missing"),
        ({"gpu_option": "gpus"}, "gpu_option"),
    ],
)
def test_a_contradiction_in_the_site_file_is_named(data: dict, words: str) -> None:
    with pytest.raises(UserError, match=words):
        check(data, Cluster, "cluster.toml")
