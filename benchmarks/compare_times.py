"""What a pass costs under each rule of ``compare.py``, in CPU time."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import islice
from unittest.mock import patch

import torch

import mob.early
import mob.pruner
from llava.scenes.checkpoint import split_of
from llava.scenes.evaluate import Asked, batches
from mob import MoBConfig, Pruning

TIMED, TIMED_BATCH = 6, 10  # batches that are timed, and questions in them


@torch.inference_mode()
def times(
    model, asked: list[Asked], rows: list[tuple[str, int]], of: Callable[[str, int, int], MoBConfig | None]
) -> dict[tuple[str, int], dict]:
    """CPU milliseconds for a batch: of choosing, of a pass, and of that as a share of the unpruned one beside it."""
    out: dict[tuple[str, int], dict] = {row: {"pruner_ms": [], "prefill_ms": [], "share": []} for row in rows}
    for number, (_, inputs) in enumerate(islice(batches(asked, TIMED_BATCH, split_of(model)), TIMED)):
        for method, K in rows:
            one = of(method, K, number)
            whole = _milliseconds(model, inputs)
            if one is None:
                out[method, K]["prefill_ms"].append(whole)
                continue
            with Pruning(model, one), choosing() as chosen:
                took = _milliseconds(model, inputs)
            numbers = {"pruner_ms": sum(chosen), "prefill_ms": took, "share": took / whole}
            for name, value in numbers.items():
                out[method, K][name].append(value)
    return {
        row: {name: round(statistics.median(values), 3) if values else None for name, values in taken.items()}
        for row, taken in out.items()
    }


@contextmanager
def choosing() -> Iterator[list[float]]:
    """CPU milliseconds that rules take while this is open, before the decoder and in it."""
    took: list[float] = []

    def clocked(choose):
        def wrapper(*args, **kwargs):
            start = time.process_time()
            out = choose(*args, **kwargs)
            took.append(1000 * (time.process_time() - start))
            return out

        return wrapper

    with ExitStack() as stack:
        for module in (mob.early, mob.pruner):
            stack.enter_context(patch.object(module, "choose", clocked(module.choose)))
        yield took


def _milliseconds(model, inputs: dict) -> float:
    start = time.process_time()
    model(**inputs)
    return 1000 * (time.process_time() - start)
