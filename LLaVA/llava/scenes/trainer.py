"""``llava.train``'s trainer with the losses of the scenes: loop, optimizer, checkpoints and resuming are the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, default_collate
from transformers import TrainerCallback

from llava.scenes.checkpoint import build_processor, split_of
from llava.scenes.losses import SceneLlava, SceneLosses
from llava.train.arguments import TrainingArguments
from llava.train.build import Start
from llava.train.llava_trainer import LLaVATrainer

ALIGN_WEIGHT, GROUND_WEIGHT = 0.3, 0.15


class SceneTrainer(LLaVATrainer):
    """Trains a ``SceneLlava`` on ``ScenePictures``, in their order.

    Args:
        align_only: stage A, patches to words: vision tower, projector and word embeddings only.
        compiled: the losses go through ``torch.compile``.
        ground_weight: of the loss that teaches question words to point at their patches; at zero it is only logged.
    """

    def __init__(
        self,
        model: SceneLlava,
        data: Dataset,
        args: TrainingArguments,
        align_only: bool = False,
        compiled: bool = False,
        ground_weight: float = GROUND_WEIGHT,
        **kwargs: Any,
    ) -> None:
        if args.world_size > 1:
            raise ValueError("the scenes are trained by one process: start it without torchrun")
        processor = build_processor(split_of(model))
        start = Start(processor.tokenizer, model, processor.image_processor, None, True, None, None)
        _choose(model, align_only)
        super().__init__(start, args=args, train_dataset=data, data_collator=default_collate, **kwargs)
        self.losses = SceneLosses(model).to(args.device)
        loss = self._align if align_only else self._answer
        self._loss = torch.compile(loss) if compiled else loss
        self.averages = Averages((*self.losses.tasks, "unknown"))
        self.ground_weight = ground_weight

    def compute_loss(self, model: Any, inputs: dict[str, Tensor], return_outputs: bool = False, **kwargs: Any) -> Any:
        """The weighted sum of a stage's losses; its parts are logged."""
        loss, parts = self._loss(inputs)
        self.averages.add(parts)
        return (loss, parts) if return_outputs else loss

    def _align(self, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        loss = self.losses.align(batch)
        return loss, {"align": loss.detach()}

    def _answer(self, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        answer, align, ground, counts = self.losses(batch)
        parts = {"answer": answer.detach(), "align": align.detach(), "ground": ground.detach(), "counts": counts}
        return answer + ALIGN_WEIGHT * align + self.ground_weight * ground, parts

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Adds the parts of the loss, and the percent right of each task, since the last time."""
        super().log(logs | (self.averages.take() if "loss" in logs else {}), *args, **kwargs)

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Not counted: packed batches have no ``input_ids`` to count by."""
        return 0


def arguments(folder: Path, steps: int, pictures: int, lr: float, seed: int, save_every: int, device: str) -> Any:
    """What the stages have in common: AdamW (0.9, 0.98) with weight decay on matrices, clipping, a cosine to zero."""
    return TrainingArguments(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=pictures,
        learning_rate=lr,
        lr_scheduler_type="cosine",
        warmup_steps=min(60, steps // 10 + 1),
        optim="adamw_torch_fused",
        adam_beta1=0.9,
        adam_beta2=0.98,
        weight_decay=0.02,
        max_grad_norm=1.0,
        seed=seed,
        full_determinism=device == "cpu",  # compiled passes on two threads differ in the last bits otherwise
        use_cpu=device == "cpu",
        save_strategy="steps",
        save_steps=save_every,
        save_total_limit=2,
        logging_steps=min(50, steps),
        train_sampling_strategy="sequential",
        dataloader_num_workers=1,
        dataloader_prefetch_factor=4,
        dataloader_pin_memory=device != "cpu",
        report_to="none",
    )


def _choose(model: SceneLlava, align_only: bool) -> None:
    """What a stage trains."""
    model.requires_grad_(not align_only)
    for part in (
        model.model.vision_tower,
        model.model.multi_modal_projector,
        model.get_input_embeddings(),
        model.centre,
    ):
        part.requires_grad_(True)


class Averages:
    """Means of the loss parts, and the accuracy of each task, since they were last taken."""

    def __init__(self, names: tuple[str, ...]) -> None:
        self.names = names
        self.parts: dict[str, Tensor] = {}
        self.steps = 0

    def add(self, parts: dict[str, Tensor]) -> None:
        self.steps += 1
        for name, value in parts.items():
            self.parts[name] = self.parts.get(name, 0) + value.detach()

    def take(self) -> dict[str, float]:
        """Percent for tasks; of ``unknown`` too, the questions with a word that the tokenizer does not know."""
        counts = self.parts.pop("counts", None)
        out = {name: round(float(value) / self.steps, 4) for name, value in self.parts.items()}
        if counts is not None:
            percent = 100 * counts[:, 0] / counts[:, 1].clamp_min(1)
            out |= {task: round(float(one), 1) for task, one in zip(self.names, percent, strict=True)}
        self.__init__(self.names)
        return out


class StopAfter(TrainerCallback):
    """Saves and leaves after so many steps of this session, of all its stages together."""

    def __init__(self, limit: int | None) -> None:
        self.limit, self.done = limit, 0

    @property
    def reached(self) -> bool:
        return self.limit is not None and self.done >= self.limit

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.done += 1
        if self.reached:
            control.should_save = control.should_training_stop = True
