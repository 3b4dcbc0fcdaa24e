"""`semiocity VERB …`. A verb's module is imported when it is called: `--help` and `status` start at once."""

from __future__ import annotations

import argparse
import errno
import sys
from importlib import import_module
from types import ModuleType

from semiocity.errors import UserError
from semiocity.launch import sharing

VERBS: dict[str, tuple[str, str]] = {
    "demo": ("demo", "everything from packing to the report page, on this machine or the cluster"),
    "pack": ("pack", "pack a source into tar shards: column `base`"),
    "caption": ("stage", "add the column that a caption job makes"),
    "segment": ("stage", "add the column that a segment job makes"),
    "hash": ("stage", "add the column `hash`: what equal and similar pictures are found by"),
    "latent": ("stage", "add the column `latent`: what a VAE makes of every picture, for trainings"),
    "text": ("stage", "add the column `text`: what text encoders make of every caption, for trainings"),
    "duplicates": ("duplicates", "find equal and near-equal pictures, and the splits that keep them together"),
    "view": ("view", "choose rows by a filter and pin them, for trainings to name"),
    "train": ("train", "train, or go on training"),
    "generate": ("generate", "images for held-out layouts from a trained model"),
    "evaluate": ("evaluate", "scores of the generated images"),
    "report": ("report", "one self-contained page about a run"),
    "compare": ("compare", "trainings beside each other: settings that differ, curves, scores, costs"),
    "pipeline": ("pipeline", "several jobs as a graph: what is missing or out of date, in its order"),
    "columns": ("columns", "a dataset's columns: revisions, what made them, what is out of date"),
    "show": ("show", "one row: every value, and what made it"),
    "search": ("search", "keys of the rows that a filter expression selects"),
    "browse": ("browse", "a gallery of a dataset on loopback: search, filter, look at rows with their layers"),
    "verify": ("verify", "re-read a dataset and name every fault"),
    "repair": ("repair", "mend a dataset, and say what to compute again"),
    "upgrade": ("upgrade", "bring a dataset of an older format to the present one"),
    "edit": ("edit", "correct captions by hand: a new revision of their column"),
    "remove": ("remove", "take rows down for good, out of every column"),
    "import": ("import_", "add a column of captions or masks that were made elsewhere"),
    "export": ("export", "a copy of a dataset in the format of another tool"),
    "du": ("du", "what datasets take: bytes and inodes by column and revision"),
    "gc": ("gc", "delete revisions and leftovers that nothing refers to"),
    "ledger": ("ledger", "check which samples went into each batch of a training"),
    "doctor": ("doctor", "check cluster, image, weights and folders before a job finds out"),
    "fit": ("fit", "what memory and time a training or stage needs, before it is submitted"),
    "fetch": ("fetch", "bring named models to the shared cache, pinned and checked"),
    "repeat": ("repeat", "a run again from its folder alone: same job, revisions and code"),
    "status": ("status", "what is done, running, failed and missing"),
    "logs": ("logs", "the end of the log that matters: the failing task's first"),
    "cancel": ("cancel", "end what is queued or running of a run, so that it does not come back"),
    "retry": ("retry", "a run's job again: what is missing and not under way"),
    "board": ("board", "TensorBoard on loopback, with the ssh line that reaches it"),
    "image": ("image", "build the Apptainer image that jobs run in, unless it is there already"),
}
"""Verb → its module in `semiocity/verbs/`, and what `--help` says of it.

Such a module has `arguments(parser)` and `run(arguments)`, the exit status, and imports what is heavy in `run` only.
"""


REFUSED = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EFBIG}
"""No room or no right to write: said in one line, since it is no fault of the program."""


def main(argv: list[str] | None = None) -> int:
    """Entry point. Exit status: 0 all is well, 1 something failed or is incomplete, 2 bad input, 130 interrupted."""
    words = sys.argv[1:] if argv is None else argv
    arguments = parser(words[0] if words else "").parse_args(words)
    sharing.follow_site_file()
    try:
        status: int = _module(arguments.verb).run(arguments)
        return status
    except UserError as error:
        print(f"semiocity: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # `semiocity status | head`: the reader has seen enough.
        sys.stderr.close()
        return 0
    except OSError as error:
        if error.errno not in REFUSED:
            raise
        print(f"semiocity: {error.filename or 'writing'}: {error.strerror}", file=sys.stderr)
        return 1


def parser(verb: str) -> argparse.ArgumentParser:
    """Knows all verbs by name, and the arguments of `verb`."""
    top = argparse.ArgumentParser(
        prog="semiocity", description="Prepare urban image sets and train image generators on a SLURM cluster."
    )
    verbs = top.add_subparsers(dest="verb", required=True, metavar="VERB")
    for name, (_, text) in VERBS.items():
        made = verbs.add_parser(name, help=text, description=text)
        if name == verb:
            _module(name).arguments(made)
    return top


def _module(verb: str) -> ModuleType:
    return import_module(f"semiocity.verbs.{VERBS[verb][0]}")


if __name__ == "__main__":
    sys.exit(main())
