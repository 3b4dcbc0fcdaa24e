"""Every optimizer at every ZeRO stage that it works at: the mathematics, going on bit by bit, and what is refused."""

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_ranks import STEPS, come_back
from optimizer_cases import CASES, OFFLOADED, Case
from safetensors.torch import load_file
from tiny import STEPS as TRAINING_STEPS
from tiny import checkpoint, differing, gan, history, sdm
from train_ranks import Ranks, job_of, train

from semiocity.errors import UserError
from semiocity.train.muon import Muon, is_for_muon, orthogonal, size_of
from semiocity.train.optimizer_options import KINDS
from semiocity.train.optimizers import AdamWBf16, round_stochastically


def comes_back(ranks: Ranks, folder: Path, case: Case, stops: list[int], accumulation: int) -> dict[str, Any]:
    """Steps of an engine on all ranks, undisturbed and with `stops`; nothing may differ. Returns rank 0's findings."""
    kind, stage, precision, offload = case
    print(f"{case}, stopped after {stops}, {accumulation} parts")
    settings = {"stage": stage, "precision": precision, "offload": offload}
    optimizer = {"kind": kind, "lr": 0.1 if kind == "adafactor" else 1e-3}
    results = ranks.call(come_back, optimizer, settings, accumulation, folder, stops)
    assert [result["differing"] for result in results] == [[]] * len(results)
    assert results[0]["losses"][-1] < results[0]["losses"][0]
    return dict(results[0])


# -- going on ---------------------------------------------------------------------------------------------------------


def test_every_optimizer_comes_back_bit_by_bit(ranks: Ranks, tmp_path: Path, chance: random.Random) -> None:
    for kind, facts in KINDS.items():
        case = chance.choice([case for case in CASES if case[0] == kind])
        stop = chance.randrange(1, STEPS)
        found = comes_back(ranks, tmp_path / kind, case, [stop], chance.choice([1, 2]))
        assert set(found["average"]) == {"torch.float32"}, "an average in bf16 would stand still"
        if kind in ("adamw", "adamw_bf16"):
            assert found["bytes"]["master"] == (2 if kind == "adamw_bf16" else 4)
            assert found["bytes"]["state"] == pytest.approx(facts.state_bytes, rel=0.05)


@pytest.mark.soak
@pytest.mark.parametrize("case", CASES + OFFLOADED, ids=str)
def test_every_stage_comes_back_after_three_interruptions(
    ranks: Ranks, tmp_path: Path, case: Case, chance: random.Random
) -> None:
    _, stage, precision, offload = case
    for accumulation in (1,) if (stage, precision, offload) == (2, "bf16", "optimizer") else (1, 2):
        stops = sorted(chance.sample(range(1, STEPS), 3))
        comes_back(ranks, tmp_path / str(accumulation), case, stops, accumulation)


def check_goes_on(ranks: Ranks, city: Path, folder: Path, settings: dict[str, Any], stops: list[int]) -> None:
    """A whole training, undisturbed and with stops; nothing may differ."""
    whole, parts = folder / "whole", folder / "parts"
    assert ranks.call(train, settings, whole, city, 0, 0) == [True, True]
    done = 0
    for stop in stops:
        assert ranks.call(train, settings, parts, city, 1, stop - done) == [False, False]
        done = stop
    assert ranks.call(train, settings, parts, city, 0, 0) == [True, True]
    assert [attempt["first_step"] for attempt in history(parts)] == [0, *stops]
    assert differing(checkpoint(whole), checkpoint(parts)) == []
    assert (whole / "metrics.jsonl").read_text() == (parts / "metrics.jsonl").read_text()
    first, second = (load_file(run / "export" / "model.safetensors") for run in (whole, parts))
    assert differing(first, second) == []


