"""One of several processes of tests/train/test_engines.py: trains, asks the running model, saves.

Arguments: file for the running model's answers, then the flags of training.
"""

from __future__ import annotations

import os
import sys

import torch
from accelerate import DistributedType, PartialState

from llava.train.arguments import parse
from llava.train.train import build_trainer, checkpoint_to_continue


def main() -> None:
    answers, *argv = sys.argv[1:]
    torch.set_num_threads(1)
    if "--deepspeed" in argv:
        import deepspeed

        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # it would be compiled first, for minutes
        # With DeepSpeed, accelerate looks for accelerators only, and takes two processes on CPUs for one.
        PartialState._prepare_backend = lambda *args, **kwargs: ("gloo", DistributedType.MULTI_CPU)
    parsed = parse(argv)
    trainer = build_trainer(*parsed)
    trainer.train(resume_from_checkpoint=checkpoint_to_continue(parsed[2]))
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(3)])
    batch.pop("labels")
    model = trainer.model_wrapped
    model.eval()
    with torch.no_grad():
        logits = model(**trainer._prepare_inputs(batch)).logits
    trainer.save_state()
    trainer.save_model()
    if os.environ["RANK"] == "0":
        zero = trainer.deepspeed.zero_optimization_stage() if trainer.is_deepspeed_enabled else 0
        engine = f"{type(trainer.model_wrapped).__name__} {zero}"
        losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        torch.save({"logits": logits.float(), "losses": losses, "engine": engine, **batch}, answers)


if __name__ == "__main__":
    main()
