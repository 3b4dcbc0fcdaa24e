"""Builds a saved view: one part a thousand shards, any of them at any time, then view.json."""

from __future__ import annotations

import json
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from semiocity.data.columns import Dataset
from semiocity.data.manifest import BASE, FOLDER_SHARDS
from semiocity.data.rows import Chosen, choose
from semiocity.data.shard import sha256_file
from semiocity.data.views import FORMAT, ViewPlan, part_file, source_digest, view_folder
from semiocity.errors import UserError
from semiocity.files import adopt, fsync_folder, write_json

GROUP_SHARDS = 32
"""Shards in a row group: what is read to know the rows of one shard."""

SCHEMA = pa.schema(
    [
        pa.field("shard", pa.int64(), nullable=False),
        pa.field("rows", pa.int64(), nullable=False),
        ("split", pa.string()),
        pa.field("selected", pa.int64(), nullable=False),
        pa.field("bitmap", pa.binary(), nullable=False),
        pa.field("bucket_counts", pa.list_(pa.int64()), nullable=False),
        pa.field("buckets", pa.binary(), nullable=False),
    ]
)
"""A part: one line a shard and split that has rows of the view, at least one a shard. `bitmap` has a bit for every row
of the shard, lowest bit first; `buckets` two bytes, the lower first, for every selected row."""

BUCKET = np.dtype("<u2")


