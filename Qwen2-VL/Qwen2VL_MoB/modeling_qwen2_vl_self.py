"""Qwen2-VL, Qwen2.5-VL and Qwen3-VL with MoB: the stock classes, plus ``chat``.

``MoB.from_pretrained(name)`` and ``MoB(config)`` give the class that belongs to the checkpoint; every one of them is a
``MoB``. ``config.MoB_config`` is read at each call.
"""

from __future__ import annotations

import os
from typing import Any

import transformers
from transformers import AutoConfig

from mob import MoBMixin
from Qwen2VL_MoB.dialogue import ChatMixin

_HUB = ("cache_dir", "force_download", "local_files_only", "revision", "subfolder", "token")


class MoB(ChatMixin):
    """Any Qwen-VL model with MoB: a stock class of transformers that honours ``config.MoB_config`` and has ``chat``."""

    def __new__(cls, config: Any = None, *args: Any, **kwargs: Any) -> MoB:
        return super().__new__(family(config) if cls is MoB else cls)

    def __init__(self, config: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(config, *args, **kwargs)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike[str], *args: Any, **kwargs: Any) -> Any:
        """As ``from_pretrained`` of transformers, of the class that belongs to the checkpoint.

        Args:
            pretrained_model_name_or_path: a folder or a name on the hub, in the hub's key layout or a saved one.
            kwargs: ``config`` (its ``MoB_config`` counts), ``MoB_config`` (replaces what config.json says),
                ``torch_dtype`` or ``dtype``, ``device_map`` and so on. ``trust_remote_code`` is accepted and ignored:
                no code of a repository is run.

        Raises:
            ValueError: a model of another family, or a wrong ``MoB_config``.
        """
        kwargs.pop("trust_remote_code", None)
        if "torch_dtype" in kwargs:  # the older name
            kwargs.setdefault("dtype", kwargs.pop("torch_dtype"))
        if cls is not MoB:
            return super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        config = kwargs.pop("config", None)
        if config is None or isinstance(config, (str, os.PathLike)):
            hub = {key: kwargs[key] for key in _HUB if key in kwargs}
            config = AutoConfig.from_pretrained(config or pretrained_model_name_or_path, **hub)
        return family(config).from_pretrained(pretrained_model_name_or_path, *args, config=config, **kwargs)


class Qwen2VLForConditionalGeneration(MoBMixin, MoB, transformers.Qwen2VLForConditionalGeneration):
    """Stock Qwen2-VL with MoB and ``chat``."""


class Qwen2_5_VLForConditionalGeneration(MoBMixin, MoB, transformers.Qwen2_5_VLForConditionalGeneration):
    """Stock Qwen2.5-VL with MoB and ``chat``."""


class Qwen3VLForConditionalGeneration(MoBMixin, MoB, transformers.Qwen3VLForConditionalGeneration):
    """Stock Qwen3-VL with MoB and ``chat``."""


class Qwen3VLMoeForConditionalGeneration(MoBMixin, MoB, transformers.Qwen3VLMoeForConditionalGeneration):
    """Stock Qwen3-VL with experts, with MoB and ``chat``."""


FAMILIES: dict[str, type[MoB]] = {
    "qwen2_vl": Qwen2VLForConditionalGeneration,
    "qwen2_5_vl": Qwen2_5_VLForConditionalGeneration,
    "qwen3_vl": Qwen3VLForConditionalGeneration,
    "qwen3_vl_moe": Qwen3VLMoeForConditionalGeneration,
}


def family(config: Any) -> type[MoB]:
    """The class that belongs to a config. ValueError where there is none."""
    kind = getattr(config, "model_type", None)
    if kind not in FAMILIES:
        raise ValueError(f"a model of type {kind!r} is no Qwen-VL: MoB reads {', '.join(FAMILIES)}")
    return FAMILIES[kind]
