"""Configuration is refused early, with file, dotted key and what would be right."""

from pathlib import Path

import pytest

from semiocity.config import Cluster, Resources, Retries, StageJob, Strict, load_toml
from semiocity.errors import UserError
from semiocity.files import read_json, write_atomic, write_json


def toml(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "job.toml"
    path.write_text(text)
    return path


def test_unknown_key_names_file_key_and_the_nearest_right_one(tmp_path: Path) -> None:
    path = toml(tmp_path, 'stage = "caption"\ndataset = "data/x"\n[resources]\ntimeout_mins = 5\n')
    with pytest.raises(UserError) as error:
        load_toml(path, StageJob)
    assert str(error.value) == f"{path}: resources.timeout_mins: unknown key; did you mean timeout_min?"


def test_every_fault_is_named_at_once(tmp_path: Path) -> None:
    path = toml(tmp_path, "stage = 3\nfoo = 1\n[resources]\nnodes = 0\n")
    with pytest.raises(UserError) as error:
        load_toml(path, StageJob)
    text = str(error.value)
    for part in ("stage:", "foo: unknown key", "resources.nodes:", "dataset: missing"):
        assert part in text, part
    assert text.count(str(path)) == 4


@pytest.mark.parametrize(
    ("item", "expected"),
    [
        ("resources.timeout_min=7", ("resources", "timeout_min", 7)),
        ("resources.partition=gpu", ("resources", "partition", "gpu")),
        ('resources.partition="7"', ("resources", "partition", "7")),
    ],
)
def test_set_overrides_with_toml_values(tmp_path: Path, item: str, expected: tuple[str, str, object]) -> None:
    path = toml(tmp_path, 'stage = "caption"\ndataset = "data/x"\n')
    job = load_toml(path, StageJob, [item])
    assert getattr(getattr(job, expected[0]), expected[1]) == expected[2]


@pytest.mark.parametrize("item", ["resources", "=3", "a..b=1", "stage.x=1"])
def test_malformed_set_is_refused(tmp_path: Path, item: str) -> None:
    path = toml(tmp_path, 'stage = "caption"\ndataset = "data/x"\n')
    with pytest.raises(UserError, match="--set"):
        load_toml(path, StageJob, [item])


@pytest.mark.parametrize("text", ["stage = ", "\xff"])
def test_no_toml_is_said_plainly(tmp_path: Path, text: str) -> None:
    path = tmp_path / "job.toml"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match="not valid TOML"):
        load_toml(path, StageJob)
    with pytest.raises(UserError, match="no such file"):
        load_toml(tmp_path / "absent.toml", StageJob)


def test_ranks_must_match_gpus_and_signal_must_fit() -> None:
    with pytest.raises(ValueError, match="one rank a GPU"):
        Resources(gpus_per_node=8, ranks_per_node=4)
    with pytest.raises(ValueError, match="must be below"):
        Resources(timeout_min=2, signal_delay_s=120)
    assert Resources(gpus_per_node=8, ranks_per_node=8).ranks_per_node == 8


def test_example_cluster_file_is_valid() -> None:
    cluster = load_toml(Path(__file__).parents[1] / "jobs" / "cluster.example.toml", Cluster)
    assert cluster.executor == "slurm"


def test_hint_reaches_into_tagged_unions(tmp_path: Path) -> None:
    from typing import Annotated, Literal

    from pydantic import Field

    class Circle(Strict):
        kind: Literal["circle"]
        radius: float

    class Square(Strict):
        kind: Literal["square"]
        side: float

    class Drawing(Strict):
        shape: Annotated[Circle | Square, Field(discriminator="kind")]

    path = toml(tmp_path, '[shape]\nkind = "circle"\nradius = 1\nraduis = 2\n')
    with pytest.raises(UserError, match="did you mean radius"):
        load_toml(path, Drawing)


def test_atomic_write_leaves_the_old_file_when_it_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "facts.json"
    write_json(path, {"a": 1})

    def fail(_descriptor: int) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        write_atomic(path, b"half")
    assert read_json(path) == {"a": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["facts.json"]


def test_the_old_budget_of_restarts_is_refused_with_what_replaces_it(tmp_path: Path) -> None:
    path = tmp_path / "cluster.toml"
    path.write_text("max_restarts = 7\n")
    with pytest.raises(UserError, match=r"cluster\.toml: .*preemption = 7 in the table \[retries\]"):
        load_toml(path, Cluster)
    path.write_text("[retries]\npreemptions = 7\n")
    with pytest.raises(UserError, match=r"retries\.preemptions: unknown key; did you mean preemption\?"):
        load_toml(path, Cluster)
    path.write_text("[retries]\ncrash = 0\n")
    assert load_toml(path, Cluster).retries == Retries(crash=0, preemption=100)
