"""Under every rule, gradients are those of the loss: vision tower and projector learn, and choices pass nothing on."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import cross_entropy

from families.test_early import KNOWN
from llava.train.train import train
from mob import MoBConfig
from mob.methods import METHODS
from training import losses, same, trainer_for, weights

RULES = sorted(set(METHODS) - {"codebook"}) + ["divprune+mob", "visionzip+mob"]  # a codebook is of one model
STEP = 3e-4  # norms are computed in float32 whatever the model


@pytest.fixture(autouse=True)
def encoded_pictures(rule):
    """Rules before the decoder are refused by a transformers that takes no encoded pictures, such as 5.17."""
    if MoBConfig.from_dict({"method": rule, "K": 2}).rules()[0] and not KNOWN:
        pytest.skip("this transformers takes no encoded pictures")


def loss_of(model, batch):
    """In float64; the model's own is rounded to float32."""
    return cross_entropy(model(**batch).logits[:, :-1].transpose(1, 2), batch["labels"][:, 1:])


def moved(model, batch, parts, sign):
    """The loss with these parameters a little along their gradients."""
    with torch.no_grad():
        for part in parts:
            part.add_(part.grad, alpha=sign * STEP)
        loss = loss_of(model, batch).item()
        for part in parts:
            part.add_(part.grad, alpha=-sign * STEP)
    return loss


@pytest.mark.parametrize("rule", RULES)
def test_gradients_are_finite_differences(world, squares, tmp_path, rule):
    flags = ("--mob_K", "2", "--mob_method", rule, "--unfreeze_mm_vision_tower", "True")
    trainer = trainer_for(world.flags(tmp_path, squares, *flags))
    model = trainer.start.model.double().eval()
    batch = trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))
    noise = torch.Generator().manual_seed(0)  # patches that no small step makes change places
    batch["pixel_values"] = torch.randn(batch["pixel_values"].shape, generator=noise, dtype=torch.float64)
    loss_of(model, batch).backward()
    for module in (model.model.multi_modal_projector, model.model.vision_tower):
        parts = [part for part in module.parameters() if part.requires_grad]
        expected = sum(part.grad.square().sum().item() for part in parts)
        found = (moved(model, batch, parts, 1) - moved(model, batch, parts, -1)) / (2 * STEP)
        assert found == pytest.approx(expected, rel=0.01) and expected > 1e-6


@pytest.mark.parametrize("rule", ["divprune", "pooling", "visionzip", "divprune+mob"])
def test_rules_before_the_decoder_keep_everything_to_the_bit(world, squares, tmp_path, rule):
    flags = ("--max_steps", "3", "--mob_K")
    plain = train(argv=world.flags(tmp_path / "a", squares, *flags[:2]))
    kept = train(argv=world.flags(tmp_path / "b", squares, *flags, "9", "--mob_method", rule))
    assert losses(plain) == losses(kept) and same(weights(plain.start.model), weights(kept.start.model))


@pytest.mark.parametrize("rule", ["divprune", "visionzip", "mob"])
def test_the_projector_alone_learns_under_every_kind_of_rule(world, squares, tmp_path, rule):
    flags = ("--tune_mm_mlp_adapter", "True", "--mob_K", "2", "--mob_method", rule, "--max_steps", "2")
    trainer = trainer_for(world.flags(tmp_path, squares, *flags))
    before = weights(trainer.start.model.model.multi_modal_projector)
    trainer.train()
    after = weights(trainer.start.model.model.multi_modal_projector)
    assert not any(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("rule", ["visionzip", "pooling"])
def test_layers_that_are_computed_twice_change_nothing(world, squares, tmp_path, rule):
    """Also in a tower that a rule watches and that is trained itself."""
    flags = ("--mob_K", "2", "--mob_method", rule, "--unfreeze_mm_vision_tower", "True", "--max_steps", "2")
    plain = train(argv=world.flags(tmp_path / "a", squares, *flags))
    twice = train(argv=world.flags(tmp_path / "b", squares, *flags, "--gradient_checkpointing", "True"))
    assert losses(plain) == losses(twice) and same(weights(plain.start.model), weights(twice.start.model))