def settings_for(kind: str, stage: int, precision: str, offload: str = "none", **more: Any) -> dict[str, Any]:
    optimizer = {"kind": kind, "lr": 1e-3, "warmup_steps": 2, "schedule": "cosine", "min_lr": 1e-4}
    zero = {"stage": stage, "precision": precision, "offload": offload}
    resources = {"ranks_per_node": 2, "mem_gb": 8}
    return sdm(zero, optimizer=optimizer, resources=resources, accumulation=1, **more)


def test_a_whole_training_goes_on_bit_by_bit(ranks: Ranks, city: Path, tmp_path: Path, chance: random.Random) -> None:
    case = chance.choice([case for case in CASES + OFFLOADED if case[0] != "adamw" or case in OFFLOADED])
    stop = chance.randrange(1, TRAINING_STEPS)
    print(f"{case}: stopped in step {stop}")
    check_goes_on(ranks, city, tmp_path, settings_for(*case), [stop])


@pytest.mark.soak
@pytest.mark.parametrize("case", CASES + OFFLOADED, ids=str)
def test_every_training_goes_on_after_three_interruptions(
    ranks: Ranks, city: Path, tmp_path: Path, case: Case, chance: random.Random
) -> None:
    stops = sorted(chance.sample(range(1, TRAINING_STEPS), 3))
    print(f"stopped in steps {stops}")
    check_goes_on(ranks, city, tmp_path, settings_for(*case), stops)


def test_offload_moves_the_same_weights(ranks: Ranks, tmp_path: Path, chance: random.Random) -> None:
    """Only the kernel of AdamW is another one (torch's fused one for CPUs)."""
    case = chance.choice([case for case in OFFLOADED if case[2] == "fp32"])
    there = comes_back(ranks, tmp_path / "there", case, [2], 1)["weights"]
    here = comes_back(ranks, tmp_path / "here", (*case[:3], "none"), [2], 1)["weights"]
    for name, tensor in here.items():
        torch.testing.assert_close(there[name], tensor, rtol=1e-4, atol=1e-5)


# -- the mathematics --------------------------------------------------------------------------------------------------


def test_stochastic_rounding_keeps_the_mean() -> None:
    random_bits = torch.Generator().manual_seed(0)
    value = torch.full((200_000,), 1 + 2**-8 * 0.3)  # bf16's next number after 1 is 1 + 2⁻⁷
    out = torch.empty_like(value, dtype=torch.bfloat16)
    round_stochastically(out, value.clone(), random_bits)
    assert set(out.float().unique().tolist()) == {1.0, 1 + 2**-7}
    assert out.double().mean() == pytest.approx(float(value[0].double()), abs=1e-4)
    round_stochastically(out, torch.full_like(value, -0.5), random_bits)
    assert (out == -0.5).all(), "what bf16 can hold stays as it is"


def test_bf16_weights_follow_adamw_where_plain_rounding_would_stand_still() -> None:
    torch.manual_seed(0)
    wide = torch.nn.Parameter(torch.ones(40_000))
    narrow = torch.nn.Parameter(torch.ones(40_000, dtype=torch.bfloat16))
    options: dict[str, Any] = {"lr": 1e-4, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.01}
    exact, rounded = torch.optim.AdamW([wide], **options), AdamWBf16([narrow], **options)
    for _ in range(40):
        gradient = 1 + torch.randn(40_000)
        wide.grad, narrow.grad = gradient, gradient.bfloat16()
        exact.step()
        rounded.step()
    moved, would = 1 - wide.detach().double().mean(), 1 - narrow.detach().double().mean()
    assert 1e-4 < moved < 2**-8, "each step is far below half a unit of bf16's last place"
    assert float(would) == pytest.approx(float(moved), rel=0.03)
    first, second = (rounded.state[narrow][name].double().mean() for name in ("exp_avg", "exp_avg_sq"))
    assert float(first) == pytest.approx(float(exact.state[wide]["exp_avg"].mean()), rel=0.01)
    assert float(second) == pytest.approx(float(exact.state[wide]["exp_avg_sq"].mean()), rel=0.01)
    assert all(state.dtype == torch.bfloat16 for state in rounded.state[narrow].values() if state.ndim)


