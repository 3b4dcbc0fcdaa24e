"""Existing tar shards: webdataset 0.2 and 1.x, img2dataset, or any tar whose members of one sample share a name.

Keys are made anew (`keys.key_of`); the old ones live on in the row's id, TAR/KEY, and in `origin`. A sample's members
need not be neighbours. Where each member lies is found while planning, so that packing reads by offset and length.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import Field, field_validator

from semiocity.data.keys import fraction_of, printable
from semiocity.data.sources.base import Entry, FileSource, Rejection
from semiocity.data.sources.files import IMAGE_EXTENSIONS, UNREAD, Found, check_root, open_below, split_name, walk
from semiocity.data.sources.scalars import Scalars, types_of
from semiocity.data.sources.scalars import split_name as split_of
from semiocity.data.sources.tars import Damage, Member, members
from semiocity.errors import UserError

VERSION = 1
FIELDS = ("image",)
CLASSES = None
IGNORE_ID = None
LOADER = "semiocity.data.sources.tar_members:load"

JSON = "json"
ALSO = ("jpe", "jfif", "avif")
"""Extensions of the picture wherever `jpg` is one; not among the options, which decide the revision."""
PACKED = ("tar.gz", "tgz", "tar.zst", "tar.bz2", "tar.xz")


class WebdatasetSource(FileSource):
    """Tar files below root."""

    kind: Literal["webdataset"] = "webdataset"
    image: tuple[str, ...] = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff")
    """Extensions of the members that are the picture, without the first dot."""
    label: tuple[str, ...] = ("label.png",)
    """Of label maps."""
    instance: tuple[str, ...] = ("instance.png",)
    """Of instance maps."""
    caption: tuple[str, ...] = ("txt",)
    """Of captions."""
    ignore: tuple[str, ...] = ()
    """Extensions of pictures that are to be left out; others that no field claims are listed as rejected."""
    caption_key: str | None = None
    """Key of the sample's json that holds the caption, where no member does."""
    license_key: str | None = None
    """Key of the sample's json that holds its licence."""
    origin_key: str | None = None
    """Key of the sample's json that says where the picture is from: img2dataset's is "url". By default TAR/KEY."""
    scalars: Scalars = Field({})
    """Keys of the sample's json for the index, with their types: `scalars = {similarity = "float"}`."""
    split_by: Literal["fraction", "folder"] = "fraction"
    """fraction: `val_fraction` of the samples, by a hash of their ids, are val and the others train.
    folder: the first folder below root that a tar lies in names its split (train for those directly in root)."""
    splits: dict[str, str] = Field({})
    """Splits to rename; validation, valid and dev are val without being told."""
    val_fraction: float = Field(0.0, ge=0.0, lt=1.0)

    @field_validator("image", "label", "instance", "caption", "ignore")
    @classmethod
    def _plain(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for extension in value:
            if not extension or extension.startswith(".") or extension != extension.lower():
                raise ValueError(f"{extension!r}: an extension in lower case without its first dot is expected")
        return value

    @property
    def scalar_types(self) -> dict[str, Any]:
        """Scalars that this source adds to every row."""
        return types_of(self.scalars)

    @property
    def reads_json(self) -> bool:
        """Whether anything is wanted of the samples' json."""
        return bool(self.caption_key or self.license_key or self.origin_key or self.scalars)

    def fields_by_extension(self) -> dict[str, str]:
        """Extension of a member → what it is."""
        named = {"image": self.image, "label": self.label, "instance": self.instance, "caption": self.caption}
        known = {extension: "image" for extension in ALSO if "jpg" in self.image}
        known |= {extension: field for field, extensions in named.items() for extension in extensions}
        return {**known, JSON: JSON} if self.reads_json else known


@dataclass
class _Sample:
    """The members of one key: field → (offset, size)."""

    key: str
    parts: dict[str, tuple[int, int]] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)
    broken: Rejection | None = None


def entries(source: WebdatasetSource) -> Iterator[Entry | Rejection]:
    """One entry a sample with a picture. Raises UserError when there are no tars."""
    check_root(source.root)
    seen = 0
    for found in walk(source.root, also=source.link_roots):
        if found.name.lower().endswith(PACKED):
            raise UserError(
                f"{source.root / printable(found.name)}: compressed as a whole, so that nothing in it can be found "
                "without reading all of it; unpack it to a plain .tar first"
            )
        if found.is_folder or found.extension == "tar":
            seen += 1
            if found.problem:
                yield found.problem
            else:
                yield from _tar(source, found)
    if not seen:
        raise UserError(f"source.root: no *.tar below {source.root}")


