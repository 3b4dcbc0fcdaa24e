"""The image's name, how it is built, and the command that runs a program in it."""

from __future__ import annotations

import itertools
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from semiocity.errors import UserError
from semiocity.launch import container

ROOT = Path(__file__).parents[2]
RECIPE = ROOT / "containers"


def argv(**changes: object) -> list[str]:
    options = {"binds": [], "env": {}, "nv": False, "pythonpath": None, "pwd": Path("/runs/a")} | changes
    return container.exec_argv(Path("/images/a.sif"), **options)  # type: ignore[arg-type]


def given(command: list[str]) -> dict[str, str]:
    """The plain assignments among a command's --env options."""
    values = [value for option, value in itertools.pairwise(command) if option == "--env"]
    return {name: value for name, _, value in (item.partition("=") for item in values)}


def test_exec_on_a_gpu_node() -> None:
    command = argv(
        binds=[container.bind(Path("/runs/a")), container.bind(Path("/runs/a/code"), read_only=True), "/scratch"],
        env={"NCCL_SOCKET_IFNAME": "ib0,ib1"},
        nv=True,
        pythonpath=Path("/runs/a/code"),
        apptainer="/opt/apptainer/bin/apptainer",
        extra=["--fusemount", "x"],
    )
    assert command == [
        "/opt/apptainer/bin/apptainer", "exec", "--nv", "--no-mount", "home,cwd", "--pwd", "/runs/a",
        "--bind", "/runs/a:/runs/a",
        "--bind", "/runs/a/code:/runs/a/code:ro",
        "--bind", "/scratch",
        "--env", "PYTHONNOUSERSITE=1",
        "--env", "HF_HUB_OFFLINE=1",
        "--env", "TRANSFORMERS_OFFLINE=1",
        "--env", "NCCL_SOCKET_IFNAME=ib0,ib1",
        "--env", "PYTHONPATH=/runs/a/code",
        "--fusemount", "x",
        "/images/a.sif",
    ]  # fmt: skip


def test_exec_on_a_cpu_node_asks_for_no_gpu_and_keeps_slurms_variables() -> None:
    command = argv()
    assert not {"--nv", "--cleanenv", "--contain", "--containall"} & set(command)
    assert given(command)["PYTHONPATH"] == "", "the submitting shell's would point at another Python's packages"


def test_env_overrides_the_defaults() -> None:
    assert given(argv(env={"HF_HUB_OFFLINE": "0"}))["HF_HUB_OFFLINE"] == "0"


@pytest.mark.parametrize("name", ["HF_TOKEN", "WANDB_API_KEY", "AWS_SECRET_ACCESS_KEY", "password"])
def test_secrets_do_not_enter_a_command_line(name: str) -> None:
    with pytest.raises(UserError, match=f"{name}.*shell that submits"):
        argv(env={name: "x"})


def test_names_that_merely_resemble_secrets_pass() -> None:
    assert given(argv(env={"TOKENIZERS_PARALLELISM": "false"}))["TOKENIZERS_PARALLELISM"] == "false"


@pytest.mark.parametrize(("name", "value"), [("A-B", "x"), ("1A", "x"), ("A", "two\nlines"), ("A", 'ends with "')])
def test_variables_that_would_not_arrive_are_refused(name: str, value: str) -> None:
    with pytest.raises(UserError, match=f"{name}="):
        argv(env={name: value})


@pytest.mark.parametrize("path", ["relative/a", "/with:colon", "/with,comma"])
def test_paths_that_apptainer_would_misread_are_refused(path: str) -> None:
    with pytest.raises(UserError, match=re.escape(path)):
        container.bind(Path(path))


def test_python_command_survives_a_shell() -> None:
    command = container.python_command(
        Path("/my images/a.sif"), binds=["/a b"], env={"A": "it's  two"}, nv=False, pythonpath=None, pwd=Path("/a b")
    )
    words = shlex.split(command)
    assert words[-2:] == ["/my images/a.sif", "python3"]
    assert given(words)["A"] == "it's  two"
    echoed = subprocess.run(["sh", "-c", f"printf '%s\\n' {command}"], capture_output=True, text=True, check=True)
    assert echoed.stdout.splitlines() == words


def test_build() -> None:
    command = container.build_argv(
        Path("/tmp/a.sif"), Path("/tmp/d"), Path("/tmp/args"), fakeroot=True, certificates=Path("/site/ca.pem")
    )
    assert command == [
        "apptainer", "build", "--fakeroot", "--build-arg-file", "/tmp/args",
        "--bind", "/site/ca.pem:/etc/ssl/certs/ca-certificates.crt:ro",
        "--mksquashfs-args", "-comp zstd -Xcompression-level 1",
        "/tmp/a.sif", "/tmp/d",
    ]  # fmt: skip


def test_pyxis_takes_its_options_from_srun() -> None:
    binds = ["/runs/a", "/runs/a/code:/runs/a/code:ro", "/scratch"]
    assert container.pyxis_arguments("/images/a.sqsh", binds=binds, pwd=Path("/project")) == [
        "--container-image=/images/a.sqsh", "--container-workdir=/project", "--no-container-mount-home",
        "--container-mounts=/runs/a:/runs/a,/runs/a/code:/runs/a/code:ro,/scratch:/scratch",
    ]  # fmt: skip


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    return Path(shutil.copytree(RECIPE, tmp_path / "containers"))


