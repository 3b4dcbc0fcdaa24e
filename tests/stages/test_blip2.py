"""BLIP-2 through its real loading code: the same words in a batch as one by one, and as transformers' own recipe."""

from __future__ import annotations

import json
import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stage_data import read_column, run_stage
from tiny_models import save_blip2

from semiocity.config import read_json, write_json
from semiocity.errors import UserError
from semiocity.stages.base import make_stage
from semiocity.stages.blip2 import Captioner

PROMPTS = ("", "Question: what is the weather? Answer:", "a street")


@pytest.fixture(scope="module", params=["opt", "t5"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_blip2(tmp_path_factory.mktemp("models") / f"blip2-{request.param}", request.param)


@pytest.fixture(scope="module")
def captioner(folder: Path) -> Captioner:
    return Captioner(folder, "cpu", "float32")


@pytest.fixture(scope="module")
def pictures() -> list[np.ndarray]:
    """Pictures of several sizes and colours, of which the tiny models are known to say different things."""
    numbers = np.random.default_rng(5)
    sizes = [(32, 32), (48, 32), (30, 64), (64, 64), (40, 40)]
    return [
        (np.kron(numbers.random((4, 4, 3)), np.ones((h // 4 + 1, w // 4 + 1, 1)))[:h, :w] * 255).astype(np.uint8)
        for h, w in sizes
    ]


def reference(captioner: Captioner, picture: np.ndarray, prompt: str, **generation: Any) -> str:
    """One picture and one prompt as transformers' documentation has it."""
    model, processor = captioner.model, captioner.processor
    inputs = processor(images=picture, text=prompt, return_tensors="pt")
    tokens = model.generate(**inputs, do_sample=False, **generation)
    if model.config.use_decoder_only_language_model:
        tokens = tokens[:, inputs["input_ids"].shape[1] :]
    return processor.batch_decode(tokens, skip_special_tokens=True)[0].strip()


def test_a_batch_gives_the_words_of_each_picture_and_prompt_alone(
    captioner: Captioner, pictures: list[np.ndarray]
) -> None:
    found = captioner.answers(pictures, PROMPTS, max_new_tokens=10)
    assert found == [[reference(captioner, p, prompt, max_new_tokens=10) for prompt in PROMPTS] for p in pictures]
    assert len({tuple(answers) for answers in found}) >= 3, "the tiny model does not look at its pictures"
    assert len(set(found[0])) > 1, "the tiny model does not read its prompts"


def test_the_vision_tower_runs_once_a_picture(captioner: Captioner, pictures: list[np.ndarray]) -> None:
    seen = []
    hook = captioner.model.vision_model.register_forward_hook(lambda _m, _args, out: seen.append(len(out[0])))
    captioner.answers(pictures, PROMPTS, max_new_tokens=2)
    hook.remove()
    assert seen == [len(pictures)]


def test_no_run_of_tokens_comes_twice_when_that_is_asked(
    captioner: Captioner, pictures: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[list[int]] = []
    generate = captioner.model.language_model.generate

    def kept(**arguments: Any) -> Any:
        tokens = generate(**arguments)
        made[:] = tokens.tolist()
        return tokens

    monkeypatch.setattr(captioner.model.language_model, "generate", kept)

    def repeated() -> int:
        """Pairs of neighbouring tokens, without the padding at the end, that came before."""
        pad = captioner.processor.tokenizer.pad_token_id
        pairs = [list(pairwise([t for t in row if t != pad])) for row in made]
        return sum(len(row) - len(set(row)) for row in pairs)

    captioner.answers(pictures, ("a street",), max_new_tokens=30)
    assert repeated() > 0
    captioner.answers(pictures, ("a street",), max_new_tokens=30, no_repeat_ngram_size=2)
    assert repeated() == 0


def test_the_caption_column(folder: Path, broken_street: Path) -> None:
    args = {"captioner": "blip2", "model": str(folder), "batch": 3, "max_new_tokens": 8}
    stage = make_stage("caption", {**args, "prompts": list(PROMPTS)})
    stage.check()
    made = run_stage(stage, broken_street)
    found = read_column(made)
    assert [row[2] is None for row in found.values()] == [True, True, False, *[True] * 5]
    for fields, scalars, tombstone in found.values():
        if tombstone is None:
            answers = json.loads(fields["answers"] or b"")
            assert [entry["prompt"] for entry in answers] == list(PROMPTS)
            texts = [entry["answer"] for entry in answers]
            assert (fields["text"] or b"").decode() == "\n".join(text for text in texts if text)
            text = "\n".join(text for text in texts if text)
            assert scalars == {"text": text[:1000], "short": texts[0], "captioner": "blip2"}
    receipt = read_json(made / "00000" / "00000000.json")
    assert receipt["model"] == stage.model_revision()
    assert "model" not in receipt["stage"]["args"]
    single = make_stage("caption", {**args, "batch": 1, "prompts": list(PROMPTS)})
    alone = read_column(run_stage(single, broken_street))
    assert alone == found


def test_models_that_do_not_fit_are_refused_before_submission(folder: Path, tmp_path: Path) -> None:
    def refusal(spoil: Any) -> str:
        copy = Path(shutil.copytree(folder, tmp_path / "copy"))
        spoil(copy)
        with pytest.raises(UserError) as refused:
            make_stage("caption", {"captioner": "blip2", "model": str(copy)}).check()
        shutil.rmtree(copy, ignore_errors=True)
        return str(refused.value)

    def without(name: str, key: str) -> Any:
        def spoil(copy: Path) -> None:
            facts = read_json(copy / name)
            facts.pop(key)
            write_json(copy / name, facts)

        return spoil

    assert "no num_query_tokens in processor_config.json" in refusal(
        without("processor_config.json", "num_query_tokens")
    )
    assert "no image_token_index in config.json" in refusal(without("config.json", "image_token_index"))
    assert "model.safetensors is missing" in refusal(lambda copy: (copy / "model.safetensors").unlink())
    assert "config.json is missing" in refusal(lambda copy: (copy / "config.json").unlink())
    assert "tokenizer_config.json is missing" in refusal(lambda copy: (copy / "tokenizer_config.json").unlink())
    assert "no such folder. Compute nodes have no network" in refusal(shutil.rmtree)
