"""CamVid in the form that SegNet made common: `train/NAME.png` with `trainannot/NAME.png`, the same for val and test.

G. J. Brostow, J. Fauqueur, R. Cipolla, "Semantic object classes in video: a high-definition ground truth database",
Pattern Recognition Letters 30(2), 2009; 11 classes as in V. Badrinarayanan, A. Kendall, R. Cipolla, "SegNet", TPAMI
39(12), 2017.
Pictures may be JPEG as well.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from semiocity.data.sources.base import Entry, FileSource, Rejection
from semiocity.data.sources.files import check_root, walk
from semiocity.errors import UserError

VERSION = 1
FIELDS = ("image", "label")
CLASSES: tuple[tuple[str, tuple[int, int, int]], ...] = (
    ("sky", (128, 128, 128)),
    ("building", (128, 0, 0)),
    ("pole", (192, 192, 128)),
    ("road", (128, 64, 128)),
    ("pavement", (60, 40, 222)),
    ("tree", (128, 128, 0)),
    ("sign", (192, 128, 128)),
    ("fence", (64, 64, 128)),
    ("car", (64, 0, 128)),
    ("pedestrian", (64, 64, 0)),
    ("bicyclist", (0, 128, 192)),
)
IGNORE_ID = 11
SPLITS = ("train", "val", "test")


class CamvidSource(FileSource):
    """CamVid, 11 classes; root holds train, trainannot, val, valannot."""

    kind: Literal["camvid"] = "camvid"


def entries(source: CamvidSource) -> Iterator[Entry | Rejection]:
    """One entry a picture. Raises UserError when the folder is no CamVid."""
    root = check_root(source.root)
    splits = [name for name in SPLITS if (root / name).is_dir() and (root / f"{name}annot").is_dir()]
    if "train" not in splits:
        raise UserError(f"source.root: {root} has no train/ with trainannot/; CamVid's layout is expected there")
    for split in splits:
        labels = {f.name.rpartition("/")[2]: f for f in walk(root, f"{split}annot", also=source.link_roots)}
        for found in walk(root, split, also=source.link_roots):
            if not found.is_picture:
                continue
            if found.problem:
                yield found.problem
                continue
            files, sizes = {"image": found.name}, {"image": found.size}
            label = labels.get(f"{found.stem.rpartition('/')[2]}.png")
            if label is not None and label.problem is None:
                files["label"], sizes["label"] = label.name, label.size
            yield Entry(found.stem, files, sizes, split)
