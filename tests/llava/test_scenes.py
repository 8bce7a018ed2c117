"""The generator, its questions, the packing that training uses, and the training command itself."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch.utils.data import default_collate
from transformers import AutoProcessor, LlavaForConditionalGeneration

import mob
from llava.scenes import evaluate
from llava.scenes.checkpoint import NUM_PATCHES, PATH, PROMPT, build, build_processor, build_tokenizer, save
from llava.scenes.generator import BACKGROUND, GRID, PATCH, SIGN, SIZE, sample
from llava.scenes.losses import SceneLosses, untrained, without_head
from llava.scenes.packing import IGNORE, PREFIX, ScenePictures, attention_mask, hide_things, patch_labels, pixels
from llava.scenes.questions import ASK, TASKS, WORDINGS, unknown, without, words
from llava.scenes.train import main as train
from llava.scenes.trainer import ALIGN_WEIGHT, GROUND_WEIGHT, SceneTrainer, arguments
from mob.covering import Selection
from mob.methods import METHODS, register

SCENES = [sample(seed) for seed in range(300)]


def rng(seed=0):
    return np.random.default_rng(seed)


def step(data, number=0):
    """The batch of one step."""
    return default_collate([data[number * data.pictures + i] for i in range(data.pictures)])


def test_a_seed_is_a_picture():
    assert sample(7) == sample(7) and sample(7) != sample(8)
    assert np.array_equal(np.asarray(sample(7).draw()), np.asarray(sample(7).draw()))
    assert sample(7).draw().size == (SIZE, SIZE)


def test_things_do_not_overlap_and_lie_inside():
    for scene in SCENES:
        boxes = [(t.x, t.y, t.radius, t.radius) for t in scene.things]
        boxes += [(*scene.sign, 14.5, 10.5)] if scene.sign else []
        for i, (x, y, w, h) in enumerate(boxes):
            assert w <= x <= SIZE - w and h <= y <= SIZE - h
            for a, b, v, u in boxes[:i]:
                assert abs(x - a) > w + v or abs(y - b) > h + u


def test_patch_owners_point_at_the_right_place():
    """The patch under an object's centre is the object's, the one under the sign's centre the sign's."""
    for scene in SCENES:
        owners = scene.patch_owners().reshape(GRID, GRID)
        for index, thing in enumerate(scene.things):
            assert owners[int(thing.y // PATCH), int(thing.x // PATCH)] == index
            assert 1 <= (owners == index).sum() <= 16
        if scene.sign:
            assert owners[int(scene.sign[1] // PATCH), int(scene.sign[0] // PATCH)] == SIGN
        assert (owners == BACKGROUND).any()


def test_digits_lie_on_the_sign_in_reading_order():
    for scene in SCENES:
        digits, owners = scene.patch_digits().reshape(GRID, GRID), scene.patch_owners().reshape(GRID, GRID)
        if scene.number is None:
            assert (digits < 0).all()
            continue
        rows, columns = (digits >= 0).nonzero()
        assert (owners[rows, columns] == SIGN).all()
        shown = [str(digits[row, column]) for row in sorted(set(rows)) for column in sorted(set(columns))]
        for line in np.split(np.array(shown), len(set(rows))):
            order = [d for i, d in enumerate(line) if i == 0 or d != line[i - 1]]
            assert "".join(order) in (scene.number, scene.number[0] if len(set(scene.number)) == 1 else scene.number)


def test_answers_follow_from_the_scene():
    """Every answer is worked out again, in another way, from the scene's list of objects."""
    for scene in SCENES:
        shapes, colours = Counter(t.shape for t in scene.things), Counter(t.colour for t in scene.things)
        for task in TASKS:
            question = ASK[task](scene, rng(scene.seed))
            if question is None:
                continue
            text = question.text.split()
            if task == "exist":
                colour, shape = text[3], text[4]
                there = any((t.colour, t.shape) == (colour, shape) for t in scene.things)
                assert question.answer == ("yes" if there else "no") and bool(question.refers) == there
            elif task == "colour":
                (thing,) = [t for t in scene.things if t.shape in text]
                assert question.answer == thing.colour
            elif task == "shape":
                (thing,) = [t for t in scene.things if t.colour in text]
                assert question.answer == thing.shape
            elif task in ("modeshape", "modecolour"):
                counts = shapes if task == "modeshape" else colours
                assert [w for w, c in counts.items() if c == max(counts.values())] == [question.answer]
            else:
                facts = {"ocr": scene.number, "pattern": scene.pattern, "bgcolour": scene.background}
                assert question.answer == facts.get(task, str(len(scene.things)))


