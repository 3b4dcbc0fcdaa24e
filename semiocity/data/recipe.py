"""Recipes: what a dataset is made of (`shards/NAME.toml`). Login-node code."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from semiocity.config import Strict, load_toml
from semiocity.data.blur import Blur
from semiocity.data.sources import Source, defaults_of, reads_files
from semiocity.errors import UserError

FIELDS = {
    "image": "jpg|png",
    "label": "label.png",
    "instance": "instance.png",
    "edge": "edge.png",
    "caption": "txt",
    "boxes": "boxes.json",
    "meta": "json",
}
"""Logical fields of the base column → member extensions."""

LARGEST_IMAGE = 178_000_000
"""Pixels; above this Pillow refuses by itself."""

Extent = tuple[Annotated[int, Field(ge=8)], Annotated[int, Field(ge=8)]]
Byte = Annotated[int, Field(ge=0, le=255)]
Share = Annotated[float, Field(gt=0, le=1)]
SplitName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")]


class ClassSpec(Strict):
    """One class of the label maps; its id is its place in the list."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_ -]*$")
    color: tuple[Byte, Byte, Byte]
    """Red, green, blue in label pictures."""
    ids: tuple[Byte, ...] | None = None
    """Ids in the source's label maps that mean this class; None: its place in the list, as in the shards."""
    train_id: Byte | None = None
    """The class's id where scores are computed on fewer classes than images are made from (Cityscapes: 19 of 35).
    When any class has one, those without are not scored."""


class ImagePolicy(Strict):
    """What is done to pictures. Label and instance maps follow the same geometry."""

    resize: Literal["none", "crop", "fit", "letterbox"] = "none"
    """none: as it comes. crop: scaled to cover `size`, the middle cut out. fit: shrunk to lie within `size`, never
    enlarged, so sizes differ from row to row. letterbox: scaled to lie within `size`, then padded to it (pictures
    black, labels with the ignore id)."""
    size: Extent | None = None
    """Width and height in pixels."""
    format: Literal["keep", "jpg", "png"] = "keep"
    """keep: JPEG stays JPEG, everything else is PNG. What already is in the wanted format and needs no other change
    is stored byte for byte."""
    quality: int = Field(95, ge=50, le=100)
    """JPEG quality where pictures are encoded again; colour is never subsampled then."""
    max_pixels: int = Field(100_000_000, ge=64, le=LARGEST_IMAGE)
    """A picture whose header says more is rejected before it is decoded."""

    @model_validator(mode="after")
    def _size_when_resizing(self) -> ImagePolicy:
        if self.resize != "none" and self.size is None:
            raise ValueError(f'resize = "{self.resize}" needs size = [width, height]')
        if self.resize == "none" and self.size is not None:
            raise ValueError('size has no effect with resize = "none"; set resize = "crop", "fit" or "letterbox"')
        return self


class LabelPolicy(Strict):
    """How label maps are read."""

    encoding: Literal["ids", "colors"] = "ids"
    """ids: 8-bit single-channel or palette PNG that holds class ids. colors: RGB PNG in the classes' colours."""
    ignore_ids: tuple[Byte, ...] | Literal["others"] = ()
    """Further ids in the source's label maps that mean unlabelled; they become `ignore_id`. others: all ids that are no
    class's, so that `classes` may be a few of a dataset's. By default the source's own."""
    other_size: Literal["reject", "resize"] = "reject"
    """A map of another size than its picture: rejected, or resized to the picture's (nearest neighbour)."""


class BoxPolicy(Strict):
    """What is done to boxes; they follow the picture's geometry and are clipped to what is left of it."""

    min_visible: float = Field(0.25, ge=0, le=1)
    """A box is dropped when less of its area than this is left."""


class SplitPolicy(Strict):
    """Which row belongs to which split, where the recipe says so rather than the source."""

    files: dict[SplitName, str] = Field(default_factory=dict)
    """Split → text file with one row a line, by its id or its picture's file name. Relative to the recipe."""
    fractions: dict[SplitName, Share] = Field(default_factory=dict)
    """Split → share of the rows that no file names, cut by a hash of their ids in this order: no row moves when others
    are added."""
    rest: SplitName | None = None
    """The split of all other rows; by default what the source says."""

    @model_validator(mode="after")
    def _shares_fit(self) -> SplitPolicy:
        if sum(self.fractions.values()) > 1 + 1e-9:
            raise ValueError("splits.fractions are more than 1 together")
        return self


