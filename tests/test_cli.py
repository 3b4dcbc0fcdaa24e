"""The command line: what it imports, how it refuses, and that every promise of the Makefile exists."""

import contextlib
import io
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from semiocity.cli import main

ROOT = Path(__file__).parents[1]
HEAVY = ("torch", "transformers", "pydantic", "submitit", "numpy", "deepspeed", "diffusers", "pyarrow", "PIL")


def imported(code: str, cwd: Path) -> set[str]:
    """Top-level modules in sys.modules after `code` ran in a fresh interpreter."""
    program = f"import sys\ntry:\n    {code}\nexcept SystemExit:\n    pass\nprint('MODULES', *sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=cwd, check=True)
    return {name.split(".")[0] for name in done.stdout.split("MODULES")[1].split()}


@pytest.mark.parametrize(
    "arguments", [["--help"], ["status"], ["status", "--json"], ["caption", "--help"], ["logs", "x"], ["cancel", "x"]]
)
def test_help_and_status_import_nothing_heavy(tmp_path: Path, arguments: list[str]) -> None:
    loaded = imported(f"from semiocity.cli import main; main({arguments!r})", tmp_path)
    assert "semiocity" in loaded
    assert not loaded & set(HEAVY)


def test_login_node_modules_import_without_torch(tmp_path: Path) -> None:
    names = [
        "config",
        "launch.jobs",
        "launch.pipeline",
        "launch.pipeline_run",
        "launch.pipeline_gate",
        "launch.throughput",
        "launch.submission",
        "launch.slurm",
        "launch.status",
        "data.plan",
        "data.recipe",
        "data.manifest",
        "data.receipts",
        "data.usage",
        "launch.garbage",
        "launch.doctor",
        "launch.doctor_node",
        "launch.fetch",
        "launch.fit",
        "launch.notices",
        "stages.base",
        "stages.caption",
        "stages.segment",
        "stages.hash",
        "stages.reduce",
        "stages.duplicates",
        "stages.latent",
        "stages.text",
        "train.options",
        "train.tasks.flux_options",
        "evaluate.options",
        "evaluate.prompt_options",
        "launch.prompt_jobs",
        "launch.sweep",
        "launch.equipment_check",
        "launch.wandb_check",
        "compare.collect",
        "compare.text",
        "train.lines",
        "models.flux_step_cost",
    ]
    loaded = imported("; ".join(f"import semiocity.{name}" for name in names), tmp_path)
    assert not loaded & {"torch", "transformers", "numpy", "deepspeed", "diffusers", "pyarrow", "PIL"}


def run(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "semiocity", *arguments], capture_output=True, text=True, cwd=cwd)


def test_a_wrong_job_file_is_one_message_and_status_2(tmp_path: Path) -> None:
    (tmp_path / "job.toml").write_text('stage = "caption"\ndataset = "data/x"\nspeed = 3\n')
    done = run("caption", "job.toml", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("semiocity: job.toml: speed: unknown key")
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "runs").exists()


def test_no_right_to_write_is_one_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(_: object) -> int:
        raise PermissionError(13, "Permission denied", "data/city/manifest.json")

    monkeypatch.setattr("semiocity.verbs.status.run", refused)
    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        assert main(["status"]) == 1
    assert said.getvalue() == "semiocity: data/city/manifest.json: Permission denied\n"


def test_status_of_nothing_says_how_to_begin(tmp_path: Path) -> None:
    done = run("status", cwd=tmp_path)
    assert done.returncode == 0
    assert "make demo" in done.stdout


def test_make_prints_help_and_every_documented_target_exists() -> None:
    done = subprocess.run(["make", "--no-print-directory"], capture_output=True, text=True, cwd=ROOT, check=True)
    targets = "env demo test lint image shards caption segment train generate evaluate report status tensorboard"
    for target in targets.split():
        assert re.search(rf"make {target}\s+\S", done.stdout), target


def test_conda_environment_keeps_step_with_the_package() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    # Nothing else in the project needs a YAML parser: the lines we look at are plain list items.
    listed = re.findall(r"^  - (\S+)$", (ROOT / "env.yaml").read_text(), re.MULTILINE)
    assert f"python{project['requires-python']}" in listed
    for requirement in project["dependencies"]:
        assert requirement in listed


def test_locks_hold_hashes_and_no_index_addresses() -> None:
    for lock in (ROOT / "requirements.lock", ROOT / "containers" / "requirements.lock"):
        text = lock.read_text()
        assert "--hash=sha256:" in text
        assert "://" not in text and "--index-url" not in text and "--find-links" not in text
