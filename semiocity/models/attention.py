"""Choosing how a diffusers model computes attention."""

from __future__ import annotations

import logging
from typing import Any

import torch

from semiocity.errors import UserError
from semiocity.models.attention_names import PACKAGES


def choose(model: Any, backend: str) -> None:
    """Set the backend of all attention layers. UserError when it cannot work here."""
    if backend == "native":  # also what torch chooses by itself
        return
    if backend not in ("_native_math", "_native_flash", "flex") and not torch.cuda.is_available():
        raise UserError(f'model.attention = "{backend}" needs a GPU; on CPUs take "native"')
    logger = logging.getLogger("diffusers.models.modeling_utils")
    level = logger.level
    logger.setLevel(logging.ERROR)  # a warning that the interface may change, which a test here would notice
    try:
        model.set_attention_backend(backend)
    except (RuntimeError, ImportError, ValueError) as error:
        package = PACKAGES[backend]
        hint = f"; it needs the package {package} where the job runs" if package else ""
        raise UserError(f'model.attention = "{backend}" cannot be used here: {error}{hint}') from None
    finally:
        logger.setLevel(level)
