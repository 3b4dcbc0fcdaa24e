"""The held-out rows that a report shows: layout, real image, masks, caption and generated images. No torch here."""

from __future__ import annotations

from pathlib import Path

from semiocity.data.columns import Dataset
from semiocity.errors import UserError
from semiocity.evaluate import tiles
from semiocity.evaluate.images import Pixels, Size, colored, decode_image, decode_label
from semiocity.evaluate.samples import Samples

HELD_OUT = "val"
DEFAULT_SIZE: Size = (256, 256)


class HeldOut:
    """Some rows of the split whose layouts were painted, or of `val` when none were."""

    def __init__(self, run: Path, dataset: Dataset, count: int) -> None:
        """At most `count` rows: the first that were painted, else the first of the split.

        UserError when the run's images are not of this dataset.
        """
        self.dataset = dataset
        self.samples: Samples | None = None
        saved: str | None = None
        if (run / "samples" / "manifest.json").exists():
            self.samples = Samples(run / "samples")
        if self.samples:
            self.split = str(self.samples.manifest["settings"]["split"])
            saved = self.samples.manifest["settings"].get("view")
        else:
            self.split = HELD_OUT if HELD_OUT in dataset.splits else next(iter(dataset.splits))
        self.has_labels = dataset.has("base.label")
        self.view = dataset.pick(["base.image", *(["base.label"] if self.has_labels else [])], self.split, saved)
        self.rows = self._painted(count) if self.samples else list(range(min(count, len(self.view))))
        """Rows of `view`."""
        self.total = len(self.samples.layouts) if self.samples else len(self.view)
        """How many there are to choose from."""
        self.size = self._size()

    def _painted(self, count: int) -> list[int]:
        assert self.samples is not None
        wanted = list(self.samples.layouts)[:count]
        places: dict[str, int] = {}
        for row in range(len(self.view)):
            if len(places) == len(wanted):
                break
            if (key := self.view.key(row)) in wanted:
                places[key] = row
        absent = [key for key in wanted if key not in places]
        if absent:
            raise UserError(
                f"{self.samples.folder}: {absent[0]} is no row of {self.dataset.path}, split {self.split!r}; the "
                "images are of another dataset, or it was packed again since. Run `semiocity generate` again"
            )
        return [places[key] for key in wanted]

    def _size(self) -> Size:
        if self.samples:
            return self.samples.size
        return self.dataset.image_size[::-1] if self.dataset.image_size else DEFAULT_SIZE

    def real(self, row: int) -> Pixels:
        """The real image, at the size of the generated ones: [H, W, 3]."""
        return decode_image(self.view.read(row)["base.image"], self.size)

    def layout(self, row: int) -> Pixels | None:
        """The label map in the classes' colours: [H, W, 3]; None where there is none."""
        data = self.view.read(row).get("base.label")
        if data is None:
            return None
        ids = decode_label(data, len(self.dataset.classes), self.dataset.ignore_id, self.size)
        return colored(ids, self.dataset.palette)

    def generated(self, row: int, number: int) -> Pixels | None:
        """One generated image: [H, W, 3]; None where there is none."""
        if self.samples is None:
            return None
        images = self.samples.layouts[self.view.key(row)]
        return self.samples.read(images[number]) if number < len(images) else None

    def caption(self, row: int) -> str | None:
        """The caption that a stage made, else the source's own, else None."""
        for field in ("caption.text", "base.caption"):
            data = self._read(row, field)
            if data is not None:
                return data.decode("utf-8", "replace").strip()
        return None

    def overlaid(self, row: int) -> Pixels | None:
        """The real image with its masks over it, enlarged: [kH, kW, 3]; None where there are none."""
        data = self._read(row, "mask.rle")
        return tiles.overlaid(self.real(row), data, self.size) if data is not None else None

    def _read(self, row: int, reference: str) -> bytes | None:
        """A field of a column that may be missing, or have failed for this row."""
        if not self.dataset.has(reference):
            return None
        column, _, field = reference.partition(".")
        shard, place = self.view.locate(row)
        return self.dataset.reader(column, shard).read(place, field)
