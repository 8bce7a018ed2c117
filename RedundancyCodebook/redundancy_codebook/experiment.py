"""The experiments on one picture: each tested token alone, left out of its surroundings, and these out of the picture.

Only the logits of the next token are needed, so there is no decoding: every pass is a prefill, batched over patches.
Keys and values of the text before the picture are computed once for a run; where only the end of the picture changes,
those of its beginning come from the pass of the whole picture.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from mob.anatomy import dissect
from redundancy_codebook.divergence import DIVERGENCE_TOPK, DIVERGENCES, HEAD_TOPK, divergences, p_top1
from redundancy_codebook.sampling import window

ABLATIONS = ("pad", "zero", "mean", "delete")
TOKENS_PER_PASS = 8192
LEVELS = ("local", "global")


@dataclass(frozen=True, eq=False)
class Prefix:
    """Keys and values of the beginning of a sequence, (1, heads, length, width) for every layer."""

    states: list[tuple[Tensor, Tensor]]

    @property
    def length(self) -> int:
        return self.states[0][0].shape[2]

    def upto(self, length: int) -> Prefix:
        return Prefix([(k[:, :, :length], v[:, :, :length]) for k, v in self.states])

    def cache(self, rows: int) -> DynamicCache:
        """A cache that begins with these states in every row."""
        cache = DynamicCache()
        for layer, (keys, values) in enumerate(self.states):
            cache.update(keys.expand(rows, -1, -1, -1), values.expand(rows, -1, -1, -1), layer)
        return cache


class Reader:
    """Next-token logits of a language model for sequences that differ in their visual tokens only.

    Args:
        model: a stock model; prunings attached to it do not act here.
        before, after: token ids of the text before and after the picture.
        newline: (1, D) or None: what follows the visual tokens of every input.
        tokens_per_pass: rows are batched up to so many tokens.
    """

    def __init__(
        self,
        model: nn.Module,
        before: Sequence[int],
        after: Sequence[int],
        newline: Tensor | None = None,
        tokens_per_pass: int = TOKENS_PER_PASS,
    ) -> None:
        self._parts = dissect(model)
        self._head = model.get_output_embeddings()
        self.tokens_per_pass = tokens_per_pass
        with torch.inference_mode():
            text = self.embed(after)
            self.tail = text if newline is None else torch.cat([newline.to(text), text])
            self.prefix = self._run(self.embed(before)[None], None)[1]

    @torch.no_grad()
    def embed(self, ids: Sequence[int]) -> Tensor:
        """(n,) -> (n, D)."""
        embed = self._parts.embed
        return embed(torch.tensor(list(ids), device=embed.weight.device))

    def logits(self, visual: Tensor, prefix: Prefix | None = None) -> Tensor:
        """(rows, n, D) visual tokens, one input each -> (rows, V); ``prefix``: instead of the text before."""
        prefix = prefix or self.prefix
        size = max(1, self.tokens_per_pass // (visual.shape[1] + len(self.tail)))
        return torch.cat([self._run(self._with_tail(part), prefix)[0] for part in visual.split(size)])

    def whole(self, visual: Tensor) -> tuple[Tensor, Prefix]:
        """(n, D) -> logits (V,), and the states of text and visual tokens."""
        logits, states = self._run(self._with_tail(visual[None]), self.prefix)
        return logits[0], states.upto(self.prefix.length + len(visual))

    def _with_tail(self, visual: Tensor) -> Tensor:
        return torch.cat([visual.to(self.tail), self.tail.expand(len(visual), -1, -1)], 1)

    @torch.inference_mode()
    def _run(self, embeddings: Tensor, prefix: Prefix | None) -> tuple[Tensor, Prefix]:
        """Logits after the last of (rows, n, D) inputs, and the states of the first row."""
        rows, new = embeddings.shape[:2]
        cache = DynamicCache() if prefix is None else prefix.cache(rows)
        past = 0 if prefix is None else prefix.length
        self._parts.check_window(cache, new)
        positions = torch.arange(past, past + new, device=embeddings.device).expand(rows, -1)
        out = self._parts.decoder(
            inputs_embeds=embeddings, position_ids=positions, past_key_values=cache, use_cache=True
        )
        states = [(layer.keys[:1], layer.values[:1]) for layer in cache.layers]
        return self._head(out.last_hidden_state[:, -1]), Prefix(states)


@dataclass(frozen=True)
class Options:
    """Of the experiments. The published ones are the defaults.

    Attributes:
        repeat: how often the token is given when it is alone.
        head_topk, divergence_topk: candidates among which ``p_top1`` and the divergences are taken.
    """

    repeat: int = 1
    head_topk: int = HEAD_TOPK
    divergence_topk: int = DIVERGENCE_TOPK

    def __post_init__(self) -> None:
        for name, low in (("repeat", 1), ("head_topk", 2), ("divergence_topk", 2)):
            if getattr(self, name) < low:
                raise ValueError(f"{name}={getattr(self, name)}: must be at least {low}")


def replacement(kind: str, features: Tensor, pad: Tensor) -> Tensor | None:
    """(D,): what stands in for a token that is left out: the padding word ``pad`` (D,), zero, or the mean token.

    None for "delete": nothing does, and what follows moves up.
    """
    if kind == "delete":
        return None
    if kind == "pad":
        return pad.to(features)
    if kind == "zero":
        return torch.zeros_like(features[0])
    if kind != "mean":
        raise ValueError(f"ablation={kind!r}: use one of {', '.join(ABLATIONS)}")
    return features.mean(0)


@torch.inference_mode()
def measure(
    reader: Reader,
    features: Tensor,
    grid: tuple[int, int],
    indices: Sequence[int],
    missing: Tensor | None,
    options: Options | None = None,
) -> dict[str, Tensor]:
    """All measurements of the given patches of one picture; each a tensor (n,), on the CPU.

    ``p_top1``: of each token alone. ``local_*``: divergence of a token's surroundings with it and without it.
    ``global_*``: of the picture with and without the token's surroundings.

    Args:
        features: (L, D) projected tokens of one view.
        missing: (D,) what replaces a token that is left out, None for nothing, see ``replacement``.
    """
    options = options or Options()
    windows = torch.tensor([window(index, grid) for index in indices], device=features.device)
    at = torch.tensor(list(indices), device=features.device)
    alone = features[at][:, None].expand(-1, options.repeat, -1)
    out = {"p_top1": p_top1(reader.logits(alone), options.head_topk)}

    around = features[windows]
    without = _left_out(around, windows == at[:, None], missing)
    found = {"local": divergences(reader.logits(around), reader.logits(without), options.divergence_topk)}

    reference, states = reader.whole(features)
    ablated = _without_windows(reader, features, windows, missing, states)
    found["global"] = divergences(reference, ablated, options.divergence_topk)
    out |= {f"{level}_{kind}": found[level][kind] for level in LEVELS for kind in DIVERGENCES}
    return {name: value.cpu() for name, value in out.items()}


def _left_out(rows: Tensor, out: Tensor, missing: Tensor | None) -> Tensor:
    """(rows, n, D) with ``missing`` where ``out`` (rows, n) is true; None: shorter, as many in every row."""
    if missing is not None:
        return torch.where(out[..., None], missing, rows)
    return rows[~out].view(len(rows), -1, rows.shape[-1])


def _without_windows(
    reader: Reader, features: Tensor, windows: Tensor, missing: Tensor | None, states: Prefix
) -> Tensor:
    """Logits (n, V) of the picture without each of the windows (n, 9).

    What comes before the first change is as in the whole picture: windows are sorted by it, and those of one pass
    share the states up to the earliest.
    """
    first = windows[:, 0].tolist()
    order = sorted(range(len(first)), key=lambda i: (-first[i], i))
    text = reader.prefix.length
    logits: dict[int, Tensor] = {}
    while order:
        part, start = _next_part(order, first, lambda begin: len(features) - begin + len(reader.tail), reader)
        order = order[len(part) :]
        rows = features[start:].expand(len(part), -1, -1)
        cut = torch.zeros(rows.shape[:2], dtype=torch.bool, device=rows.device).scatter(1, windows[part] - start, True)
        rows = _left_out(rows, cut, missing)
        for i, one in zip(part, reader.logits(rows, states.upto(text + start)), strict=True):
            logits[i] = one
    return torch.stack([logits[i] for i in range(len(first))])


def _next_part(
    order: list[int], first: list[int], length: Callable[[int], int], reader: Reader
) -> tuple[list[int], int]:
    """As many of the next windows as one pass takes, and where the earliest of them begins."""
    part = order[:1]
    for i in order[1:]:
        if (len(part) + 1) * length(first[i]) > reader.tokens_per_pass:
            break
        part.append(i)
    return part, first[part[-1]]
