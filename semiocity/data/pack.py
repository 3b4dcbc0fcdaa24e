"""Packing: the rows of a plan's shard, read, checked, normalised and written."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict
from functools import cache
from typing import Any

import numpy as np
import PIL
from PIL import features

from semiocity.config import canonical
from semiocity.data import apart, images
from semiocity.data import geometry as geo
from semiocity.data.blurring import Blurrer, make_blurrer
from semiocity.data.boxes import encode_boxes, place_boxes
from semiocity.data.filter import LONGEST_TEXT
from semiocity.data.images import Picture, Rejected
from semiocity.data.journal import Journal, Result
from semiocity.data.keys import storable
from semiocity.data.lease import Owner, lease
from semiocity.data.manifest import BASE, complete
from semiocity.data.plan import Plan
from semiocity.data.recipe import FIELDS, Recipe
from semiocity.data.results import Made, Refused, Tombstone, write
from semiocity.data.shard import Head, Scalar, ShardPath, ShardWriter
from semiocity.data.sources import loading, scalars_of
from semiocity.data.sources.base import Entry, Raw
from semiocity.errors import Stopped

TAKEN_DOWN = Tombstone("removed", "taken down")


def pack_shards(
    plan: Plan,
    shards: Sequence[int],
    owner: Owner,
    stop: Callable[[], bool] = lambda: False,
    report: Callable[[dict[str, Any]], None] = lambda _: None,
    gone: Callable[[Owner], bool] = lambda holder: False,
    careful: bool = False,
) -> bool:
    """Pack those of `shards` that are missing and that nobody else works on. False when `stop` said to leave early.

    Shards in which an attempt died, which its lease tells of, come first and are made in a process of their own, so
    that the picture that kills is rejected; with `careful` all are.
    """
    # Looked at one by one: ten thousand tasks must not list the folders of all shards.
    absent = {shard for shard in shards if not complete(plan.path(shard))}
    risky = {shard for shard in absent if careful or plan.path(shard).lease.exists()}
    # Loaded when it is first wanted: a child cannot be forked once this process has touched a GPU.
    blurrer = cache(lambda: make_blurrer(plan.recipe.blur, plan.detector))
    for done, shard in enumerate(sorted(shards, key=lambda shard: shard not in risky)):
        if stop():
            return False
        report({"shard": shard, "done_shards": done, "shards": len(shards)})
        if shard in absent:
            path = plan.path(shard)
            with lease(path.lease, owner, gone=gone) as held:
                if not held:
                    report({"leased": shard})  # somebody alive packs it
                elif not complete(path):  # complete: another task has packed it since
                    try:
                        receipt = pack_shard(plan, shard, path, blurrer, owner, stop, shard in risky)
                    except Stopped:
                        return False
                    report({"rows": receipt["rows"], "rejected": len(receipt["rejected"])})
        report({"done_shards": done + 1})
    return True


def pack_shard(
    plan: Plan,
    shard: int,
    path: ShardPath,
    blurrer: Callable[[], Blurrer | None] | None = None,
    owner: Owner | None = None,
    stop: Callable[[], bool] = lambda: False,
    risky: bool = False,
) -> dict[str, Any]:
    """Pack one shard and return its receipt. The caller holds the shard's lease. `blurrer` gives the loaded detector.

    Bad input is rejected with a reason, row by row; with `risky` also what kills the process that reads it. Where a
    detector makes a shard take long, `stop` is asked between rows, and an attempt that ends inside leaves a journal for
    the next. Raises UserError when a source file is gone or has another size than when the plan was made, and OSError
    when reading fails otherwise: both may be mended and tried again; Stopped when told to stop.
    """
    head, rows = make_head(plan, shard), plan.rows(shard)
    load = blurrer or (lambda: make_blurrer(plan.recipe.blur, plan.detector))
    if plan.recipe.blur is None:
        with ShardWriter(path, head) as writer:
            for key, result in _made(plan, rows, load, risky):
                write(writer, key, result)
            return writer.publish()
    with Journal(path, asdict(head), 1, asdict(owner) if owner else {}) as journal, ShardWriter(path, head) as writer:
        for key, result in journal.replay():
            write(writer, key, result)
        for key, result in _made(plan, rows[journal.done :], load, risky):
            write(writer, key, result)
            journal.add(journal.done, [(key, result)], 1)
            if stop():
                raise Stopped
        receipt = writer.publish()
        journal.remove()
    return receipt


def _made(plan: Plan, rows: Sequence[Any], blurrer: Callable[[], Blurrer | None], risky: bool) -> Iterable[Result]:
    """What becomes of rows of a plan, in order; of a `risky` shard in a process of its own."""
    if not risky:
        return _packed(plan, rows, blurrer())

    def refuse(row: int, reason: str) -> Result:
        key, entry = rows[row]
        if entry is None:
            return key, TAKEN_DOWN
        return key, Refused(entry.name, "kills_process", reason)

    return apart.one_by_one(lambda begin: _packed(plan, rows[begin:], blurrer()), len(rows), refuse)


def _packed(plan: Plan, rows: Sequence[Any], blurrer: Blurrer | None) -> Iterator[Result]:
    """What becomes of rows of a plan, in order."""
    recipe = plan.recipe
    searchable = _captions_are_scalars(plan)
    with loading(recipe.source, [row.entry for row in rows if row.entry is not None]) as load:
        for key, entry in rows:
            if entry is None:
                yield key, TAKEN_DOWN
                continue
            try:
                raw = load(entry)
                _keep_promises(recipe, raw)
                fields, scalars = _pack_row(recipe, entry, raw, blurrer)
            except Rejected as rejected:
                yield key, Refused(entry.name, rejected.reason, rejected.detail)
            else:
                if searchable and "caption" in fields:
                    scalars["caption"] = caption_scalar(fields["caption"][1])
                yield key, Made(fields, scalars)


def make_head(plan: Plan, shard: int) -> Head:
    """The head of a base shard."""
    scalars: dict[str, Scalar] = {"split": "str", "width": "int", "height": "int"}
    blur = plan.recipe.blur
    if blur is not None:
        scalars["blurred"] = "int"
    if _captions_are_scalars(plan):
        scalars["caption"] = "str"
    codecs = {
        "pillow": PIL.__version__,
        "jpeg": features.version("libjpeg_turbo"),
        "zlib": features.version("zlib_ng") or features.version("zlib"),
    }
    return Head(
        column=BASE,
        revision=plan.revision,
        shard=shard,
        parents={},
        stage={"name": "pack", "version": plan.packer_version, "args": {"plan": plan.revision}},
        model=None,
        # Pictures encoded again depend on the encoders; the others on nothing but their files.
        execution={"device": getattr(blur and blur.detector, "device", "cpu"), "dtype": "uint8", "batch": 1, **codecs},
        fields={name: FIELDS[name] for name in (*plan.fields, "meta")},
        scalars=scalars | scalars_of(plan.recipe.source),
    )


def caption_scalar(caption: bytes) -> str:
    """What the index holds of a row's field `caption`: as much as the column `caption` has in its scalar `text`."""
    return caption.decode()[:LONGEST_TEXT]


