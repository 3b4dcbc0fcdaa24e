"""Shards of a stage: whole or absent, the same bytes whatever happened on the way, one bad row one tombstone."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest
from stage_data import contents, read_column, run_stage, shards_of, stage_revision

from semiocity.data.columns import Dataset
from semiocity.data.journal import died_in
from semiocity.data.lease import Owner, lease
from semiocity.data.manifest import ShardPath, column_folder, merge, read_receipt
from semiocity.errors import UserError
from semiocity.stages.base import BadRow, BrokenStage, DatasetInfo, Made, Row, Stage, StageArgs, Tombstone, make_stage
from semiocity.stages.runner import run_shards


class Probe(Stage):
    """Writes each row's number of label bytes and its place in its batch; does what it is told with some rows."""

    name, version, column, Args = "probe", 1, "probe", StageArgs

    def __init__(self, batch: int = 3, fault: Callable[[Row], None] = lambda row: None) -> None:
        super().__init__(StageArgs(batch=batch))
        self.fault = fault
        self.batches: list[list[str]] = []
        self.loads = 0

    def needs(self) -> tuple[str, ...]:
        return ("base.label",)

    def wants(self) -> tuple[str, ...]:
        return ("base.instance", "base.caption", "mask.rle")

    def fields(self) -> dict[str, str]:
        return {"note": "txt"}

    def scalars(self) -> dict[str, Literal["int", "float", "str", "bool"]]:
        return {"place": "int", "time": "str"}

    def load(self, info: DatasetInfo, device: str) -> None:
        self.loads += 1

    def process(self, rows: list[Row]) -> list[Made | Tombstone]:
        for row in rows:
            self.fault(row)
        self.batches.append([row.key for row in rows])
        assert all(set(row.fields) == {"base.label", "base.instance"} for row in rows)
        return [
            Made(
                {"note": ("txt", str(len(row.fields["base.label"] or b"")).encode())},
                {"place": place, "time": row.scalars["base.time"]},
            )
            for place, row in enumerate(rows)
        ]


@pytest.fixture
def own(street: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(street, tmp_path / "street"))


def keys_of(dataset: Path) -> list[str]:
    return sorted(read_column(next((dataset / "columns" / "base").glob("*/"))))


def test_a_column_has_every_key_and_merges(own: Path) -> None:
    stage = make_stage("caption", {"captioner": "labels"})
    facts: list[dict[str, Any]] = []
    folder = run_stage(stage, own, report=facts.append)
    merge(own, "caption", folder.name)
    dataset = Dataset.open(own)
    view = dataset.view(["base.image", "caption.text"])
    assert len(view) == 11 and all(view.read(i)["caption.text"] for i in range(11))
    receipt = read_receipt(ShardPath(folder, 1))
    assert receipt is not None
    assert receipt["parents"]["base"]["sha256"] == dataset.shard_entries("base")[1]["sha256"]
    assert receipt["stage"] == {"name": "caption", "version": 2, "args": {"captioner": "labels"}}
    assert receipt["execution"] == {"device": "cpu", "dtype": "float32", "batch": 64}
    assert facts[-1] == {"shard": 2, "done_shards": 3, "shards": 3}
    assert {"shard", "rows", "of", "rows_per_s", "done_shards", "shards"} == set(facts[0])


def test_batches_have_fixed_borders_inside_each_shard(own: Path) -> None:
    stage = Probe(batch=3)
    run_stage(stage, own)
    keys = keys_of(own)
    assert stage.batches == [keys[0:3], keys[3:4], keys[4:7], keys[7:8], keys[8:11]]
    assert stage.loads == 1


def test_rows_that_cannot_be_decoded_become_tombstones_and_change_nothing_else(broken_street: Path) -> None:
    keys = keys_of(broken_street)
    masks = read_column(run_stage(make_stage("segment", {"segmenter": "superpixels", "batch": 3}), broken_street))
    dead = {key: tombstone for key, (_, _, tombstone) in masks.items() if tombstone}
    assert dead == {keys[2]: ("permanent", "image cannot be decoded: cannot identify image file")}
    texts = read_column(run_stage(make_stage("caption", {"captioner": "labels", "batch": 3}), broken_street))
    dead = {key: tombstone for key, (_, _, tombstone) in texts.items() if tombstone}
    assert list(dead) == [keys[5]]
    kind, reason = dead[keys[5]]
    assert kind == "permanent" and reason.startswith("label cannot be decoded: ")
    assert all(fields["text"] for key, (fields, _, _) in texts.items() if key not in dead)


