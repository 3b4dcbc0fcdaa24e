"""Do something to a dataset under the worst conditions: killed, without room, without the right to write.

Killed (SIGKILL) again and again at its 1st, 2nd, 3rd … step until it gets through.

A step is a write into a shard, or one of the audit events open, rename, remove, mkdir, rmdir. After each kill the
operation's own check must hold, and doing it again, in a new process, must leave what an undisturbed run leaves.

    python kill_points.py FOLDER every|NUMBER|full|read-only [OPERATION …]

With a NUMBER steps are sampled: those at and after every rename and every touch of a receipt, and NUMBER others, drawn
by the seed KILL_SEED (environment; printed). `full` tries it on a disk that is full sooner or later, `read-only` on
folders that may not be written. Operations: kill_operations.py.
"""

from __future__ import annotations

import errno
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

from kill_operations import OPERATIONS, Operation, undisturbed_tree
from make_images import tree

from semiocity.data.ustar import HashedFile

EVENTS = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir"}


def in_child(work: Callable[[], object]) -> int:
    """Run `work` in a fork; the signal that ended it, or 0."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    status = os.waitpid(child, 0)[1]
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0, "the operation failed"
    return os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0


def on_every_step(act: Callable[[str], None]) -> None:
    """From now on call `act` before each step, with what it is."""
    guard = threading.RLock()
    add = HashedFile.add

    def counted(self: HashedFile, *parts: bytes) -> None:
        for part in parts:
            with guard:
                act("write")
            add(self, part)
            self.flush()

    def hook(event: str, values: tuple[object, ...]) -> None:
        if event in EVENTS:
            with guard:
                act(f"{event} {values[0]}")

    HashedFile.add = counted  # type: ignore[method-assign]
    sys.addaudithook(hook)


def die_at(step: int) -> None:
    """Kill this process at its step number `step`, counted from 1."""
    left = step

    def count(_: str) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    on_every_step(count)


def steps_of(work: Callable[[], None]) -> list[str]:
    """What the steps of `work` are, done in a child."""
    reading, writing = os.pipe()

    def tell(step: str) -> None:
        os.write(writing, (step + "\n").encode())

    child = os.fork()
    if child == 0:
        os.close(reading)
        try:
            on_every_step(tell)
            work()
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, errors="replace") as lines:
        found = [line.rstrip("\n") for line in lines]
    os.waitpid(child, 0)
    return found


def chosen(steps: list[str], most: int) -> list[int]:
    """Numbers of the steps at which to kill: around renames and receipts always, others by chance."""
    seed = int(os.environ.get("KILL_SEED") or random.SystemRandom().randrange(2**32))
    print(f"KILL_SEED={seed}", file=sys.stderr)
    weighty = [i for i, step in enumerate(steps, 1) if step.startswith("os.rename") or _receipt(step)]
    always = {n for i in weighty for n in (i, i + 1) if n <= len(steps)}
    others = [i for i in range(1, len(steps) + 1) if i not in always]
    return sorted(always | set(random.Random(seed).sample(others, min(len(others), most))))


def _receipt(step: str) -> bool:
    name = step.rpartition("/")[2]
    return name[:1] == "." and ".json." in name and name[1:9].isdigit()


def try_all(operation: Operation, folder: Path, most: int | None) -> int:
    """Returns how often it killed."""
    template, place = folder / "template", folder / "place"
    operation.prepare(template)

    def fresh() -> None:
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(template, place)

    def work() -> None:
        operation.run(place)

    fresh()
    work()  # in this process, so that the children have nothing to import
    expected = undisturbed_tree(place)
    fresh()
    steps = steps_of(work)
    assert steps, "no steps seen"
    numbers = range(1, len(steps) + 1) if most is None else chosen(steps, most)
    kills = 0
    for number in numbers:
        fresh()

        def doomed(step: int = number) -> None:
            die_at(step)
            work()

        if in_child(doomed) == 0:
            continue  # threads: a run may have a step less
        kills += 1
        where = f"killed at step {number} of {len(steps)}: {steps[number - 1]}"
        try:
            in_child(lambda: operation.check(place))
        except AssertionError:
            raise AssertionError(f"{where}: the check failed") from None
        in_child(work)
        now = undisturbed_tree(place)
        differing = sorted(name for name in now.keys() | expected.keys() if now.get(name) != expected.get(name))
        assert not differing, f"{where}: after doing it again, {differing[:5]} differ"
    return kills


def try_full(operation: Operation, folder: Path) -> int:
    """With a little more room each time; returns how often that was not enough."""
    template, place = folder / "template", folder / "small" / "place"
    operation.prepare(template)
    shutil.copytree(template, place)
    operation.run(place)
    expected = undisturbed_tree(place)
    shutil.rmtree(place.parent)
    refused = 0
    for pages in (0, 1, 2, 3, 5, 8, 13, 21):
        place.parent.mkdir(exist_ok=True)
        mounted = _mount(place.parent, _pages(template) + pages)
        shutil.copytree(template, place)
        reading, writing = os.pipe()

        def cramped(limit: int = 0 if mounted else pages * 100 + 1, writing: int = writing) -> None:
            if limit:
                signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
                resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
            try:
                operation.run(place)
            except OSError as error:
                assert error.errno in (errno.ENOSPC, errno.EFBIG), error
                os.write(writing, b"x")

        in_child(cramped)
        os.close(writing)
        refused += len(os.read(reading, 1))
        os.close(reading)
        if mounted:
            subprocess.run(["mount", "-o", "remount,size=64m", str(place.parent)], check=True)
        in_child(lambda: operation.check(place))
        in_child(lambda: operation.run(place))
        now = undisturbed_tree(place)
        differing = sorted(name for name in now.keys() | expected.keys() if now.get(name) != expected.get(name))
        if mounted:
            subprocess.run(["umount", str(place.parent)], check=True)
        else:
            shutil.rmtree(place)
        assert not differing, f"{pages} pages of room, then done again: {differing[:5]} differ"
    return refused


def _mount(folder: Path, pages: int) -> bool:
    """A file system of so many pages of 4 KiB; False where we may not make one."""
    command = ["mount", "-t", "tmpfs", "-o", f"size={pages * 4096}", "tmpfs", str(folder)]
    return os.geteuid() == 0 and subprocess.run(command, capture_output=True).returncode == 0


def _pages(folder: Path) -> int:
    return sum(-(-path.stat().st_size // 4096) for path in folder.rglob("*") if path.is_file())


def try_read_only(operation: Operation, folder: Path) -> int:
    """As somebody who may not write: refused, and nothing is changed."""
    place = folder / "place"
    operation.prepare(place)
    before = tree(place)
    for path in [folder, *(path for path in folder.rglob("*") if path.is_dir())]:
        path.chmod(0o755 if os.geteuid() == 0 else 0o555)

    def refused() -> None:
        if os.geteuid() == 0:
            os.setgid(65534)
            os.setuid(65534)
        try:
            operation.run(place)
        except OSError as error:
            assert error.errno in (errno.EACCES, errno.EPERM, errno.EROFS), error
            assert error.filename, "the message names the file"
        else:
            raise AssertionError("it was written")

    in_child(refused)
    for path in [folder, *(path for path in folder.rglob("*") if path.is_dir())]:
        path.chmod(0o755)
    assert tree(place) == before
    return 1


def main(folder: str, how: str, *names: str) -> None:
    counts = {}
    for name in names or sorted(OPERATIONS):
        place = Path(folder) / name
        place.mkdir(mode=0o755)
        print(f"{name}, {how}", file=sys.stderr, flush=True)
        match how:
            case "full":
                counts[name] = try_full(OPERATIONS[name], place)
            case "read-only":
                counts[name] = try_read_only(OPERATIONS[name], place)
            case _:
                counts[name] = try_all(OPERATIONS[name], place, None if how == "every" else int(how))
    print(json.dumps(counts))


if __name__ == "__main__":
    main(*sys.argv[1:])
