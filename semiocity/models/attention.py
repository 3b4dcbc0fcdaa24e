"""Choosing how a diffusers model computes attention."""

from __future__ import annotations

import importlib.util
import logging
from typing import Any

import torch

from semiocity.errors import UserError
from semiocity.models.attention_names import MODULES, ON_CPU


def require(backend: str) -> None:
    """UserError when a backend cannot work here; to be asked before anything large is loaded."""
    if backend not in ON_CPU and not torch.cuda.is_available():
        raise UserError(f'model.attention = "{backend}" needs a GPU; on CPUs take "native"')
    module = MODULES[backend]
    if module and importlib.util.find_spec(module) is None:
        raise UserError(
            f'model.attention = "{backend}" needs the Python module {module} where the job runs; add it to the image, '
            'or take "native"'
        )


def choose(model: Any, backend: str) -> None:
    """Set the backend of all attention layers. UserError when diffusers refuses it."""
    if backend == "native":  # what torch chooses by itself
        return
    logger = logging.getLogger("diffusers.models.modeling_utils")
    level = logger.level
    logger.setLevel(logging.ERROR)  # it warns that the interface may change, which our tests would notice
    try:
        model.set_attention_backend(backend)
    except (RuntimeError, ImportError, ValueError) as error:
        raise UserError(f'model.attention = "{backend}" cannot be used here: {error}') from None
    finally:
        logger.setLevel(level)
