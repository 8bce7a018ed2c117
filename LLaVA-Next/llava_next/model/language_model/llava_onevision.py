"""LLaVA-OneVision with MoB: pictures in up to nine tiles' worth of tokens, several pictures, videos."""

from __future__ import annotations

import transformers

from llava.model.language_model.calling import OriginalCall
from mob import MoBMixin


class LlavaOnevisionForConditionalGeneration(
    OriginalCall, MoBMixin, transformers.LlavaOnevisionForConditionalGeneration
):
    """Stock LLaVA-OneVision that honours ``config.MoB_config``; ``generate`` also takes ``images=``."""


# The name that the original repository gives this model.
LlavaQwenForCausalLM = LlavaOnevisionForConditionalGeneration
