"""Claim: raw samples are read at least 4 times as fast as by webdataset, decoded ones at least 1.5 times.

1,500 JPEGs of 512² with a json each, one process, all in the page cache; peers at the settings of their documents.
Raw samples are read without comparing checksums, as the peers read them; the table has ours with crc32 too.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from contest import HERE, PEERS, Goal, contest, pictures, table, verdict
from readers import DECODED, FOREIGN, RAW


def main(count: int = 1500, rounds: int = 7) -> None:
    with tempfile.TemporaryDirectory(prefix="reading-") as name:
        folder = Path(name)
        size = pictures(folder / "in", count)
        for what, python in (
            ("plain", sys.executable),
            ("ours", sys.executable),
            ("webdataset", sys.executable),
            ("mosaicml", PEERS),
            ("litdata", PEERS),
        ):
            if python:
                print(f"preparing: {what}", flush=True)
                command = [python, str(HERE / "readers.py"), "prepare", what, name]
                subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        raw = contest("readers.py", list(RAW), folder, rounds, FOREIGN)
        table(f"raw: {count} samples, {size / 1e6:.0f} MB, medians of {rounds}", raw, count, "samples/s")
        decoded = contest("readers.py", list(DECODED), folder, rounds)
    table("decoded", decoded, count, "samples/s")
    rate = {name: count / value for name, value in {**raw, **decoded}.items()}
    # The bare decode loop has its goal in loader.py, where batches are collated too.
    ours, decoding = rate["Semiocity"], rate["Semiocity, decoded"]
    goals = [
        Goal("reading raw samples, against webdataset, samples/s", ours, rate["webdataset"], 4.0),
        Goal(
            "decoded samples, against webdataset with Pillow, samples/s",
            decoding,
            rate["webdataset, decode(rgb8) by Pillow"],
            1.5,
        ),
    ]
    verdict(goals, {**raw, **decoded}, count, "samples/s")


if __name__ == "__main__":
    main(*(int(word) for word in sys.argv[1:]))
