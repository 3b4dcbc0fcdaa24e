"""The Apptainer image: its name, how it is built, and the command that runs a program in it.

The image holds dependencies only. Its name is a hash of what went into it, since two builds of the same things differ
in their bytes. Functions ending in `_argv` are pure: values in, list of strings out.
"""

from __future__ import annotations

import hashlib
import json
import os
import pwd as passwd
import re
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from semiocity import secrecy
from semiocity.errors import UserError
from semiocity.files import fsync_folder

DEFINITION, ARGUMENTS, LOCK = "semiocity.def", "versions.args", "requirements.lock"
# What each variant of the image holds; the build finds it under the name LOCK.
LOCKS = {"gpu": LOCK, "cpu": "requirements-cpu.lock"}
LABEL = "semiocity.content"
# The quickest to pack on few cores that still shrinks.
COMPRESSION = "-comp zstd -Xcompression-level 1"
BUNDLE = "/etc/ssl/certs/ca-certificates.crt"
OLDEST_PYTHON = (3, 11)
"""What this package needs, here and in jobs. The two may differ: with SLURM nothing is pickled."""
# Packages in ~/.local must not shadow the image's; compute nodes reach no model hub.
ENVIRONMENT = {"PYTHONNOUSERSITE": "1", "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}


def bind(source: Path, destination: Path | None = None, *, read_only: bool = False) -> str:
    """A bind for `exec_argv`: `source` is seen at `destination`, by default at the same absolute path.

    Raises UserError for a path that is not absolute, or that holds a colon or a comma: Apptainer splits there.
    """
    destination = destination or source
    for path in (source, destination):
        if not path.is_absolute() or {":", ","} & set(str(path)):
            raise UserError(f"{path}: cannot be bound into a container: needs an absolute path without ':' and ','")
    return f"{source}:{destination}:ro" if read_only else f"{source}:{destination}"


def exec_argv(
    image: Path,
    *,
    binds: Sequence[str],
    env: Mapping[str, str],
    nv: bool,
    pythonpath: Path | None,
    pwd: Path,
    apptainer: str = "apptainer",
    extra: Sequence[str] = (),
) -> list[str]:
    """The command that runs a program in `image`; the program and its arguments are to be appended.

    The host's environment passes through (`--cleanenv` would drop SLURM_* and submitit could not tell where it is), and
    so do /tmp and /dev (`--contain` would leave 64 MB of /tmp and no InfiniBand). Neither the home folder nor the
    current one is mounted: what a job needs is in `binds` (see `bind`).

    `env` is added to ENVIRONMENT and may override it. PYTHONPATH is always set, to `pythonpath` or to nothing: the
    host's would point at packages built for another Python. `extra` are further options of `apptainer exec`.

    Raises UserError when a name in `env` looks like a secret: arguments are public (`ps`, sbatch files, logs), while a
    variable exported by the submitting shell reaches the job by itself.
    """
    argv = [apptainer, "exec", *(["--nv"] if nv else []), "--no-mount", "home,cwd", "--pwd", str(pwd)]
    for item in binds:
        argv += ["--bind", item]
    for name, value in {**ENVIRONMENT, **env, "PYTHONPATH": str(pythonpath or "")}.items():
        if secrecy.is_secret(name):
            raise UserError(f"{name}: a secret must not be on a command line; export it in the shell that submits")
        argv += ["--env", _assignment(name, value)]
    return [*argv, *extra, str(image)]


def python_command(
    image: Path,
    *,
    binds: Sequence[str],
    env: Mapping[str, str],
    nv: bool,
    pythonpath: Path | None,
    pwd: Path,
    apptainer: str = "apptainer",
    extra: Sequence[str] = (),
    python: str = "python3",
) -> str:
    """What submitit takes as `slurm_python`: the image's own Python behind `exec_argv`, quoted for a shell."""
    argv = exec_argv(
        image, binds=binds, env=env, nv=nv, pythonpath=pythonpath, pwd=pwd, apptainer=apptainer, extra=extra
    )
    return shlex.join([*argv, python])


def pyxis_arguments(image: str, *, binds: Sequence[str], pwd: Path) -> list[str]:
    """What makes `srun` start its tasks in `image` where SLURM has the Pyxis plugin (Enroot runs the container).

    `image` is a squashfs file of Enroot's, or a reference such as `registry#name:tag`. `binds` are `/a`, `/a:/b` or
    `/a:/b:ro`, as for `exec_argv`. The command itself is the program, without any `apptainer exec` before it.
    """
    mounts = [item if ":" in item else f"{item}:{item}" for item in binds]
    options = [f"--container-image={image}", f"--container-workdir={pwd}", "--no-container-mount-home"]
    return [*options, *([f"--container-mounts={','.join(mounts)}"] if mounts else [])]


def _assignment(name: str, value: str) -> str:
    """NAME=VALUE as `--env` reads it.

    With more than one `=` it is a line of CSV, otherwise taken as it stands, but for double quotes at its end, which
    are dropped. Then a shell in the container expands the value as if it stood in double quotes.
    """
    several = "=" in value
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name) or {"\n", "\0"} & set(value):
        raise UserError(f"{name}={value!r}: not an environment variable that can be handed to a container")
    if value.endswith('"') and not several:
        raise UserError(f"{name}={value!r}: Apptainer would drop the double quote at the end")
    pair = f"{name}=" + re.sub(r"[\\$`]", r"\\\g<0>", value)
    if several and {",", '"'} & set(value):
        return '"' + pair.replace('"', '""') + '"'
    return pair


