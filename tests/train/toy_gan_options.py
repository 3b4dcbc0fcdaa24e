"""Options of the tests' own task."""

from semiocity.train.options import OptimizerOptions, TaskOptions, ZeroOptions


class ToyGanOptions(TaskOptions):
    """A generator and a discriminator, each with its own optimizer and ZeRO stage."""

    generator_zero: ZeroOptions = ZeroOptions()
    discriminator: OptimizerOptions = OptimizerOptions(lr=2e-3, clip=None)
    generator_every: int = 1
    poison_phase: str = "judge"
    poison_steps: tuple[int, ...] = ()
    """Steps, from 0, at which the loss of that phase is not finite."""
    poison_until_file: str = ""
    """The last of `poison_steps` makes this file, and while it is there nothing is poisoned."""

    def roles(self) -> dict[str, str]:
        return {"image": "base.image"}
