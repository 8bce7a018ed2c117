"""What the vision tower knows of each visual token: attention, keys, hidden states; for rules before the decoder.

The tower runs as always, whatever its attention implementation. Hooks pick up queries and keys of one layer, the one
whose output the model projects, and rows of attention are computed from these: the row of the CLS token, or, in towers
without one, blocks of rows that are summed up. No full attention map is made.

From patches to tokens there is a long way (CLS tokens dropped, tiles packed and unpadded, newlines, pooling). It is the
model's own way: its encoder method runs once more on a copy of the model whose tower and projector hand on our numbers.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPooling

from mob.methods import TowerView
from mob.tensors import flat_features

BLOCK = 64  # rows of attention that are in memory at once, where there is no CLS token
_GRID = 2.0**30
_TOWERS = ("vision_tower", "image_tower", "video_tower")


@dataclass
class Tokens:
    """Of every visual token, in order: score and number of its view (NaN for newlines), key and hidden state.

    ``cls``: (views, d_v) or None.
    """

    scores: Tensor
    views: Tensor
    keys: Tensor
    hidden: Tensor
    cls: Tensor | None
    project: Any


class Watch:
    """Stands by while a model's encoder runs, and afterwards says of the features what its tower knew."""

    def __init__(self, base: nn.Module) -> None:
        self.base = base
        self.kind = _Rotary if hasattr(base, "visual") else _Projected

    @contextmanager
    def running(self, arguments: dict[str, Any]) -> Iterator[_Seen]:
        """While one encoder method runs with these arguments."""
        seen = self.kind(self.base, arguments)
        with ExitStack() as stack:
            for handle in seen.hooks():
                stack.callback(handle.remove)
            yield seen

    def tokens(self, seen: _Seen, method: str, arguments: dict[str, Any], output: Any) -> Tokens:
        """Of the features that ``method`` gave. ValueError where they cannot be traced back to the tower."""
        found = seen.tokens(method, arguments)
        count = len(flat_features(output))
        if len(found.scores) != count:
            raise ValueError(
                f"{_name(self.base)} makes {count} tokens of {len(found.scores)} places of its vision tower, in a way "
                f"that is not known: {_INSTEAD}"
            )
        return found


class _Seen:
    """What one run of an encoder left behind. Hooks of other threads' runs are ignored."""

    def __init__(self, base: nn.Module, arguments: dict[str, Any]) -> None:
        self.base, self.arguments = base, arguments
        self.thread = threading.get_ident()
        self.caught: dict[str, Any] = {}

    def note(self, name: str, value: Any) -> None:
        if threading.get_ident() == self.thread:
            self.caught[name] = value

    def __getitem__(self, name: str) -> Any:
        if name not in self.caught:
            raise ValueError(f"{_name(self.base)} ran its tower without hooks, compiled perhaps: {_INSTEAD}")
        return self.caught[name]


# ---------------------------------------------------------------------------------------------------------------
# Towers of pictures of one size, and a projector: CLIP and SigLIP in the LLaVA families


