"""CSV as the standard library reads it, with one limit for the length of a cell.

The limit is a setting of the whole process: readers that each set their own would change it for one another.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable
from typing import Any

LONGEST_CELL = 16 << 20
"""Characters; a longer cell is a quotation mark that was never closed."""

Error = csv.Error


def reader(lines: Iterable[str], **options: Any) -> Any:
    """csv.reader, whose iteration raises Error for cells longer than LONGEST_CELL."""
    csv.field_size_limit(LONGEST_CELL)
    return csv.reader(lines, **options)


def dict_reader(lines: Iterable[str], **options: Any) -> csv.DictReader[str]:
    """csv.DictReader, whose iteration raises Error for cells longer than LONGEST_CELL."""
    csv.field_size_limit(LONGEST_CELL)
    return csv.DictReader(lines, **options)
