"""Stages before the decoder: pictures are encoded, a rule chooses among their features, and the prompt becomes shorter.

For ``generate`` this happens before its bookkeeping, which then sees a shorter prompt and nothing else; in a plain
forward pass the output is brought back to full length, as after a stage within the decoder. The rule sees the features
in the language model's embedding space, and the word embeddings of the prompt.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationMixin

from mob.anatomy import STATE, Anatomy
from mob.choosing import EarlyStage, choose
from mob.config import MoBConfig
from mob.layout import ENCODERS, IMAGE, NOTE, VIDEO, Kept, declared
from mob.methods import needs_of
from mob.spans import Spans, find_kinds, find_real, find_spans
from mob.tensors import flat_features
from mob.tower import Tokens, Watch, in_places

_STACKED = "mob_stacked"
_PIXELS = ("pixel_values", "image_patches")
MODALITIES = {IMAGE: "image", VIDEO: "video"}
ENCODED = "mm_encoder_outputs"
# Qwen-Omni's forward has other names for two arguments of its get_rope_index.
_ROPE_NAMES = {"second_per_grids": "video_second_per_grid", "audio_seqlens": "audio_feature_lengths"}
PER_TOKEN = ("attention_mask", "mm_token_type_ids", "token_type_ids")


@dataclass(frozen=True)
class Shorter:
    """A prompt without the placeholders of dropped tokens.

    Attributes:
        kwargs: what the model is to be called with.
        rows: (B, S) place of each token in the whole prompt, -1 for padding.
    """

    kwargs: dict[str, Any]
    rows: Tensor


def shorten(
    parts: Anatomy,
    stages: Sequence[EarlyStage],
    settings: MoBConfig,
    kwargs: dict[str, Any],
    record: bool,
    answer: Tensor | None = None,
) -> Shorter | None:
    """What a call of the model becomes; None where it brings no pictures. Gradients reach the encoders.

    Args:
        kwargs: of ``generate`` or of the base model's ``forward``: input_ids (B, T), attention_mask, pictures.
        answer: bool (B, T), tokens that labels ask to be predicted: a rule must not see them.

    Raises:
        ValueError: the call or the transformers version leaves no way to hand over fewer features.
    """
    base = parts.base
    watch = Watch(base) if any("tower" in needs_of(stage.rule) for stage in stages) else None
    outputs, used, tokens = _encode(base, kwargs, watch)
    if not outputs:
        return None
    ids, config = kwargs["input_ids"], parts.top.config
    kinds = find_kinds(config, ids, None, parts.embed)
    real = find_real(kwargs.get("attention_mask"), kinds, 0)
    given = declared(config, {ENCODED: outputs, **{k: v for k, v in kwargs.items() if k in used}})
    spans = find_spans(kinds, real, answer, True, config, given, settings.keep_newlines)
    embeds = _merge(parts.embed(ids).detach(), kinds, outputs)  # words only to look at: the model embeds them itself
    tower = in_places(kinds, tokens) if watch else None
    keep, embeds, notes = choose(stages, settings, spans, embeds, tower, record)
    rest = {name: value for name, value in kwargs.items() if name not in used}
    fewer = {MODALITIES[k]: _fewer(out, k, kinds, keep, embeds, spans, notes) for k, out in _by_kind(outputs)}
    fewer = {name: output for name, output in fewer.items() if output.pooler_output}  # a kind that is all gone
    rows = _rows(keep, real)
    positions = _positions(base, settings, kwargs, real, rows)
    short = {"input_ids": _rows_of(ids, rows, config), "attention_mask": (rows >= 0).to(torch.int64)}
    for name in PER_TOKEN[1:]:
        if isinstance(rest.get(name), Tensor):
            short[name] = rest[name].gather(1, rows.clamp_min(0)) * (rows >= 0)
    if positions is not None:
        short["position_ids"] = positions
    return Shorter({**rest, **short, ENCODED: fewer}, rows)


def _check_call(base: nn.Module, kwargs: dict[str, Any]) -> None:
    if ENCODED not in inspect.signature(type(base).forward).parameters:
        raise ValueError(
            "rules before the decoder need a transformers that takes encoded pictures (5.23 does): update it, or use a "
            "rule within the decoder such as method='mob'"
        )
    cache = kwargs.get("past_key_values")
    if cache is not None and cache.get_seq_length() > 0:
        raise ValueError(
            "a rule before the decoder cannot continue a conversation in a cache: give the whole conversation again, "
            "or use a rule within the decoder such as method='mob'"
        )


def _encode(
    base: nn.Module, kwargs: dict[str, Any], watch: Watch | None
) -> tuple[dict[str, Any], set[str], dict[int, Tokens]]:
    """Features of the call's pictures and videos, by the model's own encoders; the arguments that these used up; and,
    where somebody watches, what the tower says of the features, by kind."""
    outputs: dict[str, Any] = dict(kwargs.get(ENCODED) or {})
    if brings_pictures(kwargs):
        _check_call(base, kwargs)
    if outputs and watch:
        raise ValueError("a rule that looks at the vision tower needs pixels: give pictures that are not encoded yet")
    used, tokens = {ENCODED}, {}
    for method, kind in ENCODERS.items():
        encoder = getattr(base, method, None)
        if encoder is None or MODALITIES[kind] in outputs:
            continue
        known = inspect.signature(encoder).parameters
        mine = {name: kwargs[name] for name in known if name != "kwargs" and kwargs.get(name) is not None}
        used |= set(mine)
        if not any(name.startswith(_PIXELS) for name in mine):
            continue
        with watch.running(mine) if watch else nullcontext() as seen:
            output = outputs[MODALITIES[kind]] = encoder(**mine, return_dict=True)
        if watch:
            tokens[kind] = watch.tokens(seen, method, mine, output)
    return outputs, used, tokens


def _by_kind(outputs: dict[str, Any]) -> Iterable[tuple[int, Any]]:
    return [(kind, outputs[name]) for kind, name in MODALITIES.items() if outputs.get(name) is not None]


def _merge(embeds: Tensor, kinds: Tensor, outputs: dict[str, Any]) -> Tensor:
    """Word embeddings (B, T, d) with the features in the places of their placeholders."""
    for kind, output in _by_kind(outputs):
        here = kinds == kind
        features = flat_features(output)
        if len(features) != int(here.sum()):
            raise ValueError(
                f"the prompt has {int(here.sum())} {MODALITIES[kind]} tokens and the pictures give {len(features)}: "
                "make the prompt with the model's own processor"
            )
        embeds = embeds.masked_scatter(here[..., None], features.to(embeds))
    return embeds


def _fewer(
    output: Any, kind: int, kinds: Tensor, keep: Tensor, embeds: Tensor, spans: Spans, notes: list[list[dict]]
) -> Any:
    """An encoder's output with the features of kept tokens only, a tensor for each picture, its layout noted on it."""
    here = kinds == kind
    mask = keep[here]
    features = embeds[here & keep]
    pictures = _left(kind, kinds, keep, spans, notes)
    sizes = [len(picture.indices) for picture in pictures]
    parts = list(features.split(sizes))
    for part, picture in zip(parts, pictures, strict=True):
        setattr(part, NOTE, picture)
    values = {"last_hidden_state": output.last_hidden_state, "pooler_output": parts}
    if getattr(output, "deepstack_features", None) is not None:
        values["deepstack_features"] = [
            list(torch.cat(list(level))[mask].split(sizes)) for level in output.deepstack_features
        ]
    fewer = type(output)(**values)
    setattr(fewer, _STACKED, isinstance(output.pooler_output, Tensor))
    return fewer


