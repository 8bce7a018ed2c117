"""Slow, obvious versions of everything: Python loops, one sample at a time, no cache, no padding, float64.

Nothing here is shared with the package; where the two agree, both are probably right.
"""

from __future__ import annotations

import itertools
import math

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


class SlowLlava:
    """A LLaVA on Llama written out by hand, that recomputes the whole sequence and drops tokens at one layer.

    Norms and rotary tables are the model's own, because they round to float32 inside and pruning does not touch them.
    ``budget(N) -> (K, K_p, k)`` or None for no pruning; ``later`` holds more of them for other layers.
    """

    def __init__(self, model, budget=None, layer: int = 2, later=None):
        self.model = model
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
        kept, _ = select(rows[visual], rows[prompt], K, K_p, k)
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
