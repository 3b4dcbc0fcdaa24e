"""Claim: packing with sha256 on is at least as fast as GNU tar, and at least twice as fast as webdataset's ShardWriter.

1,500 JPEGs of 512² with a json each, read from a folder of files that is in memory; all contenders end with fsync.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from contest import Goal, contest, pictures, table, verdict
from packers import CONTENDERS, FOREIGN


def main(count: int = 1500, rounds: int = 7) -> None:
    with tempfile.TemporaryDirectory(prefix="packing-") as folder:
        size = pictures(Path(folder) / "in", count)
        medians = contest("packers.py", list(CONTENDERS), Path(folder), rounds, FOREIGN)
    table(f"packing {count} pictures, {size / 1e6:.0f} MB, medians of {rounds}", medians, count, "img/s")
    rate = {name: count / value for name, value in medians.items()}
    ours = rate["Semiocity, sha256 and crc32"]
    goals = [
        Goal("packing, against GNU tar, img/s", ours, rate["GNU tar"], 1.0),
        Goal("packing, against webdataset's ShardWriter, img/s", ours, rate["webdataset ShardWriter"], 2.0),
    ]
    verdict(goals, medians, count, "pictures/s")


if __name__ == "__main__":
    main(*(int(word) for word in sys.argv[1:]))
