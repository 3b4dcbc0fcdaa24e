"""Ranks find out who they are, and old ranks cannot meet new ones."""

import pytest

from semiocity.launch.world import first_host, from_environment, port_of

SLURM = {
    "SUBMITIT_EXECUTOR": "slurm",
    "SLURM_JOB_ID": "77",
    "SLURM_NTASKS": "16",
    "SLURM_JOB_NUM_NODES": "2",
    "SLURM_JOB_NODELIST": "gpu[07-08]",
    "SLURM_PROCID": "9",
    "SLURM_LOCALID": "1",
}


def test_slurm_ranks() -> None:
    world = from_environment(SLURM)
    assert (world.rank, world.size, world.local_rank, world.nodes) == (9, 16, 1, 2)
    assert world.master_addr == "gpu07"
    assert world.job_id == "77"
    assert world.restart == 0


def test_array_tasks_and_restarts_have_their_own_port() -> None:
    first = from_environment(SLURM)
    again = from_environment({**SLURM, "SLURM_RESTART_COUNT": "1"})
    task = from_environment({**SLURM, "SLURM_ARRAY_JOB_ID": "70", "SLURM_ARRAY_TASK_ID": "3"})
    assert task.job_id == "70_3"
    assert len({first.master_port, again.master_port, task.master_port}) == 3
    assert all(10_000 <= port_of(str(job), restart) < 20_000 for job in range(200) for restart in range(5))


def test_one_node_needs_no_name_service() -> None:
    assert from_environment({**SLURM, "SLURM_JOB_NUM_NODES": "1"}).master_addr == "127.0.0.1"


@pytest.mark.parametrize(
    ("nodelist", "first"),
    [
        ("n1", "n1"),
        ("n1,n2", "n1"),
        ("n[1-4]", "n1"),
        ("gpu[03-05,9],cpu1", "gpu03"),
        ("login,gpu[1-2]", "login"),
        ("rack[1-2]n[1-4]", "rack1n1"),
        ("a[2,5]-ib,b1", "a2-ib"),
    ],
)
def test_first_host_of_a_node_list(nodelist: str, first: str) -> None:
    assert first_host(nodelist) == first


def test_local_ranks() -> None:
    world = from_environment(
        {
            "SUBMITIT_EXECUTOR": "local",
            "SUBMITIT_LOCAL_JOB_ID": "4242",
            "SUBMITIT_LOCAL_GLOBALID": "1",
            "SUBMITIT_LOCAL_LOCALID": "1",
            "SUBMITIT_LOCAL_NTASKS": "2",
            "SEMIOCITY_RESTART": "3",
        }
    )
    assert (world.rank, world.size, world.restart, world.master_addr) == (1, 2, 3, "127.0.0.1")


def test_outside_of_any_job_there_is_one_rank() -> None:
    world = from_environment({})
    assert (world.rank, world.size) == (0, 1)
