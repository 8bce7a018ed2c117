"""Training on crowded scenes, and asking about them."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pytest
import torch
from transformers import AutoProcessor, LlavaForConditionalGeneration

from llava.scenes import evaluate
from llava.scenes.checkpoint import PATH, SPECIAL, build, build_tokenizer, save, split_of
from llava.scenes.crowded_questions import (
    STRONG,
    TASKS,
    WEAK,
)
from llava.scenes.evaluate import Scores, batches, questions
from llava.scenes.generator import BACKGROUND, SIGN
from llava.scenes.losses import SceneLosses, untrained, without_head
from llava.scenes.packing import GROUPS, IGNORE, QUESTIONS, ScenePictures, patch_labels
from llava.scenes.packing import TASKS as COUNTED
from llava.scenes.splits import SPLITS
from llava.scenes.train import main as train

CROWDED = SPLITS["crowded"]
SCENES = [CROWDED.scene(number) for number in range(150)]


def rng(seed=0):
    return np.random.default_rng(seed)


def test_patch_labels_agree_with_the_scene():
    for scene in SCENES[:50]:
        labels, owners = patch_labels(scene), scene.patch_owners()
        colours, patterns = scene.patch_backgrounds()
        for patch, owner in enumerate(owners):
            said = {group: None if v[patch] == IGNORE else GROUPS[group][v[patch]] for group, v in labels.items()}
            if owner == BACKGROUND:
                expected = {"kind": "background", "shape": None, "pattern": patterns[patch], "colour": colours[patch]}
            elif owner >= SIGN:
                expected = {"kind": "sign", "shape": None, "pattern": None, "colour": scene.signs[owner - SIGN].colour}
                assert said["digit"] is None or said["digit"] in scene.signs[owner - SIGN].number
            else:
                thing = scene.things[owner]
                expected = {"kind": "object", "shape": thing.shape, "pattern": None, "colour": thing.colour}
            assert said | expected == said


def test_training_rows_mix_both_kinds_of_scenes():
    data = ScenePictures(20, 3, seed=1, split="crowded", hide=0.5)
    tokenizer, kinds, full = build_tokenizer("crowded"), Counter(), 0
    for index in range(len(data)):
        row = data[index]
        names = [COUNTED["crowded"][t] for t in row["task"].tolist() if 0 <= t < len(COUNTED["crowded"])]
        kinds[any(name.startswith("crowded-") for name in names)] += 1
        assert len({name.startswith("crowded-") for name in names}) == 1
        full += int(row["segment"].max()) + 1 == QUESTIONS
        unknown = row["ids"] == tokenizer.unk_token_id
        assert not (unknown & ~row["prompt"]).any()
    assert 0.5 < kinds[True] / len(data) < 0.9 and full > 0.8 * len(data)
    again = ScenePictures(20, 3, seed=1, split="crowded", hide=0.5)[7]
    assert all(torch.equal(value, again[key]) for key, value in data[7].items())


def test_a_crowded_model_is_small_and_knows_its_words(tmp_path):
    model = build(seed=1, split="crowded")
    save(model, tmp_path)
    assert sum(file.stat().st_size for file in tmp_path.iterdir()) <= 6 * 2**20
    again = LlavaForConditionalGeneration.from_pretrained(tmp_path, dtype=torch.float32)
    assert split_of(again) == "crowded" and split_of(build()) == "easy"
    tokenizer = AutoProcessor.from_pretrained(tmp_path).tokenizer
    assert len(tokenizer) == len(again.get_input_embeddings().weight) == len(SPECIAL) + len(CROWDED.words())
    assert type(without_head(untrained(1, "crowded"))) is LlavaForConditionalGeneration


def test_a_start_takes_over_all_weights():
    """On easy questions the enlarged model says what the shipped one says; words that it knows more are new."""
    shipped = LlavaForConditionalGeneration.from_pretrained(PATH, dtype=torch.float32).eval()
    model = without_head(untrained(3, "crowded", PATH)).eval()
    known = len(shipped.get_input_embeddings().weight)
    _, inputs = next(batches(questions(2), 18))
    with torch.no_grad():
        ours, theirs = model(**inputs).logits, shipped(**inputs).logits
    assert torch.equal(ours[..., :known], theirs)
    fresh = build(3, "crowded").get_input_embeddings().weight[known:]
    assert torch.equal(model.get_input_embeddings().weight[known:], fresh) and len(fresh)
    again = without_head(untrained(0, "easy", PATH)).state_dict()
    assert all(torch.equal(value, again[name]) for name, value in shipped.state_dict().items())


def test_evaluation_of_both_splits():
    """Questions reach the model in its own words; macros of the couplings are those of their tasks."""
    found = questions(4, "crowded")
    assert Counter(one.question.task for one in found) == dict.fromkeys(TASKS, 4)
    for vocabulary in SPLITS:
        tokenizer = build_tokenizer(vocabulary)
        unknown = sum(int((b["input_ids"] == tokenizer.unk_token_id).sum()) for _, b in batches(found, 12, vocabulary))
        assert (unknown > 0) == (vocabulary == "easy")
    scores, values = Scores(found), [bool(i % 3) for i in range(len(found))]
    scores.add(("prompt", 22), values)
    scores.add(("visual", 22), [not value for value in values])
    for group, tasks in (("weak", WEAK), ("strong", STRONG)):
        right = [np.mean([v for v, a in zip(values, found, strict=True) if a.question.task == t]) for t in tasks]
        assert abs(scores.macro(("prompt", 22), group)[0] - 100 * np.mean(right)) < 1e-9
        (entry,) = [e for e in evaluate.separation(scores) if e["coupling"] == group]
        assert abs(entry["points"] - 100 * (2 * np.mean(right) - 1)) < 1e-9 and entry["low"] <= entry["points"]


def test_the_evaluation_command_asks_about_crowded_scenes(tmp_path, monkeypatch, capsys):
    words = ["evaluate", "--split", "crowded", "--n", "2", "--K", "22", "--methods", "vanilla", "visual", "prompt"]
    monkeypatch.setattr("sys.argv", [*words, "--json", str(tmp_path / "out.json")])
    evaluate.main()
    assert "strong questions: prompt - visual" in capsys.readouterr().out
    out = json.loads((tmp_path / "out.json").read_text())
    assert out["setup"]["model"] == "checkpoint-crowded"  # by default
    assert out["setup"]["split"] == "crowded" and {e["coupling"] for e in out["prompt_minus_visual"]} == {
        "weak",
        "strong",
    }
    assert all(set(row["tasks"]) == set(TASKS) and {"weak", "strong"} <= set(row) for row in out["rows"])


FLAGS = ["--split", "crowded", "--align-steps", "1", "--steps", "2", "--align-pictures", "2", "--until", "answer"]
FLAGS += ["--pictures", "2", "--save-every", "1", "--no-compile", "--device", "cpu"]


def test_training_continues_to_the_same_bytes_and_folders_belong_to_a_run(tmp_path, capsys):
    """A stop in stage B; then other settings in the same folder are refused."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train(["--out", str(whole), *FLAGS])
    train(["--out", str(parts), *FLAGS, "--stop-after", "2"])
    assert "stopped after 2 steps" in capsys.readouterr().out and not (parts / "answer" / "checkpoint").exists()
    train(["--out", str(parts), *FLAGS])
    files = [(folder / "answer" / "checkpoint" / "model.safetensors").read_bytes() for folder in (whole, parts)]
    assert files[0] == files[1]
    for more, name in (
        (["--no-grounding"], "ground_weight"),
        (["--start", str(PATH)], "start"),
        (["--seed", "1"], "seed"),
        (["--steps", "9", "--lr", "0.5"], "steps, lr"),
    ):
        with pytest.raises(SystemExit):
            train(["--out", str(parts), *FLAGS, *more])
        assert f"is a run with another {name}" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        train(["--out", str(tmp_path / "small"), "--start", str(whole / "answer" / "checkpoint")])
    assert "train with --split crowded" in capsys.readouterr().err


def test_without_grounding_that_loss_moves_nothing(tmp_path):
    """Stage B of --no-grounding follows the other losses; the grounding loss is logged all the same."""
    from torch.utils.data import default_collate

    from llava.scenes.trainer import ALIGN_WEIGHT, GROUND_WEIGHT, SceneTrainer, arguments

    data = ScenePictures(2, 2, seed=3, split="crowded")
    batch = default_collate([data[i] for i in range(2)])
    args = arguments(tmp_path, steps=2, pictures=2, lr=1e-3, seed=0, save_every=100, device="cpu")
    model = untrained(1, "crowded")
    answer, align, ground, counts = SceneLosses(model)(batch)
    for weight in (0.0, GROUND_WEIGHT):
        trainer = SceneTrainer(model, data, args, ground_weight=weight)
        loss, parts = trainer.compute_loss(model, batch, return_outputs=True)
        assert torch.allclose(loss, answer + ALIGN_WEIGHT * align + weight * ground) and float(parts["ground"]) > 0
    assert counts.shape == (len(COUNTED["crowded"]) + 1, 2)
    assert int(counts[:, 1].sum()) == int((batch["task"] >= 0).sum())
