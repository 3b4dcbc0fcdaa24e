"""Run folders: attempts never collide, snapshots are whole, logs are read from their end."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from semiocity.errors import UserError
from semiocity.launch.runs import Attempt, attempts, last_line, new_attempt, snapshot


def test_attempts_of_two_submissions_at_once_are_different(tmp_path: Path) -> None:
    made: list[Attempt] = []
    threads = [threading.Thread(target=lambda: made.append(new_attempt(tmp_path))) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(attempt.number for attempt in made) == list(range(1, 17))
    assert [attempt.number for attempt in attempts(tmp_path)] == list(range(1, 17))


def test_snapshot_is_a_whole_package_made_once(tmp_path: Path) -> None:
    code = snapshot(tmp_path)
    assert (code / "semiocity" / "cli.py").read_bytes() == (
        Path(snapshot.__code__.co_filename).parents[1] / "cli.py"
    ).read_bytes()
    assert not list(code.rglob("__pycache__"))
    before = code.stat().st_mtime_ns
    assert snapshot(tmp_path) == code
    assert code.stat().st_mtime_ns == before
    assert [p.name for p in (tmp_path / "code").iterdir()] == [code.name]


def test_a_compiled_snapshot_is_not_compiled_again_and_names_its_own_place(tmp_path: Path) -> None:
    code = snapshot(tmp_path, compiled=True)
    ask = (
        "import semiocity.files as f, importlib.util as u, marshal, pathlib\n"
        "cached = pathlib.Path(u.cache_from_source(f.__file__)).read_bytes()\n"
        "print(f.__file__, marshal.loads(cached[16:]).co_filename, int.from_bytes(cached[4:8], 'little'))"
    )
    environment = {**os.environ, "PYTHONPATH": str(code), "PYTHONSAFEPATH": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run([sys.executable, "-c", ask], env=environment, capture_output=True, text=True, check=True)
    file = str(code / "semiocity/files.py")
    assert done.stdout.split() == [file, file, "1"]  # 1: hash-based, unchecked


def test_unreadable_attempts_are_explained(tmp_path: Path) -> None:
    attempt = new_attempt(tmp_path)
    with pytest.raises(UserError, match="submission broke off"):
        attempt.read()
    attempt.file.write_text('{"format": 99}')
    with pytest.raises(UserError, match="format 99"):
        attempt.read()
    attempt.file.write_text('{"format":')
    with pytest.raises(UserError, match="damaged JSON"):
        attempt.read()


def test_last_line(tmp_path: Path) -> None:
    log = tmp_path / "log"
    assert last_line(log) == ""
    log.write_bytes(b"first\n" * 5000 + b"\xffthe end\n\n  \n")
    assert last_line(log).endswith("the end")
