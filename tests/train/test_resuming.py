"""Runs that are interrupted go on as if nothing had been, and samples come in the order that was asked for."""

from __future__ import annotations

import multiprocessing
import random
import shutil
import time

import pytest

from llava.model.builder import load_pretrained_model
from llava.train.arguments import parse
from llava.train.train import checkpoint_to_continue, train
from training import LORA, PROJECTOR, losses, same, trainer_for, weights


@pytest.mark.parametrize(
    "flags",
    [
        pytest.param(("--mob_random_K", "1", "3"), id="full"),
        pytest.param((*LORA, "--gradient_accumulation_steps", "2"), id="lora", marks=pytest.mark.slow),
    ],
)
def test_killed_three_times(world, tmp_path, flags):
    """A run that is killed at any moment and started again ends with the very same weights."""
    data = world.data("interrupted", samples=30, texts=15)
    flags = (*flags, "--max_steps", "60", "--per_device_train_batch_size", "2", "--save_strategy", "steps")
    flags += ("--save_steps", "4", "--save_total_limit", "2", "--group_by_modality_length", "True")
    flags += ("--logging_strategy", "no")
    whole = train(argv=world.flags(tmp_path / "whole", data, *flags))
    argv = world.flags(tmp_path / "killed", data, *flags)
    dice, context = random.Random(5), multiprocessing.get_context("fork")
    for target in (8, 24, 40):
        child = context.Process(target=train, kwargs={"argv": argv})
        child.start()
        deadline = time.monotonic() + 120
        while (checkpoint_step(argv) or 0) < target and child.is_alive() and time.monotonic() < deadline:
            time.sleep(0.005)
        time.sleep(dice.random() * 0.3)
        child.kill()
        child.join()
        assert child.exitcode == -9 and 0 < checkpoint_step(argv) < 60
    torn = tmp_path / "killed" / "checkpoint-999"
    shutil.copytree(checkpoint(argv), torn)
    (torn / "trainer_state.json").write_text('{"global_step": 9')
    resumed = train(argv=argv)
    assert resumed.state.global_step == 60
    assert same(weights(whole.start.model), weights(resumed.start.model))


def checkpoint(argv):
    return checkpoint_to_continue(parse(argv)[2])


def checkpoint_step(argv):
    found = checkpoint(argv)
    return int(found.rsplit("-", 1)[1]) if found else None


@pytest.mark.parametrize("grouped", ["False", "True"])
def test_a_random_order_goes_on_too(world, tmp_path, grouped):
    """In the second epoch, and with a worker that reads ahead."""
    data = world.data("shuffled", samples=14, texts=6)
    flags = ("--num_train_epochs", "2", "--per_device_train_batch_size", "4", "--save_strategy", "steps")
    flags += ("--save_steps", "7", "--dataloader_num_workers", "1", "--group_by_modality_length", grouped)
    argv = world.flags(tmp_path, data, *flags)
    whole = train(argv=argv)
    shutil.rmtree(tmp_path / "checkpoint-10")
    assert checkpoint_step(argv) == 7
    resumed = train(argv=argv)
    assert resumed.state.global_step == 10 and losses(resumed) == losses(whole)
    assert same(weights(whole.start.model), weights(resumed.start.model))


def test_a_finished_run_is_finished(world, squares, tmp_path, capsys):
    """Also where it was killed between the last checkpoint and saving the model."""
    flags = ("--max_steps", "3", "--save_strategy", "steps", "--save_steps", "1", "--lr_scheduler_type", "constant")
    argv = world.flags(tmp_path, squares, *flags)
    first = train(argv=argv)
    capsys.readouterr()
    again = train(argv=argv)
    said = capsys.readouterr().err
    assert "continuing with" in said and "nothing was left to train" in said
    assert again.state.global_step == 3 and not (tmp_path / "checkpoint-4").exists()
    assert same(weights(first.start.model), weights(again.start.model))


@pytest.mark.parametrize("flags", [PROJECTOR, LORA], ids=["projector", "lora"])
def test_adapters_go_on_from_their_checkpoints(world, squares, tmp_path, flags):
    more = ("--max_steps", "4", "--save_strategy", "steps", "--save_steps", "2", "--lora_dropout", "0")
    argv = world.flags(tmp_path, squares, *flags, *more)
    whole = train(argv=argv)
    shutil.rmtree(tmp_path / "checkpoint-4")
    resumed = train(argv=argv)
    assert resumed.state.global_step == 4
    assert same(weights(whole.start.model), weights(resumed.start.model))


