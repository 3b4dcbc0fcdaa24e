"""The training tasks by name. Importable on a login node: the classes are named here, and imported when used."""

from typing import NamedTuple


class TaskEntry(NamedTuple):
    """Where the parts of a task are, as "module:name"."""

    options: str
    """Its options, a TaskOptions: login-importable."""
    task: str
    """The task itself, a Task."""


TASKS: dict[str, TaskEntry] = {
    "sdm": TaskEntry("semiocity.train.tasks.sdm_options:SDMOptions", "semiocity.train.tasks.sdm:SDMTask"),
}
