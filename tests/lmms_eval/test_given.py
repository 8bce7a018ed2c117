"""The rule that keeps what it is told."""

from __future__ import annotations

import json

import pytest
import torch

import mob
import tiny
from mob.budget import Budget
from mob.methods import SpanView, create
from mob_lmms_eval import logs


def view(batch=2, N=6):
    return SpanView(torch.randn(batch, N, 4), torch.randn(batch, 3, 4))


def select(options, K=3, N=6):
    return create("given", options).select(view(N=N), Budget(N=N, K=K, K_p=1, k=1))


def test_it_keeps_the_indices():
    kept, centres = select({"indices": [1, 2, 5], "prompt_center": [False, True, False]})
    assert kept.tolist() == [[1, 2, 5]] * 2 and centres.tolist() == [[False, True, False]] * 2
    kept, centres = select({})
    assert kept.tolist() == [[0, 1, 2]] * 2 and not centres.any()


@pytest.mark.parametrize(
    "options, message",
    [
        ({"indices": [1, 2]}, "2 given indices.*K=3 of 6.*per_picture=False"),
        ({"indices": [1, 2, 3], "prompt_center": [True]}, "1 prompt_center"),
        ({"indices": [2, 1, 3]}, "ascending"),
        ({"indices": [1, 1, 3]}, "distinct"),
        ({"indices": [-1, 1, 3]}, "from 0 to 5"),
        ({"indices": [1, 3, 6]}, "from 0 to 5"),
    ],
)
def test_wrong_indices(options, message):
    with pytest.raises(ValueError, match=message):
        select(options)


def test_a_record_fed_back_gives_the_same_pass():
    model = tiny.llava()
    given = tiny.inputs(tiny.TWO, pixels=tiny.pictures(2))
    with mob.prune(model, K=9, layer=3) as first:
        expected = tiny.logits(model, **given)
    (record,) = first.records
    options = {"indices": record.keep_indices, "prompt_center": record.prompt_center}
    again = mob.prune(model, K=9, layer=3, method="given", options=options, per_picture=False)
    with again as second:
        assert torch.equal(tiny.logits(model, **given), expected)
    assert second.records[0].keep_indices == record.keep_indices
    assert second.records[0].prompt_center == record.prompt_center


@pytest.mark.parametrize("more", [{"epsilon": 1.2}, {"epsilon": 2.0}, {"regime": "auto", "tau": 1.3}])
def test_a_log_of_an_adaptive_budget_is_replayed(more, tmp_path):
    """Also where a radius has stopped it before there were as many tokens as prompt centres were asked for."""
    model = tiny.llava()
    given = tiny.inputs(tiny.TWO, pixels=tiny.pictures(2))
    with mob.prune(model, K=24, layer=3, **more) as first:
        expected = tiny.logits(model, **given)
    (record,) = first.records
    entry = {**record.to_dict(), "task": "t", "doc_id": 0, "idx": 0}
    line = {"doc_id": 0, "token_counts": [{logs.FIELD: entry}]}
    (tmp_path / "x_samples_t.jsonl").write_text(json.dumps(line) + "\n")
    again = logs.replays(tmp_path)["t", 0, 0]
    with mob.prune(model, **again) as second:
        assert torch.equal(tiny.logits(model, **given), expected)
    assert second.records[0].keep_indices == record.keep_indices and len(record.keep_indices) == record.K
