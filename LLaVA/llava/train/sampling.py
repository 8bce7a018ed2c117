"""The order of samples: batches of one modality and of similar length."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch.utils.data import Sampler


class LengthGroupedSampler(Sampler[int]):
    """A random order in which every ``world_size`` consecutive batches hold samples of similar length.

    Within such a megabatch, the samples of each batch add up to about as many tokens as those of the next, so that
    processes wait little for each other. The order depends on seed and epoch alone.

    Args:
        batch_size: samples of a process and step.
        world_size: processes times accumulation steps.
        lengths: tokens of each sample; with ``group_by_modality`` negative where it is text only.
        group_by_modality: megabatches hold either pictures or text only; what is left over of both makes the last ones.
    """

    def __init__(
        self,
        batch_size: int,
        world_size: int,
        lengths: Sequence[int],
        seed: int = 0,
        group_by_modality: bool = False,
    ) -> None:
        if not len(lengths):
            raise ValueError("there are no samples to order")
        if any(length == 0 for length in lengths):
            raise ValueError("a sample has length 0: lengths must not be zero")
        self.batch_size, self.world_size, self.lengths = batch_size, world_size, lengths
        self.seed, self.epoch, self.group_by_modality = seed, 0, group_by_modality

    def __len__(self) -> int:
        return len(self.lengths)

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        everything = range(len(self.lengths))
        if not self.group_by_modality:
            megabatches, rest = self._megabatches(list(everything), generator)
            return iter([i for batch in [*megabatches, rest] for i in batch])
        pictures = [i for i in everything if self.lengths[i] > 0]
        texts = [i for i in everything if self.lengths[i] < 0]
        megabatches, rest = [], []
        for group in (pictures, texts):
            whole, over = self._megabatches(group, generator)
            megabatches += whole
            rest += over
        order = torch.randperm(len(megabatches), generator=generator).tolist()
        last = self._even(rest)
        return iter([i for number in order for i in megabatches[number]] + last)

    def _megabatches(self, indices: list[int], generator: torch.Generator) -> tuple[list[list[int]], list[int]]:
        """Whole megabatches of shuffled indices, and what does not fill one."""
        order = torch.randperm(len(indices), generator=generator).tolist()
        shuffled = [indices[i] for i in order]
        size = self.batch_size * self.world_size
        parts = [self._even(shuffled[start : start + size]) for start in range(0, len(shuffled), size)]
        return (parts, []) if not parts or len(parts[-1]) == size else (parts[:-1], parts[-1])

    def _even(self, indices: list[int]) -> list[int]:
        """The samples of one megabatch, longest first, dealt to ``world_size`` batches of about equal totals."""
        ordered = sorted(indices, key=lambda i: -abs(self.lengths[i]))
        if len(ordered) % self.world_size:
            return ordered
        room = len(ordered) // self.world_size
        batches: list[list[int]] = [[] for _ in range(self.world_size)]
        totals = [0] * self.world_size
        for index in ordered:
            shortest = min((n for n in range(self.world_size) if len(batches[n]) < room), key=totals.__getitem__)
            batches[shortest].append(index)
            totals[shortest] += abs(self.lengths[index])
        return [i for batch in batches for i in batch]
