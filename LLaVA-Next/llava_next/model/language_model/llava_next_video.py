"""LLaVA-NeXT-Video with MoB: pictures in tiles, and videos of which each frame is pooled to a quarter of its tokens."""

from __future__ import annotations

from typing import Any

import transformers
from transformers.models.llava_next_video import modeling_llava_next_video

from llava.model.language_model.calling import OriginalCall
from llava.model.language_model.llava_next import OriginalUnpadding
from mob import MoBMixin
from mob.modeling import keep_key_conversions


class LlavaNextVideoModel(OriginalUnpadding, modeling_llava_next_video.LlavaNextVideoModel):
    """The stock model, cutting the padding of a picture's tiles by the rule of the checkpoint it comes from."""


keep_key_conversions(LlavaNextVideoModel, modeling_llava_next_video.LlavaNextVideoModel)


class LlavaNextVideoForConditionalGeneration(
    OriginalCall, MoBMixin, transformers.LlavaNextVideoForConditionalGeneration
):
    """Stock LLaVA-NeXT-Video that honours ``config.MoB_config``; ``generate`` also takes ``images=``."""

    def __init__(self, config: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(config, *args, **kwargs)
        self.model.__class__ = LlavaNextVideoModel  # the same module with one more rule; nothing is built twice