def test_exist_is_balanced_and_its_negatives_are_hard():
    asked = [ASK["exist"](scene, rng(scene.seed)) for scene in SCENES]
    assert 0.4 < sum(q.answer == "yes" for q in asked) / len(asked) < 0.6
    near = 0
    negatives = [(s, q) for s, q in zip(SCENES, asked, strict=True) if q.answer == "no"]
    for scene, question in negatives:
        _, _, _, colour, shape, _ = question.text.split()
        near += any(t.colour == colour or t.shape == shape for t in scene.things)
    assert near / len(negatives) > 0.8


def test_tokenizer_knows_every_word_and_survives_the_others():
    tokenizer = build_tokenizer()
    known = " ".join(words())
    assert tokenizer.unk_token_id not in tokenizer(known)["input_ids"]
    for wordings in WORDINGS.values():
        for wording in wordings:
            assert tokenizer.unk_token_id not in tokenizer(wording.format("red star"))["input_ids"]
    ids = tokenizer("Is there a ZEBRA? 🦓", add_special_tokens=False)["input_ids"]
    assert tokenizer.convert_ids_to_tokens(ids) == ["is", "there", "a", "<unk>", "?", "<unk>"]
    assert tokenizer.decode(tokenizer("47 red, 3?", add_special_tokens=False)["input_ids"]) == "47 red, 3?"
    assert unknown(SCENES[0], rng()).text.count("<unk>") == 1


def test_pixels_are_what_the_processor_makes():
    processor = build_processor()
    for scene in SCENES[:5]:
        theirs = processor(text=PROMPT.format("x"), images=scene.draw(), return_tensors="pt")["pixel_values"][0]
        assert torch.allclose(pixels(scene), theirs, atol=1e-5)


def test_packed_questions_equal_questions_one_by_one():
    batch, losses = step(ScenePictures(1, 3, seed=1)), SceneLosses(untrained()).eval()
    model, decoder = losses.model, losses.model.model.language_model
    with torch.no_grad():
        patches = losses.patches(batch["pixels"])
        prefix = decoder.embed_tokens(losses.prefix).expand(3, -1, -1)
        hidden = torch.cat([prefix, patches, decoder.embed_tokens(batch["ids"])], 1)
        positions = torch.cat([torch.arange(PREFIX).expand(3, -1), batch["position"]], 1)
        rotary, mask = decoder.rotary_emb(hidden, position_ids=positions), attention_mask(batch["segment"])
        for layer in decoder.layers:
            hidden = layer(hidden, attention_mask=mask, position_embeddings=rotary)
        packed = model.lm_head(decoder.norm(hidden[:, PREFIX:]))
        for row in range(3):
            for question in range(int(batch["segment"][row].max()) + 1):
                here = batch["segment"][row] == question
                ids = torch.cat([losses.prefix, torch.full((NUM_PATCHES,), 4), batch["ids"][row][here]])[None]
                alone = model(input_ids=ids, pixel_values=batch["pixels"][row : row + 1]).logits[0, PREFIX:]
                assert torch.allclose(packed[row][here], alone, atol=1e-4)


def test_targets_spell_the_answers():
    data = ScenePictures(1, 4, seed=2)
    batch = step(data)
    for row in range(4):
        for question in range(int(batch["segment"][row].max()) + 1):
            here = batch["segment"][row] == question
            target, ids, prompt = (batch[key][row][here].tolist() for key in ("target", "ids", "prompt"))
            answer = [i for i, p in zip(ids, prompt, strict=True) if not p]
            assert [t for t in target if t != IGNORE] == answer and answer[-1] == data.tokenizer.eos_token_id
            assert data.tokenizer.decode(ids[: prompt.count(True)]).endswith("assistant:")


def test_patch_labels_agree_with_the_scene():
    for scene in SCENES[:50]:
        labels, owners = patch_labels(scene), scene.patch_owners()
        assert ((labels["shape"] != IGNORE) == ((owners >= 0) & (owners != SIGN))).all()
        assert ((labels["pattern"] != IGNORE) == (owners == BACKGROUND)).all()
        assert ((labels["kind"] == 2) == (owners == SIGN)).all()


def test_what_is_hidden_is_gone_and_what_stays_shows():
    for scene in SCENES[:100]:
        gone, hidden = hide_things(scene, rng(scene.seed))
        cover = scene.patch_cover()
        staying = [share for owner, share in cover.items() if owner not in gone]
        for owner, share in cover.items():
            if owner in gone:
                visible = (share > 0) & ~hidden
                assert not visible.any() or any((other[visible] > 0).any() for other in staying)
            else:
                assert (~hidden & (share >= 0.2)).any()


