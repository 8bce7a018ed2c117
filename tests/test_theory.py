"""The radii and the change of the logits that ``benchmarks/theory.py`` collects."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import pytest
import torch
from transformers import LlavaForConditionalGeneration

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT / "benchmarks")]

import theory  # noqa: E402

from llava.scenes.checkpoint import PATH  # noqa: E402
from llava.scenes.evaluate import questions  # noqa: E402


@pytest.fixture(scope="module")
def entries():
    model = LlavaForConditionalGeneration.from_pretrained(PATH, dtype=torch.float32).eval()
    return theory.passes(model, questions(2), [22, 195])


def test_a_sweep_of_every_question(entries):
    assert len(entries) == 18 * 2 * len(theory.SHARES)
    assert {entry["K_p"] for entry in entries if entry["K"] == 22} == {0, 3, 6, 8, 11, 14, 17, 19, 22}
    for entry in entries:
        centres = entry["K_p"] > 0
        assert (entry["eps_p"] is not None and 0 <= entry["eps_p"] <= 2) or not centres
        assert 0 < entry["eta"] <= 2 and entry["moved"] >= 0
    nearly_all = [entry["moved"] for entry in entries if entry["K"] == 195 and entry["K_p"] == 0]
    few = [entry["moved"] for entry in entries if entry["K"] == 22 and entry["K_p"] == 0]
    assert sum(nearly_all) < sum(few) / 3  # one token less changes little


def test_the_constant_is_the_least_that_makes_the_bound_true(entries):
    (row, _) = theory.report(entries, "easy")["rows"]
    known = [e for e in entries if e["K"] == 22 and not math.isnan(theory.worst(e))]
    slack = [row["constant"] * (theory.worst(e) + e["eta"]) - e["moved"] for e in known]
    assert min(slack) > -0.01 and min(slack) < 0.01
    assert {(part["questions"], part["asked"]) for part in row["sweep"]} == {("weak", 8), ("strong", 8)}
    assert all(0 <= part["right"] <= 100 for part in row["sweep"])
    json.dumps(row, allow_nan=False)


def test_correlations():
    assert theory.correlation([(1, 10), (2, 100), (3, 1000)]) == 1
    assert theory.correlation([(1, 2), (2, 1)]) is None and theory.correlation([(1, 2), (1, 3), (1, 4)]) is None
    assert math.isnan(theory.worst({"eps_p": None, "eps_v": 0.5}))
    assert theory.worst({"eps_p": 0.7, "eps_v": 0.5}) == 0.7
