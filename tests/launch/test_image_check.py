"""Whether an image is the one that this checkout would build, and whether it is signed."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from semiocity.cli import main
from semiocity.config import Cluster
from semiocity.errors import UserError
from semiocity.launch import container, image_check, signatures
from semiocity.launch.jobs import image_of

RECIPE = Path(__file__).parents[2] / "containers"
HERE = "{}.{}".format(*sys.version_info[:2])


@pytest.fixture
def apptainer(tmp_path: Path) -> Path:
    """A program that answers as Apptainer does for an image built from this checkout."""
    labels = {container.LABEL: container.recipe_digest(RECIPE, {}), "semiocity.variant": "gpu"}
    return answering(tmp_path, labels, HERE, (RECIPE / container.LOCK).read_text())


def answering(folder: Path, labels: dict[str, str], python: str, lock: str) -> Path:
    (folder / "labels").write_text(json.dumps({"data": {"attributes": {"labels": labels}}}))
    (folder / "look").write_text(f"{python}\n{lock}")
    path = folder / "apptainer"
    path.write_text(f"#!/bin/sh\n[ $1 = inspect ] && exec cat {folder}/labels\nexec cat {folder}/look\n")
    path.chmod(0o755)
    return path


def test_the_image_of_this_checkout_matches(apptainer: Path) -> None:
    found = image_check.compare(Path("a.sif"), RECIPE, {}, str(apptainer))
    assert found.matches
    assert found.usable
    assert found.lines() == ["a.sif (gpu): is what definition, arguments and lock give"]


def test_packages_that_differ_are_named(tmp_path: Path) -> None:
    lock = (RECIPE / container.LOCK).read_text().replace("submitit==1.5.4", "submitit==1.5.2")
    program = answering(tmp_path, {container.LABEL: "0" * 64}, HERE, "leftover==1.0\n" + lock)
    found = image_check.compare(Path("a.sif"), RECIPE, {}, str(program))
    assert not found.matches
    assert found.packages == {"submitit": ("1.5.2", "1.5.4"), "leftover": ("1.0", "")}
    assert "  submitit: 1.5.2 in the image, 1.5.4 in the lock" in found.lines()
    assert json.loads(found.json())["usable"] is False


def test_a_python_that_is_too_old_cannot_run_jobs(tmp_path: Path) -> None:
    lock = (RECIPE / container.LOCK).read_text()
    program = answering(tmp_path, {container.LABEL: "0" * 64}, "3.9", lock)
    found = image_check.compare(Path("a.sif"), RECIPE, {}, str(program))
    assert not found.usable
    assert "Python 3.9 in the image, 3.11 or newer is needed" in "\n".join(found.lines())


def test_another_python_than_the_login_nodes_is_no_fault(apptainer: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With SLURM nothing is pickled: the Makefile makes environments of other versions than the image's."""
    monkeypatch.setattr(image_check, "_here", lambda: "3.13")
    found = image_check.compare(Path("a.sif"), RECIPE, {}, str(apptainer))
    assert found.usable and json.loads(found.json())["python"] == HERE
    assert found.lines()[1:] == [f'  Python {HERE} in the image, 3.13 on this side: only executor = "local" minds']


def test_the_oldest_python_is_the_packages() -> None:
    asked = tomllib.loads((RECIPE.parent / "pyproject.toml").read_text())["project"]["requires-python"]
    assert asked.startswith(">={}.{},".format(*container.OLDEST_PYTHON))


def test_another_base_is_no_fault(tmp_path: Path) -> None:
    """Sites build from a base of their own: the packages decide whether jobs can run."""
    program = answering(tmp_path, {container.LABEL: "0" * 64}, HERE, (RECIPE / container.LOCK).read_text())
    found = image_check.compare(Path("a.sif"), RECIPE, {}, str(program))
    assert (found.matches, found.usable) == (False, True)


def test_an_image_of_somebody_else_is_refused(tmp_path: Path) -> None:
    program = answering(tmp_path, {}, HERE, "")
    with pytest.raises(UserError, match=r"a\.sif: has no label semiocity\.content"):
        image_check.compare(Path("a.sif"), RECIPE, {}, str(program))


# ---------------------------------------------------------------- signatures


def keys(folder: Path, name: str) -> tuple[Path, Path]:
    """A private and a public key."""
    private, public = folder / f"{name}.pem", folder / f"{name}.pub"
    subprocess.run(["openssl", "genrsa", "-out", private, "2048"], check=True, capture_output=True)
    subprocess.run(["openssl", "rsa", "-in", private, "-pubout", "-out", public], check=True, capture_output=True)
    return private, public


