"""Joining what was made elsewhere with the rows of a dataset, and pinning it, so that a stage can make a column of it.

    data/NAME/imports/DIGEST/rows.jsonl       one matched row a line, in the order of keys
                             import.json      blocks of rows.jsonl with their sha256, sources, counts
                             unmatched.jsonl  inputs that fit no row

The digest is that of rows.jsonl: the same input gives the same column. Texts and run-lengths are copied; PNGs stay
where they are, and their sha256 is pinned. The join is done in SQLite beside the result, so memory stays flat.
Login-node code.
"""

from __future__ import annotations

import bisect
import hashlib
import itertools
import json
import os
import sqlite3
import tempfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from semiocity.config import canonical, fsync_folder, read_json, write_atomic, write_json
from semiocity.data import sidecars
from semiocity.data.keys import printable, to_bytes, to_text
from semiocity.data.manifest import BASE, FORMAT, check_format, column_folder, read_manifest
from semiocity.data.plan import Plan
from semiocity.data.sidecars import Columns, Item, Kind
from semiocity.errors import UserError

BLOCK_ROWS = 1000
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

    A row is named by its key, by its file or id in the source, or, where that is unambiguous, by the last part of
    these. Raises UserError for inputs that cannot be read, that fit several rows, that fit no row (unless allowed), and
    for two captions of one row. Several inputs of masks for one row are put together.
    """
    dataset = Path(dataset)
    facts = read_manifest(dataset)
    plan = Plan.open(dataset, facts["columns"][BASE]["revision"])
    chosen = kind or sidecars.kind_of(inputs)
    imports = dataset / "imports"
    imports.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".making.", dir=imports) as scratch:
        join = _Join(Path(scratch) / "join.sqlite")
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
            for name in ("rows.jsonl", "unmatched.jsonl"):
                (Path(scratch) / name).rename(making / name)
            write_json(making / "import.json", content)
            making.rename(folder)
            fsync_folder(imports)
        elif read_json(folder / "import.json") != content:
            write_json(folder / "import.json", content)  # the same rows from somewhere else
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

    def __init__(self, path: Path) -> None:
        self._db = sqlite3.connect(path, isolation_level=None)
        self._db.executescript(
            """
            PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF;
            CREATE TABLE items (n INTEGER PRIMARY KEY, whole BLOB, stem BLOB, folder BLOB, last BLOB, last_stem BLOB,
                                last_folder BLOB, value TEXT, origin TEXT);
            CREATE TABLE fits (n INTEGER, key TEXT, row BLOB);
            CREATE TABLE gone (n INTEGER, reason TEXT);
            """
        )

    def close(self) -> None:
        self._db.close()

    def add(self, items: Iterator[Item]) -> None:
        self._db.execute("BEGIN")
        self._db.executemany(
            "INSERT INTO items (whole, stem, folder, last, last_stem, last_folder, value, origin) "
            "VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (
                (
                    *(to_bytes(text) or None for text in (name, _stem(name), folder)),
                    *(to_bytes(text) or None for text in (_last(name), _last(_stem(name)), _last(folder))),
                    canonical(item.value),
                    item.origin,
                )
                for item in items
                for name, folder in [(_plain(item.name), _plain(item.folder))]
            ),
        )
        for column in ("whole", "stem", "folder", "last", "last_stem", "last_folder"):
            self._db.execute(f"CREATE INDEX by_{column} ON items ({column})")
        self._db.execute("COMMIT")

    def match(self, plan: Plan, rejected: dict[str, str]) -> None:
        """Find the items of every row: first by whole names, then, for the items left, by the names' last parts."""
        self._pass(plan, ("whole", "stem", "folder"), whole=True)
        self._db.execute("CREATE INDEX fits_n ON fits (n)")
        self._pass(plan, ("last", "last_stem", "last_folder"), whole=False)
        self._db.execute("CREATE INDEX fits_key ON fits (key)")
        self._db.execute("CREATE INDEX fits_row ON fits (row)")
        for name, reason in rejected.items():  # such a row is not there: its inputs fit no row
            self._db.execute("INSERT INTO gone SELECT n, ? FROM fits WHERE row = ?", (reason, to_bytes(name)))
            self._db.execute("DELETE FROM fits WHERE row = ?", (to_bytes(name),))

    def _pass(self, plan: Plan, columns: tuple[str, ...], whole: bool) -> None:
        where = " OR ".join(f"{column} IN (?, ?, ?)" for column in columns)
        left = "" if whole else " AND n NOT IN (SELECT n FROM fits)"
        query = f"INSERT INTO fits SELECT n, ?, ? FROM items WHERE ({where}){left}"
        self._db.execute("BEGIN")
        if not whole:  # items that fitted a whole name, as they were before this pass
            self._db.execute("CREATE TEMP TABLE done AS SELECT DISTINCT n FROM fits")
            self._db.execute("CREATE INDEX temp.done_n ON done (n)")
            query = query.replace("(SELECT n FROM fits)", "(SELECT n FROM temp.done)")
        for shard in range(plan.shards):
            for row in plan.rows(shard):
                entry = row.entry
                file = entry.files.get("image", entry.id)
                names = [row.key, entry.id, file] if whole else [row.key, _last(entry.id), _last(file)]
                bound = [to_bytes(name) for name in names] * len(columns)
                self._db.execute(query, (row.key, to_bytes(entry.name), *bound))
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
        found = self._db.execute(
            "SELECT origin, group_concat(key, ' and ') FROM (SELECT DISTINCT n, key FROM fits) JOIN items USING (n) "
            "GROUP BY n HAVING count(*) > 1 ORDER BY n LIMIT 1"
        ).fetchone()
        if found:
            raise UserError(f"{found[0]}: fits several rows ({found[1]}); name the row by its key or its whole path")

    def refuse_twice(self) -> None:
        found = self._db.execute(
            "SELECT key, group_concat(origin, ' and ') FROM (SELECT DISTINCT n, key FROM fits) JOIN items USING (n) "
            "GROUP BY key HAVING count(*) > 1 ORDER BY key LIMIT 1"
        ).fetchone()
        if found:
            raise UserError(f"row {found[0]}: has two captions: {found[1]}")

    def unmatched(self) -> Iterator[dict[str, str]]:
        query = (
            "SELECT whole, origin, reason FROM items LEFT JOIN gone USING (n) "
            "WHERE n NOT IN (SELECT n FROM fits) ORDER BY n"
        )
        for name, origin, reason in self._db.execute(query):
            absent = f"no row is called {printable(to_text(name or b''))}"
            yield {"origin": origin, "why": f"its row was rejected while packing ({reason})" if reason else absent}

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


