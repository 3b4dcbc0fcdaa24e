"""Several people in one project folder: what one makes, the others' jobs may write.

With `shared_group` in the site file, everything is made with umask 0002 below folders that belong to the group and hand
it on (setgid). Standard library only.
"""

from __future__ import annotations

import grp
import os
import stat
from contextlib import suppress
from pathlib import Path

from semiocity.errors import UserError

UMASK = 0o002
SHELL = ["umask 0002", "export SLURM_UMASK=0002"]
"""The same in a batch script; srun takes the ranks' umask from the variable."""


def follow_site_file(file: Path = Path("jobs/cluster.toml")) -> None:
    """Umask 0002 for whatever this process writes, where the site file names a shared group."""
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return
    if "shared_group" in text:
        import tomllib

        with suppress(tomllib.TOMLDecodeError):  # whoever needs the file says what is wrong with it
            if tomllib.loads(text).get("shared_group"):
                os.umask(UMASK)


def share(group: str, *folders: Path) -> None:
    """Make `folders`, and those above them up to the project's, the group's own; from here on, umask 0002.

    Folders that are somebody else's are left as they are when we may write to them. Raises UserError when the group
    does not exist, when we are not in it, or when a folder is closed to us.
    """
    gid = _gid(group)
    os.umask(UMASK)
    for folder in folders:
        for place in (folder.parent, folder):
            place.mkdir(parents=True, exist_ok=True)
            _open(place, gid, group)


def _open(folder: Path, gid: int, group: str) -> None:
    found = folder.stat()
    wanted = stat.S_IMODE(found.st_mode) | stat.S_ISGID | stat.S_IRWXG
    if (found.st_gid, stat.S_IMODE(found.st_mode)) == (gid, wanted):
        return
    if os.geteuid() not in (0, found.st_uid):
        if not os.access(folder, os.W_OK | os.X_OK):
            raise UserError(
                f"{folder}: not writable for you; its owner (user {found.st_uid}) must run `chgrp -R {group} {folder} "
                f"&& chmod -R g+rwX {folder} && find {folder} -type d -exec chmod g+s {{}} +`"
            )
        return
    try:
        os.chown(folder, -1, gid)
        folder.chmod(wanted)
    except PermissionError:
        raise UserError(
            f"{folder}: cannot be shared: shared_group is {group!r}, but you are not a member of it (`id` shows yours)"
        ) from None


def _gid(group: str) -> int:
    if group.isdigit():
        return int(group)
    try:
        return grp.getgrnam(group).gr_gid
    except KeyError:
        raise UserError(f"shared_group: there is no group {group!r} on this machine (`id` shows yours)") from None