@pytest.mark.parametrize(
    ("error", "kind", "reason"),
    [
        (BadRow("too small"), "permanent", "too small"),
        (ValueError("odd <Thing object at 0x7f00aa12> here"), "permanent", "ValueError: odd <Thing object> here"),
        (OSError("disk away"), "retry", "OSError: disk away"),
        (MemoryError("12345 bytes"), "retry", "out of memory"),
    ],
)
def test_an_exception_costs_one_row_and_the_receipt_says_so(
    own: Path, error: Exception, kind: str, reason: str
) -> None:
    bad = keys_of(own)[5]

    def fault(row: Row) -> None:
        if row.key == bad:
            raise error

    folder = run_stage(Probe(batch=3, fault=fault), own)
    found = read_column(folder)
    assert {key: row[2] for key, row in found.items() if row[2]} == {bad: (kind, reason)}
    shrunk = [(read_receipt(ShardPath(folder, i)) or {})["execution"].get("shrunk_to") for i in range(3)]
    assert shrunk == [None, 1, None]
    before = contents(folder)
    shutil.rmtree(folder)
    run_stage(Probe(batch=3, fault=fault), own, shards=[2, 1, 0])
    assert contents(folder) == before


def test_a_row_that_failed_for_now_is_tried_again_and_only_its_shard(own: Path) -> None:
    bad = keys_of(own)[9]

    def fault(row: Row) -> None:
        if row.key == bad:
            raise OSError("busy")

    folder = run_stage(Probe(fault=fault), own)
    assert read_column(folder)[bad][2] == ("retry", "OSError: busy")
    again = Probe()
    run_stage(again, own)
    assert {key for batch in again.batches for key in batch} == set(keys_of(own)[8:])
    assert read_column(folder)[bad][2] is None
    fresh = contents(folder)
    shutil.rmtree(folder)
    assert fresh == contents(run_stage(Probe(), own))


@pytest.mark.parametrize(
    ("error", "kind", "said"),
    [
        (MemoryError(), UserError, "every row ran out of memory; ask for more memory, or lower args.batch"),
        (
            RuntimeError("shapes differ"),
            RuntimeError,
            r"no row succeeded \(RuntimeError: shapes differ\); not published",
        ),
        (RuntimeError("CUDA error: device-side assert"), RuntimeError, "CUDA error"),
        (NotImplementedError("later"), NotImplementedError, "later"),
        (BrokenStage("2 results for 3 rows"), BrokenStage, "2 results for 3 rows"),
        (UserError("no weights"), UserError, "no weights"),
    ],
)
def test_what_is_no_fault_of_a_row_fails_the_task_and_publishes_nothing(
    own: Path, error: Exception, kind: type[Exception], said: str
) -> None:
    def fault(row: Row) -> None:
        raise error

    stage = Probe(fault=fault)
    with pytest.raises(kind, match=said):
        run_stage(stage, own)
    left = contents(column_folder(own, "probe", stage_revision(stage, own)))
    # A GPU that went down under some row: the next attempt is to look for it.
    assert list(left) == (["00000/.00000000.journal.tmp"] if "CUDA" in str(error) else [])


def test_rows_of_a_failed_parent_and_rows_without_the_field_are_passed_on(own: Path, tmp_path: Path) -> None:
    class Child(Probe):
        column = "child"

        def needs(self) -> tuple[str, ...]:
            return ("base.label", "probe.note")

        def process(self, rows: list[Row]) -> list[Made | Tombstone]:
            return [Made({"note": ("txt", row.fields["probe.note"] or b"")}, {}) for row in rows]

    keys = keys_of(own)

    def fault(row: Row) -> None:
        if row.key == keys[1]:
            raise BadRow("blurred")

    merge(own, "probe", run_stage(Probe(fault=fault), own).name)
    found = read_column(run_stage(Child(), own))
    assert found[keys[1]][2] == ("permanent", "probe: blurred")
    assert sum(row[2] is None for row in found.values()) == 10


