"""Jobs under random disturbance on a real cluster end as if nothing had happened."""

from __future__ import annotations

import json
import os
import random
import subprocess
import warnings
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import scenario
import soak_report
from arena import SOURCE, Cluster, arena
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
) -> dict[str, Any]:
    """Drive one scenario and check what came out; its figures."""
    with arena(cluster, folder, ground["python"], ground["template"], mount=ground["mount"]) as a:
        try:
            scenario.drive(a, work, strikes, chance)
            assert a.strikes, "no task came to a point where it was waited for: is the hook in the tasks' Python?"
            assert scenario.outcome(a.project, work) == calm(work), "other bytes than undisturbed"
            assert scenario.leftovers(a.project) == []
            assert a.run("verify", "data/city").returncode == 0, "rows lost or repeated"
            assert scenario.faults(a, work) == [], scenario.lives(a) if work == "train" else a.units()
        except (AssertionError, RuntimeError, OSError, subprocess.SubprocessError) as error:
            told = [str(error), json.dumps(a.strikes, indent=1), *a.said[-12:], logs(a.project)]
            for command in (("squeue",), ("squeue", "--steps"), ("sinfo", "--long", "--Node")):
                with suppress(RuntimeError):
                    told.append(cluster.call(*command))
            raise AssertionError("\n".join(told)) from None
        return {**scenario.figures(a, work), "missed": a.missed}


def logs(project: Path) -> str:
    parts = []
    for log in sorted(project.glob("runs/*/attempts/*/logs/*_log.out"))[-8:]:
        parts.append(f"--- {log.name}\n" + "\n".join(log.read_text(errors="replace").splitlines()[-12:]))
    return "\n".join(parts)


SAMPLE = {"caption": 2, "train": 1}


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("work", PHASES)
def test_a_sample_of_disturbances(
    work: str, cluster: Cluster, ground: dict[str, Any], calm: Calm, tmp_path: Path
) -> None:
    """A few, chosen by a seed that is printed: SEMIOCITY_CHAOS_SEED=… repeats them."""
    seed = chaos_seed()
    chance = random.Random(f"{seed} {work}")
    possible = [(phase, kind) for known, phase, kind in every() if known == work and allowed(ground, kind)]
    if left_out(ground):
        warnings.warn(f"not tried: {left_out(ground)}: this user may not mount", stacklevel=1)
    strikes = chance.sample(possible, SAMPLE[work])
    print(f"SEMIOCITY_CHAOS_SEED={seed}: {work} {strikes}")
    found = disturb(cluster, ground, calm, tmp_path / "arena", work, strikes, chance)
    print(json.dumps(found))


@pytest.mark.soak
@pytest.mark.timeout(12 * 3600)
def test_two_hundred_disturbances(cluster: Cluster, ground: dict[str, Any], calm: Calm, tmp_path: Path) -> None:
    """Every kind at every phase of both works, and more until there are 200. Writes its section of docs/soak.md.

    SEMIOCITY_CHAOS_ONLY=clock,caption+save tries only what has one of these words in kind, phase or work, or all that
    are joined by a plus; then nothing is written.
    """
    only = [set(item.split("+")) for item in os.environ.get("SEMIOCITY_CHAOS_ONLY", "").split(",") if item]
    if left_out(ground) and not only:
        pytest.fail(f"{left_out(ground)} need the right to mount: run as root, or name others in SEMIOCITY_CHAOS_ONLY")
    seed = chaos_seed()
    chance = random.Random(seed)
    possible = [combo for combo in every() if allowed(ground, combo[2])]
    if only:
        possible = [combo for combo in possible if any(words <= set(combo) for words in only)]
    wanted = [*possible, *possible][: max(len(possible), WANTED if not only else 0)]
    chance.shuffle(wanted)
    scenarios: list[dict[str, Any]] = []
    failed: list[str] = []
    rounds = 0
    while wanted:
        work = chance.choice(sorted({combo[0] for combo in wanted}))
        mine = [combo for combo in wanted if combo[0] == work][: AT_A_TIME[work]]
        for combo in mine:
            wanted.remove(combo)
        rounds += 1
        strikes = [(phase, kind) for _, phase, kind in mine]
        print(f"seed {seed}, scenario {rounds}: {work} {strikes}; {len(wanted)} to come", flush=True)
        try:
            found = disturb(cluster, ground, calm, tmp_path / f"{rounds:03d}", work, strikes, chance)
        except AssertionError as error:  # the others may find something else
            print(f"scenario {rounds} FAILED: {error}", flush=True)
            failed.append(f"scenario {rounds}: {work} {strikes}: {str(error).splitlines()[0]}")
            continue
        wanted += [(work, phase, kind) for phase, kind in found.pop("missed")]
        scenarios.append(found)
    assert rounds > 0
    assert not failed, "\n".join(failed)
    if not only:
        tried = Counter(strike["kind"] for found in scenarios for strike in found["strikes"])
        assert min(tried[kind] for kind in KINDS) >= OF_EACH, tried
        points = {
            (found["work"], strike["phase"], strike["kind"]) for found in scenarios for strike in found["strikes"]
        }
        assert points == set(every()), set(every()) - points
        table = soak_report.chaos_table(scenarios, seed, list(KINDS))
        soak_report.write_section(SOURCE / "docs" / "soak.md", "Disturbances", table)


WANTED, OF_EACH = 200, 10
AT_A_TIME = {"caption": 5, "train": 3}


def allowed(ground: dict[str, Any], kind: str) -> bool:
    return bool(ground["mount"]) or kind not in NEED_MOUNTS


def left_out(ground: dict[str, Any]) -> str:
    """Kinds that cannot be tried here."""
    return ", ".join(kind for kind in KINDS if not allowed(ground, kind))


def test_what_was_thrown_away_is_noticed() -> None:
    """The judge itself: a training that begins anew, in the middle or at its end, and work that is done twice."""
    life = scenario.Life
    assert scenario.not_resumed([life(0, 30)]) == scenario.not_resumed([life(0, 7), life(0, 30)]) == []
    assert scenario.not_resumed([life(0, 13), life(8, 3), life(8, 22)]) == []
    assert "start 2 began at step 0" in scenario.not_resumed([life(0, 8), life(0, 30)])[0]
    assert "start 2 began at step 0" in scenario.not_resumed([life(0, 20), life(0, 13), life(12, 18)])[0]
    assert "start 3 began at step 4" in scenario.not_resumed([life(0, 9), life(8, 1), life(4, 26)])[0]
    for work, units, strikes in (("caption", scenario.ROWS, 5), ("train", scenario.STEPS, 3)):
        assert scenario.most_repeated(work, strikes, strikes + 1) < units, "doing everything again is seen"
        assert scenario.most_repeated(work, 0, 1) == 0


def chaos_seed() -> int:
    return int(os.environ.get("SEMIOCITY_CHAOS_SEED") or random.SystemRandom().randrange(10**6))
