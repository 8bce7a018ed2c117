"""The radii and the change of the logits that ``benchmarks/theory.py`` collects."""

from __future__ import annotations

import gzip
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

RESULTS = ROOT / "benchmarks" / "results"
PLACE = ("scene", "task", "K", "K_p")


@pytest.fixture(scope="module")
def model():
    return LlavaForConditionalGeneration.from_pretrained(PATH, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def entries(model):
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


@torch.inference_mode()
def test_what_comes_before_the_pruning_is_shared_and_changes_nothing(model, entries):
    (_, inputs), *_ = theory.batches(questions(2), 50)
    plain = theory.changes(model, inputs, [theory.MoBConfig(K=22, K_p=11, k=11, l_idx=2)])
    ((_, records, moved, right),) = plain
    same = [entry for entry in entries if (entry["K"], entry["K_p"]) == (22, 11)]
    assert [entry["moved"] for entry in same] == moved and [entry["right"] for entry in same] == right
    assert [entry["eps_v"] for entry in same] == [record.eps_v for record in records]

    calls = []
    inside = next(model.model.vision_tower.children())
    hook = inside.register_forward_hook(lambda *_: calls.append(1))
    theory.passes(model, questions(1)[:2], [22])
    hook.remove()
    assert len(calls) == 1 and "forward" not in vars(model.model.vision_tower)


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


def test_a_line_for_every_question_and_setting(entries, tmp_path):
    plain, packed = tmp_path / "samples.jsonl", tmp_path / "new" / "samples.jsonl.gz"
    theory.write_samples(plain, entries)
    theory.write_samples(packed, entries)
    assert gzip.decompress(packed.read_bytes()) == plain.read_bytes() and packed.stat().st_size < 40_000
    lines = {tuple(line[name] for name in PLACE): line for line in map(json.loads, plain.read_text().splitlines())}
    assert len(lines) == len(entries)
    for entry in entries:
        line = lines[tuple(entry[name] for name in PLACE)]
        assert set(line) == {*PLACE, "eta", "eps_p", "eps_v", "bound", "moved", "right"}
        assert line["right"] == entry["right"] and line["moved"] == pytest.approx(entry["moved"], abs=0.006)
        if entry["K_p"] in (0, entry["K"]):
            assert line["bound"] is None and line["eps_v" if entry["K_p"] else "eps_p"] is None
        else:
            assert line["bound"] == pytest.approx(max(line["eps_p"], line["eps_v"]) + line["eta"], abs=0.002)


def made(task: str, K: int, K_p: int, eps_p: float, eps_v: float, moved: float = 1.0) -> dict:
    return {
        "scene": 0, "task": task, "K": K, "K_p": K_p, "eta": 1.0, "eps_p": eps_p, "eps_v": eps_v, "moved": moved,
        "right": True,
    }  # fmt: skip


def test_correlations_within_a_kind_are_not_those_between_kinds():
    weak = [made("exist", 8, 4, 0.1 * n, 0.1, moved=-n + 10) for n in range(1, 5)]
    strong = [made("bgcolour", 8, 4, 1 + 0.1 * n, 0.1, moved=-n + 20) for n in range(1, 5)]
    (row,) = theory.report(weak + strong, "easy")["rows"]
    assert row["spearman"]["eps_p"] > 0.4
    for kind in ("weak", "strong"):
        assert row["kinds"][kind]["spearman"]["eps_p"] == -1
    assert row["kinds"]["weak"]["constant"] < row["kinds"]["strong"]["constant"] == row["constant"]


def test_a_power_law_is_found():
    fit = theory.power([(n, 3 * n**-0.5) for n in (1, 2, 4, 40)] + [(80, 0.0)])
    assert fit == {"slope": 0.5, "constant": 3, "least": 3, "r2": 1}
    above = theory.power([(1, 1), (1, 4), (2, 1), (2, 4)])
    assert above["slope"] == 0 and above["constant"] == 2 and above["least"] == 4
    assert (
        theory.power([(3, 1), (3, 2)]) is None and theory.power([(1, 2), (2, 2)]) is None and theory.power([]) is None
    )


def test_theorem_1_is_true_of_every_entry_and_of_no_larger_constant(entries):
    found = theory.report(entries, "easy")["terms"]["weak"]
    slope = found["fits"]["eps_v alone"]["slope"]
    weak = [e for e in entries if e["task"] in theory.SPLITS["easy"].weak and not math.isnan(theory.worst(e))]
    first = [theory.worst(e) ** 2 / (found["D1"] * e["K"] ** (-2 * slope)) for e in weak]
    second = [theory.worst(e) ** 2 / (found["D2"] * e["eta"] ** 2) for e in weak]
    assert slope > 0 and min(first) == pytest.approx(1, abs=1e-3) and min(second) == pytest.approx(1, abs=1e-3)
    assert all(0 < row["share"] <= 1 for row in found["rows"])
    for row in found["rows"]:
        left = [theory.worst(e) ** 2 for e in weak if e["K"] == row["K"]]
        flat = sum(min(theory.worst(e) ** 2 for e in weak) / value for value in left) / len(left)
        assert row["flat"] == pytest.approx(flat, abs=1e-4)


def test_where_the_terms_of_theorem_2_are_equal():
    entries = [made("exist", 20, n, n**-0.5, 2 * (20 - n) ** -0.5) for n in range(1, 20)]
    entries += [made("exist", K, 0, None, 2 * K**-0.5) for K in (20, 10)]
    found = theory.theorems(entries)
    assert found["fits"]["eps_p"]["slope"] == found["fits"]["eps_v alone"]["slope"] == 0.5
    assert found["rows"][0]["equal"] == 4  # 4^-0.5 = 2 * 16^-0.5
    assert theory.theorems([e | {"eps_v": e["eps_v"] / 100} for e in entries])["rows"][0]["equal"] is None


@pytest.mark.parametrize("split", ["easy", "crowded"])
def test_the_records_that_are_published_give_the_published_numbers(split):
    published = json.loads((RESULTS / f"theory-{split}.json").read_text())
    lines = gzip.decompress((RESULTS / f"theory-{split}-samples.jsonl.gz").read_bytes()).decode().splitlines()
    again = theory.report([json.loads(line) for line in lines], split)
    for row, same in zip(published["rows"], again["rows"], strict=True):
        assert [part["right"] for part in row["sweep"]] == [part["right"] for part in same["sweep"]]
        for part, other in ((row, same), *((row["kinds"][name], same["kinds"][name]) for name in ("weak", "strong"))):
            assert other["spearman"] == pytest.approx(part["spearman"], abs=0.005)
    for kind, terms in published["terms"].items():
        assert again["terms"][kind]["D2"] == pytest.approx(terms["D2"], rel=0.01)
        for name, fit in terms["fits"].items():
            assert again["terms"][kind]["fits"][name] == pytest.approx(fit, rel=0.02, abs=0.002)


@pytest.mark.parametrize("K", ["1", "196"])
def test_budgets_without_a_choice_are_refused(K, tmp_path, capsys):
    with pytest.raises(SystemExit):
        theory.main(["--json", str(tmp_path / "new.json"), "--K", "22", K])
    assert "--K needs numbers from 2" in capsys.readouterr().err