def test_a_stop_between_batches_publishes_nothing_and_loses_nothing(own: Path) -> None:
    stage = Probe(batch=2)
    revision = stage_revision(stage, own)
    facts: list[dict[str, Any]] = []
    # Asked before each shard and before each batch; the sixth time is inside shard 1.
    asked = iter([False] * 5 + [True] * 9)
    done = run_shards(stage, own, "probe", revision, range(3), Owner.here(), lambda: next(asked), facts.append)
    assert done is False
    folder = column_folder(own, "probe", revision)
    whole = {f"00000/00000000.{ext}" for ext in ("json", "parquet", "tar")}
    assert set(contents(folder)) == whole | {"00000/.00000001.journal.tmp"}
    before = [key for batch in stage.batches for key in batch]
    run_stage(stage, own)
    assert sorted(before) == sorted(set(before)), "no row went through twice"
    resumed = contents(folder)
    shutil.rmtree(folder)
    assert resumed == contents(run_stage(Probe(batch=2), own))


def test_a_shard_that_somebody_alive_works_on_is_left_to_them(own: Path) -> None:
    stage = Probe()
    revision = stage_revision(stage, own)
    path = ShardPath(column_folder(own, "probe", revision), 1)
    facts: list[dict[str, Any]] = []
    other = Owner("other", 0, 0, socket.gethostname(), os.getppid())
    with lease(path.lease, other) as held:
        assert held
        assert run_shards(stage, own, "probe", revision, range(3), Owner.here(), report=facts.append)
    assert [read_receipt(ShardPath(path.folder, i)) is not None for i in range(3)] == [True, False, True]
    assert [f["leased"] for f in facts if "leased" in f] == [1]


def test_a_shard_whose_parent_changed_is_made_again(own: Path) -> None:
    folder = run_stage(Probe(), own)
    receipt = ShardPath(folder, 1).receipt
    facts = json.loads(receipt.read_text())
    facts["parents"]["base"]["sha256"] = "0" * 64
    receipt.write_text(json.dumps(facts))
    again = Probe()
    run_stage(again, own)
    assert [key for batch in again.batches for key in batch] == keys_of(own)[4:8]


def test_a_dataset_that_changed_since_submission_is_refused(own: Path) -> None:
    with pytest.raises(UserError, match="they changed since the job was submitted"):
        run_shards(Probe(), own, "probe", "0123456789", range(3), Owner.here())


def test_damage_in_the_parent_fails_the_task_not_the_row(own: Path) -> None:
    tar = ShardPath(next((own / "columns" / "base").glob("*/")), 0).tar
    data = bytearray(tar.read_bytes())
    data[600] ^= 0xFF
    tar.write_bytes(data)
    stage = make_stage("segment", {"segmenter": "superpixels"})
    with pytest.raises(UserError, match="is damaged"):
        run_stage(stage, own)


def test_a_task_killed_inside_a_shard_makes_just_the_missing_shards_again(own: Path, street: Path) -> None:
    script = Path(__file__).with_name("kill_me.py")
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(script.parent), str(script.parents[2])])}

    def start(slow_s: float) -> subprocess.Popen[str]:
        command = [sys.executable, str(script), str(own), str(slow_s)]
        return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True)

    first = start(0.3)
    assert first.stdout is not None
    for line in first.stdout:
        facts = json.loads(line)
        if facts["shard"] == 1 and facts.get("rows") == 2:
            first.send_signal(signal.SIGKILL)
            break
    assert first.wait() == -signal.SIGKILL

    stage = make_stage("caption", {"captioner": "labels", "batch": 2})
    folder = column_folder(own, "caption", stage_revision(stage, own))
    left = contents(folder)
    assert [f"00000/{i:08d}.json" in left for i in shards_of(own)] == [True, False, False]
    assert any(name.endswith(".tmp") for name in left), "it was not killed in the middle"
    inode = ShardPath(folder, 0).tar.stat().st_ino

    second = start(0)
    output, _ = second.communicate()
    assert second.returncode == 0
    assert {json.loads(line)["shard"] for line in output.splitlines() if "rows_per_s" in line} == {1, 2}
    assert ShardPath(folder, 0).tar.stat().st_ino == inode
    undisturbed = Path(shutil.copytree(street, own.parent / "undisturbed" / "street"))
    assert contents(folder) == contents(run_stage(stage, undisturbed))


