"""The training tasks by name. Importable on a login node: the classes are named here, and imported when used."""

from typing import NamedTuple


class TaskEntry(NamedTuple):
    """Where the parts of a task are, as "module:name"."""

    options: str
    """Its options, a TaskOptions: login-importable."""
    task: str
    """The task itself, a Task."""


_FLUX = "semiocity.train.tasks.flux_options"

TASKS: dict[str, TaskEntry] = {
    "flux-full": TaskEntry(f"{_FLUX}:FluxFullOptions", "semiocity.train.tasks.flux_full:FluxFullTask"),
    "flux-lora": TaskEntry(f"{_FLUX}:FluxLoraOptions", "semiocity.train.tasks.flux_lora:FluxLoraTask"),
    "sdm": TaskEntry("semiocity.train.tasks.sdm_options:SDMOptions", "semiocity.train.tasks.sdm:SDMTask"),
}
