"""What a rule may ask of the decoder at its stage: attention of a few rows, keys, normed states, input embeddings.

The layer's own attention module answers. A shallow copy of it runs on the rows that are asked for, with the keys that
the cache holds, under an attention function that hands queries and keys over instead of attending. So whatever a
family does to them (norms, positions, latents, scaling) is done by its own code, the model's kernels stay as they are,
and no map of all rows is ever made. Without a cache (training) the copy runs on all rows, and still attends with few.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface

from mob.anatomy import Anatomy
from mob.methods import needs_of
from mob.plan import PER_TOKEN
from mob.spans import Spans
from mob.tensors import on_device, places_of, take

ATTENTION, OWN_ATTENTION, KEYS, EMBEDDINGS = "attention", "own attention", "keys", "embeddings"
_HANDS_OVER = "mob_hands_over"  # the name of an attention function
_ROWS = 64  # whose attention is computed at a time
_NORMS = ("norm", "final_layernorm", "ln_f")


@dataclass(frozen=True)
class Noted:
    """What entered a decoder layer: hidden states (B, S, d), and the layer's keyword arguments."""

    hidden: Tensor
    kwargs: dict[str, Any]


@dataclass(frozen=True)
class Source:
    """Everything that probes of one stage share.

    Attributes:
        before: what entered the layer before the stage; None where the rule asks for nothing of it.
        here: what enters the stage's own layer, with everything there still.
        bottom: what entered layer 0, None where the rule does not ask for it.
        spans: the whole pass; visual, prompt: bool (B, S), the tokens that arrive at the stage.
    """

    anatomy: Anatomy
    layer: int
    before: Noted | None
    here: Noted
    bottom: Noted | None
    spans: Spans
    visual: Tensor
    prompt: Tensor


@dataclass(frozen=True)
class Probe:
    """The questions that a rule can ask about the n samples of its view. Nothing is computed before it is asked for.

    Attributes:
        samples: rows of the batch, one for each row of the view (a sample with two pictures may be there twice).
        places: (n, N) where the view's visual tokens are; questions: (n, L) where its prompt tokens are.
    """

    source: Source
    samples: Tensor
    places: Tensor
    questions: Tensor

    def attention(self, weights: Tensor | None = None, *, own: bool = False, unbiased: bool = False) -> Tensor:
        """Softmax attention of the layer before, head by head, to the view's visual tokens: float (n, H, N).

        Where a sample has no text after its pictures, its last token asks in any case: earlier ones do not see them.

        Args:
            weights: (n, L), how much each prompt token's row counts; None: the row of the last token alone.
            own: of the stage's own layer, which has not run yet, on what arrives there.
            unbiased: divide each entry by what queries and keys of ones would give at these two positions.
        """
        noted, index = self._noted(own)
        rows, weights = self._rows(weights)
        reader = _Reader(self, noted, index, cached=not own)
        out: Tensor | float = 0.0
        for start in range(0, rows.shape[1], _ROWS):
            some = slice(start, start + _ROWS)
            shares = reader.shares(rows[:, some], self.places)
            if unbiased:
                shares = shares / reader.bias(rows[:, some], self.places)[:, None]
            out = out + (shares * weights[:, None, some, None].to(shares.dtype)).sum(2)
        return out

    def keys(self) -> tuple[Tensor, Tensor]:
        """Keys of the layer before, positions applied, heads side by side: (n, N, Hd) visual, (n, L, Hd) prompt."""
        noted, index = self._noted(False)
        keys = _Reader(self, noted, index, cached=True).keys(self._last())
        return take(keys, self.places), take(keys, self.questions)

    def normed(self) -> tuple[Tensor, Tensor]:
        """What arrives at the stage after the decoder's final norm: (n, N, d) visual, (n, L, d) prompt."""
        decoder = self.source.anatomy.decoder
        norm = next(getattr(decoder, name) for name in _NORMS if hasattr(decoder, name))
        hidden = self.source.here.hidden[self.samples]
        return tuple(norm(take(hidden, at)).to(hidden.device) for at in (self.places, self.questions))

    def embeddings(self) -> tuple[Tensor, Tensor, Tensor]:
        """What entered layer 0: (n, V, d) all visual tokens of the sample in this pass, (n, V) bool which of them are
        real, (n, L, d) prompt."""
        spans, device = self.source.spans, self.samples.device  # layers of a dispatched model are on several
        visual, prompt = (mask.to(device)[self.samples] for mask in (spans.visual, spans.prompt))
        hidden = self.source.bottom.hidden.to(device)[self.samples]
        places = places_of(visual, max(spans.visual_counts))
        return take(hidden, places), visual.gather(1, places), take(hidden, places_of(prompt, self.questions.shape[1]))

    def _noted(self, own: bool) -> tuple[Noted, int]:
        return (self.source.here, self.source.layer) if own else (self.source.before, self.source.layer - 1)

    def _last(self) -> Tensor:
        """(n, 1) place of the last token that is no answer."""
        there = (self.source.visual | self.source.prompt)[self.samples]
        return torch.where(there, torch.arange(there.shape[1], device=there.device), -1).amax(1, keepdim=True)

    def _rows(self, weights: Tensor | None) -> tuple[Tensor, Tensor]:
        """(n, R) places of the tokens that ask, and what each counts."""
        last = self._last()
        if weights is None:
            return last, torch.ones_like(last)
        after = self.source.prompt[self.samples].gather(1, last)  # text is last, so the prompt is what follows
        weights = weights * after
        return torch.cat([self.questions, last], 1), torch.cat([weights, (~after).to(weights.dtype)], 1)


