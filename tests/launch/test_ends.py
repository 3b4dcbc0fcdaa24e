"""What the batch script makes of an attempt's end, in a real shell with a scontrol that notes what it is asked."""

from __future__ import annotations

import subprocess
from collections import Counter
from pathlib import Path

import pytest

from semiocity.config import Cluster, Resources, Retries
from semiocity.files import write_json
from semiocity.launch import bad_nodes, causes, ends, slurm
from semiocity.launch.bad_nodes import Failed
from semiocity.launch.causes import Evidence, cause_of
from semiocity.launch.runs import Attempt

SOURCE = Path(__file__).parents[2]
RETRIES = {"preemption": 2, "time_limit": 1, "crash": 1, "out_of_memory": 1, "hung": 1, "node_failure": 1}


class Job:
    """One job's batch script after srun."""

    def __init__(self, folder: Path, come_back: bool = True) -> None:
        self.attempt = Attempt(folder, 1)
        self.attempt.requeue.mkdir(parents=True)
        self.asked, self.log, self.show = folder / "asked", folder / "log.out", folder / "show"
        self.folder, self.come_back = folder, come_back
        self.state = "RUNNING"
        self.excluded = "(null)"
        (folder / "scontrol").write_text(
            f'#!/bin/sh\ncase $1 in show) cat {self.show} ;; *) echo "$@" >>{self.asked} ;; esac\n'
        )
        (folder / "scontrol").chmod(0o755)
        self.log.write_text("")

    def end(self, code: int, log: str = "", restart: int = 0, **variables: str) -> list[str]:
        """The requests to SLURM after srun ended with `code`, having left `log`."""
        self.asked.write_text("")
        with self.log.open("a") as file:
            file.write(f"{ends.BEGINS}12.{restart} on n1\n{log}\n")
        self.show.write_text(
            f"JobId=12 JobState={self.state} ExcNodeList={self.excluded} StdErr={self.log} StdOut={self.log}\n"
        )
        lines = [f"(exit {code})", *ends.teardown(self.attempt, SOURCE, RETRIES, self.come_back)]
        environment = {
            "PATH": f"{self.folder}:/usr/bin:/bin",
            "SLURM_JOB_ID": "12",
            "SLURM_JOB_NODELIST": "n1",
            "SLURM_RESTART_COUNT": str(restart),
        }
        done = subprocess.run(["bash", "-c", "\n".join(lines)], env=environment | variables, capture_output=True)
        assert done.returncode == code
        return self.asked.read_text().splitlines()

    def note(self, restart: int = 0) -> dict[str, str]:
        return ends.read(ends.end_file(self.attempt, "12", restart))


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return Job(tmp_path)


def test_what_succeeds_leaves_no_note(job: Job) -> None:
    assert job.end(0) == []
    assert not (job.attempt.folder / "ends").exists()


def test_a_job_that_asks_for_it_comes_back_as_often_as_its_budget_allows(job: Job) -> None:
    for restart in range(3):
        job.attempt.requeue_file("12", restart).write_text("preemption")
        assert job.end(85, restart=restart) == (["requeue 12"] if restart < 2 else [])
    assert job.note(2)["over_budget"] == "2"


def test_another_ranks_death_does_not_hide_the_request(job: Job) -> None:
    job.attempt.requeue_file("12", 0).write_text("time_limit")
    assert job.end(137) == ["requeue 12"]
    assert job.note()["cause"] == "time_limit"


def test_array_tasks_are_told_apart(job: Job) -> None:
    array = {"SLURM_ARRAY_JOB_ID": "10", "SLURM_ARRAY_TASK_ID": "3", "SLURM_JOB_ID": "14"}
    job.attempt.requeue_file("10_3", 1).write_text("preemption")
    assert job.end(85, restart=1, **array) == ["requeue 10_3"], "14 may be the id of the whole array"
    assert ends.read(ends.end_file(job.attempt, "10_3", 1))["budget"] == "preemption"


def test_budgets_are_separate(job: Job) -> None:
    assert job.end(1) == ["requeue 12"]
    assert job.end(1, "slurmstepd: error: Detected 1 oom-kill event(s)", restart=1) == ["requeue 12"]
    assert job.end(1, restart=2) == []
    assert [job.note(i)["cause"] for i in range(3)] == ["crash", "out_of_memory", "crash"]


def test_a_task_that_says_it_would_end_the_same_way_does_not_come_back(job: Job) -> None:
    ends.note(job.attempt, "12", 0, causes.CRASH, "TypeError: x", "n1", again=False)
    assert job.end(1) == []
    ends.note(job.attempt, "12", 1, causes.REFUSED, "no such file", "n1")
    assert job.end(2, restart=1) == []
    assert job.note(0)["reason"] == "TypeError: x" and job.note(1)["cause"] == "refused"


