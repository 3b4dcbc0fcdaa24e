"""MosaicML streaming's global batches over changing numbers of ranks. Runs in the peers' environment, by itself.

    python elastic_peer.py '[{"rows": 96, "global_batch": 24, "sittings": [[2, 4, 1], [4, 3, 2]]}]'

A sitting is (until which step, ranks, workers a rank). Prints, for each case, one list of sample ids a step.
"""

import json
import sys

from streaming.base.partition import get_partitions


def batches(rows: int, global_batch: int, sittings: list[list[int]]) -> list[list[int]]:
    """As StreamingDataset deals out one epoch, resumed after whole steps, with one canonical node."""
    made = []
    first = 0
    for until, ranks, workers in sittings:
        size = global_batch // ranks
        # [nodes, ranks, workers, batches of the worker, samples]
        ids = get_partitions("orig", rows, 1, 1, ranks, workers, size, first * global_batch)
        for step in range(until - first):
            worker, place = step % workers, step // workers
            made.append([int(i) for rank in range(ranks) for i in ids[0, rank, worker, place]])
        first = until
    return made


if __name__ == "__main__":
    print(json.dumps([batches(**case) for case in json.loads(sys.argv[1])]))
