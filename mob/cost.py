"""What a budget really means: mean visual tokens per layer, multiply-accumulates and bytes of KV cache.

One decoder layer on n tokens costs, in multiply-accumulates (width d, MLP width m, g = KV heads / heads)

    2 n d^2 + 2 g n d^2  +  2 n^2 d  +  3 n d m        projections q, o and k, v; scores and values; gated MLP

which is 4nd^2 + 2n^2 d + 3ndm without grouped heads. Attention is counted over the full square, as the field does.
Pruning at layer l leaves l layers with N visual tokens and the rest with K: "K tokens" is never the whole cost.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

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


def cost(config: Any, N: int, K: int, *, layer: int = 2, text: int = 0, bytes_per_number: int = _HALF) -> Cost:
    """Cost of a prefill with N visual and ``text`` text tokens, K visual ones left from ``layer`` on.

    Args:
        config: the model's config, or that of its text decoder.
        bytes_per_number: 2 for float16 and bfloat16 caches, 4 for float32.

    Raises:
        ValueError: K > N, or a layer outside 1 .. layers - 1.
    """
    decoder = Decoder.of(config)
    if not 0 <= K <= N:
        raise ValueError(f"K={K} of N={N}: choose 0 <= K <= N")
    if not 1 <= layer < decoder.layers:
        raise ValueError(f"layer={layer}: this decoder can be pruned at layers 1 to {decoder.layers - 1}")
    early, late = layer, decoder.layers - layer
    full = decoder.layers * decoder.layer_macs(N + text)
    macs = early * decoder.layer_macs(N + text) + late * decoder.layer_macs(K + text)
    per_token = 2 * decoder.kv_heads * decoder.head_width * bytes_per_number
    kv = per_token * (early * (N + text) + late * (K + text))
    return Cost(
        mean_tokens=(early * N + late * K) / decoder.layers,
        macs=macs,
        kv_bytes=kv,
        macs_share=macs / full if full else 1.0,
        kv_share=kv / (per_token * decoder.layers * (N + text)) if N + text else 1.0,
    )


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