def _captions_are_scalars(plan: Plan) -> bool:
    """Whether captions of the source are searched and filtered by. A scalar of that name that the source declares goes
    before."""
    return plan.packer_version >= 3 and "caption" in plan.fields and "caption" not in scalars_of(plan.recipe.source)


def _keep_promises(recipe: Recipe, raw: Raw) -> None:
    """Raises Rejected for a field that is promised and, as only loading could tell, is not there."""
    for name in recipe.fields or ():
        if getattr(raw, name) is None:
            raise Rejected(f"{name}_missing", "promised by the recipe")


def _pack_row(
    recipe: Recipe, entry: Entry, raw: Raw, blurrer: Blurrer | None = None
) -> tuple[dict[str, tuple[str, bytes]], dict[str, Any]]:
    """Fields and scalars of a row. Raises Rejected."""
    if isinstance(raw.image, bytes):
        picture = images.decode_image(raw.image, recipe.image.max_pixels)
    else:
        picture = images.picture_from_array(raw.image)
    original = {"width": picture.pixels.width, "height": picture.pixels.height}
    blurred = {}
    if blurrer is not None:
        picture, blurred["blurred"] = blurrer(entry, picture)
    label = _label(recipe, raw.label, picture.pixels.size, raw.label_colors)
    instance = _instance(recipe, raw, picture.pixels.size)
    if raw.rotation:
        turned = [*picture.changes, f"rotation {raw.rotation}"]
        picture = Picture(geo.turn_image(picture.pixels, raw.rotation), picture.ext, None, turned)
        label = None if label is None else geo.turn_ids(label, raw.rotation)
        instance = None if instance is None else geo.turn_ids(instance, raw.rotation)
    geometry = geo.plan_geometry(recipe.image, *picture.pixels.size)
    changes = picture.changes
    if geometry is not None:
        changes = [*changes, recipe.image.resize]
        picture = Picture(geo.resize_image(picture.pixels, geometry), picture.ext, None)
        if instance is not None:
            instance = geo.resize_instances(instance, label, geometry)
        if label is not None:
            label = geo.resize_ids(label, geometry, pad=recipe.ignore_id or 0)
    width, height = picture.pixels.size
    scalars = {
        "split": entry.split,
        "width": width,
        "height": height,
        "license": recipe.license or None,
        "origin": None,
        **blurred,
        **{name: value for name, value in {**entry.scalars, **raw.scalars}.items() if value is not None},
    }
    scalars = {name: storable(value) if isinstance(value, str) else value for name, value in scalars.items()}
    fields = {"image": images.encode_image(picture, recipe.image)}
    if label is not None:
        fields["label"] = ("label.png", images.encode_ids(label))
    if instance is not None:
        fields["instance"] = ("instance.png", images.encode_ids(instance))
    ids = label if instance is None else instance
    if recipe.edges and ids is not None:
        fields["edge"] = ("edge.png", images.encode_ids(geo.edge_map(ids)))
    if raw.caption is not None:
        fields["caption"] = ("txt", _caption(raw.caption))
    if raw.boxes is not None:
        boxes = place_boxes(
            raw.boxes,
            (original["width"], original["height"]),
            geometry,
            relative=raw.relative_boxes,
            rotation=raw.rotation,
            min_visible=recipe.boxes.min_visible,
        )
        fields["boxes"] = ("boxes.json", encode_boxes(boxes))
    meta = {"id": entry.id, "file": entry.files.get("image"), "source": recipe.source.kind, "original": original}
    fields["meta"] = ("json", canonical({**meta, **scalars, "changes": changes}).encode())
    return fields, scalars