class _Reader:
    """Queries and keys of one layer for the samples of a probe."""

    def __init__(self, probe: Probe, noted: Noted, index: int, cached: bool) -> None:
        self.samples, self.noted = probe.samples, noted
        self.layer = probe.source.anatomy.layers[index]
        self.batch, self.size = noted.hidden.shape[:2]
        cache = noted.kwargs.get("past_key_values")
        held = 0 if cache is None else int(cache.get_seq_length(index))
        self.past = held - self.size if cached and held else held
        self.held = _held(cache, index, self.past + self.size * cached, self.samples)
        if self.past and self.held is None:
            raise ValueError(
                f"a rule that looks at attention cannot go on from a {type(cache).__name__}: use the default cache, or "
                "a rule that looks at hidden states only, such as method='mob'"
            )
        self.whole = self.held is None or not cached  # keys of this pass are not there to be read
        self._all: _HandedOver | None = None

    def shares(self, rows: Tensor, places: Tensor) -> Tensor:
        """Softmax attention of the tokens at ``rows`` (n, R) to those at ``places`` (n, N): (n, H, R, N)."""
        found, query = self._ask(rows)
        rows, places = rows.to(query.device), places.to(query.device)
        with torch.autocast(query.device.type, enabled=False):
            dtype = torch.float64 if query.dtype == torch.float64 else torch.float32
            query, key = query.to(dtype), found.key.to(dtype)
            grouped = query.unflatten(1, (key.shape[1], -1)).flatten(2, 3)  # heads that share a key stand together
            logits = (grouped @ key.transpose(-1, -2)).view(*query.shape[:3], -1)
            logits = logits * (query.shape[-1] ** -0.5 if found.scaling is None else found.scaling)
            if found.softcap is not None:
                logits = torch.tanh(logits / found.softcap) * found.softcap
            shares = self._masked(logits, rows).softmax(-1)
        columns = (places + self.past)[:, None, None].expand(-1, *shares.shape[1:3], -1)
        return shares.gather(3, columns).to(self.samples.device)

    def keys(self, rows: Tensor) -> Tensor:
        """Keys of the tokens of this pass, (n, S, H d); any ``rows`` will do."""
        key = self._ask(rows)[0].key[:, :, self.past :]
        return key.transpose(1, 2).flatten(2).to(self.samples.device)

    def bias(self, rows: Tensor, places: Tensor) -> Tensor:
        """What queries and keys of ones would give between tokens, (n, R, N), by the rotary tables alone.

        A rotation turns ones by the angle of a token, so their product is the sum of cosines of the difference.
        """
        tables = self.noted.kwargs.get("position_embeddings")
        if not (isinstance(tables, tuple) and len(tables) == 2):
            raise ValueError("this model has no rotary tables (cos, sin): use method='sparsevlm', its first version")
        parts = [self._of_samples(table, -3).to(rows.device) for table in tables]
        out = sum(take(part, rows) @ take(part, places).transpose(1, 2) for part in parts)
        return torch.where(out.abs() < 1e-6, torch.full_like(out, 1e-6), out)

    def _ask(self, rows: Tensor) -> tuple[_HandedOver, Tensor]:
        """What the attention module hands over, and the queries of ``rows`` in it."""
        if not self.whole:
            found = self._run(rows)
            return found, found.query
        if self._all is None:
            self._all = self._run(torch.arange(self.size, device=rows.device).expand(len(rows), -1))
        query = self._all.query
        index = rows.to(query.device)[:, None, :, None].expand(-1, query.shape[1], -1, query.shape[-1])
        return self._all, query.gather(2, index)

    def _run(self, rows: Tensor) -> _HandedOver:
        states = self.layer.input_layernorm(take(self.noted.hidden.to(rows.device)[self.samples], rows))
        given = {}
        for name in ("position_embeddings", "position_ids"):
            if (value := self.noted.kwargs.get(name)) is not None:
                dim = -3 if name == "position_embeddings" else -2
                given[name] = PER_TOKEN[name](_map(value, lambda part, dim=dim: self._of_samples(part, dim)), rows=rows)
        given = _map_tensors(given, states.device)
        return _hand_over(self.layer.self_attn, states, given, _Held(self.held, append=self.whole))

    def _of_samples(self, value: Tensor, dim: int) -> Tensor:
        """The view's rows of a tensor with the batch, or one row for all of it, at ``dim``."""
        index = self.samples if value.shape[dim] > 1 else torch.zeros_like(self.samples)
        return value.index_select(dim, index.to(value.device))

    def _masked(self, logits: Tensor, rows: Tensor) -> Tensor:
        """Logits (n, H, R, C) of ``rows``, by the mask that the model made for this layer."""
        mask, width = self.noted.kwargs.get("attention_mask"), logits.shape[-1]
        low = torch.finfo(logits.dtype).min
        if mask is None or (isinstance(mask, Tensor) and mask.ndim == 2):
            at = torch.arange(width, device=logits.device)
            seen = at <= (rows + self.past)[..., None]
            if mask is not None:
                seen = seen & self._of_samples(mask.bool().to(seen.device), 0)[:, None, :width]
            return logits.masked_fill(~seen[:, None], low)
        if not isinstance(mask, Tensor) or mask.ndim != 4:
            raise ValueError(
                f"a rule that looks at attention cannot read a mask of type {type(mask).__name__}: load the model with "
                "attn_implementation='sdpa', 'eager' or a flash-attention implementation"
            )
        mask = self._of_samples(mask, 0)[..., :width].to(logits.device)
        mask = mask.gather(2, rows[:, None, :, None].expand(-1, mask.shape[1], -1, width))
        if mask.dtype == torch.bool:
            return logits.masked_fill(~mask, low)
        return (logits + mask.to(logits.dtype)).clamp_min(low)