def test_the_first_rank_that_fails_is_the_cause(job: Job) -> None:
    ends.note(job.attempt, "12", 0, causes.OUT_OF_MEMORY, "MemoryError: 3 GB\nof all", "n2", rank=3)
    ends.note(job.attempt, "12", 0, causes.CRASH, "RuntimeError: connection closed by peer", "n1", rank=0)
    note = job.note()
    assert (note["cause"], note["reason"], note["rank"]) == ("out_of_memory", "MemoryError: 3 GB of all", "3")


def test_a_bad_node_is_excluded_before_the_job_runs_again(job: Job) -> None:
    job.excluded = "n7"
    assert job.end(255, "FATAL:   container creation failed: mount /data error") == [
        "requeue 12",
        "update JobId=12 ExcNodeList=n7,n1",
    ]


def test_what_was_cancelled_stays_away(job: Job) -> None:
    job.state = "CANCELLED"
    job.attempt.requeue_file("12", 0).write_text("preemption")
    assert job.end(85) == []


def test_where_jobs_must_not_come_back_they_do_not(tmp_path: Path) -> None:
    job = Job(tmp_path, come_back=False)
    job.attempt.requeue_file("12", 0).write_text("preemption")
    assert job.end(85) == []
    assert job.note()["cause"] == "preemption"


ENDS: list[tuple[int, str, str]] = [
    (1, "Traceback (most recent call last):\nRuntimeError: odd", causes.CRASH),
    (139, "", causes.CRASH),
    (1, "Fatal Python error: Segmentation fault", causes.CRASH),
    (137, "", causes.KILLED),
    (137, "slurmstepd: error: Detected 1 oom_kill event in StepId=12.0.", causes.OUT_OF_MEMORY),
    (137, "srun: error: n1: task 0: Out Of Memory", causes.OUT_OF_MEMORY),
    (1, "Timeout (1:00:00)!\nThread 0x1 (most recent call first):", causes.HUNG),
    (255, "FATAL:   could not open image", causes.BAD_NODE),
    (255, "", causes.CRASH),
    (143, "slurmstepd: error: *** JOB 12 ON n1 CANCELLED AT 2026-01-01 DUE TO TIME LIMIT ***", causes.TIME_LIMIT),
    (143, "slurmstepd: error: *** STEP 12.0 ON n1 CANCELLED AT 2026 DUE TO PREEMPTION ***", causes.PREEMPTION),
    (1, "slurmstepd: error: *** JOB 12 ON n1 CANCELLED DUE TO NODE FAILURE, SEE LOG ***", causes.NODE_FAILURE),
]


@pytest.mark.parametrize(("code", "log", "cause"), ENDS)
def test_shell_and_python_agree_on_the_cause(job: Job, code: int, log: str, cause: str) -> None:
    job.end(1, "slurmstepd: error: Detected 1 oom-kill event(s)")  # an earlier attempt's words do not count
    job.end(code, log, restart=1)
    assert job.note(1)["cause"] == cause
    assert cause_of(Evidence(code=code, log=log)).name == cause
    assert job.note(1)["budget"] == causes.BUDGETS[cause]


GONE = "slurmstepd-n1: error: *** JOB 4 ON n1 CANCELLED AT 2026-11-24T10:44:37 ***"
STEP = "slurmstepd-n1: error: *** STEP 4.0 ON n1 CANCELLED AT 2026-11-24T10:44:37 ***"
OOM = "slurmstepd: error: Detected 1 oom-kill event(s) in StepId=12.0"


@pytest.mark.parametrize(
    ("evidence", "cause", "detail"),
    [
        (Evidence(said="crash", reason="KeyError: 'x'", log=OOM, code=1), causes.CRASH, "KeyError: 'x'"),
        (Evidence(stopped=True, reason="SIGUSR2", code=85), causes.TIME_LIMIT, "SIGUSR2"),
        (Evidence(stopped=True, reason="SIGTERM", code=85, log=STEP), causes.PREEMPTION, "SIGTERM"),
        (Evidence(stopped=True, reason="SIGTERM", log=GONE), causes.CANCELLED, "SIGTERM"),
        (Evidence(stopped=True, reason="SIGTERM", state="CANCELLED"), causes.CANCELLED, "SIGTERM"),
        (Evidence(stopped=True, reason="SIGINT"), causes.CANCELLED, "SIGINT"),
        (Evidence(started=False), causes.NEVER_STARTED, ""),
        (Evidence(started=False, state="BOOT_FAIL"), causes.NODE_FAILURE, ""),
        (Evidence(started=False, code=255, log="FATAL:   no image"), causes.BAD_NODE, "FATAL:   no image"),
        (Evidence(state="NODE_FAIL"), causes.NODE_FAILURE, ""),
        (Evidence(state="TIMEOUT"), causes.TIME_LIMIT, ""),
        (Evidence(state="PREEMPTED"), causes.PREEMPTION, ""),
        (Evidence(state="OUT_OF_MEMORY", code=137), causes.OUT_OF_MEMORY, ""),
        (Evidence(state="CANCELLED by 1000"), causes.CANCELLED, ""),
        (Evidence(log=GONE), causes.CANCELLED, ""),
        (Evidence(log=OOM), causes.OUT_OF_MEMORY, ""),
        (Evidence(), causes.LOST, ""),
        (Evidence(code=139), causes.CRASH, "SIGSEGV"),
        (Evidence(code=-11), causes.CRASH, "SIGSEGV"),
        (Evidence(code=1, log="ValueError: odd\nsrun: error: n1: task 0: Exited"), causes.CRASH, "ValueError: odd"),
        (Evidence(code=1, over_budget=1, reason="x"), causes.CRASH, "x; retries.crash = 1 is used up"),
    ],
)
def test_evidence_and_cause(evidence: Evidence, cause: str, detail: str) -> None:
    assert cause_of(evidence) == (cause, detail)


