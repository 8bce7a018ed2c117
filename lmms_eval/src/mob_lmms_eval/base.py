"""What all our models share: requests in batches, answers and likelihoods out, records of what was pruned.

A family says how to load, how a question becomes a prompt, and how prompts become inputs (``models/``).
"""

from __future__ import annotations

import json
import os
import sys
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from lmms_eval.api.instance import GenerationResult, TokenCounts
from lmms_eval.api.model import lmms
from torch import Tensor
from tqdm import tqdm

from llava.model.formats import local_folder, quiet
from mob import MoBConfig, Pruning
from mob.audit.writing import layers_of, save_picture
from mob.methods import parse
from mob.picture import Box
from mob.pruner import ANSWER
from mob_lmms_eval import arguments, logs, samples
from mob_lmms_eval.command import one_line
from mob_lmms_eval.fingerprint import fingerprint
from mob_lmms_eval.journal import Journal
from mob_lmms_eval.samples import GENERATE, SCORE, Sample


@dataclass
class Counts(TokenCounts):
    """Token counts of lmms-eval, which it writes to its log, with what was retained beside them."""

    retained: dict[str, Any] | None = None

    def to_dict(self) -> dict[str, Any]:
        own = {} if self.retained is None else {logs.FIELD: self.retained}
        return super().to_dict() | own


