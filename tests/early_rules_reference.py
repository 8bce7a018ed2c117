"""Rules before the decoder as their papers say them, one number at a time."""

from __future__ import annotations

import math

import numpy as np
import torch

from reference import cosine


def slow_cdpruner(visual, words, K, negative=False, theta=None):
    """The next token is the one that makes the determinant of the chosen part of the kernel diag(r) S diag(r) largest,
    which is that of S times all r^2; in logarithms, since r may be too large to write down."""
    n = len(visual)
    r = [np.mean([cosine(v, w) for w in words]) * (-1 if negative else 1) if len(words) else 1.0 for v in visual]
    low, high = min(r), max(r)
    r = [(x - low + 1e-6) / (high - low) if high - low >= 1e-6 else 1.0 for x in r]
    logs = [math.log(x) if theta is None else theta / (2 * (1 - theta)) * x for x in r]
    similar = np.array([[cosine(visual[i], visual[j]) for j in range(n)] for i in range(n)])
    chosen = []

    def worth(i):
        both = [*chosen, i]
        return np.linalg.slogdet(similar[np.ix_(both, both)])[1] + 2 * sum(logs[j] for j in both)

    for _ in range(K):
        chosen.append(max((i for i in range(n) if i not in chosen), key=worth))
    return sorted(chosen)


def slow_cover(rows_and_weights, N, K):
    """``rows_and_weights``: (rows, weight of each column), rows as lists of how well each column covers them."""
    chosen = []

    def gain(j):
        total = 0.0
        for rows, weights in rows_and_weights:
            covered = [max([0.0, *(row[i] for i in chosen)]) for row in rows]
            total += weights[j] * sum(max(0.0, row[j] - there) for row, there in zip(rows, covered, strict=True))
        return total

    while len(chosen) < K:
        chosen.append(max((i for i in range(N) if i not in chosen), key=gain))
    return sorted(chosen)


def slow_scope(view, K, alpha):
    """Cosines on the grid that they are compared on: two tokens that cover each other best gain exactly the same."""
    hidden, scores = view.tower.hidden[0].numpy(), view.tower.scores[0].tolist()
    rows = [[round(cosine(a, b) * 2**20) / 2**20 if a.any() and b.any() else 0.0 for b in hidden] for a in hidden]
    weights = [s**alpha if there else 0.0 for s, there in zip(scores, view.tower.placed[0].tolist(), strict=True)]
    return slow_cover([(rows, weights)], len(hidden), K)


def slow_mmtok(visual, words, K, tau_text, tau_visual, alpha):
    def shares(rows, tau):
        out = []
        for row in rows:
            weights = [math.exp(cosine(row, v) / tau) for v in visual]
            out.append([w / sum(weights) for w in weights])
        return out

    n = len(visual)
    parts = [(shares(visual, tau_visual), [alpha / n] * n)]
    if len(words):
        parts.append((shares(words, tau_text), [1 / len(words)] * n))
    return slow_cover(parts, n, K)


def slow_visionzip(view, K, C, cls=True):
    """{place: feature}, and the places of dominant patches and of targets."""
    tower = view.tower
    scores, keys, hidden = (part[0].numpy() for part in (tower.scores, tower.keys, tower.hidden))
    patches = [i for i, there in enumerate(tower.placed[0].tolist()) if there]
    ranked = sorted(patches, key=lambda i: (-scores[i], i))
    count = K - C - (1 if cls else 0)
    dominant, rest = ranked[:count], sorted(ranked[count:])
    step = max(1, len(rest) // C) if C else 1
    targets = rest[::step][:C]
    members = {t: [] for t in targets}
    for i in rest:
        if i not in targets and targets:
            members[max(targets, key=lambda t: (cosine(keys[i], keys[t]), -t))].append(i)
    out = {i: view.visual[0, i].numpy() for i in dominant}

    def project(row):
        return tower.project(torch.tensor(row)).numpy()

    for target, others in members.items():
        mean = np.mean([hidden[i] for i in others], axis=0) if others else 0
        out[target] = project(hidden[target] + mean)
    if cls:
        place = next(i for i in ranked if i not in dominant and i not in targets)
        out[place] = project(tower.cls[0].numpy())
    return out, dominant, targets
