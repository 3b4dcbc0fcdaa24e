"""How much memory is left: the least of what the kernel and each control group around us say."""

from pathlib import Path

import pytest

from semiocity.train import host_memory

MEMINFO = "MemTotal:       100 kB\nMemFree:         10 kB\nMemAvailable:    90 kB\n"


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "meminfo").write_text(MEMINFO)
    (tmp_path / "own").write_text("")
    monkeypatch.setattr(host_memory, "MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(host_memory, "OWN_GROUPS", tmp_path / "own")
    monkeypatch.setattr(host_memory, "GROUPS", tmp_path / "groups")
    return tmp_path


def group(folder: Path, names: tuple[str, str], limit: str, used: int, stat: str) -> None:
    folder.mkdir(parents=True)
    (folder / names[0]).write_text(f"{limit}\n")
    (folder / names[1]).write_text(f"{used}\n")
    (folder / "memory.stat").write_text(stat)


def test_the_kernel_alone(machine: Path) -> None:
    assert host_memory.available_bytes() == 90 * 1024


def test_a_job_in_version_2(machine: Path) -> None:
    """The job's limit is the parent's; pages of files that can be given up do not count."""
    v2 = ("memory.max", "memory.current")
    (machine / "own").write_text("0::/slurm/job_7/step_0\n")
    group(machine / "groups" / "slurm" / "job_7", v2, "50000", 30000, "anon 20000\ninactive_file 8000\n")
    group(machine / "groups" / "slurm" / "job_7" / "step_0", v2, "max", 30000, "anon 20000\ninactive_file 8000\n")
    assert host_memory.available_bytes() == 50000 - 30000 + 8000


def test_a_job_in_version_1(machine: Path) -> None:
    v1 = ("memory.limit_in_bytes", "memory.usage_in_bytes")
    (machine / "own").write_text("9:cpuset:/slurm\n5:cpu,memory:/slurm/job_7\n0::/\n")
    stat = "cache 1\ninactive_file 99\ntotal_inactive_file 5\n"
    group(machine / "groups" / "memory" / "slurm" / "job_7", v1, "4000", 3000, stat)
    assert host_memory.available_bytes() == 4000 - 3000 + 5


def test_what_is_over_its_limit_has_nothing(machine: Path) -> None:
    (machine / "own").write_text("0::/a\n")
    group(machine / "groups" / "a", ("memory.max", "memory.current"), "100", 200, "inactive_file 0\n")
    assert host_memory.available_bytes() == 0


def test_this_machine_has_some() -> None:
    assert host_memory.available_bytes() > 10**6
