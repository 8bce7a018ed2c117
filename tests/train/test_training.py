"""Whole runs of a tiny model: what is trained, how it is saved, and that nothing but the flags decides the result."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from PIL import Image
from torch.nn.functional import cross_entropy
from transformers import AutoProcessor

import checkpoints
from llava.mm_utils import process_images
from llava.model.builder import load_pretrained_model
from llava.model.formats import holds_tower
from llava.train.arguments import EVERY, MobArguments
from llava.train.saving import merged
from llava.train.train import train
from mob.config import MoBConfig
from reference import SlowDecoder
from training import LORA, ORIGINAL, PROJECTOR, losses, same, trainer_for, weights

VOCABULARY = checkpoints.VOCABULARY


# Results


@pytest.mark.parametrize("layout", ["hf", "original"])
@pytest.mark.parametrize("mode", ["full", "projector", "lora"])
def test_each_mode_learns_and_its_result_loads(world, scenes, tmp_path, mode, layout):
    """On 64 scenes: the loss falls, and what was saved is what was trained."""
    flags = {"full": (), "projector": (*PROJECTOR, "--learning_rate", "0.1"), "lora": LORA}[mode]
    out = tmp_path / "llava-run"
    trainer = train(argv=world.flags(out, scenes, *flags, "--save_format", layout, "--num_train_epochs", "2"))
    curve = losses(trainer)
    assert curve[-1] < 0.97 * curve[0] and trainer.start.mode == mode
    base = str(world.base) if layout == "original" and mode != "full" else None
    tokenizer, model, image_processor, _ = load_pretrained_model(str(out), base, out.name, device="cpu")
    expected = merged(trainer.start, trainer.start.model.state_dict())
    assert model.state_dict().keys() == expected.keys()
    for name, value in model.state_dict().items():
        # The original layout has no row for the placeholder.
        rows = VOCABULARY if name.endswith(("embed_tokens.weight", "lm_head.weight")) else len(value)
        assert torch.allclose(value[:rows], expected[name][:rows], atol=1e-6), name
    if layout == "original":
        raw = json.loads((out / "config.json").read_text())
        assert raw["vocab_size"] == VOCABULARY and raw["mm_vision_tower"] == str(world.tower)
        assert raw["image_aspect_ratio"] == "pad" and raw["tune_mm_mlp_adapter"] == (mode == "projector")
    else:
        stock = AutoProcessor.from_pretrained(out)
        inputs = stock(text="<image>", images=Image.new("RGB", (28, 28)), return_tensors="pt")
        assert (inputs["input_ids"] == model.config.image_token_id).sum() == 4 and inputs["pixel_values"].ndim == 4
        assert stock.tokenizer.padding_side == "left"  # or a batch could not be generated from
    prompt, trained = ("USER: hi</s>", trainer.start.tokenizer)
    assert tokenizer(prompt)["input_ids"] == trained(prompt)["input_ids"]


def test_two_stages(world, squares, tmp_path):
    """Captions first, then instructions from the projector that this gave; tiles like LLaVA-1.6's in both."""
    tiles = ("--image_aspect_ratio", "anyres", "--image_grid_pinpoints", "(1x1),...,(1x2)")
    first = tmp_path / "llava-pretrain"
    train(argv=world.flags(first, squares, *PROJECTOR, *ORIGINAL, *tiles, "--version", "plain", "--max_steps", "4"))
    assert set(torch.load(first / "mm_projector.bin", weights_only=True)) == {
        "model.image_newline",
        *(f"model.mm_projector.{i}.{kind}" for i in (0, 2) for kind in ("weight", "bias")),
    }
    given = ("--pretrain_mm_mlp_adapter", str(first / "mm_projector.bin"))
    out = tmp_path / "llava-next"
    trainer = train(argv=world.flags(out, squares, *tiles, *ORIGINAL, *given, "--max_steps", "2"))
    assert trainer.start.model.config.model_type == "llava_next"
    assert json.loads((out / "config.json").read_text())["image_grid_pinpoints"] == [[28, 28], [28, 56]]
    model = load_pretrained_model(str(out), None, out.name, device="cpu")[1]
    assert torch.equal(model.model.image_newline, trainer.start.model.model.image_newline)
    # And on from there: a folder in the original layout is a start too.
    again = trainer_for(world.flags(tmp_path / "x", squares, *tiles, "--model_name_or_path", str(out), base=False))
    for name, value in again.start.model.state_dict().items():
        assert torch.equal(value[:VOCABULARY], model.state_dict()[name][:VOCABULARY]), name
    # Without them the tests' flags say pad, as those of the scripts do.
    with pytest.raises(ValueError, match="cuts pictures into tiles"):
        trainer_for(world.flags(tmp_path / "x", squares, "--model_name_or_path", str(out), base=False))
    # What the second stage begins with is what the first has learnt.
    begun = trainer_for(world.flags(tmp_path / "w", squares, *tiles, *given))
    learnt = torch.load(given[1], weights_only=True)
    projector = begun.start.model.model.multi_modal_projector
    assert torch.equal(projector.linear_1.weight, learnt["model.mm_projector.0.weight"])
    assert torch.equal(projector.linear_2.bias, learnt["model.mm_projector.2.bias"])
    assert torch.equal(begun.start.model.model.image_newline, learnt["model.image_newline"])


