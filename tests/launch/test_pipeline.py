"""A pipeline is checked as a whole before anything is queued, and does what is missing, in order."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tiny_flux import save_flux

from semiocity.config import Cluster, Resources
from semiocity.data.layout import SUFFIXES, column_folder, thousand_folder
from semiocity.errors import UserError
from semiocity.launch import facts, jobs, pipeline_check, pipeline_gate, pipeline_steps, prompt_jobs
from semiocity.launch.jobs import Work
from semiocity.launch.pipeline import Pipeline, choose, load
from semiocity.launch.pipeline_queue import Started, jobs_of, noted
from semiocity.launch.runs import new_attempt

ROOT = Path(__file__).parents[2]
STEPS = """
[steps.pack]
pack = "shards/city.toml"

[steps.caption]
stage = "jobs/caption.toml"

[steps.hash]
stage = "jobs/hash.toml"

[steps.duplicates]
reduce = "jobs/duplicates.toml"

[steps.train]
train = "jobs/demo-train.toml"
after = ["caption"]

[steps.generate]
generate = "jobs/generate.toml"
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("jobs", "shards"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("cluster.toml"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(project: Path, text: str, head: str = 'dataset = "data/city"\nrun = "demo"\n') -> Path:
    file = project / "jobs" / "pipelines" / "p.toml"
    file.write_text(head + text)
    return Path("jobs/pipelines/p.toml")


def test_what_a_step_waits_for_follows_from_what_it_reads(project: Path) -> None:
    found = load(write(project, STEPS))
    assert {name: set(parents) for name, parents in found.parents.items()} == {
        "pack": set(),
        "caption": {"pack"},
        "hash": {"pack"},
        "duplicates": {"pack", "hash"},
        "train": {"pack", "caption"},
        "generate": {"pack", "train"},
    }
    names = [step.name for step in found.steps]
    assert all(names.index(p) < names.index(name) for name, parents in found.parents.items() for p in parents)
    assert choose(found, start_from="train") == ["train", "generate"]
    assert choose(found, ["hash", "pack"]) == ["pack", "hash"]
    with pytest.raises(UserError, match="no step captions; did you mean caption"):
        choose(found, ["captions"])


def test_every_fault_of_every_job_file_is_named_at_once(project: Path) -> None:
    text = STEPS.replace('stage = "jobs/hash.toml"', 'stage = "jobs/hash.toml"\nset = { "args.batch" = 0 }')
    file = write(project, text.replace('"jobs/generate.toml"', '"jobs/generat.toml"'))
    with pytest.raises(UserError) as error:
        load(file)
    lines = str(error.value).splitlines()
    assert any("steps.hash: jobs/hash.toml: args: batch" in line for line in lines)
    assert any("steps.generate: jobs/generat.toml: no such file" in line for line in lines)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (('[steps.hash]', '[steps.hash]\nafter = ["train"]'), None),
        (('[steps.pack]', '[steps.pack]\nafter = ["train"]'), r"steps wait for one another: .*pack"),
        (('after = ["caption"]', 'after = ["captoin"]'), r"steps.train.after: no step captoin; did you mean caption\?"),
        (('[steps.hash]\nstage = "jobs/hash.toml"', ''), r"steps.duplicates: needs column hash of city, which no step"),
        (
            ('[steps.hash]', '[steps.twice]\nstage = "jobs/caption.toml"\n[steps.hash]'),
            r"steps.caption and steps.twice would both make column caption of city",
        ),
        (('pack = "shards/city.toml"', 'pack = "shards/city.toml"\ntrain = "x.toml"'), "needs exactly one of pack"),
    ],
)  # fmt: skip
def test_a_graph_that_cannot_work_is_refused(project: Path, change: tuple[str, str], message: str | None) -> None:
    file = write(project, STEPS.replace(*change))
    if message is None:
        load(file)
        return
    with pytest.raises(UserError, match=message):
        load(file)


def test_a_field_that_no_step_makes_is_refused(project: Path) -> None:
    (project / "views").mkdir()
    (project / "views" / "v.toml").write_text('dataset = "data/city"\nfields = ["base.image", "hash.colour"]\n')
    file = write(project, STEPS + '[steps.view]\nview = "views/v.toml"\n')
    with pytest.raises(UserError, match=r"steps.view: needs hash.colour, but hash makes .*phash"):
        load(file)


def test_a_view_waits_for_the_columns_that_its_filter_names(project: Path) -> None:
    (project / "views").mkdir()
    (project / "views" / "v.toml").write_text(
        'dataset = "data/city"\nfields = ["base.image"]\nfilter = \'hash.detail > 0.5 and base.split == "a.b"\'\n'
    )
    found = load(write(project, STEPS + '[steps.view]\nview = "views/v.toml"\n'))
    assert set(found.parents["view"]) == {"pack", "hash"}


