"""Runners that need no download: the embedded checkpoint on its scenes, and the formulas of table 7."""

from __future__ import annotations

import time
from functools import cache
from typing import Any

import torch
from transformers import LlamaConfig, LlavaForConditionalGeneration

from llava.scenes.checkpoint import PATH
from llava.scenes.evaluate import batches, questions, right
from llava.scenes.questions import STRONG, WEAK
from mob import MoBConfig, Pruning
from mob.cost import cost, paper_forward_flops, paper_selection_flops
from paper.grid import MODELS, SCENES, SCENES_COLUMNS, Cell
from paper.runners import Result, RunFailed, summary

_BATCH = 16
_TERA = 1e12
_TEXT = 10  # prompt tokens of table 7


@cache
def _model() -> LlavaForConditionalGeneration:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return LlavaForConditionalGeneration.from_pretrained(PATH, dtype=torch.float32).to(device).eval()


class Scenes:
    """``limit`` questions of each kind of a coupling (strong or weak), by exact match; seconds without loading."""

    name = "llava.scenes"

    def checkpoint(self, cell: Cell) -> str:
        return str(PATH)

    def command(self, cell: Cell) -> str:
        return f"# in this process: {cell.benchmark}, {cell.limit} questions a kind, MoB_config={cell.settings}"

    def run(self, cell: Cell) -> Result:
        if cell.limit is None:
            raise RunFailed("scenes are drawn without end: give --n")
        kinds = dict(zip(SCENES_COLUMNS, (STRONG, WEAK), strict=True))[cell.benchmark]
        asked = [one for one in questions(cell.limit) if one.question.task in kinds]
        model, correct, records = _model(), [], []
        inputs = [batch for _, batch in batches(asked, _BATCH)]  # drawing is not the model's time
        settings = MoBConfig.from_dict(cell.settings) if cell.settings is not None else None
        began = time.perf_counter()
        if settings is None:
            for batch in inputs:
                correct += right(model, batch, None)
        else:
            with Pruning(model, settings, record=True) as pruning:
                for batch in inputs:
                    correct += right(model, batch, None)
            records = [record.to_dict() for record in pruning.records]
        seconds = time.perf_counter() - began
        tokens, eta = summary(records, MODELS[SCENES].layers)
        return Result(
            score=100 * sum(correct) / len(correct),
            metric="percent right",
            seconds=seconds,
            questions=len(correct),
            includes_loading=False,
            tokens=tokens,
            eta=eta,
            dataset={"name": "llava.scenes, held-out scenes 0, 1, 2, ...", "revision": "this commit"},
            details={"kinds": list(kinds)},
        )


class Formula:
    """Table 7: nothing is run. The decoder of both models is Vicuna-7B, the default shape of ``LlamaConfig``."""

    name = "formula"
    columns = ("forward", "hausdorff", "selection", "all layers")

    def checkpoint(self, cell: Cell) -> str:
        return "the shape of Vicuna-7B"

    def command(self, cell: Cell) -> str:
        return f"# computed by mob.cost: {cell.benchmark}"

    def run(self, cell: Cell) -> Result:
        decoder, N = LlamaConfig(), MODELS[cell.model].tokens
        K = cell.settings["K"] if cell.settings else N
        flops = self._flops(decoder, cell.benchmark, N, K) / _TERA
        whole = cost(decoder, N, K, text=_TEXT)
        tokens: dict[str, Any] = {"N": N, "K": K, "mean_per_layer": whole.mean_tokens}
        return Result(flops, "TFLOPs", 0.0, includes_loading=False, tokens=tokens)

    @staticmethod
    def _flops(decoder: LlamaConfig, column: str, N: int, K: int) -> float:
        if column == "forward":
            return paper_forward_flops(decoder, K, _TEXT)
        if column == "hausdorff":
            return N * _TEXT * decoder.hidden_size
        if column == "selection":
            return paper_selection_flops(N, K, _TEXT, decoder.hidden_size)
        return 2 * cost(decoder, N, K, text=_TEXT).macs
