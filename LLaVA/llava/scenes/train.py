"""Train the embedded checkpoint from scratch: ``python -m llava.scenes.train --out runs/scenes``.

Stage A (``align``) teaches the vision tower to name what each patch shows; stage B (``answer``) teaches the whole
model to answer; stage C (``evidence``) takes things away after the first layers and teaches it to answer from the
patches that are left. All three run through ``llava.train``'s trainer. A stage saves every ``--save-every`` steps in
``<out>/<stage>/checkpoint-<step>`` and continues from there when started again with the same ``--out``; the model that
it ends with is in ``<out>/<stage>/checkpoint``, that of the last one also in ``<out>/checkpoint``: copy it over
``llava/scenes/checkpoint`` to ship it. ``scripts/scenes/train.sh`` evaluates after each stage.

``--split crowded`` trains on crowded scenes, with a share of easy ones, and knows the words of both. ``--start`` takes
the weights of a trained model to begin with, the shipped one for instance. ``--no-grounding`` leaves out the loss that
teaches question words to point at their patches, so that what it brings can be seen. A folder belongs to one such run.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from transformers import set_seed
from transformers.utils import logging as transformers_logging

from llava.scenes.checkpoint import save
from llava.scenes.losses import SceneLlava, untrained, without_head
from llava.scenes.packing import ScenePictures
from llava.scenes.splits import SPLITS
from llava.scenes.trainer import GROUND_WEIGHT, SceneTrainer, StopAfter, arguments
from llava.train.continuing import checkpoint_to_continue, set_aside

STAGES = ("align", "answer", "evidence")
HIDE = 0.75  # share of the pictures of stage C in which patches vanish
LATE = 0.5  # share of stage B after which the mixture of questions changes
EARLY_SHARES = {"exist": 1.6, "shape": 1.3}
# What is learnt by then gives way to reading and counting.
_READING = {"exist": 1.6, "ocr": 2.0, "modeshape": 2.0, "modecolour": 2.0, "count": 4.0}
LATE_SHARES = _READING | {"colour": 0.5, "shape": 0.8, "pattern": 0.3, "bgcolour": 0.3, "area": 1.3, "compare": 2.0}
# With ``start``, what decides the result of a run.
DECIDES = ("split", "ground_weight", "seed", "align_steps", "align_pictures", "align_lr", "steps", "pictures", "lr")
DECIDES += ("evidence_steps", "evidence_lr")
# Steps of the three stages by split, where the command names none.
STEPS = {"easy": (700, 2700, 1000), "crowded": (600, 3000, 1000)}


@dataclass(frozen=True)
class Stage:
    """One of the three; ``number`` keeps the pictures of one stage apart from those of the others."""

    name: str
    title: str
    number: int
    steps: int
    pictures: int
    lr: float
    split: str = "easy"

    def data(self, seed: int) -> ScenePictures:
        """Its pictures, for the seed of the run."""
        kwargs = {
            "align": {"ask": False},
            "answer": {"shares": EARLY_SHARES, "later": (int(LATE * self.steps), LATE_SHARES)},
            "evidence": {"shares": LATE_SHARES, "hide": HIDE},
        }[self.name]
        return ScenePictures(self.steps, self.pictures, 3 * seed + self.number, split=self.split, **kwargs)


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for checkpoints and the finished model")
    parser.add_argument("--until", choices=STAGES, default=STAGES[-1], help="the last stage to do (evidence)")
    parser.add_argument("--split", choices=tuple(SPLITS), default="easy", help="scenes to train on (easy)")
    parser.add_argument("--start", type=Path, help="folder of a trained model to begin with (a fresh one)")
    ground = parser.add_mutually_exclusive_group()
    ground.add_argument("--ground-weight", type=float, default=GROUND_WEIGHT, help="of the grounding loss, in B and C")
    ground.add_argument("--no-grounding", dest="ground_weight", action="store_const", const=0.0, help="weight zero")
    said = " / ".join(f"{{}} for {split}" for split in STEPS)
    helps = [f"({said.format(*column)})" for column in zip(*STEPS.values(), strict=True)]
    parser.add_argument("--align-steps", type=int, help=f"steps of stage A {helps[0]}")
    parser.add_argument("--align-pictures", type=int, default=64, help="pictures a step in stage A")
    parser.add_argument("--align-lr", type=float, default=2e-3)
    parser.add_argument("--steps", type=int, help=f"steps of stage B {helps[1]}")
    parser.add_argument("--pictures", type=int, default=24, help="pictures a step in stage B, nine questions each")
    parser.add_argument("--lr", type=float, default=1.3e-3)
    parser.add_argument("--evidence-steps", type=int, help=f"steps of stage C, batches as in B {helps[2]}")
    parser.add_argument("--evidence-lr", type=float, default=5e-4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--no-compile", action="store_true", help="skip torch.compile (slower, no compiler needed)")
    parser.add_argument("--save-every", type=int, default=100)
    parser.add_argument("--stop-after", type=int, help="leave after this many steps in all; the same command continues")
    args = parser.parse_args(argv)
    for name, steps in zip(("align_steps", "steps", "evidence_steps"), STEPS[args.split], strict=True):
        if getattr(args, name) is None:
            setattr(args, name, steps)
    if min(args.align_steps, args.steps, args.evidence_steps, args.align_pictures, args.pictures, args.save_every) < 1:
        parser.error("steps, pictures and --save-every must be at least 1")
    try:
        if args.start:
            untrained(args.seed, args.split, args.start)
        claim(args)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    return args


def claim(args: argparse.Namespace) -> None:
    """Note in the folder what is trained there. ValueError where that is another model than last time."""
    mine = {name: getattr(args, name) for name in DECIDES} | {"start": str(args.start) if args.start else None}
    note = args.out / "run.json"
    there = json.loads(note.read_text()) if note.exists() else mine
    other = [name for name, value in mine.items() if there.get(name, value) != value]  # older notes say less
    if other:
        raise ValueError(f"{args.out} is a run with another {', '.join(other)} (run.json there): choose another --out")
    args.out.mkdir(parents=True, exist_ok=True)
    note.write_text(json.dumps(mine, indent=1) + "\n")


def stages(args: argparse.Namespace) -> list[Stage]:
    """All three, in their order."""
    ground = ", grounding" if args.ground_weight else ""
    alone, asked = f"{args.align_pictures} pictures", f"{args.pictures} pictures x 9 questions"
    return [
        Stage(
            "align",
            f"A, patches to words, {alone}",
            0,
            args.align_steps,
            args.align_pictures,
            args.align_lr,
            args.split,
        ),
        Stage("answer", f"B, answers, alignment{ground}, {asked}", 1, args.steps, args.pictures, args.lr, args.split),
        Stage(
            "evidence",
            f"C, things taken away, {asked}",
            2,
            args.evidence_steps,
            args.pictures,
            args.evidence_lr,
            args.split,
        ),
    ]


def run(stage: Stage, begin: Callable[[], SceneLlava], args: argparse.Namespace, stop: StopAfter) -> Path | None:
    """Do what is left of a stage. Its last checkpoint, or None where it had to stop before the end."""
    settings = arguments(
        args.out / stage.name, stage.steps, stage.pictures, stage.lr, args.seed, args.save_every, args.device
    )
    last = checkpoint_to_continue(settings)
    if step_of(last) < stage.steps:
        if stop.reached:
            return None
        set_aside(Path(settings.output_dir), last, begun_anew=False)
        set_seed(args.seed)
        trainer = SceneTrainer(
            begin(),
            stage.data(args.seed),
            settings,
            align_only=stage.name == "align",
            compiled=not args.no_compile,
            ground_weight=args.ground_weight,
            callbacks=[stop],
        )
        trainer.train(resume_from_checkpoint=last)
        last = checkpoint_to_continue(settings)
    return Path(last) if step_of(last) >= stage.steps else None


def step_of(checkpoint: str | None) -> int:
    return int(checkpoint.rsplit("-", 1)[1]) if checkpoint else 0


def load(folder: Path) -> SceneLlava:
    return SceneLlava.from_pretrained(folder, dtype=torch.float32)


def finish(checkpoint: Path, target: Path) -> None:
    """Write the model that a stage ended with as it ships: stock, float16."""
    if (target / "model.safetensors").exists() and target.stat().st_mtime >= checkpoint.stat().st_mtime:
        return
    part = target.with_name(f"{target.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    save(without_head(load(checkpoint)), part)
    shutil.rmtree(target, ignore_errors=True)
    part.rename(target)


def main(argv: list[str] | None = None) -> int:
    args = parse(argv)
    transformers_logging.disable_progress_bar()  # of loading and saving; training has its own
    began, stop = time.time(), StopAfter(args.stop_after)
    begin = partial(untrained, args.seed, args.split, args.start)
    for stage in stages(args)[: STAGES.index(args.until) + 1]:
        print(f"stage {stage.title}: {stage.steps} steps, lr {stage.lr}", flush=True)
        ended = run(stage, begin, args, stop)
        if ended is None:
            print(f"stopped after {stop.done} steps; the same command continues")
            return 0
        finish(ended, args.out / stage.name / "checkpoint")
        begin = partial(load, ended)
    if args.until == STAGES[-1]:
        finish(ended, args.out / "checkpoint")
    print(f"done in {time.time() - began:.0f} s: {args.out / stage.name / 'checkpoint'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
