"""Models: stock transformers classes that honour ``config.MoB_config``."""

from llava_next.model.language_model.llava_next_video import LlavaNextVideoForConditionalGeneration
from llava_next.model.language_model.llava_onevision import LlavaOnevisionForConditionalGeneration, LlavaQwenForCausalLM
from llava_next.model.language_model.video_llava import VideoLlavaForConditionalGeneration

__all__ = [
    "LlavaNextVideoForConditionalGeneration",
    "LlavaOnevisionForConditionalGeneration",
    "LlavaQwenForCausalLM",
    "VideoLlavaForConditionalGeneration",
]
