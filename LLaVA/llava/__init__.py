"""LLaVA on stock transformers classes, with MoB: the surface of the original repository."""


def __getattr__(name: str):
    # Imported on demand: conversation templates and scenes need no model classes.
    if name in ("LlavaForConditionalGeneration", "LlavaLlamaForCausalLM"):
        from llava import model

        return getattr(model, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
