"""Which checkpoint a run goes on from, whether it is of this run, and what lies in its way."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from dataclasses import asdict
from itertools import chain, count
from pathlib import Path
from typing import Any

from llava.train.arguments import DataArguments, MobArguments, ModelArguments, TrainingArguments

NOTE = "run.json"
_NO, _LAST = ("no", "false", "none"), ("yes", "true", "last")
# Beside model, data and pruning, what decides a result. How long a run is and how it is spread over processes may
# change on the way.
_DECIDES = """
    learning_rate mm_projector_lr mm_vision_tower_lr weight_decay lr_scheduler_type warmup_steps optim adam_beta1
    adam_beta2 max_grad_norm seed data_seed model_max_length bits lora_enable lora_r lora_alpha lora_dropout
    group_by_modality_length train_sampling_strategy
""".split()  # noqa: SIM905
_PATHS = ("model_name_or_path", "model_base", "vision_tower", "pretrain_mm_mlp_adapter", "data_path", "mob_config")


def checkpoint_to_continue(args: TrainingArguments) -> str | None:
    """What ``--resume_from_checkpoint`` names, else the last whole checkpoint of ``output_dir``; "no": none."""
    asked = args.resume_from_checkpoint
    if asked and asked.lower() in _NO:
        return None
    if asked and asked.lower() not in _LAST:
        if not _whole(Path(asked)):
            raise ValueError(f"--resume_from_checkpoint {asked}: no whole checkpoint is there")
        last = Path(asked)
    else:
        found = [path for path in _checkpoints(Path(args.output_dir)) if _whole(path)]
        if not found:
            return None
        last = max(found, key=_step)
    if not _continues(last):
        raise ValueError(
            f"{last} holds weights only (--save_only_model): rates and optimizer would start anew; begin afresh with "
            "--resume_from_checkpoint no, or from its weights with --model_name_or_path and another --output_dir"
        )
    return str(last)


def steps_of(checkpoint: str) -> int:
    """How many steps a whole checkpoint has behind it."""
    return _read(Path(checkpoint) / "trainer_state.json")["global_step"]


def deciding(
    model_args: ModelArguments, data_args: DataArguments, args: TrainingArguments, mob_args: MobArguments
) -> dict[str, Any]:
    """What decides the result of a run. Of paths the last part: folders move. Of the data also the size, in bytes."""
    data = Path(data_args.data_path)
    facts = asdict(model_args) | asdict(mob_args) | {name: getattr(args, name) for name in _DECIDES}
    facts |= {"data_path": data_args.data_path, "data_bytes": data.stat().st_size if data.is_file() else None}
    facts |= {name: getattr(data_args, name) for name in ("image_aspect_ratio", "image_grid_pinpoints")}
    facts |= {name: Path(facts[name]).name for name in _PATHS if facts[name]}
    return json.loads(json.dumps(facts, default=str))


def claim(args: TrainingArguments, facts: dict[str, Any]) -> None:
    """Note in ``output_dir`` what decides the run.

    Raises:
        ValueError: a checkpoint there is of a run that something else decided, and nobody said to go on from it.
    """
    note = Path(args.output_dir) / NOTE
    there = _read(note)
    other = [name for name, value in facts.items() if name in there and there[name] != value]
    if other and not args.resume_from_checkpoint and checkpoint_to_continue(args):
        raise ValueError(
            f"{args.output_dir} holds a run with another {', '.join(other)} ({NOTE} there): choose another "
            "--output_dir, or say --resume_from_checkpoint no (begin afresh) or last (go on all the same)"
        )
    if args.should_save:
        note.parent.mkdir(parents=True, exist_ok=True)
        note.write_text(json.dumps(facts, indent=1) + "\n")


def set_aside(folder: Path, last: str | None, begun_anew: bool) -> None:
    """Move checkpoints that are no use to ``folder``/earlier, where no run looks.

    Torn ones: with the highest number, they would be what transformers spares when it clears up, and the whole ones
    would go. And where a run has ``begun_anew`` at ``last`` (None: at nothing), those that come after it: it would take
    them for its own when it is continued.
    """
    inside = last is not None and Path(last).resolve().parent == folder.resolve()
    first = _step(Path(last)) if inside else -1
    put_away(folder, [p for p in _checkpoints(folder) if not _whole(p) or (begun_anew and _step(p) > first)])


def put_away(folder: Path, paths: Iterable[Path]) -> None:
    """Move what is in the way, files or folders, to ``folder``/earlier, under a name that is free."""
    for path in paths:
        (folder / "earlier").mkdir(exist_ok=True)
        names = (f"{path.name}{suffix}" for suffix in chain([""], (f"-{n}" for n in count(2))))
        there = next(name for name in names if not (folder / "earlier" / name).exists())
        path.rename(folder / "earlier" / there)
        print(f"{path} is now earlier/{there}", file=sys.stderr)


def _checkpoints(folder: Path) -> list[Path]:
    return [path for path in folder.glob("checkpoint-*") if _step(path) >= 0 and path.is_dir()]


def _step(checkpoint: Path) -> int:
    """The number in its name; -1 for a folder that only looks like one."""
    number = checkpoint.name.removeprefix("checkpoint-")
    return int(number) if number.isdigit() else -1


def _whole(folder: Path) -> bool:
    """Whether a checkpoint was written to its end: the state of the trainer comes last."""
    return bool(_read(folder / "trainer_state.json"))


def _continues(folder: Path) -> bool:
    """Whether optimizer and schedule are there too; DeepSpeed keeps both in a folder of its own."""
    return (folder / "scheduler.pt").exists() or any(folder.glob("global_step*"))


def _read(file: Path) -> dict[str, Any]:
    """{} where there is none, or a torn one."""
    try:
        found = json.loads(file.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