def test_every_cause_has_words_advice_and_a_budget_that_exists() -> None:
    assert set(causes.WHAT) == set(causes.ADVICE)
    assert set(causes.BUDGETS.values()) == set(Retries.model_fields)
    assert slurm.retries(Cluster(), Resources()) == Retries().model_dump()
    merged = slurm.retries(Cluster(retries=Retries(hung=5)), Resources(retries=Retries(crash=7)))
    assert (merged["crash"], merged["hung"], merged["preemption"]) == (7, 5, 100)


# ---------------------------------------------------------------- nodes


def test_a_node_is_bad_that_fails_where_others_succeed() -> None:
    def failed(node: str, cause: str = causes.CRASH, times: int = 1) -> list[Failed]:
        return [Failed(node, cause, 0.0)] * times

    def judge(entries: list[Failed], **done: int) -> list[str]:
        return list(bad_nodes.bad_nodes(entries, Counter(done), 10.0))

    assert judge(failed("n1", times=2), n2=3, n3=1) == ["n1"]
    assert judge(failed("n1"), n2=3) == [], "once is an accident"
    assert judge(failed("n1", times=5), n1=1, n2=3) == [], "it works there too"
    assert judge(failed("n1", times=5) + failed("n2", times=5)) == [], "it works nowhere"
    assert judge(failed("n1", causes.BAD_NODE), n2=1) == ["n1"], "it said so itself"
    assert judge(failed("n1", causes.BAD_NODE)) == [], "the only node there is"
    assert judge(failed("n1", causes.PREEMPTION, 9), n2=1) == []
    all_bad = [entry for node in ("n1", "n2", "n3") for entry in failed(node, causes.BAD_NODE)]
    assert len(judge(all_bad, n4=1)) == 2, "never more than half"
    assert bad_nodes.bad_nodes(failed("n1", times=2), Counter(n2=3), bad_nodes.DAY_S + 1) == {}


def limit_comes(job: Job, restart: int) -> dict[str, str]:
    """The note of a job whose time limit came inside a unit of work."""
    job.show.write_text(f"JobId=12 JobState=TIMEOUT Reason=TimeLimit StdOut={job.log} KillWait = 2\n")
    (job.folder / "scontrol").write_text(
        f'#!/bin/sh\ncase "$1 $2" in "show config") echo "KillWait = 2 sec" ;; show*) cat {job.show} ;;'
        f' *) echo "$@" >>{job.asked} ;; esac\n'
    )
    script = SOURCE / "semiocity" / "launch" / "limit.sh"
    lines = [
        "sleep 60 & batch=$!",
        f"bash {script} {job.attempt.folder} $batch 0 yes time_limit=10 & beside=$!",
        "sleep 0.5; kill $beside; wait $beside; kill $batch",
    ]
    environment = {"PATH": f"{job.folder}:/usr/bin:/bin", "SLURM_JOB_ID": "12", "SLURM_RESTART_COUNT": str(restart)}
    subprocess.run(["bash", "-c", "\n".join(lines)], env=environment, capture_output=True, check=False)
    return job.note(restart)


def test_a_job_that_a_limit_ends_twice_at_the_same_place_stays_also_with_preemptions_between(job: Job) -> None:
    write_json(job.attempt.task_file(0), {"shard": 3, "rows": 16})
    first = limit_comes(job, 0)
    assert (first["cause"], first["hard"], first["budget"]) == ("time_limit", "yes", "time_limit")
    job.attempt.requeue_file("12", 1).write_text("preemption")
    assert job.end(85, restart=1) == ["requeue 12"] and job.note(1)["cause"] == "preemption"
    assert limit_comes(job, 3)["again"] == "no", "restart 1 saved when it was preempted, 2 was killed by that"
    write_json(job.attempt.task_file(0), {"shard": 3, "rows": 32})
    assert "again" not in limit_comes(job, 4), "it got further"
