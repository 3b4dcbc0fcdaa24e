"""Every optimizer at every ZeRO stage that it works at: the mathematics, going on bit by bit, and what is refused."""

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny import STEPS, checkpoint, differing, history, sdm
from train_ranks import Ranks, job_of, train

from semiocity.errors import UserError
from semiocity.train.metrics import read_metrics
from semiocity.train.muon import Muon, is_for_muon, orthogonal, size_of
from semiocity.train.optimizer_options import KINDS
from semiocity.train.optimizers import AdamWBf16, round_stochastically

PAIRS = [
    (kind, stage, precision)
    for kind, facts in KINDS.items()
    for stage in facts.stages
    for precision in ("fp32", "bf16")
    if not (stage == 0 and precision == "bf16") and not (kind == "adamw_bf16" and precision == "fp32")
]
OFFLOADED = [
    (stage, precision, place) for stage in (2, 3) for precision in ("fp32", "bf16") for place in ("optimizer",)
]
OFFLOADED += [(3, "bf16", "parameters")]


def settings_for(kind: str, stage: int, precision: str, **more: Any) -> dict[str, Any]:
    optimizer = {"kind": kind, "lr": 1e-3, "warmup_steps": 2, "schedule": "cosine", "min_lr": 1e-4}
    return sdm({"stage": stage, "precision": precision}, optimizer=optimizer, **more)


# -- going on ---------------------------------------------------------------------------------------------------------


def check_goes_on(ranks: Ranks, city: Path, folder: Path, settings: dict[str, Any], stops: list[int]) -> dict[str, Any]:
    """Train undisturbed, and with stops; nothing may differ. Returns the last checkpoint."""
    whole, parts = folder / "whole", folder / "parts"
    assert ranks.call(train, settings, whole, city, 0, 0) == [True, True]
    done = 0
    for stop in stops:
        assert ranks.call(train, settings, parts, city, 1, stop - done) == [False, False]
        done = stop
    assert ranks.call(train, settings, parts, city, 0, 0) == [True, True]
    assert [attempt["first_step"] for attempt in history(parts)] == [0, *stops]
    states = checkpoint(whole)
    assert differing(states, checkpoint(parts)) == []
    assert (whole / "metrics.jsonl").read_text() == (parts / "metrics.jsonl").read_text()
    exports = [load_file(run / "export" / "model.safetensors") for run in (whole, parts)]
    assert differing(*exports) == []
    return states


def test_sampled_pairs_go_on_bit_by_bit(ranks: Ranks, city: Path, tmp_path: Path, chance: random.Random) -> None:
    pairs = [next(p for p in chance.sample(PAIRS, len(PAIRS)) if p[0] == kind) for kind in KINDS if kind != "adamw"]
    for i, pair in enumerate(chance.sample(pairs, 2)):
        stop = chance.randrange(1, STEPS)
        print(f"{pair}: stopped in step {stop}")
        check_goes_on(ranks, city, tmp_path / str(i), settings_for(*pair, sample_every=0), [stop])


@pytest.mark.soak
@pytest.mark.parametrize("pair", PAIRS, ids=str)
def test_every_pair_goes_on_after_three_interruptions(
    ranks: Ranks, city: Path, tmp_path: Path, pair: tuple[str, int, str], chance: random.Random
) -> None:
    for i in range(3):
        stops = sorted(chance.sample(range(1, STEPS), 3))
        print(f"stopped in steps {stops}")
        check_goes_on(ranks, city, tmp_path / str(i), settings_for(*pair), stops)


@pytest.mark.soak
@pytest.mark.parametrize("case", OFFLOADED, ids=str)
def test_every_offload_goes_on_after_three_interruptions(
    ranks: Ranks, city: Path, tmp_path: Path, case: tuple[int, str, str], chance: random.Random
) -> None:
    stops = sorted(chance.sample(range(1, STEPS), 3))
    print(f"stopped in steps {stops}")
    check_goes_on(ranks, city, tmp_path, offloaded(*case), stops)


# -- the host's memory ------------------------------------------------------------------------------------------------


def offloaded(stage: int, precision: str, place: str, **more: Any) -> dict[str, Any]:
    zero = {"stage": stage, "precision": precision, "offload": place}
    return sdm(zero, accumulation=1, resources={"ranks_per_node": 2, "mem_gb": 8}, **more)


def test_offload_moves_the_same_weights(ranks: Ranks, city: Path, tmp_path: Path, chance: random.Random) -> None:
    """Only the kernel of AdamW is another one (torch's fused one for CPUs)."""
    stage, precision, _place = case = chance.choice([c for c in OFFLOADED if c[1] == "fp32"])
    print(case)
    there = check_goes_on(ranks, city, tmp_path, offloaded(*case, sample_every=0), [chance.randrange(1, STEPS)])
    plain = sdm({"stage": stage, "precision": precision}, accumulation=1, sample_every=0)
    assert ranks.call(train, plain, tmp_path / "plain", city, 0, 0) == [True, True]
    here = checkpoint(tmp_path / "plain")
    assert here.keys() == there.keys()
    for file, tensors in here.items():
        assert tensors.keys() == there[file].keys()
        torch.testing.assert_close(there[file]["0/ema"], tensors["0/ema"], rtol=1e-3, atol=1e-4)


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


