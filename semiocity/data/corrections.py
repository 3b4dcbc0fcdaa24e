"""The texts of corrections by hand, kept apart from the shards that hold them: a person wrote them, no job can.

    data/NAME/edits/COLUMN/REVISION.jsonl

The first line is {"of", "carried"}, then each row has one: {"key", "text", "image_crc32", "image_bytes"}. REVISION is
the revision of the column that `edit` made, `of` the one that it was made of, `carried` are revisions whose corrections
were brought along. `gc` leaves these files alone; `remove` takes rows out of them. Login-node code.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from semiocity.data.keys import DIGITS
from semiocity.data.layout import EDITS
from semiocity.data.state import lineage, pointers
from semiocity.errors import UserError
from semiocity.files import canonical, write_atomic


class Correction(NamedTuple):
    """One row's text."""

    text: str
    image_crc32: int | None
    """Of the picture that the text was written for, as it is packed."""
    image_bytes: int | None
    """Size of its file in the source, where it has one."""

    def fits(self, image_crc32: int | None, image_bytes: int | None) -> bool:
        """Whether a row has the picture that the text was written for, perhaps packed otherwise since."""
        return self.image_crc32 == image_crc32 or self.image_bytes == image_bytes is not None


class Kept(NamedTuple):
    """What is kept of one revision."""

    of: str
    carried: tuple[str, ...]
    rows: dict[str, Correction]
    """By key."""


def keep(
    dataset: Path, column: str, revision: str, of: str, rows: Mapping[str, Correction], carried: Sequence[str] = ()
) -> None:
    """Keep the corrections of a revision that is about to be made."""
    head = canonical({"of": of, "carried": list(carried)})
    lines = [canonical({"key": key, **rows[key]._asdict()}) for key in sorted(rows)]
    write_atomic(_file(dataset, column, revision), "".join(f"{line}\n" for line in [head, *lines]).encode())


def read(dataset: Path, column: str, revision: str) -> Kept | None:
    """The corrections of a revision; None where none are kept. Raises UserError when the file is damaged."""
    path = _file(dataset, column, revision)
    try:
        head, *rows = (json.loads(line) for line in path.read_text(encoding="ascii").splitlines())
        found = {row["key"]: Correction(row["text"], row["image_crc32"], row["image_bytes"]) for row in rows}
        return Kept(head["of"], tuple(head["carried"]), found)
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: damaged ({error}); put a copy of it back") from None


def history(dataset: Path, column: str, revision: str) -> list[tuple[str, Kept]]:
    """The corrections that a revision rests on, the latest first, also where the revisions themselves are gone."""
    found: list[tuple[str, Kept]] = []
    while (kept := read(dataset, column, revision)) is not None:
        found.append((revision, kept))
        revision = kept.of
    return found


def left_behind(dataset: Path, column: str, revision: str | None = None) -> dict[str, int]:
    """Revisions with corrections that `revision` (by default the current one) has not, those that no other of them was
    made of, and of how many rows."""
    folder = Path(dataset) / EDITS / column
    revisions = sorted(path.stem for path in folder.glob("*.jsonl")) if folder.is_dir() else []
    now = revision or pointers(Path(dataset)).get(column)
    if not revisions or now is None:
        return {}
    there = set(lineage(dataset, column, now))
    for revision in list(there):
        kept = read(dataset, column, revision)
        there.update(kept.carried if kept else ())
    behind = [revision for revision in revisions if revision not in there]
    found = {tip: history(dataset, column, tip) for tip in behind}
    earlier = {made for kept in found.values() for made, _ in kept[1:]}
    rows = {tip: {key for _, one in kept for key in one.rows} for tip, kept in found.items() if tip not in earlier}
    return {tip: len(keys) for tip, keys in rows.items() if keys}


def notes(dataset: Path, column: str, revision: str) -> list[str]:
    """What to tell somebody who makes or looks at a revision of a column, about corrections that it has not."""
    return [
        f"{rows} corrections by hand in {column}/{tip} are not in {column}/{revision}; `semiocity edit {dataset} "
        f"--column {column} --from-revision {tip}` brings them"
        for tip, rows in left_behind(dataset, column, revision).items()
    ]


def forget(dataset: Path, hashes: set[str]) -> None:
    """Take the rows with these id_sha256 out. May be cut short and repeated; file names stay."""
    gone = _beginnings(hashes)
    for path in remembered(dataset, hashes):
        kept = read(dataset, path.parent.name, path.stem)
        assert kept is not None
        left = {key: row for key, row in kept.rows.items() if key.partition("-")[0] not in gone}
        keep(dataset, path.parent.name, path.stem, kept.of, left, kept.carried)


def remembered(dataset: Path, hashes: set[str]) -> Iterator[Path]:
    """Files that still hold rows with these id_sha256."""
    gone = _beginnings(hashes)
    for path in sorted((Path(dataset) / EDITS).glob("*/*.jsonl")):
        kept = read(dataset, path.parent.name, path.stem)
        if kept is not None and any(key.partition("-")[0] in gone for key in kept.rows):
            yield path


def _beginnings(hashes: set[str]) -> set[str]:
    """What keys of rows with these id_sha256 may begin with."""
    return {found[:digits] for found in hashes for digits in DIGITS}


def _file(dataset: Path, column: str, revision: str) -> Path:
    return Path(dataset) / EDITS / column / f"{revision}.jsonl"
