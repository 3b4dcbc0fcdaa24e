"""Whether splits keep duplicates together: looked up anew from the hashes, not believed of the column `duplicates`."""

from __future__ import annotations

import json
import os
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from semiocity.config import check as checked
from semiocity.data.columns import Dataset
from semiocity.data.duplicate_rows import gather, join
from semiocity.data.duplicates import Limits, Rows, cluster
from semiocity.data.manifest import read_column_manifest
from semiocity.data.views import read_view
from semiocity.stages.duplicates import Duplicates, DuplicatesArgs
from semiocity.stages.indexes import live

EXAMPLES = 10


def show(path: Path, split: str, view: str | None, as_json: bool) -> int:
    """Print what `leaks` finds; exit status 0 only when it finds nothing."""
    facts = leaks(Dataset.open(path), split, view)
    if as_json:
        print(json.dumps(facts, indent=1, sort_keys=True))
    else:
        print(render(facts))
    return 0 if facts["clean"] else 1


def leaks(dataset: Dataset, split: str, view: str | None = None, column: str = "duplicates") -> dict[str, Any]:
    """What is wrong with a dataset's splits, the scalar `split`, or with those of a saved view; `clean` is whether
    nothing is.

    `separated`: clusters of `column` whose rows are in more than one split. `unkept`: clusters of which no row is kept,
    since that one was taken down or failed. `leaks`: rows that are equal to or near a
    row of a more protected split. Of a view its rows count, and its splits; of a dataset all rows, but when `column`
    itself names the splits only those that are kept, and `leaks_not_kept` says how many there are among all.
    Raises UserError when the hashes or the splits are missing.
    """
    args = _args(dataset, column, split if view is None else "base.split")
    needs = Duplicates(args).needs()
    dataset.require(needs)
    more = [f"{column}.cluster", f"{column}.keep"] if column in dataset.columns else []
    tables = [live(dataset, shard, [*needs, *more]) for shard in range(dataset.shards)]
    if view is not None:
        tables = _in_view(dataset, view, tables, args.split)
    joined = join([gather(table, args.split) for table in tables], args.held_out)
    splits = np.array(joined.splits, dtype=object)[joined.order]
    everyone = _leaking(joined.rows, splits, args)
    facts: dict[str, Any] = {"dataset": dataset.name, "rows": len(splits), "separated": 0, "unkept": 0}
    facts |= {"split": split} if view is None else {"view": view}
    if more:
        cluster, keep = (pa.concat_tables(tables).column(name).to_numpy()[joined.order] for name in more)
        facts["separated"] = _separated(cluster, splits)
        if view is None:
            facts["unkept"] = len(np.unique(cluster)) - len(np.unique(cluster[keep]))
        if view is None and split.startswith(f"{column}."):
            facts["leaks_not_kept"] = len(everyone)
            kept = Rows(**{field.name: getattr(joined.rows, field.name)[keep] for field in fields(Rows)})
            everyone = _leaking(kept, splits[keep], args)
    facts |= {"leaks": len(everyone), "examples": everyone[:EXAMPLES]}
    return facts | {"clean": not (facts["separated"] or facts["unkept"] or facts["leaks"])}


def _in_view(dataset: Dataset, name: str, tables: list[pa.Table], split: str) -> list[pa.Table]:
    """The rows of a saved view, each with the split that the view gives it in the column `split`."""
    views = {named: dataset.saved_view(name, named) for named in read_view(dataset.path, name)["splits"]}
    found = []
    for shard, table in enumerate(tables):
        names = {row: named for named, view in views.items() for row in view.rows_of(shard).tolist()}
        splits = pa.array([names.get(row) for row in table.column("row").to_pylist()], pa.string())
        place = table.column_names.index(split)
        found.append(table.set_column(place, split, splits).filter(pc.is_valid(splits)))
    return found


def _args(dataset: Dataset, column: str, split: str) -> DuplicatesArgs:
    """The arguments that the column was made with; the defaults when there is no such column."""
    made: dict[str, Any] = {}
    if column in dataset.columns:
        made = read_column_manifest(dataset.path, column, dataset.column(column).revision)["stage"]["args"]
    return checked({**made, "split": split}, DuplicatesArgs, where=f"{dataset.path}: column {column}")


def _leaking(rows: Rows, splits: np.ndarray, args: DuplicatesArgs) -> list[dict[str, Any]]:
    """Each row that is equal to or near one of a more protected split, with the row whose cluster it belongs to."""
    limits = Limits(args.distance, args.gradients, args.flat)
    found = cluster(rows, limits, threads=len(os.sched_getaffinity(0)))
    leaking = np.flatnonzero(rows.level[found.representative] < rows.level)
    return [
        {
            "key": rows.keys[i].decode(),
            "split": splits[i],
            "near": rows.keys[found.representative[i]].decode(),
            "near_split": splits[found.representative[i]],
        }
        for i in leaking
    ]


def _separated(cluster: np.ndarray, splits: np.ndarray) -> int:
    """Number of clusters with rows of more than one split."""
    names = {name: number for number, name in enumerate(dict.fromkeys(splits))}
    pairs = np.unique(np.stack([cluster, [names[name] for name in splits]], axis=1), axis=0)
    return int((np.unique(pairs[:, 0], return_counts=True)[1] > 1).sum())


def render(facts: dict[str, Any]) -> str:
    """The outcome as text."""
    kept = "kept rows" if "leaks_not_kept" in facts else "rows"
    where = facts["split"] if "split" in facts else f"view {facts['view']}"
    lines = [
        f"{facts['dataset']}, {where}, {facts['rows']} rows: {facts['separated']} clusters in several splits, "
        f"{facts['leaks']} {kept} near one of a more protected split"
    ]
    if facts["unkept"]:
        lines.append(
            f"  {facts['unkept']} clusters without a row to keep: a filter by duplicates.keep leaves them out; run the "
            "job of the column again"
        )
    lines += [f"  {e['key']} ({e['split']}) ~ {e['near']} ({e['near_split']})" for e in facts["examples"]]
    if facts.get("leaks_not_kept"):
        lines.append(f"  also {facts['leaks_not_kept']} rows that are not kept: filter by duplicates.keep")
    return "\n".join(lines)