def test_questions_about_what_is_gone():
    for scene in SCENES[:100]:
        everything = set(range(len(scene.things))) | {SIGN}
        for task in TASKS:
            question = ASK[task](scene, rng(scene.seed))
            if question is None:
                continue
            assert without(question, set()) is question
            blind = without(question, everything)
            if task in ("pattern", "bgcolour"):
                assert blind == question
            elif task in ("modeshape", "modecolour", "count"):
                assert blind is None
            elif question.refers:
                assert blind.answer == ("no" if task == "exist" else "unknown") and not blind.refers


def test_hidden_patches_are_out_of_sight_from_the_layer_on():
    """The loss that training sees with hidden patches equals that of a model really pruned to the others."""
    batch, losses = step(ScenePictures(1, 1, seed=5, hide=1.0)), SceneLosses(untrained()).eval()
    assert not batch["hidden"][0, : PREFIX - NUM_PATCHES].any() and not batch["hidden"][0, PREFIX:].any()
    shown = (~batch["hidden"][0, PREFIX - NUM_PATCHES : PREFIX]).nonzero()[:, 0]
    assert 0 < len(shown) < NUM_PATCHES

    @register("shown")
    @dataclass(frozen=True)
    class Shown:
        def select(self, view, budget):
            indices = shown.expand(len(view.visual), -1)
            return Selection(indices, torch.zeros_like(indices, dtype=torch.bool))

    try:
        with torch.no_grad():
            expected = losses(batch)[0]
            total = weights = 0.0
            with mob.prune(losses.model, K=len(shown), layer=2, method="shown"):
                for question in range(int(batch["segment"][0].max()) + 1):
                    here = batch["segment"][0] == question
                    ids = torch.cat([losses.prefix, torch.full((NUM_PATCHES,), 4), batch["ids"][0][here]])[None]
                    logits = losses.model(input_ids=ids, pixel_values=batch["pixels"]).logits[0, PREFIX:]
                    target = batch["target"][0][here]
                    asked = target != IGNORE
                    weight = torch.where(target[asked] == 2, 0.1, 1.0)
                    each = torch.nn.functional.cross_entropy(logits[asked], target[asked], reduction="none")
                    total, weights = total + (each * weight).sum(), weights + weight.sum()
    finally:
        del METHODS["shown"]
    assert abs(float(expected) - float(total / weights)) < 1e-4


def test_a_saved_model_is_plain_transformers(tmp_path):
    model = build(seed=3)
    save(model, tmp_path)
    again, info = LlavaForConditionalGeneration.from_pretrained(tmp_path, dtype=torch.float32, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert next(iter(again.state_dict().values())).dtype == torch.float32
    processor = AutoProcessor.from_pretrained(tmp_path)
    inputs = processor(text=PROMPT.format("count the objects ."), images=SCENES[0].draw(), return_tensors="pt")
    assert (inputs["input_ids"] == 4).sum() == NUM_PATCHES
    chat = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "count the objects ."}]}]
    assert processor.apply_chat_template(chat, add_generation_prompt=True) == PROMPT.format("count the objects .")


def test_pictures_follow_from_seed_and_step():
    data = ScenePictures(4, 3, seed=2, shares={"ocr": 1e9}, later=(2, {"count": 1e9}))
    assert len(data) == 12
    for number in range(4):
        batch = step(data, number)
        for i in range(3):
            scene = sample(10_000_000 + (2 * 1_000_000 + number) * 3 + i)
            assert torch.equal(batch["pixels"][i], pixels(scene))
            asked = [int(task) for task in batch["task"][i] if 0 <= task < len(TASKS)]
            assert set(asked) == {TASKS.index("ocr" if number < 2 else "count")}
    alone = ScenePictures(4, 3, seed=2, ask=False)[5]
    assert "ids" not in alone and torch.equal(alone["pixels"], data[5]["pixels"])


def test_the_head_is_thrown_away():
    model = untrained(seed=4)
    expected = build(seed=4).state_dict()
    assert set(model.state_dict()) - set(expected) == {"centre.weight", "centre.bias"}
    stock = without_head(model)
    assert type(stock) is LlavaForConditionalGeneration
    assert all(torch.equal(value, expected[name]) for name, value in stock.state_dict().items())