class Recipe(Strict):
    """A dataset: source, promised fields, classes, pictures, shards."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    note: str = ""
    """What the data is, for people."""
    license: str = ""
    folder: Path = Field(Path(), exclude=True)
    """Where the recipe lies; its split files are relative to it. No property of the dataset."""
    source: Source
    fields: tuple[Literal["image", "label", "instance", "caption", "boxes"], ...] | None = None
    """Fields that every row has; a row that lacks one is rejected. By default what the source promises."""
    classes: tuple[ClassSpec, ...] | None = None
    """By default the source's own."""
    ignore_id: Byte | None = None
    """Label id that means unlabelled. By default the source's own."""
    image: ImagePolicy = ImagePolicy()
    label: LabelPolicy = LabelPolicy()
    edges: bool = False
    """Add the field `edge` to every row that has an instance map, or else a label map: 255 where a pixel's id differs
    from one of its four neighbours', 0 elsewhere."""
    blur: Blur | None = None
    """Faces and number plates are blurred before anything is stored; None: nothing is."""
    boxes: BoxPolicy = BoxPolicy()
    splits: SplitPolicy = SplitPolicy()
    shard_rows: int = Field(2000, ge=1)
    """Most rows in a shard."""
    shard_mb: float = Field(512, gt=0)
    """Most MB (10⁶ bytes) of source files in a shard, where the source has files."""

    @model_validator(mode="before")
    @classmethod
    def _source_defaults(cls, data: Any) -> Any:
        """Fill in what the source knows, so that a resolved recipe says everything."""
        if isinstance(data, dict) and isinstance(data.get("source"), dict):
            kind = data["source"].get("kind")
            known = defaults_of(kind)
            if reads_files(kind) and not data["source"].get("root"):
                raise ValueError("source.root is missing; say where the pictures are: --set source.root=DIR")
            given = {name: value for name, value in data.items() if value is not None}
            if isinstance(given.get("label"), dict):
                given["label"] = {**known.get("label", {}), **given["label"]}
            return {**known, **given}
        return data

    @model_validator(mode="after")
    def _classes_fit(self) -> Recipe:
        classes = self.classes or ()
        if len({c.name for c in classes}) != len(classes):
            raise ValueError("two classes have the same name")
        if self.label.encoding == "colors" and len({c.color for c in classes}) != len(classes):
            raise ValueError('label.encoding = "colors" needs classes with distinct colours')
        if len(classes) + (self.ignore_id is not None) > 256:
            raise ValueError("label maps have 8 bits: at most 256 ids, the ignore id among them")
        if self.ignore_id is not None and self.ignore_id < len(classes):
            raise ValueError(f"ignore_id {self.ignore_id} is the id of class {classes[self.ignore_id].name}")
        if self.label.ignore_ids and self.ignore_id is None:
            raise ValueError("label.ignore_ids has no effect without an ignore_id")
        meanings = [i for i, _ in self._meanings()]
        if twice := sorted({i for i in meanings if meanings.count(i) > 1}):
            raise ValueError(f"id {twice[0]} of the label maps has two meanings (classes.ids, label.ignore_ids)")
        if "label" in (self.fields or ()) and not classes:
            raise ValueError("fields promises label, so classes must be given: [[classes]] name = …, color = [r, g, b]")
        if self.image.resize == "letterbox" and classes and self.ignore_id is None:
            raise ValueError('image.resize = "letterbox" needs an ignore_id to pad label maps with')
        return self

    def _meanings(self) -> list[tuple[int, int]]:
        """(id in the source's label maps, id in the shards)"""
        known = [(raw, own) for own, spec in enumerate(self.classes or ()) for raw in spec.ids or (own,)]
        if self.ignore_id is None:
            return known
        # A class may claim the ignore id's number in the files, where classes name theirs.
        taken = {raw for raw, _ in known}
        others = range(256) if self.label.ignore_ids == "others" else ()
        named = () if self.label.ignore_ids == "others" else self.label.ignore_ids
        ignored = {self.ignore_id, *others} - taken | {*named}
        return known + [(raw, self.ignore_id) for raw in sorted(ignored)]

    def label_table(self) -> dict[int, int]:
        """Id in the source's label maps → id in the shards; any other id is out of range."""
        return dict(self._meanings())

    @property
    def image_size(self) -> tuple[int, int] | None:
        """Width and height of every picture, or None when they differ or are not known."""
        if self.image.resize in ("crop", "letterbox"):
            return self.image.size
        return getattr(self.source, "size", None) if self.image.resize == "none" else None

    def packed_fields(self, found: Collection[str]) -> list[str]:
        """Logical fields of rows from a source that gives the fields `found`, in their order; without meta."""
        given = {*found, *(self.fields or ())}
        if self.edges and given & {"instance", "label"}:
            given.add("edge")
        return [name for name in FIELDS if name in given]

    def resolved(self) -> dict[str, Any]:
        """The whole recipe as JSON, but for the folder it reads from: that is no property of the dataset."""
        data = self.model_dump(mode="json")
        for place in ("root", "link_roots"):
            data["source"].pop(place, None)
        if self.blur is not None:
            data["blur"]["detector"].pop("path", None)
        # Where split files lie is no property of the dataset; what they say is in the plan.
        data["splits"]["files"] = {split: Path(file).name for split, file in self.splits.files.items()}
        return data


def load_recipe(path: Path, sets: Iterable[str] = ()) -> Recipe:
    """Read `shards/NAME.toml`; the name is the file's unless it says otherwise. Raises UserError."""
    recipe = load_toml(path, Recipe, sets, name=Path(path).stem, folder=Path(path).parent)
    seen: dict[tuple[int, int, int], str] = {}
    for c in recipe.classes or ():
        if (other := seen.setdefault(c.color, c.name)) != c.name:
            raise UserError(
                f"{path}: classes: {other} and {c.name} have the same color {list(c.color)}, so nobody can tell them "
                "apart in a picture of labels; change one"
            )
    return recipe