@pytest.mark.parametrize("name", [file.name for file in sorted((ROOT / "jobs" / "pipelines").glob("*.toml"))])
def test_every_example_is_sound(project: Path, name: str) -> None:
    shutil.copytree(ROOT / "views", project / "views")
    (project / "prompts.txt").write_text("a street\n")
    save_flux(project / "models" / "FLUX.1-dev")
    try:
        found = load(Path("jobs/pipelines") / name)
    except UserError as error:  # this machine has no weights, and that is all
        assert all("args.model: " in line for line in str(error).splitlines()), error
        sound = (project / "jobs" / "pipelines" / name).read_text().replace("caption-blip2", "caption")
        found = load(write(project, sound.replace("segment-sam", "segment"), head=""))
    last = found.steps[-1]
    assert last.kind in ("report", "generate")
    assert "train" in {step.kind for step in found.steps if step.name in ancestors(found, last.name)}


def ancestors(pipeline: Pipeline, name: str) -> set[str]:
    return {
        *pipeline.parents[name],
        *(step for parent in pipeline.parents[name] for step in ancestors(pipeline, parent)),
    }


def test_pictures_of_prompts_are_a_step_and_their_prompts_are_kept(project: Path) -> None:
    """A pipeline that waits goes on with the prompts that it was queued with, also when its folder was moved."""
    (project / "prompts.txt").write_text("a street\n")
    text = '[steps.paint]\ngenerate = "jobs/generate-flux.toml"\nset = { model = "models/flux" }\n'
    found = load(write(project, text))
    step, fact = found.steps[0], found.facts["paint"]
    assert [str(thing) for thing in fact.makes] == ["the samples of demo"] and not fact.reads
    plain = project / "jobs" / "paint.toml"
    plain.write_text((project / "jobs" / "generate-flux.toml").read_text().replace('prompts = "prompts.txt"', ""))
    layouts = write(project, '[steps.paint]\ngenerate = "jobs/paint.toml"\n')
    later = load(layouts, ["paint.prompts=prompts.txt", "paint.model=models/flux"])
    assert later.facts["paint"].draft.dataset == fact.draft.run, "the pipeline's dataset is none of its affair"
    with pytest.raises(UserError, match="ask for a GPU, or take cpu"):
        load(write(project, text), ['paint.device="cuda"', "paint.resources.gpus_per_node=0"])
    kept = pipeline_steps.frozen(step, project / "files")
    (project / "prompts.txt").write_text("# nothing\n")
    with pytest.raises(UserError, match=r"steps\.paint: .*no prompt in it"):
        load(write(project, text))
    pipeline_steps.describe(kept)
    (project / "files").rename(project / "elsewhere")
    moved = pipeline_steps.moved(kept.as_json(), project / "elsewhere")
    pipeline_steps.describe(moved)
    assert prompt_jobs.prompts_of(moved.file, moved.sets) == project / "elsewhere" / "paint" / "prompts.txt"


def test_a_job_that_is_queued_from_a_job_inherits_nothing_of_it() -> None:
    environment = {
        "PATH": "/bin", "SLURM_CONF": "/etc/slurm.conf", "SLURM_MEM_PER_NODE": "100", "SLURM_JOB_ID": "7",
        "CUDA_VISIBLE_DEVICES": "", "HF_HOME": "/scratch", "SUBMITIT_EXECUTOR": "slurm", "PYTHONPATH": "/code",
    }  # fmt: skip
    pipeline_gate.leave_job(environment, {"CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": "/code"})
    assert environment == {"PATH": "/bin", "SLURM_CONF": "/etc/slurm.conf", "HF_HOME": "/scratch"}


def test_a_gate_that_goes_on_with_a_step_ends_when_nothing_was_made_since(project: Path) -> None:
    """Else a step whose first tasks fail for good would be queued for ever, in the place of what had none."""
    work = Work("stage", project / "runs/caption-city", project / "city", {}, Resources(), column="caption", shards=3)
    work = replace(work, revision="r")
    data: dict[str, Any] = {
        "run": str(project / "runs/pipeline-p"),
        "steps": {"caption": noted(work, Started(["5"], True))},
    }
    with pytest.raises(UserError, match="caption: job 5 made none of the 3 shards that were missing"):
        pipeline_gate.refuse_standstill(data, "caption", work)
    made = thousand_folder(column_folder(work.dataset, "caption", "r"), 0)
    made.mkdir(parents=True)
    for suffix in SUFFIXES:
        (made / f"00000000{suffix}").touch()
    pipeline_gate.refuse_standstill(data, "caption", work)
    data["steps"]["caption"] = noted(work, Started([], True))
    pipeline_gate.refuse_standstill(data, "caption", work)  # had no place at all


