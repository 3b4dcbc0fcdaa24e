"""Upgrading a dataset of an older format, where it lies. No sample is touched.

Format 1 to 2: plans have parts; receipts get `parquet_bytes`; column manifests keep totals, and receipts compacted by
the thousand take the place of their lists. Digests stay what they were, so that a training begun before goes on. Every
step can be cut off: the dataset's manifest is written last, and until then everything else refuses the dataset with
this command.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from semiocity.data.layout import BASE, FORMAT, ShardPath, check_format, column_folder
from semiocity.data.manifest import rebuild, summarize
from semiocity.data.receipts import READERS, latest
from semiocity.errors import UserError
from semiocity.files import read_json, write_json

OLD = 1


def show(dataset: Path, as_json: bool) -> int:
    """Upgrade and say what was done; the exit status is 0 when everything could be upgraded."""
    import json

    changed, trouble = upgrade(dataset)
    if as_json:
        print(json.dumps({"changed": changed, "trouble": trouble}, indent=1, sort_keys=True))
    else:
        for line in trouble:
            print(line)
        print(f"{dataset}: {changed} files brought to format {FORMAT}" if changed else f"{dataset}: nothing to do")
    return 1 if trouble else 0


def upgrade(dataset: Path) -> tuple[int, list[str]]:
    """Bring a dataset to the present format. Returns how many files that changed, and what could not be upgraded.

    Raises UserError when there is no dataset.
    """
    dataset = Path(dataset)
    if not (dataset / "columns").is_dir():
        raise UserError(f"{dataset}: no dataset (it has no folder columns/)")
    changed, trouble = 0, []
    for path in sorted(dataset.glob("plans/*/plan.json")):
        changed += _plan(path)
    for folder in sorted(path for path in dataset.glob("columns/*/*") if path.is_dir()):
        for thousand in sorted(folder.glob("[0-9]" * 5)):
            done, complaints = _receipts(folder, int(thousand.name))
            changed += done
            trouble += complaints
        done, complaints = _column(dataset, folder)
        changed += done
        trouble += complaints
    for pointer in sorted(dataset.glob("columns/*/current.json")):
        changed += _renumber(pointer)
    manifest = dataset / "manifest.json"
    if _format(manifest) == OLD and _base_is_new(dataset):
        before = read_json(manifest)["digest"]
        rebuild(dataset)
        changed += 1
        if read_json(manifest)["digest"] != before:
            trouble.append(f"{manifest}: its digest has changed: receipts were not those that were merged")
    return changed, trouble


def _base_is_new(dataset: Path) -> bool:
    revision = read_json(dataset / "columns" / BASE / "current.json")["revision"]
    return bool(_format(column_folder(dataset, BASE, revision) / "manifest.json") == FORMAT)


def _format(path: Path) -> Any:
    """The format of a file; None when it is not there. Raises UserError for a format of the future."""
    try:
        found = read_json(path)
    except FileNotFoundError:
        return None
    number = found.get("format") if isinstance(found, dict) else None
    if number != OLD:
        check_format(found, path)
    return number


def _renumber(path: Path) -> int:
    """For files in which nothing but the number changes; 1 when it did."""
    if _format(path) != OLD:
        return 0
    write_json(path, {**read_json(path), "format": FORMAT})
    return 1


def _plan(path: Path) -> int:
    """The rows of a plan lie in parts, since sources may grow; 1 when that was new to this one."""
    if _format(path) != OLD:
        return 0
    plan = read_json(path)
    plan["parts"] = [{"file": "plan.jsonl", "rows": plan["rows"], "offsets": plan.pop("offsets")}]
    write_json(path, {**plan, "format": FORMAT})
    return 1


def _receipts(folder: Path, thousand: int) -> tuple[int, list[str]]:
    """Upgrade the receipts of one thousand."""
    place = folder / f"{thousand:05d}"
    if latest(folder, thousand)[1] == place.stat().st_mtime_ns:
        return 0, []  # compacted since, so all of them are of this format
    paths = [ShardPath(folder, int(file.stem)) for file in sorted(place.glob("[0-9]" * 8 + ".json"))]
    with ThreadPoolExecutor(READERS, thread_name_prefix="upgrade") as pool:
        results = list(pool.map(_receipt, paths))
    return sum(done for done, _ in results), [line for _, line in results if line]


def _receipt(path: ShardPath) -> tuple[int, str]:
    try:
        if _format(path.receipt) != OLD:
            return 0, ""
        receipt = read_json(path.receipt)
        data = path.parquet.read_bytes() if path.parquet.exists() else b""
        trouble = ""
        if hashlib.sha256(data).hexdigest() != receipt["parquet_sha256"]:
            trouble = f"{path.parquet}: missing or damaged (sha256); `semiocity repair` may mend it"
        more = {"format": FORMAT, "parquet_bytes": len(data), "tombstones": {"removed": 0, **receipt["tombstones"]}}
        write_json(path.receipt, {**receipt, **more})
        return 1, trouble
    except (UserError, KeyError) as error:
        return 0, f"{path.receipt}: not upgraded ({error})"


def _column(dataset: Path, folder: Path) -> tuple[int, list[str]]:
    """Write the manifest of one revision anew, if it was merged before.

    When receipts that it listed are gone, the revision stops being current: its job makes what is missing and merges.
    """
    path = folder / "manifest.json"
    if _format(path) != OLD:
        return 0, []
    old = read_json(path)
    shards = {entry["shard"] for entry in old["shards"]}
    gone = shards - set(_there(folder))
    if gone:
        pointer = folder.parent / "current.json"
        if folder.parent.name != BASE and pointer.exists() and read_json(pointer)["revision"] == folder.name:
            pointer.unlink()
        path.unlink()
        names = ", ".join(f"{shard:08d}" for shard in sorted(gone)[:5])
        return 1, [f"{folder}: {len(gone)} receipts are gone ({names}). Run its job again: only they are made"]
    summary = summarize(dataset, folder, max(shards, default=-1) + 1, set(), reread=False, parents=None)
    summary.publish()
    if summary.manifest["digest"] != old["digest"]:
        return 1, [f"{folder}: its digest has changed: receipts were not those that were merged"]
    return 1, []


def _there(folder: Path) -> Iterator[int]:
    """Shards with a receipt of the present format."""
    for path in sorted(folder.glob("[0-9]" * 5 + "/" + "[0-9]" * 8 + ".json")):
        try:
            if _format(path) == FORMAT:
                yield int(path.stem)
        except UserError:
            continue
