"""Fetching models from a hub on loopback, through huggingface_hub: pinned, checked, resumed, refused."""

from __future__ import annotations

import errno
import json
import os
import random
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("huggingface_hub")

from hub import REPO, FakeHub, serve

from semiocity.cli import main
from semiocity.errors import UserError
from semiocity.launch import fetch
from semiocity.stages import model_files, weights

WEIGHTS = random.Random(1).randbytes(300_000)
FILES = {
    "model.safetensors": WEIGHTS,
    "config.json": b'{"model_type": "sam"}',
    "sub/tokenizer.txt": b"a b c",
    "pytorch_model.bin": b"x" * 5000,
}


@pytest.fixture(scope="module")
def server() -> Iterator[FakeHub]:
    with serve() as hub:
        yield hub


@pytest.fixture
def hub(server: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeHub:
    """A project in the current folder whose table names the model `tiny` of a fresh hub."""
    server.__dict__.update(FakeHub(address=server.address).__dict__)
    server.commit(FILES)
    for name in ("HF_HUB_OFFLINE", "HF_TOKEN", "TRANSFORMERS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_ENDPOINT", server.address)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    Path("jobs").mkdir()
    Path("jobs/models.toml").write_text(f'[tiny]\nrepo = "{REPO}"\n')
    return server


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(p.relative_to(folder)): p.read_bytes()
        for p in folder.rglob("*")
        if p.is_file() and not p.name.startswith(".semiocity")
    }


def test_a_model_is_fetched_once_without_pickles_and_pinned(hub: FakeHub) -> None:
    assert main(["fetch", "tiny"]) == 0
    wanted = {name: data for name, data in FILES.items() if not name.endswith(".bin")}
    assert contents(Path("models/tiny").resolve()) == wanted
    lock = json.loads(Path("jobs/models.lock.json").read_text())
    assert lock["tiny"]["commit"] == hub.branches["main"] and set(lock["tiny"]["files"]) == set(wanted)
    asked = len(hub.asked)
    hub.commit({**FILES, "config.json": b"{}"})  # main moves on, the pin does not
    assert main(["fetch", "tiny"]) == 0
    assert len(hub.asked) == asked
    assert contents(Path("models/tiny").resolve()) == wanted
    # The submission need not read the weights to know their digest.
    known = json.loads((Path("models/tiny") / weights.CACHE).read_text())
    assert known["model.safetensors"][2] == lock["tiny"]["files"]["model.safetensors"]["sha256"]


def test_the_pin_holds_for_the_next_person_and_moves_when_told(hub: FakeHub, tmp_path: Path) -> None:
    first = fetch.fetch("tiny", tmp_path / "a", say=lambda _: None)
    pinned = hub.branches["main"]
    hub.commit({**FILES, "config.json": b"{}"})
    other = fetch.fetch("tiny", tmp_path / "b", say=lambda _: None)
    assert first.name == other.name == f"tiny@{pinned[:12]}"
    moved = fetch.fetch("tiny", tmp_path / "b", update=True, say=lambda _: None)
    assert moved.name == f"tiny@{hub.branches['main'][:12]}"
    assert (tmp_path / "b" / "tiny").resolve() == moved and other.is_dir(), "running jobs keep the old folder"
    assert Path("models/tiny").resolve() == moved


def test_an_interruption_costs_only_what_was_under_way(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda _: None)
    # The library passes on whole chunks, 10 MB of them; what is kept of a broken download is a multiple of that.
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 10_000)
    hub.break_after = 40_000
    # Each try of the library gets 40,000 bytes further; stop the server for good after some.
    serve_all = hub.asked

    class Stop(list):
        def append(self, item: tuple[str, str]) -> None:
            super().append(item)
            if len([path for path, _ in self if path == "model.safetensors"]) == 3:
                hub.break_after = 0

    hub.asked = Stop(serve_all)
    with pytest.raises(UserError, match="What was fetched is kept"):
        fetch.fetch("tiny", Path("models"), say=lambda _: None)
    part = next(Path("models").glob(".tiny@*.partial/model.safetensors.part"))
    assert part.stat().st_size == 80_000
    assert not Path("models/tiny").exists()
    hub.asked, hub.break_after = [], None
    folder = fetch.fetch("tiny", Path("models"), say=lambda _: None)
    assert ("model.safetensors", "bytes=80000-") in hub.asked
    assert [path for path, _ in hub.asked] == ["model.safetensors", "sub/tokenizer.txt"], "config.json was there"
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS
    assert not list(Path("models").glob(".tiny*"))


def test_a_killed_fetch_goes_on_in_another_process(hub: FakeHub) -> None:
    code = (
        "import os, huggingface_hub.file_download as f\n"
        "def get(url, file, **_):\n"
        "    import urllib.request\n"
        "    file.write(urllib.request.urlopen(url).read(100_000)); file.flush(); os._exit(9)\n"
        "f.http_get = get\n"
        "from semiocity.cli import main; main(['fetch', 'tiny'])\n"
    )
    # config.json comes first and is small: the kill comes there, with the file whole; then inside the weights.
    for _ in range(2):
        subprocess.run([sys.executable, "-c", code], env=dict(os.environ))
    hub.asked.clear()
    folder = fetch.fetch("tiny", Path("models"), say=lambda _: None)
    assert ("model.safetensors", "bytes=100000-") in hub.asked
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS


def test_a_corrupted_file_is_fetched_again_and_never_kept(hub: FakeHub) -> None:
    hub.corrupt = 1
    folder = fetch.fetch("tiny", Path("models"), say=lambda _: None)
    assert contents(folder) == {name: data for name, data in FILES.items() if not name.endswith(".bin")}