@pytest.mark.parametrize("name", [container.DEFINITION, container.LOCK, container.ARGUMENTS])
def test_whatever_changes_the_image_changes_its_name(recipe: Path, name: str) -> None:
    before = container.recipe_digest(recipe, {})
    assert before == container.recipe_digest(RECIPE, {}), "the same on every machine"
    path = recipe / name
    path.write_text(path.read_text() + ("EXTRA=1\n" if name == container.ARGUMENTS else "# \n"))
    assert container.recipe_digest(recipe, {}) != before


def test_build_arguments_change_the_name_when_they_differ(recipe: Path) -> None:
    before = container.recipe_digest(recipe, {})
    same = container.read_arguments(recipe / container.ARGUMENTS, {})
    assert container.recipe_digest(recipe, same) == before
    assert container.recipe_digest(recipe, {"BASE": "elsewhere"}) != before


def test_each_variant_has_its_lock(recipe: Path) -> None:
    gpu, cpu = container.recipe_digest(recipe, {}), container.recipe_digest(recipe, {"VARIANT": "cpu"})
    (recipe / container.LOCKS["cpu"]).write_text("numpy==1\n")
    assert container.recipe_digest(recipe, {}) == gpu
    assert container.recipe_digest(recipe, {"VARIANT": "cpu"}) != cpu
    with pytest.raises(UserError, match="VARIANT=tpu: no such variant of the image; there are: gpu, cpu"):
        container.recipe_digest(recipe, {"VARIANT": "tpu"})


def test_an_unknown_build_argument_is_refused(recipe: Path) -> None:
    with pytest.raises(UserError, match=r"BSAE: not a build argument; versions\.args has BOOTSTRAP, BASE"):
        container.recipe_digest(recipe, {"BSAE": "x"})


def test_a_damaged_line_is_named(recipe: Path) -> None:
    (recipe / container.ARGUMENTS).write_text("BASE=a\nPYTHON 3.11\n")
    with pytest.raises(UserError, match=r"versions\.args:2"):
        container.recipe_digest(recipe, {})


def test_the_definition_uses_every_argument_and_no_other() -> None:
    """Apptainer refuses both an undefined and an unused one, but only after the base was fetched."""
    used = set(re.findall(r"\{\{ (\w+) \}\}", (RECIPE / container.DEFINITION).read_text()))
    assert used == {*container.read_arguments(RECIPE / container.ARGUMENTS, {}), "CONTENT"}


def pins(lock: Path) -> dict[str, set[str]]:
    """Versions by package; a package may have several, for several Pythons."""
    found: dict[str, set[str]] = {}
    for name, version in re.findall(r"^([a-z0-9][\w.-]*)==([^\s;\\]+)", lock.read_text(), re.MULTILINE):
        found.setdefault(name, set()).add(version)
    return found


def test_the_image_and_the_submitting_side_have_the_same_versions() -> None:
    everything, image = pins(ROOT / "requirements.lock"), pins(RECIPE / container.LOCK)
    small = pins(RECIPE / container.LOCKS["cpu"])
    assert {name: versions for name, versions in small.items() if image.get(name) != versions} == {}
    assert not {"torch", "deepspeed"} & set(small)
    assert {name: versions for name, versions in image.items() if everything.get(name) != versions} == {}
    assert {"submitit", "cloudpickle", "pydantic", "torch", "deepspeed"} <= set(image)
    assert not {"pytest", "ruff", "mypy"} & set(image)


def fake_apptainer(folder: Path, body: str) -> str:
    """A program that stands for Apptainer, to see what `build` does when the real one fails or is slow."""
    path = folder / "apptainer"
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return str(path)


def test_an_image_appears_whole_under_its_name(recipe: Path, tmp_path: Path) -> None:
    apptainer = fake_apptainer(
        tmp_path, 'while [ $# -gt 2 ]; do shift; done; cat versions.args requirements.lock "$2" >"$1"'
    )
    out, scratch = tmp_path / "images", tmp_path / "scratch"
    scratch.mkdir()
    image = container.build(out, recipe, scratch=scratch, apptainer=apptainer)
    assert image == container.image_path(out, container.recipe_digest(recipe, {}))
    assert f"CONTENT={container.recipe_digest(recipe, {})}\n" in image.read_text()
    assert image.read_text().endswith((recipe / container.DEFINITION).read_text())
    assert [path.name for path in out.iterdir()] == [image.name]
    assert not list(scratch.iterdir())
    Path(apptainer).unlink()
    assert container.build(out, recipe, apptainer=apptainer) == image, "there already: nothing is run"


def test_a_failed_build_leaves_nothing(recipe: Path, tmp_path: Path) -> None:
    apptainer = fake_apptainer(tmp_path, 'while [ $# -gt 2 ]; do shift; done; echo half >"$1"; exit 3')
    out, scratch = tmp_path / "images", tmp_path / "scratch"
    scratch.mkdir()
    with pytest.raises(UserError, match="failed with status 3") as caught:
        container.build(out, recipe, scratch=scratch, apptainer=apptainer)
    assert ("build as a normal user" in str(caught.value)) == (os.geteuid() == 0)
    assert not out.exists()
    assert not list(scratch.iterdir())


def test_a_build_needs_apptainer(recipe: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="/nowhere/apptainer: not found"):
        container.build(tmp_path, recipe, apptainer="/nowhere/apptainer")


def test_building_as_another_user(recipe: Path, tmp_path: Path) -> None:
    root = os.geteuid() == 0
    message = "no such user; `useradd --create-home no-such-user`" if root else "only root can build as another user"
    with pytest.raises(UserError, match=f"no-such-user: {message}"):
        container.build(tmp_path, recipe, user="no-such-user", apptainer=sys.executable)