def _plain(name: str) -> str:
    return name.removeprefix("./").rstrip("/")


def _stem(name: str) -> str:
    """A name without its extension: `a/b.c.jpg` → `a/b.c`."""
    last = PurePosixPath(name).suffix
    return name.removesuffix(last) if last else name


def _last(name: str) -> str:
    return name.rpartition("/")[2]


# ---------------------------------------------------------------- the result


def _write(scratch: Path, join: _Join, kind: Kind, rows: int) -> tuple[Report, dict[str, Any]]:
    """Write rows.jsonl and unmatched.jsonl; returns the report and the content of import.json."""
    blocks: list[list[Any]] = []
    whole = hashlib.sha256(kind.encode())
    lines: list[bytes] = []
    matched = 0
    with (scratch / "rows.jsonl").open("xb") as file:

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
        file.flush()
        os.fsync(file.fileno())
    unmatched = 0
    with (scratch / "unmatched.jsonl").open("x", encoding="ascii") as file_:
        for item in join.unmatched():
            unmatched += 1
            file_.write(canonical(item) + "\n")
    if not matched:
        raise UserError("none of the inputs fits a row of the dataset")
    digest = whole.hexdigest()[:10]
    content = {
        "format": FORMAT,
        "kind": kind,
        "digest": digest,
        "rows": matched,
        "unmatched": unmatched,
        "blocks": blocks,
    }
    return Report(scratch, digest, kind, matched, rows - matched, unmatched), content


class Pinned:
    """Reads an import, a block of rows at a time. Raises UserError when it is damaged."""

    def __init__(self, folder: Path) -> None:
        self._folder = Path(folder)
        path = self._folder / "import.json"
        try:
            self.content: dict[str, Any] = read_json(path)
        except FileNotFoundError:
            raise UserError(f"{path}: no such file; run `semiocity import` again") from None
        check_format(self.content, path)
        self.roots = [Path(root) for root in self.content["roots"]]
        self._first = [block[0] for block in self.content["blocks"]]
        self._block = -1
        self._rows: dict[str, list[dict[str, Any]]] = {}

    def get(self, key: str) -> list[dict[str, Any]]:
        """The values of a row, each with its `origin`; empty where there is none."""
        block = bisect.bisect_right(self._first, key) - 1
        if block < 0:
            return []
        if block != self._block:
            self._rows, self._block = self._read(block), block
        return self._rows.get(key, [])

    def _read(self, block: int) -> dict[str, list[dict[str, Any]]]:
        _, offset, length, sha256 = self.content["blocks"][block]
        with (self._folder / "rows.jsonl").open("rb") as file:
            file.seek(offset)
            data = file.read(length)
        if hashlib.sha256(data).hexdigest() != sha256:
            raise UserError(
                f"{self._folder / 'rows.jsonl'}: damaged; remove the folder and run `semiocity import` again"
            )
        return {row["key"]: row["values"] for row in map(json.loads, data.splitlines())}


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
