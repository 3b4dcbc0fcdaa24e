"""FLOPs of a Semantic Diffusion Model, in closed form: what `SDM.__init__` builds, with each layer's cost.

A multiplication and an addition count as two. Norms, activations and resampling are left out: they move bytes. A test
holds the number against torch's FlopCounterMode.
"""

from __future__ import annotations

from semiocity.models.sdm import SDMConfig

FORWARD, BACKWARD = 1, 2
"""Passes that a layer costs: once forward; backward once for its weights and once for its input."""


def training_flops(config: SDMConfig, height: int, width: int) -> float:
    """Forward and backward pass of one image of `height` × `width` pixels, without what is computed a second time to
    save memory (`config.checkpoint`)."""
    return _Count(config, height, width).total


class _Count:
    """Walks through the network as it is built and adds up."""

    def __init__(self, config: SDMConfig, height: int, width: int) -> None:
        self.config, self.total = config, 0.0
        self.pixels = (height // config.patch) * (width // config.patch)
        self.time_width = 4 * config.channels
        self.labels = config.label_channels * config.patch**2
        self._network()

    def _network(self) -> None:
        config, area = self.config, self.config.patch**2
        self._layer(config.channels * self.time_width, leaf=True)
        self._layer(self.time_width**2)
        width = config.widths[0]
        self._conv(3, 3 * area, width, self.pixels, leaf=True)

        skips = [width]
        for level, out in enumerate(config.widths):
            for _ in range(config.res_blocks):
                self._step(width, out, level, labels=False)
                width = out
                skips.append(width)
            if level + 1 < len(config.widths):
                self._resample(width, level, level + 1, labels=False)
                skips.append(width)

        deepest = len(config.widths) - 1
        self._block(width, width, deepest, deepest, labels=True)
        if config.attention_resolutions:
            self._attention(width, deepest)
        self._block(width, width, deepest, deepest, labels=True)

        for level, out in reversed(list(enumerate(config.widths))):
            for index in range(config.res_blocks + 1):
                self._step(width + skips.pop(), out, level, labels=True)
                width = out
                if level > 0 and index == config.res_blocks:
                    self._resample(width, level, level - 1, labels=True)
        self._conv(3, width, config.out_channels * area, self.pixels)

    def _layer(self, products: float, leaf: bool = False) -> None:
        """`products` of a pass; a `leaf` reads what takes no gradient, such as the picture or the layout."""
        self.total += 2 * products * (FORWARD + BACKWARD - leaf)

    def _conv(self, side: int, channels: int, out: int, pixels: int, leaf: bool = False) -> None:
        self._layer(side**2 * channels * out * pixels, leaf)

    def _pixels(self, level: int) -> int:
        return self.pixels // 4**level

    def _step(self, width: int, out: int, level: int, *, labels: bool) -> None:
        self._block(width, out, level, level, labels=labels)
        if self.config.side(level) in self.config.attention_resolutions:
            self._attention(out, level)

    def _resample(self, width: int, level: int, to: int, *, labels: bool) -> None:
        if self.config.resblock_updown:
            self._block(width, width, level, to, labels=labels)
        else:
            self._conv(3, width, width, self._pixels(to))

    def _block(self, width: int, out: int, level: int, to: int, *, labels: bool) -> None:
        if labels:
            self._spade(width, level)
            self._spade(out, to)
        self._conv(3, width, out, self._pixels(to))
        self._layer(self.time_width * 2 * out)
        self._conv(3, out, out, self._pixels(to))
        if width != out:
            self._conv(1, width, out, self._pixels(to))

    def _spade(self, channels: int, level: int) -> None:
        hidden = self.config.spade_hidden
        self._conv(3, self.labels, hidden, self._pixels(level), leaf=True)
        self._conv(3, hidden, 2 * channels, self._pixels(level))

    def _attention(self, channels: int, level: int) -> None:
        pixels = self._pixels(level)
        self._conv(1, channels, 4 * channels, pixels)  # query, key, value and output
        self._layer(2 * pixels**2 * channels)
