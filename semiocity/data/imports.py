"""Joining what was made elsewhere with the rows of a dataset, and pinning it, so that a stage can make a column of it.

    data/NAME/imports/DIGEST/rows.jsonl       one matched row a line, in the order of keys
                             import.json      blocks of rows.jsonl with their sha256, sources, counts
                             unmatched.jsonl  inputs that fit no row

The digest is that of rows.jsonl: the same input gives the same column. Texts and run-lengths are copied; PNGs stay
where they are, and their sha256 is pinned. The join is done in SQLite beside the result, so memory stays flat.
Login-node code.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import sqlite3
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from semiocity.config import canonical, fsync_folder, read_json, write_atomic, write_json
from semiocity.data import sidecars
from semiocity.data.imported_rows import CONTENT, UNMATCHED, stem_of
from semiocity.data.keys import printable, to_bytes, to_text
from semiocity.data.layout import IMPORTS
from semiocity.data.listing import id_hash
from semiocity.data.manifest import BASE, FORMAT, column_folder, current, read_column_manifest, read_manifest
from semiocity.data.plan import Plan
from semiocity.data.removed import read_removed
from semiocity.data.sidecars import Columns, Item, Kind
from semiocity.data.sources.base import Entry
from semiocity.errors import UserError
from semiocity.files import replacing

ROWS = "rows.jsonl"
BLOCK_ROWS = 1000
GONE = "its row was taken down"
SHOWN = 10


class Report(NamedTuple):
    """What `pin` found."""

    folder: Path
    digest: str
    kind: Kind
    matched: int
    """Rows that have a value now."""
    without: int
    """Rows of the dataset that have none."""
    unmatched: int
    """Inputs that fit no row."""


def pin(
    dataset: Path,
    inputs: list[Path],
    kind: Kind | None = None,
    columns: Columns = Columns(),  # noqa: B008 - immutable
    allow_unmatched: bool = False,
) -> Report:
    """Read inputs, join them with the rows of the dataset's base column, and pin the result.

    A row is named by its key, or by its file or id in the source; where nothing has that name, by a path that ends with
    it or that it ends with, if that is one row's only. Raises UserError for inputs that cannot be read, that fit
    several rows, that fit no row (unless allowed), and for two captions of one row. Several inputs of masks for one row
    are put together.
    """
    dataset = Path(dataset)
    facts = read_manifest(dataset)
    plan = Plan.open(dataset, facts["columns"][BASE]["revision"])
    chosen = kind or sidecars.kind_of(inputs)
    imports = dataset / IMPORTS
    imports.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".making.", dir=imports) as scratch:
        join = _Join(Path(scratch) / "join.sqlite", {item.id_sha256 for item in read_removed(dataset)})
        try:
            join.add(sidecars.read(inputs, chosen, columns))
            join.match(plan, _rejected(dataset, plan.revision))
            join.refuse_ambiguous()
            if chosen == "captions":
                join.refuse_twice()
            if not allow_unmatched:
                join.refuse_unmatched()
            report, content = _write(Path(scratch), join, chosen, facts["rows"])
        finally:
            join.close()
        (Path(scratch) / "join.sqlite").unlink()
        content["sources"] = [str(path) for path in inputs]
        content["roots"] = [os.fsdecode(_root(path)) for path in inputs]
        folder = imports / report.digest
        if not folder.exists():
            making = Path(scratch) / "done"
            making.mkdir()
            for name in (ROWS, UNMATCHED):
                (Path(scratch) / name).rename(making / name)
            write_json(making / CONTENT, content)
            making.rename(folder)
            fsync_folder(imports)
        elif read_json(folder / CONTENT) != content:
            write_json(folder / CONTENT, content)  # the same rows from somewhere else
    return report._replace(folder=folder)


def _root(path: Path) -> Path:
    return (path if path.is_dir() else path.parent).resolve()


def _rejected(dataset: Path, revision: str) -> dict[str, str]:
    """File → reason, of rows that were planned and then rejected while packing."""
    with (column_folder(dataset, BASE, revision) / "rejected.jsonl").open(encoding="ascii") as lines:
        return {item["id"]: item["reason"] for item in map(json.loads, lines)}


# ---------------------------------------------------------------- the join


class _Join:
    """Items and the rows that they fit, in a file of SQLite. Names are bytes there: they need not be UTF-8."""

    def __init__(self, path: Path, removed: set[str]) -> None:
        self._removed = removed
        self._db = sqlite3.connect(path, isolation_level=None)
        self._db.executescript(
            """
            PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF;
            CREATE TABLE items (n INTEGER PRIMARY KEY, name BLOB, value TEXT, origin TEXT);
            CREATE TABLE names (n INTEGER, name BLOB, last BLOB, rank INTEGER);
            CREATE TABLE fits (n INTEGER, key TEXT, row BLOB, rank INTEGER);
            CREATE TABLE gone (n INTEGER, reason TEXT);
            """
        )

    def close(self) -> None:
        self._db.close()

    def add(self, items: Iterator[Item]) -> None:
        """Every item with the names that may be its row's: its own, that without extension, and its folder's."""
        self._db.execute("BEGIN")
        for n, item in enumerate(items):
            name, folder = (text.removeprefix("./").rstrip("/") for text in (item.name, item.folder))
            self._db.execute(
                "INSERT INTO items VALUES (?, ?, ?, ?)", (n, to_bytes(name), canonical(item.value), item.origin)
            )
            for rank, alias in enumerate((name, stem_of(name), folder)):
                if alias:
                    self._db.execute(
                        "INSERT INTO names VALUES (?, ?, ?, ?)", (n, to_bytes(alias), to_bytes(last_part(alias)), rank)
                    )
        self._db.execute("CREATE INDEX names_name ON names (name)")
        self._db.execute("CREATE INDEX names_last ON names (last)")
        self._db.execute("COMMIT")

    def match(self, plan: Plan, rejected: dict[str, str]) -> None:
        """Find the rows of items: by whole names, then, for the items left, where one path ends with the other."""
        self._db.execute("BEGIN")
        for key, entry in _rows_of(plan):
            names = [to_bytes(name) for name in (key, entry.id, entry.name)]
            query = "INSERT INTO fits SELECT n, ?, ?, rank FROM names WHERE name IN (?, ?, ?)"
            self._db.execute(query, (key, names[2], *names))
        self._db.execute("CREATE TABLE done AS SELECT DISTINCT n FROM fits")
        self._db.execute("CREATE INDEX done_n ON done (n)")
        for key, entry in _rows_of(plan):
            names = [to_bytes(name) for name in (key, entry.id, entry.name)]
            query = "SELECT n, name, rank FROM names WHERE last IN (?, ?, ?) AND n NOT IN (SELECT n FROM done)"
            lasts = [name.rpartition(b"/")[2] for name in names]
            found = [
                (n, key, names[2], rank)
                for n, name, rank in self._db.execute(query, lasts)
                if any(_ends_alike(name, own) for own in names)
            ]
            self._db.executemany("INSERT INTO fits VALUES (?, ?, ?, ?)", found)
        self._db.execute("CREATE INDEX fits_n ON fits (n)")
        # `v1.2` is the row of that name, and not the picture v1 with an extension.
        self._db.execute("DELETE FROM fits WHERE rank > (SELECT min(rank) FROM fits AS other WHERE other.n = fits.n)")
        self._db.execute("CREATE INDEX fits_key ON fits (key)")
        self._db.execute("CREATE INDEX fits_row ON fits (row)")
        for name, reason in rejected.items():  # such a row is not there: its inputs fit no row
            self._db.execute("INSERT INTO gone SELECT n, ? FROM fits WHERE row = ?", (reason, to_bytes(name)))
            self._db.execute("DELETE FROM fits WHERE row = ?", (to_bytes(name),))
        self._db.execute("COMMIT")

    def refuse_unmatched(self) -> None:
        shown = [f"  {item['origin']}: {item['why']}\n" for item in itertools.islice(self.unmatched(), SHOWN)]
        if not shown:
            return
        (count,) = self._db.execute("SELECT count(*) FROM items WHERE n NOT IN (SELECT n FROM fits)").fetchone()
        more = f"  and {count - SHOWN} more\n" if count > SHOWN else ""
        raise UserError(
            f"{count} inputs fit no row of the dataset:\n{''.join(shown)}{more}"
            "Mend their names, or leave them out with --allow-unmatched"
        )

    def refuse_ambiguous(self) -> None:
        if found := self._first_of_several("n", "origin", "key"):
            raise UserError(f"{found[0]}: fits several rows ({found[1]}); name the row by its key or its whole path")

    def refuse_twice(self) -> None:
        if found := self._first_of_several("key", "key", "origin"):
            raise UserError(f"row {found[0]}: has two captions: {found[1]}")

    def _first_of_several(self, one: str, named: str, others: str) -> tuple[str, str] | None:
        """What names the first item (or row) that fits several rows (or items), and these."""
        found: tuple[str, str] | None = self._db.execute(
            f"SELECT {named}, group_concat({others}, ' and ') FROM (SELECT DISTINCT n, key FROM fits) "
            f"JOIN items USING (n) GROUP BY {one} HAVING count(*) > 1 ORDER BY {one} LIMIT 1"
        ).fetchone()
        return found

    def unmatched(self) -> Iterator[dict[str, str]]:
        query = (
            "SELECT name, origin, reason FROM items LEFT JOIN gone USING (n) "
            "WHERE n NOT IN (SELECT n FROM fits) ORDER BY n"
        )
        for found, origin, reason in self._db.execute(query):
            name = to_text(found)
            if not self._removed.isdisjoint({id_hash(name), id_hash(stem_of(name))}):
                why = GONE
            elif reason:
                why = f"its row was rejected while packing ({reason})"
            else:
                why = f"no row is called {printable(name)}"
            yield {"name": name, "origin": origin, "why": why}

    def rows(self) -> Iterator[tuple[str, list[dict[str, Any]]]]:
        """(key, its items' values with their origin), in the order of keys and of input."""
        query = "SELECT DISTINCT key, n, value, origin FROM fits JOIN items USING (n) ORDER BY key, n"
        last, values = None, []
        for key, _, value, origin in self._db.execute(query):
            if key != last and last is not None:
                yield last, values
                values = []
            last = key
            values.append({**json.loads(value), "origin": origin})
        if last is not None:
            yield last, values


def _rows_of(plan: Plan) -> Iterator[tuple[str, Entry]]:
    """The rows that are not taken down."""
    return ((key, entry) for key, entry in plan.all_rows() if entry is not None)


def _ends_alike(one: bytes, other: bytes) -> bool:
    """Whether one path is the end of the other: `one`, `a/one` and `data/a/one`, but not `b/one` and `a/one`."""
    return (b"/" + one).endswith(b"/" + other) or (b"/" + other).endswith(b"/" + one)


def last_part(name: str) -> str:
    return name.rpartition("/")[2]


# ---------------------------------------------------------------- the result


def _write(scratch: Path, join: _Join, kind: Kind, rows: int) -> tuple[Report, dict[str, Any]]:
    """Write rows.jsonl and unmatched.jsonl; returns the report and the content of import.json."""
    blocks: list[list[Any]] = []
    whole = hashlib.sha256(kind.encode())
    lines: list[bytes] = []
    matched = 0
    with replacing(scratch / ROWS) as file:

        def flush(first: str) -> None:
            data = b"".join(lines)
            blocks.append([first, file.tell(), len(data), hashlib.sha256(data).hexdigest()])
            whole.update(data)
            file.write(data)
            lines.clear()

        first = ""
        for key, values in join.rows():
            first = first if lines else key
            lines.append((canonical({"key": key, "values": values}) + "\n").encode())
            matched += 1
            if len(lines) == BLOCK_ROWS:
                flush(first)
        if lines:
            flush(first)
    unmatched = 0
    with replacing(scratch / UNMATCHED) as file:
        for item in join.unmatched():
            unmatched += 1
            # The name of what was taken down is not written down again.
            file.write(
                (canonical(dict.fromkeys(item, "") | {"why": GONE} if item["why"] == GONE else item) + "\n").encode()
            )
    if not matched:
        raise UserError("none of the inputs fits a row of the dataset")
    digest = whole.hexdigest()[:10]
    content = {
        "format": FORMAT,
        "file": ROWS,
        "kind": kind,
        "digest": digest,
        "rows": matched,
        "unmatched": unmatched,
        "blocks": blocks,
    }
    return Report(scratch, digest, kind, matched, rows - matched, unmatched), content


def job_of(dataset: Path, column: str) -> Path:
    """The job file of an imported column, as it is now. Raises UserError when the column was not imported."""
    revision = read_manifest(dataset)["columns"].get(column, {}).get("revision") or current(dataset, column)
    made = read_column_manifest(dataset, column, revision)["stage"] if revision else {}
    if made.get("name") != "import":
        raise UserError(f"--again {column}: {dataset} has no imported column of this name (`semiocity columns`)")
    path = dataset / IMPORTS / made["args"]["digest"] / f"{column}.toml"
    if not path.is_file():
        raise UserError(f"{path}: no such file; import again with --from")
    return path


def write_job(report: Report, dataset: Path, column: str | None, missing: str, made_by: str) -> Path:
    """A job file that makes the column, beside the pinned rows; JSON's strings are TOML's."""
    name = column or {"captions": "caption", "masks": "mask"}[report.kind]
    lines = {
        "dataset": str(dataset.resolve()),
        "stage": "import",
        "column": name,
        "args.importer": report.kind,
        "args.folder": str(report.folder.resolve()),
        "args.digest": report.digest,
        "args.missing": missing,
        "args.made_by": made_by,
    }
    path = report.folder / f"{name}.toml"
    write_atomic(path, "".join(f"{key} = {json.dumps(value)}\n" for key, value in lines.items()).encode())
    return path
