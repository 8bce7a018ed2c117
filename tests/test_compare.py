"""The comparison of rules: what is asked, what equal means are, and that it goes on where it was stopped."""

from __future__ import annotations

import copy
import json
import math
import os
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from transformers import LlavaForConditionalGeneration

from llava.scenes.checkpoint import NUM_PATCHES, PATH, PROMPT, build_tokenizer
from llava.scenes.evaluate import questions
from llava.scenes.packing import pixels
from llava.scenes.sharing import Shared
from llava.scenes.splits import SPLITS
from mob import MoBConfig, Pruning
from mob.coupling.modes import split

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT / "benchmarks")]

import compare  # noqa: E402
import compare_report  # noqa: E402
import compare_rows  # noqa: E402
import compare_tables  # noqa: E402
import compare_times  # noqa: E402
from compare_rows import ELSEWHERE, mean_of  # noqa: E402

LAYERS = 6


def test_budgets_are_the_shares_of_the_issue():
    assert compare.BUDGETS == (65, 44, 22, 11)


def test_every_rule_is_asked_at_equal_K_and_at_equal_mean():
    methods = compare.rules(Path("codebook.safetensors"))
    assert {"mob", "fastv", "pyramiddrop", "visionzip", "early-random", "divprune+mob", "codebook"} <= set(methods)
    found = compare.ways(methods, [22], LAYERS)
    assert [way.K for way in found if way.by == "K"] == [22] * (len(methods) - len(ELSEWHERE))
    assert set(ELSEWHERE) <= {way.method for way in found}
    mean = (2 * 196 + 4 * 22) / 6
    assert mean_of("mob", 22, LAYERS) == pytest.approx(mean)
    at_mean = {way.method: way.K for way in found if way.by == "mean"}
    assert at_mean["mob"] == at_mean["fastv"] == 22  # prune where MoB does
    assert at_mean["divprune"] == at_mean["early-random"] == math.floor(mean)
    for method, K in at_mean.items():
        assert mean_of(method, K, LAYERS) <= mean < mean_of(method, K + 1, LAYERS), method


def test_a_rule_that_cannot_come_down_is_asked_at_equal_K_only(monkeypatch):
    monkeypatch.setattr(compare_rows, "mean_of", lambda method, K, layers: 9.0 if method == "mob" else 9.1)
    assert [(way.method, way.by) for way in compare.ways(["fastv"], [9], LAYERS)] == [("fastv", "K")]


def test_the_threshold_is_calibrated_on_questions_without_their_answers(monkeypatch):
    """Two groups of etas, far apart; each as a prompt gives it that nobody has answered yet."""
    model = LlavaForConditionalGeneration.from_pretrained(PATH, dtype=torch.float32).eval()
    monkeypatch.setattr(compare, "CALIBRATION", (900_000, 2))
    tokenizer, etas = build_tokenizer("easy"), []
    for one in questions(2, "easy", 900_000):
        ids = tokenizer.encode(PROMPT.format(one.question.text).replace("<image>", "<image>" * NUM_PATCHES))
        picture = pixels(SPLITS["easy"].scene(one.scene))[None]
        with Pruning(model, MoBConfig(K=21, l_idx=2), record=True) as pruning, torch.no_grad():
            model(input_ids=torch.tensor([ids]), pixel_values=picture)
        etas.append(pruning.records[0].eta)
    modes = split(etas)
    found = compare.calibrated(model, "easy")
    assert (found.tau, found.spread) == pytest.approx((modes.tau, modes.spread), abs=1e-5)


def test_answers_are_kept_by_what_they_depend_on(tmp_path):
    """Another threshold, codebook or way with positions asks again those rows that it concerns, and no other."""
    (tmp_path / "book").write_bytes(b"1")
    found = compare.ways(["mob", "divprune", "divprune+mob", "codebook", "mob:auto"], [22], LAYERS)

    def files(tau, book, positions):
        (tmp_path / "book").write_bytes(book)
        settings = compare.Settings(compare.Setup(2, str(tmp_path / "book"), positions), tau, 0.1)
        answers = compare.Answers(tmp_path / "work", None, compare.marks(settings, found))
        return {way.method: answers.file(way.row).name for way in found if way.by == "K"}

    def changed(*other):
        return {name for name, file in files(*other).items() if file != first[name]}

    first = files(1.5, b"1", "keep")
    assert first["mob"] == "mob-22.txt"
    assert changed(1.6, b"1", "keep") == {"mob:auto"} and changed(1.5, b"2", "keep") == {"codebook"}
    assert changed(1.5, b"1", "reindex") == {"divprune", "divprune+mob", "codebook"}


def test_mcnemar_is_the_exact_binomial():
    a = [True] * 9 + [False] * 3 + [True] * 20 + [False] * 7
    b = [False] * 9 + [True] * 3 + [True] * 20 + [False] * 7
    by_hand = 2 * sum(math.comb(12, k) for k in range(4)) / 2**12
    assert compare_report.mcnemar(a, b) == compare_report.mcnemar(b, a) == pytest.approx(by_hand)
    assert compare_report.mcnemar(a, a) == 1.0


