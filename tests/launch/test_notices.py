"""Notices: a webhook on loopback hears of the end of a run; a dead one harms nothing; the URL is written nowhere."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from semiocity.config import Notify
from semiocity.errors import UserError
from semiocity.launch import causes, ends, notices, task
from semiocity.launch.preempt import StopFlag
from semiocity.launch.runs import Attempt, new_attempt
from semiocity.launch.world import World

ROOT = Path(__file__).parents[2]
SETS = ["--set", "source.size=[32, 32]", "--set", "source.train=20", "--set", "source.val=4", "--set", "shard_rows=8"]


@pytest.fixture
def heard() -> Iterator[tuple[str, list[dict]]]:
    """Address of a webhook, and what it was told."""
    told: list[dict] = []

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def do_POST(self) -> None:
            told.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(500 if self.path.endswith("broken") else 204)
            self.end_headers()

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}/secret-hook", told
    server.shutdown()
    server.server_close()


def test_the_end_of_a_run_is_told_once_and_its_failure_too(heard: tuple[str, list[dict]], tmp_path: Path) -> None:
    url, told = heard
    for name in ("jobs", "shards"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("cluster.toml"))
    (tmp_path / "jobs/cluster.toml").write_text('[notify]\nwebhook_env = "MY_HOOK"\n')

    def semiocity(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "semiocity", *words]
        return subprocess.run(command, cwd=tmp_path, env={**os.environ, "MY_HOOK": url}, capture_output=True, text=True)

    done = semiocity("pack", "shards/city.toml", *SETS)
    assert done.returncode == 0, done.stderr
    assert [(t["kind"], t["state"], t["dataset"]) for t in told] == [("pack", "done", "city")]
    assert told[0]["text"] == "semiocity: base of city (pack-city) is done"
    shard = next((tmp_path / "data/city/columns/base").glob("*/00000/00000001.tar"))
    shard.write_bytes(shard.read_bytes()[:1000])
    assert semiocity("caption", "jobs/caption.toml").returncode != 0
    assert [t["state"] for t in told] == ["done", "failed"]
    assert "failed: " in told[1]["text"] and told[1]["reason"]
    for path in tmp_path.rglob("*"):
        if path.is_file():
            assert b"secret-hook" not in path.read_bytes(), path


@pytest.mark.parametrize("address", ["http://127.0.0.1:9/dead", "not an address", "broken"])
def test_a_dead_webhook_is_one_line_without_its_url(
    address: str, heard: tuple[str, list[dict]], capsys: pytest.CaptureFixture[str]
) -> None:
    url = heard[0] + "/broken" if address == "broken" else address
    assert notices.send(url, {"text": "x"}, 2.0) is False
    error = capsys.readouterr().err
    assert error.startswith("the webhook took no notice: ") and error.count("\n") == 1
    assert url not in error


def test_only_the_task_that_ends_the_run_tells(heard: tuple[str, list[dict]], monkeypatch: pytest.MonkeyPatch) -> None:
    url, told = heard
    monkeypatch.setenv("MY_HOOK", url)
    data: dict[str, Any] = {
        "run": "/r/x",
        "dataset": "/d/y",
        "column": "",
        "kind": "train",
        "tasks": [[]],
        "merge": None,
    }
    data["notify"] = notices.settings(Notify(webhook_env="MY_HOOK"))
    notices.ended(data, 0, "done")
    array = {**data, "tasks": [[0], [1]], "merge": 2}
    notices.ended(array, 0, "failed", "a task among others")
    notices.ended(array, 2, "failed", "shards 1 are missing")
    notices.ended({**data, "tasks": [[0], [1]]}, 0, "done")  # nobody can tell which of them is the last
    notices.ended({key: value for key, value in data.items() if key != "notify"}, 0, "done")  # an older attempt
    assert [t["state"] for t in told] == ["done", "failed"]


def test_the_place_of_the_url_is_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "hook"
    notify = Notify(webhook_file=file)
    assert notices.check(notify)[0].level == "warning" and notices.binds(notify) == ()
    file.write_text("http://127.0.0.1:9/x\n")
    file.chmod(0o644)
    assert "chmod 600" in notices.check(notify)[0].todo
    file.chmod(0o600)
    assert notices.check(notify)[0].level == "ok" and notices.binds(notify) == (file,)
    assert notices.url_of(notices.settings(notify)) == "http://127.0.0.1:9/x"
    monkeypatch.delenv("MY_HOOK", raising=False)
    assert "export MY_HOOK" in notices.check(Notify(webhook_env="MY_HOOK"))[0].todo
    assert notices.url_of(notices.settings(Notify(webhook_env="MY_HOOK"))) is None


def test_a_failure_is_told_when_the_job_does_not_come_back(
    heard: tuple[str, list[dict]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    url, told = heard
    monkeypatch.setenv("MY_HOOK", url)
    places = {**notices.settings(Notify(webhook_env="MY_HOOK")), "retries": {"crash": 1, "out_of_memory": 0}}
    data: dict[str, Any] = {
        "run": "/r/x",
        "dataset": "/d/y",
        "column": "",
        "kind": "train",
        "tasks": [[]],
        "merge": None,
    }
    data |= {"notify": places, "executor": "slurm", "cluster": {"requeue": True}}
    attempt = Attempt(tmp_path, 1)
    attempt.folder.mkdir(parents=True)

    def fails(restart: int, cause: str, rank: int = 0, again: bool = True, **changed: Any) -> int:
        """Notices after a rank failed and, as the batch script does it, its end was noted."""
        told.clear()
        world = World(rank, 2, rank, 1, "n1", 1, "7", restart)
        ends.note(attempt, "7", restart, cause, "why", "n1", rank, again)
        notices.failed({**data, **changed}, 0, attempt, world, cause, "why", again)
        return len(told)

    assert fails(0, "crash", rank=1) == 0, "the job comes back once"
    with ends.end_file(attempt, "7", 0).open("a") as file:
        file.write("budget=crash\n")
    assert fails(1, "crash", rank=1) == 1, "and not again; the rank whose word counts tells"
    assert fails(1, "crash", rank=0) == 0, "the others' words are its echo"
    assert fails(2, "refused") == 1
    assert fails(3, "out_of_memory") == 1, "no budget"
    assert fails(4, "crash", again=False) == 1, "it would end the same way"
    assert fails(5, "preemption", cluster={"requeue": False}) == 1, "a site without requeueing"


def trained(tmp_path: Path, **more: Any) -> tuple[dict[str, Any], Attempt]:
    """A training's attempt with a webhook, as a task reads it."""
    places = {**notices.settings(Notify(webhook_env="MY_HOOK", timeout_s=60)), "retries": {"time_limit": 1, "hung": 1}}
    data: dict[str, Any] = {
        "run": str(tmp_path / "train-city"),
        "dataset": str(tmp_path),
        "column": "",
        "revision": "",
        "kind": "train",
    }
    data |= {"tasks": [[]], "merge": None, "jobs": ["7"], "notify": places, "executor": "slurm", "job": {}}
    data |= {"cluster": {"requeue": True}, **more}
    attempt = new_attempt(tmp_path / "train-city")
    (attempt.folder / "ends").mkdir()
    attempt.write(data)
    return {**data, "attempt": attempt.number}, attempt


