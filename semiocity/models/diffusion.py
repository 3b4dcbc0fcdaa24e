"""Gaussian diffusion: schedule, training targets and losses, posterior, and samplers.

Notation of Ho et al. 2020 (DDPM, arXiv 2006.11239): x_t = √ᾱ_t·x_0 + √(1-ᾱ_t)·ε. Schedules are float64. Nothing is
drawn here: timesteps and noise come in as arguments, so that a caller can key them by sample and step.

Images are [B, 3, H, W] in [-1, 1]; `t` is [B], int64, an index into the schedule at hand. A model is any callable
(x, timesteps, layout) -> [B, 3 or 6, H, W]; channels 3 to 5, where there are six, are the interpolation between the two
bounds of the log variance (Nichol and Dhariwal 2021, arXiv 2102.09672, eq. 15).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

Prediction = Literal["epsilon", "v", "x0"]
Model = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class DiffusionConfig:
    """What a model is trained to predict, over which noise schedule. The defaults are those of the SDM paper."""

    timesteps: int = 1000
    """Steps T of the forward process."""
    beta_start: float = 1e-4
    """First β of the linear schedule."""
    beta_end: float = 0.02
    """Last β of the linear schedule."""
    prediction: Prediction = "epsilon"
    """`epsilon` is the paper's choice. `v` = √ᾱ·ε - √(1-ᾱ)·x_0 (Salimans and Ho 2022, arXiv 2202.00512, appendix D)
    learns in far fewer steps where the network is wide at full resolution. Both make the network carry the noise of
    every pixel to its output. One that is narrow for its patches cannot, and learns faster to name the clean image,
    `x0` (Li and He 2025, arXiv 2511.13720)."""
    min_snr_gamma: float | None = None
    """Weigh the squared error of x̂_0 by min(SNR, γ) (Hang et al. 2023, arXiv 2303.09556); None is the plain mean square
    of the prediction."""
    vlb_weight: float = 1e-3
    """λ of L_simple + λ·L_vlb when the variance is learned (Nichol and Dhariwal 2021, eq. 16)."""

    def __post_init__(self) -> None:
        if self.timesteps < 1:
            raise ValueError(f"DiffusionConfig.timesteps must be at least 1, is {self.timesteps}")
        if not 0 < self.beta_start <= self.beta_end < 1:
            raise ValueError(f"betas must satisfy 0 < start <= end < 1, are {self.beta_start} and {self.beta_end}")
        if self.prediction not in get_args(Prediction):
            choices = ", ".join(get_args(Prediction))
            raise ValueError(f"DiffusionConfig.prediction must be one of {choices}, is {self.prediction!r}")
        if self.min_snr_gamma is not None and self.min_snr_gamma <= 0:
            raise ValueError(f"DiffusionConfig.min_snr_gamma must be positive or None, is {self.min_snr_gamma}")


class Diffusion:
    """The forward process of a configuration, its targets and losses, and the posterior that samplers step through.

    `alpha_bars` [T] is ᾱ, float64 and falling. `model_times` [T] says which timestep of the full schedule the model is
    shown at each index; it is 0 … T-1 unless the schedule was thinned by `respaced`.
    """

    def __init__(self, config: DiffusionConfig) -> None:
        betas = torch.linspace(config.beta_start, config.beta_end, config.timesteps, dtype=torch.float64)
        self.config = config
        self._set_schedule(torch.cumprod(1 - betas, dim=0), torch.arange(config.timesteps))

    def _set_schedule(self, alpha_bars: Tensor, model_times: Tensor) -> None:
        self.alpha_bars = alpha_bars
        self.model_times = model_times
        # ᾱ of the step before; nothing is left to remove before the first, so 1.
        self.alpha_bars_previous = torch.cat([torch.ones(1, dtype=torch.float64), alpha_bars[:-1]])
        self.betas = 1 - alpha_bars / self.alpha_bars_previous
        self.posterior_variances = self.betas * (1 - self.alpha_bars_previous) / (1 - alpha_bars)

    def respaced(self, steps: int) -> "Diffusion":
        """The same process in `steps` longer steps, at timesteps 0, k, 2k, … with k = T // steps ("leading" spacing).

        Raises ValueError unless 1 <= steps <= T.
        """
        total = len(self.alpha_bars)
        if not 1 <= steps <= total:
            raise ValueError(f"a schedule of {total} timesteps cannot be sampled in {steps} steps")
        kept = torch.arange(steps) * (total // steps)
        thinned = object.__new__(type(self))
        thinned.config = self.config
        thinned._set_schedule(self.alpha_bars[kept], self.model_times[kept])
        return thinned

    def __len__(self) -> int:
        return len(self.alpha_bars)

    # -- forward process and conversions ------------------------------------------------------------------------------

    def q_sample(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """x_t given x_0 and ε (DDPM, eq. 4), in the dtype of `x0`."""
        signal, scale = self._signal_and_noise(t, x0)
        return signal * x0 + scale * noise

    def target(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """What the model's first three channels should be: ε, x_0, or v = √ᾱ·ε - √(1-ᾱ)·x_0."""
        signal, scale = self._signal_and_noise(t, x0)
        match self.config.prediction:
            case "epsilon":
                return noise
            case "x0":
                return x0
            case "v":
                return signal * noise - scale * x0

    def epsilon(self, prediction: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """ε̂ from a prediction of three channels; from v it is √(1-ᾱ)·x_t + √ᾱ·v."""
        signal, scale = self._signal_and_noise(t, x_t)
        match self.config.prediction:
            case "epsilon":
                return prediction
            case "x0":
                return (x_t - signal * prediction) / scale
            case "v":
                return scale * x_t + signal * prediction

    def x0(self, prediction: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """x̂_0 from a prediction of three channels, not clipped; from ε it is (x_t - √(1-ᾱ)·ε) / √ᾱ (DDPM, eq. 15)."""
        signal, scale = self._signal_and_noise(t, x_t)
        match self.config.prediction:
            case "epsilon":
                return (x_t - scale * prediction) / signal
            case "x0":
                return prediction
            case "v":
                return signal * x_t - scale * prediction

    def snr(self, t: Tensor) -> Tensor:
        """Signal-to-noise ratio ᾱ / (1-ᾱ) at `t`: [B], float64."""
        alpha_bar = self.alpha_bars.to(t.device)[t]
        return alpha_bar / (1 - alpha_bar)

    # -- losses -------------------------------------------------------------------------------------------------------

    def loss(self, output: Tensor, x0: Tensor, noise: Tensor, t: Tensor) -> dict[str, Tensor]:
        """Losses per sample, each [B] in fp32: `simple`, `vlb` where the variance is learned, and their sum `loss`.

        `output` is the model's answer to `q_sample(x0, noise, t)`. With three channels `loss` is `simple`.
        """
        prediction, interpolation = split_output(output.float())
        squared = (prediction - self.target(x0, noise, t)).square()
        terms = {"simple": squared.flatten(1).mean(1) * self._simple_weight(t).to(squared.dtype)}
        terms["loss"] = terms["simple"]
        if interpolation is not None:
            x_t = self.q_sample(x0, noise, t)
            # The variance learns from the bound and the mean does not: its gradient would drown that of L_simple.
            terms["vlb"] = self._vlb(prediction.detach(), interpolation, x0, x_t, t)
            # One timestep is drawn out of T, so T times its term estimates the whole bound.
            terms["loss"] = terms["simple"] + self.config.vlb_weight * len(self) * terms["vlb"]
        return terms

    def _simple_weight(self, t: Tensor) -> Tensor:
        """Factor of the squared error of the prediction that weighs the squared error of x̂_0 by min(SNR, γ).

        The error of x̂_0 is that of ε̂ divided by SNR, and that of v̂ divided by SNR + 1. So with γ = 1 the factor of v is
        min(ᾱ, 1-ᾱ), and the loss is the same as the error of ε̂ times min(SNR, 1) / SNR.
        """
        if self.config.min_snr_gamma is None:
            return torch.ones(t.shape, dtype=torch.float64, device=t.device)
        snr = self.snr(t)
        weight = snr.clamp(max=self.config.min_snr_gamma)
        match self.config.prediction:
            case "epsilon":
                return weight / snr
            case "x0":
                return weight
            case "v":
                return weight / (snr + 1)

    def _vlb(self, prediction: Tensor, interpolation: Tensor, x0: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """Term t of the variational bound in bits per dimension: [B] (DDPM, eq. 5; section 3.3 at t = 0)."""
        x0_hat = self.x0(prediction, x_t, t)
        mean, log_variance = self.posterior_mean(x0_hat, x_t, t), self.log_variance(interpolation, t)
        true_mean, true_log_variance = self.posterior_mean(x0, x_t, t), self._posterior_log_variance(t, x_t)
        kl = gaussian_kl(true_mean, true_log_variance, mean, log_variance).flatten(1).mean(1)
        nll = -discretized_log_likelihood(x0, mean, log_variance).flatten(1).mean(1)
        return torch.where(t == 0, nll, kl) / math.log(2)

    # -- posterior ----------------------------------------------------------------------------------------------------

    def posterior_mean(self, x0: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """Mean of q(x_{t-1} | x_t, x_0) (DDPM, eq. 7)."""
        alpha_bar, previous, beta = self.alpha_bars, self.alpha_bars_previous, self.betas
        of_x0 = _at(previous.sqrt() * beta / (1 - alpha_bar), t, x0)
        of_x_t = _at((1 - beta).sqrt() * (1 - previous) / (1 - alpha_bar), t, x0)
        return of_x0 * x0 + of_x_t * x_t

    def log_variance(self, interpolation: Tensor, t: Tensor) -> Tensor:
        """Log variance of a model's step: from log β̃_t where `interpolation` is -1 to log β_t where it is 1."""
        share = (interpolation + 1) / 2
        return share * _at(self.betas.log(), t, share) + (1 - share) * self._posterior_log_variance(t, share)

    def _posterior_log_variance(self, t: Tensor, like: Tensor) -> Tensor:
        """log β̃_t; at the first step, where β̃ is 0, that of the second (as in Nichol and Dhariwal, section 3.1)."""
        variances = self.posterior_variances.clone()
        variances[0] = variances[1] if len(variances) > 1 else self.betas[0]
        return _at(variances.log(), t, like)

    def _signal_and_noise(self, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """√ᾱ_t and √(1-ᾱ_t), shaped to multiply `like`."""
        return _at(self.alpha_bars.sqrt(), t, like), _at((1 - self.alpha_bars).sqrt(), t, like)


def split_output(output: Tensor) -> tuple[Tensor, Tensor | None]:
    """A model's output as prediction [B, 3, H, W] and variance interpolation (None if it has three channels)."""
    if output.shape[1] == 3:
        return output, None
    prediction, interpolation = output.chunk(2, dim=1)
    return prediction, interpolation


def gaussian_kl(mean1: Tensor, log_variance1: Tensor, mean2: Tensor, log_variance2: Tensor) -> Tensor:
    """KL(N(mean1, variance1) || N(mean2, variance2)) in nats, elementwise."""
    ratio = torch.exp(log_variance1 - log_variance2)
    distance = (mean1 - mean2).square() * torch.exp(-log_variance2)
    return 0.5 * (log_variance2 - log_variance1 + ratio + distance - 1)


def discretized_log_likelihood(x: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:
    """Log probability, in nats, of the 8-bit level that `x` in [-1, 1] stands for, under a Gaussian (DDPM, eq. 13)."""
    inverse_std = torch.exp(-0.5 * log_variance)
    upper = torch.special.ndtr((x - mean + 1 / 255) * inverse_std)
    lower = torch.special.ndtr((x - mean - 1 / 255) * inverse_std)
    # The outermost levels take all that lies beyond them.
    upper = torch.where(x > 0.999, torch.ones_like(upper), upper)
    lower = torch.where(x < -0.999, torch.zeros_like(lower), lower)
    return (upper - lower).clamp(min=1e-12).log()


# -- sampling ---------------------------------------------------------------------------------------------------------


def guided(model: Model, x_t: Tensor, times: Tensor, layout: Tensor, guidance: float) -> tuple[Tensor, Tensor | None]:
    """A prediction with classifier-free guidance, and the variance interpolation of the conditional one, if any.

    null + guidance·(conditional - null) (Ho and Salimans 2022, arXiv 2207.12598, where w = guidance - 1). The null
    label is the all-zero layout. At a given x_t, ε̂ is affine in every kind of prediction, so to guide one guides ε̂.
    Scale 1 is the conditional prediction and 0 the unconditional one, each by one call. `times` [B] are timesteps of
    the full schedule.
    """
    if guidance in (0.0, 1.0):
        return split_output(model(x_t, times, layout if guidance else torch.zeros_like(layout)))
    layouts = torch.cat([layout, torch.zeros_like(layout)])
    prediction, interpolation = split_output(model(x_t.repeat(2, 1, 1, 1), times.repeat(2), layouts))
    conditional, null = prediction.chunk(2)
    if interpolation is not None:
        interpolation = interpolation.chunk(2)[0]
    return null + guidance * (conditional - null), interpolation


@torch.no_grad()
def sample_ddim(
    diffusion: Diffusion,
    model: Model,
    noise: Tensor,
    layout: Tensor,
    *,
    steps: int,
    guidance: float = 1.0,
    eta: float = 0.0,
    step_noise: Callable[[int], Tensor] | None = None,
) -> Tensor:
    """Images in [-1, 1] by DDIM (Song et al. 2021, arXiv 2010.02502, eq. 12 and 16), a function of its arguments alone.

    `noise` is x_T, [B, 3, H, W]. x̂_0 is clipped to [-1, 1] in every step and ε̂ recomputed to agree with it: otherwise
    guided samples drift out of range. `eta` 0 is deterministic; above it, `step_noise(i)` gives the noise [B, 3, H, W]
    that is added at index i of the thinned schedule, i from steps - 1 down to 1. ValueError if it is missing then.
    """
    if eta > 0 and step_noise is None:
        raise ValueError("DDIM with eta > 0 needs step_noise")
    thinned, x = diffusion.respaced(steps), noise
    for index in reversed(range(steps)):
        t = torch.full((len(x),), index, device=x.device)
        prediction, _ = guided(model, x, thinned.model_times.to(t.device)[t], layout, guidance)
        x0 = thinned.x0(prediction, x, t).clamp(-1, 1)
        signal, scale = thinned._signal_and_noise(t, x)
        epsilon = (x - signal * x0) / scale
        alpha_bar, previous = float(thinned.alpha_bars[index]), float(thinned.alpha_bars_previous[index])
        sigma = eta * math.sqrt((1 - previous) / (1 - alpha_bar) * (1 - alpha_bar / previous))
        x = math.sqrt(previous) * x0 + math.sqrt(max(1 - previous - sigma**2, 0.0)) * epsilon
        if sigma > 0 and step_noise is not None:
            x = x + sigma * step_noise(index)
    return x


@torch.no_grad()
def sample_ancestral(
    diffusion: Diffusion,
    model: Model,
    noise: Tensor,
    layout: Tensor,
    *,
    steps: int,
    step_noise: Callable[[int], Tensor],
    guidance: float = 1.0,
) -> Tensor:
    """Images in [-1, 1] by the reverse Markov chain (DDPM, algorithm 2), the sampler of the SDM paper.

    Uses the learned variance if the model has one, else β̃. `noise` is x_T, [B, 3, H, W]; `step_noise(i)` gives the
    noise at index i of the thinned schedule, i from steps - 1 to 1. x̂_0 is clipped to [-1, 1].
    """
    thinned, x = diffusion.respaced(steps), noise
    for index in reversed(range(steps)):
        t = torch.full((len(x),), index, device=x.device)
        prediction, interpolation = guided(model, x, thinned.model_times.to(t.device)[t], layout, guidance)
        x0 = thinned.x0(prediction, x, t).clamp(-1, 1)
        mean = thinned.posterior_mean(x0, x, t)
        if index == 0:
            return mean
        log_variance = _at(thinned.posterior_variances.log(), t, x)
        if interpolation is not None:
            log_variance = thinned.log_variance(interpolation, t)
        x = mean + torch.exp(0.5 * log_variance) * step_noise(index)
    return x


def _at(table: Tensor, t: Tensor, like: Tensor) -> Tensor:
    """Entries `t` of a float64 table as [B, 1, …, 1] in the dtype and on the device of `like`."""
    return table.to(t.device)[t].to(like.dtype).reshape(-1, *[1] * (like.ndim - 1))
