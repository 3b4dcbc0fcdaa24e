"""Commands in the documentation are commands: every `semiocity …` is taken by the command line as it is written."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from semiocity.cli import VERBS, parser

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    page
    for pattern in ("README.md", "docs/*.md", "*/README.md", "*/*/README.md")
    for page in ROOT.glob(pattern)
    if not page.relative_to(ROOT).parts[0].startswith(".")
)
SHORTENED = re.compile(r"…|\.\.\.|\[|\||\bVERB\b")
"""What a command in running text may leave out; such a one is not tried."""
FILLED = {"N": "4", "I/N": "0/4", "$SLURM_PROCID/$SLURM_NTASKS": "0/4", "FIRST:END": "0:1"}


def commands(page: Path) -> list[str]:
    """In a line of their own, or between backticks, at least with one argument."""
    text = page.read_text()
    found = re.findall(r"^ *(semiocity [^#\n]+?) *(?:#.*)?$", text, re.MULTILINE)
    found += [re.sub(r"\s+", " ", command) for command in re.findall(r"`(semiocity \S[^`]*)`", text)]
    found = [part.strip() for command in found for part in command.split("&&")]
    return sorted({command for command in found if not SHORTENED.search(command) and len(command.split()) > 2})


@pytest.mark.parametrize("page", PAGES, ids=[str(page.relative_to(ROOT)) for page in PAGES])
def test_commands_are_taken_as_they_are_written(page: Path) -> None:
    for command in commands(page):
        words = [FILLED.get(word, word) for word in shlex.split(command)[1:]]
        assert words[0] in VERBS, command
        try:
            parser(words[0]).parse_args(words)
        except SystemExit:
            pytest.fail(f"{page.name}: {command}")


def test_there_are_commands_to_try() -> None:
    assert sum(len(commands(page)) for page in PAGES) > 30
