"""Whether splits keep duplicates together: looked up anew from the hashes, not believed of the column `duplicates`."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from semiocity.config import check as checked
from semiocity.data.columns import Dataset
from semiocity.data.duplicate_rows import join
from semiocity.data.duplicates import Limits, cluster
from semiocity.data.manifest import read_column_manifest
from semiocity.errors import UserError
from semiocity.stages.duplicates import Duplicates, DuplicatesArgs

EXAMPLES = 10


def show(path: Path, split: str, as_json: bool) -> int:
    """Print what `leaks` finds; exit status 0 only when it finds nothing."""
    facts = leaks(Dataset.open(path), split)
    if as_json:
        print(json.dumps(facts, indent=1, sort_keys=True))
    else:
        print(render(facts))
    return 0 if facts["clean"] else 1
