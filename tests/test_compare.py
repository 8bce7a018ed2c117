"""The comparison of rules: what is asked, what equal means are, and that it goes on where it was stopped."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT / "benchmarks")]

import compare  # noqa: E402
import compare_tables  # noqa: E402

LAYERS = 6


def test_budgets_are_the_shares_of_the_issue():
    assert compare.BUDGETS == (65, 44, 22, 11)


def test_every_rule_is_asked_at_equal_K_and_at_equal_mean():
    methods = compare.rules(Path("codebook.safetensors"))
    assert {"mob", "fastv", "pyramiddrop", "visionzip", "early-random", "divprune+mob", "codebook"} <= set(methods)
    found = compare.ways(methods, [22], LAYERS)
    assert [way.K for way in found if way.by == "K"] == [22] * len(methods)
    mean = (2 * 196 + 4 * 22) / 6
    assert compare.mean_of("mob", 22, LAYERS) == pytest.approx(mean)
    at_mean = {way.method: way.K for way in found if way.by == "mean"}
    assert at_mean["mob"] == at_mean["fastv"] == 22  # prune where MoB does
    assert at_mean["divprune"] == at_mean["early-random"] == math.floor(mean)
    for method, K in at_mean.items():
        assert compare.mean_of(method, K, LAYERS) <= mean < compare.mean_of(method, K + 1, LAYERS), method


def test_a_rule_that_cannot_come_down_is_asked_at_equal_K_only(monkeypatch):
    def never(*args, **kwargs):
        raise ValueError("cannot come down")

    monkeypatch.setattr(compare, "keep_for_mean", never)
    assert [(way.method, way.by) for way in compare.ways(["fastv"], [9], LAYERS)] == [("fastv", "K")]


def test_mcnemar_is_the_exact_binomial():
    a = [True] * 9 + [False] * 3 + [True] * 20 + [False] * 7
    b = [False] * 9 + [True] * 3 + [True] * 20 + [False] * 7
    by_hand = 2 * sum(math.comb(12, k) for k in range(4)) / 2**12
    assert compare.mcnemar(a, b) == compare.mcnemar(b, a) == pytest.approx(by_hand)
    assert compare.mcnemar(a, a) == 1.0


@pytest.mark.may_skip("rules before the decoder need a newer transformers than the oldest that is supported")
def test_it_goes_on_where_it_was_stopped(tmp_path, monkeypatch, capsys):
    pytest.importorskip("transformers", minversion="5.20")  # where rules before the decoder work
    words = [
        "--n",
        "2",
        "--K",
        "22",
        "--methods",
        "random",
        "divprune",
        "pyramiddrop",
        "--work",
        str(tmp_path / "work"),
    ]
    words += ["--json", str(tmp_path / "new" / "out.json")]
    monkeypatch.setattr(compare, "TIMED", 1)
    assert compare.main([*words, "--minutes", "0"]) == 3
    assert "the same command continues" in capsys.readouterr().err
    assert compare.main(words) == 0
    first = json.loads((tmp_path / "new" / "out.json").read_text())
    monkeypatch.setattr(compare, "right", None)  # nothing is left to ask
    assert compare.main(words) == 0
    again = json.loads((tmp_path / "new" / "out.json").read_text())
    keys = ("method", "K", "budget", "by", "mean_tokens", "macro", "minus_mob")
    assert [[row.get(key) for key in keys] for row in first["rows"]] == [
        [row.get(key) for key in keys] for row in again["rows"]
    ]
    assert first["questions"] == 18 and {row["method"] for row in first["rows"]} == {
        "mob",
        "random",
        "divprune",
        "pyramiddrop",
    }
    assert all(row["pruner_ms"] > 0 for row in first["rows"] if row["method"] in ("mob", "random"))
    monkeypatch.setattr(compare_tables, "RESULTS", tmp_path / "new")
    (tmp_path / "new" / "compare-easy.json").write_text(json.dumps(first))
    for by in compare_tables.BY:
        assert "`pyramiddrop`" in compare_tables.summary("easy", by)
    assert compare_tables.full("easy").count("\n") == 2 + len(first["rows"])


def test_unknown_rules_are_refused(tmp_path, capsys):
    with pytest.raises(SystemExit):
        compare.main(["--json", str(tmp_path / "out.json"), "--methods", "mobb"])
    assert "--methods mobb: choose of mob, " in capsys.readouterr().err
