"""A step of FLUX.1-dev's real architecture on one GPU, with random weights: s/image, TFLOP/s, MFU, memory; against
diffusers' own training scripts on the same work.

    python bench/flux_step.py                              everything, some 20 minutes on an H200
    python bench/flux_step.py --kinds lora --sizes 1024    a part of it
    python bench/flux_step.py --tiny                       all of it with a tiny transformer, also without a GPU

It needs torch, transformers and peft, and as wheels diffusers, deepspeed (with hjson) and pydantic (with pydantic-core,
annotated-types and typing-inspection); bitsandbytes for the peer that trains all weights. Python 3.11 to 3.13. Goals:
MFU >= 50 % without recomputing and >= 45 % with, 1.3 times the peer.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
CONTENDERS = ["ours", "ours, compiled", "diffusers", "diffusers, bf16 weights"]
GOAL = {False: 0.50, True: 0.45}
GOAL_RATIO = 1.3
NO_GPU = "no GPU here; it needs one with 80 GB or more. --tiny runs all of it on the CPU"
# Pictures in a step, by size and recomputing: what fits beside 11.9 B weights that are all trained.
BATCH = {(512, False): 2, (512, True): 8, (1024, False): 1, (1024, True): 4}


def arguments(words: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", nargs="+", choices=["full", "lora"], default=["full", "lora"])
    parser.add_argument("--sizes", nargs="+", type=int, help="sides in pixels: 512 and 1024")
    parser.add_argument("--recompute", nargs="+", choices=["none", "all"], default=["none", "all"])
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, help='all; with --tiny all but "ours, compiled"')
    parser.add_argument("--batch", type=int, help="pictures in a step; by default as many as fit an H200")
    parser.add_argument("--steps", type=int, default=5, help="steps that are timed, after two that are not")
    parser.add_argument("--tiny", action="store_true", help="a tiny transformer at 64 pixels, on the CPU too")
    return parser.parse_args(words)


def ask(questions: list[Any]) -> list[Any]:
    """What the process answers: what it runs on, then a line a question; a fault for each that it did not live to
    answer."""
    environment = {**os.environ, "PYTHONPATH": f"{HERE.parent}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    done = subprocess.run(
        [sys.executable, str(HERE / "flux_contenders.py"), json.dumps(questions)],
        capture_output=True,
        text=True,
        env=environment,
    )
    answers = []
    for line in done.stdout.splitlines():  # libraries say things, too
        with contextlib.suppress(json.JSONDecodeError):
            answers.append(json.loads(line))
    last = (done.stderr.strip().splitlines() or ["nothing said"])[-1]
    fault = {"fault": f"ended with {done.returncode}: {last}"}
    return answers + [fault] * (1 + len(questions) - len(answers))


def flops(kind: str, config: dict[str, Any], size: int, text_tokens: int) -> float:
    """Of forward and backward pass for one picture, without recomputing. Frozen weights need no gradients of their own;
    attention has none to leave out."""
    from semiocity.models.flux_cost import forward_flops

    tokens = (size // 16) ** 2
    whole = forward_flops(config, tokens, text_tokens)
    blocks = config["num_layers"] + config["num_single_layers"]
    attention = blocks * 4 * (tokens + text_tokens) ** 2 * config["num_attention_heads"] * config["attention_head_dim"]
    return 3 * whole if kind == "full" else 2 * (whole - attention) + 3 * attention


def cases(a: argparse.Namespace) -> list[dict[str, Any]]:
    """The lines of the table."""
    found = []
    sizes = a.sizes or ([64] if a.tiny else [512, 1024])
    # Compiling for a CPU takes minutes and says nothing about a GPU.
    contenders = a.contenders or [name for name in CONTENDERS if not (a.tiny and name == "ours, compiled")]
    for kind, size, recompute, contender in itertools.product(a.kinds, sizes, a.recompute, contenders):
        if kind == "lora" and contender == "diffusers, bf16 weights":
            continue  # there the base is in bf16 anyway
        again = recompute == "all"
        batch = a.batch or (2 if a.tiny else BATCH.get((size, again), 1))
        found.append(
            {
                "contender": contender,
                "kind": kind,
                "size": size,
                "recompute": again,
                "batch": batch,
                "steps": a.steps,
                "tiny": a.tiny,
                "text_tokens": 16 if a.tiny else 512,
            }
        )
    return found


def main(words: list[str] | None = None) -> int:
    a = arguments(words)
    sys.path.insert(0, str(HERE.parent))
    answers: Iterable[Any]
    if a.tiny:  # one process for all, since each of them takes seconds to start
        about, peak, *answers = ask(["peak", *cases(a)])
    elif not ask([])[0].get("gpu"):
        print(f"flux_step.py: {NO_GPU}", file=sys.stderr)
        return 2
    else:
        about, peak = ask(["peak"])
        answers = (ask([case])[1] for case in cases(a))
    if not isinstance(peak, float):
        print(f"flux_step.py: {peak['fault']}", file=sys.stderr)
        return 1
    print(f"{about['device']}, torch {about['torch']}: a bf16 matrix product reaches {peak:.3g} TFLOP/s", flush=True)
    print(f"{'':<52} {'batch':>5} {'s/image':>9} {'TFLOP/s':>9} {'MFU':>6} {'GB':>6}")
    rows = []
    for case, answer in zip(cases(a), answers):
        rows.append({**case, **answer, **rates(case, answer, peak)})
        show(rows[-1])
    print(json.dumps(verdict(rows, about["device"], peak)))
    return 0


def rates(case: dict[str, Any], answer: dict[str, Any], peak: float) -> dict[str, float]:
    """Seconds an image, TFLOP/s and MFU of an answer that has a time."""
    if "fault" in answer:
        return {}
    from flux_architecture import DEV, TINY

    seconds = answer["s_per_step"] / case["batch"]
    needed = flops(case["kind"], TINY if case["tiny"] else DEV, case["size"], case["text_tokens"])
    return {"s_per_image": seconds, "tflops": needed / seconds / 1e12, "mfu": needed / seconds / 1e12 / peak}


def show(row: dict[str, Any]) -> None:
    """A line of the table."""
    title = f"{row['kind']}, {row['size']}², {'recomputed' if row['recompute'] else 'kept'}, {row['contender']}"
    if "fault" in row:
        print(f"{title:<52} {row['batch']:>5} {row['fault']}", flush=True)
        return
    memory = f"{row['peak_gb']:.1f}" if row["peak_gb"] else "-"
    speed = f"{row['s_per_image']:>9.4g} {row['tflops']:>9.4g} {row['mfu']:>6.1%}"
    print(f"{title:<52} {row['batch']:>5} {speed} {memory:>6}", flush=True)


def verdict(rows: list[dict[str, Any]], device: str, peak: float) -> dict[str, Any]:
    """Our best MFU with and without recomputing, and how many times faster than the script, at worst."""
    mfu: dict[str, float] = {}
    ratios = []
    good = [row for row in rows if "fault" not in row]
    for again in (False, True):
        ours = [row["mfu"] for row in good if row["contender"].startswith("ours") and row["recompute"] == again]
        if ours:
            mfu["recomputed" if again else "kept"] = round(max(ours), 3)
    cases: dict[tuple[Any, ...], dict[str, float]] = {}
    for row in good:
        case = cases.setdefault((row["kind"], row["size"], row["recompute"]), {})
        case[row["contender"]] = row["s_per_image"]
    for times in cases.values():
        ours_s = [value for name, value in times.items() if name.startswith("ours")]
        peer_s = [value for name, value in times.items() if not name.startswith("ours")]
        if ours_s and peer_s:
            ratios.append(min(peer_s) / min(ours_s))
    reached = [mfu.get("recomputed" if again else "kept", 0.0) >= goal for again, goal in GOAL.items()]
    return {
        "claim": "a step of FLUX.1-dev on one GPU: MFU, and speed against diffusers' scripts",
        "device": device,
        "peak_tflops": round(peak, 1),
        "ours": mfu,
        "peer": {f"{k}, {s}², {'recomputed' if r else 'kept'}": times for (k, s, r), times in cases.items()},
        "ratio": round(min(ratios), 2) if ratios else None,
        "goal": f"MFU >= {GOAL[False]} kept, >= {GOAL[True]} recomputed, ratio >= {GOAL_RATIO}",
        "met": all(reached) and bool(ratios) and min(ratios) >= GOAL_RATIO,
    }


if __name__ == "__main__":
    sys.exit(main())
