"""Signing images and refusing those that are not signed: PEM keys, no keyring. Standard library only."""

from __future__ import annotations

import subprocess
from functools import cache
from pathlib import Path

from semiocity.errors import UserError


def sign(image: Path, key: Path, apptainer: str = "apptainer") -> None:
    """Add a signature by the private key (PEM, RSA or another kind that Apptainer reads) to `image`.

    Raises UserError with Apptainer's own words. A passphrase is asked for on the terminal.
    """
    _key(key, "private")
    _call([apptainer, "sign", "--key", str(key), str(image)], f"{image}: not signed")


def require(image: Path, key: Path, apptainer: str = "apptainer") -> None:
    """Raise UserError unless every part of `image` is signed with the private half of the public `key`.

    Reads the whole image: about two seconds a GB on a local disk; once a process, while it stays as it is.
    """
    _key(key, "public")
    _verified(image, key, apptainer, _state(image), _state(key))


def _state(file: Path) -> tuple[int, int, int]:
    try:
        found = file.stat()
    except OSError:
        return 0, 0, 0  # Apptainer says it better
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns


@cache
def _verified(image: Path, key: Path, apptainer: str, *_states: tuple[int, int, int]) -> None:
    """Raises as `require`; what raises is not remembered."""
    remedy = f"sign it (`semiocity image --sign PRIVATE.pem {image}`), or take another one"
    _call([apptainer, "verify", "--all", "--key", str(key), str(image)], f"{image}: no signature by {key}; {remedy}")


def _key(key: Path, kind: str) -> None:
    try:
        first = key.read_text(encoding="ascii", errors="replace").partition("\n")[0]
    except OSError as error:
        raise UserError(f"{key}: no {kind} key: {error.strerror}") from None
    if not first.startswith("-----BEGIN ") or (kind == "public") != ("PUBLIC" in first):
        raise UserError(f"{key}: begins with {first[:40]!r}, not a {kind} key in PEM form")


def _call(argv: list[str], failure: str) -> None:
    try:
        done = subprocess.run(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    except FileNotFoundError:
        raise UserError(f"{argv[0]}: not found; signatures are checked where Apptainer is installed") from None
    if done.returncode:
        said = [line.strip() for line in done.stdout.splitlines() if line.startswith(("FATAL", "ERROR"))]
        raise UserError(f"{failure} ({said[-1] if said else f'status {done.returncode}'})")
