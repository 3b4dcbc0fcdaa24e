"""MosaicML streaming is exact when the number of ranks changes (NCN 1): the oracle for our order."""

import json
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from made_orders import made_order
from make_images import dice
from test_peers import peers_python

GLOBAL_BATCH = 24
WORLDS = (1, 2, 3, 4, 6, 8, 12, 24)
Sittings = list[tuple[int, int, int]]


def ours(rows: int, sittings: Sittings) -> list[list[int]]:
    order = made_order([rows // 4] * 3 + [rows - rows // 4 * 3], 5, GLOBAL_BATCH, window=2)
    made, first = [], 0
    for until, ranks, _ in sittings:
        for step in range(first, until):
            made.append(np.concatenate([order.slice_of(step, rank, ranks).rows for rank in range(ranks)]).tolist())
        first = until
    return made


def theirs(cases: list[tuple[int, Sittings]]) -> list[list[list[int]]]:
    asked = [{"rows": rows, "global_batch": GLOBAL_BATCH, "sittings": sittings} for rows, sittings in cases]
    command = [str(peers_python()), str(Path(__file__).with_name("elastic_peer.py")), json.dumps(asked)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]
    made: list[list[list[int]]] = json.loads(done.stdout.splitlines()[-1])
    return made


def facts(batches: list[list[int]], undisturbed: list[list[int]], rows: int) -> dict[str, Any]:
    seen = Counter(row for batch in batches for row in batch)
    return {
        "batches": [len(batch) for batch in batches],
        "repeated": sum(count - 1 for count in seen.values()),
        "lost": rows // GLOBAL_BATCH * GLOBAL_BATCH - len(seen),
        "same batches": [sorted(a) == sorted(b) for a, b in zip(batches, undisturbed, strict=True)],
    }


def test_as_exact_as_mosaicml_streaming() -> None:
    peers_python()  # skips without
    chance, cases = dice(), []
    for rows in (96, 240, 250):
        steps = rows // GLOBAL_BATCH
        stops = [*sorted(chance.sample(range(1, steps), 2)), steps]
        cases.append((rows, [(stop, chance.choice(WORLDS), chance.choice([1, 2, 4])) for stop in stops]))
        cases.append((rows, [(steps, 1, 1)]))
    print(cases)
    peer = theirs(cases)
    for i in range(0, len(cases), 2):
        rows, sittings = cases[i]
        found = facts(ours(rows, sittings), ours(rows, cases[i + 1][1]), rows)
        assert found == facts(peer[i], peer[i + 1], rows)
        assert found["repeated"] == found["lost"] == 0
        assert all(found["same batches"])
