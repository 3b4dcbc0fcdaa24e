"""A copy of the package with one more stage, `faulty`, which does what jobs must survive.

The copy is what `semiocity` runs as when it comes first on PYTHONPATH, and what a run's snapshot is taken of: tasks get
the stage by the same way as any other.
"""

from __future__ import annotations

import shutil
from pathlib import Path

SOURCE = Path(__file__).parents[1]

STAGE = '''
"""Notes the length of each label map; does something bad to the row that `victim` begins the key of."""

import os
import signal
import time
from pathlib import Path
from typing import Any, Literal

from semiocity.errors import BadNode
from semiocity.stages.base import Made, Row, Stage, StageArgs, Tombstone


class FaultyArgs(StageArgs):
    way: Literal["faulty"] = "faulty"
    victim: str = ""
    fault: str = ""
    node: str = ""
    seen: Path | None = None


class Faulty(Stage):
    name, version, column, Args = "faulty", 1, "faulty", FaultyArgs

    def settings(self) -> dict[str, Any]:
        return {"way": "faulty"}

    def needs(self) -> tuple[str, ...]:
        return ("base.label",)

    def paths(self) -> list[str]:
        return [str(self.args.seen.parent)] if self.args.seen else []

    def fields(self) -> dict[str, str]:
        return {"note": "txt"}

    def load(self, info: Any, device: str) -> None:
        if self.args.node and os.environ.get("SLURMD_NODENAME") == self.args.node:
            raise BadNode("this node has no usable GPU")

    def process(self, rows: list[Row]) -> list[Made | Tombstone]:
        if self.args.seen:
            with self.args.seen.open("a") as file:
                file.writelines(row.key + "\\n" for row in rows)
        if self.args.victim and any(row.key.startswith(self.args.victim) for row in rows):
            self.harm()
        return [Made({"note": ("txt", str(len(row.fields["base.label"] or b"")).encode())}, {}) for row in rows]

    def harm(self) -> None:
        match self.args.fault:
            case "hang":
                time.sleep(3600)
            case "raise":
                raise NotImplementedError("not today")
            case name:
                os.kill(os.getpid(), signal.Signals[name])
'''


def copy_package(folder: Path) -> Path:
    """Make the copy in `folder`; returns the folder to put on PYTHONPATH."""
    package = folder / "semiocity"
    shutil.copytree(SOURCE / "semiocity", package, ignore=shutil.ignore_patterns("__pycache__"))
    (package / "stages" / "faulty.py").write_text(STAGE.lstrip())
    for file, before, more in (
        (
            "stages/base.py",
            '    "hash": Methods(',
            '    "faulty": Methods("way", {"faulty": "semiocity.stages.faulty:Faulty"}),',
        ),
        ("cli.py", '    "hash": ("stage"', '    "faulty": ("stage", "add the column that a faulty stage makes"),'),
    ):
        text = (package / file).read_text()
        assert before in text
        (package / file).write_text(text.replace(before, f"{more}\n{before}", 1))
    return folder


def job_toml(**args: object) -> str:
    """A job of the stage over data/city."""
    lines = [f"{name} = {value!r}".replace("'", '"') for name, value in {"way": "faulty", **args}.items()]
    return "\n".join(['stage = "faulty"', 'dataset = "data/city"', "[args]", *lines]) + "\n"