def joined(encoded: dict[str, Any] | None) -> dict[str, Any] | None:
    """Shortened features in the form that the base model's ``forward`` takes: some families want one tensor.

    Until then they are lists, one tensor for each picture, since ``generate`` deals these out to beams.
    """
    out = dict(encoded or {})
    for name, output in out.items():
        if getattr(output, _STACKED, False):
            out[name] = type(output)(**{**output, "pooler_output": torch.cat(list(output.pooler_output))[None]})
    return out or encoded


def _left(kind: int, kinds: Tensor, keep: Tensor, spans: Spans, notes: list[list[dict]]) -> list[Kept]:
    """What is left of every picture of one kind that has tokens left, in order."""
    out = []
    # Newlines that are kept apart belong to their picture, but not to its prunable tokens: they count as kept.
    for row, kept, seen, pictures, note in zip(
        kinds.tolist(), keep.tolist(), spans.seen, spans.originals, notes, strict=True
    ):
        tokens = [at for at, there in enumerate(seen) if there]
        start = 0
        for number, picture in enumerate(pictures):
            mine = tokens[start : start + picture.length]
            indices = tuple(i for i, at in enumerate(mine) if kept[at])
            if mine and row[mine[0]] == kind and indices:
                out.append(Kept(tuple(pictures), number, indices, tuple(map(_frozen, note))))
            start += picture.length
    return out


def _frozen(note: dict) -> tuple:
    return tuple(note.items())


def _rows(keep: Tensor, real: Tensor) -> Tensor:
    """(B, S) places of kept tokens, padded with -1 on the left; where nothing leaves, everything stands as it did."""
    keep = keep & real
    counts = keep.sum(1)
    size, gone = torch.stack([counts.max(), (real.sum(1) - counts).max()]).tolist()  # the device is asked once
    if not gone:
        return torch.arange(keep.shape[1], device=keep.device).expand_as(keep).masked_fill(~real, -1)
    order = keep.to(torch.uint8).sort(dim=1, stable=True).indices[:, -size:]
    padding = torch.arange(size, device=keep.device) < (size - counts)[:, None]
    return order.masked_fill(padding, -1)


