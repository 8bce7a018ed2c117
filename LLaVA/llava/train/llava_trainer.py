"""transformers' ``Trainer`` with what LLaVA adds: order of samples, learning rates of parts, layouts, pruning."""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import Sampler
from transformers import Trainer, TrainerCallback, TrainerState

from llava.model.formats import TOWER
from llava.train.arguments import BY_LENGTH, EVERY, ORIGINAL
from llava.train.build import Start
from llava.train.continuing import put_away
from llava.train.sampling import LengthGroupedSampler
from llava.train.saving import (
    kind_of,
    load_adapter,
    merged,
    others,
    save_adapter,
    save_full,
    save_processors,
    trained,
)
from llava.train.trainable import FULL, LORA_MODE, PROJECTOR_KEYS, trains_words
from mob.early import brings_pictures


class LLaVATrainer(Trainer):
    """Trains a ``Start``.

    Args:
        start: model, tokenizer and processor, from ``llava.train.build.prepare``.
        mob: ``MoB_config`` to train and to save with; {} for none.
        random_K: one of these is drawn for every step instead of ``mob["K"]``.
        described: how the run was made, for config.json of the original layout.
    """

    def __init__(
        self,
        start: Start,
        mob: dict[str, Any] | None = None,
        random_K: Sequence[int | float] | None = None,
        described: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(model=start.model, **kwargs)
        if self.args.deepspeed and not self.is_deepspeed_enabled:
            raise ValueError(
                "--deepspeed would be ignored: accelerate does not use it with --use_cpu or ACCELERATE_USE_CPU; on a "
                "machine without accelerator set DS_ACCELERATOR=cpu instead"
            )
        if self.label_smoother is not None or self.compute_loss_func is not None:
            raise ValueError(
                "--label_smoothing_factor (and compute_loss_func) take the labels away before the model sees them: "
                "answers would guide the pruning, and transformers' smoothing does not shift them; leave it out"
            )
        if self.args.n_gpu > 1:
            raise ValueError(
                f"{self.args.n_gpu} GPUs and one process: transformers would split a batch's texts and pictures apart; "
                "start with torchrun, accelerate or deepspeed, or set CUDA_VISIBLE_DEVICES=0"
            )
        self.start, self.mob, self.described = start, dict(mob or {}), dict(described or {})
        self._final = False
        start.model.config.MoB_config = dict(self.mob)
        self.pace = Pace()
        self.add_callback(self.pace)
        if random_K:
            self.add_callback(RandomK(start.model, self.mob, random_K, self.args.seed))
        if self.args.world_size > 1 or not trains_words(start.model):
            keep_in_step(start.model)

    # Order of samples

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler | None:
        dataset = self.train_dataset if train_dataset is None else train_dataset
        by_modality, by_length = self.args.group_by_modality_length, self.args.train_sampling_strategy == BY_LENGTH
        if not (by_modality or by_length) or dataset is None:
            return super()._get_train_sampler(train_dataset)
        return LengthGroupedSampler(
            self.args.train_batch_size,
            self.args.world_size * self.args.gradient_accumulation_steps,
            # transformers would prepare every sample, pictures too, to learn its length.
            dataset.modality_lengths if by_modality else dataset.lengths,
            seed=self.args.seed if self.args.data_seed is None else self.args.data_seed,
            group_by_modality=by_modality,
        )

    # Learning rates

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """As transformers does, with learning rates of their own for projector and vision tower.

        Raises:
            ValueError: the DeepSpeed config brings an optimizer, which knows one learning rate only.
        """
        rates = self._rates()
        if not rates:
            return super().create_optimizer(model)
        if type(self.optimizer).__name__ == "DummyOptim":
            raise ValueError(
                "--mm_projector_lr and --mm_vision_tower_lr need transformers' optimizer: take the optimizer block out "
                "of the DeepSpeed config"
            )
        if self.optimizer is not None:  # with DeepSpeed it is asked for twice
            return self.optimizer
        model = self.model if model is None else model
        kind, options = self.get_optimizer_cls_and_kwargs(self.args, model)
        self.optimizer = kind(self._groups(model, rates), **options)
        return self.optimizer

    def _rates(self) -> list[tuple[tuple[str, ...], float]]:
        given = ((PROJECTOR_KEYS, self.args.mm_projector_lr), ((TOWER,), self.args.mm_vision_tower_lr))
        return [(keys, rate) for keys, rate in given if rate is not None]

    def _groups(self, model: nn.Module, rates: list[tuple[tuple[str, ...], float]]) -> list[dict[str, Any]]:
        """Parameter groups: of every rate one with weight decay and one without."""
        decaying = set(self.get_decay_parameter_names(model))
        groups: dict[tuple[float | None, bool], list[nn.Parameter]] = {}
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                own = name[name.find("model.") :] if not name.startswith(("model.", "lm_head.")) else name
                rate = next((rate for keys, rate in rates if own.startswith(keys)), None)
                groups.setdefault((rate, name in decaying), []).append(parameter)
        return [
            {"params": parameters, "weight_decay": self.args.weight_decay if decay else 0.0}
            | ({} if rate is None else {"lr": rate})
            for (rate, decay), parameters in groups.items()
        ]

    # Progress

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Adds the hours left; tokens per second are transformers' own ``train_tokens_per_second``."""
        logs |= self.pace.hours_left(self.state)
        super().log(logs, *args, **kwargs)

    # Saving

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """A checkpoint to go on from, or, called from outside, the finished model in ``args.save_format``."""
        self._final = not _internal_call
        try:
            super().save_model(output_dir, _internal_call)
        finally:
            self._final = False

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        """Checkpoints of adapters hold what is trained, those of whole models are folders of transformers."""
        if not self.args.should_save:
            return
        folder, start = Path(output_dir or self.args.output_dir), self.start
        wanted = self.args.save_format if self._final else None
        if self._final:
            put_away(folder, others(folder, start.mode if wanted == ORIGINAL else FULL))
        with self._settled():
            if start.mode == FULL and wanted != ORIGINAL:
                super()._save(str(folder), state_dict)
                save_processors(start, folder)
                return
            state = start.model.state_dict() if state_dict is None else state_dict
            if start.mode != FULL and wanted in (None, ORIGINAL):
                save_adapter(start, folder, trained(start.model, state), self.described)
            elif wanted == ORIGINAL:
                save_full(start, folder, state, self.described)
            else:
                state = merged(start, state) if start.mode == LORA_MODE else state
                start.model.save_pretrained(folder, state_dict=state)
                save_processors(start, folder)

    @contextlib.contextmanager
    def _settled(self) -> Iterator[None]:
        """config.json says what was asked for, not which K the last step drew."""
        config = self.start.model.config
        drawn, config.MoB_config = config.MoB_config, dict(self.mob)
        try:
            yield
        finally:
            config.MoB_config = drawn

    def take_over(self, checkpoint: str) -> None:
        """Weights and state of a checkpoint that has all steps already."""
        self._load_from_checkpoint(checkpoint)
        self.state = TrainerState.load_from_json(str(Path(checkpoint) / "trainer_state.json"))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        """Exactly what ``_save`` wrote.

        transformers would look up its own parameter names in the file, but a LLaVA is saved under those of the hub;
        it would find little, warn, and go on from the weights at hand.
        """
        if self.is_fsdp_enabled:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
            return
        folder, own = Path(resume_from_checkpoint), self.start.model
        if (self.start.mode, kind_of(folder)) != (FULL, FULL):
            load_adapter(self.start, folder)
            return
        saved = type(own).from_pretrained(folder, dtype=torch.float32)
        try:
            own.load_state_dict(saved.state_dict())
        except RuntimeError as error:
            raise ValueError(f"{folder} holds a model of another size or kind: use another --output_dir") from error


class Pace(TrainerCallback):
    """How long this run will still take."""

    def __init__(self) -> None:
        self.began, self.first_step = 0.0, 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.began, self.first_step = time.monotonic(), state.global_step

    def hours_left(self, state: Any) -> dict[str, float]:
        """By the mean of this session; nothing before its first step."""
        steps = state.global_step - self.first_step
        if steps <= 0:
            return {}
        left = (state.max_steps - state.global_step) * (time.monotonic() - self.began) / steps
        return {"hours_left": round(left / 3600, 3)}


class RandomK(TrainerCallback):
    """One K for every step, by seed and number of the step: the same on all processes and after a restart."""

    def __init__(self, model: nn.Module, mob: dict[str, Any], choices: Sequence[int | float], seed: int) -> None:
        self.model, self.mob, self.choices, self.seed = model, mob, list(choices), seed

    def draw(self, step: int) -> int | float:
        return random.Random(f"{self.seed} {step}").choice(self.choices)

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        K = self.draw(state.global_step)
        # Off, because with any K rules before the decoder take the newlines between tiles away.
        self.model.config.MoB_config = {} if K == EVERY else self.mob | {"K": K}


def keep_in_step(model: Any) -> None:
    """Let tower and projector run, with no weight in the result, where a process has a batch of text only.

    Where nothing else is trained, such a batch would have no gradient at all. And engines wait for every process to use
    every parameter, and ZeRO in the same order too: embeddings, tower, projector, layers. One that went another way
    would hang the others, or meet them with the wrong numbers.
    """
    config, base = model.config, model.model
    side, text_only = config.vision_config.image_size, False

    def note(_: nn.Module, args: tuple, kwargs: dict) -> None:
        nonlocal text_only
        text_only = base.training and not brings_pictures(kwargs)

    def run(_: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
        if not text_only:
            return None
        embeds = kwargs["inputs_embeds"]  # a look at a weight would make ZeRO-3 gather it
        blank = torch.zeros(1, 3, side, side, device=embeds.device, dtype=base.vision_tower.dtype)
        states = base.vision_tower(blank, output_hidden_states=True).hidden_states
        layer = config.vision_feature_layer
        chosen = states[layer] if isinstance(layer, int) else torch.cat([states[i] for i in layer], -1)
        nothing = 0 * base.multi_modal_projector(chosen[:, :1]).sum()
        if getattr(base, "image_newline", None) is not None:
            nothing = nothing + 0 * base.image_newline.sum()
        return args, {**kwargs, "inputs_embeds": embeds + nothing.to(embeds.dtype)}

    base.register_forward_pre_hook(note, with_kwargs=True)
    base.language_model.register_forward_pre_hook(run, with_kwargs=True)
