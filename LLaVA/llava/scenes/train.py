"""Train the embedded checkpoint from scratch: ``python -m llava.scenes.train --out runs/scenes``.

Stage A teaches the vision tower to name what each patch shows; stage B teaches the whole model to answer; stage C takes
things away after the first layers and teaches it to answer from the patches that are left. The run
saves every ``--save-every`` steps and continues from there when started again with the same ``--out``. The finished
model is in ``<out>/checkpoint``; copy it over ``llava/scenes/checkpoint`` to ship it.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path

import torch
from torch.utils.data import DataLoader
from tqdm import tqdm

from llava.scenes.checkpoint import build, save
from llava.scenes.losses import SceneLosses
from llava.scenes.packing import SceneBatches
from llava.scenes.questions import TASKS

ALIGN_WEIGHT, GROUND_WEIGHT, CLIP_NORM = 0.3, 0.15, 1.0
BETAS, WEIGHT_DECAY = (0.9, 0.98), 0.02
STAGES = ("align", "answer", "evidence")
HIDE = 0.75  # share of the pictures of stage C in which patches vanish
LATE = 0.5  # share of stage B after which the mixture of questions changes


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for state, log and the finished checkpoint")
    parser.add_argument("--align-steps", type=int, default=700, help="steps of stage A")
    parser.add_argument("--align-pictures", type=int, default=64, help="pictures a step in stage A")
    parser.add_argument("--align-lr", type=float, default=2e-3)
    parser.add_argument("--steps", type=int, default=2700, help="steps of stage B")
    parser.add_argument("--pictures", type=int, default=24, help="pictures a step in stage B, nine questions each")
    parser.add_argument("--lr", type=float, default=1.3e-3)
    parser.add_argument("--evidence-steps", type=int, default=1000, help="steps of stage C, same batches as stage B")
    parser.add_argument("--evidence-lr", type=float, default=5e-4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--no-compile", action="store_true", help="skip torch.compile (slower, no compiler needed)")
    parser.add_argument("--save-every", type=int, default=100)
    parser.add_argument("--stop-after", type=int, help="leave after this many steps of either stage; continue later")
    return parser.parse_args()


def learning_rate(step: int, steps: int, peak: float, warmup: int) -> float:
    """Linear warm-up, then a cosine to zero."""
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def optimizer_for(modules: list[torch.nn.Module], lr: float) -> torch.optim.AdamW:
    """AdamW with weight decay on matrices only."""
    parameters = {id(p): p for m in modules for p in m.parameters() if p.requires_grad}.values()
    matrices = [p for p in parameters if p.ndim >= 2]
    rest = [p for p in parameters if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": WEIGHT_DECAY}, {"params": rest, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=lr, betas=BETAS, fused=True)


def task_shares(late: bool) -> dict[str, float]:
    """Relative frequencies, 1 for the others. Late, what is learnt by then gives way to reading and counting."""
    if not late:
        return {"exist": 1.6, "shape": 1.3}
    slow = {"exist": 1.6, "ocr": 2.0, "modeshape": 2.0, "modecolour": 2.0, "count": 4.0}
    return slow | {"colour": 0.5, "shape": 0.8, "pattern": 0.3, "bgcolour": 0.3}


class Run:
    """State of a training run and where it is kept."""

    def __init__(self, args: argparse.Namespace):
        self.args = args
        self.losses = SceneLosses(build(args.seed)).to(args.device)
        self.started, self.done = time.time(), 0
        self.log = args.out / "log.jsonl"
        args.out.mkdir(parents=True, exist_ok=True)

    @property
    def stopped(self) -> bool:
        return self.args.stop_after is not None and self.done >= self.args.stop_after

    def save(self, stage: str, step: int, optimizer: torch.optim.Optimizer) -> None:
        state = {"stage": stage, "step": step, "losses": self.losses.state_dict(), "optimizer": optimizer.state_dict()}
        temporary = self.args.out / "state.tmp"
        torch.save(state, temporary)
        temporary.replace(self.args.out / "state.pt")
        (self.args.out / "state.json").write_text(json.dumps({"stage": stage, "step": step}) + "\n")

    def resume(self, stage: str, optimizer: torch.optim.Optimizer) -> int:
        """First step still to do in ``stage``; restores weights and optimizer if the saved state is of this stage."""
        path = self.args.out / "state.pt"
        if not path.exists():
            return 0
        state = torch.load(path, map_location=self.args.device, weights_only=True)
        if state["stage"] != stage:
            return 10**9 if STAGES.index(stage) < STAGES.index(state["stage"]) else 0
        self.losses.load_state_dict(state["losses"])
        optimizer.load_state_dict(state["optimizer"])
        return state["step"]

    def write(self, **entry) -> None:
        with self.log.open("a") as file:
            file.write(json.dumps({"seconds": round(time.time() - self.started, 1), **entry}) + "\n")

    def batches(self, data: SceneBatches, start: int):
        loader = DataLoader(data, batch_size=None, sampler=range(start, len(data)), num_workers=1, prefetch_factor=4)
        for batch in loader:
            yield {key: value.to(self.args.device) for key, value in batch.items()}

    def stage(self, name: str, steps: int, lr: float, modules, batches_for, loss_of, report) -> None:
        """One stage: ``loss_of(batch) -> (loss, dict of numbers)``, ``report(numbers)`` every 50 steps."""
        optimizer = optimizer_for(modules, lr)
        start = self.resume(name, optimizer)
        bar = tqdm(total=steps, initial=min(start, steps), desc=f"stage {name}", smoothing=0.05)
        for step, batch in zip(range(start, steps), batches_for(start), strict=False):
            if self.stopped:
                break
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step, steps, lr, warmup=min(60, steps // 10 + 1))
            loss, numbers = loss_of(batch)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_([p for g in optimizer.param_groups for p in g["params"]], CLIP_NORM)
            optimizer.step()
            bar.update()
            line = report(numbers)
            if (step + 1) % 50 == 0:
                bar.set_postfix_str(f"loss {float(loss):.3f}")
                self.write(stage=name, step=step + 1, loss=round(float(loss), 4), **line)
            self.done += 1
            if (step + 1) % self.args.save_every == 0 or step + 1 == steps or self.stopped:
                self.save(name, step + 1, optimizer)
        bar.close()


class Averages:
    """Running means of the loss parts and of the per-task accuracy since the last report."""

    def __init__(self):
        self.parts, self.counts, self.steps = {}, torch.zeros(len(TASKS) + 1, 2), 0

    def __call__(self, numbers: dict) -> dict:
        self.steps += 1
        for key, value in numbers.items():
            if key == "counts":
                self.counts += value.detach().cpu()
            else:
                self.parts[key] = self.parts.get(key, 0.0) + float(value)
        line = {key: round(value / self.steps, 4) for key, value in self.parts.items()}
        if self.counts.sum():
            accuracy = 100 * self.counts[:, 0] / self.counts[:, 1].clamp_min(1)
            line |= {task: round(float(a), 1) for task, a in zip((*TASKS, "unknown"), accuracy, strict=True)}
        if self.steps == 50:
            self.__init__()
        return line


def main() -> None:
    args = parse()
    run = Run(args)
    model = run.losses.model
    compiled = (lambda f: f) if args.no_compile else torch.compile
    align, answer = compiled(run.losses.align), compiled(run.losses.forward)
    print(f"stage A, patches to words: {args.align_steps} x {args.align_pictures} pictures, lr {args.align_lr}")
    size = f"{args.pictures} pictures x 9 questions"
    print(f"stage B, answers, alignment, grounding: {args.steps} x {size}, lr {args.lr}")
    print(f"stage C, things taken away: {args.evidence_steps} x {size}, lr {args.evidence_lr}")

    def align_batches(start: int):
        return run.batches(SceneBatches(args.align_steps, args.align_pictures, 3 * args.seed, {}, ask=False), start)

    def align_loss(batch):
        loss = align(batch)
        return loss, {"align": loss.detach()}

    vision = [
        model.model.vision_tower,
        model.model.multi_modal_projector,
        model.get_input_embeddings(),
        run.losses.centre,
    ]
    run.stage("align", args.align_steps, args.align_lr, vision, align_batches, align_loss, Averages())

    def answer_batches(start: int):
        turn = int(LATE * args.steps)
        for first, last in ((0, turn), (turn, args.steps)):
            shares = task_shares(late=first >= turn)
            if start < last:
                yield from run.batches(SceneBatches(last, args.pictures, 3 * args.seed + 1, shares), max(start, first))

    def answer_loss(batch):
        answers, aligned, grounded, counts = answer(batch)
        parts = {"answer": answers.detach(), "align": aligned.detach(), "ground": grounded.detach(), "counts": counts}
        return answers + ALIGN_WEIGHT * aligned + GROUND_WEIGHT * grounded, parts

    run.stage("answer", args.steps, args.lr, [run.losses], answer_batches, answer_loss, Averages())

    def evidence_batches(start: int):
        shares = task_shares(late=True)
        data = SceneBatches(args.evidence_steps, args.pictures, 3 * args.seed + 2, shares, hide=HIDE)
        return run.batches(data, start)

    run.stage(
        "evidence", args.evidence_steps, args.evidence_lr, [run.losses], evidence_batches, answer_loss, Averages()
    )
    if run.stopped:
        print(f"stopped after {run.done} steps; the same command continues")
        return
    save(model, args.out / "checkpoint")
    print(f"done in {time.time() - run.started:.0f} s: {args.out / 'checkpoint'}")


if __name__ == "__main__":
    main()
