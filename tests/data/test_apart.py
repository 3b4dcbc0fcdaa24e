"""A picture that kills the process that reads it costs one row: the next attempt at its shard rejects it by name."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from make_images import folder_recipe, jpeg, tree, write_files

from semiocity.data import apart, images
from semiocity.data.columns import Dataset
from semiocity.data.lease import Owner
from semiocity.data.manifest import merge
from semiocity.data.pack import pack_shards
from semiocity.data.plan import Plan, make_plan
from semiocity.data.verify import verify
from semiocity.errors import OutOfMemory, UserError

ROWS = 9


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    """Nine pictures in two shards; the bytes of the one that kills end in b'deadly'."""
    files = {f"{i}.jpg": jpeg(seed=i) for i in range(ROWS)}
    files["4.jpg"] += b"deadly"
    return make_plan(folder_recipe(write_files(tmp_path / "in", files)), tmp_path / "out")


def harm(monkeypatch: pytest.MonkeyPatch, action: Callable[[], object]) -> None:
    """Let decoding the deadly picture do something, in this process and in its children."""
    decode = images.decode_image

    def decoded(data: bytes, max_pixels: int) -> images.Picture:
        if data.endswith(b"deadly"):
            action()
        return decode(data, max_pixels)

    monkeypatch.setattr(images, "decode_image", decoded)


def die(number: int) -> Callable[[], None]:
    return lambda: os.kill(os.getpid(), number)


def rejected(plan: Plan) -> dict[str, tuple[str, str]]:
    merge(plan.dataset, "base", plan.revision)
    Dataset.open(plan.dataset)
    assert verify(plan.dataset) == []
    lines = (plan.path(0).folder).glob("**/*.json")
    found = {}
    for path in lines:
        for item in json.loads(path.read_text()).get("rejected", []) if path.stem.isdigit() else []:
            found[item["id"]] = (item["reason"], item["detail"])
    return found


def test_the_picture_that_crashes_is_rejected_and_the_others_are_packed(
    plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    harm(monkeypatch, die(signal.SIGSEGV))
    assert pack_shards(plan, range(plan.shards), Owner.here(), careful=True)
    assert rejected(plan) == {"4.jpg": ("kills_process", "killed its process: SIGSEGV")}
    assert sum(json.loads(plan.path(shard).receipt.read_text())["rows"] for shard in range(plan.shards)) == ROWS - 1


def test_bytes_are_those_of_a_shard_that_nothing_happened_to(plan: Plan, tmp_path: Path) -> None:
    assert pack_shards(plan, range(plan.shards), Owner.here())
    usual = tree(plan.path(0).folder)
    for shard in range(plan.shards):
        plan.path(shard).receipt.unlink()
    assert pack_shards(plan, range(plan.shards), Owner.here(), careful=True)
    assert tree(plan.path(0).folder) == usual


def test_a_lease_that_a_dead_process_left_makes_the_next_attempt_careful(
    plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The usual course: a task dies of the picture, and whoever takes its shard finds the row."""
    harm(monkeypatch, die(signal.SIGSEGV))
    child = os.fork()
    if child == 0:
        pack_shards(plan, range(plan.shards), Owner.here())
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGSEGV
    left = [shard for shard in range(plan.shards) if plan.path(shard).lease.exists()]
    assert len(left) == 1
    seen: list[int] = []
    assert pack_shards(plan, range(plan.shards), Owner.here(), report=lambda facts: seen.append(facts.get("shard", -1)))
    assert seen[0] == left[0], "it comes first: this process has loaded nothing yet"
    assert rejected(plan).keys() == {"4.jpg"}
    assert not list(plan.path(0).parent.glob("*.lease")) and not list(plan.path(0).parent.glob(".*"))


def test_one_that_hangs_is_rejected_too(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    harm(monkeypatch, lambda: time.sleep(3600))
    monkeypatch.setattr(apart.one_by_one, "__defaults__", (5.0,))
    assert pack_shards(plan, range(plan.shards), Owner.here(), careful=True)
    assert rejected(plan) == {"4.jpg": ("kills_process", "took longer than 5 s")}


def test_a_kill_from_outside_is_not_the_pictures_fault_until_it_comes_again(
    plan: Plan, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(apart, "SETTLE_S", 0.0)
    once = tmp_path / "once"

    def killed_once() -> None:
        if not once.exists():
            once.touch()
            die(signal.SIGKILL)()

    harm(monkeypatch, killed_once)
    assert pack_shards(plan, range(plan.shards), Owner.here(), careful=True)
    assert rejected(plan) == {}
    for shard in range(plan.shards):
        plan.path(shard).receipt.unlink()
    harm(monkeypatch, die(signal.SIGKILL))
    with pytest.raises(OutOfMemory, match=r"4.*killed twice.*mem_gb"):
        pack_shards(plan, range(plan.shards), Owner.here(), careful=True)


def test_what_the_work_raises_comes_out_as_itself(plan: Plan, tmp_path: Path) -> None:
    (tmp_path / "in" / "4.jpg").unlink()
    with pytest.raises(UserError, match=r"4\.jpg"):
        pack_shards(plan, range(plan.shards), Owner.here(), careful=True)


def test_a_child_ends_with_its_parent(tmp_path: Path) -> None:
    code = (
        "import os, time\n"
        "from semiocity.data import apart\n"
        "def make(begin):\n"
        f"    open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid()))\n"
        "    time.sleep(600); yield None\n"
        "next(apart.one_by_one(make, 1, lambda row, reason: None))\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", code])
    file = tmp_path / "pid"
    until(lambda: file.exists() and file.read_text() != "")
    parent.kill()
    parent.wait()
    until(lambda: not alive(int(file.read_text())))


def until(condition: Callable[[], Any]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] not in "ZX"
    except OSError:
        return False
