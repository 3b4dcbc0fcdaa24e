"""FLOPs of a training step of Flux, layer by layer: of all weights, of chosen ones, or of adapters beside frozen ones.

A frozen layer needs no gradient of its weights, and before the first trained layer nothing needs any. Attention and
matrices are counted, a multiplication and an addition as two; what is computed again to save memory is not. A test
holds the number against torch's FlopCounterMode. Sizes alone: login-node code.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from semiocity.models import flux_names


def step_flops(
    config: Mapping[str, Any],
    image_tokens: int,
    text_tokens: int,
    trained: Collection[str] = (),
    adapters: Collection[str] = (),
    rank: int = 0,
) -> float:
    """Forward and backward pass of the transformer for one image.

    `trained`: names of the parameters that take gradients; `adapters`: linear layers with an adapter of this `rank`.
    """
    count = _Count(config, frozenset(trained), frozenset(adapters), rank)
    count.network(image_tokens, text_tokens)
    return count.total


class _Count:
    """Follows what needs a gradient through the network and adds up."""

    def __init__(self, config: Mapping[str, Any], trained: frozenset[str], adapters: frozenset[str], rank: int) -> None:
        self.config, self.trained, self.adapters, self.rank = config, trained, adapters, rank
        self.shapes = flux_names.linear_layers(config)
        self.total = 0.0

    def network(self, image: int, text: int) -> None:
        time = False
        embedders = ("timestep", "guidance", "text") if self.config["guidance_embeds"] else ("timestep", "text")
        for name in embedders:
            first = self.linear(f"time_text_embed.{name}_embedder.linear_1", 1, False)
            time |= self.linear(f"time_text_embed.{name}_embedder.linear_2", 1, first)
        words = self.linear("context_embedder", text, False)
        picture = self.linear("x_embedder", image, False)
        for i in range(self.config["num_layers"]):
            picture, words = self._double(f"transformer_blocks.{i}", image, text, picture, words, time)
        both = picture or words
        for i in range(self.config["num_single_layers"]):
            both = self._single(f"single_transformer_blocks.{i}", image + text, both, time)
        moved = self.linear("norm_out.linear", 1, time)
        self.linear("proj_out", image, both or moved)

    def linear(self, name: str, tokens: int, needs: bool) -> bool:
        """A linear layer whose input needs a gradient or not; returns whether its output does."""
        outputs, inputs = self.shapes[name]
        weight, bias, adapter = f"{name}.weight" in self.trained, f"{name}.bias" in self.trained, name in self.adapters
        self.total += 2 * tokens * outputs * inputs * (1 + weight + needs)
        if adapter:
            self.total += 2 * tokens * self.rank * (inputs * (2 + needs) + outputs * 3)
        return needs or weight or bias or adapter

    def _double(self, block: str, image: int, text: int, picture: bool, words: bool, time: bool) -> tuple[bool, bool]:
        """Whether picture and words need gradients after the block."""
        picture_norm = self.linear(f"{block}.norm1.linear", 1, time) or picture
        words_norm = self.linear(f"{block}.norm1_context.linear", 1, time) or words
        needs = []
        for ours, theirs, norm in (
            ("to_q", "add_q_proj", "q"),
            ("to_k", "add_k_proj", "k"),
            ("to_v", "add_v_proj", ""),
        ):
            one = self.linear(f"{block}.attn.{ours}", image, picture_norm)
            other = self.linear(f"{block}.attn.{theirs}", text, words_norm)
            norms = {f"{block}.attn.norm_{norm}.weight", f"{block}.attn.norm_added_{norm}.weight"}
            needs.append(one or other or bool(norms & self.trained))
        attended = self._attention(image + text, *needs)
        picture = self.linear(f"{block}.attn.to_out.0", image, attended) or picture_norm
        words = self.linear(f"{block}.attn.to_add_out", text, attended) or words_norm
        picture = self._mlp(f"{block}.ff", image, picture)
        words = self._mlp(f"{block}.ff_context", text, words)
        return picture, words

    def _mlp(self, name: str, tokens: int, needs: bool) -> bool:
        return self.linear(f"{name}.net.2", tokens, self.linear(f"{name}.net.0.proj", tokens, needs))

    def _single(self, block: str, tokens: int, both: bool, time: bool) -> bool:
        normed = self.linear(f"{block}.norm.linear", 1, time) or both
        wide = self.linear(f"{block}.proj_mlp", tokens, normed)
        needs = []
        for name, norm in (("to_q", "q"), ("to_k", "k"), ("to_v", "")):
            one = self.linear(f"{block}.attn.{name}", tokens, normed)
            needs.append(one or f"{block}.attn.norm_{norm}.weight" in self.trained)
        attended = self._attention(tokens, *needs)
        return self.linear(f"{block}.proj_out", tokens, wide or attended) or normed

    def _attention(self, tokens: int, query: bool, key: bool, value: bool) -> bool:
        """Scores and their sum of values; backward a product for each that needs a gradient, and one for the scores."""
        scores = query or key
        self.total += 2 * tokens**2 * flux_names.width(self.config) * (2 + query + key + scores + value)
        return scores or value
