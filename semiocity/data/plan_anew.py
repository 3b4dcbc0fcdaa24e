"""What planning anew would cost: said before it is done, and again when it was asked for. Login-node code."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from semiocity.data.listing import Listing
from semiocity.data.manifest import BASE, column_folder, current, lineage, read_manifest
from semiocity.errors import UserError
from semiocity.files import canonical

if TYPE_CHECKING:
    from semiocity.data.plan import Plan

SHOWN = 5
"""Settings and columns that are named one by one."""


def in_use(dataset: Path) -> str | None:
    """The revision of base that the dataset uses; while none is merged, the one that was packed last."""
    if (used := current(dataset, BASE)) is not None:
        return used
    packed = [path.parent for path in dataset.glob("plans/*/plan.json")]
    folders = [folder for plan in packed if (folder := column_folder(dataset, BASE, plan.name)).is_dir()]
    return max(folders, key=lambda folder: folder.stat().st_mtime_ns).name if folders else None


def refusal(dataset: Path, used: Plan | None, settings: Mapping[str, Any], listing: Listing) -> UserError:
    """Why a source is not planned anew without being asked to. `used` is the plan in use, None when it cannot be read;
    `settings` and `listing` are what there is now."""
    before = {} if used is None else {name: used.content.get(name) for name in settings}
    if before.get("packer_version") == 2:  # such shards grow as they are
        before["packer_version"] = settings["packer_version"]
    differing = list(_differing(before, settings)) if before else []
    rows: list[str] = []
    if used is None:
        differing = ["the plan of what is packed cannot be read"]
    elif not differing:
        for _ in listing.rows(used.all_rows()):
            pass
        if listing.changed:
            rows.append(f"{listing.changed} rows of the plan differ now (first: {listing.first_changed})")
        if listing.gone:
            rows.append(f"{listing.gone} of its rows are gone from the source (first: {listing.first_gone})")
    more = [f"and {len(differing) - SHOWN} more"] if len(differing) > SHOWN else []
    what = "; ".join([*rows, *differing[:SHOWN], *more])
    back = "Put the recipe's keys (also those of --set) back to go on with what is packed." if differing else ""
    if rows:
        back = f"Rows that shall go for good go with `semiocity remove {dataset} KEY …`, which keeps the rest."
    return UserError(
        f"{dataset}: {what}. All rows would be planned and packed anew, as another revision of base"
        f"{_lost(dataset)}. {back} If it is meant, add --anew"
    )


def note(dataset: Path, revision: str) -> str | None:
    """What becomes of the dataset when `revision` of base comes into use in place of another; None when it is used."""
    used = current(dataset, BASE)
    if used in (None, revision):
        return None
    return f"base will be revision {revision} in place of {used}{_lost(dataset)}"


def _lost(dataset: Path) -> str:
    """The columns that do not go along, and what was corrected by hand in them."""
    if current(dataset, BASE) is None:
        return ""
    columns = {name: c["revision"] for name, c in read_manifest(dataset)["columns"].items() if name != BASE}
    if not columns:
        return ""
    names = sorted(columns)
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    text = f"; out of date, until their jobs have run again: {', '.join(names[:SHOWN])}{more}"
    for name, revision in columns.items():
        if len(lineage(dataset, name, revision)) > 1:
            text += (
                f"; corrections by hand in {name}/{revision} do not follow by themselves: when {name} is there again, "
                f"`semiocity edit {dataset} --column {name} --from-revision {revision}` brings them"
            )
    return text


def _differing(before: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """`shard_rows: 6 -> 2` for every key that differs, those of the recipe by their own names."""
    for name in sorted({*before, *now}):
        old, new = before.get(name), now.get(name)
        if old == new:
            continue
        called = "" if name == "recipe" and not prefix else f"{prefix}{name}"
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            yield from _differing(old, new, f"{called}." if called else "recipe: ")
        else:
            yield f"{called}: {_short(old)} -> {_short(new)}"


def _short(value: Any) -> str:
    text = "(none)" if value is None else canonical(value)
    return text if len(text) <= 60 else text[:57] + "…"
