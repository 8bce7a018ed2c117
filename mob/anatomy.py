"""Where the parts of a stock vision-language model are, and which models cannot be pruned."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

import transformers
from torch import nn

from mob.spans import visual_token_ids

STATE = "mob"  # where the prunings of a model, and what they leave on a cache, are kept

# What decoder layers may be handed: shortened with the hidden states (mob/plan.py), or not about single tokens.
HANDED = {
    *("hidden_states", "attention_mask", "position_ids", "position_embeddings", "past_key_values", "use_cache"),
    *("output_attentions", "output_hidden_states", "output_router_logits", "return_dict", "moe_mm_token_type_ids"),
}
INPUTS = {"input_ids", "inputs_embeds", "logits_to_keep"}  # what a decoder may take besides
# What a decoder adds to visual tokens after its first layers, in sequences that must still be whole.
DEEPSTACK = ("visual_pos_masks", "deepstack_visual_embeds", "vision_mask", "deepstack_features")


@dataclass(frozen=True)
class Anatomy:
    """``top`` takes labels, ``base`` takes input_ids and pictures, ``layers`` are the text decoder's.

    ``first_layer``: the lowest layer at which tokens may leave. Generation reads lengths from layer 0 of the cache, and
    Qwen3-VL and others add features of the tower to their full sequence between the first layers (deepstack).
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
    name, config = type(top).__name__, getattr(top, "config", None)
    if hasattr(top, "thinker"):
        raise ValueError(f"{name} is several models: prune its thinker, mob.prune(model.thinker, ...)")
    if getattr(config, "is_encoder_decoder", False):
        raise ValueError(
            f"{name} is an encoder and a decoder: its pictures are in the encoder, where no question is yet. Only "
            "decoders that read pictures and text as one sequence can be pruned"
        )
    if not visual_token_ids(config):
        raise ValueError(
            f"{name} has no image or video token in its config: pruning needs a vision-language model "
            "of transformers, such as LlavaForConditionalGeneration"
        )
    decoder = _text_decoder(top)
    if decoder is None or decoder is top:
        raise ValueError(f"{name} has no text decoder with a list of layers: it cannot be pruned")
    base = getattr(top, top.base_model_prefix, top) if top.base_model_prefix else top
    _check_attention(name, decoder)
    _check_arguments(name, base, decoder)
    if base is top:
        raise ValueError(
            f"{name} has no base model below its head in transformers {transformers.__version__}, whose output could "
            "be brought back to full length: it cannot be pruned, a newer transformers may have one"
        )
    return Anatomy(top, base, decoder, decoder.layers, _first_layer(name, config, base, decoder))


def _text_decoder(top: nn.Module) -> nn.Module | None:
    """The module that holds the list of decoder layers."""
    given = top.get_decoder() if hasattr(top, "get_decoder") else None
    below = given.get_decoder() if hasattr(given, "get_decoder") else None
    # Llama 4 and BLIP-2 give a decoder with its head.
    return next((one for one in (given, below, getattr(given, "model", None)) if hasattr(one, "layers")), None)


def _check_attention(name: str, decoder: nn.Module) -> None:
    """ValueError unless a layer attends to the same tokens, those before and dropped ones apart, as every other one."""
    kinds = set(getattr(decoder.config, "layer_types", None) or ())
    if len(kinds) > 1:
        raise ValueError(
            f"{name} mixes kinds of attention ({', '.join(sorted(kinds))}): a short layer would attend "
            "to other tokens. Only decoders with full attention can be pruned"
        )
    odd = kinds - {"full_attention", "sliding_attention"}  # windows are checked at every call
    if not odd and any(part.endswith("indexer") for part, _ in decoder.layers.named_modules()):
        odd = {"indexed_attention"}
    if odd:
        raise ValueError(
            f"{name} has layers with {', '.join(odd)}: what they attend to depends on all tokens before. Only decoders "
            "with full attention can be pruned"
        )
    scaled = "llama_4_scaling_beta" in (getattr(decoder.config, "rope_parameters", None) or {})
    if scaled and "flash" in (decoder.config._attn_implementation or ""):
        raise ValueError(
            f"{name} scales its queries by positions, which flash-attention kernels cannot be given with gaps: load it "
            "with attn_implementation='sdpa'"
        )


def _check_arguments(name: str, base: nn.Module, decoder: nn.Module) -> None:
    """ValueError if decoder or layers are handed what pruning does not know to shorten, or do not hand on a plan."""
    taken = set().union(*(_arguments(kind)[0] for kind in {type(layer) for layer in decoder.layers}))
    if any(argument.startswith(("cross_attention", "encoder_hidden")) for argument in taken):
        raise ValueError(
            f"{name} takes its pictures by cross-attention: there are no visual tokens in its sequence to drop. Only "
            "decoders that read pictures and text as one sequence can be pruned"
        )
    odd = taken - HANDED
    if decoder is not base:
        odd |= _arguments(type(decoder))[0] - HANDED - INPUTS - set(DEEPSTACK)
    if odd:
        raise ValueError(
            f"{name} hands {', '.join(sorted(odd))} to its decoder layers, which pruning does not know how to shorten: "
            "it cannot be pruned"
        )
    for part in (base, decoder):
        if not _arguments(type(part))[1]:
            raise ValueError(
                f"{name} cannot be pruned: its {type(part).__name__} would hand nothing further on to its layers"
            )


def _arguments(kind: type[nn.Module]) -> tuple[set[str], bool]:
    """Names that a module takes, and whether it takes others too."""
    kinds = {name: one.kind for name, one in inspect.signature(kind.forward).parameters.items() if name != "self"}
    more = {
        name for name, one in kinds.items() if one in (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    }
    return kinds.keys() - more, inspect.Parameter.VAR_KEYWORD in kinds.values()


def _first_layer(name: str, config: Any, base: nn.Module, decoder: nn.Module) -> int:
    """The lowest layer at which tokens may leave: 1, or where nothing of the tower is added any more."""
    vision = getattr(config, "vision_config", None)
    after = getattr(vision, "deepstack_visual_indexes", None)  # Qwen3-VL adds features after layers 0, 1, ...
    before = [
        layer for _, layer in getattr(config, "deepstack_layer_map", None) or ()
    ]  # Granite 4 Vision: before these
    before += getattr(config, "spatial_target_layers", None) or ()
    added = decoder is not base and _arguments(type(decoder))[0] & set(DEEPSTACK)
    if added and after is None and not before:
        raise ValueError(
            f"{name} adds {', '.join(sorted(added))} to its visual tokens between layers, and its config does not say "
            "up to which: it cannot be pruned"
        )
    return max(1, len(after or ()), *before)


def _window(config: Any) -> int | None:
    """The sliding window that every layer of the decoder has, None for full attention."""
    if "full_attention" in (getattr(config, "layer_types", None) or ()):
        return None
    return getattr(config, "sliding_window", None)