def _rows_of(ids: Tensor, rows: Tensor, config: Any) -> Tensor:
    pad = getattr(config.get_text_config(), "pad_token_id", None) or 0
    return ids.gather(1, rows.clamp_min(0)).masked_fill(rows < 0, pad)


def _positions(
    base: nn.Module, settings: MoBConfig, kwargs: dict[str, Any], real: Tensor, rows: Tensor
) -> Tensor | None:
    """Positions of the tokens that are left; None: numbered afresh.

    Multimodal positions (Qwen) are those of the whole prompt, since nothing could compute them from the rest.
    """
    order, fresh = rows.clamp_min(0), ((rows >= 0).cumsum(1) - 1).clamp_min(0)
    given = kwargs.get("position_ids")
    if given is not None and given.ndim == 3:
        short = given.gather(2, order.expand(len(given), -1, -1))
        return short if len(given) == 3 else torch.cat([fresh[None], short[1:]])
    if given is not None:
        return given.expand(len(rows), -1).gather(1, order) if settings.positions == "keep" else fresh
    if hasattr(base, "get_rope_index"):
        whole, _ = base.get_rope_index(
            kwargs["input_ids"], attention_mask=real.to(torch.int64), **_rope_arguments(base, kwargs)
        )
        return torch.cat([fresh[None], whole.gather(2, order.expand(3, -1, -1))])
    if settings.positions != "keep":
        return None
    whole = (real.cumsum(1) - 1).clamp_min(0)
    return whole.gather(1, order)


def _rope_arguments(base: nn.Module, kwargs: dict[str, Any]) -> dict[str, Any]:
    """What a call says of its pictures, videos and sounds, under the names that ``get_rope_index`` has for it."""
    known = set(inspect.signature(base.get_rope_index).parameters) - {"input_ids", "attention_mask"}
    mine = {name: kwargs.get(_ROPE_NAMES.get(name, name)) for name in known}
    if "audio_seqlens" in known and (mask := kwargs.get("feature_attention_mask")) is not None:
        mine["audio_seqlens"] = mask.sum(-1)
    return {name: value for name, value in mine.items() if value is not None}


def brings_pictures(kwargs: dict[str, Any]) -> bool:
    """Whether a call hands over pictures, encoded or not."""
    return any(value is not None and (name == ENCODED or name.startswith(_PIXELS)) for name, value in kwargs.items())


def is_short(kwargs: dict[str, Any]) -> bool:
    """Whether the pictures of a call have been through the stages before the decoder already."""
    encoded = kwargs.get(ENCODED) or {}
    features = [one for output in encoded.values() for one in getattr(output, "pooler_output", None) or ()]
    return any(isinstance(getattr(one, NOTE, None), Kept) for one in features)


class Generate:
    """Stands before ``generate`` of a stock model while pruning is on."""

    def __init__(self, top: nn.Module) -> None:
        self.top = top

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return generate(self.top, type(self.top).generate.__get__(self.top), args, kwargs)


def generate(top: nn.Module, stock: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
    """``stock(*args, **kwargs)`` on a prompt that the innermost active pruning has shortened; the answer as if it had
    not: the whole prompt, then new tokens."""
    active = _active(top)
    if active is None:
        return stock(*args, **kwargs)
    names = list(inspect.signature(GenerationMixin.generate).parameters)[1:]
    given = {**dict(zip(names, args, strict=False)), **kwargs}
    if given.get("inputs") is not None:
        given["input_ids"] = given.pop("inputs")
    shorter = active.shorten(given)
    if shorter is None:
        return stock(*args, **kwargs)
    ids, call = given["input_ids"], dict(shorter.kwargs)
    dropped = ids.shape[1] - call["input_ids"].shape[1]
    for limit in ("max_length", "min_length"):  # these count the prompt
        if call.get(limit) is not None:
            call[limit] -= dropped
    out = stock(**call)
    sequences = out if isinstance(out, Tensor) else out.sequences
    prompts = ids.repeat_interleave(len(sequences) // len(ids), 0).to(sequences.device)
    whole = torch.cat([prompts, sequences[:, call["input_ids"].shape[1] :]], 1)
    if isinstance(out, Tensor):
        return whole
    out.sequences = whole
    return out


def _active(top: nn.Module) -> Any:
    base = getattr(top, top.base_model_prefix, top) if top.base_model_prefix else top
    stack = base.__dict__.get(STATE)
    return stack[-1] if stack else None
