"""Train a LLaVA: ``python -m llava.train.train --model_name_or_path X --data_path data.json --output_dir out ...``.

The flags are those of the original scripts and of transformers' TrainingArguments; scripts/v1_5 has the published
settings. Starts under torchrun, accelerate and deepspeed too. A run that was interrupted continues with its last whole
checkpoint when the same command is given again. Exit code 2 and one line: a flag, model or sample that is wrong.
"""

from __future__ import annotations

import json
import sys
from itertools import chain, count
from pathlib import Path
from typing import Any

from transformers import set_seed
from transformers.utils import logging as transformers_logging

from llava.train.arguments import DataArguments, MobArguments, ModelArguments, TrainingArguments, parse
from llava.train.build import prepare
from llava.train.data import (  # noqa: F401
    DataCollatorForSupervisedDataset,
    LazySupervisedDataset,
    make_supervised_data_module,
)
from llava.train.llava_trainer import LLaVATrainer
from llava.train.records import Refusals
from llava.train.trainable import find_all_linear_names  # noqa: F401

_LOG = "bad_samples.jsonl"


def train(attn_implementation: str | None = None, argv: list[str] | None = None) -> LLaVATrainer:
    """Train as the command line says, and save; the trainer, for those who look further.

    Raises:
        ValueError: a flag, model or sample that is wrong; the message is one line.
    """
    model_args, data_args, args, mob_args = parse(sys.argv[1:] if argv is None else argv)
    args.attn_implementation = args.attn_implementation or attn_implementation
    trainer = build_trainer(model_args, data_args, args, mob_args)
    last = checkpoint_to_continue(args)
    if last and args.should_save:
        print(f"continuing with {last}", file=sys.stderr)
    if args.resume_from_checkpoint and args.should_save:
        set_aside(Path(args.output_dir), last)
    if last and 0 < args.max_steps <= _state(Path(last))["global_step"] and not (args.deepspeed or args.fsdp):
        # transformers would train one step more before it looks at the number. (Engines that split weights load them
        # when training begins, so there it does.)
        trainer.take_over(last)
    else:
        trainer.train(resume_from_checkpoint=last)
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
    return LLaVATrainer(start, mob, mob_args.mob_random_K, _described(model_args, args), args=args, **data)


def _described(model_args: ModelArguments, args: TrainingArguments) -> dict[str, Any]:
    """What configs of the original layout say about how a model was made."""
    names = ("tune_mm_mlp_adapter", "freeze_mm_mlp_adapter", "unfreeze_mm_vision_tower", "mm_tunable_parts")
    out = {name: getattr(model_args, name) for name in names}
    return out | {"mm_projector_lr": args.mm_projector_lr, "mm_vision_tower_lr": args.mm_vision_tower_lr}


def checkpoint_to_continue(args: TrainingArguments) -> str | None:
    """What ``--resume_from_checkpoint`` names, else the last whole checkpoint of ``output_dir``; "no": none."""
    asked = args.resume_from_checkpoint
    if asked and asked.lower() in ("no", "false", "none"):
        return None
    if asked and asked.lower() not in ("yes", "true", "last"):
        if not _whole(Path(asked)):
            raise ValueError(f"--resume_from_checkpoint {asked}: no whole checkpoint is there")
        last = Path(asked)
    else:
        found = [path for path in Path(args.output_dir).glob("checkpoint-*") if _step(path) >= 0 and _whole(path)]
        if not found:
            return None
        last = max(found, key=_step)
    if not _continues(last):
        raise ValueError(
            f"{last} holds weights only (--save_only_model): rates and optimizer would start anew; begin afresh with "
            "--resume_from_checkpoint no, or from its weights with --model_name_or_path and another --output_dir"
        )
    return str(last)


def set_aside(folder: Path, last: str | None) -> None:
    """Move the checkpoints that come after ``last`` (None: all) to ``folder``/earlier: this run leaves them behind, and
    would take them for its own when it is continued, or its own for the oldest when it clears up."""
    step = _step(Path(last)) if last and Path(last).resolve().parent == folder.resolve() else -1
    for path in [path for path in folder.glob("checkpoint-*") if _step(path) > step]:
        (folder / "earlier").mkdir(exist_ok=True)
        names = (f"{path.name}{suffix}" for suffix in chain([""], (f"-{n}" for n in count(2))))
        there = next(name for name in names if not (folder / "earlier" / name).exists())
        path.rename(folder / "earlier" / there)
        print(f"{path} is now earlier/{there}", file=sys.stderr)


def _step(checkpoint: Path) -> int:
    """The number in its name; -1 for a folder that only looks like one."""
    number = checkpoint.name.removeprefix("checkpoint-")
    return int(number) if number.isdigit() else -1


def _whole(folder: Path) -> bool:
    """Whether a checkpoint was written to its end: the state of the trainer comes last."""
    return bool(_state(folder))


def _continues(folder: Path) -> bool:
    """Whether optimizer and schedule are there too; DeepSpeed keeps both in a folder of its own."""
    return (folder / "scheduler.pt").exists() or any(folder.glob("global_step*"))


def _state(folder: Path) -> dict[str, Any]:
    """What a checkpoint says of the trainer; {} where it is torn."""
    try:
        state = json.loads((folder / "trainer_state.json").read_text())
    except (OSError, json.JSONDecodeError):
        return {}
    return state if isinstance(state, dict) else {}


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
    except ValueError as error:
        # From a worker process it comes with that process's whole story; its last line is ours.
        print(f"error: {str(error).strip().splitlines()[-1]}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