def test_a_training_that_stops_for_good_tells(
    heard: tuple[str, list[dict]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    url, told = heard
    monkeypatch.setenv("MY_HOOK", url)
    monkeypatch.setattr(task, "check_node", lambda data: None)

    def stops(reason: str, restart: int = 0, **more: Any) -> tuple[int, Attempt]:
        """Notices of a training that saves because of a signal, and its attempt."""
        told.clear()
        attempt = trained(tmp_path, **more)[1]
        monkeypatch.setattr(task, "from_environment", lambda: World(0, 1, 0, 1, "n1", 1, "7", restart))
        for earlier in range(restart):
            (attempt.folder / "ends" / f"7.{earlier}").write_text("cause=time_limit\nbudget=time_limit\n")

        def work(data: dict[str, Any], index: int, world: World, stop: StopFlag, report: Any) -> bool:
            stop.reason = reason
            return False

        monkeypatch.setitem(task.KINDS, "train", work)
        with pytest.raises(SystemExit, match="85"):
            task.main(str(attempt.run), attempt.number, 0)
        assert attempt.requeue_file("7", restart).exists()
        return len(told), attempt

    assert stops("SIGUSR2")[0] == 0, "it comes back"
    assert stops("SIGUSR2", restart=1)[0] == 1, "the budget is used up"
    assert told[0]["state"] == "failed" and "reached its time limit, saved, and does not come back" in told[0]["text"]
    assert stops("SIGUSR2", cluster={"requeue": False})[0] == 1, "a site without requeueing"
    assert stops("SIGTERM")[0] == 1, "no budget for preemptions here"
    assert stops("SIGINT")[0] == 0, "a person"
    data, attempt = trained(tmp_path, cluster={"requeue": False})
    attempt.cancelled.touch()
    told.clear()
    notices.stopped(data, 0, attempt, World(0, 1, 0, 1, "n1", 1, "7", 0), causes.TIME_LIMIT)
    assert not told, "a person, too"


def test_of_several_ranks_one_tells_and_the_others_stay_until_it_has(
    heard: tuple[str, list[dict]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    url, told = heard
    monkeypatch.setenv("MY_HOOK", url)
    data, attempt = trained(tmp_path, cluster={"requeue": False})
    folder = attempt.folder / "ranks" / "7.0"
    worlds = [World(rank, 2, rank, 1, "n1", 1, "7", 0, folder) for rank in (0, 1)]
    other = threading.Thread(target=notices.stopped, args=(data, 0, attempt, worlds[1], causes.TIME_LIMIT))
    other.start()
    assert not told and other.is_alive()
    notices.stopped(data, 0, attempt, worlds[0], causes.TIME_LIMIT)
    other.join(30)
    assert not other.is_alive() and len(told) == 1


def test_a_hang_is_noted_with_its_cause_and_told_when_it_is_the_last(
    heard: tuple[str, list[dict]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    url, told = heard
    monkeypatch.setenv("MY_HOOK", url)
    data, attempt = trained(tmp_path)

    def hangs(restart: int, again: bool = True) -> int:
        told.clear()
        for rank in (1, 0):
            world = World(rank, 2, rank, 1, "n1", 1, "7", restart, attempt.folder / "ranks" / f"7.{restart}")
            notices.hung(data, 0, attempt, world)("no step for 9 s", again)
        return len(told)

    assert hangs(0) == 0
    end = ends.end_file(attempt, "7", 0)
    assert {"cause": "hung", "reason": "no step for 9 s", "host": ""}.items() <= ends.read(end).items()
    end.open("a").write("budget=hung\n")
    assert hangs(1) == 1 and "failed: hung: no step for 9 s" in told[0]["text"]
    assert hangs(2, again=False) == 1
    assert ends.read(ends.end_file(attempt, "7", 2))["again"] == "no", "the batch script must not take it for a crash"


def test_the_gate_at_which_a_pipeline_ends_tells_and_those_behind_it_do_not(
    heard: tuple[str, list[dict]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    url, told = heard
    monkeypatch.setenv("MY_HOOK", url)
    monkeypatch.setattr(task, "check_node", lambda data: None)
    attempt = trained(tmp_path, kind="pipeline", tasks=[[], [], []], jobs=["", "7", "8"])[1]
    for index in (1, 2):
        monkeypatch.setattr(task, "from_environment", lambda job=f"{6 + index}": World(0, 1, 0, 1, "n1", 1, job, 0))

        def gate(data: dict[str, Any], index: int, world: World, stop: StopFlag, report: Any) -> bool:
            raise UserError(f"step {index} was not started: pack is not complete")

        monkeypatch.setitem(task.KINDS, "pipeline", gate)
        with pytest.raises(SystemExit):
            task.main(str(attempt.run), attempt.number, index)
    assert [t["text"].rpartition("failed: ")[2] for t in told] == ["step 1 was not started: pack is not complete"]
    notices.ended({**attempt.read(), "attempt": 1}, 2, "done")
    assert len(told) == 1, "its last steps are runs, and tell of themselves"