def test_contents_that_stay_wrong_are_refused(hub: FakeHub) -> None:
    hub.corrupt = 100
    with pytest.raises(UserError, match="twice other contents"):
        fetch.fetch("tiny", Path("models"), say=lambda _: None)
    assert not Path("models/tiny").exists() and not Path("jobs/models.lock.json").exists()


def test_a_damaged_model_is_found_refused_and_mended(hub: FakeHub) -> None:
    folder = fetch.fetch("tiny", Path("models"), say=lambda _: None)
    file = folder / "model.safetensors"
    file.write_bytes(WEIGHTS[:-5])
    assert main(["fetch"]) == 1  # the list
    with pytest.raises(UserError, match=r"has 299995 bytes instead of 300000.*`semiocity fetch tiny`"):
        model_files.check_marked(folder, "args.model", "tiny")
    hub.asked.clear()
    assert main(["fetch", "tiny"]) == 0
    assert [path for path, _ in hub.asked] == ["model.safetensors"]
    file.write_bytes(WEIGHTS[:-1] + b"?")  # the same size
    assert main(["fetch"]) == 0
    assert main(["fetch", "tiny", "--check"]) == 1
    assert main(["fetch", "tiny"]) == 0
    assert file.read_bytes() == WEIGHTS


def test_another_content_under_the_pinned_commit_is_refused(hub: FakeHub, tmp_path: Path) -> None:
    fetch.fetch("tiny", tmp_path / "a", say=lambda _: None)
    hub.commits[hub.branches["main"]] = {**FILES, "model.safetensors": WEIGHTS[::-1]}
    with pytest.raises(UserError, match=r"another model\.safetensors under the pinned commit.*--update"):
        fetch.fetch("tiny", tmp_path / "b", say=lambda _: None)


def test_jobs_name_their_models(hub: FakeHub, capsys: pytest.CaptureFixture[str]) -> None:
    Path("jobs/segment.toml").write_text('stage = "segment"\n[args]\nmodel = "models/tiny"\n')
    assert main(["fetch", "jobs/segment.toml"]) == 0
    capsys.readouterr()
    assert main(["fetch", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["tiny"]["state"] == "complete"
    with pytest.raises(UserError, match="no model of this name"):
        fetch.known("other")


def test_the_token_comes_from_the_environment_and_is_written_nowhere(
    hub: FakeHub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    hub.gated = True
    with pytest.raises(UserError, match="accept its licence, then export HF_TOKEN"):
        fetch.fetch("tiny", Path("models"), say=lambda _: None)
    hub.gated = False
    monkeypatch.setenv("HF_TOKEN", "hf_verysecret")
    fetch.fetch("tiny", Path("models"), say=lambda _: None)
    assert "Bearer hf_verysecret" in hub.tokens
    written = b"".join(p.read_bytes() for p in tmp_path.rglob("*") if p.is_file())
    assert b"verysecret" not in written


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ('[tiny]\nrepo = "org/none"\n', "no such repository"),
        (f'[tiny]\nrepo = "{REPO}"\nrevision = "v9"\n', "no such revision"),
        (f'[tiny]\nrepo = "{REPO}"\nfiles = ["*.onnx"]\n', "none of its files matches"),
        (f'[tiny]\nrepo = "{REPO}"\nspeed = 3\n', r"models\.toml: tiny: speed: unknown key"),
        ('["../x"]\nrepo = "org/tiny"\n', "a model's name is a folder's"),
    ],
)
def test_what_cannot_be_fetched_is_one_message(hub: FakeHub, table: str, words: str) -> None:
    Path("jobs/models.toml").write_text(table)
    with pytest.raises(UserError, match=words):
        fetch.fetch("tiny", Path("models"), say=lambda _: None)


def test_offline_no_network_and_no_room_are_said(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 1000}))
    with pytest.raises(UserError, match=r"has 0\.0 GB left"):
        fetch.fetch("tiny", Path("models"), say=lambda _: None)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UserError, match="unset HF_HUB_OFFLINE"):
        fetch.fetch("tiny", Path("models"), say=lambda _: None)


def test_a_disk_that_fills_up_is_not_blamed_on_the_network(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("huggingface_hub.file_download.http_get", full)
    with pytest.raises(OSError, match="No space left"):
        fetch.fetch("tiny", Path("models"), say=lambda _: None)


def test_a_folder_of_the_users_own_is_left_alone(hub: FakeHub) -> None:
    Path("models/tiny").mkdir(parents=True)
    Path("models/tiny/mine").write_text("mine")
    with pytest.raises(UserError, match="did not make lies there"):
        fetch.fetch("tiny", Path("models"), say=lambda _: None)
    assert Path("models/tiny/mine").read_text() == "mine"


def test_models_that_jobs_name_are_in_the_table() -> None:
    root = Path(__file__).parents[2]
    names = list(model_files.read_table(root / "jobs/models.toml"))
    jobs = {
        path.stem: tomllib.loads(path.read_text()) for path in (root / "jobs").glob("*.toml") if path.stem != "models"
    }
    named = {stem: fetch.named_in(job, names) for stem, job in jobs.items()}
    flux = ("latent", "text", *(f"train-flux-{kind}" for kind in ("full", "full-1gpu", "lora", "lora-1gpu")))
    assert {stem: found for stem, found in named.items() if found} == {
        "caption-blip2": ["blip2-flan-t5-xl"],
        "segment-sam": ["sam-vit-huge"],
        **{stem: ["FLUX.1-dev"] for stem in flux},
    }