def test_what_depends_on_a_step_waits_for_its_jobs_and_for_the_gate_of_what_found_no_room() -> None:
    steps = [{"name": "pack"}, {"name": "caption"}, {"name": "pack"}]
    known: dict[str, Any] = {"jobs": ["5"], "left": True}
    data: dict[str, Any] = {"job": {"steps": steps}, "jobs": ["", "6", "7"], "steps": {"pack": known}}
    assert jobs_of(data, "pack") == ["5", "7"]
    assert jobs_of(data, "caption") == ["6"]
    known["left"] = False
    assert jobs_of(data, "pack") == ["5"]


def semiocity(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "semiocity", *arguments], cwd=cwd, capture_output=True, text=True, env={**os.environ}
    )


def test_on_this_machine_a_step_that_fails_keeps_back_only_what_needs_it(project: Path) -> None:
    small = '[steps.pack]\npack = "shards/city.toml"\nset = { "source.size" = [32, 32], "source.train" = 8 }\n'
    rest = '[steps.hash]\nstage = "jobs/hash.toml"\n[steps.duplicates]\nreduce = "jobs/duplicates.toml"\n'
    rest += '[steps.caption]\nstage = "jobs/caption.toml"\n[steps.copy]\nexport = "jobs/export-webdataset.toml"\n'
    rest += 'set = { fields = ["image=base.image", "text=caption.text"] }\n'
    file = write(project, small + rest, head="")
    done = semiocity("pipeline", str(file), "--phases", "pack,caption,copy", cwd=project)
    assert done.returncode == 0, done.stderr
    assert list((project / "data/exports/city").rglob("*.tar"))
    [tar] = project.glob("data/city/columns/base/*/00000/*.tar")
    tar.write_bytes(bytes(tar.stat().st_size))  # damage: no stage can read it
    done = semiocity("pipeline", str(file), cwd=project)
    assert done.returncode == 1
    assert "hash of city: not complete" in done.stderr
    assert "duplicates: not started: hash is not complete" in done.stdout
    plan = json.loads(semiocity("pipeline", str(file), "--json", cwd=project).stdout)
    assert {step["step"]: step["state"] for step in plan} == {
        "pack": "complete",
        "caption": "complete",
        "copy": "complete",
        "hash": "ready",
        "duplicates": "waits",
    }


def test_a_training_that_waits_and_was_begun_with_other_settings_is_refused_from_its_job_file(project: Path) -> None:
    file = write(project, STEPS)
    [step] = [step for step in load(file).steps if step.name == "train"]
    begun = pipeline_steps.describe(step).draft
    (begun.run / "checkpoints/step-0000002").mkdir(parents=True)
    settled = {**begun.job, "data": {**begun.job["data"], "view": None}}
    new_attempt(begun.run).write({**facts.of_work(begun), "job": settled, "jobs": [], "image": None})
    pipeline_check.check_cluster(load(file), Cluster(), ["pack", "train"])
    changed = load(file, ["train.optimizer.lr=0.5"])
    with pytest.raises(UserError, match=r"steps\.train: .*begun with other settings \(optimizer\.lr .* → 0\.5\)"):
        pipeline_check.check_cluster(changed, Cluster(), ["pack", "train"])
    pipeline_check.check_cluster(changed, Cluster(), ["pack"])


def test_packing_takes_what_is_asked_of_the_cluster_from_the_command_line(project: Path) -> None:
    sets = ["source.train=8", "source.val=0", "resources.timeout_min=7"]
    for job in (Path("jobs/pack.toml"), Path("jobs/none.toml")):
        work = jobs.pack(Path("shards/city.toml"), sets, job, dry_run=True)
        assert work.resources.timeout_min == 7 and work.job["source"]["train"] == 8
    with pytest.raises(UserError, match=r"pack.toml: resources.timeout_mins: unknown key; did you mean timeout_min"):
        jobs.pack(Path("shards/city.toml"), ["resources.timeout_mins=7"], Path("jobs/pack.toml"), dry_run=True)
    pictures = ['image={ resize = "crop" }', "image.size=[1, 1]"]
    assert jobs.sets_of(['image="x.sif"', *pictures], job=True) == ['image="x.sif"']
    assert jobs.sets_of(['image="x.sif"', *pictures], job=False) == pictures
    found = load(write(project, STEPS), ["pack.resources.timeout_min=7"])
    assert found.facts["pack"].draft.resources.timeout_min == 7
    assert not (project / "data").exists()
