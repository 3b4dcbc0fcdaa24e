"""`semiocity fetch [NAME | JOB …]`"""

from __future__ import annotations

import argparse
import json
from pathlib import Path


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "what", nargs="*", metavar="NAME|JOB", help="models of jobs/models.toml, or jobs that need some"
    )
    parser.add_argument("--all", action="store_true", help="every model of jobs/models.toml")
    parser.add_argument("--update", action="store_true", help="take what the revision stands for now, and pin that")
    parser.add_argument("--check", action="store_true", help="read everything that was fetched and compare its hashes")
    parser.add_argument("--cluster", type=Path, metavar="FILE", help="site file (default: jobs/cluster.toml, if any)")
    parser.add_argument("--json", action="store_true", help="what there is, for programs")


def run(a: argparse.Namespace) -> int:
    import tomllib

    from semiocity.errors import UserError
    from semiocity.launch import fetch
    from semiocity.launch.jobs import load_cluster
    from semiocity.stages import model_files

    root = load_cluster(a.cluster).models.expanduser()
    table = model_files.read_table()
    names = sorted(table) if a.all else []
    for what in a.what:
        if not what.endswith(".toml"):
            names.append(what)
            continue
        try:
            found = fetch.named_in(tomllib.loads(Path(what).read_text(encoding="utf-8")), list(table))
        except (OSError, ValueError) as error:
            raise UserError(f"{what}: {error}") from None
        if not found:
            print(f"{what}: names no model of {model_files.TABLE}; nothing to fetch")
        names += found
    listing = not (a.what or a.all) or a.check
    for name in dict.fromkeys(names):
        fetch.known(name)
    if not listing:
        for name in dict.fromkeys(names):
            folder = fetch.fetch(name, root, update=a.update, say=lambda line: print(line, flush=True))
            print(f"{name}: complete in {folder}")
    states = {}
    for name in sorted(set(names) or table):
        what, why = model_files.state(root / name)
        faults = fetch.damaged(root / name) if a.check and what == "complete" else []
        state = "damaged" if faults else what
        todo = "" if state == "complete" else model_files.command(name)
        states[name] = {"state": state, "repo": table[name].repo, "why": ", ".join(faults) or why, "todo": todo}
    if a.json:
        print(json.dumps(states, indent=1, sort_keys=True))
    elif listing:
        for name, facts in states.items():
            print(f"{name:<24} {facts['state']:<11} {facts['repo']}{'  ' if facts['todo'] else ''}{facts['todo']}")
        if not states:
            print(f"no models named; {model_files.TABLE} is where they are")
    return 0 if all(facts["state"] == "complete" for facts in states.values()) else 1
