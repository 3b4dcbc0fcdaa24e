"""Folders of weights: complete or refused, named by their contents, found in the hub's cache."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tiny_models import save_sam

from semiocity.errors import UserError
from semiocity.stages import model_files, weights


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_sam(tmp_path / "sam")


def test_one_changed_byte_of_weights_or_configuration_changes_the_revision(folder: Path) -> None:
    first = weights.revision(folder)
    assert weights.revision(folder) == first
    (folder / "README.md").write_text("not read by anything")
    assert weights.revision(folder) == first
    for name in ("model.safetensors", "config.json", "processor_config.json"):
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        os.utime(folder / name, (1, 1))
        assert weights.revision(folder) != first, name
        (folder / name).write_bytes(data)
    assert weights.revision(folder) == first


def test_hashes_of_weights_are_kept_and_used_while_the_file_is_the_same(folder: Path) -> None:
    first = weights.revision(folder)
    cache = folder / weights.CACHE
    known = json.loads(cache.read_text())
    assert set(known) == {"model.safetensors"}
    known["model.safetensors"][2] = "0" * 64
    cache.write_text(json.dumps(known))
    assert weights.revision(folder) != first, "the cache is not read"
    os.utime(folder / "model.safetensors", (2, 2))
    assert weights.revision(folder) == first
    cache.write_text("{ broken")
    assert weights.revision(folder) == first


def test_the_hubs_cache_is_followed_and_its_names_of_large_files_are_taken(folder: Path, tmp_path: Path) -> None:
    repository = tmp_path / "models--org--sam"
    snapshot = repository / "snapshots" / "abc123"
    snapshot.mkdir(parents=True)
    (repository / "blobs").mkdir()
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc123")
    for path in folder.iterdir():
        if path.name != weights.CACHE:
            blob = repository / "blobs" / hashlib.sha256(path.read_bytes()).hexdigest()
            blob.write_bytes(path.read_bytes())
            (snapshot / path.name).symlink_to(blob)
    weights.check(repository, "args.model", "sam")
    assert weights.resolve(repository) == snapshot
    assert weights.revision(repository) == weights.revision(folder)


def test_every_file_that_the_index_names_must_be_there(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (folder / weights.INDEX).write_text(json.dumps(index))
    with pytest.raises(UserError, match=r"args\.model: .*model-00002-of-00002\.safetensors is missing"):
        weights.check(folder, "args.model", "sam")
    save_file({"b": torch.zeros(3)}, folder / "model-00002-of-00002.safetensors")
    weights.check(folder, "args.model", "sam")
    assert weights.revision(folder)


def test_another_kind_of_model_and_damaged_json_are_refused(folder: Path) -> None:
    with pytest.raises(UserError, match="holds a model of type 'sam', not 'blip-2'"):
        weights.check(folder, "args.model", "blip-2")
    (folder / "config.json").write_text("{")
    with pytest.raises(UserError, match="damaged JSON"):
        weights.check(folder, "args.model", "sam")


def test_truncated_weights_are_refused_by_their_own_header(folder: Path) -> None:
    file = folder / "model.safetensors"
    data = file.read_bytes()
    for wrong in (data[:-1], data[:4], data[:40], data + b"x", b""):
        file.write_bytes(wrong)
        with pytest.raises(UserError, match=r"args\.model: .*model\.safetensors: .*fetch it on the login node"):
            weights.check(folder, "args.model", "sam")
    file.write_bytes(data)
    weights.check(folder, "args.model", "sam")


def test_a_missing_model_of_the_table_is_refused_with_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs/models.toml").write_text('[my-sam]\nrepo = "org/sam"\n')
    with pytest.raises(UserError, match=r"models/my-sam: no such folder.*`semiocity fetch my-sam`"):
        weights.check(tmp_path / "models/my-sam", "args.model", "sam")
    with pytest.raises(UserError, match=r"hf download ORG/NAME --local-dir .*models/other"):
        weights.check(tmp_path / "models/other", "args.model", "sam")


def test_what_mends_a_folder_depends_on_where_it_came_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs/models.toml").write_text('["My-1.5"]\nrepo = "org/sam"\n')
    fetched = tmp_path / "models/My-1.5@0123456789ab"
    assert model_files.remedy(fetched / "vae") == "fetch it on the login node: `semiocity fetch My-1.5`", "a part of it"
    fetched.mkdir(parents=True)
    assert model_files.remedy(fetched).endswith("`semiocity fetch My-1.5`"), "begun, or damaged: fetch goes on"
    (fetched / model_files.MARKER).write_text('{"files": {}}')
    assert "change `files` or `ignore` of My-1.5" in model_files.remedy(fetched), "fetching again changes nothing"
    own = tmp_path / "models/My-1.5"
    own.mkdir()
    assert model_files.remedy(own).startswith(f"move {own} away, which `semiocity fetch` did not make")
    snapshot = tmp_path / "hub/models--org--name/snapshots/abc"
    for place in (snapshot.parent.parent, snapshot, snapshot / "vae"):
        assert model_files.remedy(place) == "fetch it on the login node: `hf download org/name`, into the same cache"
