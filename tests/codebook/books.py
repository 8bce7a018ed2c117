"""Slow, obvious versions of what ``redundancy_codebook`` computes, and files as the original release wrote them."""

from __future__ import annotations

import io
import math
import zipfile
from pathlib import Path

import torch
from torch import Tensor

import zoo
from redundancy_codebook.models import Subject, encode

VIEW = (1, 3, 32, 32)
GRID = (4, 4)
FAMILIES = ("llava", "llava_next", "llava_next_video", "llava_onevision")
BEFORE, AFTER = [1, 20, 21], [30, 31, 32, 33]


def subject(family: str, dtype: torch.dtype = torch.float64) -> Subject:
    return Subject(zoo.FAMILIES[family].model(dtype), None, None, family)


def features(one: Subject, seed: int = 0) -> Tensor:
    """(16, D)"""
    return encode(one, zoo.noise(*VIEW, seed=seed)).features


@torch.no_grad()
def slow_logits(model: torch.nn.Module, visual: Tensor, newline: Tensor | None) -> Tensor:
    """(n, D) -> (V,): the whole sequence at once, without a cache, through the language model's own forward."""
    embed = model.get_input_embeddings()
    parts = [embed(torch.tensor(BEFORE)), visual, *([] if newline is None else [newline]), embed(torch.tensor(AFTER))]
    out = model.get_decoder()(inputs_embeds=torch.cat(parts)[None], use_cache=False)
    return model.lm_head(out.last_hidden_state[0, -1])


def slow_window(index: int) -> list[int]:
    """Of a 4 x 4 grid: the 3 x 3 block, among the four that fit, whose middle is nearest."""
    row, column = divmod(index, 4)
    top, left = min((0, 1), key=lambda t: abs(t + 1 - row)), min((0, 1), key=lambda t: abs(t + 1 - column))
    return [(top + i) * 4 + left + j for i in range(3) for j in range(3)]


def slow_p_top1(logits: Tensor, topk: int) -> float:
    best = sorted(logits.tolist(), reverse=True)[:topk]
    return 1 / sum(math.exp(value - best[0]) for value in best)


def slow_divergences(a: Tensor, b: Tensor, topk: int) -> tuple[float, float]:
    """(as published, Jensen-Shannon)"""
    places = sorted(range(len(a)), key=lambda i: -float(a[i]))[:topk]

    def softmax(values):
        exps = [math.exp(float(values[i]) - max(float(values[j]) for j in places)) for i in places]
        return [e / sum(exps) for e in exps]

    p, q = softmax(a), softmax(b)
    m = [(x + y) / 2 for x, y in zip(p, q, strict=True)]

    def kl(x, y):
        return sum(s * math.log(s / t) for s, t in zip(x, y, strict=True))

    return (kl(m, p) + kl(m, q)) / (2 * len(places)), (kl(p, m) + kl(q, m)) / 2


def slow_dpc_knn(rows: Tensor, clusters: int, neighbours: int, noise: list[float]) -> list[int]:
    """Labels, by loops over pairs."""
    n, width = rows.shape
    d = [[math.dist(a, b) / math.sqrt(width) for b in rows.tolist()] for a in rows.tolist()]
    density = []
    for i in range(n):
        near = sorted(d[i])[:neighbours]
        density.append(math.exp(-sum(x * x for x in near) / len(near)) + noise[i])
    farthest = max(map(max, d))
    delta = [min((d[i][j] for j in range(n) if density[j] > density[i]), default=farthest) for i in range(n)]
    centres = sorted(range(n), key=lambda i: -density[i] * delta[i])[:clusters]
    labels = [min(range(len(centres)), key=lambda c: d[i][centres[c]]) for i in range(n)]
    for c, i in enumerate(centres):
        labels[i] = c
    return labels


def slow_recurring(labels: list[int], pictures: list[int], least: int) -> list[int]:
    order = []
    for label in labels:
        if label not in order:
            order.append(label)
    return [c for c in order if len({p for x, p in zip(labels, pictures, strict=True) if x == c}) > least]


# ---------------------------------------------------------------------------------------------------------------
# Released files


def released(path: Path, rows: Tensor, device: str = "cuda:0") -> Path:
    """A file as the original release wrote it: a bare half-precision tensor that requires gradients, saved from a GPU.

    torch.save on this machine tags the storage "cpu"; the tag in the pickle is replaced by another device's.
    """
    buffer = io.BytesIO()
    torch.save(rows.to(torch.float16).requires_grad_(), buffer)
    return rewritten(path, buffer, lambda pickled: _retag(pickled, device))


def _retag(pickled: bytes, device: str) -> bytes:
    old, new = b"X\x03\x00\x00\x00cpu", b"X" + len(device).to_bytes(4, "little") + device.encode()
    assert pickled.count(old) == 1
    return pickled.replace(old, new)


def rewritten(path: Path, buffer: io.BytesIO, change) -> Path:
    """A torch file with another pickle in it."""
    with zipfile.ZipFile(buffer) as source, zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as target:
        for name in source.namelist():
            content = source.read(name)
            target.writestr(name, change(content) if name.endswith("data.pkl") else content)
    return path