def test_muon_is_torchs_and_its_steps_are_orthogonal() -> None:
    torch.manual_seed(0)
    start, gradients = torch.randn(24, 16), torch.randn(3, 24, 16)
    ours, theirs = torch.nn.Parameter(start.clone()), torch.nn.Parameter(start.clone())
    groups = [{"params": [ours], "matrices": True}]
    one = Muon(groups, lr=1e-2, momentum=0.9, betas=(0.9, 0.99), eps=1e-8, weight_decay=0.1)
    other = torch.optim.Muon([theirs], lr=1e-2, momentum=0.9, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    for gradient in gradients:
        ours.grad, theirs.grad = gradient.clone(), gradient.clone()
        one.step()
        other.step()
    # Both compute in bf16, by sums in another order.
    torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-3)
    values = torch.linalg.svdvals(orthogonal(gradients[0]).float())
    assert 0.5 < values.min() < values.max() < 1.3
    assert size_of((24, 16)) == pytest.approx(0.2 * 24**0.5)
    assert is_for_muon("transformer.blocks.3.to_q.weight", (24, 16))
    assert not is_for_muon("transformer.x_embedder.weight", (24, 16)), "the first and last layers are AdamW's"
    assert not is_for_muon("blocks.3.norm.weight", (24,))


def test_muon_divided_among_ranks_is_muon_on_whole_matrices(ranks: Ranks, tmp_path: Path) -> None:
    found = {
        stage: comes_back(ranks, tmp_path / str(stage), ("muon", stage, "fp32", "none"), [], 1)
        for stage in (0, 1, 2, 3)
    }
    for stage in (1, 2, 3):
        assert found[stage]["losses"] == pytest.approx(found[0]["losses"], rel=1e-3)
        for name, tensor in found[0]["weights"].items():
            torch.testing.assert_close(found[stage]["weights"][name], tensor, rtol=0, atol=1e-3)


# -- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"optimizer": {"kind": "adamw8bit"}}, "optimizer.kind"),
        ({"optimizer": {"kind": "adafactor"}}, 'adafactor" does not work at zero.stage 2: .*flat shares. Take stage 0'),
        (
            {"optimizer": {"kind": "adamw_bf16"}, "zero": {"stage": 1}},
            'adamw_bf16" does not work at zero.stage 1: .* Take stage 2 or 3',
        ),
        ({"optimizer": {"kind": "adamw_bf16"}, "zero": {"precision": "fp32"}}, 'zero.precision must be "bf16"'),
        ({"optimizer": {"kind": "adafactor", "betas": [0.5, 0.9]}}, "betas would not be used: adafactor has no betas"),
        ({"optimizer": {"kind": "adafactor", "eps": 1e-6}}, "eps would not be used: adafactor has its own"),
        ({"optimizer": {"betas": [1.5, 0.9]}}, r"optimizer.betas\S*: .*less than 1"),
        ({"optimizer": {"kind": "muon", "betas": [0.9, -0.1]}}, r"optimizer.betas\S*: .*greater than or equal to 0"),
        ({"optimizer": {"lr": float("inf")}}, "optimizer.lr: .*finite"),
        ({"optimizer": {"clip": 0}}, "optimizer.clip"),
        ({"optimizer": {"momentum": 0.5}}, "momentum would not be used: .*only muon"),
        ({"optimizer": {"min_lr": 1e-6}}, 'min_lr would not be used: schedule = "constant"'),
        ({"optimizer": {"schedule": "linear", "min_lr": 1}}, "min_lr .1. must not be above lr"),
        ({"optimizer": {"schedule": "wsd"}}, '"wsd" wants decay_steps'),
        ({"optimizer": {"decay_steps": 2}}, 'decay_steps would not be used: only schedule = "wsd"'),
        (
            {"optimizer": {"schedule": "wsd", "decay_steps": 9, "warmup_steps": 5}},
            "warmup_steps 5 and decay_steps 9 are more than steps = 10",
        ),
        ({"zero": {"stage": 1, "offload": "optimizer"}}, 'offload = "optimizer" needs stage 2 or 3'),
        ({"zero": {"offload": "parameters"}}, 'offload = "parameters" needs stage 3'),
        ({"zero": {"offload": "optimizer"}}, "resources.mem_gb: missing"),
        (
            {"zero": {"offload": "optimizer"}, "optimizer": {"kind": "adamw_8bit"}, "resources": {"mem_gb": 9}},
            'only optimizer.kind = "adamw" can move its state on the host',
        ),
        (
            {"zero": {"offload": "optimizer"}, "accumulation": 2, "resources": {"mem_gb": 9}},
            "accumulation = 2 parts in bf16; take accumulation = 1 or zero.stage = 3",
        ),
        ({"compile": "blocks", "zero": {"stage": 3}}, 'compile = "blocks" does not go with zero.stage 3'),
    ],
)
def test_wrong_settings_are_refused(changes: dict[str, Any], said: str) -> None:
    base = {"task": "sdm", "steps": 10, "global_batch": 8, "data": {"size": 32}, "model": {"attention_resolutions": []}}
    with pytest.raises(UserError, match=said):
        job_of(Path("data/x"), **{**base, **changes})


