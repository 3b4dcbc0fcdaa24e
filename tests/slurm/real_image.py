"""The real Apptainer image for tests: built by the project's own code, kept in the user's cache by its content.

No registry of container images is needed. The base is a minimal Debian 12 from Debian's packages, unpacked by a normal
user; root builds as the user BUILDER. `python tests/slurm/real_image.py` fills the cache beforehand.
"""

from __future__ import annotations

import fcntl
import os
import pwd
import shutil
import subprocess
import tempfile
from pathlib import Path

from semiocity.files import digest
from semiocity.launch import container

RECIPE = Path(__file__).parents[2] / "containers"
BUILDER = "semiocity-build"
# A minimal Debian 12 that the calling user owns, without devices, which nobody but root may make. Anything that the
# user may not read would stop Apptainer's copy. python3 is left to the definition's %post, as for any base without it.
# A mirror may be a snapshot that is older than its index wants to be; signatures are checked all the same.
MAKE_BASE = r"""
set -eo pipefail
umask 022
cd "$1"
mkdir tree
mmdebstrap --quiet --mode=unshare --variant=apt --include=ca-certificates \
    --aptopt='Acquire::Check-Valid-Until "false"' bookworm - |
  tar --extract --exclude='./dev/*' --no-same-owner --directory tree
chmod -R u+rwX tree
mv tree "$2"
"""
KEPT_IMAGES = 4
"""Of both variants, for two checkouts."""


def builder() -> pwd.struct_passwd:
    """The account that builds: this user's own, BUILDER for root. KeyError when root has no such account yet."""
    return pwd.getpwnam(BUILDER) if os.geteuid() == 0 else pwd.getpwuid(os.geteuid())


def cached_image(variant: str = "gpu") -> Path:
    """The image of this checkout's containers/, built first if need be: minutes then, for the variant "cpu" half a one;
    instantly afterwards."""
    account = builder()
    cache = Path(account.pw_dir) / ".cache" / "semiocity"
    _run_as(account, ["mkdir", "-p", str(cache)])
    with (cache / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another checkout's tests may be building
        base = cache / f"base-{digest(MAKE_BASE, 8)}"
        overrides = {"BOOTSTRAP": "localimage", "BASE": str(base), "VARIANT": variant}
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
        for other in set(cache.glob("base-*")) - {base}:
            shutil.rmtree(other, ignore_errors=True)
    return image


def _make_base(account: pwd.struct_passwd, base: Path) -> None:
    partial = Path(tempfile.mkdtemp(prefix="base-", dir=base.parent))
    os.chown(partial, account.pw_uid, account.pw_gid)
    try:
        _run_as(account, ["bash", "-c", MAKE_BASE, "make-base", str(partial), str(base)])
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _run_as(account: pwd.struct_passwd, argv: list[str]) -> None:
    prefix = ["runuser", "-u", account.pw_name, "--"] if os.geteuid() == 0 else []
    environment = {**os.environ, "HOME": account.pw_dir, "USER": account.pw_name, "TMPDIR": "/tmp"}
    subprocess.run([*prefix, *argv], env=environment, check=True, cwd="/", timeout=900)


if __name__ == "__main__":
    for variant in container.LOCKS:
        print(cached_image(variant))