class _Projected(_Seen):
    def hooks(self) -> list:
        towers = {name: getattr(self.base, name) for name in _TOWERS if hasattr(self.base, name)}
        if not towers or not hasattr(self.base, "multi_modal_projector"):
            raise ValueError(f"{_name(self.base)} has no vision tower that is known: {_INSTEAD}")
        chosen = self.arguments.get("vision_feature_layer")
        chosen = getattr(self.base.config, "vision_feature_layer", None) if chosen is None else chosen
        if chosen is None:
            raise ValueError(f"{_name(self.base)} does not say which layer of its tower it projects: {_INSTEAD}")
        self.indices = list(chosen) if isinstance(chosen, (list, tuple)) else [chosen]
        handles = []
        for name, tower in towers.items():
            attention = self._attention(tower)
            handles += [
                attention.q_proj.register_forward_hook(lambda m, a, out: self.note("queries", out)),
                attention.k_proj.register_forward_hook(lambda m, a, out: self.note("keys", out)),
                tower.register_forward_hook(
                    lambda m, a, out, name=name, heads=attention.num_heads: self.note("tower", (name, heads, out))
                ),
            ]
        return handles

    def _attention(self, tower: nn.Module) -> nn.Module:
        """Attention of the layer that gives the features; of several, the last."""
        parts = [part for part in tower.modules() if isinstance(part, nn.ModuleList) and len(part)]
        lists = [layers for layers in parts if _has(layers[0], "self_attn.q_proj", "self_attn.k_proj")]
        if len(lists) != 1:
            raise ValueError(f"{_name(self.base)} has a {type(tower).__name__}, whose layers are not known: {_INSTEAD}")
        count = len(lists[0])
        last = max(index if index >= 0 else count + 1 + index for index in self.indices)
        if not 1 <= last <= count:
            raise ValueError(f"vision_feature_layer={self.indices}: the tower has {count} layers")
        return lists[0][last - 1].self_attn

    def tokens(self, method: str, arguments: dict[str, Any]) -> Tokens:
        name, heads, output = self["tower"]
        tower = getattr(self.base, name)
        queries, keys = (_heads(self[part], heads) for part in ("queries", "keys"))
        has_cls = any(one.endswith(("class_embedding", "cls_token")) for one, _ in tower.named_parameters())
        scores = from_cls(queries, keys) if has_cls else received(queries, keys)
        hidden = [output.hidden_states[index] for index in self.indices]
        number = torch.arange(len(scores), device=scores.device).to(scores)[:, None].expand_as(scores)
        first = torch.zeros_like(scores)  # marks CLS tokens
        first[:, 0] = has_cls
        numbers = torch.cat([torch.stack([scores, number, first], -1), keys.mean(1).to(scores)], -1)
        said = [torch.cat([numbers.to(_wide(one)), one.to(_wide(one))], -1) for one in hidden]
        packed = self._arranged(name, dict(zip(self.indices, said, strict=True)), method, arguments)
        packed = packed.view(len(packed), len(hidden), -1)
        width = numbers.shape[-1]
        scores, views, first = packed[:, 0, :3].unbind(-1)
        beside = has_cls and not bool((first == 1).any())  # and not one of the visual tokens itself (Video-LLaVA)
        cls = torch.cat([one[:, 0] for one in hidden], -1) if beside else None
        keys, states = packed[:, 0, 3:width].nan_to_num(0.0), packed[..., width:].flatten(1).nan_to_num(0.0)
        return Tokens(scores, views, keys, states.to(hidden[0].dtype), cls, self.base.multi_modal_projector)

    def _arranged(self, name: str, said: dict[int, Tensor], method: str, arguments: dict[str, Any]) -> Tensor:
        """Numbers of places in the tower, as numbers of tokens: by the model's own method; NaN for newlines."""
        twin = copy.copy(self.base)  # shares all but the few parts that are exchanged
        twin._modules = {**self.base._modules, name: _Says(said), "multi_modal_projector": _Through()}
        if self.base._parameters.get("image_newline") is not None:
            width = next(iter(said.values())).shape[-1] * len(said)
            newline = torch.full((width,), float("nan"), device=next(iter(said.values())).device)
            twin._parameters = {**self.base._parameters, "image_newline": newline}
        return flat_features(getattr(type(self.base), method)(twin, **arguments, return_dict=True))


class _Says(nn.Module):
    """A tower that has made up its mind."""

    def __init__(self, said: dict[int, Tensor]) -> None:
        super().__init__()
        self.said = said

    def forward(self, *args: Any, **kwargs: Any) -> BaseModelOutputWithPooling:
        return BaseModelOutputWithPooling(hidden_states=self.said)