@pytest.mark.may_skip("rules before the decoder need a newer transformers than the oldest that is supported")
def test_it_goes_on_where_it_was_stopped(tmp_path, monkeypatch, capsys):
    pytest.importorskip("transformers", minversion="5.20")  # where rules before the decoder work
    words = ["--n", "2", "--K", "22", "--methods", "random", "divprune", "pyramiddrop"]
    words += ["--work", str(tmp_path / "work"), "--json", str(tmp_path / "new" / "out.json")]
    monkeypatch.setattr(compare_times, "TIMED", 1)
    assert compare.main([*words, "--minutes", "0"]) == 3
    assert "the same command continues" in capsys.readouterr().err
    assert compare.main(words) == 0
    first = json.loads((tmp_path / "new" / "out.json").read_text())
    monkeypatch.setattr(compare, "right", None)  # nothing is left to ask
    assert compare.main(words) == 0
    again = json.loads((tmp_path / "new" / "out.json").read_text())
    keys = ("method", "K", "budget", "by", "mean_tokens", "macro", "minus_mob")
    for one, other in zip(first["rows"], again["rows"], strict=True):
        assert [one.get(key) for key in keys] == [other.get(key) for key in keys]
    assert first["questions"] == 18
    assert {row["asked_at"] for row in first["rows"]} == {str(first["provenance"]["commit"])}
    (mob, *_) = first["rows"]
    assert (mob["method"], mob["centres_asked"]) == ("mob", 11) and 0 < mob["centres"] < 11
    assert {row["method"] for row in first["rows"]} == {"mob", "random", "divprune", "pyramiddrop"}
    assert all(0 < row["pruner_ms"] < row["prefill_ms"] for row in first["rows"])
    monkeypatch.setattr(compare_tables, "RESULTS", tmp_path / "new")
    (tmp_path / "new" / "compare-easy.json").write_text(json.dumps(first))
    for by in compare_tables.BY:
        assert "`pyramiddrop`" in compare_tables.summary("easy", by)
    (tmp_path / "new" / "earlier").mkdir()
    other = copy.deepcopy(first)
    for number, row in enumerate(other["rows"]):
        row["macro"]["points"] = 101.0 + number
    (tmp_path / "new" / "earlier" / "compare-easy.json").write_text(json.dumps(other))
    values = {}
    for found in (first, other):
        for row in found["rows"]:
            values.setdefault((row["method"], row["by"]), []).append(f"{row['macro']['points']:.1f}")
    (line,) = [line for line in compare_tables.runs().splitlines() if "`pyramiddrop`" in line]
    expected = values["pyramiddrop", "K"] + values.get(("pyramiddrop", "mean"), ["–", "–"])
    assert [cell.split()[0] for cell in line.strip(" |").split(" | ")[2:]] == expected
    assert compare_tables.full("easy").count("\n| ") == len(first["rows"])
    tasks = compare_tables.tasks("easy").splitlines()
    assert [line.split(" | ")[:2] for line in tasks[2:]] == [
        ["| `vanilla`", "196"],
        ["| `mob`", "22"],
        ["| `random`", "22"],
        ["| `drop-all`", "0"],
    ]
    for row in [first["vanilla"], *first["rows"]]:
        assert sum(row["tasks"].values()) / 9 == pytest.approx(row["macro"]["points"], abs=0.01)
    monkeypatch.setattr(compare_tables, "SPLITS", ("easy",))
    monkeypatch.setattr(compare_tables, "IMAGES", tmp_path)
    compare_tables.plots()
    assert (tmp_path / "compare.png").stat().st_size > 10_000


def test_rules_at_other_layers_are_compared_at_equal_mean_only():
    assert compare_rows.read("pyramiddrop@1,2,3") == (["pyramiddrop"], [1, 2, 3])
    assert compare_rows.read("divprune+mob") == (["divprune", "mob"], []) and compare_rows.read("mob:auto")[0] == [
        "mob"
    ]
    found = compare.ways(["mob", *ELSEWHERE], [11], LAYERS)
    mean = (2 * 196 + 4 * 11) / 6
    assert [(way.method, way.by) for way in found] == [("mob", "K"), ("mob", "mean"), *((n, "mean") for n in ELSEWHERE)]
    by_hand = {"mob@1": lambda K: (196 + 5 * K) / 6}
    for way in found[2:]:
        assert mean_of(way.method, way.K, LAYERS) <= mean < mean_of(way.method, way.K + 1, LAYERS)
        if way.method in by_hand:
            assert mean_of(way.method, way.K, LAYERS) == pytest.approx(by_hand[way.method](way.K))
    settings = compare.Settings(compare.Setup(), 1.5, 0.1)
    assert settings.of("mob@1", 48, 0).to_dict() == {"K": 48, "l_idx": 1}
    several = settings.of("pyramiddrop@1,3,5", 20, 0)
    assert (several.method, several.l_idx, several.options) == ("pyramiddrop", None, {"layers": [1, 3, 5]})


