"""torch.compile on each repeated block of a model: a hundred equal blocks are compiled once, in a minute or two, where
the whole model would take half an hour."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator

import torch
from torch import nn

from semiocity.errors import UserError


def compile_blocks(modules: Iterable[nn.Module]) -> int:
    """Compile every block in place, by which no parameter changes its name; returns how many there are.

    Raises UserError when there is none.
    """
    found = [block for module in modules for block in blocks(module)]
    if not found:
        raise UserError('compile = "blocks": this model has no repeated blocks; set compile = "none"')
    for block in found:
        block.compile()
    return len(found)


def blocks(module: nn.Module) -> Iterator[nn.Module]:
    """The members of the outermost lists of modules with a forward pass of their own."""
    for child in module.children():
        if isinstance(child, nn.ModuleList):
            for member in child:
                if isinstance(member, nn.ModuleList | nn.ModuleDict):
                    yield from blocks(member)
                else:
                    yield member
        else:
            yield from blocks(child)


def refuse_without_compiler() -> None:
    """UserError where torch cannot compile: the image for clusters has no compiler unless one was added."""
    if torch.cuda.is_available():
        try:
            import triton  # noqa: F401
        except ImportError:
            raise UserError(_missing("Triton")) from None
    if not any(map(shutil.which, ("g++", "c++", "clang++", "gcc", "cc"))):
        raise UserError(_missing("a C++ compiler (g++)"))


def _missing(what: str) -> str:
    return (
        f'compile = "blocks" needs {what} where the job runs, and there is none; add it to the image, or set compile = '
        '"none"'
    )