def read_arguments(path: Path, overrides: Mapping[str, str]) -> dict[str, str]:
    """The build arguments: NAME=VALUE lines of versions.args with `overrides` laid over them.

    Raises UserError for another kind of line, and for an override of a name that the file does not have.
    """
    arguments: dict[str, str] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        match = re.fullmatch(r"([A-Z_]+)=(\S+)", line)
        if match is None:
            raise UserError(f"{path}:{number}: {line!r} is not of the form NAME=VALUE")
        arguments[match[1]] = match[2]
    for name in overrides:
        if name not in arguments:
            raise UserError(f"{name}: not a build argument; {path.name} has {', '.join(arguments)}")
    return {**arguments, **overrides}


def lock_of(recipe: Path, arguments: Mapping[str, str]) -> Path:
    """The lock of the variant that the build arguments ask for. Raises UserError for a variant that does not exist."""
    variant = arguments.get("VARIANT", "gpu")
    if variant not in LOCKS:
        raise UserError(f"VARIANT={variant}: no such variant of the image; there are: {', '.join(LOCKS)}")
    return recipe / LOCKS[variant]


def image_digest(definition: Path, arguments: Mapping[str, str], lock: Path) -> str:
    """sha256, 64 hex digits, of everything that decides what an image contains."""
    contents = [definition.read_text(encoding="utf-8"), sorted(arguments.items()), lock.read_text(encoding="utf-8")]
    return hashlib.sha256(json.dumps(contents).encode()).hexdigest()


def recipe_digest(recipe: Path, overrides: Mapping[str, str]) -> str:
    """`image_digest` of a folder like `containers`, with some build arguments replaced."""
    arguments = read_arguments(recipe / ARGUMENTS, overrides)
    return image_digest(recipe / DEFINITION, arguments, lock_of(recipe, arguments))


def image_path(folder: Path, digest: str) -> Path:
    """Where the image of this content lies."""
    return folder / f"semiocity-{digest[:12]}.sif"


def build_argv(
    image: Path,
    definition: Path,
    arguments: Path,
    *,
    fakeroot: bool,
    certificates: Path | None,
    apptainer: str = "apptainer",
) -> list[str]:
    """The command that builds `image`, to be run in a folder that holds the lock.

    `fakeroot` is for everybody but root. `certificates` is a bundle that replaces the base image's while building, for
    a network with its own authority.
    """
    certified = ["--bind", bind(certificates, Path(BUNDLE), read_only=True)] if certificates else []
    options = ["--build-arg-file", str(arguments), *certified, "--mksquashfs-args", COMPRESSION]
    return [apptainer, "build", *(["--fakeroot"] if fakeroot else []), *options, str(image), str(definition)]


