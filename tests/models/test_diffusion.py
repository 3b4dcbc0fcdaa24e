"""The maths of diffusion against diffusers' schedulers, closed forms and an oracle that knows the image."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler
from torch import Tensor

from semiocity.models.diffusion import (
    Diffusion,
    DiffusionConfig,
    discretized_log_likelihood,
    gaussian_kl,
    guided,
    sample_ancestral,
    sample_ddim,
    split_output,
)

EPSILON = Diffusion(DiffusionConfig())
V = Diffusion(DiffusionConfig(prediction="v", min_snr_gamma=1.0))
X0 = Diffusion(DiffusionConfig(prediction="x0", min_snr_gamma=5.0))
every_prediction = pytest.mark.parametrize("diffusion", [EPSILON, V, X0], ids=["epsilon", "v", "x0"])


def peer(scheduler: Any, steps: int = 1000, **settings: Any) -> Any:
    """A scheduler of diffusers on the paper's betas, untyped because diffusers attaches its methods at run time."""
    return scheduler(num_train_timesteps=steps, beta_start=1e-4, beta_end=0.02, beta_schedule="linear", **settings)


def images(batch: int = 4, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Images in [-1, 1] and noise, both [batch, 3, 8, 8]."""
    generator = torch.Generator().manual_seed(seed)
    x0 = torch.rand(batch, 3, 8, 8, generator=generator) * 2 - 1
    return x0, torch.randn(batch, 3, 8, 8, generator=generator)


def layouts(batch: int = 4, classes: int = 5, seed: int = 0) -> Tensor:
    labels = torch.randint(0, classes, (batch, 8, 8), generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.one_hot(labels, classes).permute(0, 3, 1, 2).float()


def smooth_model(channels: int = 3) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """A fixed non-linear model that looks at all three of its arguments."""
    generator = torch.Generator().manual_seed(5)
    of_x, of_layout = (torch.randn(channels, n, 3, 3, generator=generator) / 3 for n in (3, 5))

    def model(x: Tensor, t: Tensor, layout: Tensor) -> Tensor:
        hidden = torch.nn.functional.conv2d(x, of_x, padding=1) + torch.nn.functional.conv2d(
            layout, of_layout, padding=1
        )
        return torch.tanh(hidden + (t / 1000).reshape(-1, 1, 1, 1))

    return model


def test_schedule_is_the_papers() -> None:
    assert len(EPSILON) == 1000 and EPSILON.alpha_bars.dtype == torch.float64
    assert EPSILON.betas[0].item() == pytest.approx(1e-4) and EPSILON.betas[-1].item() == pytest.approx(0.02)
    product = 1.0
    for step in range(1000):
        product *= 1 - (1e-4 + (0.02 - 1e-4) * step / 999)
    assert EPSILON.alpha_bars[-1].item() == pytest.approx(product, rel=1e-9)


def test_q_sample_agrees_with_diffusers() -> None:
    x0, noise = images(1000 // 8)
    for offset in range(8):
        t = torch.arange(125) * 8 + offset
        expected = peer(DDPMScheduler).add_noise(x0, noise, t)
        torch.testing.assert_close(EPSILON.q_sample(x0, noise, t), expected, rtol=0, atol=5e-6)


@every_prediction
def test_the_target_leads_back_to_noise_and_image(diffusion: Diffusion) -> None:
    x0, noise = (z.double() for z in images())
    t = torch.tensor([0, 10, 500, 999])
    x_t = diffusion.q_sample(x0, noise, t)
    target = diffusion.target(x0, noise, t)
    torch.testing.assert_close(diffusion.epsilon(target, x_t, t), noise)
    torch.testing.assert_close(diffusion.x0(target, x_t, t), x0)


def test_v_agrees_with_diffusers() -> None:
    x0, noise = images()
    t = torch.tensor([0, 10, 500, 999])
    expected = peer(DDPMScheduler, prediction_type="v_prediction").get_velocity(x0, noise, t)
    torch.testing.assert_close(V.target(x0, noise, t), expected, rtol=0, atol=1e-5)


def test_v_with_gamma_one_is_the_epsilon_loss_weighed_by_snr() -> None:
    x0, noise = (z.double() for z in images(5))
    t = torch.tensor([0, 100, 250, 500, 999])
    output = torch.randn(5, 3, 8, 8, generator=torch.Generator().manual_seed(1)).double()
    error = V.epsilon(output, V.q_sample(x0, noise, t), t) - noise
    snr = V.snr(t)
    expected = error.square().mean((1, 2, 3)) * snr.clamp(max=1) / snr
    torch.testing.assert_close(V.loss(output, x0, noise, t)["loss"].double(), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("prediction", ["epsilon", "v", "x0"])
def test_gamma_weighs_the_error_of_the_image(prediction: Any) -> None:
    diffusion = Diffusion(DiffusionConfig(prediction=prediction, min_snr_gamma=5.0))
    x0, noise = (z.double() for z in images())
    t = torch.tensor([0, 100, 500, 999])
    output = diffusion.target(x0, noise, t) + 0.1
    x_t = diffusion.q_sample(x0, noise, t)
    error = (diffusion.x0(output, x_t, t) - x0).square().mean((1, 2, 3))
    expected = error * diffusion.snr(t).clamp(max=5)
    torch.testing.assert_close(diffusion.loss(output, x0, noise, t)["loss"].double(), expected, rtol=1e-4, atol=1e-6)


def test_plain_loss_is_the_mean_square_per_sample() -> None:
    x0, noise = images()
    t = torch.tensor([3, 30, 300, 900])
    terms = EPSILON.loss(noise + torch.tensor([0.0, 1, 2, 3])[:, None, None, None], x0, noise, t)
    torch.testing.assert_close(terms["loss"], torch.tensor([0.0, 1, 4, 9]))
    assert set(terms) == {"loss", "simple"}


@pytest.mark.parametrize("t", [1, 2, 77, 500, 999])
def test_posterior_is_the_product_of_its_two_gaussians(t: int) -> None:
    x0, x_t = (z.double() for z in images(1))
    previous, beta = EPSILON.alpha_bars[t - 1], EPSILON.betas[t]
    # q(x_{t-1} | x_0) has mean √ᾱ_{t-1}·x_0, and q(x_t | x_{t-1}) peaks at x_{t-1} = x_t / √α. Precisions add.
    prior, likelihood = 1 / (1 - previous), (1 - beta) / beta
    mean = (prior * previous.sqrt() * x0 + likelihood * x_t / (1 - beta).sqrt()) / (prior + likelihood)
    torch.testing.assert_close(EPSILON.posterior_mean(x0, x_t, torch.tensor([t])), mean)
    torch.testing.assert_close(EPSILON.posterior_variances[t], 1 / (prior + likelihood))


def test_first_posterior_is_the_image_itself() -> None:
    x0, x_t = images(1)
    torch.testing.assert_close(EPSILON.posterior_mean(x0, x_t, torch.tensor([0])), x0)
    assert EPSILON.posterior_variances[0] == 0


def test_learned_variance_lies_between_its_bounds() -> None:
    t = torch.tensor([1, 500, 999])
    ones = torch.ones(3, 1, 1, 1, dtype=torch.float64)
    torch.testing.assert_close(EPSILON.log_variance(ones, t).exp().flatten(), EPSILON.betas[t])
    torch.testing.assert_close(EPSILON.log_variance(-ones, t).exp().flatten(), EPSILON.posterior_variances[t])
    assert EPSILON.log_variance(-ones[:1], torch.tensor([0])).isfinite().all()


def test_kl_agrees_with_torch() -> None:
    parameters = torch.randn(4, 50, generator=torch.Generator().manual_seed(2)).double()
    mean1, log1, mean2, log2 = parameters
    first = torch.distributions.Normal(mean1, (log1 / 2).exp())
    second = torch.distributions.Normal(mean2, (log2 / 2).exp())
    expected = torch.distributions.kl_divergence(first, second)
    torch.testing.assert_close(gaussian_kl(mean1, log1, mean2, log2), expected)


@pytest.mark.parametrize("std", [0.003, 0.05, 1.0])
def test_probabilities_of_the_256_levels_add_up_to_one(std: float) -> None:
    levels = torch.arange(256, dtype=torch.float64) / 127.5 - 1
    for mean in (-0.99, 0.1, 1.0):
        log_variance = torch.full_like(levels, 2 * math.log(std))
        total = discretized_log_likelihood(levels, torch.full_like(levels, mean), log_variance).exp().sum()
        assert total.item() == pytest.approx(1, abs=1e-6)


def test_vlb_is_zero_for_the_true_posterior_and_grows_with_the_error() -> None:
    x0, noise = images()
    t = torch.tensor([1, 10, 500, 999])
    right = torch.cat([noise, -torch.ones_like(noise)], dim=1)
    wrong = torch.cat([noise + 0.5, -torch.ones_like(noise)], dim=1)
    assert EPSILON.loss(right, x0, noise, t)["vlb"].abs().max() < 1e-5
    assert (EPSILON.loss(wrong, x0, noise, t)["vlb"] > 1e-5).all()


def test_vlb_trains_the_variance_and_not_the_mean() -> None:
    x0, noise = images()
    t = torch.tensor([0, 1, 500, 999])
    output = torch.cat([noise, torch.zeros_like(noise)], dim=1).requires_grad_()
    terms = EPSILON.loss(output, x0, noise, t)
    torch.testing.assert_close(terms["loss"], terms["simple"] + 1e-3 * 1000 * terms["vlb"])
    (gradient,) = torch.autograd.grad(terms["vlb"].sum(), output)
    assert gradient[:, :3].abs().max() == 0
    assert (gradient[:, 3:].abs().amax((1, 2, 3)) > 0).all()


def test_thinned_schedule_has_leading_spacing_and_the_same_marginals() -> None:
    thinned = EPSILON.respaced(30)
    assert thinned.model_times.tolist() == [33 * i for i in range(30)]
    assert torch.equal(thinned.alpha_bars, EPSILON.alpha_bars[thinned.model_times])
    torch.testing.assert_close(torch.cumprod(1 - thinned.betas, 0), thinned.alpha_bars)
    assert torch.equal(EPSILON.respaced(1000).betas, EPSILON.betas)
    for steps in (0, 1001):
        with pytest.raises(ValueError, match="steps"):
            EPSILON.respaced(steps)


@every_prediction
def test_ddim_agrees_with_diffusers(diffusion: Diffusion) -> None:
    model = smooth_model()
    layout, (_, noise) = layouts(), images()
    kind = {"epsilon": "epsilon", "v": "v_prediction", "x0": "sample"}[diffusion.config.prediction]
    scheduler = peer(DDIMScheduler, clip_sample=True, set_alpha_to_one=True, prediction_type=kind)
    scheduler.set_timesteps(50)
    x = noise
    for t in scheduler.timesteps:
        output = model(x, t.repeat(len(x)), layout)
        x = scheduler.step(output, t, x, eta=0.0, use_clipped_model_output=True).prev_sample
    # Near t = 0, ε̂ from x̂_0 divides by the small 1-ᾱ, which diffusers holds in fp32.
    atol = 1e-4 if diffusion is X0 else 1e-5
    torch.testing.assert_close(sample_ddim(diffusion, model, noise, layout, steps=50), x, rtol=0, atol=atol)


def test_stochastic_ddim_agrees_with_diffusers() -> None:
    model, layout, (_, noise) = smooth_model(), layouts(), images()
    draws = {i: images(seed=100 + i)[1] for i in range(10)}
    scheduler = peer(DDIMScheduler, clip_sample=True, set_alpha_to_one=True)
    scheduler.set_timesteps(10)
    x = noise
    for index, t in zip(reversed(range(10)), scheduler.timesteps, strict=True):
        output = model(x, t.repeat(len(x)), layout)
        step = scheduler.step(output, t, x, eta=0.7, use_clipped_model_output=True, variance_noise=draws[index])
        x = step.prev_sample
    ours = sample_ddim(EPSILON, model, noise, layout, steps=10, eta=0.7, step_noise=draws.__getitem__)
    torch.testing.assert_close(ours, x, rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match="step_noise"):
        sample_ddim(EPSILON, model, noise, layout, steps=10, eta=0.7)


@pytest.mark.parametrize("channels", [3, 6], ids=["fixed variance", "learned variance"])
def test_ancestral_sampling_agrees_with_diffusers(channels: int) -> None:
    diffusion, model = Diffusion(DiffusionConfig(timesteps=40)), smooth_model(channels)
    layout, (_, noise) = layouts(), images()
    draws = [images(seed=100 + i)[1] for i in range(40)]
    scheduler = peer(DDPMScheduler, 40, variance_type={3: "fixed_small", 6: "learned_range"}[channels])
    x = noise
    for index in reversed(range(40)):
        output = model(x, torch.full((4,), index), layout)
        # Their step draws its noise itself: a generator at the seed of our draw makes it draw the same.
        generator = torch.Generator().manual_seed(100 + index)
        torch.rand(4, 3, 8, 8, generator=generator)
        x = scheduler.step(output, index, x, generator=generator).prev_sample
    ours = sample_ancestral(diffusion, model, noise, layout, steps=40, step_noise=draws.__getitem__)
    torch.testing.assert_close(ours, x, rtol=0, atol=1e-4)


@every_prediction
def test_samplers_find_the_image_that_an_oracle_knows(diffusion: Diffusion) -> None:
    x0, noise = (z.double() for z in images())

    def oracle(x: Tensor, t: Tensor, layout: Tensor) -> Tensor:
        signal = diffusion.alpha_bars[t].sqrt().reshape(-1, 1, 1, 1)
        scale = (1 - diffusion.alpha_bars[t]).sqrt().reshape(-1, 1, 1, 1)
        return diffusion.target(x0, (x - signal * x0) / scale, t)

    found = sample_ddim(diffusion, oracle, noise, layouts(), steps=7)
    torch.testing.assert_close(found, x0, rtol=0, atol=1e-9)
    found = sample_ancestral(
        diffusion, oracle, noise, layouts(), steps=25, step_noise=lambda index: images(seed=index)[1].double()
    )
    torch.testing.assert_close(found, x0, rtol=0, atol=1e-9)


@every_prediction
def test_guidance_moves_the_noise_and_leaves_the_variance(diffusion: Diffusion) -> None:
    model, layout, (_, x_t) = smooth_model(6), layouts(), images()
    t = torch.tensor([1, 20, 300, 999])

    def noise(prediction: Tensor) -> Tensor:
        return diffusion.epsilon(prediction, x_t.double(), t)

    conditional, null = (noise(split_output(model(x_t, t, z))[0].double()) for z in (layout, torch.zeros_like(layout)))
    variance = split_output(model(x_t, t, layout))[1]
    for scale in (0.0, 1.0, 1.5, 4.0):
        prediction, interpolation = guided(model, x_t, t, layout, scale)
        torch.testing.assert_close(
            noise(prediction.double()), null + scale * (conditional - null), rtol=1e-4, atol=1e-4
        )
        if scale:
            torch.testing.assert_close(interpolation, variance)


def test_guidance_scale_one_and_zero_cost_one_evaluation_each() -> None:
    batches: list[int] = []

    def counting(x: Tensor, t: Tensor, layout: Tensor) -> Tensor:
        batches.append(len(x))
        return smooth_model()(x, t, layout)

    for scale in (1.0, 0.0, 1.5):
        guided(counting, images()[1], torch.full((4,), 9), layouts(), scale)
    assert batches == [4, 4, 8]


def test_samples_stay_in_range_and_repeat() -> None:
    model, layout, (_, noise) = smooth_model(), layouts(), images()
    first, again = (sample_ddim(V, model, noise, layout, steps=8, guidance=4.0) for _ in range(2))
    assert torch.equal(first, again)
    assert first.abs().max() <= 1 + 1e-6


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"timesteps": 0}, "timesteps"),
        ({"beta_end": 1.0}, "betas"),
        ({"prediction": "noise"}, "prediction"),
        ({"min_snr_gamma": 0.0}, "min_snr_gamma"),
    ],
)
def test_bad_configurations_are_refused_by_name(changes: dict, word: str) -> None:
    with pytest.raises(ValueError, match=word):
        DiffusionConfig(**changes)
