"""Video-LLaVA with MoB: one tower for pictures, one for videos, whose frames keep their CLS token."""

from __future__ import annotations

import transformers

from llava.model.language_model.calling import OriginalCall
from mob import MoBMixin


class VideoLlavaForConditionalGeneration(OriginalCall, MoBMixin, transformers.VideoLlavaForConditionalGeneration):
    """Stock Video-LLaVA that honours ``config.MoB_config``; ``generate`` also takes ``images=``."""
