"""What the tests of whole training runs share."""

from __future__ import annotations

import torch

from llava.train.arguments import parse
from llava.train.train import build_trainer

LORA = ("--lora_enable", "True", "--lora_r", "4", "--lora_alpha", "8")
PROJECTOR = ("--tune_mm_mlp_adapter", "True")
ORIGINAL = ("--save_format", "original")


def losses(trainer):
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def trainer_for(argv):
    return build_trainer(*parse(argv))


def weights(model):
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
