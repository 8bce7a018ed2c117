"""The embedded checkpoint answers, and goes on answering under pruning. MoB against visual-only is never asserted."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch
from transformers import AutoProcessor, LlavaForConditionalGeneration

import mob
from llava.scenes.checkpoint import EARLIER, PATH, PATHS, PROMPT, UNGROUNDED
from llava.scenes.evaluate import Scores, questions, run, wilson
from llava.scenes.generator import sample
from llava.scenes.questions import TASKS

THIRD, NINTH = 65, 22  # of 196 visual tokens


@pytest.fixture(scope="module")
def model():
    return LlavaForConditionalGeneration.from_pretrained(PATH, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def scores(model) -> Scores:
    return run(model, ["vanilla", "mob", "random"], [THIRD, NINTH], n=100)


def percent(scores, row, task):
    right, asked = scores.task(row, task)
    assert asked == 100
    return 100 * right / asked


def test_vanilla_answers_held_out_questions(scores):
    assert scores.macro(("vanilla", 196))[0] >= 95


def test_a_third_of_the_tokens_costs_at_most_three_points(scores):
    assert scores.macro(("mob", THIRD))[0] >= scores.macro(("vanilla", 196))[0] - 3


@pytest.mark.parametrize("task", ["ocr", "shape", "exist"])
def test_a_ninth_of_the_tokens_chosen_well_beats_chance(scores, task):
    assert percent(scores, ("mob", NINTH), task) >= percent(scores, ("random", NINTH), task) + 10


def test_right_means_that_generate_gives_the_answer(model, scores):
    """The evaluation looks at logits in one pass; generating the answers says the same."""
    processor = AutoProcessor.from_pretrained(PATH)
    asked = questions(100)[::30]
    by_pass = {
        (one.scene, one.question.task): scores.tables["mob", NINTH][one.scene, TASKS.index(one.question.task)]
        for one in asked
    }
    with mob.prune(model, K=NINTH):
        for one in asked:
            prompt = PROMPT.format(one.question.text)
            inputs = processor(text=prompt, images=sample(one.scene).draw(), return_tensors="pt")
            new = model.generate(**inputs)[0, inputs["input_ids"].shape[1] :]
            answer = processor.tokenizer.decode(new, skip_special_tokens=True).strip()
            assert (answer == one.question.answer) == by_pass[one.scene, one.question.task]


def test_the_checkpoint_is_small_and_half_precision():
    files = list(PATH.iterdir())
    assert sum(file.stat().st_size for file in files) <= 6 * 2**20
    assert not [file for file in files if file.suffix in (".bin", ".pt", ".pkl")]
    stored = LlavaForConditionalGeneration.from_pretrained(PATH, dtype="auto")
    assert stored.dtype == torch.float16


def test_wilson_interval():
    """Reference values: Wilson (1927) as tabulated for 95 %."""
    low, high = wilson(8, 10)
    assert abs(low - 49.02) < 0.01 and abs(high - 94.33) < 0.01
    assert wilson(0, 0) == (0.0, 100.0)


@pytest.fixture(scope="module")
def crowded():
    return LlavaForConditionalGeneration.from_pretrained(PATHS["crowded"], dtype=torch.float32).eval()


@pytest.mark.parametrize(("split", "least"), [("crowded", 88), ("easy", 95)])
def test_the_crowded_model_answers_both_kinds_of_scenes(crowded, split, least):
    assert run(crowded, ["vanilla"], [], n=30, split=split).macro(("vanilla", 196))[0] >= least


def test_without_grounding_loss_the_model_answers_too():
    """Right on most kinds, and small enough to be shipped."""
    model = LlavaForConditionalGeneration.from_pretrained(UNGROUNDED, dtype=torch.float32).eval()
    scores = run(model, ["vanilla"], [], n=30)
    assert scores.macro(("vanilla", 196))[0] >= 85 and scores.task(("vanilla", 196), "colour")[0] >= 27
    assert sum(file.stat().st_size for file in UNGROUNDED.iterdir()) < 6e6


def test_the_earlier_run_answers_as_well():
    model = LlavaForConditionalGeneration.from_pretrained(EARLIER, dtype=torch.float32).eval()
    assert run(model, ["vanilla"], [], n=30).macro(("vanilla", 196))[0] >= 95
    assert sum(file.stat().st_size for file in EARLIER.iterdir()) < 6e6


def test_the_scores_that_ship_are_those_of_the_training_script():
    """What ``scripts/scenes/train.sh`` wrote after its last stage, and what was measured of the file that ships."""
    results = Path(__file__).parents[2] / "benchmarks" / "results"
    trained, shipped = (json.loads((results / name).read_text()) for name in ("train/evidence.json", "scenes.json"))
    weights = hashlib.sha256((PATH / "model.safetensors").read_bytes()).hexdigest()
    assert trained["weights_sha256"] == shipped["weights_sha256"] == weights
    assert trained["rows"] == shipped["rows"]


def test_crowded_scenes_tell_prompt_and_visual_apart(crowded):
    """With few tokens, weak questions want those that the prompt names, strong ones those that cover the picture."""
    K = 11
    scores = run(crowded, ["prompt", "visual"], [K], n=50, split="crowded")
    apart = {group: scores.difference(("prompt", K), ("visual", K), group)[0] for group in ("weak", "strong")}
    assert apart["weak"] >= 5 and apart["strong"] <= -5