TILES = ("--image_aspect_ratio", "anyres", "--image_grid_pinpoints", "[[28, 56], [56, 28], [56, 56]]")


@pytest.mark.parametrize("flags", [TILES, ("--image_aspect_ratio", "pad"), ("--image_aspect_ratio", "square")])
def test_what_is_saved_for_stock_code_sees_what_was_trained_on(world, squares, tmp_path, flags):
    """Our own loader squares, pads and cuts pictures by itself; stock code asks the image processor to."""
    out = tmp_path / "llava-stock"
    trainer = train(argv=world.flags(out, squares, *flags, "--max_steps", "1"))
    model, image_processor = load_pretrained_model(str(out), None, out.name, device="cpu")[1:3]
    stock = AutoProcessor.from_pretrained(out)
    assert ("Next" in type(stock).__name__) == (flags is TILES) and stock.tokenizer.padding_side == "left"
    gradient = torch.arange(96 * 96 * 3, dtype=torch.float32).reshape(96, 96, 3).sin().mul(127).add(128)
    whole = Image.fromarray(gradient.to(torch.uint8).numpy())
    for size in ((28, 28), (31, 90), (90, 31), (96, 96), (5, 9)):
        picture = whole.crop((0, 0, *size))
        trained = process_images([picture], trainer.start.image_processor, trainer.start.model.config)
        inputs = stock(text="<image>", images=picture, return_tensors="pt")
        assert torch.equal(inputs["pixel_values"], trained), size
        assert torch.equal(torch.as_tensor(process_images([picture], image_processor, model.config)), trained), size
        assert model(**inputs).logits.isfinite().all()  # as many placeholders as tokens, or it refuses


@pytest.mark.parametrize("flags", [(), ("--mm_tunable_parts", "mm_vision_tower,mm_mlp_adapter")])
def test_the_original_is_told_of_a_tower_of_ones_own(world, squares, tmp_path, flags):
    """Or it would load the one that the config names over that in the folder: LLaVA-1.6's, or a trained one."""
    started = ()
    if not flags:
        source = checkpoints.next_model()
        whole = checkpoints.original_folder(tmp_path / "v1.6", world.tower, source, with_tower=True, **checkpoints.NEXT)
        started = (*TILES[:2], "--model_name_or_path", str(whole))
    out = tmp_path / "llava-out"
    train(argv=world.flags(out, squares, *started, *flags, *ORIGINAL, "--max_steps", "1", base=not started))
    assert json.loads((out / "config.json").read_text())["unfreeze_mm_vision_tower"] is True and holds_tower(out)


def test_the_first_stage_may_save_a_whole_model(world, squares, tmp_path):
    """Its projector is found there, even under the name that upstream's command line has."""
    first = tmp_path / "llava-pretrain"
    trained = train(argv=world.flags(first, squares, *PROJECTOR, "--version", "plain", "--max_steps", "2"))
    learnt = trained.start.model.model.multi_modal_projector.state_dict()
    for given in (first, first / "mm_projector.bin"):
        argv = world.flags(tmp_path / "second", squares, "--pretrain_mm_mlp_adapter", str(given))
        begun = trainer_for(argv).start.model.model.multi_modal_projector.state_dict()
        assert all(torch.equal(begun[name], value) for name, value in learnt.items())


def test_starts_in_the_layout_of_transformers_and_from_adapters(world, squares, tmp_path):
    out = tmp_path / "llava-lora"
    lora = train(argv=world.flags(out, squares, *LORA, *ORIGINAL, "--max_steps", "2"))
    expected = merged(lora.start, lora.start.model.state_dict())
    flags = ("--model_name_or_path", str(out), "--model_base", str(world.base))
    again = trainer_for(world.flags(tmp_path / "y", squares, *flags, base=False))
    for name, value in again.start.model.state_dict().items():
        assert torch.allclose(value[:VOCABULARY], expected[name][:VOCABULARY], atol=1e-6)
    hf = checkpoints.stock_folder(tmp_path / "hf", checkpoints.model())
    flags = ("--model_name_or_path", str(hf))
    trainer = train(argv=world.flags(tmp_path / "llava-z", squares, *flags, *LORA, "--max_steps", "2", base=False))
    tokenizer, model, _, _ = load_pretrained_model(str(tmp_path / "llava-z"), None, "llava-z", device="cpu")
    assert tokenizer.chat_template and same(weights(model), merged(trainer.start, trainer.start.model.state_dict()))
    with pytest.raises(ValueError, match="its config.json must name the vision tower"):
        trainer_for(world.flags(tmp_path / "y", squares, *flags, *ORIGINAL, base=False))