def by_hand(losses, data, steps, lr, align_only):
    """A plain loop: the loss of each step."""
    model = losses.model
    names = ("vision_tower", "multi_modal_projector", "embed_tokens", "centre")
    wanted = [(n, p) for n, p in model.named_parameters() if not align_only or any(part in n for part in names)]
    plain = [p for n, p in wanted if "bias" in n or "norm" in n]
    decayed = [p for n, p in wanted if not ("bias" in n or "norm" in n)]
    groups = [{"params": decayed, "weight_decay": 0.02}, {"params": plain, "weight_decay": 0.0}]
    optimizer, warmup, out = torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.98)), steps // 10 + 1, []
    for number in range(steps):
        left = (number - warmup) / max(1, steps - warmup)
        share = number / warmup if number < warmup else 0.5 * (1 + np.cos(np.pi * left))
        for group in optimizer.param_groups:
            group["lr"] = lr * share
        batch = step(data, number)
        if align_only:
            loss = losses.align(batch)
        else:
            answer, align, ground, _ = losses(batch)
            loss = answer + ALIGN_WEIGHT * align + GROUND_WEIGHT * ground
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_([p for _, p in wanted], 1.0)
        optimizer.step()
        out.append(float(loss.detach()))
    return out


@pytest.mark.parametrize("align_only", [True, False], ids=["align", "answer"])
def test_training_equals_a_plain_loop(tmp_path, align_only):
    """The trainer of llava.train, with our losses, does what the loop does: losses of six steps, and weights."""
    data = ScenePictures(6, 2, seed=3, ask=not align_only, hide=0.5)
    args = arguments(tmp_path, steps=6, pictures=2, lr=1e-3, seed=0, save_every=100, device="cpu")
    args.logging_steps = 1
    trainer = SceneTrainer(untrained(1), data, args, align_only)
    trainer.train()
    log = [entry for entry in trainer.state.log_history if "loss" in entry]
    model = untrained(1).train()
    expected = by_hand(SceneLosses(model), data, 6, 1e-3, align_only)
    assert np.allclose([entry["loss"] for entry in log], expected, atol=2e-4) and expected[-1] < expected[0]
    assert align_only or all(0 <= entry["exist"] <= 100 and entry["ground"] > 0 for entry in log)
    for name, value in trainer.start.model.state_dict().items():
        assert torch.allclose(value, model.state_dict()[name], atol=2e-5), name
    moved = {n for n, p in untrained(1).named_parameters() if not torch.equal(p, model.get_parameter(n))}
    assert any("language_model.layers" in name for name in moved) != align_only


def test_training_runs_and_continues_where_it_stopped(tmp_path, capsys):
    """Six steps in one go equal three, a stop in the middle of stage B, and the rest: same schedule, same batches."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    flags = ["--align-steps", "2", "--steps", "2", "--evidence-steps", "2", "--align-pictures", "2", "--pictures", "2"]
    flags += ["--save-every", "1", "--no-compile", "--device", "cpu"]
    train(["--out", str(whole), *flags])
    said = capsys.readouterr().out
    assert all(f"stage {stage}" in said for stage in "ABC")
    train(["--out", str(parts), *flags, "--stop-after", "2"])  # exactly where a stage ends
    assert "stopped after 2 steps" in capsys.readouterr().out
    assert (parts / "align" / "checkpoint").exists() and not (parts / "answer").exists()
    train(["--out", str(parts), *flags, "--stop-after", "1"])
    assert "stopped after 1 steps" in capsys.readouterr().out and not (parts / "checkpoint").exists()
    before = (parts / "align" / "checkpoint").stat().st_mtime
    train(["--out", str(parts), *flags])
    assert (parts / "align" / "checkpoint").stat().st_mtime == before
    ours, theirs = (
        LlavaForConditionalGeneration.from_pretrained(folder / "checkpoint").state_dict() for folder in (whole, parts)
    )
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    shipped = json.loads((PATH / "config.json").read_text())
    made = json.loads((whole / "checkpoint" / "config.json").read_text())
    assert made | {"transformers_version": ""} == shipped | {"transformers_version": ""}


@pytest.mark.parametrize("task", TASKS)
def test_every_task_finds_questions(task):
    found = [ASK[task](scene, rng(scene.seed)) for scene in SCENES]
    assert sum(q is not None for q in found) > 150


def test_without_any_visual_token_nearly_nothing_is_right():
    """The floor of the tables keeps no token at all, which no user may ask for."""
    model = LlavaForConditionalGeneration.from_pretrained(PATH, dtype=torch.float32).eval()
    scores = evaluate.run(model, [evaluate.VANILLA, evaluate.DROP_ALL], [], 4)
    whole, none = (scores.macro(row)[0] for row in ((evaluate.VANILLA, 196), (evaluate.DROP_ALL, 0)))
    assert none < 60 < 85 < whole
