"""Where the time of a model goes, pruned and not: encoder, pruner, prefill, first token, further tokens, memory."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from copy import copy
from dataclasses import dataclass, field
from functools import wraps
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from bench_shapes import takes, visual_count
from bench_timing import Watch, ratios, summary
from torch import Tensor, nn
from transformers import StoppingCriteria

import mob
from mob.anatomy import dissect
from mob.budget import keep_count
from mob.cost import Cost, cost
from mob.layout import ENCODERS
from mob.methods import own_layers, parse
from mob.methods.base import Depth
from mob.stages import schedule

STAGES = ("prefill", "first_token", "per_token")


@dataclass(frozen=True)
class Setting:
    """One way to prune. ``early``: the rule acts before the decoder."""

    method: str
    K: int | float
    layer: int

    @property
    def early(self) -> bool:
        return bool(parse(self.method, {})[0])

    def active(self, model: nn.Module, record: bool = False) -> AbstractContextManager:
        at = {} if self.early or own_layers(self.method) else {"layer": self.layer}
        return mob.prune(model, K=self.K, method=self.method, record=record, **at)


@dataclass
class Runs:
    """Milliseconds of every repetition, and bytes."""

    times: dict[str, list[float]] = field(default_factory=lambda: {name: [] for name in STAGES})
    pruner: list[float | None] = field(default_factory=list)
    peak: list[int | None] = field(default_factory=list)
    kv_bytes: int = 0

    def summary(self) -> dict:
        out = {f"{name}_ms": summary(values) for name, values in self.times.items()}
        return out | {
            "peak_bytes": max((p for p in self.peak if p is not None), default=None),
            "kv_bytes": self.kv_bytes,
        }


class Stamps(StoppingCriteria):
    """Notes when each token is there; stops nothing."""

    def __init__(self, watch: Watch) -> None:
        self.watch, self.at = watch, []

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        self.at.append(self.watch.now())
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)


class Bench:
    """One model and one batch of inputs."""

    def __init__(self, model: nn.Module, inputs: dict[str, Tensor], watch: Watch, new_tokens: int) -> None:
        self.model, self.watch, self.new_tokens = model, watch, new_tokens
        self.base = dissect(model).base
        self.inputs = takes(model, {name: value.to(watch.device) for name, value in inputs.items()})
        self.batch, length = inputs["input_ids"].shape
        self.N = visual_count(model.config, inputs["input_ids"])
        self.text = length - self.N
        self.encoded = self._encode()

    def _encode(self) -> dict[str, tuple]:
        """What the encoders are called with in a forward pass, and what they give."""
        seen = {}

        def spy(name: str, original: Any) -> Any:
            @wraps(original)
            def call(*args: Any, **kwargs: Any) -> Any:
                result = original(*args, **kwargs)
                seen[name] = original, args, kwargs, result
                return result

            return call

        found = [name for name in ENCODERS if hasattr(self.base, name)]
        with _instead(self.base, {name: spy(name, getattr(self.base, name)) for name in found}):
            self.base(**takes(self.base, self.inputs), use_cache=False)
        return seen

    def encoder(self) -> None:
        for original, args, kwargs, _ in self.encoded.values():
            original(*args, **kwargs)

    def prefill(self) -> Any:
        """The base model with a cache on pictures that are encoded already: all of it but tower and output head."""
        with _instead(self.base, {name: _ready(original, out) for name, (original, *_, out) in self.encoded.items()}):
            return self.base(**takes(self.base, self.inputs), use_cache=True)

    def generate(self, tokens: int, **more: Any) -> Any:
        return self.model.generate(**self.inputs, max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False, **more)

    def tokens(self) -> tuple[float, float]:
        """Milliseconds to the first token (encoder included) and for each one after it."""
        stamps = Stamps(self.watch)
        start = self.watch.now()
        self.generate(self.new_tokens, stopping_criteria=[stamps])
        first, last = stamps.at[0], stamps.at[-1]
        return (first - start) * 1000, (last - first) * 1000 / (self.new_tokens - 1)

    def kv_bytes(self) -> int:
        """Bytes of keys and values after the prompt, counted in the cache."""
        cache = self.generate(1, return_dict_in_generate=True).past_key_values
        return sum(t.numel() * t.element_size() for layer in cache.layers for t in (layer.keys, layer.values))

    def run(self, setting: Setting | None, runs: Runs) -> None:
        """Every stage once, recording off; then the selection, from the record of one more pass."""
        with setting.active(self.model) if setting else nullcontext():
            took = runs.times["prefill"]
            runs.peak.append(self.watch.peak(lambda: took.append(self.watch.milliseconds(self.prefill))))
            first, later = self.tokens()
            runs.times["first_token"].append(first)
            runs.times["per_token"].append(later)
        if setting:
            with setting.active(self.model, record=True) as pruning, self._same_clock():
                self.prefill()
                runs.pruner.append(next((r.milliseconds for r in pruning.records if r.milliseconds is not None), None))

    def _same_clock(self) -> AbstractContextManager:
        """Records count seconds on the wall; with --process-time let them count those of the process."""
        process = SimpleNamespace(perf_counter=time.process_time)
        return mock.patch("mob.recorder.time", process) if self.watch.process else nullcontext()

    def predicted(self, setting: Setting | None) -> Cost:
        """``mob.cost`` of one row; a rule before the decoder is a decoder that never saw the rest."""
        size = self.model.get_input_embeddings().weight.element_size()
        K = self.N if setting is None else keep_count(self.N, setting.K)
        more = {"text": self.text, "bytes_per_number": size}
        if setting is None or setting.early:
            return cost(self.model.config, K, K, layer=1, **more)
        rule, depth = parse(setting.method, {})[1].rule, self._depth(setting)
        return cost(self.model.config, self.N, stages=schedule(rule, self.N, K, depth), **more)

    def _depth(self, setting: Setting) -> Depth:
        layers = self.model.config.get_text_config().num_hidden_layers
        return Depth(layers, asked=None if own_layers(setting.method) else setting.layer)


@torch.inference_mode()
def measure(bench: Bench, settings: list[Setting], repeats: int, warmup: int = 1) -> list[dict]:
    """One row without pruning, then one for each setting.

    Every pruned run stands next to an unpruned one of its own, before it and after it in turn, in the same process:
    shares are medians over these pairs.
    """
    pairs = [(Runs(), Runs()) for _ in settings]
    encoder = []
    for turn in range(-warmup, repeats):
        encoder.append(bench.watch.milliseconds(bench.encoder))
        for setting, (whole, pruned) in zip(settings, pairs, strict=True):
            order = [(None, whole), (setting, pruned)]
            for way, runs in order if turn % 2 == 0 else reversed(order):
                bench.run(way, runs)
        if turn == -1:
            encoder, pairs = [], [(Runs(), Runs()) for _ in settings]
    return _rows(bench, settings, pairs, encoder)


def _rows(bench: Bench, settings: list[Setting], pairs: list[tuple[Runs, Runs]], encoder: list[float]) -> list[dict]:
    whole = Runs(kv_bytes=bench.kv_bytes())
    for runs, _ in pairs:
        whole.peak += runs.peak
        for name, values in runs.times.items():
            whole.times[name] += values
    full = bench.predicted(None)
    sizes = {"N": bench.N, "text": bench.text, "batch": bench.batch}
    predicted = {"kv_bytes_predicted": full.kv_bytes * bench.batch, "macs": full.macs * bench.batch}
    rows = [{"method": "none", "K": bench.N, **sizes, "encoder_ms": summary(encoder), **whole.summary(), **predicted}]
    for setting, (before, pruned) in zip(settings, pairs, strict=True):
        with setting.active(bench.model):
            pruned.kv_bytes = bench.kv_bytes()
        ideal = bench.predicted(setting)
        shares = {name: ratios(pruned.times[name], before.times[name]) for name in STAGES}
        ideal_share = ideal.macs / full.macs
        reached = (1 - shares["prefill"]["median"]) / (1 - ideal_share) if ideal_share < 1 else None
        rows.append(
            {
                "method": setting.method,
                "K": keep_count(bench.N, setting.K),
                "layer": None if own_layers(setting.method) else 0 if setting.early else setting.layer,
                **sizes,
                "mean_tokens": ideal.mean_tokens,
                "pruner_ms": summary(pruned.pruner),
                **pruned.summary(),
                "kv_bytes_predicted": ideal.kv_bytes * bench.batch,
                "kv_share": pruned.kv_bytes / whole.kv_bytes,
                "macs": ideal.macs * bench.batch,
                "shares": shares,
                "ideal_prefill_share": ideal_share,
                "ideal_reached": reached,
            }
        )
    return rows


def _ready(original: Any, output: Any) -> Any:
    """The encoder without its work. It keeps its signature, by which callers tell what it takes."""

    @wraps(original)
    def call(*args: Any, **kwargs: Any) -> Any:
        return copy(output)

    return call


@contextmanager
def _instead(module: nn.Module, methods: dict[str, Any]) -> Iterator[None]:
    """These methods in place of the module's own, and of what an active pruning put there."""
    before = {name: module.__dict__[name] for name in methods if name in module.__dict__}
    module.__dict__.update(methods)
    try:
        yield
    finally:
        for name in methods:
            module.__dict__.pop(name)
        module.__dict__.update(before)


@torch.inference_mode()
def profile(bench: Bench, setting: Setting, rows: int = 12) -> str:
    """Two tables of torch.profiler: the unpruned prefill and the pruned one."""
    from torch.profiler import ProfilerActivity

    on_cuda = bench.watch.device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_cuda else [])]
    key = "self_cuda_time_total" if on_cuda else "self_cpu_time_total"
    out = []
    for title, way in (("unpruned", None), (f"{setting.method}, K = {setting.K}", setting)):
        with way.active(bench.model) if way else nullcontext():
            bench.prefill()
            with torch.profiler.profile(activities=activities) as profiler:
                bench.prefill()
                bench.watch.now()
        table = profiler.key_averages().table(sort_by=key, row_limit=rows, max_name_column_width=32)
        out.append(f"prefill, {title}\n{table}")
    return "\n".join(out)