@pytest.fixture(scope="module")
def small_image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real image with next to nothing in it: signing and verifying do not look inside."""
    for program in ("apptainer", "openssl", "mksquashfs"):
        if shutil.which(program) is None:
            pytest.skip(f"apptainer: {program} is missing")
    folder = tmp_path_factory.mktemp("small")
    (folder / "tree").mkdir()
    (folder / "tree" / "file").write_text("x")
    subprocess.run(["mksquashfs", folder / "tree", folder / "squash", "-quiet", "-no-progress"], check=True)
    image = folder / "small.sif"
    add = ["--datatype", "4", "--partfs", "1", "--parttype", "2", "--partarch", "2", "--groupid", "1"]
    subprocess.run(["apptainer", "sif", "new", image], check=True)
    subprocess.run(["apptainer", "sif", "add", *add, image, folder / "squash"], check=True)
    return image


@pytest.mark.apptainer
def test_signed_images_pass_and_others_are_refused_at_submission(small_image: Path, tmp_path: Path) -> None:
    image = Path(shutil.copy(small_image, tmp_path / "a.sif"))
    private, public = keys(tmp_path, "ours")
    _, others = keys(tmp_path, "others")

    def site(key: Path) -> Cluster:
        return Cluster.model_validate({"container": {"image": str(image), "verify_key": str(key)}})

    with pytest.raises(UserError, match=r"a\.sif: no signature by .*ours\.pub; sign it \(`semiocity image --sign"):
        image_of(None, site(public))
    assert main(["image", str(image), "--sign", str(private)]) == 0
    assert image_of(None, site(public)) == image
    assert main(["image", str(image), "--verify", str(public)]) == 0
    with pytest.raises(UserError, match=r"no signature by .*others\.pub"):
        image_of(None, site(others))
    # The job's own image is held to the same.
    unsigned = Path(shutil.copy(small_image, tmp_path / "b.sif"))
    with pytest.raises(UserError, match=r"b\.sif: no signature"):
        image_of(unsigned, site(public))
    # Changed after it was signed.
    with image.open("r+b") as file:
        at = image.read_bytes().index(b"hsqs") + 100  # inside the file system
        file.seek(at)
        byte = file.read(1)
        file.seek(at)
        file.write(bytes([byte[0] ^ 0xFF]))
    with pytest.raises(UserError, match=r"a\.sif"):
        image_of(None, site(public))


def test_an_image_is_read_once_while_it_stays_as_it_is(tmp_path: Path) -> None:
    """A pipeline asks for the image of each of its steps."""
    key, image, program = tmp_path / "key", tmp_path / "a.sif", tmp_path / "apptainer"
    key.write_text("-----BEGIN PUBLIC KEY-----\n")
    image.write_text("x")
    program.write_text(f'#!/bin/bash\necho call >>{tmp_path}/calls; [ "$(cat {image})" = x ]\n')
    program.chmod(0o755)
    for _ in range(3):
        signatures.require(image, key, str(program))
    assert (tmp_path / "calls").read_text().split() == ["call"]
    image.write_text("xy")
    for _ in range(2):
        with pytest.raises(UserError, match=r"a\.sif: no signature"):
            signatures.require(image, key, str(program))


def test_a_wrong_key_is_named(tmp_path: Path) -> None:
    key = tmp_path / "key"
    with pytest.raises(UserError, match=r"key: no public key: No such file"):
        signatures.require(Path("a.sif"), key)
    key.write_text("ssh-rsa AAAA")
    with pytest.raises(UserError, match=r"key: begins with 'ssh-rsa AAAA', not a public key in PEM form"):
        signatures.require(Path("a.sif"), key)
    key.write_text("-----BEGIN PUBLIC KEY-----\n")
    with pytest.raises(UserError, match="not a private key in PEM form"):
        signatures.sign(Path("a.sif"), key)


def test_contradictions_in_the_site_file_are_refused(tmp_path: Path) -> None:
    image = tmp_path / "a.sif"
    image.touch()
    with pytest.raises(ValueError, match='runtime is "none", so image would not be used'):
        Cluster.model_validate({"container": {"runtime": "none", "image": str(image)}})
    with pytest.raises(ValueError, match='verify_key needs runtime = "apptainer"'):
        Cluster.model_validate({"container": {"runtime": "pyxis", "verify_key": "k.pub"}})
    with pytest.raises(UserError, match=r"a\.sif: jobs/cluster\.toml says container\.runtime"):
        image_of(image, Cluster.model_validate({"container": {"runtime": "none"}}))
    with pytest.raises(UserError, match=r"container\.image is missing"):
        image_of(None, Cluster.model_validate({"container": {"verify_key": "k.pub"}}))