def test_a_frozen_projector_goes_with_low_rank_updates(world, squares, tmp_path):
    """The base is a language model: what was saved could not be loaded without it."""
    first = tmp_path / "llava-pretrain"
    train(argv=world.flags(first, squares, *PROJECTOR, *ORIGINAL, "--version", "plain", "--max_steps", "2"))
    flags = ("--pretrain_mm_mlp_adapter", str(first / "mm_projector.bin"), "--freeze_mm_mlp_adapter", "True")
    flags += (*LORA, *ORIGINAL, "--max_steps", "2", "--save_strategy", "steps", "--save_steps", "2")
    out = tmp_path / "llava-lora"
    trainer = train(argv=world.flags(out, squares, *flags))
    model = load_pretrained_model(str(out), str(world.base), out.name, device="cpu")[1]
    own, loaded = (one.model.multi_modal_projector.state_dict() for one in (trainer.start.model, model))
    assert same(own, loaded)
    again = train(argv=world.flags(out, squares, *flags))  # goes on from its checkpoint
    assert same(weights(trainer.start.model), weights(again.start.model))


def test_a_trained_tower_is_in_the_original_layout(world, squares, tmp_path):
    out = tmp_path / "llava-tower"
    flags = ("--unfreeze_mm_vision_tower", "True", "--mm_vision_select_layer", "-1", "--max_steps", "2", *ORIGINAL)
    trainer = train(argv=world.flags(out, squares, *flags))
    assert json.loads((out / "config.json").read_text())["mm_vision_select_layer"] == -1
    model = load_pretrained_model(str(out), None, out.name, device="cpu")[1]
    assert model.config.vision_feature_layer == -1
    own, loaded = (one.model.vision_tower.state_dict() for one in (trainer.start.model, model))
    assert same(own, loaded)
    fresh = trainer_for(world.flags(tmp_path / "x", squares)).start.model.model.vision_tower.state_dict()
    assert not same(own, fresh)


# The step


def batches_of(trainer):
    return [trainer._prepare_inputs(batch) for batch in trainer.get_train_dataloader()]


@pytest.mark.parametrize("mob", [(), ("--mob_K", "2", "--mob_layer", "1")], ids=["plain", "pruned"])
def test_a_step_equals_a_plain_loop(world, tmp_path, mob):
    """Two accumulated batches with different numbers of answers: loss, gradients and weights of a loop by hand."""
    data = world.data("mixed", samples=6, texts=6)
    flags = ("--gradient_accumulation_steps", "2", "--max_steps", "1", "--per_device_train_batch_size", "4", *mob)
    flags += ("--optim", "sgd", "--lr_scheduler_type", "constant", "--max_grad_norm", "0", "--logging_steps", "1")
    trainer = trainer_for(world.flags(tmp_path / "out", data, *flags))
    model = copy.deepcopy(trainer.start.model).train()
    first = batches_of(trainer)[:2]
    trainer.train()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    total, count = 0.0, sum((batch["labels"][:, 1:] != -100).sum() for batch in first)
    for batch in first:
        logits = model(**batch).logits if mob else model(**{k: v for k, v in batch.items() if k != "labels"}).logits
        shifted = batch["labels"][:, 1:]
        total = total + cross_entropy(logits[:, :-1].transpose(1, 2), shifted, reduction="sum")
    (total / count).backward()
    optimizer.step()
    assert abs(losses(trainer)[0] - (total / count).item()) < 1e-5
    for name, value in trainer.start.model.state_dict().items():
        assert torch.allclose(value, model.state_dict()[name], atol=1e-7), name