def _tar(source: WebdatasetSource, found: Found) -> Iterator[Entry | Rejection]:
    """A tar's samples in the order of their first members, then what is wrong with it."""
    listed: list[Member] = []
    damage: Damage | None = None
    try:
        descriptor = open_below(source.root, found.name, source.link_roots)
    except PermissionError:
        yield Rejection(found.name, "unreadable", "no permission to read the tar")
        return
    try:
        for member in members(descriptor):
            if isinstance(member, Damage):
                damage = member
            elif not member.name.rpartition("/")[2].startswith("."):  # hidden, as in folders
                listed.append(member)
    finally:
        os.close(descriptor)
    samples, rejected = _group(source, found, listed)
    names = [rejection.id.removeprefix(f"{found.name}/") for rejection in rejected]
    unread = {key for name in names for key in (first_dot(name)[0], split_name(name)[0])}
    # The sample before the damage may have had more members: what is left of it is no sample.
    lost = _key_of(listed[-1].name, source, samples) if damage and listed else None
    for key, sample in samples.items():
        if sample.broken:
            yield sample.broken
        elif key != lost and "image" in sample.parts:
            yield _entry(source, found, sample)
        elif key != lost and key not in unread:
            parts = ", ".join(sorted(sample.parts))
            yield Rejection(f"{found.name}/{key}", "image_missing", f"the sample has no picture, only: {parts}")
    yield from rejected
    if damage:
        before = f"; {printable(lost)}, the sample before it, may be incomplete and is not packed" if lost else ""
        yield Rejection(
            found.name, "tar_damaged", f"{printable(found.name)}, byte {damage.offset}: {damage.what}{before}"
        )


def _group(source: WebdatasetSource, found: Found, listed: list[Member]) -> tuple[dict[str, _Sample], list[Rejection]]:
    """Members by key. Keys end at the name's first dot, as in webdataset, wherever that gives known extensions."""
    known = source.fields_by_extension()
    samples: dict[str, _Sample] = {}
    rejected: list[Rejection] = []
    rest: list[Member] = []
    for member in listed:
        key, extension = first_dot(member.name)
        if extension in known:
            rejected += _add(samples.setdefault(key, _Sample(key)), known[extension], member, found)
        elif extension not in source.ignore:
            rest.append(member)
    taken = {key for key, sample in samples.items() if "image" in sample.parts}
    for member in rest:
        key, extension = _last_dot(member.name, known)
        if extension and first_dot(member.name)[0] not in taken:
            # A dot in the key itself, v1.2.jpg: other readers call this key v1 and the field 2.jpg.
            rejected += _add(samples.setdefault(key, _Sample(key)), known[extension], member, found)
        elif split_name(member.name)[1] in IMAGE_EXTENSIONS:
            reason = "duplicate_id"
            detail = "no field has its extension; name it in one (source.label = […]) or in source.ignore"
            if split_name(member.name)[1] in UNREAD:
                reason, detail = "image_unknown", "pictures of this kind are not read"
            rejected.append(Rejection(f"{found.name}/{member.name}", reason, detail))
    return samples, rejected


def _add(sample: _Sample, what: str, member: Member, found: Found) -> list[Rejection]:
    """Put a member into its sample; the first of a kind counts, and the others are rejected."""
    name = f"{found.name}/{member.name}"
    if what in sample.parts:
        detail = f"{printable(sample.names[what])} has the same key, and is packed"
        return [] if what == JSON else [Rejection(name, "duplicate_id", detail)]
    if not member.regular:
        sample.broken = Rejection(name, "not_a_file", "a link, a device or a sparse file")
    sample.parts[what] = (member.offset, member.size)
    sample.names[what] = member.name
    return []


def _entry(source: WebdatasetSource, found: Found, sample: _Sample) -> Entry:
    id = f"{found.stem}/{sample.key}"
    sizes = {name: size for name, (_, size) in sample.parts.items() if name != JSON}
    if source.caption_key and JSON in sample.parts:
        sizes.setdefault("caption", 0)
    extra = {"tar": found.name, "size": found.size, "parts": sample.parts}
    return Entry(id, {}, sizes, _split(source, found, id), extra, {"origin": printable(id)})


def _split(source: WebdatasetSource, found: Found, id: str) -> str:
    if source.split_by == "fraction":
        return "val" if fraction_of(id, "split") < source.val_fraction else "train"
    first, slash, _ = found.name.partition("/")
    return split_of(first, source.splits) if slash else "train"


def first_dot(name: str) -> tuple[str, str]:
    """(key, extension in lower case) of a member, as webdataset splits: at the first dot of the last part."""
    folder, slash, last = name.removeprefix("./").rpartition("/")
    key, _, extension = last.partition(".")
    return folder + slash + key, extension.lower()


def _last_dot(name: str, known: dict[str, str]) -> tuple[str, str]:
    """(key, the longest known extension that the name ends in); no extension where it ends in none."""
    plain = name.removeprefix("./")
    for extension in sorted(known, key=len, reverse=True):
        stem = plain[: -len(extension) - 1]
        if plain.lower().endswith("." + extension) and stem and not stem.endswith("/"):
            return stem, extension
    return plain, ""


def _key_of(name: str, source: WebdatasetSource, samples: dict[str, _Sample]) -> str:
    key = first_dot(name)[0]
    return key if key in samples else _last_dot(name, source.fields_by_extension())[0]
