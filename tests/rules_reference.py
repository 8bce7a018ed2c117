"""Slow versions of the rules within the decoder, from their descriptions: one sample, full attention maps, no cache.

``SlowRules`` runs a model's decoder layers by hand like ``SlowDecoder``, with eager attention whose maps it looks at.
Nothing is shared with the package.
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from reference import PER_ROW, SlowDecoder, _added_later, _rows, cosine, shares


@dataclass
class Seen:
    """What a rule sees of one picture (places are in the tokens that are there): everything as float64 arrays."""

    K: int
    visual: list[int]
    prompt: list[int]
    last: int
    before: np.ndarray  # (H, S, S) attention of the layer before
    own: np.ndarray  # of the stage's layer, on what is there now
    keys: np.ndarray  # (S, H d) of the layer before
    hidden: np.ndarray  # (S, d) at the entry of the stage
    normed: np.ndarray
    raters: list[int]  # places of rating prompt tokens
    tables: tuple[np.ndarray, np.ndarray]  # cos and sin (S, D)


def best(scores, count: int) -> list[int]:
    """Places of the highest scores, ties to the first."""
    return sorted(range(len(scores)), key=lambda i: (-scores[i], i))[:count]


def fastv(seen: Seen):
    return best(seen.before.mean(0)[seen.last, seen.visual], seen.K), {}


def pyramiddrop(seen: Seen):
    return best(seen.own.mean(0)[seen.last, seen.visual], seen.K), {}


def dart(seen: Seen):
    norms = np.abs(seen.keys).sum(1)
    N = len(seen.visual)
    pivots = best(norms[seen.visual], min(4, seen.K))
    told = [seen.prompt[i] for i in best(norms[seen.prompt], min(4, seen.K))]
    chosen, rest = list(pivots), [i for i in range(N) if i not in pivots]
    turns = [seen.visual[i] for i in pivots] + told
    left = seen.K - len(chosen)
    numbers = [left // len(turns) + (turn < left % len(turns)) for turn in range(len(turns))]
    for place, number in zip(turns, numbers, strict=True):
        rest.sort(key=lambda i: (cosine(seen.normed[place], seen.normed[seen.visual[i]]), i))
        chosen += rest[:number]
        rest = rest[number:]
    return chosen, {}


def rater_scores(seen: Seen, maps: np.ndarray) -> np.ndarray:
    """(H, N): mean over raters."""
    return np.stack([maps[:, rater][:, seen.visual] for rater in seen.raters]).mean(0)


def sparsevlm_plain(seen: Seen):
    return best(rater_scores(seen, seen.before).mean(0), seen.K), {}


def merged_count(dropped: int) -> tuple[int, int]:
    """(tokens that are merged, tokens that these become)."""
    some = math.floor(3 * dropped / 10) + 1
    return some, some // 10 + 1


def sparsevlm(seen: Seen):
    scores, N = rater_scores(seen, seen.before).mean(0), len(seen.visual)
    fitting = [own for own in range(N) if own + merged_count(N - own)[1] == seen.K]
    own = max(fitting) if fitting else 0
    clusters, order = seen.K - own, best(scores, N)
    spare = sorted(order[own : own + merged_count(N - own)[0]])
    rows = seen.hidden[[seen.visual[i] for i in spare]]
    groups = density_peaks(rows, clusters)
    merges = {spare[c]: [spare[i] for i in members] for c, members in groups.items()}
    return order[:own] + list(merges), merges


def density_peaks(rows: np.ndarray, clusters: int) -> dict[int, list[int]]:
    """Centre -> members."""
    m, width = rows.shape
    distance = [[float(np.linalg.norm(a - b)) / math.sqrt(width) for b in rows] for a in rows]
    density = [math.exp(-np.mean([d * d for d in sorted(row)[:clusters]])) for row in distance]
    farthest = max(max(row) for row in distance)
    score = []
    for i in range(m):
        denser = [j for j in range(m) if (-density[j], j) < (-density[i], i)]
        score.append(density[i] * min([distance[i][j] for j in denser], default=farthest))
    centres = sorted(best(score, clusters))
    out: dict[int, list[int]] = {c: [] for c in centres}
    for i in range(m):
        out[i if i in out else min(centres, key=lambda c: (distance[i][c], c))].append(i)
    return out


def sparsevlm2(seen: Seen):
    maps = seen.before.copy()
    cos, sin = seen.tables
    for t in seen.raters:
        for j in seen.visual:
            maps[:, t, j] /= cos[t] @ cos[j] + sin[t] @ sin[j]
    heads = rater_scores(seen, maps)
    count = max(1, math.floor(len(heads) * 14 / 32 + 0.5))
    return best(heads[best(heads.sum(1), count)].mean(0), seen.K), {}


def find_raters(embeddings: np.ndarray, visual: list[int], prompt: list[int]) -> list[int]:
    mass = np.zeros(len(prompt))
    for v in visual:
        logits = np.array([embeddings[v] @ embeddings[t] for t in prompt])
        shifted = np.exp(logits - logits.max())
        mass += shifted / shifted.sum() / len(visual)
    return [t for t, m in zip(prompt, mass, strict=True) if m > mass.mean()] or list(prompt)


class SlowRules(SlowDecoder):
    """``rule(seen) -> (kept places of the picture's tokens, {kept: members})``; ``plan(N) -> [(layer, left), ...]``."""

    def __init__(self, model, rule, plan, **more):
        super().__init__(model, **more)
        self.rule, self.plan = rule, plan

    @torch.no_grad()
    def run(self, inputs: dict, turns: list[tuple[int, int]], pictures: list[list[int]]) -> Tensor:
        self.dropped, self.kept = set(), [[] for _ in turns]
        given, hidden, layers = self._stock(inputs)
        ids = inputs["input_ids"][0].tolist()
        sees, embeddings = self.attends(ids, turns), hidden.double().numpy()
        added, where = _added_later(given, len(ids))
        present, self.maps, self.keys = list(range(len(ids))), None, None
        plans = [self.plan(sum(lengths)) for lengths in pictures]
        left = [list(lengths) for lengths in pictures]
        for index, layer in enumerate(self.decoder.layers):
            if index in added:
                hidden = hidden.clone()
                hidden[where] += added[index]
            arrived = list(present)
            for turn, (start, end) in enumerate(turns):
                keep = dict(plans[turn]).get(index)
                if keep is None or not left[turn]:
                    continue
                now = [i for i in arrived if i not in self.dropped]
                rows = hidden[[arrived.index(i) for i in now]]
                own = self._look(layer, rows, layers[index], sees, now)[0]
                state = (ids, embeddings, rows, own, arrived, now, layers[index])
                changed = self._stage(turn, start, end, keep, left, state)
                for place, value in changed.items():
                    hidden = hidden.clone()
                    hidden[arrived.index(place)] = value
            present = [i for i in arrived if i not in self.dropped]
            hidden = hidden[[arrived.index(i) for i in present]]
            self.maps, self.keys = self._look(layer, hidden, layers[index], sees, present)
            hidden = self._layer(layer, hidden, layers[index], sees[present][:, present], present)
        norm = getattr(self.decoder, "norm", None) or self.decoder.final_layernorm
        logits = self.model.get_output_embeddings()(norm(hidden))
        for turn, (start, end) in enumerate(turns):
            visual = [i for i in range(start, end) if ids[i] in self.visual_ids]
            self.kept[turn] = [n for n, i in enumerate(visual) if i not in self.dropped]
        return logits[[max([j for j, p in enumerate(present) if p <= i], default=0) for i in range(len(ids))]]

    def _look(self, layer, hidden, given, sees, present) -> tuple[np.ndarray, np.ndarray]:
        """Attention map (H, S, S) and keys (S, H d) of a layer on what is there."""
        seen, keys = [], []
        home = sys.modules[type(layer.self_attn).__module__]
        eager = home.eager_attention_forward

        def watch(module, query, key, *rest, **more):
            keys.append(key)
            seen.append(eager(module, query, key, *rest, **more))
            return seen[-1]

        own = {name: _rows(given[name], present, dim) for name, dim in PER_ROW.items() if name in given}
        here = sees[present][:, present]
        mask = torch.zeros(here.shape, dtype=hidden.dtype).masked_fill(~here, -math.inf)[None, None]
        home.eager_attention_forward = watch
        try:
            layer(hidden[None], **{**given, **own, "attention_mask": mask, "past_key_values": None})
        finally:
            home.eager_attention_forward = eager
        return seen[0][1][0].double().numpy(), keys[0][0].transpose(0, 1).flatten(1).double().numpy()

    def _stage(self, turn, start, end, keep, left, state) -> dict[int, Tensor]:
        """Drop tokens of a turn's pictures; what merged tokens become, by place in the sequence."""
        ids, embeddings, rows, own, arrived, now, given = state
        all_visual = [i for i in range(start, end) if ids[i] in self.visual_ids]
        text = [i for i in range(start, end) if ids[i] not in self.visual_ids]
        after = [i for i in text if i > all_visual[-1]]
        prompt = after or [i for i in text if i > 0]
        last = max(i for i in now if start <= i < end)  # a picture at the end may have lost its last token
        raters = find_raters(embeddings, all_visual, prompt) if after else [last]
        alive = [i for i in all_visual if i not in self.dropped]
        lengths = left[turn] if self.per_picture else [len(alive)]
        parts = shares(keep, lengths) if keep < len(alive) else lengths
        cos, sin = (_rows(part, now, -2)[0].double().numpy() for part in given["position_embeddings"])
        in_before = [arrived.index(i) for i in now]
        norm = getattr(self.decoder, "norm", None) or self.decoder.final_layernorm
        at, changed, first = {i: n for n, i in enumerate(now)}, {}, 0
        for length, K in zip(lengths, parts, strict=True):
            mine = alive[first : first + length]
            first += length
            if length <= K:
                continue
            seen = Seen(
                K,
                [at[i] for i in mine],
                [at[i] for i in prompt],
                at[last],
                self._before(in_before),
                own,
                self.keys[in_before],
                rows.double().numpy(),
                norm(rows).double().numpy(),
                [at[i] for i in raters],
                (cos, sin),
            )
            kept, merges = self.rule(seen) if K else ([], {})
            self.dropped |= {i for n, i in enumerate(mine) if n not in kept}
            for centre, members in merges.items():
                changed[mine[centre]] = rows[[at[mine[i]] for i in members]].mean(0)
        if keep < len(alive):
            left[turn] = parts
        return changed

    def _before(self, places: list[int]) -> np.ndarray:
        """The map of the layer before, of what is there now (what earlier turns drop here was still seen there)."""
        return self.maps[:, places][:, :, places]
