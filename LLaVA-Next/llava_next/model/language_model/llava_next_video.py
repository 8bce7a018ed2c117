"""LLaVA-NeXT-Video with MoB: pictures in tiles, and videos of which each frame is pooled to a quarter of its tokens."""

from __future__ import annotations

import transformers

from llava.model.language_model.calling import OriginalCall
from mob import MoBMixin


class LlavaNextVideoForConditionalGeneration(
    OriginalCall, MoBMixin, transformers.LlavaNextVideoForConditionalGeneration
):
    """Stock LLaVA-NeXT-Video that honours ``config.MoB_config``; ``generate`` also takes ``images=``."""
