"""Calls to a controller that is busy, full, or that refuses: with stand-ins for SLURM's commands on the PATH."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from semiocity.errors import UserError
from semiocity.launch import scheduler

BUSY = "sbatch: error: Batch job submission failed: Socket timed out on send/recv operation"


class Commands:
    """Stand-ins that fail with each of `faults` in turn and then print their arguments."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.calls = folder / "calls"
        self.calls.write_text("")

    def put(self, name: str, faults: list[str], output: str = "77") -> None:
        lines = [f'echo "$0 $@" >>{self.calls}', f"n=$(grep -c /{name} {self.calls})"]
        lines += [f'[ $n -eq {i} ] && echo "{fault}" >&2 && exit 1' for i, fault in enumerate(faults, 1)]
        script = self.folder / name
        script.write_text("\n".join(["#!/bin/bash", *lines, f"echo '{output}'", ""]))
        script.chmod(0o755)

    @property
    def count(self) -> int:
        return len(self.calls.read_text().splitlines())


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Commands:
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    return Commands(tmp_path)


@pytest.mark.parametrize(
    "fault",
    [
        BUSY,
        "squeue: error: slurm_load_jobs error: Unable to contact slurm controller (connect failure)",
        "sbatch: error: Batch job submission failed: Resource temporarily unavailable",
        "sbatch: error: Slurm temporarily unable to accept job, sleeping and retrying",
    ],
)
def test_a_busy_controller_is_asked_again_with_growing_pauses(
    commands: Commands, fault: str, capsys: pytest.CaptureFixture[str]
) -> None:
    commands.put("sbatch", [fault] * 4)
    pauses: list[float] = []
    assert scheduler.call(["sbatch", "x"], sleep=pauses.append).strip() == "77"
    assert commands.count == 5
    assert all(0.75 * 2**n <= 2 * pause / 2 <= 1.25 * 2 ** (n + 1) for n, pause in enumerate(pauses))
    assert pauses == sorted(pauses) and len(pauses) == 4
    assert "asking again" in capsys.readouterr().err


def test_pauses_are_spread_and_bounded() -> None:
    assert len({scheduler.pause(3) for _ in range(20)}) > 10
    assert max(scheduler.pause(50) for _ in range(100)) <= 75


def test_patience_ends(commands: Commands) -> None:
    commands.put("sbatch", [BUSY] * 1000)
    with pytest.raises(scheduler.Busy, match=r"did not answer for .* Socket timed out"):
        scheduler.call(["sbatch"], patience_s=100, sleep=lambda _: None)


def test_a_request_that_timed_out_but_arrived_is_not_made_again(commands: Commands) -> None:
    commands.put("sbatch", [BUSY] * 3)
    asked: list[int] = []

    def unsure() -> str | None:
        asked.append(1)
        return "55" if len(asked) == 2 else None

    assert scheduler.call(["sbatch"], unsure=unsure, sleep=lambda _: None) == "55"
    assert commands.count == 2


@pytest.mark.parametrize("word", ["QOSMaxSubmitJobPerUserLimit", "AssocMaxSubmitJobLimit", "AssocGrpSubmitJobsLimit"])
def test_a_limit_of_the_site_is_not_waited_for(commands: Commands, word: str) -> None:
    commands.put("sbatch", [f"sbatch: error: {word}"] * 9)
    with pytest.raises(scheduler.Full, match=word):
        scheduler.call(["sbatch"], sleep=lambda _: pytest.fail("waited"))
    assert commands.count == 1


def test_other_refusals_are_passed_on_in_sbatchs_words(commands: Commands) -> None:
    commands.put("sbatch", ["sbatch: error: Invalid account or account/partition combination specified"] * 9)
    with pytest.raises(UserError, match="sbatch: Invalid account or account/partition"):
        scheduler.call(["sbatch"])
    assert scheduler.refusal("#!/bin/bash\n") == "Invalid account or account/partition combination specified"
    with pytest.raises(UserError, match="nosuchcommand: not found"):
        scheduler.call(["nosuchcommand"])


def test_limits_and_silence_are_no_refusal(commands: Commands) -> None:
    commands.put("sbatch", ["sbatch: error: QOSMaxSubmitJobPerUserLimit"])
    assert scheduler.refusal("#!/bin/bash\n") is None
    commands.calls.write_text("")
    commands.put("sbatch", [BUSY] * 9)
    assert scheduler.refusal("#!/bin/bash\n", patience_s=0) is None


def test_max_array_size_is_read_and_has_a_fallback(commands: Commands) -> None:
    commands.put("scontrol", [], output="MaxArraySize            = 4001")
    assert scheduler.max_array() == 4001
    commands.put("scontrol", ["scontrol: error: broken"] * 9)
    commands.calls.write_text("")
    assert scheduler.max_array() == 1001
