"""Models: stock transformers classes that honour ``config.MoB_config``."""

from llava.model.language_model.llava_llama import LlavaForConditionalGeneration, LlavaLlamaForCausalLM

__all__ = ["LlavaForConditionalGeneration", "LlavaLlamaForCausalLM"]
