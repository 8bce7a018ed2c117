"""After one look at the input, a pruned pass reads no number of the device: the host runs ahead of it.

Tensors on "meta" stand for those of a device. They have no values, so that whatever reads one on the host raises.
"""

from __future__ import annotations

import contextlib
import dataclasses

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

import mob
from mob import pruner, spans
from mob.methods import METHODS
from tiny import IMAGE, PATCHES, llava, prompt
from views import answer, rule_of, view_of

SAME = [prompt(1, 20, "image", 30, 31), prompt(1, 21, "image", 32, 33)]
WITHIN = sorted(name for name, rule in METHODS.items() if not getattr(rule, "early", False))
# visionzip counts the patches of each picture among its newlines.
READY = sorted(set(METHODS) - {"visionzip"})


class NoBlockingCopies(TorchFunctionMode):
    """Raises where numbers of the host go to the device in a way that waits until it has done all else."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs, name = kwargs or {}, getattr(function, "__name__", "")
        out = function(*args, **kwargs)
        there = isinstance(out, torch.Tensor) and out.is_meta
        made = name in ("tensor", "as_tensor", "new_tensor")
        moved = name in ("to", "cuda") and args[0].device.type == "cpu" and not kwargs.get("non_blocking")
        if (
            there
            and (made or moved)
            or (name in ("__getitem__", "__setitem__") and args[0].is_meta and of_host(args[1]))
        ):
            raise RuntimeError(f"{name} waits for the device")
        return out


def of_host(places):
    """Whether an index must be copied first: a list, or a tensor that is not on the device."""
    lists = any(isinstance(one, list) for one in (places if isinstance(places, tuple) else (places,)))
    return lists or any(isinstance(one, torch.Tensor) and not one.is_meta for one in tree_leaves(places))


@pytest.fixture(autouse=True)
def what_meta_lacks(monkeypatch):
    """Autocast, and the largest of no numbers along a dimension that is not empty."""
    norm = torch.linalg.vector_norm
    monkeypatch.setattr(torch, "autocast", lambda *a, **k: contextlib.nullcontext())
    monkeypatch.setattr(torch.linalg, "vector_norm", lambda x, *a, **k: norm(x, *a, **k) if x.numel() else x[..., :1])


def moved(found: spans.Spans) -> spans.Spans:
    """Masks without values, and what the host knows."""
    masks = {name: getattr(found, name).to("meta") for name in ("real", "visual", "prompt")}
    return dataclasses.replace(found, **masks)


@pytest.mark.parametrize("record", [False, True])
@pytest.mark.parametrize("rows", [SAME[:1], SAME], ids=["one", "two"])
@pytest.mark.parametrize("method", WITHIN)
def test_a_pass_reads_the_input_once(method, rows, record, monkeypatch):
    ids = torch.tensor(rows)
    real, looks = pruner.find_spans, []

    def find(kinds, *rest):
        looks.append(kinds.device.type)
        here = (ids == IMAGE).to(torch.uint8)
        return moved(real(here, torch.ones_like(ids, dtype=torch.bool), *rest[1:]))

    monkeypatch.setattr(pruner, "find_spans", find)
    model = llava(torch.float32).to("meta")
    with pytest.raises(RuntimeError):
        model.lm_head.weight.sum().item()
    centres = {"K_p": 3, "k": 2} if method == "mob" else {}
    with mob.prune(model, K=6, method=method, record=record, **centres):
        out = model(input_ids=ids.to("meta"), use_cache=True)
        assert looks == ["meta"]
        assert [out.past_key_values.get_seq_length(i) for i in (0, 4)] == [ids.shape[1], ids.shape[1] - PATCHES + 6]
        model(input_ids=ids[:, :1].to("meta"), past_key_values=out.past_key_values)
        assert looks == ["meta"]


@pytest.mark.parametrize("rows", [(0,), (0, 1, 2)], ids=["one", "three"])
@pytest.mark.parametrize("name", READY)
def test_a_rule_waits_for_nothing(name, rows, tmp_path):
    rule, view = rule_of(name, tmp_path), view_of(rows, device="meta")
    answer(rule, view)  # a codebook is brought to the device once
    with NoBlockingCopies():
        assert all(part.is_meta for part in answer(rule, view))


@pytest.mark.parametrize(
    "way",
    [
        lambda there: torch.tensor([0, 1], device="meta"),
        lambda there: there.new_tensor([0.0]),
        lambda there: torch.arange(2).to("meta"),
        lambda there: torch.arange(2).to(there.device),
        lambda there: there[[0, 1]],
        lambda there: there[torch.arange(2), 0],
        lambda there: there[..., [0, 1]],
        lambda there: there[0, 0].item(),
        lambda there: there.nonzero(),
    ],
)
def test_ways_to_wait_are_seen(way):
    with NoBlockingCopies(), pytest.raises(RuntimeError):
        way(torch.zeros(3, 3, device="meta"))


def test_ways_not_to_wait_are_let_through():
    there = torch.zeros(3, 3, device="meta")
    with NoBlockingCopies():
        places = torch.tensor([0, 1]).to("meta", non_blocking=True)
        assert there[places, 1:].is_meta and there[0].to(torch.float64).is_meta
        there[0] = 1.0
