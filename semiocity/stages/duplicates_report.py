"""What the column `duplicates` says, for people: the run's `duplicates.json` (counts), `duplicates.html` (pictures)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from semiocity.data.manifest import BASE
from semiocity.files import write_atomic, write_json
from semiocity.stages.duplicates_page import Card, Group, page, thumbnail
from semiocity.stages.indexes import live

if TYPE_CHECKING:
    from semiocity.data.columns import Dataset
    from semiocity.stages.duplicates import DuplicatesArgs

SHOWN = 24
"""Clusters in each section of the page."""
MEMBERS = 12
"""Pictures of each cluster."""


class Selection(NamedTuple):
    """One section of the page."""

    title: str
    text: str
    clusters: list[int]


def write(dataset: Dataset, column: str, args: DuplicatesArgs, run: Path) -> dict[str, Any]:
    """Write both files; returns what duplicates.json holds. Opens the indexes of all shards, and some pictures."""
    table = read(dataset, column, args.split)
    facts = {
        "dataset": dataset.name,
        "digest": dataset.digest,
        "column": column,
        "revision": dataset.column(column).revision,
        "args": args.model_dump(mode="json"),
        **count(table),
    }
    sections = [(chosen.title, chosen.text, list(_groups(dataset, table, chosen))) for chosen in select(table)]
    write_json(run / "duplicates.json", facts)
    write_atomic(run / "duplicates.html", page(facts, sections).encode())
    return facts


def read(dataset: Dataset, column: str, split: str) -> pa.Table:
    """All rows that have a cluster: key, shard, row, before (the split they had), and the column's scalars."""
    scalars = list(dataset.column(column).scalars)
    tables = []
    for shard in range(dataset.shards):
        table = live(dataset, shard, [split, *(f"{column}.{name}" for name in scalars)])
        table = table.rename_columns(["key", "row", "before", *scalars])
        tables.append(table.append_column("shard", pa.array(np.full(len(table), shard, dtype=np.int32))))
    return pa.concat_tables(tables).combine_chunks()


def count(table: pa.Table) -> dict[str, Any]:
    """Rows and clusters by kind, splits before and after, and what moved between them."""
    several = pc.greater(table.column("size"), 1)
    dropped = table.filter(pc.invert(table.column("keep")))
    exact = pc.sum(dropped.column("exact")).as_py() or 0
    moves = table.filter(pc.invert(pc.fill_null(pc.equal(table.column("before"), table.column("split")), False)))
    return {
        "rows": len(table),
        "clusters": len(table) - len(dropped),
        "clusters_of_several": len(pc.unique(table.filter(several).column("cluster"))),
        "largest": pc.max(table.column("size")).as_py() or 0,
        "not_kept": {"exact": exact, "near": len(dropped) - exact},
        "distances": _counts(dropped, "distance"),
        "splits_before": _counts(table, "before"),
        "splits_after": _counts(table, "split"),
        "splits_kept": _counts(table.filter(table.column("keep")), "split"),
        "moved": [
            {"from": before, "to": after, "rows": rows}
            for (before, after), rows in sorted(_pairs(moves).items(), key=str)
            if before != after
        ],
    }


def _counts(table: pa.Table, name: str) -> dict[str, int]:
    found = table.column(name).value_counts().to_pylist()
    return {
        str(item["values"]): item["counts"]
        for item in sorted(found, key=lambda item: (str(type(item["values"])), item["values"] or 0))
    }


def _pairs(table: pa.Table) -> dict[tuple[str | None, str | None], int]:
    grouped = table.group_by(["before", "split"]).aggregate([("key", "count")]).to_pylist()
    return {(item["before"], item["split"]): item["key_count"] for item in grouped}


def select(table: pa.Table) -> list[Selection]:
    """Which clusters the page shows."""
    several = table.filter(pc.greater(table.column("size"), 1))
    by_cluster = several.group_by("cluster").aggregate(
        [("size", "max"), ("distance", "max"), ("before", "count_distinct"), ("key", "min")]
    )

    def first(chosen: pa.Table, order: str) -> list[int]:
        ordered = chosen.sort_by([(order, "descending"), ("key_min", "ascending")])
        numbers: list[int] = ordered.column("cluster")[:SHOWN].to_pylist()
        return numbers

    across = by_cluster.filter(pc.greater(by_cluster.column("before_count_distinct"), 1))
    doubtful = by_cluster.filter(pc.greater(by_cluster.column("distance_max"), 0))
    return [
        Selection("Largest clusters", "The first picture of each is kept.", first(by_cluster, "size_max")),
        Selection(
            "Clusters that several splits had", "Rows that moved say from where to where.", first(across, "size_max")
        ),
        Selection(
            "Least alike",
            "Members whose hash differs most from the kept picture's. If these are different pictures, lower "
            "args.distance; if they are alike, it may be raised.",
            first(doubtful, "distance_max"),
        ),
    ]


def _groups(dataset: Dataset, table: pa.Table, chosen: Selection) -> Iterator[Group]:
    rows = table.filter(pc.is_in(table.column("cluster"), value_set=pa.array(chosen.clusters, pa.int64())))
    rows = rows.sort_by([("keep", "descending"), ("distance", "descending"), ("key", "ascending")])
    found: dict[int, list[dict[str, Any]]] = {number: [] for number in chosen.clusters}
    for row in rows.to_pylist():
        found[row["cluster"]].append(row)
    for number, members in found.items():
        yield Group(number, members[0]["size"], [_card(dataset, row) for row in members[:MEMBERS]])


def _card(dataset: Dataset, row: dict[str, Any]) -> Card:
    image = dataset.reader(BASE, row["shard"]).read(row["row"], "image")
    moved = row["before"] != row["split"]
    return Card(
        key=row["key"],
        image=thumbnail(image) if image is not None else "",
        split=f"{row['before']} → {row['split']}" if moved else str(row["split"]),
        moved=moved,
        likeness="kept" if row["keep"] else "same pixels" if row["exact"] else _bits(row["distance"]),
    )


def _bits(distance: int | None) -> str:
    return "flat, like colour" if distance is None else f"{distance} bits"


def summary(facts: dict[str, Any]) -> str:
    """The counts as lines for a terminal."""
    dropped = facts["not_kept"]
    lines = [
        f"{facts['rows']} rows, {facts['clusters']} clusters, {facts['clusters_of_several']} of several rows "
        f"(largest {facts['largest']}); not kept: {dropped['exact']} exact, {dropped['near']} near"
    ]
    lines += [f"  moved {item['from']} → {item['to']}: {item['rows']} rows" for item in facts["moved"]]
    return "\n".join(lines) + "\n" + json.dumps(facts["splits_kept"])