def _label(
    recipe: Recipe, raw: Any, size: tuple[int, int], colors: dict[tuple[int, int, int], int] | None = None
) -> np.ndarray | None:
    """The label map at the picture's size, its ids checked. `colors` as in Raw."""
    if raw is None:
        return None
    table = recipe.label_table()
    if not isinstance(raw, bytes):
        ids = raw
    elif recipe.label.encoding == "colors":
        ids = images.decode_colors(
            raw, [c.color for c in recipe.classes or ()], recipe.ignore_id, recipe.image.max_pixels
        )
        table = {own: own for own in table.values()}
    elif colors is not None:
        ids = images.decode_colors(raw, list(colors), None, recipe.image.max_pixels)
        ids = np.array(list(colors.values()), dtype=np.uint8)[ids]
    else:
        ids = images.decode_ids(raw, "label", 8, recipe.image.max_pixels)
    images.check_ids(ids, table)
    if any(raw_id != own for raw_id, own in table.items()):
        ids = images.id_table(table)[ids]
    return _at_size(recipe, ids, "label", size)


def _instance(recipe: Recipe, raw: Raw, size: tuple[int, int]) -> np.ndarray | None:
    ids = raw.instance
    if ids is None:
        return None
    if isinstance(ids, bytes):
        ids = images.decode_ids(ids, "instance", 16, recipe.image.max_pixels)
    if raw.first_instance > 1:
        ids = np.where(ids < raw.first_instance, 0, ids).astype(np.uint16)
    return _at_size(recipe, ids, "instance", size)


def _at_size(recipe: Recipe, ids: np.ndarray, field: str, size: tuple[int, int]) -> np.ndarray:
    found = ids.shape[::-1]
    if found == size:
        return ids
    if recipe.label.other_size == "reject":
        raise Rejected(f"{field}_size", f"{found[0]}x{found[1]}, the picture is {size[0]}x{size[1]}")
    return geo.scale_ids(ids, size)


def _caption(data: bytes) -> bytes:
    try:
        return data.decode("utf-8-sig").strip().encode()
    except UnicodeDecodeError as error:
        raise Rejected("caption_encoding", str(error)) from None
