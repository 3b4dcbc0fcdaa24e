"""Two people in one project folder: real users, real jobs, everything writable for both."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from semiocity.errors import UserError
from semiocity.files import adopt_folder, write_json
from semiocity.launch import sharing

ROOT = Path(__file__).parents[2]
GROUP, ANNA, BEN = 61000, 61001, 61002
SETS = ["--set", "source.size=[32, 32]", "--set", "source.train=8", "--set", "source.val=4", "--set", "shard_rows=4"]
# They may read everything, since the interpreter may lie in somebody's home folder; to write they need the right to.
CAPABILITY = "-all,+dac_read_search"


def as_user(uid: int, *command: str) -> list[str]:
    caps = [f"--inh-caps={CAPABILITY}", f"--ambient-caps={CAPABILITY}", f"--bounding-set={CAPABILITY}"]
    who = ["setpriv", f"--reuid={uid}", f"--regid={uid}", f"--groups={GROUP}", *caps]
    return [*who, "env", "HOME=/tmp", f"USER=user{uid}", "sh", "-c", 'umask 077; exec "$0" "$@"', *command]


def needs_two_users() -> None:
    if os.geteuid() != 0 or shutil.which("setpriv") is None:
        pytest.skip("only root, with setpriv, can be two users")
    probe = subprocess.run(as_user(ANNA, sys.executable, "-c", ""), capture_output=True, text=True)
    if probe.returncode:
        pytest.skip(f"another user cannot run this Python: {probe.stderr.strip()}")


def test_two_users_work_on_one_project(tmp_path: Path) -> None:
    """What Anna made, Ben's jobs go on with, and the other way round; both have umask 077."""
    needs_two_users()
    project = tmp_path / "project"
    project.mkdir()
    for name in ("jobs", "shards"):
        shutil.copytree(ROOT / name, project / name, ignore=shutil.ignore_patterns("cluster.toml"))
    (project / "jobs/cluster.toml").write_text(f'executor = "local"\nshared_group = "{GROUP}"\n')
    os.chown(project, ANNA, GROUP)
    project.chmod(0o2770)

    def run(uid: int, *arguments: str) -> None:
        command = as_user(uid, sys.executable, "-m", "semiocity", *arguments)
        done = subprocess.run(command, cwd=project, capture_output=True, text=True)
        assert done.returncode == 0, f"user {uid}: {arguments}\n{done.stdout}\n{done.stderr}"

    run(ANNA, "pack", "shards/city.toml", *SETS)
    run(BEN, "caption", "jobs/caption.toml")
    receipts = sorted((project / "data/city/columns/caption").glob("*/00000/*.json"))
    assert {path.stat().st_uid for path in receipts} == {BEN}
    receipts[1].unlink()
    run(ANNA, "caption", "jobs/caption.toml")  # in the run and the column that Ben began
    assert [path.stat().st_uid for path in receipts] == [BEN, ANNA, BEN]
    assert len(list((project / "runs/caption-city/attempts").iterdir())) == 2
    run(
        BEN, "pack", "shards/city.toml", *SETS[:2], "--set", "source.train=12", *SETS[4:], "--anew"
    )  # Ben's plan beside Anna's
    closed = [
        f"{path.relative_to(project)} {stat.filemode(found.st_mode)} {found.st_uid}:{found.st_gid}"
        for top in ("data", "runs")
        for path in (project / top).rglob("*")
        if "__pycache__" not in path.parts
        and (found := path.stat())
        and (found.st_gid != GROUP or not found.st_mode & stat.S_IWGRP)
    ]
    assert not closed, closed


def test_a_folder_is_opened_and_hands_on_its_group(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        run = tmp_path / "runs" / "r"
        sharing.share(str(os.getegid()), run)
        assert stat.S_IMODE(run.stat().st_mode) & 0o2070 == 0o2070
        assert run.parent.stat().st_mode & stat.S_ISGID
        write_json(run / "a" / "b.json", {})
        assert stat.S_IMODE((run / "a" / "b.json").stat().st_mode) == 0o664
        assert stat.S_IMODE((run / "a").stat().st_mode) & 0o070 == 0o070
        private = run / "private"
        private.mkdir(mode=0o700)
        adopt_folder(private)
        assert stat.S_IMODE(private.stat().st_mode) == 0o2775
    finally:
        os.umask(before)


def test_the_site_file_decides_the_umask_of_every_verb(tmp_path: Path) -> None:
    file = tmp_path / "cluster.toml"
    before = os.umask(0o077)
    try:
        for text, expected in [("", 0o077), ("# shared_group\n", 0o077), ("not toml shared_group", 0o077)]:
            file.write_text(text)
            sharing.follow_site_file(file)
            assert os.umask(0o077) == expected
        file.write_text('shared_group = "users"\n')
        sharing.follow_site_file(file)
        assert os.umask(0o077) == 0o002
    finally:
        os.umask(before)


def test_an_unknown_group_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no group 'nobody-has-this'"):
        sharing.share("nobody-has-this", tmp_path)


def test_a_group_that_one_is_not_in_and_a_folder_that_is_closed(tmp_path: Path) -> None:
    needs_two_users()
    (tmp_path / "hers").mkdir(mode=0o755)
    (tmp_path / "his").mkdir()
    os.chown(tmp_path / "his", BEN, BEN)
    tmp_path.chmod(0o777)
    code = (
        "import sys; from pathlib import Path; from semiocity.launch import sharing\n"
        "from semiocity.errors import UserError\n"
        "try: sharing.share(sys.argv[1], Path(sys.argv[2]))\n"
        "except UserError as error: print(error)"
    )

    def said(group: int, folder: str) -> str:
        command = as_user(BEN, sys.executable, "-c", code, str(group), str(tmp_path / folder / "x"))
        return subprocess.run(command, capture_output=True, text=True, cwd=ROOT).stdout

    assert "not a member" in said(4, "his")
    assert "must run `chgrp -R" in said(GROUP, "hers")
