"""`semiocity VERB …`. Each verb imports what it needs when it is called: `--help` and `status` start at once."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from semiocity.errors import UserError


def main(argv: list[str] | None = None) -> int:
    """Entry point. Exit status: 0 all is well, 1 something failed or is incomplete, 2 bad input, 130 interrupted."""
    arguments = parser().parse_args(argv)
    try:
        return VERBS[arguments.verb](arguments)
    except UserError as error:
        print(f"semiocity: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # `semiocity status | head`: the reader has seen enough.
        sys.stderr.close()
        return 0


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog="semiocity", description="Prepare urban image sets and train image generators on a SLURM cluster."
    )
    verbs = top.add_subparsers(dest="verb", required=True, metavar="VERB")

    def verb(name: str, text: str, *positional: str) -> argparse.ArgumentParser:
        made = verbs.add_parser(name, help=text, description=text)
        for argument in positional:
            made.add_argument(argument, type=Path)
        return made

    def submits(made: argparse.ArgumentParser) -> None:
        made.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override a dotted key")
        made.add_argument("--cluster", type=Path, metavar="FILE", help="site file (default: jobs/cluster.toml, if any)")
        made.add_argument("--dry-run", action="store_true", help="print the sbatch file, submit nothing")
        made.add_argument("--wait", action="store_true", help="follow queued tasks to their end")

    made = verb("demo", "everything from packing to the report page, on this machine or the cluster")
    made.add_argument("--recipe", type=Path, default=Path("shards/city.toml"))
    made.add_argument("--root", type=Path, help="where the recipe's source lies")
    made.add_argument("--cluster", type=Path, metavar="FILE")
    made.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override a key of the training")

    made = verb("pack", "pack a source into tar shards: column `base`", "recipe")
    submits(made)
    made.add_argument("--job", type=Path, default=Path("jobs/pack.toml"), help="what packing asks of the cluster")
    for stage in ("caption", "segment"):
        submits(verb(stage, f"add the column that a {stage} job makes", "job"))
    submits(verb("train", "train, or go on training", "job"))
    submits(verb("generate", "images for held-out layouts from a trained model", "job"))
    verbs.choices["generate"].add_argument(
        "--from", dest="manifest", type=Path, metavar="MANIFEST", help="make a manifest's images again and compare"
    )
    verbs.choices["generate"].add_argument("--out", type=Path, metavar="DIR", help="with --from: where to write them")
    submits(verb("evaluate", "scores of the generated images", "job"))

    made = verb("report", "one self-contained page about a run", "run")
    made.add_argument("--dataset", type=Path, help="the dataset's folder (default: the run's own)")
    made.add_argument("--sheet", type=Path, metavar="PNG", help="also a contact sheet of the generated images")
    made = verb("verify", "re-read a dataset and name every fault", "dataset")
    made.add_argument("--quick", action="store_true", help="receipts and sizes only")
    made.add_argument("--json", action="store_true")
    made = verb("status", "what is done, running, failed and missing")
    made.add_argument("--json", action="store_true")
    made.add_argument("--data", type=Path, default=Path("data"))
    made.add_argument("--runs", type=Path, default=Path("runs"))
    made = verb("board", "TensorBoard on loopback, with the ssh line that reaches it")
    made.add_argument("--runs", type=Path, default=Path("runs"))
    made.add_argument("--port", type=int, default=0, help="default: the system chooses")
    made.add_argument("--host", help="name of this login node as seen from outside")
    made = verb("image", "build the Apptainer image that jobs run in, unless it is there already")
    made.add_argument("--folder", type=Path, default=Path("containers"), help="where the definition lies")
    made.add_argument("--out", type=Path, default=Path("containers"), help="where the image goes")
    made.add_argument("--arg", action="append", default=[], metavar="NAME=VALUE", help="build argument, such as BASE=…")
    made.add_argument("--certificates", type=Path, help="CA bundle of a network with its own authority")
    made.add_argument("--user", help="root only: build as this normal user")
    made.add_argument("--scratch", type=Path, help="local disk for 12 GB of temporary files")
    return top


def _pack(a: argparse.Namespace) -> int:
    from semiocity.launch import jobs

    return _submit(jobs.pack(a.recipe, a.set, a.job), a)


def _stage(a: argparse.Namespace) -> int:
    from semiocity.launch import jobs

    return _submit(jobs.stage(a.job, a.set, expect=a.verb), a)


def _train(a: argparse.Namespace) -> int:
    from semiocity.launch import jobs

    return _submit(jobs.train(a.job, a.set), a)


def _generate(a: argparse.Namespace) -> int:
    if a.manifest:
        from semiocity.evaluate.generate import regenerate

        out = a.out or a.manifest.parent.with_name("samples-again")
        differing = regenerate(a.manifest, out)
        print(f"{out}: " + ("the same images, byte for byte" if not differing else f"{len(differing)} images differ"))
        for name in differing[:10]:
            print(f"  {name}")
        return 1 if differing else 0
    from semiocity.launch import jobs

    return _submit(jobs.generate(a.job, a.set), a)


def _evaluate(a: argparse.Namespace) -> int:
    from semiocity.launch import jobs

    return _submit(jobs.evaluate(a.job, a.set), a)


def _submit(work: object, a: argparse.Namespace) -> int:
    from semiocity.launch import jobs, submission

    assert isinstance(work, jobs.Work)
    submission.submit(work, jobs.load_cluster(a.cluster), wait=a.wait, dry_run=a.dry_run)
    return 0


def _demo(a: argparse.Namespace) -> int:
    from semiocity.launch import demo

    return demo.run(a.recipe, a.root, a.cluster, a.set)


def _report(a: argparse.Namespace) -> int:
    from semiocity.evaluate.report import contact_sheet, write
    from semiocity.launch.runs import attempts

    dataset = a.dataset
    if dataset is None:
        found = [attempt for attempt in attempts(a.run) if attempt.file.exists()]
        if not found:
            raise UserError(f"{a.run}: no run folder of ours; `semiocity status` lists them")
        dataset = Path(found[-1].read()["dataset"])
    print(write(a.run, dataset))
    if a.sheet:
        print(contact_sheet(a.run, dataset, a.sheet))
    return 0


def _verify(a: argparse.Namespace) -> int:
    from semiocity.data.verify import show

    return show(a.dataset, quick=a.quick, as_json=a.json)


def _status(a: argparse.Namespace) -> int:
    from semiocity.launch.status import show

    return show(a.data, a.runs, a.json)


def _board(a: argparse.Namespace) -> int:
    from semiocity.launch.board import run

    return run(a.runs, a.port, a.host)


def _image(a: argparse.Namespace) -> int:
    from semiocity.launch.container import build

    overrides = dict(item.partition("=")[::2] for item in a.arg)
    print(build(a.out, a.folder, overrides=overrides, certificates=a.certificates, user=a.user, scratch=a.scratch))
    return 0


VERBS: dict[str, Callable[[argparse.Namespace], int]] = {
    "demo": _demo,
    "pack": _pack,
    "caption": _stage,
    "segment": _stage,
    "train": _train,
    "generate": _generate,
    "evaluate": _evaluate,
    "report": _report,
    "verify": _verify,
    "status": _status,
    "board": _board,
    "image": _image,
}

if __name__ == "__main__":
    sys.exit(main())
