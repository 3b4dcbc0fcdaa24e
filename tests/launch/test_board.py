"""TensorBoard is reachable with the printed address, and with nothing else."""

import json
import os
import re
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from semiocity.errors import UserError
from semiocity.files import write_json
from semiocity.launch import board
from semiocity.launch.runs import new_attempt


def test_secret_prefix_guards_the_board(tmp_path: Path) -> None:
    (tmp_path / "demo" / "tb").mkdir(parents=True)
    line, url = board.serve(tmp_path, host="login.cluster")
    port = re.search(r":(\d+)/", url)
    assert port
    assert line.startswith(f"ssh -N -o ExitOnForwardFailure=yes -L {port[1]}:127.0.0.1:{port[1]} ")
    assert line.endswith("@login.cluster")
    assert b"<title>TensorBoard" in urllib.request.urlopen(url, timeout=30).read()
    with pytest.raises(urllib.error.HTTPError) as error:
        urllib.request.urlopen(f"http://127.0.0.1:{port[1]}/", timeout=30)
    assert error.value.code == 404
    # The prefix is nowhere in the process list.
    secret = url.rstrip("/").rpartition("/")[2]
    assert secret.encode() not in Path(f"/proc/{os.getpid()}/cmdline").read_bytes()


def test_nothing_to_show_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no run has anything to show yet"):
        board.serve(tmp_path)


def test_the_printed_line_and_address_work_and_arrays_have_curves(tmp_path: Path) -> None:
    attempt = new_attempt(tmp_path / "runs" / "caption-city")
    attempt.write({"kind": "stage", "executor": "slurm", "tasks": [[0]], "merge": None, "jobs": ["1"], "job": {}})
    write_json(attempt.task_file(0), {"state": "done", "job": "1", "started": 1e9, "updated": 1e9 + 60})
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs" / "cluster.toml").write_text('login_host = "login.site.org"\n')
    command = [sys.executable, "-m", "semiocity", "board"]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True) as board:
        try:
            assert board.stdout is not None
            lines = [board.stdout.readline().strip() for _ in range(4)]
            port = re.search(r"-L (\d+):127\.0\.0\.1:\1 \S+@login\.site\.org$", lines[1])
            assert port, lines
            assert f":{port[1]}/" in lines[3]
            address = f"{lines[3]}data/plugin/scalars/tags"
            tags: dict[str, object] = {}
            for _ in range(300):  # it reads its folders in the background
                tags = json.loads(urllib.request.urlopen(address, timeout=60).read())
                if tags:
                    break
                time.sleep(0.2)
            assert "array/shards_done" in tags["caption-city/tb/stage-0001"]  # type: ignore[operator]
        finally:
            board.terminate()
