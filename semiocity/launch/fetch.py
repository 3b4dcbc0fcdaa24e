"""`semiocity fetch`: named models to the shared cache, pinned by commit, checked, and resumed where it was broken off.

What is fetched goes into `.NAME@COMMIT.partial` and gets its name by a rename when every hash is right. The hub's own
download begins a file anew after an interruption (huggingface_hub 2.4); here a file goes on at its last byte.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from semiocity.errors import UserError
from semiocity.files import fsync_folder, write_json
from semiocity.stages import model_files, weights
from semiocity.stages.model_files import MARKER, TABLE, Model

LOCAL = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EFBIG}
Say = Callable[[str], None]


def fetch(name: str, root: Path, *, table: Path = TABLE, update: bool = False, say: Say = print) -> Path:
    """Bring model `name` into `root`, unless it is there; returns its folder. `update` moves the pin to what the
    model's `revision` stands for now.

    Raises UserError for an unknown model, a hub that refuses or cannot be reached, a full disk, and contents that are
    not what was pinned. What was fetched until then is kept.
    """
    model = known(name, table)
    pinned = read_pin(name, model, table)
    if pinned is not None and not update:
        folder = root / f"{name}@{pinned['commit'][:12]}"
        if model_files.state(folder)[0] == "complete":
            link(root, name, folder)
            return folder
    hub = Hub(model.repo)
    commit = pinned["commit"] if pinned is not None and not update else hub.commit(model.revision)
    folder = root / f"{name}@{commit[:12]}"
    wanted = chosen(model, hub.files(commit))
    if pinned is not None and pinned["commit"] == commit:
        _compare(name, wanted, pinned["files"], table)
    if folder.is_dir():  # files are gone or shortened: what is whole is kept, the others are fetched anew
        _reopen(folder, wanted)
    partial = root / f".{folder.name}.partial"
    partial.mkdir(parents=True, exist_ok=True)
    _check_room(name, wanted, partial)
    listed = {}
    for path in sorted(wanted):
        say(f"{name}: {path} ({wanted[path]['bytes'] / 1e6:.1f} MB)")
        listed[path] = {"bytes": wanted[path]["bytes"], "sha256": hub.download(commit, path, wanted[path], partial)}
    _publish(partial, folder, {"repo": model.repo, "commit": commit, "files": listed})
    link(root, name, folder)
    lock = model_files.read_lock(table)
    entry = {"repo": model.repo, "asked": model.revision, "commit": commit, "files": listed}
    if lock.get(name) != entry:
        write_json(model_files.lock_of(table), {**lock, name: entry})
    return folder


def known(name: str, table: Path = TABLE) -> Model:
    """A model of the table; UserError that names those there are."""
    models = model_files.read_table(table)
    if name not in models:
        there = f"it has {', '.join(sorted(models))}" if models else "there is none"
        raise UserError(f"{name}: no model of this name in {table}; {there}")
    return models[name]


def read_pin(name: str, model: Model, table: Path = TABLE) -> dict[str, Any] | None:
    """What the lock says of a model; None when it was never fetched, or the table asks for something else now."""
    entry: dict[str, Any] | None = model_files.read_lock(table).get(name)
    if entry is None or (entry["repo"], entry["asked"]) != (model.repo, model.revision):
        return None
    return entry


def chosen(model: Model, files: Mapping[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Those of a repository's files that the table wants."""
    wanted = {
        path: facts
        for path, facts in files.items()
        if any(fnmatch(path, pattern) for pattern in model.files)
        and not any(fnmatch(path, pattern) for pattern in model.ignore)
    }
    if not wanted:
        raise UserError(f"{model.repo}: none of its files matches {', '.join(model.files)}; it has {', '.join(files)}")
    outside = [path for path in wanted if path.startswith("/") or ".." in Path(path).parts]
    if outside:
        raise UserError(f"{model.repo}: {outside[0]}: a file that would lie outside the model's folder")
    return wanted


def link(root: Path, name: str, folder: Path, project: Path = Path("models")) -> None:
    """Let root/NAME mean `folder`, and models/NAME of the project too, where that is another place.

    Raises UserError when something that is no link of ours lies there.
    """
    _point(root / name, folder.name)
    if project.resolve() != root.resolve():
        project.mkdir(exist_ok=True)
        _point(project / name, str(root.resolve() / name))