def build(
    plan: ViewPlan,
    shards: Sequence[int],
    stop: Callable[[], bool] = lambda: False,
    report: Callable[[dict[str, Any]], None] = lambda facts: None,
) -> bool:
    """Make the parts of those thousands of shards that are not there yet. False when `stop` said to leave early.

    Raises UserError when a shard is damaged, when columns do not fit together, or when a row breaks the join's policy.
    """
    dataset = Dataset(plan.dataset, plan.facts)
    thousands = sorted({shard // FOLDER_SHARDS for shard in shards})
    for done, thousand in enumerate(thousands):
        if not part_file(plan.folder, thousand).exists() and not _build_part(dataset, plan, thousand, stop):
            return False
        made = min((done + 1) * FOLDER_SHARDS, len(shards))
        report({"shard": thousand * FOLDER_SHARDS, "done_shards": made, "shards": len(shards)})
    return True


def merge(plan: ViewPlan) -> dict[str, Any]:
    """Write view.json from the parts and put this revision to use. Raises UserError when a part is missing."""
    folder = plan.folder
    thousands = range(-(-plan.shards // FOLDER_SHARDS))
    parts: list[dict[str, Any]] = []
    splits: Counter[str] = Counter()
    selected = 0
    wanted = len(plan.selection.buckets.resolved()) if plan.selection.buckets else 0
    buckets = np.zeros(wanted, dtype=np.int64)
    for thousand in thousands:
        path = part_file(folder, thousand)
        if not path.exists():
            raise UserError(f"{path}: missing; run the same `semiocity view` command again")
        with pq.ParquetFile(path) as file:
            facts = json.loads(file.schema_arrow.metadata[b"semiocity"])
            table = file.read(columns=["split", "selected", "bucket_counts"], use_threads=False)
        if facts["view"] != plan.digest:
            raise UserError(f"{path}: a part of another view; remove it and run the same command again")
        for line in table.select(["split", "selected"]).to_pylist():
            selected += line["selected"]
            if line["split"] is not None:
                splits[line["split"]] += line["selected"]
        if wanted:
            buckets += np.asarray(pc.list_flatten(table["bucket_counts"])).reshape(-1, wanted).sum(axis=0)
        parts.append({**facts["part"], "bytes": path.stat().st_size, "sha256": sha256_file(path)})
    selection = plan.selection
    view = {
        "format": FORMAT,
        "name": plan.name,
        "revision": plan.revision,
        "digest": plan.digest,
        "dataset": plan.facts["name"],
        "base": plan.revisions[BASE],
        "columns": plan.revisions,
        "digests": plan.digests,
        "fields": list(selection.fields),
        "split": selection.split_by,
        "filter": selection.filter.text if selection.filter else None,
        "join": dict(selection.join),
        "buckets": {"sizes": list(selection.buckets.resolved())} if selection.buckets else None,
        "bucket_rows": [
            {"size": list(size), "rows": int(rows)}
            for size, rows in zip(selection.buckets.resolved() if selection.buckets else (), buckets, strict=True)
        ],
        "shards": plan.shards,
        "rows": selected,
        "of_rows": plan.facts["rows"],
        "splits": {name: rows for name, rows in sorted(splits.items()) if rows},
        "parts": parts,
    }
    write_json(folder / "view.json", view)
    write_json(view_folder(plan.dataset, plan.name) / "view.json", view)
    return view


def _build_part(dataset: Dataset, plan: ViewPlan, thousand: int, stop: Callable[[], bool]) -> bool:
    first = thousand * FOLDER_SHARDS
    shards = range(first, min(first + FOLDER_SHARDS, plan.shards))
    sources = _sources(dataset, shards)
    path = part_file(plan.folder, thousand)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    facts = {"view": plan.digest, "part": {"first": first, "shards": len(shards), "sources": sources}}
    schema = SCHEMA.with_metadata({"semiocity": json.dumps(facts, sort_keys=True)})
    try:
        with pq.ParquetWriter(temporary, schema, compression="zstd") as writer:
            lines: list[dict[str, Any]] = []
            for shard in shards:
                if stop():
                    return False
                lines.extend(_lines(dataset, plan, shard))
                if (shard + 1) % GROUP_SHARDS == 0 or shard == shards[-1]:
                    writer.write_table(pa.Table.from_pylist(lines, schema=schema))
                    lines = []
        adopt(temporary)
        temporary.rename(path)
        fsync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)
    return True


def _sources(dataset: Dataset, shards: range) -> dict[str, str]:
    """Column → digest of its shards. Raises UserError when columns have other keys than base."""
    found = {}
    keys = [dataset.shard_entries(BASE)[shard]["keys_digest"] for shard in shards]
    for column in dataset.columns:
        entries = [dataset.shard_entries(column)[shard] for shard in shards]
        for entry, expected in zip(entries, keys, strict=True):
            if entry["keys_digest"] != expected:
                raise UserError(
                    f"{dataset.path}: shard {entry['shard']:08d} of {column}/{dataset.columns[column].revision} has "
                    f"other keys than base/{dataset.columns[BASE].revision}: they cannot be joined"
                )
        found[column] = source_digest(entries)
    return found


def _lines(dataset: Dataset, plan: ViewPlan, shard: int) -> Iterator[dict[str, Any]]:
    selection = plan.selection
    chosen = choose(dataset, selection, shard, by_split=selection.split_by is not None)
    wanted = len(selection.buckets.resolved()) if selection.buckets else 0
    for split, mask in _by_split(chosen):
        buckets = chosen.buckets[mask] if chosen.buckets is not None else np.zeros(0, dtype=np.uint16)
        yield {
            "shard": shard,
            "rows": len(mask),
            "split": split,
            "selected": int(mask.sum()),
            "bitmap": np.packbits(mask, bitorder="little").tobytes(),
            "bucket_counts": np.bincount(buckets, minlength=wanted).tolist() if wanted else [],
            "buckets": buckets.astype(BUCKET).tobytes(),
        }


def _by_split(chosen: Chosen) -> Iterator[tuple[str | None, np.ndarray]]:
    """(split, rows of it) of those splits that have rows, by name, rows without a split last; at least one pair."""
    if chosen.splits is None:
        yield None, chosen.mask
        return
    codes = chosen.splits.combine_chunks().dictionary_encode()
    numbers = np.asarray(pc.fill_null(codes.indices, -1))
    names = codes.dictionary.to_pylist()
    found = False
    for number, name in sorted(enumerate(names), key=lambda item: item[1]):
        mask = chosen.mask & (numbers == number)
        if mask.any():
            found = True
            yield name, mask
    rest = chosen.mask & (numbers == -1)
    if rest.any() or not found:
        yield None, rest
