"""The conversation templates of ``llava.conversation``, which hold those of the LLaVA-NeXT repository too."""

from llava.conversation import (
    Conversation,
    SeparatorStyle,
    conv_mode_for,
    conv_templates,
    default_conversation,
)

__all__ = ["Conversation", "SeparatorStyle", "conv_mode_for", "conv_templates", "default_conversation"]