class MoBModel(lmms):
    """A model of this repository under lmms-eval.

    Attributes:
        OPTIONS: what a family knows in --model_args beside ``arguments.COMMON``.
        PRETRAINED: the checkpoint where --model_args names none.
        LENGTH: new tokens where neither the task nor the checkpoint says how many.
        CONTINUE: whether padded prompts need position_ids (Qwen finds them itself).
    """

    OPTIONS: dict[str, type] = {}
    PRETRAINED: str
    LENGTH = 1024
    CONTINUE = True

    model: Any
    tokenizer: Any
    conv_template: str | None = None

    def __init__(
        self,
        batch_size: int | str | None = 1,
        max_batch_size: int | None = None,
        device: str | None = None,
        **model_args: Any,
    ) -> None:
        """Load.

        Args:
            batch_size: prompts in one call; device: "cuda:0", "cpu"; both from the command line.
            model_args: see ``arguments``.

        Raises:
            ValueError: a wrong argument, or a checkpoint that cannot be loaded.
        """
        super().__init__()
        with one_line():
            self.batch_size = _batch_size(batch_size)
            options, mob = arguments.read(model_args, self.OPTIONS)
            self._replays = logs.replays(options["replay"]) if "replay" in options else None
            self._log, self._album = options.get("log_retained_patches", False), options.get("save_pictures")
            with quiet():
                self.load(options, device or best_place())
            self.model.generation_config.max_length = None  # max_new_tokens is always said; both together warn
            self._device = next(self.model.parameters()).device
            saved = getattr(self.model.config, "MoB_config", None)
            self.mob = arguments.settings(mob, saved, options.get("mob", True) and self._replays is None)
            self.model.config.MoB_config = self.mob
            Pruning(self.model, MoBConfig.from_dict(self.mob))  # checks the layer
            self._shortens = bool(self.mob) and bool(parse(self.mob.get("method", "mob"), self.mob.get("options"))[0])
            self.model.pruning.record = True
            self._settings = fingerprint(self, options)
            self._journal = Journal(options["resume"]) if "resume" in options else None
        self._say(f"{type(self).__name__}: MoB_config {self.mob or 'off'}, conversation {self.conv_template or 'own'}")

    @property
    def device(self) -> torch.device:
        return self._device  # asked for after lmms-eval has taken the model away

    # ------------------------------------------------------------------------------------------------ of a family

    @abstractmethod
    def load(self, options: dict[str, Any], device: str) -> None:
        """Set ``model``, ``tokenizer`` and whatever the other three need. ValueError where that fails."""

    @abstractmethod
    def prompt(self, sample: Sample) -> str:
        """The whole prompt, open for the answer."""

    @abstractmethod
    def tokens(self, text: str) -> list[int]:
        """Ids of a prompt, each picture one placeholder."""

    @abstractmethod
    def inputs(self, texts: Sequence[str], batch: Sequence[Sample]) -> dict[str, Tensor]:
        """What the model takes, padded on the left."""

    def seen(self, pictures: int, size: tuple[int, int], video: bool) -> Box:
        """What the model sees of one of ``pictures`` pictures, or of a video, in its pixels: all of it."""
        return 0.0, 0.0, float(size[0]), float(size[1])

    # ------------------------------------------------------------------------------------------- asked by lmms-eval

    def generate_until(self, requests: list[Any]) -> list[GenerationResult]:
        """An answer to each request: text, token counts, and with them what was retained."""
        return self._run(requests, GENERATE)

    def loglikelihood(self, requests: list[Any]) -> list[GenerationResult]:
        """(loss, whether greedy search would give it) of each continuation: mean over its tokens and the end token.

        A loss, not a likelihood: that is what lmms-eval takes the smallest of.
        """
        return self._run(requests, SCORE)

    def generate_until_multi_round(self, requests: list[Any]) -> list[str]:
        with one_line():
            raise ValueError(f"{requests[0].task_name} asks in several rounds, which these models do not: drop it")

    # --------------------------------------------------------------------------------------------------------------

    def _run(self, requests: list[Any], kind: str) -> list[GenerationResult]:
        """Answers in the order of the requests; requests of one batch share their generation_kwargs."""
        groups: dict[str, list[int]] = {}
        for number, request in enumerate(requests):
            given = request.args[1] if kind == GENERATE else {}
            groups.setdefault(json.dumps(given, sort_keys=True, default=str), []).append(number)
        answers: list[Any] = [None] * len(requests)
        size = 1 if self._replays is not None else self.batch_size
        with tqdm(total=len(requests), desc=kind, unit="request", disable=self.rank != 0) as bar:
            for group in groups.values():
                for start in range(0, len(group), size):
                    members = group[start : start + size]
                    for number, answer in zip(members, self._answer([requests[i] for i in members]), strict=True):
                        answers[number] = answer
                    bar.update(len(members))
        return answers

    def _answer(self, requests: list[Any]) -> list[GenerationResult]:
        """One batch, from the journal where all of it is there: a part of it might come out differently in the last
        bits than it did in the whole."""
        first = requests[0]
        with one_line(f"{first.task_name}, documents {first.doc_id} to {requests[-1].doc_id}: "):
            batch = [samples.read(request, self.task_dict) for request in requests]
            if self._album is not None:
                for image in (image for one in batch for image in one.pictures):
                    save_picture(image, self._album)
            kwargs = dict(first.args[1]) if batch[0].kind == GENERATE else {}
            keep = self._journal is not None and not _samples_randomly(kwargs)
            keys = [one.key(kwargs, self._settings) for one in batch] if keep else []
            entries = [self._journal.get(key) for key in keys]
            if not entries or None in entries:
                entries = self._generate(batch, kwargs) if batch[0].kind == GENERATE else self._score(batch)
                if keep:
                    self._journal.add(zip(keys, entries, strict=True))
            return [self._result(one, entry) for one, entry in zip(batch, entries, strict=True)]

    def _generate(self, batch: list[Sample], kwargs: dict[str, Any]) -> list[dict[str, Any]]:
        default = self.model.generation_config.max_new_tokens or self.LENGTH
        options, until = samples.generation(kwargs, default)
        inputs = self._ready([self.prompt(one) for one in batch], batch)
        with torch.inference_mode():
            out = self.model.generate(**inputs, **self.options(options))
        width = inputs["input_ids"].shape[1]
        rows = out[:, width:].tolist()
        stops = _stops(self.options(options).get("eos_token_id", self.model.generation_config.eos_token_id))
        texts = [self.tokenizer.decode(_until(row, stops), skip_special_tokens=True) for row in rows]
        lengths = inputs["attention_mask"].sum(1).tolist()
        return [
            {"value": samples.cut(text, until), "input": n, "output": len(_until(row, stops)), "retained": record}
            for text, n, row, record in zip(
                texts, lengths, rows, self._records(batch, options["num_beams"]), strict=True
            )
        ]

    def _score(self, batch: list[Sample]) -> list[dict[str, Any]]:
        """Continuations after their prompts; the pruner does not see them."""
        prompts = [self.prompt(one) for one in batch]
        texts = [text + self._continuation(text, one) for text, one in zip(prompts, batch, strict=True)]
        counts = [_added(self.tokens(a), self.tokens(b)) for a, b in zip(prompts, texts, strict=True)]
        inputs, most = self._ready(texts, batch), max(counts)
        ids, mask = inputs["input_ids"], inputs["attention_mask"]
        from_end = torch.arange(ids.shape[1], 0, -1, device=ids.device)
        answer = from_end <= torch.tensor(counts, device=ids.device)[:, None]
        if self.CONTINUE and not self._shortens:  # a shorter prompt has other positions
            inputs["position_ids"] = (mask.cumsum(1) - 1).clamp_min(0)
        with torch.inference_mode():
            logits = self.model(**inputs, logits_to_keep=most + 1, **{ANSWER: answer}).logits[:, :-1].float()
        wanted, answer = ids[:, -most:], answer[:, -most:]
        losses = -logits.log_softmax(-1).gather(-1, wanted[..., None])[..., 0]
        means = (losses * answer).sum(1) / answer.sum(1)
        greedy = ((logits.argmax(-1) == wanted) | ~answer).all(1)
        lengths = (mask.sum(1) - answer.sum(1)).tolist()
        return [
            {"value": [loss, right], "input": n, "output": count, "retained": record}
            for loss, right, n, count, record in zip(
                means.tolist(), greedy.tolist(), lengths, counts, self._records(batch), strict=True
            )
        ]

    def options(self, options: dict[str, Any]) -> dict[str, Any]:
        """Keywords of ``generate``, for families that have more to say."""
        return options

    def _ready(self, texts: list[str], batch: list[Sample]) -> dict[str, Tensor]:
        """Inputs on the model's device; and the pruner ready for this batch."""
        if self._replays is not None:
            self.model.config.MoB_config = self._replay(batch[0])
        self.model.pruning.clear()
        kind, device = self.model.dtype, self.device
        inputs = self.inputs(texts, batch)
        return {name: one.to(device, kind if one.is_floating_point() else None) for name, one in inputs.items()}

    def _replay(self, sample: Sample) -> dict[str, Any]:
        place = sample.task, sample.doc_id, sample.idx
        if place not in self._replays:
            raise ValueError(f"the log to replay has no document {sample.doc_id} of {sample.task}: use the whole log")
        return self._replays[place]

    def _continuation(self, prompt: str, sample: Sample) -> str:
        """What follows the prompt, after a blank or a line break: the answer, and the token that ends an answer."""
        text = sample.continuation or ""
        text = text.lstrip() if prompt[-1:].isspace() else text if text[:1].isspace() else f" {text}"
        return text + ("<|im_end|>" if "<|im_start|>" in prompt else self.tokenizer.eos_token)

    def _records(self, batch: list[Sample], beams: int = 1) -> list[dict[str, Any] | None]:
        """What the pruner noted for each sample, ready for the log; without numbers where it was off."""
        if not self._log:
            return [None] * len(batch)
        noted: list[Any] = self.model.pruning.records[::beams]
        noted = noted or [None] * len(batch)
        return [
            {
                "task": one.task,
                "split": one.split,
                "doc_id": one.doc_id,
                "idx": one.idx,
                "pictures": one.shown(partial(self.seen, len(one.pictures))),
                "conv_template": self.conv_template,
                "layers": layers_of(self.model.config),
                **(record.to_dict() if record is not None else {}),
            }
            for one, record in zip(batch, noted, strict=True)
        ]

    def _result(self, sample: Sample, entry: dict[str, Any]) -> GenerationResult:
        value = entry["value"] if sample.kind == GENERATE else tuple(entry["value"])
        return GenerationResult(value, Counts(entry["input"], entry["output"], retained=entry["retained"]))

    def _say(self, text: str) -> None:
        if int(os.environ.get("RANK", 0)) == 0:
            print(text, file=sys.stderr)


