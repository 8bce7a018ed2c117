"""After one look at the input, a pruned pass reads no number of the device: the host runs ahead of it."""

from __future__ import annotations

import contextlib
import dataclasses

import pytest
import torch

import mob
from mob import pruner, spans
from tiny import IMAGE, PATCHES, llava, prompt

SAME = [prompt(1, 20, "image", 30, 31), prompt(1, 21, "image", 32, 33)]


def moved(found: spans.Spans) -> spans.Spans:
    """Masks without values, and what the host knows."""
    masks = {name: getattr(found, name).to("meta") for name in ("real", "visual", "prompt")}
    return dataclasses.replace(found, **masks)


@pytest.mark.parametrize("record", [False, True])
@pytest.mark.parametrize("rows", [SAME[:1], SAME], ids=["one", "two"])
def test_a_pass_reads_the_input_once(rows, record, monkeypatch):
    """Tensors on "meta" have no values: whatever reads one on the host raises."""
    monkeypatch.setattr(torch, "autocast", lambda *a, **k: contextlib.nullcontext())  # meta has no autocast
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
    with mob.prune(model, K=6, K_p=3, k=2, record=record):
        out = model(input_ids=ids.to("meta"), use_cache=True)
        assert looks == ["meta"]
        assert [out.past_key_values.get_seq_length(i) for i in (0, 4)] == [ids.shape[1], ids.shape[1] - PATCHES + 6]
        model(input_ids=ids[:, :1].to("meta"), past_key_values=out.past_key_values)
        assert looks == ["meta"]