# ---------------------------------------------------------------- rows that kill, memory that does not suffice


def dies_of(number: int) -> Callable[[Row], None]:
    def fault(row: Row) -> None:
        os.kill(os.getpid(), number)

    return fault


def on(bad: str, fault: Callable[[Row], None]) -> Callable[[Row], None]:
    def only(row: Row) -> None:
        if row.key == bad:
            fault(row)

    return only


def hang(row: Row) -> None:
    time.sleep(600)


def lose_the_gpu(row: Row) -> None:
    raise RuntimeError("CUDA error: an illegal memory access was encountered at 0x7f")


@pytest.mark.parametrize(
    ("fault", "tombstone"),
    [
        (dies_of(signal.SIGSEGV), ("permanent", "killed its process: SIGSEGV")),
        (dies_of(signal.SIGKILL), ("retry", "killed its process: SIGKILL (out of memory?)")),
        (lambda row: os._exit(7), ("permanent", "killed its process: exit 7")),
        (hang, ("retry", "took longer than 3 s (args.batch_timeout_s)")),
        (lose_the_gpu, ("permanent", "RuntimeError: CUDA error: an illegal memory access was encountered")),
    ],
)
def test_a_row_that_kills_its_process_is_found_and_costs_that_row_only(
    own: Path, fault: Callable[[Row], None], tombstone: tuple[str, str]
) -> None:
    bad = keys_of(own)[5]
    stage = Probe(batch=3, fault=on(bad, fault))
    stage.args = StageArgs(batch=3, batch_timeout_s=3)
    folder = run_stage(stage, own, careful=True)
    found = read_column(folder)
    assert {key: row[2] for key, row in found.items() if row[2]} == {bad: tombstone}
    assert [execution(folder, i) for i in range(3)] == [(3, None), (3, 1), (3, None)]
    # As if it had raised an exception.
    shutil.rmtree(folder)
    calm = run_stage(Probe(batch=3, fault=on(bad, raise_value_error)), own)
    assert {k: r[0] for k, r in read_column(calm).items()} == {k: r[0] for k, r in found.items()}


def raise_value_error(row: Row) -> None:
    raise ValueError("odd")


def execution(folder: Path, shard: int) -> tuple[int, int | None]:
    receipt = read_receipt(ShardPath(folder, shard))
    assert receipt is not None
    return receipt["execution"]["batch"], receipt["execution"].get("shrunk_to")


class Hungry(Probe):
    """Fails when it gets more rows at a time than there is memory for."""

    def __init__(self, batch: int, most: int, how: Callable[[], None]) -> None:
        super().__init__(batch)
        self.most, self.how = most, how

    def process(self, rows: list[Row]) -> list[Made | Tombstone]:
        if len(rows) > self.most:
            self.how()
        return super().process(rows)


class OutOfMemoryError(RuntimeError):
    """Has the name of torch's."""


def cuda_out_of_memory() -> None:
    raise OutOfMemoryError("CUDA out of memory. Tried to allocate 12.34 MiB")


@pytest.mark.parametrize("careful", [False, True])
@pytest.mark.parametrize("most", [3, 2, 1])
def test_lack_of_memory_halves_the_batch_of_the_whole_shard(own: Path, most: int, careful: bool) -> None:
    """Batches of 4 over shards of 4, 4 and 3 rows: the last fits where the others do not."""
    fits = {3: 2, 2: 2, 1: 1}[most]
    folder = run_stage(Hungry(4, most, cuda_out_of_memory), own, careful=careful)
    last = (4, None) if most == 3 else (fits, fits)
    assert [execution(folder, i) for i in range(3)] == [(fits, fits), (fits, fits), last]
    found = read_column(folder)
    assert not [row for row in found.values() if row[2]]
    shutil.rmtree(folder)
    if most < 3:  # the same class, the same bytes
        smaller = read_column(run_stage(Probe(batch=fits), own))
        assert smaller == found