def _point(place: Path, target: str) -> None:
    if place.is_symlink():
        if str(place.readlink()) == target:
            return
    elif place.exists():
        raise UserError(f"{place}: a folder that `semiocity fetch` did not make lies there; move it away and run again")
    temporary = place.with_name(f".{place.name}.{os.getpid()}.link")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(target)
    temporary.replace(place)


def damaged(folder: Path) -> list[str]:
    """Files of a fetched model whose contents are not what was fetched. Reads everything.

    A model with such files loses its mark of completeness: jobs refuse it, and `fetch` mends it.
    """
    what, why = model_files.state(folder)
    if what != "complete":
        return [why]
    listed = model_files.read_json(folder / MARKER)["files"]
    bad = [str(folder / name) for name, facts in sorted(listed.items()) if sha256(folder / name) != facts["sha256"]]
    if bad:
        (folder / MARKER).unlink()
    return bad


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _compare(name: str, wanted: Mapping[str, Any], pinned: Mapping[str, Any], table: Path) -> None:
    """The hub must list the very files that were pinned; those that we know by a sha256 must agree."""
    for path in sorted(wanted):
        if path in pinned and wanted[path].get("sha256", pinned[path]["sha256"]) != pinned[path]["sha256"]:
            raise UserError(
                f"{name}: the hub has another {path} under the pinned commit than {model_files.lock_of(table)} says; "
                f"if you trust it, pin it anew: `{model_files.command(name)} --update`"
            )
        if path in pinned:
            wanted[path]["sha256"] = pinned[path]["sha256"]


def _check_room(name: str, wanted: Mapping[str, Any], partial: Path) -> None:
    there = sum(path.stat().st_size for path in partial.rglob("*") if path.is_file())
    missing = sum(facts["bytes"] for facts in wanted.values()) - there
    free = shutil.disk_usage(partial).free
    if missing > free:
        raise UserError(
            f"{name}: {missing / 1e9:.1f} GB are to be fetched but {partial.parent} has {free / 1e9:.1f} GB left; "
            'name another folder in jobs/cluster.toml (models = "…")'
        )


def _reopen(folder: Path, wanted: Mapping[str, Any]) -> None:
    """Turn a folder that lost something back into a partial one."""
    (folder / MARKER).unlink(missing_ok=True)
    for path, facts in wanted.items():
        file = folder / path
        if file.is_file() and file.stat().st_size != facts["bytes"]:
            file.unlink()
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    folder.rename(partial)


def _publish(partial: Path, folder: Path, marker: dict[str, Any]) -> None:
    large = {
        name: [(partial / name).stat().st_size, (partial / name).stat().st_mtime_ns, facts["sha256"]]
        for name, facts in marker["files"].items()
        if name.endswith(".safetensors") and "/" not in name
    }
    write_json(partial / weights.CACHE, large)  # so that the first submission need not read the weights
    write_json(partial / MARKER, marker)
    try:
        partial.rename(folder)
    except OSError:
        # Somebody else fetched the same model at the same time and was first.
        if model_files.state(folder)[0] != "complete":
            raise
        shutil.rmtree(partial, ignore_errors=True)
    fsync_folder(folder.parent)