def check(anatomy: Anatomy, rule: Any) -> None:
    """ValueError where a model cannot answer what a rule asks."""
    needs, name = set(needs_of(rule)), type(anatomy.top).__name__
    remedy = "use a rule that looks at hidden states only, such as method='mob'"
    if needs & {ATTENTION, OWN_ATTENTION, KEYS}:
        for kind in {type(layer): layer for layer in anatomy.layers}.values():
            attention = getattr(kind, "self_attn", None)
            if not hasattr(kind, "input_layernorm") or not _uses_interface(attention):
                raise ValueError(
                    f"method={rule.name!r} asks for attention, which the layers of {name} compute in a way of their "
                    f"own: {remedy}"
                )
        if (getattr(anatomy.top, "_tp_size", None) or 1) > 1:
            raise ValueError(f"method={rule.name!r} asks for attention of all heads, and they are spread: {remedy}")
    if "normed" in needs and not any(hasattr(anatomy.decoder, norm) for norm in _NORMS):
        raise ValueError(f"method={rule.name!r} asks for the final norm of {name}, which has none: {remedy}")


def _uses_interface(attention: Any) -> bool:
    """Whether an attention module takes its function from transformers' table, by its config."""
    if attention is None or not hasattr(attention, "config"):
        return False
    forward = inspect.unwrap(type(attention).forward)
    return (
        "ALL_ATTENTION_FUNCTIONS" in forward.__globals__ and "past_key_values" in inspect.signature(forward).parameters
    )


