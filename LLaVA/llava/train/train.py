"""Train a LLaVA: ``python -m llava.train.train --model_name_or_path X --data_path data.json --output_dir out ...``.

The flags are those of the original scripts and of transformers' TrainingArguments; scripts/v1_5 has the published
settings. Starts under torchrun, accelerate and deepspeed too. A run that was interrupted continues with its last whole
checkpoint when the same command is given again. Exit code 2 and one line: a flag, model or sample that is wrong.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from transformers import set_seed
from transformers.utils import logging as transformers_logging

from llava.train.arguments import DataArguments, MobArguments, ModelArguments, TrainingArguments, parse
from llava.train.build import prepare
from llava.train.continuing import checkpoint_to_continue, claim, deciding, set_aside, steps_of
from llava.train.data import (  # noqa: F401
    DataCollatorForSupervisedDataset,
    LazySupervisedDataset,
    make_supervised_data_module,
)
from llava.train.llava_trainer import LLaVATrainer
from llava.train.records import Refusals
from llava.train.trainable import find_all_linear_names, trains_words  # noqa: F401
from mob.config import MoBConfig

_LOG = "bad_samples.jsonl"


def train(attn_implementation: str | None = None, argv: list[str] | None = None) -> LLaVATrainer:
    """Train as the command line says, and save; the trainer, for those who look further.

    Raises:
        ValueError: a flag, model or sample that is wrong; the message is one line.
    """
    model_args, data_args, args, mob_args = parse(sys.argv[1:] if argv is None else argv)
    args.attn_implementation = args.attn_implementation or attn_implementation
    claim(args, deciding(model_args, data_args, args, mob_args))
    trainer = build_trainer(model_args, data_args, args, mob_args)
    last = checkpoint_to_continue(args)
    done = steps_of(last) if last else 0
    if last and args.should_save:
        print(f"continuing with {last}", file=sys.stderr)
    if args.should_save:
        set_aside(Path(args.output_dir), last, bool(args.resume_from_checkpoint))
    if last and 0 < args.max_steps <= done and not (args.deepspeed or args.fsdp):
        # transformers would train one step more before it looks at the number. (Engines that split weights load them
        # when training begins, so there it does.)
        trainer.take_over(last)
    else:
        trainer.train(resume_from_checkpoint=last)
    if last and trainer.state.global_step == done and args.should_save:
        print(f"nothing was left to train: {last} has all {done} steps", file=sys.stderr)
    trainer.save_state()
    trainer.save_model()
    if args.should_save and (skipped := trainer.train_dataset.refusals.count()):
        print(f"{skipped} bad sample(s) skipped: {Path(args.output_dir) / _LOG}", file=sys.stderr)
    return trainer


def build_trainer(
    model_args: ModelArguments, data_args: DataArguments, args: TrainingArguments, mob_args: MobArguments
) -> LLaVATrainer:
    """Everything that a run needs, ready for ``train``."""
    if args.include_num_input_tokens_seen == "no":
        args.include_num_input_tokens_seen = "non_padding"
    set_seed(args.seed)
    log = Path(args.output_dir) / _LOG
    with args.main_process_first(desc="clearing the log of bad samples"):
        if args.should_save and checkpoint_to_continue(args) is None:
            log.unlink(missing_ok=True)
        log.parent.mkdir(parents=True, exist_ok=True)
    start = prepare(model_args, data_args, args)
    mob = mob_args.settings(getattr(start.model.config, "MoB_config", None))
    refusals = Refusals(data_args.on_bad_sample, log)
    data = make_supervised_data_module(start, model_args.version, data_args, args.model_max_length, refusals)
    _check_kinds(data["train_dataset"], start.model, mob, args)
    return LLaVATrainer(start, mob, mob_args.mob_random_K, _described(model_args, args), args=args, **data)


def _check_kinds(dataset: LazySupervisedDataset, model: Any, mob: dict[str, Any], args: TrainingArguments) -> None:
    """ValueError where texts without a picture have nothing to train, or would make processes wait for each other."""
    pictures = [bool(record.images) for record in dataset.records]
    if not any(pictures) and not trains_words(model):
        raise ValueError("no sample has a picture, and only what sees pictures is trained: nothing would be learnt")
    early = bool(MoBConfig.from_dict(mob).rules()[0])
    zero = getattr(args, "hf_deepspeed_config", None)
    if early and not all(pictures) and zero is not None and zero.is_zero3():
        raise ValueError(
            f"--mob_method {mob['method']} with ZeRO-3 and texts without a picture: processes would gather weights in "
            "different orders and hang; use scripts/zero2.json, or a rule within the decoder such as mob"
        )


def _described(model_args: ModelArguments, args: TrainingArguments) -> dict[str, Any]:
    """What configs of the original layout say about how a model was made."""
    names = ("tune_mm_mlp_adapter", "freeze_mm_mlp_adapter", "unfreeze_mm_vision_tower", "mm_tunable_parts")
    out = {name: getattr(model_args, name) for name in names}
    return out | {"mm_projector_lr": args.mm_projector_lr, "mm_vision_tower_lr": args.mm_vision_tower_lr}


def safe_save_model_for_hf_trainer(trainer: LLaVATrainer, output_dir: str) -> None:
    """The original's name for ``trainer.save_model``."""
    trainer.save_model(output_dir)


def main(attn_implementation: str | None = None) -> int:
    transformers_logging.set_verbosity_warning()
    try:
        train(attn_implementation)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        print(f"error: {where}{str(error.strerror or error).strip().splitlines()[0]}", file=sys.stderr)
        return 2
    except (ValueError, ImportError) as error:
        lines = str(error).strip().splitlines()
        # From a worker process it comes with that process's whole story; its last line is ours.
        print(f"error: {lines[-1] if 'Traceback' in str(error) else ' '.join(lines)}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