def test_nothing_is_clipped_where_the_job_says_so() -> None:
    """TOML has no None."""
    base = {"task": "sdm", "steps": 10, "global_batch": 8, "data": {"size": 32}, "model": {"attention_resolutions": []}}
    job = job_of(Path("data/x"), **base, optimizer={"clip": "none"})
    assert job.optimizer.clip is None
    assert type(job).model_validate(job.model_dump(mode="json")) == job


def test_eight_bits_on_other_ranks_are_refused(ranks: Ranks, lone_rank: Ranks, city: Path, tmp_path: Path) -> None:
    """When the job is submitted, from the checkpoint's own word; and, should it come to that, when it is loaded."""
    from semiocity.launch.jobs import _refuse_other_ranks

    settings = settings_for("adamw_8bit", 2, "bf16", sample_every=0)
    assert ranks.call(train, settings, tmp_path, city, 0, 2) == [False, False]
    file = Path("train.toml")

    def submitted(settings: dict[str, Any], ranks_per_node: int) -> None:
        resources = {"ranks_per_node": ranks_per_node, "mem_gb": 8}
        _refuse_other_ranks(job_of(city, **settings | {"resources": resources}), tmp_path, file)

    submitted(settings, 2)
    said = r"adamw_8bit\" cannot go on with 4 ranks at zero.stage 2 from 2 ranks at stage 2: .*blocks of 256"
    with pytest.raises(UserError, match=said):
        submitted(settings, 4)
    with pytest.raises(UserError, match=r"cannot go on with 2 ranks at zero.stage 3"):
        submitted(settings_for("adamw_8bit", 3, "bf16"), 2)
    with pytest.raises(UserError, match=r"cannot be divided among another number of ranks"):
        lone_rank.call(train, settings, tmp_path, city, 0, 0)
    with pytest.raises(UserError, match=r"optimizer.kind was 'adamw_8bit' .* and is 'adamw' now"):
        ranks.call(train, settings_for("adamw", 2, "bf16"), tmp_path, city, 0, 0)


def test_muon_without_matrices_is_refused(ranks: Ranks, city: Path, tmp_path: Path) -> None:
    model = {"discriminator": {"kind": "muon", "lr": 1e-3}}
    settings = gan({"stage": 2, "precision": "fp32"}, model)
    # The judge's only matrix is 1 × 72, a vector in truth.
    with pytest.raises(UserError, match=r"phase judge trains no matrix of a repeated layer"):
        ranks.call(train, settings, tmp_path, city, 0, 0)
