"""Samples and batches: pictures and dialogues as the stock model's forward takes them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from llava.constants import IGNORE_INDEX, IMAGE_TOKEN_INDEX
from llava.conversation import Conversation, conv_templates
from llava.mm_utils import load_image, process_images
from llava.train.arguments import STOP
from llava.train.masks import encode, render, tokens_of
from llava.train.records import BadSample, NothingToLearn, Record, Refusals, read_records
from mob.layout import picture_of

_PATIENCE = 100  # samples in a row that cannot be used
BARE = "llava_hf"  # how checkpoints of llava-hf and the embedded one are asked: v1 without a system text


def conversation_for(version: str) -> Conversation:
    """The template of ``--version``. ValueError for an unknown one."""
    version = {"v0.5": "v1"}.get(version, version)
    if version == BARE:
        return replace(conv_templates["v1"].copy(), system="")
    if version not in conv_templates:
        raise ValueError(f"--version {version}: use one of {', '.join(sorted([BARE, *conv_templates]))}")
    return conv_templates[version]


class LazySupervisedDataset(Dataset):
    """Samples of a data file, prepared when they are asked for.

    An item holds ``input_ids`` and ``labels`` (T), pictures expanded to placeholders, and where there are pictures
    ``pixel_values``, one tensor (3, H, W) or (tiles, 3, H, W) for each, and their ``image_sizes`` (height, width).

    Args:
        config: the model's, with the layout of its pictures.
        folder: where pictures lie; default: where the data file does.
        max_length: longer samples are cut; a picture is left out whole.
        refusals: what to do with what cannot be used; a skipped sample is replaced by the next of its kind.

    Raises:
        ValueError: the data cannot be read; a sample cannot be used and the run is to stop (``BadSample``).
    """

    def __init__(
        self,
        data_path: str | Path,
        tokenizer: Any,
        image_processor: Any,
        config: Any,
        conv: Conversation,
        folder: str | Path | None = None,
        max_length: int = 2048,
        refusals: Refusals | None = None,
    ) -> None:
        self.refusals = refusals or Refusals(STOP)
        start_end = bool(getattr(config, "mm_use_im_start_end", False))
        self.records = read_records(data_path, conv, self.refusals, start_end)
        self.folder = Path(data_path).parent if folder is None else Path(folder)
        self._check_pictures()
        self.tokenizer, self.image_processor, self.config, self.conv = tokenizer, image_processor, config, conv
        self.max_length = max_length

    def __len__(self) -> int:
        return len(self.records)

    @property
    def lengths(self) -> list[int]:
        """About how many words each sample has, pictures included."""
        return [abs(record.length) for record in self.records]

    @property
    def modality_lengths(self) -> list[int]:
        """The same, negative for text only."""
        return [record.length for record in self.records]

    def __getitem__(self, index: int) -> dict[str, Any]:
        tried, broken, last = 0, False, None
        for record in islice(self._from(index), _PATIENCE):
            if broken and bool(record.images) != bool(self.records[index].images):
                break  # texts instead of pictures would hide that these are gone
            try:
                return self._sample(record)
            except BadSample as error:
                self.refusals.add(record.name, error)
                tried, broken, last = tried + 1, broken or not isinstance(error, NothingToLearn), error
        hint = "" if isinstance(last, NothingToLearn) else "; is --image_folder right?"
        raise BadSample(f"{tried} samples in a row cannot be used, the last: {last}{hint}")

    def _from(self, index: int) -> Iterator[Record]:
        """That record, then those after it of its kind, then those of the other kind."""
        pictures = bool(self.records[index].images)
        for kind in (pictures, not pictures):
            for step in range(len(self.records)):
                record = self.records[(index + step) % len(self.records)]
                if bool(record.images) == kind:
                    yield record

    def _check_pictures(self) -> None:
        """Files that are not there, before hours have been spent; folders are listed, not asked for every name."""
        listed: dict[Path, set[str]] = {}
        lost = {}
        for record in self.records:
            for path in (Path(self._source(name)) for name in record.images if not _is_address(name)):
                if path.parent not in listed:
                    listed[path.parent] = set(os.listdir(path.parent)) if path.parent.is_dir() else set()
                if path.name not in listed[path.parent] and not _exists(path):  # on a disk that ignores case, say
                    lost.setdefault(record.name, BadSample(f"{record.name}: there is no file {path}"))
        if lost and self.refusals.policy == STOP:
            raise BadSample(
                f"{next(iter(lost.values()))}; of {len(self.records)} records {len(lost)} have lost a picture: is "
                "--image_folder right? Leave them out with --on_bad_sample skip"
            )
        for name, error in lost.items():
            self.refusals.add(name, error)
        self.records = [record for record in self.records if record.name not in lost]
        if not self.records:
            raise BadSample(f"{next(iter(lost.values()))}, nor any other: is --image_folder right?")

    def _sample(self, record: Record) -> dict[str, Any]:
        ids, labels = encode(render(record.turns, self.conv), tokens_of(self.tokenizer), self.max_length)
        pictures = self._pictures(record)
        sizes = [image.size[::-1] for image in pictures]
        alone = len(sizes) == 1
        lengths = [picture_of(self.config, size, alone).length for size in sizes]
        ids, labels, shown = expand(ids, labels, lengths, self.config.image_token_id, self.max_length)
        if all(label == IGNORE_INDEX for label in labels[1:]):
            raise NothingToLearn(f"{record.name} has no answer within --model_max_length {self.max_length}")
        sample: dict[str, Any] = {"input_ids": torch.tensor(ids), "labels": torch.tensor(labels)}
        if shown:
            try:
                pixels = process_images(pictures[:shown], self.image_processor, self.config)
            except ValueError as error:
                raise BadSample(f"{record.name}: {error}") from error
            sample |= {"pixel_values": list(pixels), "image_sizes": sizes[:shown]}
        return sample

    def _pictures(self, record: Record) -> list[Any]:
        try:
            return [load_image(self._source(name)) for name in record.images]
        except ValueError as error:
            raise BadSample(f"{record.name}: {error}") from error

    def _source(self, name: str) -> str:
        return name if _is_address(name) else str(self.folder / name)


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # a name that is too long, say
        return False


def _is_address(name: str) -> bool:
    return name.lower().startswith(("http://", "https://", "data:"))


def expand(
    ids: Sequence[int], labels: Sequence[int], lengths: Sequence[int], token: int, limit: int
) -> tuple[list[int], list[int], int]:
    """Placeholders for pictures, at most ``limit`` tokens: (ids, labels, number of pictures that fit).

    Args:
        ids: with -200 for each picture; lengths: tokens of each picture; token: the placeholder's id.
    """
    out: list[int] = []
    learnt: list[int] = []
    shown = 0
    for i, label in zip(ids, labels, strict=True):
        run = lengths[shown] if i == IMAGE_TOKEN_INDEX else 1
        if len(out) + run > limit:
            break
        shown += i == IMAGE_TOKEN_INDEX
        out += [token if i == IMAGE_TOKEN_INDEX else i] * run
        learnt += [label] * run
    return out, learnt, shown


@dataclass
class DataCollatorForSupervisedDataset:
    """Pads samples on the right and puts their pictures together.

    Batches hold ``input_ids``, ``attention_mask``, ``labels`` (B, T), and where there are pictures ``pixel_values``
    (n, 3, H, W), or (n, most tiles, 3, H, W) with ``image_sizes`` (n, 2) as (height, width) where they are tiled.
    """

    pad: int = 0

    def __call__(self, samples: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        ids, labels = ([sample[key] for sample in samples] for key in ("input_ids", "labels"))
        mask = [torch.ones_like(one) for one in ids]
        batch = {
            "input_ids": _padded(ids, self.pad),
            "attention_mask": _padded(mask, 0),
            "labels": _padded(labels, IGNORE_INDEX),
        }
        pictures = [picture for sample in samples for picture in sample.get("pixel_values", ())]
        if not pictures:
            return batch
        if pictures[0].ndim == 3:
            return batch | {"pixel_values": torch.stack(pictures)}
        most = max(map(len, pictures))
        tiles = [torch.nn.functional.pad(one, (0, 0) * 3 + (0, most - len(one))) for one in pictures]
        sizes = [size for sample in samples for size in sample.get("image_sizes", ())]
        return batch | {"pixel_values": torch.stack(tiles), "image_sizes": torch.tensor(sizes)}


def _padded(rows: list[Tensor], value: int) -> Tensor:
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=value)


def make_supervised_data_module(
    start: Any, version: str, data_args: Any, max_length: int, refusals: Refusals
) -> dict[str, Any]:
    """Data set and collator for a ``Trainer``; ``start`` is what ``llava.train.build.prepare`` gave."""
    dataset = LazySupervisedDataset(
        data_args.data_path,
        start.tokenizer,
        start.image_processor,
        start.model.config,
        conversation_for(version),
        data_args.image_folder,
        max_length,
        refusals,
    )
    return {"train_dataset": dataset, "data_collator": DataCollatorForSupervisedDataset(start.tokenizer.pad_token_id)}
