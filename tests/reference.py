"""Slow, obvious versions of everything: Python loops, one sample at a time, no cache, no padding, float64.

Nothing here is shared with the package; where the two agree, both are probably right.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

GRID = 2**20


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    """Cosine of two vectors in float64, on the documented grid; 0 for vectors that are zero or not finite."""
    if not (np.isfinite(a).all() and np.isfinite(b).all()) or not a.any() or not b.any():
        return 0.0
    exact = float(a @ b) / math.sqrt(float(a @ a) * float(b @ b))
    return round(exact * GRID) / GRID


def select(visual: np.ndarray, prompt: np.ndarray, K: int, K_p: int, k: int) -> tuple[list[int], list[bool]]:
    """Algorithm 1 by the book: (ascending indices, whether each is a prompt centre)."""
    N = len(visual)
    if K >= N:
        K = N
    proposals: dict[int, float] = {}
    for p in prompt:
        ranking = sorted(range(N), key=lambda v: (-cosine(p, visual[v]), v))
        for v in ranking[:k]:
            proposals[v] = max(proposals.get(v, -9.0), cosine(p, visual[v]))
    centres = sorted(proposals, key=lambda v: (-proposals[v], v))[: min(K_p, K)]
    chosen = list(centres)
    if not chosen:
        units = [v / np.linalg.norm(v) if np.isfinite(v).all() and v.any() else 0 * np.nan_to_num(v) for v in visual]
        mean = np.sum(units, axis=0)
        chosen = [max(range(N), key=lambda v: (1 - cosine(visual[v], mean), -v))]
    while len(chosen) < K:
        rest = [v for v in range(N) if v not in chosen]
        chosen.append(max(rest, key=lambda v: (min(1 - cosine(visual[v], visual[c]) for c in chosen), -v)))
    kept = sorted(chosen)
    return kept, [v in centres for v in kept]


def radius(points: np.ndarray, centres: list[int]) -> float:
    """Largest Euclidean distance of a unit row to its nearest centre."""
    units = points / np.linalg.norm(points, axis=1, keepdims=True)
    return max(min(np.linalg.norm(p - units[c]) for c in centres) for p in units)


def best_radius(points: np.ndarray, fixed: list[int], free: int) -> float:
    """The smallest radius that any ``free`` further centres beside the fixed ones can reach."""
    rest = [i for i in range(len(points)) if i not in fixed]
    return min(radius(points, [*fixed, *extra]) for extra in itertools.combinations(rest, free))


def hausdorff(a: np.ndarray, b: np.ndarray) -> float:
    """Hausdorff distance of two sets of vectors, each normalised."""
    a = [v / np.linalg.norm(v) for v in a]
    b = [v / np.linalg.norm(v) for v in b]
    forth = max(min(np.linalg.norm(x - y) for y in b) for x in a)
    back = max(min(np.linalg.norm(x - y) for x in a) for y in b)
    return max(forth, back)


def shares(total: int, weights: list[int]) -> list[int]:
    """``total`` dealt out in proportion to the weights: rounded down, the rest one by one to the largest remainder."""
    whole = sum(weights)
    out = [total * weight // whole for weight in weights]
    remainders = [total * weight % whole for weight in weights]
    while sum(out) < total:
        best = remainders.index(max(remainders))
        out[best] += 1
        remainders[best] = -1
    return out


def select_pictures(
    visual: np.ndarray, prompt: np.ndarray, lengths: list[int], K: int, K_p: int, k: int, fixed_fold: bool = False
) -> tuple[list[int], list[bool]]:
    """``select`` for each picture on its own, with its share of the budget; ``lengths`` are the pictures' tokens."""
    kept, centres, start = [], [], 0
    if len(visual) <= K:
        return select(visual, prompt, K, K_p, k)
    keep = shares(K, lengths)
    for length, own, own_p in zip(lengths, keep, shares(K_p, keep), strict=True):
        fold = k if fixed_fold or not own_p else max(1, math.floor(k * own_p / K_p + 0.5))
        if own:
            indices, flags = select(visual[start : start + length], prompt, own, own_p, fold)
            kept += [start + i for i in indices]
            centres += flags
        start += length
    return kept, centres