def test_a_kill_for_memory_halves_the_batch_too(own: Path) -> None:
    folder = run_stage(Hungry(4, 2, lambda: os.kill(os.getpid(), signal.SIGKILL)), own, careful=True)
    assert [execution(folder, i) for i in range(3)] == [(2, 2)] * 3
    assert not [row for row in read_column(folder).values() if row[2]]


def test_a_stage_that_cannot_be_loaded_apart_fails_the_task_with_its_own_words(own: Path) -> None:
    class Unloadable(Probe):
        def load(self, info: DatasetInfo, device: str) -> None:
            raise UserError("weights/config.json: missing")

    with pytest.raises(UserError, match=r"weights/config\.json: missing"):
        run_stage(Unloadable(), own, careful=True)

    class Crashing(Probe):
        def load(self, info: DatasetInfo, device: str) -> None:
            os.kill(os.getpid(), signal.SIGSEGV)

    with pytest.raises(RuntimeError, match=r"its process died while it loaded .*SIGSEGV"):
        run_stage(Crashing(), own, careful=True)


def test_a_row_that_killed_is_looked_at_apart_when_it_is_tried_again(own: Path) -> None:
    """Its tombstone is of the kind `retry`; the next submission must not die of it."""
    bad = keys_of(own)[5]
    fault = on(bad, dies_of(signal.SIGKILL))
    folder = run_stage(Probe(batch=3, fault=fault), own, careful=True)
    before = contents(folder)
    assert contents(run_stage(Probe(batch=3, fault=fault), own)) == before


@pytest.mark.parametrize(
    ("cause", "batch", "said"),
    [
        ("crash", 4, {"permanent": "killed its process and its task: crash"}),
        ("out_of_memory", 1, {"retry": "killed its process and its task: out of memory"}),
    ],
)
def test_a_row_that_ends_all_processes_of_its_job_is_found_by_the_attempts_after(
    own: Path, cause: str, batch: int, said: dict[str, str]
) -> None:
    """As where the kernel kills the whole step: the batch script alone sees it."""
    bad = keys_of(own)[5]

    def fault(row: Row) -> None:
        if row.key == bad:
            os.killpg(0, signal.SIGKILL)

    stage = Probe(batch=batch, fault=fault)
    deaths = 0
    while True:
        child = os.fork()
        if child == 0:
            os.setpgid(0, 0)
            run_stage(stage, own, ended=lambda owner: cause, careful=True)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if status == 0:
            break
        deaths += 1
        assert deaths < 5 and os.WTERMSIG(status) == signal.SIGKILL
    folder = column_folder(own, "probe", stage_revision(stage, own))
    found = read_column(folder)
    assert {key: {row[2][0]: row[2][1]} for key, row in found.items() if row[2]} == {bad: said}
    assert deaths == (2 if batch > 1 else 1)
    assert not [name for name in contents(folder) if name.endswith(".tmp")]


def test_a_hanging_batch_ends_its_task_with_the_stacks_in_its_log(own: Path, tmp_path: Path) -> None:
    bad = keys_of(own)[5]
    stage = Probe(batch=3, fault=on(bad, hang))
    stage.args = StageArgs(batch=3, batch_timeout_s=3)
    child = os.fork()
    if child == 0:
        with (tmp_path / "log").open("w") as log:
            sys.__stderr__ = log  # type: ignore[misc]
            run_stage(stage, own)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 1
    log_text = (tmp_path / "log").read_text()
    assert log_text.startswith("Timeout (0:00:03)!") and "in hang" in log_text
    path = ShardPath(column_folder(own, "probe", stage_revision(stage, own)), 1)
    assert died_in(path), "the next attempt looks at this shard in a child process"
