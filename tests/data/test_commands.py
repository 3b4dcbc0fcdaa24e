"""Commands that `repair` and `remove` name: they are about the dataset at hand, and make the revision that is there."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest
from make_images import add_column, jpeg, packed, write_files

from semiocity.cli import main
from semiocity.data.commands import command_for
from semiocity.data.manifest import read_column_manifest, read_manifest
from semiocity.data.plan import Plan, make_plan
from semiocity.data.recipe import load_recipe
from semiocity.files import read_json, write_json


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of pictures packed as data/street with settings of the command line, and a column `word`."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "shards").mkdir()
    (tmp_path / "jobs").mkdir()
    write_files(tmp_path / "my pictures", {f"{i}.jpg": jpeg(seed=i) for i in range(5)})
    (tmp_path / "shards" / "city.toml").write_text('[source]\nkind = "city"\n')
    (tmp_path / "shards" / "folder.toml").write_text('shard_rows = 9\n[source]\nkind = "folder"\n')
    sets = ["name=street", f"source.root={tmp_path / 'my pictures'}", "shard_rows=2", 'source.split_by="fraction"']
    packed(load_recipe(Path("shards/folder.toml"), sets), Path("data/street"))
    add_column(Path("data/street"))
    return tmp_path


def plan_of(dataset: Path, command: str) -> Plan:
    """The plan that a command line makes."""
    semiocity, pack, path, *rest = shlex.split(command)
    assert (semiocity, pack, set(rest[::2])) == ("semiocity", "pack", {"--set"} if rest else set())
    return make_plan(load_recipe(Path(path), rest[1::2]), dataset)


def base(dataset: Path) -> str:
    revision: str = read_manifest(dataset)["columns"]["base"]["revision"]
    return revision


def test_packing_with_the_settings_that_it_was_packed_with(project: Path) -> None:
    """Any other settings would plan, and pack, everything anew."""
    dataset = Path("data/street")
    command = command_for(dataset, "base", base(dataset))
    assert command.startswith("semiocity pack shards/folder.toml --set name=street --set 'source.root=")
    assert plan_of(dataset, command).revision == base(dataset)
    text = f'name = "street"\nshard_rows = 2\n[source]\nkind = "folder"\nroot = "{project}/my pictures"\n'
    (project / "shards" / "z.toml").write_text(text + 'split_by = "fraction"\n')
    assert command_for(dataset, "base", base(dataset)) == "semiocity pack shards/z.toml"
    assert plan_of(dataset, "semiocity pack shards/z.toml").revision == base(dataset)


def test_packing_without_a_recipe_or_a_plan(project: Path) -> None:
    dataset, revision = Path("data/street"), base(Path("data/street"))
    (dataset / "plans" / revision / "plan.json").unlink()
    assert command_for(dataset, "base", revision).startswith("semiocity pack shards/folder.toml --set name=street")
    for path in (project / "shards").iterdir():
        path.unlink()
    assert command_for(dataset, "base", revision) == "semiocity pack shards/street.toml"


def test_a_job_of_another_dataset_is_told_of_this_one(project: Path) -> None:
    (project / "jobs" / "word.toml").write_text('dataset = "data/city"\nstage = "word"\n')
    said = command_for(Path("data/street"), "word", "aaaaaaaaaa")
    assert said == "semiocity word jobs/word.toml --set dataset=data/street"
    (project / "jobs" / "z.toml").write_text('dataset = "data/street"\nstage = "word"\n')
    assert command_for(Path("data/street"), "word", "aaaaaaaaaa") == "semiocity word jobs/z.toml"
    (project / "jobs" / "zz.toml").write_text('dataset = "data/street"\nstage = "word"\ncolumn = "word2"\n')
    assert command_for(Path("data/street"), "word", "aaaaaaaaaa") == "semiocity word jobs/z.toml"
    add_column(Path("data/street"), "spoken", revision="cccccccccc")
    path = Path("data/street/columns/spoken/cccccccccc/manifest.json")
    made = read_json(path)
    write_json(path, {**made, "stage": {**made["stage"], "name": "word"}})
    said = command_for(Path("data/street"), "spoken", "cccccccccc")
    assert said == "semiocity word jobs/z.toml --set column=spoken"


def test_of_several_jobs_the_one_with_the_columns_arguments(project: Path) -> None:
    path = Path("data/street/columns/word/aaaaaaaaaa/manifest.json")
    write_json(path, {**(made := read_json(path)), "stage": {**made["stage"], "args": {"length": 7, "style": "dry"}}})
    for name, length in (("a", 5), ("b", 7), ("c", 9)):
        text = f'dataset = "data/street"\nstage = "word"\n[args]\nlength = {length}\n'
        (project / "jobs" / f"{name}.toml").write_text(text)
    assert command_for(Path("data/street"), "word", "aaaaaaaaaa") == "semiocity word jobs/b.toml"


def test_reduce_stages_have_jobs_too(project: Path) -> None:
    path = Path("data/street/columns/word/aaaaaaaaaa/manifest.json")
    write_json(path, {**(made := read_json(path)), "stage": {**made["stage"], "name": "word", "args": {}}})
    (project / "jobs" / "z.toml").write_text('dataset = "data/street"\nreduce = "word"\n')
    assert command_for(Path("data/street"), "word", "aaaaaaaaaa") == "semiocity word jobs/z.toml"
    assert read_column_manifest(Path("data/street"), "word", "aaaaaaaaaa")["stage"]["name"] == "word"


def test_repair_names_them(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    next(Path("data/street/columns/word").glob("*/00000/00000001.tar")).unlink()
    assert main(["repair", "data/street", "--json"]) == 1
    command = json.loads(capsys.readouterr().out)[0]["command"]
    assert command == "semiocity word jobs/word.toml --set dataset=data/street"
