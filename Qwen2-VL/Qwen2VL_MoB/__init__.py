"""Qwen2-VL, Qwen2.5-VL and Qwen3-VL on stock transformers classes, with MoB visual-token pruning and ``model.chat``."""

from __future__ import annotations

import importlib
from typing import Any

# Imported on demand: reading pictures and videos needs no model classes.
_HOMES = {
    "MoB": "modeling_qwen2_vl_self",
    "Turn": "dialogue",
    "Processing": "processing",
    "process_vision_info": "vision",
}
__all__ = ["MoB", "Processing", "Turn", "process_vision_info"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