def noted_layers(rule: Any, layer: int) -> Iterator[int]:
    """The layers whose input a stage at ``layer`` asks about."""
    needs = needs_of(rule)
    if EMBEDDINGS in needs:
        yield 0
    if ATTENTION in needs or KEYS in needs:
        yield layer - 1


# ---------------------------------------------------------------------------------------------------------------
# The attention function that hands over


class _HandedOver(Exception):
    """Ends the forward pass of an attention module where it would attend. (A return value would not end it.)"""

    def __init__(self, query: Tensor, key: Tensor, scaling: float | None, softcap: float | None) -> None:
        super().__init__("queries and keys were handed over")
        self.query, self.key, self.scaling, self.softcap = query, key, scaling, softcap


def _attend(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *mask: Any, **more: Any) -> None:
    if more.get("s_aux") is not None:
        raise ValueError(f"{type(module).__name__} attends to a sink beside its tokens: use method='mob'")
    raise _HandedOver(query, key, more.get("scaling"), more.get("softcap"))


AttentionInterface.register(_HANDS_OVER, _attend)


class _Config:
    """A config that names another attention function, and is the given one in everything else."""

    _attn_implementation = _HANDS_OVER

    def __init__(self, config: Any) -> None:
        self._config = config

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_config"], name)


class _Held:
    """Stands for the cache: gives what is held already, and keeps nothing."""

    def __init__(self, held: tuple[Tensor, Tensor] | None, append: bool) -> None:
        self.held, self.append = held, append

    def update(self, keys: Tensor, values: Tensor, *rest: Any, **more: Any) -> tuple[Tensor, Tensor]:
        if self.held is None:
            return keys, values
        if not self.append:
            return self.held
        return tuple(torch.cat([old.to(new), new], 2) for old, new in zip(self.held, (keys, values), strict=True))


def _hand_over(attention: nn.Module, states: Tensor, given: dict[str, Any], held: _Held) -> _HandedOver:
    """Queries and keys of an attention module for normed ``states`` (n, R, d). The module itself is not touched."""
    double = copy.copy(attention)
    double.config = _Config(attention.config)
    taken = inspect.signature(type(attention).forward).parameters
    given = {name: value for name, value in given.items() if name in taken}
    try:
        type(attention).forward(double, hidden_states=states, attention_mask=None, past_key_values=held, **given)
    except _HandedOver as found:
        return found
    raise ValueError(
        f"{type(attention).__name__} does not attend by transformers' table of functions: use a rule that looks at "
        "hidden states only, such as method='mob'"
    )


def _held(cache: Any, index: int, length: int, samples: Tensor) -> tuple[Tensor, Tensor] | None:
    """The first ``length`` entries of a cache's layer, keys and values; None where they cannot be read (quantised)."""
    layers = getattr(cache, "layers", None)
    if not length or layers is None or index >= len(layers):
        return None
    pair = (getattr(layers[index], "keys", None), getattr(layers[index], "values", None))
    if any(not isinstance(part, Tensor) or part.ndim != 4 or part.shape[2] < length for part in pair):
        return None
    everything = range(pair[0].shape[0])
    same = samples.device.type == "cpu" and samples.tolist() == list(everything)  # saves a copy where looking is free
    return tuple(part[:, :, :length] if same else part[samples.to(part.device), :, :length] for part in pair)


def _map(value: Any, change: Any) -> Any:
    return tuple(_map(part, change) for part in value) if isinstance(value, tuple) else change(value)


def _map_tensors(given: dict[str, Any], device: torch.device) -> dict[str, Any]:
    return {name: _map(value, lambda part: part.to(device)) for name, value in given.items()}


def probes(source: Source, samples: Sequence[int], places: Tensor, counts: Sequence[int]) -> Probe:
    """The probe of a view of these samples, whose visual tokens are at ``places`` (n, N); ``counts`` are the prompt
    tokens of every sample of the batch."""
    rows = on_device(samples, places.device)
    questions = places_of(source.prompt[rows], max(counts[sample] for sample in samples))
    return Probe(source, rows, places, questions)