def test_pruned_loss_is_that_of_the_shortened_sequence(world, squares, tmp_path):
    """Every sample alone, without hooks, its dropped tokens left out by hand."""
    trainer = trainer_for(world.flags(tmp_path / "out", squares, "--mob_K", "2", "--mob_layer", "1"))
    model = trainer.start.model.double().eval()
    batch = next(iter(batches_of(trainer)))
    batch["pixel_values"] = batch["pixel_values"].double()
    settings = MoBConfig.from_dict(model.config.MoB_config)
    assert settings.K == 2
    with torch.no_grad():
        loss = model(**batch).loss
    model.config.MoB_config = {}
    budget = settings.budget(4)
    slow = SlowDecoder(model, lambda n: (budget.K, budget.K_p, budget.k), layer=1)
    parts = []
    for row in range(len(batch["input_ids"])):
        real = batch["attention_mask"][row].bool()
        ids, labels = batch["input_ids"][row][real], batch["labels"][row][real]
        asked = int((labels == -100).sum())  # the answer comes last
        inputs = {"input_ids": ids[None], "pixel_values": batch["pixel_values"][row : row + 1]}
        logits = slow.run(inputs, [(0, asked)], [[4]])
        assert len(slow.dropped) == 2
        parts.append(cross_entropy(logits[:-1], labels[1:], reduction="none")[asked - 1 :])
    assert abs(loss.item() - torch.cat(parts).mean().item()) < 1e-6


def test_keeping_everything_is_bit_identical(world, squares, tmp_path):
    flags = ("--max_steps", "4", "--gradient_checkpointing", "True")
    plain = train(argv=world.flags(tmp_path / "a", squares, *flags))
    kept = train(argv=world.flags(tmp_path / "b", squares, *flags, "--mob_K", "4"))
    more = train(argv=world.flags(tmp_path / "d", squares, *flags, "--mob_K", "9"))
    pruned = train(argv=world.flags(tmp_path / "c", squares, *flags, "--mob_K", "1"))
    assert losses(plain) == losses(kept) == losses(more) != losses(pruned)
    for enough in (kept, more):
        assert same(weights(plain.start.model), weights(enough.start.model))
    assert json.loads((tmp_path / "b" / "config.json").read_text())["MoB_config"] == {"K": 4}


def test_random_budgets(world, squares, tmp_path):
    """One K a step, the same whenever and wherever the step is done; what is saved does not depend on the last."""
    flags = ("--mob_random_K", "1", "2", "3", "--max_steps", "8", "--gradient_accumulation_steps", "2")
    trainer = trainer_for(world.flags(tmp_path / "a", squares, *flags))
    seen = []
    forward = trainer.compute_loss
    trainer.compute_loss = lambda *a, **k: seen.append(trainer.start.model.config.MoB_config["K"]) or forward(*a, **k)
    trainer.train()
    draws = next(c for c in trainer.callback_handler.callbacks if type(c).__name__ == "RandomK")
    assert seen == [draws.draw(step) for step in range(8) for _ in range(2)] and set(seen) == {1, 2, 3}
    trainer.save_model()
    assert json.loads((tmp_path / "a" / "config.json").read_text())["MoB_config"] == {"K": 3}
    with pytest.raises(ValueError, match="randon"):
        trainer_for(world.flags(tmp_path / "b", squares, "--mob_K", "2", "--mob_method", "randon"))
    with pytest.raises(ValueError, match="contradict"):
        trainer_for(world.flags(tmp_path / "b", squares, "--mob_random_K", "2", "--mob_off", "True"))


def test_rules_with_options_and_joined_rules():
    asked = MobArguments(mob_K="9", mob_method="pyramiddrop", mob_options='{"layers": [1, 3]}').settings(None)
    assert asked == {"K": 9, "method": "pyramiddrop", "options": {"layers": [1, 3]}}
    assert MobArguments(mob_K="9", mob_method="divprune+mob").settings({}) == {"K": 9, "method": "divprune+mob"}
    with pytest.raises(ValueError, match="did you mean 'layers'"):
        MobArguments(mob_K="9", mob_method="pyramiddrop", mob_options='{"lyers": [1, 3]}').settings({})


def test_every_token_among_random_shares(world, squares, tmp_path):
    """1.0 means all of them, as shares do not count them; a step that draws it is a step of an unpruned run."""
    flags = ("--mob_random_K", "1.0", "0.5", "0.25", "--mob_layer", "1", "--max_steps", "6")
    trainer = train(argv=world.flags(tmp_path / "a", squares, *flags))
    draws = next(c for c in trainer.callback_handler.callbacks if type(c).__name__ == "RandomK")
    assert {draws.draw(step) for step in range(6)} == {EVERY, 0.5, 0.25}
    assert json.loads((tmp_path / "a" / "config.json").read_text())["MoB_config"] == {"l_idx": 1}  # not pruned in use
    plain, whole = (
        train(argv=world.flags(tmp_path / "b", squares, *TILES, "--max_steps", "2", *more))
        for more in ((), ("--mob_random_K", "1.0", "--mob_method", "pooling"))
    )
    assert losses(plain) == losses(whole) and same(weights(plain.start.model), weights(whole.start.model))
    kept = trainer_for(world.flags(tmp_path / "c", squares, *flags, "--mob_K", "0.5"))
    assert kept.mob["K"] == 0.5
