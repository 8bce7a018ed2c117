"""What is trained, how fast and in which precision, and batches that hold no picture."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from transformers import AutoProcessor, CLIPImageProcessor

from llava.model.builder import load_pretrained_model
from llava.train.llava_trainer import Pace, keep_in_step
from llava.train.train import _check_kinds, train
from training import LORA, ORIGINAL, PROJECTOR, losses, trainer_for


def names(trainer):
    return {name for name, parameter in trainer.start.model.named_parameters() if parameter.requires_grad}


def test_tunable_parts_and_learning_rates(world, squares, tmp_path):
    flags = ("--mm_tunable_parts", "mm_vision_tower,mm_mlp_adapter", "--mm_projector_lr", "3e-3")
    trainer = trainer_for(
        world.flags(tmp_path, squares, *flags, "--mm_vision_tower_lr", "1e-4", "--weight_decay", "0.1")
    )
    assert trainer.start.mode == "full" and trainer.start.own_tower
    parts = {name.split(".")[1] for name in names(trainer)}
    assert parts == {"vision_tower", "multi_modal_projector"}
    # Hidden state -2 is what all layers but the last give.
    assert not any("layers.2." in name or "post_layernorm" in name for name in names(trainer))
    groups = {(g["lr"], g["weight_decay"]): g["params"] for g in trainer.create_optimizer().param_groups}
    assert set(groups) == {(3e-3, 0.1), (3e-3, 0.0), (1e-4, 0.1), (1e-4, 0.0)}
    projector = trainer.start.model.model.multi_modal_projector
    assert {id(p) for p in groups[3e-3, 0.1]} == {id(projector.linear_1.weight), id(projector.linear_2.weight)}
    trainer = trainer_for(world.flags(tmp_path, squares, *LORA, "--mm_projector_lr", "3e-3"))
    assert all(".lora_" in name or "projector" in name for name in names(trainer))
    assert {g["lr"] for g in trainer.create_optimizer().param_groups} == {3e-3, 1e-2}
    trainer = trainer_for(world.flags(tmp_path, squares, "--freeze_backbone", "True"))
    assert {name.split(".")[1] for name in names(trainer)} == {"multi_modal_projector"}


def test_the_time_that_is_left(world, squares, tmp_path, monkeypatch):
    trainer = train(argv=world.flags(tmp_path, squares, "--max_steps", "3"))
    left = [entry["hours_left"] for entry in trainer.state.log_history if "hours_left" in entry]
    assert len(left) >= 3 and left == sorted(left, reverse=True) and left[-1] == 0
    monkeypatch.setattr("time.monotonic", lambda: 7300.0)
    pace = Pace()
    pace.began, pace.first_step = 100.0, 10
    assert pace.hours_left(SimpleNamespace(global_step=10, max_steps=40)) == {}
    assert pace.hours_left(SimpleNamespace(global_step=20, max_steps=40)) == {"hours_left": 4.0}


def test_precisions(world, squares, tmp_path):
    """Frozen weights take half the room, trained ones keep their precision."""
    trainer = trainer_for(world.flags(tmp_path, squares, *LORA, "--bf16", "True", "--max_steps", "2"))
    kinds = {(p.requires_grad, p.dtype) for p in trainer.start.model.parameters()}
    assert kinds == {(True, torch.float32), (False, torch.bfloat16)}
    trainer.train()
    assert all(value > 0 for value in losses(trainer))


def test_a_tower_trained_in_part_has_one_precision(world, squares, tmp_path):
    flags = ("--unfreeze_mm_vision_tower", "True", "--bf16", "True", "--max_steps", "1")
    trainer = train(argv=world.flags(tmp_path, squares, "--freeze_backbone", "True", *flags))
    assert {p.dtype for p in trainer.start.model.model.vision_tower.parameters()} == {torch.float32}


@pytest.mark.slow
@pytest.mark.parametrize("bits", ["8", "4"])
def test_quantised_models_learn_updates(world, squares, tmp_path, bits):
    pytest.importorskip("bitsandbytes")
    flags = (*LORA, *ORIGINAL, "--bits", bits, "--max_steps", "6", "--mob_K", "2")
    trainer = train(argv=world.flags(tmp_path / "llava-q", squares, *flags))
    assert losses(trainer)[-1] < losses(trainer)[0]
    kinds = {p.dtype for p in trainer.start.model.model.vision_tower.parameters()}
    assert kinds == {torch.float32}  # only the language model is quantised
    model = load_pretrained_model(str(tmp_path / "llava-q"), str(world.base), "llava-q", device="cpu")[1]
    assert torch.equal(
        model.model.multi_modal_projector.linear_1.weight,
        trainer.start.model.model.multi_modal_projector.linear_1.weight,
    )


def test_a_batch_of_text_uses_the_tower_without_weight(world, tmp_path):
    """What processes that train together need: gradients, all of them zero, for projector and row marks."""
    data = world.data("texts", samples=1, texts=4)
    tiles = ("--image_aspect_ratio", "anyres", "--image_grid_pinpoints", "[[28, 56]]")
    for flags in ((), tiles):
        trainer = trainer_for(world.flags(tmp_path, data, *flags))
        model = trainer.start.model.train()
        batch = trainer.data_collator([trainer.train_dataset[i] for i in range(1, 5)])
        before = model(**batch).loss
        keep_in_step(model)
        after = model(**batch).loss
        after.backward()
        assert torch.equal(before, after)
        changed = [p for n, p in model.named_parameters() if "projector" in n or "newline" in n]
        assert all(p.grad is not None and not p.grad.any() for p in changed)


@pytest.mark.parametrize("flags", [PROJECTOR, ("--mm_tunable_parts", "mm_vision_tower,mm_mlp_adapter")])
def test_batches_of_text_where_words_are_frozen(world, tmp_path, flags):
    """They have nothing to teach, and stop no run; data of nothing else does."""
    data = world.data("texts", samples=1, texts=4)
    more = ("--per_device_train_batch_size", "1", "--max_steps", "5")
    trainer = train(argv=world.flags(tmp_path / "a", data, *flags, *more))
    assert trainer.state.global_step == 5
    records = [record for record in json.loads(data.read_text()) if "image" not in record]
    (tmp_path / "texts.json").write_text(json.dumps(records))
    with pytest.raises(ValueError, match="no sample has a picture"):
        trainer_for(world.flags(tmp_path / "b", tmp_path / "texts.json", *flags))


def test_square_pictures_from_a_folder_that_pads(world, tmp_path):
    """The flag is what the processor follows, in training and in what is saved."""
    data = world.data("wide", samples=2)
    Image.new("RGB", (40, 20), "red").save(data.parent / "0.png")
    train(argv=world.flags(tmp_path / "llava-pad", data, "--max_steps", "1"))
    started = ("--model_name_or_path", str(tmp_path / "llava-pad"), "--version", "llava_hf")
    pixels = {}
    for aspect in ("pad", "square"):
        out = tmp_path / f"llava-{aspect}-2"
        argv = world.flags(out, data, *started, "--max_steps", "1", "--image_aspect_ratio", aspect, base=False)
        pixels[aspect] = train(argv=argv).train_dataset[0]["pixel_values"][0]
        stock = AutoProcessor.from_pretrained(out).image_processor
        picture = Image.open(data.parent / "0.png").convert("RGB")
        again = torch.as_tensor(stock(picture, return_tensors="pt")["pixel_values"][0])
        assert torch.equal(again, pixels[aspect])
    crop = CLIPImageProcessor.from_pretrained(world.tower)(picture, return_tensors="pt")
    assert torch.equal(pixels["square"], torch.as_tensor(crop["pixel_values"][0]))
    assert not torch.equal(pixels["square"], pixels["pad"])


def test_rules_before_the_decoder_and_texts_are_not_for_zero_3(world, tmp_path):
    """Their order of modules is another one, and processes with and without pictures would hang."""
    trainer = trainer_for(world.flags(tmp_path, world.data("texts", samples=1, texts=4)))
    data, model, early = trainer.train_dataset, trainer.start.model, {"K": 2, "method": "divprune"}
    zero3, zero2 = (SimpleNamespace(is_zero3=lambda stage=stage: stage == 3) for stage in (3, 2))
    with pytest.raises(ValueError, match="divprune with ZeRO-3 and texts.*use scripts/zero2.json"):
        _check_kinds(data, model, early, SimpleNamespace(hf_deepspeed_config=zero3))
    _check_kinds(data, model, early, SimpleNamespace(hf_deepspeed_config=zero2))
    _check_kinds(data, model, {"K": 2}, SimpleNamespace(hf_deepspeed_config=zero3))


def test_text_and_pictures_go_the_same_way(world, tmp_path):
    """ZeRO gathers weights in the order in which modules run: it must be the same in processes with and without."""
    trainer = trainer_for(world.flags(tmp_path, world.data("texts", samples=1, texts=4)))
    model, order = trainer.start.model.train(), []
    keep_in_step(model)
    for name, module in model.named_modules():
        if next(module.parameters(recurse=False), None) is not None:
            module.register_forward_pre_hook(lambda *_, name=name: order.append(name))
    for numbers in ([0, 1], [1, 2]):
        model(**trainer.data_collator([trainer.train_dataset[i] for i in numbers]))
    assert order[: len(order) // 2] == order[len(order) // 2 :]
