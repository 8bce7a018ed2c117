"""Where the parts of a stock vision-language model are, and which models cannot be pruned."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from mob.spans import visual_token_ids

STATE = "mob"  # where the prunings of a model, and what they leave on a cache, are kept


@dataclass(frozen=True)
class Anatomy:
    """``top`` takes labels, ``base`` takes input_ids and pictures, ``layers`` are the text decoder's.

    ``first_layer``: the lowest layer at which tokens may leave. Generation reads lengths from layer 0 of the cache, and
    Qwen3-VL adds features of the tower to its full sequence after the first layers (deepstack).
    """

    top: nn.Module
    base: nn.Module
    decoder: nn.Module
    layers: nn.ModuleList
    first_layer: int = 1

    @property
    def embed(self) -> nn.Module:
        return self.decoder.get_input_embeddings()

    @property
    def flash(self) -> bool:
        """Whether the decoder runs a flash-attention kernel (2D masks, positions that must have no gaps)."""
        return "flash" in (self.decoder.config._attn_implementation or "")

    def check_window(self, cache: Any, new: int) -> None:
        """ValueError if a sliding window cuts into the tokens so far: it would cut elsewhere in short layers.

        ``cache`` may be None; ``new`` tokens come on top of it.
        """
        window = _window(self.decoder.config)
        if window is None:
            return
        length = new + (0 if cache is None else int(cache.get_seq_length()))
        if length > window:
            raise ValueError(
                f"the sequence has {length} tokens and this model attends to the last {window} only: pruning needs "
                "full attention, shorten the prompt or use a model without sliding_window"
            )


def unwrap(model: nn.Module) -> nn.Module:
    """The transformers model inside PEFT."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def dissect(model: nn.Module) -> Anatomy:
    """Find the parts. ValueError for what is not a vision-language model of transformers or cannot be pruned."""
    top = unwrap(model)
    config = getattr(top, "config", None)
    if not visual_token_ids(config):
        raise ValueError(
            f"{type(top).__name__} has no image or video token in its config: pruning needs a vision-language model "
            "of transformers, such as LlavaForConditionalGeneration"
        )
    decoder = top.get_decoder() if hasattr(top, "get_decoder") else None
    layers = getattr(decoder, "layers", None)
    if layers is None or decoder is top:
        raise ValueError(f"{type(top).__name__} has no text decoder with a list of layers: it cannot be pruned")
    kinds = set(getattr(decoder.config, "layer_types", None) or ())
    if len(kinds) > 1 or "chunked_attention" in kinds or "linear_attention" in kinds:
        raise ValueError(
            f"{type(top).__name__} mixes kinds of attention ({', '.join(sorted(kinds))}): a short layer would attend "
            "to other tokens. Only decoders with full attention can be pruned"
        )
    base = getattr(top, top.base_model_prefix, top) if top.base_model_prefix else top
    deepstack = getattr(getattr(config, "vision_config", None), "deepstack_visual_indexes", None) or ()
    return Anatomy(top, base, decoder, layers, first_layer=max(1, len(deepstack)))


def _window(config: Any) -> int | None:
    """The sliding window that every layer of the decoder has, None for full attention."""
    if "full_attention" in (getattr(config, "layer_types", None) or ()):
        return None
    return getattr(config, "sliding_window", None)