def best_place() -> str:
    """The GPU of this process, or whatever else there is."""
    return f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if torch.cuda.is_available() else "cuda"


def checkpoint(name: str) -> str:
    """The folder of a checkpoint. ValueError, one line, where neither this machine nor the hub has it."""
    return str(local_folder(name))


def _batch_size(value: int | str | None) -> int:
    if not str(value or 1).isdigit() or int(value or 1) < 1:
        raise ValueError(f"--batch-size {value}: give a number of prompts; it is not found out by itself")
    return int(value or 1)


def _samples_randomly(kwargs: dict[str, Any]) -> bool:
    return samples.generation(kwargs, 1)[0]["do_sample"]


def _stops(ids: Any) -> set[int]:
    return set() if ids is None else {ids} if isinstance(ids, int) else set(ids)


def _until(row: list[int], stops: set[int]) -> list[int]:
    """The tokens of a row up to its end token, padding left out."""
    end = next((at for at, token in enumerate(row) if token in stops), None)
    return row if end is None else row[: end + 1]


def _added(short: list[int], long: list[int]) -> int:
    """How many tokens ``long`` has more, counted from where the two part."""
    same = next((i for i, (a, b) in enumerate(zip(short, long, strict=False)) if a != b), min(len(short), len(long)))
    return len(long) - same
