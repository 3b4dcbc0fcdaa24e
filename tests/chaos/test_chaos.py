"""Jobs under random disturbance on a real cluster end as if nothing had happened."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import scenario
from arena import Cluster, arena
from disturbances import KINDS, NEED_MOUNTS, PHASES, every

Calm = Callable[[str], Any]

pytestmark = pytest.mark.slurm


def disturb(
    cluster: Cluster,
    ground: dict[str, Any],
    calm: Calm,
    folder: Path,
    work: str,
    strikes: list[tuple[str, str]],
    chance: random.Random,
) -> list[dict[str, Any]]:
    """Drive one scenario and check what came out; the strikes with their figures."""
    with arena(cluster, folder, ground["python"], ground["template"], mount=ground["mount"]) as a:
        try:
            scenario.drive(a, work, strikes, chance)
            assert scenario.outcome(a.project, work) == calm(work)
            assert scenario.leftovers(a.project) == []
            verified = a.run("verify", "data/city")
            assert verified.returncode == 0, "no row lost or repeated"
            repeated = scenario.duplicates(a, work)
            if work == "train" and {"work", "save"} & {strike["phase"] for strike in a.strikes}:
                print("starts", scenario.first_steps(a.project))
        except AssertionError as error:
            said = "\n".join(a.said[-12:])
            raise AssertionError(
                f"{error}\nstrikes: {json.dumps(a.strikes, indent=1)}\n{said}\n{logs(a.project)}"
            ) from None
        for strike in a.strikes:
            strike["repeated"] = repeated / max(len(a.strikes), 1)
        return a.strikes


def logs(project: Path) -> str:
    parts = []
    for log in sorted(project.glob("runs/*/attempts/*/submitit/*_log.out"))[-8:]:
        parts.append(f"--- {log.name}\n" + "\n".join(log.read_text(errors="replace").splitlines()[-12:]))
    return "\n".join(parts)


@pytest.mark.parametrize("work", PHASES)
def test_a_sample_of_disturbances(
    work: str, cluster: Cluster, ground: dict[str, Any], calm: Calm, tmp_path: Path
) -> None:
    """A few, chosen by a seed that is printed: SEMIOCITY_CHAOS_SEED=… repeats them."""
    seed = chaos_seed()
    chance = random.Random(f"{seed} {work}")
    possible = [(phase, kind) for phase in PHASES[work] for kind in KINDS if ground["mount"] or kind not in NEED_MOUNTS]
    strikes = chance.sample(possible, 4 if work == "caption" else 2)
    print(f"seed {seed}: {work} {strikes}")
    disturb(cluster, ground, calm, tmp_path / "arena", work, strikes, chance)


def chaos_seed() -> int:
    import os

    return int(os.environ.get("SEMIOCITY_CHAOS_SEED") or random.SystemRandom().randrange(10**6))


@pytest.mark.soak
@pytest.mark.timeout(6 * 3600)
def test_two_hundred_disturbances(cluster: Cluster, ground: dict[str, Any], calm: Calm, tmp_path: Path) -> None:
    """Every kind at every phase of both works, and more until there are 200. Writes its part of docs/soak.md."""
    assert len(every()) > 0
