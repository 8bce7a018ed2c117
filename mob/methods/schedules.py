"""Schedules of rules with several stages: published for 576 tokens and 32 layers, and what we make of them elsewhere.

A published layer l of 32 is layer l L / 32 of a decoder with L layers, rounded half up. Published counts are shares of
576. Both are ours: the papers say nothing about other models.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

from mob.budget import round_half_up
from mob.methods.base import Depth

PUBLISHED_LAYERS, PUBLISHED_TOKENS = 32, 576


def layers_of(name: str, published: Sequence[int], given: Sequence[int] | None, depth: Depth) -> list[int]:
    """The layers of a rule's stages: ``given`` by the user, or the published ones moved to this depth.

    Where they fall together later ones move up; in a decoder too shallow for all of them the first stages fall away.

    Raises:
        ValueError: the user has asked for one layer.
    """
    if depth.asked is not None:
        raise ValueError(
            f"layer={depth.asked}: {name} prunes at several layers of its own; leave layer (l_idx) unset, or give "
            f"options={{'layers': {list(published)}}}"
        )
    if given is not None:
        return list(given)
    layers: list[int] = []
    for layer in published:
        low = layers[-1] + 1 if layers else depth.first
        layers.append(max(low, round_half_up(Fraction(layer * depth.layers, PUBLISHED_LAYERS))))
    layers = [min(layer, depth.layers - len(layers) + place) for place, layer in enumerate(layers)]
    return [layer for layer in layers if layer >= depth.first]


def check_layers(layers: Sequence[int] | None) -> None:
    """ValueError unless these are ascending layers, or None."""
    if layers is None:
        return
    whole = isinstance(layers, (list, tuple)) and all(
        isinstance(one, int) and one is not True and one > 0 for one in layers
    )
    if not whole or not layers or list(layers) != sorted(set(layers)):
        raise ValueError(f"layers={layers!r}: give a list of ascending layers from 1 on, such as [3, 7, 16]")


def geometric(N: int, K: int, stages: int) -> list[int]:
    """Tokens left after each stage where every stage keeps the same share, K after the last."""
    return [max(K, round_half_up(N * (K / N) ** (number / stages))) for number in range(1, stages)] + [K]


def interpolated(lists: Sequence[Sequence[int]], N: int, K: int) -> list[int]:
    """Tokens left after each stage, K after the last, on straight lines between published lists for 576 tokens.

    The lists (ascending by their last count) are met exactly, in shares of N; below the first all counts shrink with K,
    above the last they grow towards keeping everything.
    """
    points = [[0] * len(lists[0]), *lists, [PUBLISHED_TOKENS] * len(lists[0])]
    last = Fraction(K * PUBLISHED_TOKENS, N)
    low, high = next((a, b) for a, b in zip(points, points[1:], strict=False) if last <= b[-1])
    way = (last - low[-1]) / (high[-1] - low[-1])
    counts = [a + way * (b - a) for a, b in zip(low, high, strict=True)]
    return [max(K, round_half_up(count * N / PUBLISHED_TOKENS)) for count in counts[:-1]] + [K]