def test_going_on_or_not(world, squares, tmp_path):
    argv = world.flags(
        tmp_path / "a", squares, *PROJECTOR, "--max_steps", "2", "--save_strategy", "steps", "--save_steps", "1"
    )
    train(argv=argv)
    assert checkpoint(argv).endswith("checkpoint-2")
    assert checkpoint([*argv, "--resume_from_checkpoint", "no"]) is None
    shutil.copytree(tmp_path / "a/checkpoint-2", tmp_path / "a/checkpoint-2-backup")
    assert checkpoint(argv).endswith("checkpoint-2")
    assert checkpoint([*argv, "--resume_from_checkpoint", str(tmp_path / "a/checkpoint-1")]).endswith("checkpoint-1")
    with pytest.raises(ValueError, match="no whole checkpoint"):
        checkpoint([*argv, "--resume_from_checkpoint", str(tmp_path)])
    model = load_pretrained_model(str(tmp_path / "a/checkpoint-2"), str(world.base), "x", device="cpu")[1]
    assert model.config.model_type == "llava"  # checkpoints load as they are
    other = [*argv, "--freeze_mm_mlp_adapter", "True", "--tune_mm_mlp_adapter", "False", *LORA]
    with pytest.raises(ValueError, match="another tune_mm_mlp_adapter, freeze_mm_mlp_adapter, lora_enable"):
        train(argv=other)
    with pytest.raises(ValueError, match="is of a projector run, this one is lora: use another output_dir"):
        train(argv=[*other, "--resume_from_checkpoint", "last"])


@pytest.mark.parametrize(
    "flags, name",
    [
        (("--learning_rate", "1e-5"), "learning_rate"),
        (("--mob_K", "2"), "mob_K"),
        (("--seed", "7"), "seed"),
        (("--version", "llava_hf"), "version"),
        (("--data_path", "mixed"), "data_bytes"),
    ],
)
def test_another_run_does_not_go_on_with_this_ones_checkpoints(world, squares, tmp_path, flags, name):
    """It would keep what the first decided, or, where that had finished, train nothing and save."""
    more = ("--max_steps", "2", "--save_strategy", "steps", "--save_steps", "1")
    argv = world.flags(tmp_path, squares, *PROJECTOR, *more)
    train(argv=argv)
    flags = [str(world.data("other", samples=9)) if value == "mixed" else value for value in flags]
    with pytest.raises(ValueError, match=f"holds a run with another {name}.*choose another --output_dir"):
        train(argv=[*argv, *flags])
    moved = shutil.move(squares.parent, tmp_path / "moved")
    try:
        longer = train(argv=[*argv, "--data_path", str(tmp_path / "moved" / "data.json"), "--max_steps", "3"])
    finally:
        shutil.move(moved, squares.parent)
    assert longer.state.global_step == 3  # longer, and with folders moved, it is the same run
    train(argv=[*argv, *flags, "--max_steps", "4", "--resume_from_checkpoint", "last"])
    assert train(argv=[*argv, *flags, "--max_steps", "4"]).state.global_step == 4  # from then on it is that run


def test_a_torn_checkpoint_does_not_push_out_whole_ones(world, squares, tmp_path, capsys):
    """With the highest number it would be the one that is spared."""
    more = ("--save_strategy", "steps", "--save_steps", "1", "--save_total_limit", "1", "--max_steps")
    argv = world.flags(tmp_path, squares, *PROJECTOR, *more)
    train(argv=[*argv, "1"])
    (tmp_path / "checkpoint-60").mkdir()
    train(argv=[*argv, "3"])
    assert checkpoint_step([*argv, "3"]) == 3
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-3"]
    assert "checkpoint-60 is now earlier/checkpoint-60" in capsys.readouterr().err


@pytest.mark.parametrize("flags", [PROJECTOR, LORA], ids=["projector", "lora"])
def test_a_finished_run_saved_in_another_layout(world, squares, tmp_path, flags):
    """What the first layout left does not get in the way of loading."""
    more = ("--max_steps", "1", "--save_strategy", "steps", "--save_steps", "1", "--save_format")
    argv = world.flags(tmp_path / "llava", squares, *flags, *more)
    for layout, base in (("original", str(world.base)), ("hf", None), ("original", str(world.base))):
        trainer = train(argv=[*argv, layout])
        model = load_pretrained_model(str(tmp_path / "llava"), base, "llava", device="cpu")[1]
        own = trainer.start.model.model.multi_modal_projector
        assert same(weights(own), weights(model.model.multi_modal_projector))


