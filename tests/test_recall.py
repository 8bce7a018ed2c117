"""What ``benchmarks/recall.py`` counts, and the table made of it."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

import pytest
import torch
from transformers import LlavaForConditionalGeneration

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT / "benchmarks")]

import recall  # noqa: E402
import recall_tables  # noqa: E402

from llava.scenes.checkpoint import PATH  # noqa: E402
from llava.scenes.evaluate import questions  # noqa: E402
from llava.scenes.splits import SPLITS  # noqa: E402


def test_who_is_asked():
    """Weak questions with patches; what a "no" is about is nowhere."""
    asked = recall.referring(20, "easy")
    tasks = {one.question.task for one in asked}
    assert tasks == set(SPLITS["easy"].weak)
    assert not any(one.question.answer == "no" for one in asked)
    noes = [one for one in questions(20, "easy") if one.question.answer == "no"]
    assert len(asked) == 20 * len(tasks) - len(noes)


def test_shares_of_the_patches():
    """With everything but one token kept, at most one patch of a question is missing; the prompt's K finds most."""
    model = LlavaForConditionalGeneration.from_pretrained(PATH, dtype=torch.float32).eval()
    asked = recall.referring(3, "easy")
    nearly = recall.recalls(model, asked, 195)
    for values in nearly.values():
        for one, value in zip(asked, values, strict=True):
            patches = len(recall._patches(one))
            assert value == 1 or value == pytest.approx(1 - 1 / patches)
    few = recall.recalls(model, asked, 22)
    assert set(few) == {(rule, layer) for rule in recall.RULES for layer in recall.LAYERS}
    mean = {row: sum(values) / len(values) for row, values in few.items()}
    assert mean["prompt", 2] > 0.8 > 0.4 > mean["random", 2]  # trained to
    assert few["random", 1] == few["random", 3] != few["mob", 2]


def test_questions_of_a_scene_are_drawn_together(tmp_path, monkeypatch):
    asked = recall.referring(10, "easy")
    found = {(rule, layer): [0.5] * len(asked) for layer in recall.LAYERS for rule in recall.RULES}
    found["mob", 2] = [float(one.scene % 2) for one in asked]
    out = recall.report(found, asked)
    rows = {(row["rule"], row["layer"]): row for row in out["rows"]}
    assert (rows["prompt", 1]["low"], rows["prompt", 1]["high"]) == (50, 50)
    alone = recall.report(found, [type(one)(i, one.question) for i, one in enumerate(asked)])
    width = [r["high"] - r["low"] for o in (out, alone) for r in o["rows"] if (r["rule"], r["layer"]) == ("mob", 2)]
    assert width[0] > width[1] > 0  # fewer scenes than questions
    out["setup"] = {"split": "easy", "n": 10, "K": 22, "model": "checkpoint"}
    (tmp_path / "recall-checkpoint-easy.json").write_text(json.dumps(out))
    monkeypatch.setattr(recall_tables, "RESULTS", tmp_path)
    assert "| `checkpoint` | easy | 50 [50, 50] |" in recall_tables.recall()


def test_accuracy_with_and_without_the_loss(tmp_path, monkeypatch):
    (tmp_path / "earlier").mkdir()
    for name, points in (("scenes", 20.0), ("earlier/scenes", 5.0), ("scenes-no-grounding", -3.0)):
        rows = [{"method": rule, "K": 22, "macro": 60.0, "low": 59.0, "high": 61.0} for rule in recall_tables.RULES]
        rows.append({"method": "vanilla", "K": 196, "macro": 98.0, "low": 97.0, "high": 99.0})
        apart = [{"K": 22, "coupling": group, "points": points, "low": -5, "high": 21} for group in ("weak", "strong")]
        found = {"rows": rows, "prompt_minus_visual": apart, "setup": {"n": 10}}
        (tmp_path / f"{name}.json").write_text(json.dumps(found))
    monkeypatch.setattr(recall_tables, "RESULTS", tmp_path)
    table = recall_tables.accuracy()
    four = " | ".join(["60.0 [59.0, 61.0]"] * 4)
    assert f"| `checkpoint` | 22 | {four} | +20.0 [-5.0, +21.0] | +20.0 [-5.0, +21.0] |" in table
    assert f"| `checkpoint-earlier` | 22 | {four} | +5.0 [-5.0, +21.0] |" in table
    assert f"| `checkpoint-no-grounding` | 22 | {four} | -3.0 [-5.0, +21.0] |" in table
    assert "With all tokens: `checkpoint` 98.0 [97.0, 99.0], `checkpoint-earlier` 98.0" in table


def test_results_are_of_the_checkpoints_in_their_names():
    files = sorted((ROOT / "benchmarks" / "results").glob("recall-*.json"))
    assert len(files) >= 4
    for file in files:
        found = json.loads(file.read_text())
        model, split = found["setup"]["model"], found["setup"]["split"]
        weights = PATH.parent / model / "model.safetensors"
        assert file.stem == f"recall-{model}-{split}"
        assert found["provenance"]["weights_sha256"] == hashlib.sha256(weights.read_bytes()).hexdigest()


def test_the_command(tmp_path, capsys):
    assert recall.main(["--json", str(tmp_path / "out.json"), "--n", "1", "--K", "44"]) == 0
    out = json.loads((tmp_path / "out.json").read_text())
    assert out["setup"]["K"] == 44 and "weights_sha256" in out["provenance"]
    assert capsys.readouterr().out.count("layer") == len(recall.RULES) * len(recall.LAYERS)