def build(
    folder: Path,
    recipe: Path,
    *,
    overrides: Mapping[str, str] | None = None,
    certificates: Path | None = None,
    user: str | None = None,
    scratch: Path | None = None,
    apptainer: str = "apptainer",
) -> Path:
    """Build the image that `recipe` (the folder `containers`) describes into `folder`, unless it is there already.

    Everything temporary, 16 GB of it, lies in `scratch` (by default the system's temporary folder), which should be a
    local disk: a parallel file system makes the build many times slower. The image appears in `folder` whole or not
    at all. Apptainer's output goes to the terminal.

    Root may name a normal `user` to build as: root's own build needs every capability, and virtual machines and
    containers often withhold one.

    Returns the image's path. Raises UserError when the build fails or could not start.
    """
    arguments = read_arguments(recipe / ARGUMENTS, overrides or {})
    digest = image_digest(recipe / DEFINITION, arguments, lock_of(recipe, arguments))
    image = image_path(folder, digest)
    if image.exists():
        return image
    root = os.geteuid() == 0
    _check_builder(user, root, apptainer)
    staging = Path(tempfile.mkdtemp(prefix="semiocity-image-", dir=scratch))
    try:
        shutil.copyfile(recipe / DEFINITION, staging / DEFINITION)
        shutil.copyfile(lock_of(recipe, arguments), staging / LOCK)
        lines = [f"{name}={value}\n" for name, value in {**arguments, "CONTENT": digest}.items()]
        (staging / ARGUMENTS).write_text("".join(lines), encoding="utf-8")
        argv = build_argv(
            staging / image.name,
            staging / DEFINITION,
            staging / ARGUMENTS,
            fakeroot=user is not None or not root,
            certificates=certificates,
            apptainer=apptainer,
        )
        environment = {**os.environ, "APPTAINER_TMPDIR": str(staging), "APPTAINER_CACHEDIR": str(staging / "cache")}
        if user:
            account = passwd.getpwnam(user)
            for path in (staging, *staging.iterdir()):
                os.chown(path, account.pw_uid, account.pw_gid)
            environment |= {"HOME": account.pw_dir, "USER": user, "LOGNAME": user}
            argv = ["runuser", "-u", user, "--", *argv]
        code = subprocess.run(argv, cwd=staging, env=environment, check=False).returncode
        if code:
            advice = "; root may lack a capability here: build as a normal user" if root and user is None else ""
            raise UserError(f"{shlex.join(argv)}: failed with status {code}, the reason is printed above{advice}")
        _publish(staging / image.name, image)
    finally:
        # A failed build may leave files of the user's subordinate ids, which only Apptainer itself could remove.
        shutil.rmtree(staging, ignore_errors=True)
    return image


def _check_builder(user: str | None, root: bool, apptainer: str) -> None:
    if shutil.which(apptainer) is None:
        raise UserError(f"{apptainer}: not found; an image is built where Apptainer 1.4 or newer is installed")
    if user is None:
        return
    if not root:
        raise UserError(f"{user}: only root can build as another user; leave the user out")
    try:
        passwd.getpwnam(user)
    except KeyError:
        raise UserError(f"{user}: no such user; `useradd --create-home {user}` makes one that can build") from None


def _publish(built: Path, image: Path) -> None:
    """Move across file systems under a temporary name, then rename: nobody sees half an image."""
    image.parent.mkdir(parents=True, exist_ok=True)
    partial = image.with_name(f".{image.name}.{os.getpid()}.tmp")
    try:
        shutil.move(built, partial)
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        if os.geteuid() == 0:
            os.chown(partial, 0, 0)
        partial.replace(image)
    finally:
        partial.unlink(missing_ok=True)
    fsync_folder(image.parent)


def labels(image: Path, apptainer: str = "apptainer") -> dict[str, str]:
    """The labels of an image; `LABEL` is the digest of its content. Raises UserError when it is no readable image."""
    done = subprocess.run([apptainer, "inspect", "--json", str(image)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise UserError(f"{image}: {done.stderr.strip().removeprefix('FATAL:').strip() or 'not an Apptainer image'}")
    return json.loads(done.stdout)["data"]["attributes"]["labels"]
