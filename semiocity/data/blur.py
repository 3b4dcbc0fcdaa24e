"""`[blur]` of a recipe: faces and number plates are made unrecognisable while packing. Login-node code.

The detector is the user's choice: boxes made elsewhere, a model of `transformers`, or a function of their own. What it
is made of is hashed while planning, so that another detector gives another revision of the dataset.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, field_validator, model_validator

from semiocity.config import Strict
from semiocity.errors import UserError
from semiocity.files import digest

LOADED = (".safetensors", ".json", ".txt", ".model")
"""Suffixes of what is loaded from a model's folder."""

Place = Annotated[Path, AfterValidator(lambda path: path.expanduser().absolute())]
"""Tasks run in another working folder than planning. Not part of the dataset: what lies there is hashed."""


class Boxes(Strict):
    """A file of boxes made elsewhere, in pixels of the upright picture as it comes: left, top, right, bottom.

    CSV with a line `file,left,top,right,bottom` (or `id,…`), a box a line; a line with four empty cells says that the
    picture has none. JSON: {"street/a.jpg": [[left, top, right, bottom], …], …}. Files are relative to the source's
    root, ids are those of the rows.
    """

    kind: Literal["boxes"] = "boxes"
    path: Place
    unlisted: Literal["reject", "keep"] = "reject"
    """A picture of which the file says nothing: rejected, since nobody looked at it, or kept as one without boxes."""

    def digest(self) -> str:
        """Of the file's bytes. Raises UserError."""
        return _sha256(self.path, "blur.detector.path")


class Transformers(Strict):
    """An object detector in a local folder, loaded by `from_pretrained`: safetensors only, no code of the folder."""

    kind: Literal["transformers"] = "transformers"
    path: Place
    task: Literal["object-detection", "zero-shot-object-detection"] = "object-detection"
    """object-detection: DETR, YOLOS, RT-DETR, …. zero-shot: OWL-ViT, OWLv2, Grounding DINO, asked for `labels`."""
    labels: tuple[str, ...] = ()
    """What is blurred, by the model's own names ("face", "license plate"); all of them when empty. For zero-shot the
    texts that are searched for."""
    threshold: float = Field(0.3, gt=0, lt=1)
    """Least score. A low one blurs too much rather than too little."""
    device: Literal["cpu", "cuda"] = "cpu"

    @model_validator(mode="after")
    def _asked(self) -> Transformers:
        if self.task == "zero-shot-object-detection" and not self.labels:
            raise ValueError('a zero-shot detector needs labels to search for, such as ["face", "license plate"]')
        return self

    def digest(self) -> str:
        """Of everything that is loaded from the folder. Raises UserError."""
        names = sorted(p.name for p in self.path.iterdir() if p.suffix in LOADED) if self.path.is_dir() else []
        if not any(name.endswith(".safetensors") for name in names) or "config.json" not in names:
            raise UserError(
                f"blur.detector.path: {self.path} holds no config.json with *.safetensors; fetch a detector on the "
                f"login node, such as `hf download ORG/NAME --local-dir {self.path}`"
            )
        return digest({name: _sha256(self.path / name, "blur.detector.path") for name in names}, 64)


class Import(Strict):
    """A function of the user's own, `module:function`.

    It is called as `function(**args)` once a process and gives a callable: picture, uint8 [H, W, 3], to boxes
    [[left, top, right, bottom], …] in pixels. It must give the same boxes for the same picture.
    """

    kind: Literal["import"] = "import"
    function: str
    path: Place | None = None
    """A folder to import the module from; by default the environment's."""
    args: dict[str, Any] = Field({})
    version: str = ""
    """Raise it when the function changes in a way that its own file does not show: other weights, another library."""

    @field_validator("function")
    @classmethod
    def _dotted(cls, value: str) -> str:
        if not re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*", value):
            raise ValueError("module:function is expected, such as plates:find")
        return value

    def digest(self) -> str:
        """Of the module's file where `path` is given, and nothing where it is not. Raises UserError."""
        if self.path is None:
            return ""
        module = self.path.joinpath(*self.function.partition(":")[0].split("."))
        file = module.with_suffix(".py") if module.with_suffix(".py").is_file() else module / "__init__.py"
        return _sha256(file, "blur.detector.path")


class Blur(Strict):
    """What is blurred and how. Boxes are grown, averaged into a few cells, and smoothed: no detail is left in them."""

    detector: Annotated[Boxes | Transformers | Import, Field(discriminator="kind")]
    margin: float = Field(0.15, ge=0, le=1)
    """Share of a box's width and height added on each side."""
    cells: int = Field(5, ge=1, le=8)
    """Cells along a box's longer side; each becomes one colour before it is smoothed."""


def _sha256(path: Path, where: str) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"{where}: {path}: {error.strerror or error}") from None