class _Through(nn.Module):
    """A projector that changes nothing, whatever else it is given."""

    def forward(self, rows: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return rows


# ---------------------------------------------------------------------------------------------------------------
# Towers of pictures of any size, packed into one sequence, with neighbours merged at the end: the Qwen families


class _Rotary(_Seen):
    def hooks(self) -> list:
        visual = self.base.visual
        if not (hasattr(visual, "blocks") and _has(visual.blocks[-1], "attn.qkv") and _has(visual, "merger")):
            raise ValueError(
                f"{_name(self.base)} has a {type(visual).__name__}, whose layers are not known: {_INSTEAD}"
            )
        attention = visual.blocks[-1].attn
        return [
            attention.register_forward_pre_hook(lambda m, a, kw: self.note("given", kw), with_kwargs=True),
            attention.qkv.register_forward_hook(lambda m, a, out: self.note("qkv", out)),
            visual.merger.register_forward_pre_hook(lambda m, a: self.note("hidden", a[0] if a else None)),
        ]

    def tokens(self, method: str, arguments: dict[str, Any]) -> Tokens:
        visual, given = self.base.visual, self["given"]
        together = visual.spatial_merge_size**2
        qkv, hidden = self["qkv"], self["hidden"]
        lengths, rotation = given.get("cu_seqlens"), given.get("position_embeddings")
        if hidden is None or len(hidden) != len(qkv) or lengths is None or rotation is None:
            raise ValueError(f"{_name(self.base)} merges its patches in a way that is not known: {_INSTEAD}")
        queries, keys, _ = qkv.unflatten(-1, (3, visual.blocks[-1].attn.num_heads, -1)).unbind(1)  # (n, heads, d)
        rotated = (_rotate(part, *rotation).transpose(0, 1)[None] for part in (queries, keys))
        sizes = lengths.diff().tolist()
        pieces = zip(*(part.split(sizes, 2) for part in rotated), strict=True)
        scores = torch.cat([received(*piece) for piece in pieces], 1)[0]
        number = torch.arange(len(sizes), device=scores.device).repeat_interleave(lengths.diff().to(scores.device))
        order = self._order(arguments)
        scores, number = (part.unflatten(0, (-1, together)).mean(1) for part in (scores, number.to(scores)))
        keys = keys.mean(1).to(scores).unflatten(0, (-1, together)).mean(1)
        states = hidden.reshape(-1, together * hidden.shape[-1])
        found = scores, number, keys, states
        found = found if order is None else tuple(part[order] for part in found)
        merger, width = visual.merger, hidden.shape[-1]

        def project(rows: Tensor) -> Tensor:
            return merger(rows.reshape(-1, width)).unflatten(0, rows.shape[:-1])

        return Tokens(*found, None, project)

    def _order(self, arguments: dict[str, Any]) -> Tensor | None:
        """Where the merger's rows go, of towers that sort their patches into windows (Qwen2.5-VL)."""
        visual = self.base.visual
        if not hasattr(visual, "window_size"):
            return None
        try:
            from transformers.vision_utils import get_vision_window_index
        except ImportError:
            raise ValueError(f"{_name(self.base)} sorts its patches into windows: {_INSTEAD}") from None
        grid = next(value for name, value in arguments.items() if name.endswith("grid_thw"))
        sizes = visual.spatial_merge_size, visual.window_size, visual.patch_size
        return get_vision_window_index(grid, *sizes)[0].argsort().to(grid.device)


def _rotate(rows: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions, in the halves of each head: (n, heads, d) with (n, d)."""
    first, second = rows.chunk(2, -1)
    turned = torch.cat([-second, first], -1)
    wide = _wide(rows)
    return rows.to(wide) * cos[:, None].to(wide) + turned.to(wide) * sin[:, None].to(wide)


# ---------------------------------------------------------------------------------------------------------------
# Attention, a few rows at a time


def from_cls(queries: Tensor, keys: Tensor) -> Tensor:
    """Attention of the first token to all, mean over heads: (V, heads, T, d) twice -> (V, T), float32 or wider."""
    return _rounded(_rows(queries[:, :, :1], keys).mean(1)[:, 0])


def received(queries: Tensor, keys: Tensor) -> Tensor:
    """Attention that each token gets, mean over heads and all tokens: (V, heads, T, d) twice -> (V, T)."""
    count = queries.shape[2]
    queries, keys = (part.to(_wide(part)) for part in (queries, keys))
    total = sum(_rows(queries[:, :, at : at + BLOCK], keys).mean(1).sum(1) for at in range(0, count, BLOCK))
    return _rounded(total / count)


def _rows(queries: Tensor, keys: Tensor) -> Tensor:
    wide = _wide(queries)
    logits = queries.to(wide) @ keys.to(wide).transpose(-1, -2) * queries.shape[-1] ** -0.5
    return logits.softmax(-1)


def _rounded(scores: Tensor) -> Tensor:
    """On a grid far below 1 / T, so that tokens alike have scores alike whatever the batch."""
    return torch.round(scores * _GRID) / _GRID


def _heads(rows: Tensor, heads: int) -> Tensor:
    """(V, T, heads * d) -> (V, heads, T, d)."""
    return rows.unflatten(-1, (heads, -1)).transpose(1, 2)


def _wide(one: Tensor) -> torch.dtype:
    return torch.promote_types(one.dtype, torch.float32)


def _has(part: nn.Module, *paths: str) -> bool:
    def there(path: str) -> bool:
        one = part
        for name in path.split("."):
            one = getattr(one, name, None)
        return isinstance(one, nn.Module)

    return all(map(there, paths))


def _name(base: nn.Module) -> str:
    return type(base).__name__


_INSTEAD = "use a rule that asks nothing of the tower, such as 'divprune', 'mmtok' or 'mob'"


# ---------------------------------------------------------------------------------------------------------------
# In the places of a batch


@dataclass
class Placed(Tokens):
    """The same in the places of a batch: (B, T), (B, T), (B, T, d_k), (B, T, d_v).

    ``cls`` holds the views of all kinds, one row of NaN for a kind whose CLS tokens are visual tokens themselves.
    """

    def view(self, rows: Tensor, at: Tensor) -> TowerView:
        """Of the tokens at places ``at`` (n, N) in ``rows`` (n, 1)."""
        views = self.views[rows, at]
        placed = ~views.isnan()
        cls = None
        if self.cls is not None:  # a picture without any place keeps the whole batch's first, which nobody asks for
            first = views.masked_fill(~placed, float("inf")).amin(1)
            cls = self.cls[first.nan_to_num(posinf=0).long()]
        scores = self.scores[rows, at].nan_to_num(0.0)
        return TowerView(scores, self.keys[rows, at], self.hidden[rows, at], placed, cls, self.project)


def in_places(kinds: Tensor, found: dict[int, Tokens]) -> Placed:
    """Tokens of pictures and of videos in the places of their placeholders, uint8 (B, T)."""
    numbers, tables, before = {}, [], 0
    width = next((one.cls.shape[1] for one in found.values() if one.cls is not None), None)
    for kind, one in found.items():
        numbers[kind] = (one.views if one.cls is not None else one.views * 0) + before
        if width is not None:
            tables.append(one.hidden.new_full((1, width), float("nan")) if one.cls is None else one.cls)
            before += len(tables[-1])

    parts = {kind: (one.scores, numbers[kind], one.keys, one.hidden) for kind, one in found.items()}
    first = next(iter(parts.values()))
    whole = [part.new_zeros(*kinds.shape, *part.shape[1:], device=kinds.device) for part in first]
    for kind, columns in parts.items():
        for out, rows in zip(whole, columns, strict=True):
            out[kinds == kind] = rows.to(out)
    cls = torch.cat([one.to(kinds.device) for one in tables]) if tables else None
    return Placed(*whole, cls, next(iter(found.values())).project)