class SlowLlava:
    """A LLaVA on Llama written out by hand, that recomputes the whole sequence and drops tokens at one layer.

    Norms and rotary tables are the model's own, because they round to float32 inside and pruning does not touch them.
    ``budget(N) -> (K, K_p, k)`` or None for no pruning; ``later`` holds more of them for other layers. Pictures of
    ``per_picture`` tokens get a share each, with the same k (``fixed_fold``) or a proportional one; None: no shares.
    """

    def __init__(self, model, budget=None, layer: int = 2, later=None, per_picture=None, fixed_fold: bool = True):
        self.model, self.per_picture, self.fixed_fold = model, per_picture, fixed_fold
        self.budgets = ({} if budget is None else {layer: budget}) | (later or {})
        self.decoder = model.model.language_model
        self.config = self.decoder.config
        self.image_token = model.config.image_token_index
        self.dropped: set[int] = set()
        self.kept: list[list[int]] = []

    @torch.no_grad()
    def embed(self, ids: list[int], pixels: Tensor | None) -> Tensor:
        """(T, d): word embeddings, with the pictures' features in the places of the placeholders."""
        out = self.decoder.embed_tokens(torch.tensor(ids)).clone()
        if pixels is not None and len(pixels):
            features = self.model.get_image_features(pixel_values=pixels).pooler_output
            out[torch.tensor(ids) == self.image_token] = torch.cat(list(features)).to(out.dtype)
        return out

    @torch.no_grad()
    def run(self, ids: list[int], pixels: Tensor | None, starts: list[int], prompt_ends: list[int]) -> Tensor:
        """Logits (T, vocabulary) of the whole sequence.

        ``starts[i]`` and ``prompt_ends[i]`` bound the tokens of turn i that were given at once; what lies between is
        generated. A dropped token reads the logits of the nearest kept token before it.
        """
        self.dropped, self.kept = set(), []
        hidden = self.embed(ids, pixels)
        present = list(range(len(ids)))
        for index, layer in enumerate(self.decoder.layers):
            if index in self.budgets:
                full = torch.zeros(len(ids), hidden.shape[1], dtype=hidden.dtype)
                full[present] = hidden
                for start, end in zip(starts, prompt_ends, strict=True):
                    self._choose(ids, full, start, end, self.budgets[index])
                keep = [i for i in present if i not in self.dropped]
                hidden, present = full[keep], keep
            hidden = self._layer(layer, hidden, present)
        logits = self.model.lm_head(self.decoder.norm(hidden))
        source = [max([j for j, p in enumerate(present) if p <= i], default=0) for i in range(len(ids))]
        return logits[source]

    def _choose(self, ids: list[int], hidden: Tensor, start: int, end: int, budget) -> None:
        visual = [i for i in range(start, end) if ids[i] == self.image_token and i not in self.dropped]
        if not visual:
            self.kept.append([])
            return
        text = [i for i in range(start, end) if ids[i] != self.image_token]
        prompt = [i for i in text if i > visual[-1]] or [i for i in text if i > 0]
        K, K_p, k = budget(len(visual))
        rows = hidden.to(torch.float64).numpy()
        lengths = [self.per_picture] * (len(visual) // self.per_picture) if self.per_picture else [len(visual)]
        kept, _ = select_pictures(rows[visual], rows[prompt], lengths, K, K_p, k, self.fixed_fold)
        self.kept.append(kept)
        self.dropped |= {v for i, v in enumerate(visual) if i not in kept}

    def _layer(self, layer, hidden: Tensor, positions: list[int]) -> Tensor:
        hidden = hidden + self._attention(layer.self_attn, layer.input_layernorm(hidden), positions)
        x = layer.post_attention_layernorm(hidden)
        mlp = layer.mlp
        return hidden + mlp.down_proj(torch.nn.functional.silu(mlp.gate_proj(x)) * mlp.up_proj(x))

    def _attention(self, attention, x: Tensor, positions: list[int]) -> Tensor:
        heads, kv_heads = self.config.num_attention_heads, self.config.num_key_value_heads
        width = self.config.hidden_size // heads
        at = torch.tensor(positions)
        cos, sin = (part[0] for part in self.decoder.rotary_emb(x, at[None]))
        projections = (attention.q_proj, attention.k_proj, attention.v_proj)
        q, k, v = (project(x).reshape(len(at), -1, width) for project in projections)
        out = []
        for head in range(heads):
            shared = head // (heads // kv_heads)
            queries, keys = self._rotate(q[:, head], cos, sin), self._rotate(k[:, shared], cos, sin)
            scores = queries @ keys.T / math.sqrt(width)
            scores = scores.masked_fill(at[None, :] > at[:, None], -math.inf)
            out.append(scores.softmax(-1) @ v[:, shared])
        return attention.o_proj(torch.cat(out, -1))

    @staticmethod
    def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        half = x.shape[-1] // 2
        return x * cos + torch.cat([-x[:, half:], x[:, :half]], -1) * sin

    def generate(self, turns: list[tuple[list[int], Tensor | None, int]]) -> tuple[list[list[int]], list[Tensor]]:
        """Greedy answers to (ids, pixels, new tokens) turn after turn, and the logits (new, vocabulary) of each."""
        ids: list[int] = []
        pixels: list[Tensor] = []
        starts, ends, answers, logits = [], [], [], []
        for turn, picture, new in turns:
            starts.append(len(ids))
            ids = ids + turn
            ends.append(len(ids))
            if picture is not None:
                pixels.append(picture)
            seen = []
            for _ in range(new):
                out = self.run(ids, torch.cat(pixels) if pixels else None, starts, ends)
                seen.append(out[-1])
                ids = [*ids, int(out[-1].argmax())]
            answers.append(ids[ends[-1] :])
            logits.append(torch.stack(seen))
        return answers, logits


class SlowDecoder:
    """Any stock model, one sample at a time, without a cache: its decoder layers called one by one on what is left.

    What enters the layers (embeddings with pictures in place, positions, deepstack) is the model's own, from a stock
    pass over the whole sequence; masks, the choice of tokens and what is dropped where are written out here.
    ``budget(N) -> (K, K_p, k)``, or None for no pruning. ``attends(ids, turns)``, (T, T) bool, says which tokens a
    token sees, where that is not all before it and itself.
    """

    def __init__(
        self,
        model,
        budget=None,
        layer: int = 2,
        fixed_fold: bool = True,
        per_picture: bool = True,
        attends: Callable[[list[int], list[tuple[int, int]]], Tensor] | None = None,
    ):
        self.model, self.budget, self.layer = model, budget, layer
        self.fixed_fold, self.per_picture = fixed_fold, per_picture
        self.attends = attends or (lambda ids, turns: torch.ones(len(ids), len(ids)).tril().bool())
        self.decoder = model.get_decoder()
        names = ("image_token_id", "image_token_index", "video_token_id", "video_token_index")
        self.visual_ids = {getattr(model.config, name, None) for name in names} - {None}
        self.dropped: set[int] = set()
        self.kept: list[list[int]] = []

    def _stock(self, inputs: dict) -> tuple[dict, Tensor, list[dict]]:
        """A stock pass: the keyword arguments of the text decoder, what enters its first layer, and the keyword
        arguments of each layer."""
        decoder, first, layers = {}, [], []

        def note(layer, args, kwargs):
            first.append(args[0])
            layers.append(kwargs)

        hooks = [layer.register_forward_pre_hook(note, with_kwargs=True) for layer in self.decoder.layers]
        hooks.append(self.decoder.register_forward_pre_hook(lambda m, a, kw: decoder.update(kw), with_kwargs=True))
        try:
            self.model(**inputs, use_cache=False)
        finally:
            for hook in hooks:
                hook.remove()
        return decoder, first[0][0], layers

    @torch.no_grad()
    def run(self, inputs: dict, turns: list[tuple[int, int]], pictures: list[list[int]]) -> Tensor:
        """Logits (T, vocabulary) of one sample.

        ``turns[i]`` are the first and one past the last token given at once in turn i (what follows is generated), and
        ``pictures[i]`` the lengths of its pictures. A dropped token reads the nearest kept token before it.
        """
        self.dropped, self.kept = set(), []
        given, hidden, layers = self._stock(inputs)
        ids = inputs["input_ids"][0].tolist()
        sees = self.attends(ids, turns)
        added, where = _added_later(given, len(ids))
        present = list(range(len(ids)))
        for index, layer in enumerate(self.decoder.layers):
            if index in added:
                hidden = hidden.clone()
                hidden[where] += added[index]
            if index == self.layer and self.budget is not None:
                for (start, end), lengths in zip(turns, pictures, strict=True):
                    self._choose(ids, hidden, start, end, lengths)
                present = [i for i in range(len(ids)) if i not in self.dropped]
                hidden = hidden[present]
            hidden = self._layer(layer, hidden, layers[index], sees[present][:, present], present)
        norm = getattr(self.decoder, "norm", None) or self.decoder.final_layernorm
        logits = self.model.get_output_embeddings()(norm(hidden))
        return logits[[max([j for j, p in enumerate(present) if p <= i], default=0) for i in range(len(ids))]]

    def _layer(self, layer, hidden: Tensor, given: dict, sees: Tensor, present: list[int]) -> Tensor:
        own = {name: _rows(given[name], present, dim) for name, dim in PER_ROW.items() if name in given}
        mask = torch.zeros(sees.shape, dtype=hidden.dtype).masked_fill(~sees, -math.inf)[None, None]
        kwargs = {**given, **own, "attention_mask": mask, "past_key_values": None}
        out = layer(hidden[None], **kwargs)
        return (out[0] if isinstance(out, tuple) else out)[0]

    def _choose(self, ids: list[int], hidden: Tensor, start: int, end: int, lengths: list[int]) -> None:
        visual = [i for i in range(start, end) if ids[i] in self.visual_ids]
        if not visual:
            self.kept.append([])
            return
        text = [i for i in range(start, end) if ids[i] not in self.visual_ids]
        prompt = [i for i in text if i > visual[-1]] or [i for i in text if i > 0]
        assert sum(lengths) == len(visual), (lengths, len(visual))
        rows = hidden.to(torch.float64).numpy()
        lengths = lengths if self.per_picture else [len(visual)]
        kept, _ = select_pictures(rows[visual], rows[prompt], lengths, *self.budget(len(visual)), self.fixed_fold)
        self.kept.append(kept)
        self.dropped |= {v for i, v in enumerate(visual) if i not in kept}

    def generate(self, turns: list[tuple[dict, list[int], int]]) -> tuple[list[list[int]], list[Tensor]]:
        """Greedy answers to (inputs, picture lengths, new tokens) turn after turn, and the logits (new, vocabulary).

        ``inputs`` hold one sample, (1, T) ids and what belongs to their pictures; later turns are appended.
        """
        whole: dict = {}
        spans, pictures, answers, logits = [], [], [], []
        for inputs, lengths, new in turns:
            start = whole["input_ids"].shape[1] if whole else 0
            whole = _append(whole, inputs)
            spans.append((start, whole["input_ids"].shape[1]))
            pictures.append(lengths)
            seen = []
            for _ in range(new):
                seen.append(self.run(whole, spans, pictures)[-1])
                whole = _append(whole, {"input_ids": seen[-1].argmax()[None, None]})
            answers.append(whole["input_ids"][0, spans[-1][1] :].tolist())
            logits.append(torch.stack(seen))
        return answers, logits


PER_TOKEN = ("input_ids", "attention_mask", "mm_token_type_ids", "token_type_ids", "moe_mm_token_type_ids")
PER_ROW = {"position_embeddings": -2, "position_ids": -1, "moe_mm_token_type_ids": -1}  # where their tokens lie


def _added_later(given: dict, length: int) -> tuple[dict[int, Tensor], Tensor | None]:
    """Features that a decoder adds to its visual tokens before layers above 0, by layer, and where: bool (T,)."""
    if given.get("deepstack_visual_embeds") is not None:  # Qwen3-VL: after layers 0, 1, ...
        added = {index + 1: features for index, features in enumerate(given["deepstack_visual_embeds"])}
        return added, given["visual_pos_masks"].view(length)
    if given.get("deepstack_features") is not None:  # Granite 4 Vision, where layer 0 has had its own already
        added = {layer: features for layer, features in given["deepstack_features"].items() if layer}
        return added, given["vision_mask"].view(length, -1)[:, 0]
    return {}, None


def _rows(value, present: list[int], dim: int):
    """The entries of the tokens that are still there."""
    if isinstance(value, tuple):
        return tuple(_rows(part, present, dim) for part in value)
    return None if value is None else value.index_select(dim, torch.tensor(present))


def _append(whole: dict, more: dict) -> dict:
    """One sample's inputs then more of it; what is per token grows along it, the rest has one entry per picture."""
    out = dict(whole)
    new = more["input_ids"].shape[1]
    for name in whole.keys() | more.keys():
        if name in PER_TOKEN:
            rest = torch.ones if name == "attention_mask" else torch.zeros
            before = whole.get(name, rest(1, 0, dtype=torch.int64))
            after = more.get(name, rest(1, new, dtype=torch.int64))
            out[name] = torch.cat([before, after], 1)
        elif name in more:
            out[name] = torch.cat([whole[name], more[name]]) if name in whole else more[name]
    return out
