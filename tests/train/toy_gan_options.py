"""Options of the tests' own task."""

from semiocity.train.options import OptimizerOptions, TaskOptions, ZeroOptions


class ToyGanOptions(TaskOptions):
    """A generator and a discriminator, each with its own optimizer and ZeRO stage."""

    generator_zero: ZeroOptions = ZeroOptions()
    discriminator: OptimizerOptions = OptimizerOptions(lr=2e-3, clip=None)
    generator_every: int = 1
    poison_steps: tuple[int, ...] = ()
    """Steps at which the discriminator's loss is not finite."""
    poison_until_file: str = ""
    """While this file is absent, `poison_steps` are poisoned; a poisoned step creates it where it was the last of them."""

    def roles(self) -> dict[str, str]:
        return {"image": "base.image"}
