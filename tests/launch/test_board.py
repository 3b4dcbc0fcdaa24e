"""TensorBoard is reachable with the printed address, and with nothing else."""

import os
import re
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from semiocity.errors import UserError
from semiocity.launch import board


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
    with pytest.raises(UserError, match="no run has TensorBoard events yet"):
        board.serve(tmp_path)
