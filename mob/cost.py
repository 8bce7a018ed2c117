"""What a budget really means: mean visual tokens per layer, multiply-accumulates and bytes of KV cache.

One decoder layer on n tokens costs, in multiply-accumulates (width d, MLP width m, g = KV heads / heads)

    2 n d^2 + 2 g n d^2  +  2 n^2 d  +  3 n d m        projections q, o and k, v; scores and values; gated MLP

which is 4nd^2 + 2n^2 d + 3ndm without grouped heads. Attention is counted over the full square, as the field does.
Pruning at layer l leaves l layers with N visual tokens and the rest with K: "K tokens" is never the whole cost.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

from mob.methods import create
from mob.methods.base import Depth, is_early
from mob.stages import schedule

# Bytes per number in the KV cache.
_HALF = 2


@dataclass(frozen=True)
class Cost:
    """Cost of one prefill.

    Attributes:
        mean_tokens: visual tokens per layer, averaged over the layers.
        macs: multiply-accumulates of all decoder layers, text tokens included; no vision tower, no output head.
        kv_bytes: KV cache after prefill.
        macs_share, kv_share: the same as shares of the unpruned prefill.
    """

    mean_tokens: float
    macs: float
    kv_bytes: int
    macs_share: float
    kv_share: float

    def to_dict(self) -> dict[str, float]:
        return asdict(self)


@dataclass(frozen=True)
class Decoder:
    """The numbers of a text config that cost depends on."""

    layers: int
    width: int
    mlp: int
    heads: int
    kv_heads: int
    head_width: int
    vocabulary: int

    @classmethod
    def of(cls, config: Any) -> Decoder:
        """From a transformers config; the text part is found by itself."""
        text = config.get_text_config() if hasattr(config, "get_text_config") else config
        heads = text.num_attention_heads
        return cls(
            layers=text.num_hidden_layers,
            width=text.hidden_size,
            mlp=text.intermediate_size,
            heads=heads,
            kv_heads=getattr(text, "num_key_value_heads", None) or heads,
            head_width=getattr(text, "head_dim", None) or text.hidden_size // heads,
            vocabulary=text.vocab_size,
        )

    def layer_macs(self, n: int) -> float:
        """Multiply-accumulates of one layer on n tokens."""
        attention = self.heads * self.head_width
        projections = 2 * n * self.width * (attention + self.kv_heads * self.head_width)
        return projections + 2 * n**2 * attention + 3 * n * self.width * self.mlp

    def parameters(self) -> int:
        """Weights of the decoder, embedding and output head; norms left out."""
        attention = 2 * self.width * (self.heads + self.kv_heads) * self.head_width
        return self.layers * (attention + 3 * self.width * self.mlp) + 2 * self.vocabulary * self.width


def cost(
    config: Any,
    N: int,
    K: int | None = None,
    *,
    layer: int = 2,
    stages: Sequence[tuple[int, int]] | None = None,
    text: int = 0,
    bytes_per_number: int = _HALF,
) -> Cost:
    """Cost of a prefill with N visual and ``text`` text tokens, K visual ones left from ``layer`` on.

    Args:
        config: the model's config, or that of its text decoder.
        stages: instead of K and ``layer``: (layer, visual tokens left from it on), ascending by layer.
        bytes_per_number: 2 for float16 and bfloat16 caches, 4 for float32.

    Raises:
        ValueError: K > N, or a layer outside 1 .. layers - 1.
    """
    decoder = Decoder.of(config)
    if (K is None) == (stages is None):
        raise ValueError("give K, or stages=[(layer, tokens left), ...]")
    stages = [(layer, K)] if stages is None else list(stages)
    for at, left in stages:
        if not 0 <= left <= N:
            raise ValueError(f"K={left} of N={N}: choose 0 <= K <= N")
        if not 1 <= at < decoder.layers:
            raise ValueError(f"layer={at}: this decoder can be pruned at layers 1 to {decoder.layers - 1}")
    runs = _runs(N, stages, decoder.layers)
    full = decoder.layers * decoder.layer_macs(N + text)
    macs = sum(count * decoder.layer_macs(n + text) for count, n in runs)
    per_token = 2 * decoder.kv_heads * decoder.head_width * bytes_per_number
    kv = per_token * sum(count * (n + text) for count, n in runs)
    return Cost(
        mean_tokens=mean_tokens(N, stages, decoder.layers),
        macs=macs,
        kv_bytes=kv,
        macs_share=macs / full if full else 1.0,
        kv_share=kv / (per_token * decoder.layers * (N + text)) if N + text else 1.0,
    )


def mean_tokens(N: int, stages: Sequence[tuple[int, int]], layers: int) -> float:
    """Visual tokens per layer, averaged over all ``layers``: N until the first stage, what a stage leaves from it on.

    Args:
        stages: (layer, tokens left), ascending by layer; layer 0 for a rule before the decoder.
    """
    return sum(count * n for count, n in _runs(N, stages, layers)) / layers


def _runs(N: int, stages: Sequence[tuple[int, int]], layers: int) -> list[tuple[int, int]]:
    """(number of layers, visual tokens in each of them)."""
    starts = [(0, N), *stages, (layers, 0)]
    if [at for at, _ in starts] != sorted(at for at, _ in starts):
        raise ValueError(f"stages={list(stages)}: layers must go up, to {layers - 1} at most")
    return [(end - start, n) for (start, n), (end, _) in pairwise(starts)]


def keep_for_mean(
    method: str,
    N: int,
    mean: float,
    layers: int,
    *,
    options: Mapping[str, Any] | None = None,
    layer: int | None = None,
    first: int = 1,
) -> int:
    """The K with which a rule has a mean of at most ``mean`` visual tokens a layer, and as near to it as can be.

    K is what is left after a rule's last stage, so rules at equal K differ in what they cost; this is for comparing
    them at equal means.

    Args:
        method: name of one rule; options: its options, which may move its layers.
        layers: of the decoder; first: the lowest that may be pruned; layer: as ``MoBConfig.l_idx``.

    Raises:
        ValueError: even one token kept costs more.
    """
    rule = create(method, options)
    if is_early(rule):
        means = {K: float(K) for K in range(1, N + 1)}
    else:
        depth = Depth(layers, first, layer)
        means = {K: mean_tokens(N, schedule(rule, N, K, depth) if K < N else [], layers) for K in range(1, N + 1)}
    fitting = [K for K in means if means[K] <= mean]
    if not fitting:
        raise ValueError(
            f"method={method!r} cannot come down to {mean:g} tokens a layer, at K=1 it has {means[1]:.1f} of {N}: "
            "prune at earlier layers"
        )
    return max(fitting, key=lambda K: (means[K], -K))


def paper_forward_flops(config: Any, tokens: int, text: int = 10) -> float:
    """The "forward" rows of the paper's table 7: 2 x parameters x tokens, FLOPs.

    That is what its printed digits are: with 7.0e9 parameters it gives all eight of them exactly, with the 6.7e9 of
    Vicuna-7B within 4 %. It leaves out the square of attention, and ``tokens`` are those of the pruned layers only,
    so compare budgets by ``cost``, not by this.
    """
    return 2.0 * Decoder.of(config).parameters() * (tokens + text)


def paper_selection_flops(N: int, K: int, text: int = 10, width: int = 4096) -> float:
    """The "mob" rows of table 7: N (L + K) d."""
    return float(N * (text + K) * width)
