"""What a table consists of: rows (a model under some setting), columns (benchmarks), and cells to measure.

The paper's numbers are in scripts/paper/paper_tables.json. A figure is a table whose rows the paper does not print.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

from mob.budget import keep_count, round_half_up
from mob.config import MoBConfig
from mob.methods import own_layers

ROOT = Path(__file__).resolve().parents[2]
NUMBERS = ROOT / "scripts" / "paper" / "paper_tables.json"
AVERAGE = "average"
STRONG = ("MMB", "MMB-CN", "SQA", "VizWiz", "MSVD", "MSRVTT", "ActivityNet")
SCENES, SCENES_COLUMNS = "scenes", ("scenes-strong", "scenes-weak")
LMMS_SCENES = "lmms-eval"  # all kinds, through the lmms-eval command that the real cells go through
SCENES_TOKENS = 196
_SCENES_DEEPEST = 4  # of its six layers: rows that prune deeper have no counterpart
_IMAGE = ("MMB", "MMB-CN", "SQA", "VizWiz", "GQA", "MME", "POPE", "TextVQA", "VQAv2", "OCRBench")
_VANILLA, _PLAIN, _PRIOR = "vanilla", "MoB (no prior)", "MoB (eta prior)"


@dataclass(frozen=True)
class Model:
    """A model of the paper.

    Attributes:
        lmms: its name in lmms-eval, with this repository's plugin. checkpoint: what is loaded unless told otherwise.
        scripts: folder of scripts/ with one script a benchmark; None where there is none.
        layers: decoder layers. tokens: visual tokens that the paper counts from.
        fixed: every picture has ``tokens``; otherwise it depends on the picture.
    """

    lmms: str
    checkpoint: str
    scripts: str | None
    layers: int
    tokens: int
    fixed: bool = False


MODELS = {
    "LLaVA-1.5-7B": Model("llava-v1.5-mob", "liuhaotian/llava-v1.5-7b", "v1_5/eval", 32, 576, fixed=True),
    "LLaVA-Next-7B": Model("llava-v1.6-mob", "liuhaotian/llava-v1.6-vicuna-7b", "v1_6/eval", 32, 2880),
    "Qwen2-VL-7B": Model("qwen2-vl-mob", "Qwen/Qwen2-VL-7B-Instruct", None, 28, 1296),
    "Video-LLaVA-7B": Model("video-llava-mob", "LanguageBind/Video-LLaVA-7B-hf", "video", 32, 2048),
    SCENES: Model("llava-v1.5-mob", "embedded", None, 6, SCENES_TOKENS, fixed=True),
}


@dataclass(frozen=True)
class Cell:
    """One number to measure: a model, pruned as ``settings`` (a ``MoB_config``; None: not pruned), on a benchmark.

    ``limit``: only the first questions of the benchmark; of scenes, questions of each kind.
    """

    model: str
    benchmark: str
    settings: dict[str, Any] | None
    limit: int | None = None

    def identity(self) -> dict[str, Any]:
        """What decides the number. Where the count of tokens is known, a schedule and the integers it stands for are
        the same thing."""
        settings, model = self.settings, MODELS[self.model]
        if settings is not None and model.fixed:
            config = MoBConfig.from_dict(settings)
            budget = config.budget(model.tokens)
            rest = {"layer": config.l_idx, "method": config.method, "options": dict(config.options)}
            settings = {"K": budget.K, "K_p": budget.K_p, "k": budget.k, **rest}
            if config.method != "mob":
                settings |= {"K_p": None, "k": None}
        return {"model": self.model, "benchmark": self.benchmark, "settings": settings, "limit": self.limit}


@dataclass(frozen=True)
class Row:
    """One line of a table.

    Attributes:
        group: rows of one group are printed together. label: the method.
        settings: a ``MoB_config``, None for the unpruned model; ``schedule="prior"`` stands for the paper's schedule
            for a benchmark's coupling.
        paper: printed numbers by benchmark. here: False for methods that this repository does not have.
        start_up: one question, to know how long loading takes; not shown.
    """

    model: str
    group: str
    label: str
    settings: dict[str, Any] | None = None
    paper: dict[str, float] = field(default_factory=dict)
    here: bool = True
    start_up: bool = False

    @property
    def vanilla(self) -> bool:
        return self.here and self.settings is None and not self.start_up

    def cell(self, benchmark: str, limit: int | None) -> Cell:
        settings = self.settings
        if settings is not None and settings.get("schedule") == "prior":
            strong = benchmark in STRONG or benchmark == SCENES_COLUMNS[0]
            settings = {**settings, "schedule": "strong" if strong else "weak"}
        return Cell(self.model, benchmark, settings, 1 if self.start_up else limit)


@dataclass(frozen=True)
class Grid:
    """A table: every row has a cell in every column that its model is measured on."""

    name: str
    title: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()

    def cells(self, limit: int | None) -> Iterator[tuple[Row, Cell]]:
        for row in self.rows:
            if row.here:
                for column in self.columns:
                    yield row, row.cell(column, limit)

    def smoke(self) -> Grid:
        """The same rows on the embedded checkpoint, with two kinds of questions for columns."""
        if self.name == "table7":
            return self
        seen, rows = set(), []
        for row in self.rows:
            average = {AVERAGE: row.paper[AVERAGE]} if AVERAGE in row.paper else {}
            deep = row.settings is not None and row.settings.get("l_idx", 0) > _SCENES_DEEPEST
            if row.here and not deep and (row.model, row.group, row.label) not in seen:
                seen.add((row.model, row.group, row.label))
                group = f"{row.model}'s {row.group}"
                rows.append(replace(row, model=SCENES, group=group, settings=_scaled(row), paper=average))
        note = (
            "SMOKE: the embedded checkpoint and its scenes stand in for models and benchmarks, with K at the same "
            f"share of {SCENES_TOKENS} tokens. Only the pipeline is tested; differences from the paper mean nothing."
        )
        # Figures have many rows, and lmms-eval takes ten seconds to start.
        columns = (*SCENES_COLUMNS, *([LMMS_SCENES] if self.name.startswith("table") else []))
        return replace(self, columns=columns, rows=tuple(rows), notes=(note,))


def _scaled(row: Row) -> dict[str, Any] | None:
    """A row's settings at the embedded checkpoint's 196 tokens."""
    if row.settings is None:
        return None
    out, tokens = dict(row.settings), MODELS[row.model].tokens
    K = out["K"]
    out["K"] = keep_count(SCENES_TOKENS, K / tokens if isinstance(K, int) else K)
    if out.get("K_p") is not None:
        centres = round_half_up(Fraction(out["K_p"], K) * out["K"])
        if out.get("k") is not None and out["K_p"]:
            out["k"] = max(1, round_half_up(Fraction(out["k"], out["K_p"]) * centres))
        out["K_p"] = centres
    return out


# ---------------------------------------------------------------------------------------------------------------
# The tables


def numbers() -> dict[str, Any]:
    return json.loads(NUMBERS.read_text())


def _kept(K: int | list[int] | None) -> tuple[str, int | float | None]:
    """How a budget is called, and K itself."""
    if K is None:
        return "all tokens", None
    if isinstance(K, int):
        return f"K={K}", K
    top, bottom = K
    return f"K={top}/{bottom}", top / bottom


def _settings(method: str, K: int | float | None) -> dict[str, Any] | None:
    base = {"K": K, "l_idx": 2}
    return {_PLAIN: base, _PRIOR: base | {"schedule": "prior"}}.get(method)


def _methods(table: str, also: tuple[str, ...], every: bool = True) -> tuple[Row, ...]:
    """Rows of tables that compare methods; ``also``: rules of this repository that the paper does not have."""
    rows: list[Row] = []
    for printed in numbers()["tables"][table]:
        group, K = _kept(printed["K"])
        method, model = printed["method"], printed["model"]
        here = method in (_VANILLA, _PLAIN, _PRIOR)
        if not (here or every):
            continue
        if rows and also and (rows[-1].model, rows[-1].group) != (model, group):
            rows += _added(rows[-1], also)
        rows.append(Row(model, group, method, _settings(method, K), printed["scores"], here))
    return (*rows, *_added(rows[-1], also))


def _added(last: Row, also: tuple[str, ...]) -> list[Row]:
    if last.settings is None:
        return []
    rows = []
    for rule in also:
        layer = {} if own_layers(rule) else {"l_idx": last.settings["l_idx"]}
        rows.append(Row(last.model, last.group, rule, {"K": last.settings["K"], "method": rule, **layer}))
    return rows


def _table2(also: tuple[str, ...]) -> Grid:
    title = "Image understanding, LLaVA (paper tables 2 and 5), rows of this repository's methods"
    return Grid("table2", title, _IMAGE, _methods("table2", also, every=False))


def _table5(also: tuple[str, ...]) -> Grid:
    title = "Image understanding, LLaVA (paper tables 2 and 5), every method that the paper prints"
    return Grid("table5", title, _IMAGE, _methods("table2", also))


def _table3(also: tuple[str, ...]) -> Grid:
    columns = ("GQA", "MME", "POPE", "TextVQA", "MMB", "SQA")
    return Grid("table3", "Image understanding, Qwen2-VL-7B (paper table 3)", columns, _methods("table3", also))


def _table4(also: tuple[str, ...]) -> Grid:
    columns = ("TGIF", "MSVD", "MSRVTT", "ActivityNet")
    note = "The paper's accuracies are a GPT's judgement; here answers are compared as strings (exact match)."
    return Grid("table4", "Video, Video-LLaVA-7B (paper table 4)", columns, _methods("table4", also), (note,))


def _table6(also: tuple[str, ...]) -> Grid:
    rows = []
    for printed in numbers()["tables"]["table6"]:
        K, K_p, k = printed["K"], printed["K_p"], printed["k"]
        # k = 0 lets no prompt token propose anything: visual centres only.
        settings = {"K": K, "K_p": K_p, "k": k, "l_idx": 2} if k else {"K": K, "K_p": 0, "l_idx": 2}
        rows.append(Row(printed["model"], f"K={K}, K_p={K_p}", f"k={k}", settings, printed["scores"]))
    note = "k = 0 is read as: no prompt centres, K visual centres."
    return Grid("table6", "Covering fold, LLaVA-1.5-7B (paper table 6)", ("GQA", "TextVQA"), tuple(rows), (note,))


def _table7(also: tuple[str, ...]) -> Grid:
    rows = []
    for printed in numbers()["tables"]["table7"]:
        group, K = _kept(printed["K"])
        settings = None if K is None else {"K": K, "l_idx": 2}
        rows.append(Row(printed["model"], f"N={printed['N']}", group, settings, printed["scores"]))
    note = (
        "Computed, not run. `forward` is the paper's formula and counts the pruned layers only; `all layers` is what a "
        "prefill really costs in this count, 2 FLOPs a multiply-accumulate, attention included."
    )
    columns = ("forward", "hausdorff", "selection", "all layers")
    return Grid("table7", "TFLOPs, 10 prompt tokens (paper table 7)", columns, tuple(rows), (note,))


_NO_NUMBERS = "The paper draws these and prints no numbers."


def _figure3(also: tuple[str, ...]) -> Grid:
    model = "LLaVA-Next-7B"
    rows = [Row(model, "start-up", "one question", start_up=True), Row(model, "all tokens", _VANILLA)]
    for K in (960, 640, 320, 160):
        rows.append(Row(model, f"K={K}", _PRIOR, _settings(_PRIOR, K)))
        rows += _added(rows[-1], also)
    note = "Seconds a question: whole evaluation less a run of one question, per further question. " + _NO_NUMBERS
    return Grid("figure3", "Latency against score (after paper figure 3)", ("POPE",), tuple(rows), (note,))


def _figure4_6(also: tuple[str, ...]) -> Grid:
    model, base = "LLaVA-1.5-7B", {"K": 64, "l_idx": 2}
    rows = [Row(model, "all tokens", _VANILLA)]
    rows += [Row(model, "over K", f"K={K}", base | {"K": K}) for K in (32, 64, 96, 128, 192, 256)]
    rows += [Row(model, "over K_p (K=64, k=4)", f"K_p={p}", base | {"K_p": p, "k": 4}) for p in range(0, 65, 8)]
    folds = (1, 2, 4, 8, 16, 32)
    rows += [Row(model, "over k (K=64, K_p=32)", f"k={k}", base | {"K_p": 32, "k": k}) for k in folds]
    rows += [Row(model, "over layer (K=64)", f"layer={i}", base | {"l_idx": i}) for i in (1, 2, 3, 4, 8, 12, 16)]
    title = "Ablations over K, K_p, k and layer (after paper figures 4 to 6)"
    return Grid("figure4_6", title, ("GQA", "TextVQA"), tuple(rows), (_NO_NUMBERS,))


def _figure9(also: tuple[str, ...]) -> Grid:
    rows = (Row("LLaVA-1.5-7B", "K=64", _PLAIN, _settings(_PLAIN, 64)),)
    note = "eta at the entry of layer 2, which does not depend on K. " + _NO_NUMBERS
    return Grid("figure9", "Distribution of eta by benchmark (after paper figure 9)", _IMAGE, rows, (note,))


GRIDS = {
    "table2": _table2,
    "table3": _table3,
    "table4": _table4,
    "table5": _table5,
    "table6": _table6,
    "table7": _table7,
    "figure3": _figure3,
    "figure4_6": _figure4_6,
    "figure9": _figure9,
}


def grid(name: str, also: tuple[str, ...] = ()) -> Grid:
    return GRIDS[name](also)
