"""Options of the task `sdm`. Importable on a login node; what they mean is told beside `models.sdm.SDMConfig`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from semiocity.train.options import TaskOptions


class SDMOptions(TaskOptions):
    """Semantic Diffusion Model (Wang et al. 2022, arXiv 2207.00050). The defaults are the paper's."""

    channels: int = Field(256, ge=1)
    mult: tuple[float, ...] = Field((1, 1, 2, 2, 4, 4), min_length=1)
    res_blocks: int = Field(2, ge=1)
    attention_resolutions: tuple[int, ...] = (32, 16, 8)
    head_channels: int = Field(64, ge=1)
    spade_hidden: int = Field(128, ge=1)
    dropout: float = Field(0.0, ge=0, lt=1)
    resblock_updown: bool = True
    patch: int = Field(1, ge=1)
    checkpoint: bool = False
    """Recompute activations in the backward pass, to save memory."""
    learn_sigma: bool = True

    edges: bool = False
    """A further layout channel with the edges of instances; the dataset must have an instance map."""
    label_dropout: float = Field(0.0, ge=0, le=1)
    """Share of samples whose layout is replaced by the null label (all zeros), for classifier-free guidance. The paper
    trains with 0 and fine-tunes with 0.2."""

    timesteps: int = Field(1000, ge=2)
    beta_start: float = Field(1e-4, gt=0, lt=1)
    beta_end: float = Field(0.02, gt=0, lt=1)
    stratified_t: bool = False
    """Spread the timesteps of a global batch evenly over the process: the sample at place i of n draws from the i-th of
    n equal stretches. Same expectation as independent draws, with less noise in loss and gradient."""
    prediction: Literal["epsilon", "v", "x0"] = "epsilon"
    """`epsilon` is the paper's; `v` learns in far fewer steps; `x0` in the fewest when the network is narrow for its
    patches, since it need not carry the noise of every pixel to its output."""
    min_snr_gamma: float | None = Field(None, gt=0)
    vlb_weight: float = Field(1e-3, ge=0)

    sample_steps: int = Field(20, ge=1)
    """DDIM steps of the image grids."""
    sample_guidance: float = Field(1.0, ge=0)

    @model_validator(mode="after")
    def _consistent(self) -> SDMOptions:
        for name, multiple in zip(("mult",) * len(self.mult), self.mult):
            if multiple <= 0 or multiple * self.channels != int(multiple * self.channels):
                raise ValueError(f"{name}: {multiple} times {self.channels} channels is no positive whole number")
        if self.beta_start > self.beta_end:
            raise ValueError(f"beta_start ({self.beta_start}) must not be above beta_end ({self.beta_end})")
        if self.sample_steps > self.timesteps:
            raise ValueError(f"sample_steps ({self.sample_steps}) must not be above timesteps ({self.timesteps})")
        if self.sample_guidance != 1 and self.label_dropout == 0:
            raise ValueError(
                f"sample_guidance is {self.sample_guidance}, but without label_dropout the model never learns the null "
                "label; set label_dropout (0.2 in the paper) or sample_guidance = 1"
            )
        return self

    def roles(self) -> dict[str, str]:
        fields = {"image": "base.image", "label": "base.label"}
        return {**fields, "instance": "base.instance"} if self.edges else fields

    def check_size(self, height: int, width: int) -> None:
        self._check_stride("data.size", height, width)
        sides = [height // (self.patch * 2**level) for level in range(len(self.mult))]
        for wanted in self.attention_resolutions:
            if wanted not in sides:
                raise ValueError(
                    f"attention_resolutions: at height {height} no level of this model has side {wanted}; "
                    f"the sides are {', '.join(map(str, sides))}"
                )

    def check_bucket(self, height: int, width: int) -> None:
        """Attention is as deep as at `data.size`; only the stride must fit."""
        self._check_stride(f"data.buckets: {width}×{height}", height, width)

    def _check_stride(self, where: str, height: int, width: int) -> None:
        stride = self.patch * 2 ** (len(self.mult) - 1)
        for name, side in (("height", height), ("width", width)):
            if side % stride:
                below = side // stride * stride
                near = f"{below} or {below + stride}" if below else str(stride)
                raise ValueError(
                    f"{where}: {name} {side} is no multiple of {stride}, which patch {self.patch} and "
                    f"{len(self.mult)} entries of mult ask for; {near} would do"
                )
