"""The small job behind an array: what it asks for, and that the cluster is asked whether it would take it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from semiocity.config import Cluster, Resources
from semiocity.errors import UserError
from semiocity.launch import scheduler, slurm, submission
from semiocity.launch.jobs import Work
from semiocity.launch.runs import Attempt

RUN = Path("/project/runs/caption")
SITE = {"executor": "slurm", "partition": "gpu", "constraint": "a100", "exclusive": True}


def asked(text: str) -> set[str]:
    return {line.removeprefix("#SBATCH --") for line in text.splitlines() if line.startswith("#SBATCH")}


def lines(**site: Any) -> set[str]:
    resources = Resources(gpus_per_node=4, ranks_per_node=4, cpus_per_rank=8, mem_gb=100, partition="big")
    cluster = Cluster.model_validate({**SITE, **site})
    launch = slurm.Launch("caption", cluster, resources, None, RUN / "code", (RUN,), RUN.parents[1])
    return asked(slurm.sbatch_file(submission.light(launch), Attempt(RUN, 1), 1, 9))


def test_a_merge_takes_no_whole_node_and_may_have_a_partition_of_its_own() -> None:
    own, other = lines(), lines(light_partition="cpu")
    assert not {line for line in own | other if line.startswith(("exclusive", "gpus", "gres", "mem"))}
    assert {"partition=big", "constraint=a100", "cpus-per-task=1", "ntasks-per-node=1"} <= own
    assert "partition=cpu" in other and not any(line.startswith("constraint") for line in other)


def work(kind: str, gpus: int) -> Work:
    return Work(
        kind=kind,
        job={},
        run=RUN,
        dataset=Path("/project/data/city"),
        column="caption",
        revision="abc",
        shards=4,
        resources=Resources(gpus_per_node=gpus),
        image=None,
    )


@pytest.mark.parametrize(
    ("kind", "gpus", "site", "times"),
    [("stage", 0, {}, 1), ("stage", 4, {}, 2), ("stage", 0, {"light_partition": "cpu"}, 2), ("train", 4, {}, 1)],
)
def test_the_cluster_is_asked_about_the_merge_where_it_differs(
    kind: str, gpus: int, site: dict[str, str], times: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripts: list[str] = []

    def refusal(script: str) -> str | None:
        scripts.append(script)
        return None if len(scripts) == 1 else "Invalid generic resource (gres) specification"

    monkeypatch.setattr(scheduler, "refusal", refusal)
    cluster = Cluster.model_validate({**SITE, **site})
    if times == 1:
        submission.refuse_request(work(kind, gpus), cluster, None)
    else:
        with pytest.raises(UserError, match=r"nothing was queued: Invalid generic resource .*; light_partition in"):
            submission.refuse_request(work(kind, gpus), cluster, None)
        assert not any(line.startswith(("gpus", "gres")) for line in asked(scripts[1]))
    assert len(scripts) == times
