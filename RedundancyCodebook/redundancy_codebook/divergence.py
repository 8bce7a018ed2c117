"""How sure a model is of its next token, and how far two next-token distributions are apart. Pure functions."""

from __future__ import annotations

import math

import torch
from torch import Tensor

DIVERGENCES = ("legacy_mean_reverse", "jsd")
HEAD_TOPK, DIVERGENCE_TOPK = 50, 10


def exact(logits: Tensor) -> Tensor:
    """Logits in float32, or in the float64 that they have."""
    return logits if logits.dtype == torch.float64 else logits.float()


def p_top1(logits: Tensor, topk: int = HEAD_TOPK) -> Tensor:
    """Probability of the likeliest token among the ``topk`` likeliest alone: (..., V) -> (...)."""
    best = exact(logits).topk(min(topk, logits.shape[-1]), dim=-1).values
    return best.softmax(-1)[..., 0]


def divergences(reference: Tensor, other: Tensor, topk: int = DIVERGENCE_TOPK) -> dict[str, Tensor]:
    """Both divergences of next-token logits, over the ``topk`` candidates of the reference: (..., V) each -> (...).

    With p and q the softmax over those candidates alone, and m their mean: "jsd" is the Jensen-Shannon divergence in
    nats, (KL(p|m) + KL(q|m)) / 2. "legacy_mean_reverse" is what the published code computes, and the unit of its
    thresholds: (KL(m|p) + KL(m|q)) / 2, divided by ``topk``.
    """
    reference, other = torch.broadcast_tensors(exact(reference), exact(other))
    places = reference.topk(min(topk, reference.shape[-1]), dim=-1).indices
    p, q = (logits.gather(-1, places).log_softmax(-1) for logits in (reference, other))
    m = torch.logaddexp(p, q) - math.log(2)
    reverse = (_kl(m, p) + _kl(m, q)) / (2 * places.shape[-1])
    return {"legacy_mean_reverse": reverse, "jsd": (_kl(p, m) + _kl(q, m)) / 2}


def _kl(p: Tensor, q: Tensor) -> Tensor:
    """KL(p|q) of log-probabilities; rounding must not make it negative."""
    return (p.exp() * (p - q)).sum(-1).clamp_min(0)
