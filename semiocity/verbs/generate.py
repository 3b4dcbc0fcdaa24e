"""`semiocity generate JOB`: for layouts of a dataset, or for prompts when the job has `prompts`."""

from __future__ import annotations

import argparse
from pathlib import Path

from semiocity.verbs import submitting


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("job", type=Path)
    submitting.arguments(parser)
    parser.add_argument(
        "--from", dest="manifest", type=Path, metavar="MANIFEST", help="make a manifest's images again and compare"
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="with --from: where to write them")


def run(a: argparse.Namespace) -> int:
    if a.manifest:
        return _again(a.manifest, a.out or a.manifest.parent.with_name("samples-again"))
    from semiocity.launch import prompt_jobs

    return submitting.submit(prompt_jobs.generate(a.job, a.set), a)


def _again(manifest: Path, out: Path) -> int:
    from semiocity.evaluate.generate import regenerate
    from semiocity.evaluate.samples import read_manifest

    if read_manifest(manifest)["settings"].get("kind") == "prompts":
        from semiocity.evaluate.prompts import regenerate as again

        differing = again(manifest, out)
    else:
        differing = regenerate(manifest, out)
    print(f"{out}: " + ("the same images, byte for byte" if not differing else f"{len(differing)} images differ"))
    for name in differing[:10]:
        print(f"  {name}")
    return 1 if differing else 0
