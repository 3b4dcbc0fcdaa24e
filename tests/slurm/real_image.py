"""The real Apptainer image for tests: built by the project's own code, kept in the user's cache by its content.

No registry of container images is needed. The base is a minimal Debian 12 from Debian's packages, unpacked by a normal
user; root builds as the user BUILDER.
"""

from __future__ import annotations

import fcntl
import os
import pwd
import shutil
import subprocess
import tempfile
from pathlib import Path

from semiocity.launch import container

RECIPE = Path(__file__).parents[2] / "containers"
BUILDER = "semiocity-build"
# Packages of the base. python3 is left to the definition's %post, as for any base without it.
BASE_PACKAGES = "ca-certificates"
KEPT_IMAGES = 2


def builder() -> pwd.struct_passwd:
    """The account that builds: this user's own, BUILDER for root. KeyError when root has no such account yet."""
    return pwd.getpwnam(BUILDER) if os.geteuid() == 0 else pwd.getpwuid(os.geteuid())


def cached_image() -> Path:
    """The image of this checkout's containers/, built first if need be: minutes then, instantly afterwards."""
    account = builder()
    cache = Path(account.pw_dir) / ".cache" / "semiocity"
    _run_as(account, ["mkdir", "-p", str(cache)])
    with (cache / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another checkout's tests may be building
        base = cache / "base-bookworm"
        overrides = {"BOOTSTRAP": "localimage", "BASE": str(base)}
        image = container.image_path(cache, container.recipe_digest(RECIPE, overrides))
        if not image.exists():
            if not base.exists():
                _make_base(account, base)
            certificates = os.environ.get("SSL_CERT_FILE")
            container.build(
                cache,
                RECIPE,
                overrides=overrides,
                certificates=Path(certificates) if certificates else None,
                user=account.pw_name if os.geteuid() == 0 else None,
            )
        os.utime(image)
        for old in sorted(cache.glob("semiocity-*.sif"), key=lambda path: path.stat().st_mtime)[:-KEPT_IMAGES]:
            old.unlink()
    return image


def _make_base(account: pwd.struct_passwd, base: Path) -> None:
    """A Debian 12 tree that `account` owns: without devices, which nobody but root may make."""
    partial = Path(tempfile.mkdtemp(prefix="base-", dir=base.parent))
    os.chown(partial, account.pw_uid, account.pw_gid)
    # Anything that the user may not read would stop Apptainer's copy: the tree is unpacked as the user's own.
    script = (
        'set -eo pipefail; umask 022; cd "$1"; mkdir tree\n'
        'mmdebstrap --quiet --mode=unshare --variant=apt --include="$2" bookworm - '
        "| tar --extract --exclude='./dev/*' --no-same-owner --directory tree\n"
        'chmod -R u+rwX tree; mv tree "$3"'
    )
    try:
        _run_as(account, ["bash", "-c", script, "make-base", str(partial), BASE_PACKAGES, str(base)])
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _run_as(account: pwd.struct_passwd, argv: list[str]) -> None:
    prefix = ["runuser", "-u", account.pw_name, "--"] if os.geteuid() == 0 else []
    environment = {**os.environ, "HOME": account.pw_dir, "USER": account.pw_name, "TMPDIR": "/tmp"}
    subprocess.run([*prefix, *argv], env=environment, check=True, cwd="/", timeout=900)