def test_muon_divided_among_ranks_is_muon_on_whole_matrices(ranks: Ranks, city: Path, tmp_path: Path) -> None:
    losses = {}
    for stage in (0, 1, 2, 3):
        settings = settings_for("muon", stage, "fp32", sample_every=0, steps=4, model={**TINY, "dropout": 0.0})
        assert ranks.call(train, settings, tmp_path / str(stage), city, 0, 0) == [True, True]
        losses[stage] = [line["loss"] for line in read_metrics(tmp_path / str(stage) / "metrics.jsonl")]
    exports = [load_file(tmp_path / str(stage) / "export" / "model.safetensors") for stage in (0, 1, 2, 3)]
    for stage in (1, 2, 3):
        assert losses[stage] == pytest.approx(losses[0], rel=1e-3)
        for name, tensor in exports[0].items():
            torch.testing.assert_close(exports[stage][name], tensor, rtol=0, atol=3e-3)


TINY = settings_for("adamw", 2, "fp32")["model"]


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "adamw"])
def test_optimizers_learn(ranks: Ranks, city: Path, tmp_path: Path, kind: str) -> None:
    stage, precision = (0, "fp32") if kind == "adafactor" else (2, "bf16")
    settings = settings_for(kind, stage, precision, steps=30, sample_every=0, checkpoint_every=30, accumulation=1)
    settings["optimizer"] |= {"lr": 5e-2 if kind == "adafactor" else 1e-2, "schedule": "constant", "min_lr": 0.0}
    assert ranks.call(train, settings, tmp_path, city, 0, 0) == [True, True]
    losses = [line["loss"] for line in read_metrics(tmp_path / "metrics.jsonl")]
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])


# -- what is kept -----------------------------------------------------------------------------------------------------


def test_state_takes_the_bytes_that_the_table_says(ranks: Ranks, city: Path, tmp_path: Path) -> None:
    """What a checkpoint holds, a parameter, is what the optimizer held."""
    for kind, stage, precision in (("adamw", 2, "bf16"), ("adamw_bf16", 2, "bf16"), ("adafactor", 0, "fp32")):
        settings = settings_for(kind, stage, precision, sample_every=0, steps=1, ema={"decay": 0.9})
        ranks.call(train, settings, tmp_path / kind, city, 0, 0)
        tensors = checkpoint(tmp_path / kind, 1)["sdm-00000.safetensors"]
        parameters = sum(t.numel() for name, t in tensors.items() if name.endswith("/master"))
        masters = sum(t.nbytes for name, t in tensors.items() if name.endswith("/master"))
        state = sum(t.nbytes for n, t in tensors.items() if n.rpartition("/")[2] not in ("master", "ema"))
        assert masters == parameters * (2 if kind == "adamw_bf16" else 4)
        if kind == "adafactor":
            assert state < parameters * 4, "a row and a column for each matrix; this model's filters are small"
        else:
            assert state == pytest.approx(parameters * KINDS[kind].state_bytes, rel=0.01)
        averages = [t.dtype for name, t in tensors.items() if name.endswith("/ema")]
        assert set(averages) == {torch.float32}, "an average in bf16 would stand still"


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


def test_eight_bits_on_other_ranks_are_refused(ranks: Ranks, lone_rank: Ranks, city: Path, tmp_path: Path) -> None:
    """When the job is submitted, from the checkpoint's own word; and, should it come to that, when it is loaded."""
    from semiocity.launch.jobs import _refuse_other_ranks

    settings = settings_for("adamw_8bit", 2, "bf16", sample_every=0)
    assert ranks.call(train, settings, tmp_path, city, 0, 2) == [False, False]
    file = Path("train.toml")
    _refuse_other_ranks(job_of(city, **settings, resources={"ranks_per_node": 2}), tmp_path, file)
    said = r"adamw_8bit\" cannot go on with 4 ranks at zero.stage 2 from 2 ranks at stage 2: .*blocks of 256"
    with pytest.raises(UserError, match=said):
        _refuse_other_ranks(
            job_of(city, **settings | {"accumulation": 1}, resources={"ranks_per_node": 4}), tmp_path, file
        )
    with pytest.raises(UserError, match=r"cannot go on with 2 ranks at zero.stage 3"):
        other = settings_for("adamw_8bit", 3, "bf16")
        _refuse_other_ranks(job_of(city, **other, resources={"ranks_per_node": 2}), tmp_path, file)
    with pytest.raises(UserError, match=r"cannot be divided among another number of ranks"):
        lone_rank.call(train, settings, tmp_path, city, 0, 0)
    with pytest.raises(UserError, match=r"optimizer.kind was 'adamw_8bit' .* and is 'adamw' now"):
        ranks.call(train, settings_for("adamw", 2, "bf16"), tmp_path, city, 0, 0)


def test_muon_without_matrices_is_refused(ranks: Ranks, city: Path, tmp_path: Path) -> None:
    from tiny import gan

    model = {"discriminator": {"kind": "muon", "lr": 1e-3}}
    settings = gan({"stage": 2, "precision": "fp32"}, model)
    # The judge's only matrix is 1 × 72, a vector in truth.
    with pytest.raises(UserError, match=r"phase judge trains no matrix of a repeated layer"):
        ranks.call(train, settings, tmp_path, city, 0, 0)