def test_weights_alone_are_nothing_to_go_on_with(world, squares, tmp_path):
    """Their schedule would start anew, and with it the rate, in silence."""
    argv = world.flags(tmp_path / "a", squares, "--max_steps", "2", "--save_strategy", "steps", "--save_steps", "2")
    train(argv=[*argv, "--save_only_model", "True"])
    with pytest.raises(ValueError, match="checkpoint-2 holds weights only.*--resume_from_checkpoint no.*--model_name"):
        train(argv=argv)
    named = ("--output_dir", str(tmp_path / "b"), "--resume_from_checkpoint", str(tmp_path / "a" / "checkpoint-2"))
    with pytest.raises(ValueError, match="holds weights only"):
        train(argv=[*argv, *named])
    assert checkpoint([*argv, "--resume_from_checkpoint", "no"]) is None
    begun = ("--output_dir", str(tmp_path / "b"), "--version", "llava_hf", "--model_name_or_path")
    train(argv=[*argv, *begun, str(tmp_path / "a" / "checkpoint-2")])  # as the message says
    (tmp_path / "b" / "checkpoint-2" / "scheduler.pt").unlink()
    (tmp_path / "b" / "checkpoint-2" / "global_step2").mkdir()  # where DeepSpeed has it
    assert checkpoint([*argv, *named[:2]]).endswith("checkpoint-2")


def test_a_run_that_starts_afresh_leaves_nothing_to_continue_wrongly(world, squares, tmp_path, capsys):
    """What comes after the checkpoint that a run begins with is another run's."""
    folder = tmp_path / "a"
    more = ("--save_strategy", "steps", "--save_steps", "1", "--save_total_limit", "3")
    argv = [*world.flags(folder, squares, *PROJECTOR, *more), "--max_steps"]
    steps = lambda: sorted(int(path.name[11:]) for path in folder.glob("checkpoint-*"))  # noqa: E731
    train(argv=[*argv, "3"])
    train(argv=[*argv, "2", "--resume_from_checkpoint", "no"])
    assert steps() == [1, 2]
    assert {path.name for path in (folder / "earlier").iterdir()} == {f"checkpoint-{n}" for n in (1, 2, 3)}
    train(argv=[*argv, "3", "--resume_from_checkpoint", str(folder / "checkpoint-1")])
    assert steps() == [1, 2, 3]
    assert (folder / "earlier/checkpoint-2-2").is_dir()
    assert "checkpoint-2 is now earlier/checkpoint-2-2" in capsys.readouterr().err
    train(argv=[*argv, "3"])  # nothing left to do, and nothing moved
    assert steps() == [1, 2, 3] and len(list((folder / "earlier").iterdir())) == 4


def test_lengths_are_known_without_a_look_at_pictures(world, squares, tmp_path, monkeypatch):
    trainer = trainer_for(world.flags(tmp_path, squares, "--train_sampling_strategy", "group_by_length"))
    monkeypatch.setattr(type(trainer.train_dataset), "__getitem__", lambda *_: 1 / 0)
    order = list(trainer._get_train_sampler())
    assert sorted(order) == list(range(len(trainer.train_dataset)))


def test_each_epoch_has_an_order_of_its_own(world, tmp_path, monkeypatch):
    data = world.data("epochs", samples=12, texts=4)
    flags = ("--group_by_modality_length", "True", "--num_train_epochs", "2", "--per_device_train_batch_size", "2")
    trainer = trainer_for(world.flags(tmp_path, data, *flags, "--gradient_accumulation_steps", "2"))
    kind, seen = type(trainer.train_dataset), []
    plain = kind.__getitem__
    monkeypatch.setattr(kind, "__getitem__", lambda self, index: seen.append(index) or plain(self, index))
    trainer.train()
    assert sorted(seen[:16]) == sorted(seen[16:]) == list(range(16)) and seen[:16] != seen[16:]
    assert trainer._get_train_sampler().world_size == 2  # a step's batches are of one modality, and alike in length
