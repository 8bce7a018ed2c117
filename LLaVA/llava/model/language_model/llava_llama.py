"""LLaVA-1.5 with MoB: the stock class, plus the calling convention of the original repository."""

from __future__ import annotations

import transformers

from llava.model.language_model.calling import OriginalCall
from mob import MoBMixin


class LlavaForConditionalGeneration(OriginalCall, MoBMixin, transformers.LlavaForConditionalGeneration):
    """Stock LLaVA that honours ``config.MoB_config``; ``generate`` also takes ``images=``."""


# The name that the original repository gives this model.
LlavaLlamaForCausalLM = LlavaForConditionalGeneration