class Hub:
    """One repository on the hub. HF_ENDPOINT and HF_TOKEN come from the environment; the token goes nowhere else."""

    def __init__(self, repo: str) -> None:
        if os.environ.get("HF_HUB_OFFLINE", "0").upper() in ("1", "ON", "YES", "TRUE"):
            raise UserError("HF_HUB_OFFLINE is set in this shell; fetching needs the network: `unset HF_HUB_OFFLINE`")
        try:
            from huggingface_hub import HfApi, constants
        except ImportError:
            raise UserError(
                f"fetching needs huggingface_hub, which this Python lacks: {sys.executable} -m pip install "
                "huggingface_hub (or `make env`)"
            ) from None
        self.repo = repo
        self.endpoint = os.environ.get("HF_ENDPOINT", constants.ENDPOINT).rstrip("/")
        self.token = os.environ.get("HF_TOKEN") or False
        self.api = HfApi(endpoint=self.endpoint, token=self.token)

    def commit(self, revision: str) -> str:
        """The commit that a branch or tag stands for."""
        found = self._ask(lambda: self.api.repo_info(self.repo, revision=revision).sha)
        return str(found)

    def files(self, commit: str) -> dict[str, dict[str, Any]]:
        """Path → bytes and a hash: `sha256` of large files, the git `blob` of small ones."""
        entries = self._ask(lambda: list(self.api.list_repo_tree(self.repo, revision=commit, recursive=True)))
        return {
            entry.path: {
                "bytes": entry.size,
                **({"sha256": entry.lfs.sha256} if entry.lfs else {"blob": entry.blob_id}),
            }
            for entry in entries
            if hasattr(entry, "size")
        }

    def download(self, commit: str, path: str, facts: Mapping[str, Any], folder: Path) -> str:
        """Fetch a file, going on at what is there, and check it; returns its sha256.

        Contents that turn out wrong are fetched once more from their beginning.
        """
        file = folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        part = file.with_name(f"{file.name}.part")
        if file.is_file() and (found := _right(file, facts)):
            return found
        for _ in range(2):
            self._ask(lambda: self._append(commit, path, facts["bytes"], part))
            if found := _right(part, facts):
                part.replace(file)
                return found
            part.unlink()
        raise UserError(
            f"{self.repo}: {path}: twice other contents than the hub's list says; a proxy may alter what it passes on"
        )

    def _append(self, commit: str, path: str, size: int, part: Path) -> None:
        from huggingface_hub import hf_hub_url
        from huggingface_hub.file_download import http_get
        from huggingface_hub.utils import build_hf_headers

        with part.open("ab") as file:
            there = file.tell()
            if there > size:
                file.truncate(0)
                there = 0
            if there < size:
                url = hf_hub_url(self.repo, path, revision=commit, endpoint=self.endpoint)
                headers = {**build_hf_headers(token=self.token), "Accept-Encoding": "identity"}
                http_get(url, file, resume_size=there, headers=headers, expected_size=size, displayed_filename=path)
            file.flush()
            os.fsync(file.fileno())

    def _ask(self, call: Callable[[], Any]) -> Any:
        """The hub's answer; its refusals and the network's as one line that says what to do."""
        from huggingface_hub import errors

        try:
            return call()
        except errors.GatedRepoError:
            hint = "accept its licence" if self.token else "accept its licence, then export HF_TOKEN in this shell,"
            raise UserError(f"{self.repo}: a gated model: {hint} at {self.endpoint}/{self.repo}") from None
        except errors.RevisionNotFoundError:
            raise UserError(
                f"{self.repo}: no such revision; set `revision` in {TABLE} to a branch, tag or commit"
            ) from None
        except errors.RepositoryNotFoundError:
            hint = "" if self.token else ", or it is private: export HF_TOKEN in this shell"
            raise UserError(f"{self.repo}: no such repository at {self.endpoint}{hint}") from None
        except Exception as error:
            ours = isinstance(error, UserError) or getattr(error, "errno", None) in LOCAL
            if ours or not (isinstance(error, OSError) or "http" in type(error).__module__):
                raise  # no room, no right to write: not the network's doing
            line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise UserError(
                f"{self.repo}: {self.endpoint} could not be reached or broke off: {line}. What was fetched is kept; "
                "run the same command again to go on"
            ) from None


def _right(file: Path, facts: Mapping[str, Any]) -> str:
    """sha256 of a file that is what the hub lists; empty when it is not."""
    if file.stat().st_size != facts["bytes"]:
        return ""
    found = sha256(file)
    if "sha256" in facts:
        return found if found == facts["sha256"] else ""
    data = file.read_bytes()
    blob = hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()
    return found if blob == facts["blob"] else ""


def named_in(job: Mapping[str, Any], names: Sequence[str]) -> list[str]:
    """Models that a job file refers to: every value such as "models/NAME", wherever it stands."""
    found: list[str] = []

    def look(value: Any) -> None:
        if isinstance(value, Mapping):
            for inner in value.values():
                look(inner)
        elif isinstance(value, list):
            for inner in value:
                look(inner)
        elif isinstance(value, str) and (name := model_files.name_of(Path(value))) in names and name not in found:
            found.append(name)

    look(job)
    return found