def test_what_tells_prompt_and_visual_apart():
    asked = compare.questions(4, "crowded")
    scores = compare_report.Scores(asked)
    weak, strong = scores.groups["weak"], scores.groups["strong"]
    scores.add(("prompt", 9), [one.question.task in weak for one in asked])
    scores.add(("visual", 9), [one.question.task in (*strong, weak[0]) for one in asked])
    found = {entry["of"]: entry["points"] for entry in compare_report.apart(scores, [9])}
    assert found["weak"] == 80 and found["strong"] == -100  # of five kinds, one is right with both
    assert found[f"weak without {weak[0]}"] == 100 and found[f"weak without {weak[1]}"] == 75
    assert [found[task] for task in scores.tasks] == [
        0 if task == weak[0] else 100 if task in weak else -100 for task in scores.tasks
    ]


@torch.inference_mode()
def test_kinds_of_questions_on_either_side_of_tau():
    model = LlavaForConditionalGeneration.from_pretrained(PATH, dtype=torch.float32).eval()
    asked = compare.questions(2)
    assert set(compare_report.above(model, asked, 0.0).values()) == {100}
    assert set(compare_report.above(model, asked, 2.0).values()) == {0}
    sides = compare_report.above(model, asked, 1.53)
    assert set(sides) == set(SPLITS["easy"].tasks) and len(set(sides.values())) > 1


def test_where_rules_prune_and_which_are_best():
    assert [compare_tables.where(name) for name in ("visual", "sparsevlm", "divprune", "early-random")] == [
        compare_tables.ONCE,
        compare_tables.SEVERAL,
        compare_tables.BEFORE,
        compare_tables.BEFORE,
    ]
    assert set(compare_tables.COLOURS) == {compare_tables.where(name) for name in compare.rules(Path("x"))}
    points = [(10, 5.0), (10, 6.0), (20, 6.0), (30, 8.0), (25, 5.5), (40, 7.9)]
    assert compare_tables._frontier(points) == [(10, 6.0), (30, 8.0)]


@pytest.mark.may_skip("rules before the decoder need a newer transformers than the oldest that is supported")
@torch.inference_mode()
def test_what_rules_share_changes_no_answer():
    """Logits are the same to the bit, and every layer before the first that prunes is asked once for all rules."""
    pytest.importorskip("transformers", minversion="5.20")  # where rules before the decoder work
    model = LlavaForConditionalGeneration.from_pretrained(PATH, dtype=torch.float32).eval()
    asked, shared = dict.fromkeys(("tower", 0, 1, 2), 0), Shared(model)

    def count(module, name):
        module.register_forward_hook(lambda *_: asked.update({name: asked[name] + 1}))

    count(next(model.model.vision_tower.children()), "tower")
    for index in (0, 1, 2):
        count(model.model.language_model.layers[index].mlp, index)
    settings = compare.Settings(compare.Setup(), 1.5, 0.1)
    two = [inputs for _, inputs in compare.batches(compare.questions(2), 9)]
    ways = [compare.VANILLA, *compare.rules(None)]
    before = {name for name in ways[1:] if compare_rows.is_before(compare_rows.read(name)[0][0])}
    watching, at_one = {"scope", "visionzip"}, {*ELSEWHERE, "sparsevlm", "sparsevlm2"}
    for inputs in two:
        plain = {}
        for method in ways:
            one = settings.of(method, 22, 0)
            with Pruning(model, one) if one else nullcontext():
                plain[method] = model(**inputs).logits
        asked.update(dict.fromkeys(asked, 0))
        for method in ways:
            one = settings.of(method, 22, 0)
            with shared.under(one), Pruning(model, one) if one else nullcontext():
                assert torch.equal(model(**inputs, use_cache=False).logits, plain[method]), method
        assert asked == {
            "tower": 1 + len(watching),
            0: 1 + len(before),
            1: 1 + len(before) + len(at_one),
            2: len(ways),  # the unpruned model is asked once
        }
    with pytest.raises(ValueError, match="use_cache=False"), shared.under(None):
        model(**two[0])
    assert not any("forward" in vars(module) for module in model.modules())


def test_the_script_takes_its_settings_from_the_environment(tmp_path):
    asked = {"SPLITS": "easy", "OUT": str(tmp_path), "N": "1", "PYTHON": sys.executable}
    command = ["bash", str(ROOT / "scripts" / "compare.sh"), "--K", "22", "--methods", "visual"]
    subprocess.run([*command, "--work", str(tmp_path / "work")], env={**os.environ, **asked}, check=True)
    found = json.loads((tmp_path / "compare-easy.json").read_text())
    assert found["questions"] == 9 and {row["method"] for row in found["rows"]} == {"mob", "visual"}


def test_unknown_rules_are_refused(tmp_path, capsys):
    with pytest.raises(SystemExit):
        compare.main(["--json", str(tmp_path / "out.json"), "--methods", "mobb"])
    assert "--methods mobb: choose of mob, " in capsys.readouterr().err
