"""Runs the labels captioner over shards of a dataset, slowly, and says on stdout after each batch how far it is.

python kill_me.py DATASET SECONDS_A_BATCH
"""

import json
import sys
from pathlib import Path

from stage_data import shards_of, stage_revision

from semiocity.data.lease import Owner
from semiocity.stages.base import make_stage
from semiocity.stages.runner import run_shards

if __name__ == "__main__":
    dataset = Path(sys.argv[1])
    stage = make_stage("caption", {"captioner": "labels", "batch": 2, "rehearse_slow_batch_s": float(sys.argv[2])})
    run_shards(
        stage,
        dataset,
        stage.column,
        stage_revision(stage, dataset),
        shards_of(dataset),
        Owner.here(),
        report=lambda facts: print(json.dumps(facts), flush=True),
    )
