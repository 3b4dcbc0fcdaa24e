"""The text of sbatch files: a pure function of parameters, tested against golden files."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

# Parameters that become something else than one `#SBATCH` line of their name.
_OTHERWISE = {
    "additional_parameters",
    "array_parallelism",
    "setup",
    "signal_delay_s",
    "srun_args",
    "teardown",
}


def script(parameters: Mapping[str, Any], command: str, logs: Path, tasks: int = 1) -> str:
    """An sbatch file that runs `command` under srun, as one job or, for several `tasks`, as an array from 0 on.

    `parameters` are sbatch's long options with underscores, and: `signal_delay_s`, how long before the time limit the
    ranks get USR2; `array_parallelism`; `setup` and `teardown`, shell lines before and after; `srun_args`;
    `additional_parameters`, options that stand as they are. The first rank's log holds the script's own output too.
    """
    job = "%j"
    options = {key.replace("_", "-"): value for key, value in parameters.items() if key not in _OTHERWISE}
    options["signal"] = f"USR2@{parameters['signal_delay_s']}"
    if tasks > 1:
        job = "%A_%a"
        options["array"] = f"0-{tasks - 1}%{min(tasks, parameters['array_parallelism'])}"
    options["output"] = str(logs / f"{job}_0_log.out")
    options["open-mode"] = "append"
    options |= {key.replace("_", "-"): value for key, value in parameters.get("additional_parameters", {}).items()}
    lines = ["#!/bin/bash", "", "# Parameters", *(_flag(key, options[key]) for key in sorted(options))]
    if parameters.get("setup"):
        lines += ["", "# setup", *parameters["setup"]]
    srun = ["srun", "--unbuffered", "--output", str(logs / f"{job}_%t_log.out"), *parameters.get("srun_args", ())]
    # The variable by which submitit's local executor, too, tells a rank where it is.
    lines += ["", "# command", "export SUBMITIT_EXECUTOR=slurm", f"{shlex.join(srun)} {command}"]
    if parameters.get("teardown"):
        lines += ["", "# teardown", *parameters["teardown"]]
    return "\n".join(lines)


def _flag(key: str, value: Any) -> str:
    return f"#SBATCH --{key}" if value is True else f"#SBATCH --{key}={shlex.quote(str(value))}"
