"""What a reduce stage is: it needs to see every shard before it can write the first. Login node: pydantic only.

A stage looks at one shard; a reduce stage first gathers a little of each (scalars, from the parquet alone), concludes
once, and then writes every shard of its column. One job does it: `semiocity/stages/reduce_runner.py` runs it in a task.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from semiocity.config import Strict, check, digest
from semiocity.errors import UserError
from semiocity.stages.base import Made, Tombstone

if TYPE_CHECKING:
    import pyarrow as pa

    from semiocity.data.columns import Dataset

REDUCES: dict[str, str] = {"duplicates": "semiocity.stages.duplicates:Duplicates"}
"""Reduce stage → its class; imported when it is chosen."""

Stop = Callable[[], bool]


class Reduce(ABC):
    """One reduce stage. Construction and everything above `gather` is cheap and safe on a login node."""

    name: ClassVar[str]
    """Key of REDUCES."""
    version: ClassVar[int]
    """Raised whenever the same input and arguments would give other bytes."""
    column: ClassVar[str]
    """Name of the new column unless the job names another."""
    Args: ClassVar[type[Strict]]

    def __init__(self, args: Any) -> None:
        self.args = args

    @abstractmethod
    def needs(self) -> tuple[str, ...]:
        """Scalars that it reads, such as "hash.phash". Their columns are the parents."""

    @abstractmethod
    def fields(self) -> dict[str, str]:
        """Fields of the new column and their extensions; at least one: a row of a shard is never empty."""

    def scalars(self) -> dict[str, Literal["int", "float", "str", "bool"]]:
        """Scalars of the new column and their types."""
        return {}

    def settings(self) -> dict[str, Any]:
        """The arguments that decide the bytes."""
        return self.args.model_dump(mode="json")

    def gather(self, table: pa.Table) -> Any:
        """What to remember of a shard. `table` has `key` and all of `needs()`, by these names, for the rows that are a
        tombstone in none of the parents. Called for every shard, in order."""
        return table

    @abstractmethod
    def conclude(self, gathered: Sequence[Any], threads: int, stop: Stop) -> Any:
        """From what was gathered of each shard, in their order, to whatever `rows` wants. The same whatever `threads`
        is. Raises errors.Stopped when `stop` says so."""

    @abstractmethod
    def rows(self, conclusion: Any, shard: int) -> list[Made | Tombstone]:
        """The new column's rows of a shard, for the rows that `gather` saw, in their order."""

    def report(self, dataset: Dataset, column: str, run: Path) -> None:
        """Write files for people into the run's folder, from the dataset that now has the new column."""
        return


def make_reduce(name: str, args: Mapping[str, Any], where: str = "args") -> Reduce:
    """The reduce stage `name` with checked arguments. UserErrors begin with `where`."""
    if name not in REDUCES:
        raise UserError(f"reduce stage {name!r} does not exist; there are {', '.join(REDUCES)}")
    module, _, attribute = REDUCES[name].partition(":")
    made: type[Reduce] = getattr(import_module(module), attribute)
    return made(check(args, made.Args, where))


def parents_of(reduce: Reduce) -> list[str]:
    """Columns that it reads, sorted."""
    return sorted({reference.partition(".")[0] for reference in reduce.needs()})


def revision(reduce: Reduce, facts: Mapping[str, Any]) -> str:
    """Short hash of everything that decides the column's bytes: any parent's shard may change any of ours, so it holds
    the digests of the parents, from the dataset's manifest `facts`, not only their revisions."""
    columns = {name: facts["columns"][name] for name in parents_of(reduce)}
    return digest(
        {
            "reduce": reduce.name,
            "version": reduce.version,
            "settings": reduce.settings(),
            "parents": {name: {"revision": c["revision"], "digest": c["digest"]} for name, c in columns.items()},
        }
    )
