"""What measures a cell: lmms-eval, the benchmark scripts of this repository, the scenes, or a formula.

A runner has a ``name``, says with ``command(cell)`` what it would start, and ``run(cell)`` gives a ``Result``.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from llava.provenance import provenance
from llava.scenes.checkpoint import PATH
from mob.cost import mean_tokens
from paper.grid import LMMS_SCENES, MODELS, ROOT, SCENES, Cell

_BIN = 0.01  # width of the histogram of eta, which lies in 0 .. 2


class RunFailed(RuntimeError):
    """A cell could not be measured; one line."""


@dataclass(frozen=True)
class Result:
    """A measured cell.

    Attributes:
        score: on the paper's scale; None where only a benchmark's server can say.
        metric: what the score is. seconds: of the whole evaluation; ``includes_loading`` says of what.
        tokens: visual tokens, means over questions: N, K, and mean_per_layer over the decoder's layers.
        eta: count, mean, percentiles and histogram {lower edge: count} of the coupling.
        dataset: name and revision. details: whatever else says where the score is from; ``resumed``: answers of a
            stopped run were used, so seconds are those of the rest.
    """

    score: float | None
    metric: str
    seconds: float
    questions: int | None = None
    includes_loading: bool = True
    tokens: dict[str, float] | None = None
    eta: dict[str, Any] | None = None
    dataset: dict[str, Any] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)


class Runner(Protocol):
    name: str

    def checkpoint(self, cell: Cell) -> str:
        """What is loaded."""

    def command(self, cell: Cell) -> str:
        """What ``run`` starts, as one could type it."""

    def run(self, cell: Cell) -> Result: ...


def facts(runner: Runner, cell: Cell) -> dict[str, Any]:
    """Provenance of a cell that was run just now."""
    checkpoint = runner.checkpoint(cell)
    folder = PATH if checkpoint == "embedded" else Path(checkpoint) if Path(checkpoint).is_dir() else None
    out = provenance(folder)
    out["versions"] |= {name: version for name in ("lmms_eval", "mob-lmms-eval") if (version := _version(name))}
    out["model"] = {"checkpoint": folder.name if folder else checkpoint, "revision": revision(checkpoint, "models")}
    return out | {"cell_command": runner.command(cell)}


def revision(name: str, kind: str) -> str | None:
    """Commit of a hub repository (``kind`` models or datasets) that the hub's cache calls main; None if it has none."""
    from huggingface_hub.constants import HF_HUB_CACHE

    ref = Path(HF_HUB_CACHE) / f"{kind}--{name.replace('/', '--')}" / "refs" / "main"
    return ref.read_text().strip() if ref.is_file() else None


def _version(name: str) -> str | None:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(name)
    except PackageNotFoundError:
        return None


def summary(records: Iterable[dict[str, Any]], layers: int) -> tuple[dict | None, dict | None]:
    """(tokens, eta) of ``RetainedPatches`` dicts; None where nothing was pruned. Splits over pictures count as one."""
    rows = [row for row in records if row.get("keep_indices") is not None]
    if not rows:
        return None, None
    N, K, per_layer = (sum(values) / len(rows) for values in zip(*(_tokens(row, layers) for row in rows), strict=True))
    etas = sorted(row["eta"] for row in rows if row.get("eta") is not None)
    tokens = {"N": N, "K": K, "mean_per_layer": per_layer}
    return tokens, distribution(etas) if etas else None


def _tokens(row: dict[str, Any], layers: int) -> tuple[float, float, float]:
    stages = row.get("stages") or []
    N = stages[0]["N"] if stages else row["N"]
    left = [(stage.get("layer", 0), stage["K"]) for stage in stages]
    return N, row["K"], mean_tokens(N, [*left, (row["layer"], row["K"])], layers)


def distribution(values: list[float]) -> dict[str, Any]:
    """Of sorted values, at least one."""
    at = {f"p{p}": values[min(len(values) - 1, round(p / 100 * (len(values) - 1)))] for p in (5, 25, 50, 75, 95)}
    bins = Counter(int(value / _BIN) for value in values)
    histogram = {f"{index * _BIN:.2f}": bins[index] for index in sorted(bins)}
    return {"count": len(values), "mean": sum(values) / len(values), **at, "bin": _BIN, "histogram": histogram}


def _logged(words: list[str], log: Path, environment: dict[str, str] | None = None, fine: tuple = (0,)) -> str:
    """Run a command with its output in ``log``; what it printed. RunFailed with its last line if it fails."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w") as file:
        env = {**os.environ, **(environment or {})}
        code = subprocess.run(words, stdout=file, stderr=subprocess.STDOUT, env=env, cwd=ROOT).returncode
    text = log.read_text(errors="replace")
    if code not in fine:
        last = next((line for line in reversed(text.splitlines()) if line.strip()), "no output")
        raise RunFailed(f"exit code {code}: {last.strip()[:300]} (all of it: {log})")
    return text


def _here(command: str) -> str:
    """Without this machine's folders."""
    return command.replace(f"{ROOT}/", "").replace(f"{Path.cwd()}/", "")


class Commands:
    """Shared by runners that start a command: which checkpoint, and a folder for each cell."""

    def __init__(self, work: Path, checkpoints: dict[str, str] | None = None, batch: int = 1, extra: str = "") -> None:
        """``work``: folder for logs and answers. ``checkpoints``: by model, instead of the hub's."""
        self.work, self.checkpoints = Path(work).resolve(), checkpoints or {}
        self.batch, self.extra = batch, extra

    def checkpoint(self, cell: Cell) -> str:
        return self.checkpoints.get(cell.model, MODELS[cell.model].checkpoint)

    def folder(self, cell: Cell) -> Path:
        from paper.store import key

        return self.work / key(self, cell)

    def forget(self, cell: Cell) -> None:
        """Set logs and answers of a cell aside, so that it begins anew."""
        folder, number = self.folder(cell), 1
        while (aside := folder.with_name(f"{folder.name}.{number}")).exists():
            number += 1
        if folder.exists():
            folder.rename(aside)


# ---------------------------------------------------------------------------------------------------------------
# lmms-eval

# benchmark: task, metrics that are added up, and what brings them to the paper's scale
LMMS = {
    "MMB": ("mmbench_en_dev", ("gpt_eval_score",), 1),
    "MMB-CN": ("mmbench_cn_dev", ("gpt_eval_score",), 1),
    "SQA": ("scienceqa_img", ("exact_match",), 100),
    "VizWiz": ("vizwiz_vqa_val", ("exact_match",), 100),
    "GQA": ("gqa", ("exact_match",), 100),
    "MME": ("mme", ("mme_perception_score", "mme_cognition_score"), 1),
    "POPE": ("pope", ("pope_f1_score",), 100),
    "TextVQA": ("textvqa_val", ("exact_match",), 100),
    "VQAv2": ("vqav2_val", ("exact_match",), 100),
    "OCRBench": ("ocrbench", ("ocrbench_accuracy",), 1000),
    "ActivityNet": ("activitynetqa", ("gpt_eval_accuracy",), 1),
    LMMS_SCENES: ("mob_scenes", ("accuracy",), 100),
}


class Lmms(Commands):
    """The stock lmms-eval command with this repository's models."""

    name = "lmms-eval"

    def command(self, cell: Cell) -> str:
        return _here(shlex.join(["lmms-eval", *self._words(cell)[3:]]))

    def _words(self, cell: Cell) -> list[str]:
        if cell.benchmark not in LMMS:
            raise RunFailed(f"lmms-eval has no task for {cell.benchmark}: try --harness llava")
        folder, checkpoint = self.folder(cell), self.checkpoint(cell)
        given = {} if checkpoint == "embedded" else {"pretrained": checkpoint}
        if cell.settings is None:
            given["mob"] = False
        else:
            settings = dict(cell.settings)
            given |= settings.pop("options", {}) | settings
        given["resume"] = folder / "answers"
        arguments = ",".join(f"{name}={value}" for name, value in given.items()) + (f",{self.extra}" * bool(self.extra))
        words = [sys.executable, "-m", "lmms_eval", "--model", MODELS[cell.model].lmms, "--model_args", arguments]
        words += ["--tasks", LMMS[cell.benchmark][0], "--batch_size", str(self.batch), "--log-retained-patches"]
        words += ["--output_path", f"{folder}/"]
        return words + ([] if cell.limit is None else ["--limit", str(cell.limit)])

    def run(self, cell: Cell) -> Result:
        if _version("mob-lmms-eval") is None:
            raise RunFailed("lmms-eval is not installed: run scripts/install_eval.sh")
        words, folder = self._words(cell), self.folder(cell)
        resumed = (folder / "log.txt").exists()
        began = time.perf_counter()
        _logged(words, folder / "log.txt")
        seconds = time.perf_counter() - began
        task, metrics, scale = LMMS[cell.benchmark]
        found = json.loads(_newest(folder, "*results.json").read_text())
        scores = found["results"].get(task, {})
        values = [scores.get(f"{metric},none") for metric in metrics]
        if not all(isinstance(value, (int, float)) for value in values):
            raise RunFailed(f"{task} reports no {' and '.join(metrics)}: {', '.join(scores)}")
        with _newest(folder, f"*samples_{task}.jsonl").open() as samples:
            tokens, eta = summary(_retained(samples), MODELS[cell.model].layers)
        name = found["configs"].get(task, {}).get("dataset_path")
        dataset = {"name": name, "revision": revision(name, "datasets") if name else None}
        details = {"resumed": resumed, "task": task, "task_version": found.get("versions", {}).get(task)}
        details["task_hash"] = found.get("task_hashes", {}).get(task)
        return Result(
            score=scale * sum(values),
            metric=" + ".join(metrics),
            seconds=seconds,
            questions=found.get("n-samples", {}).get(task, {}).get("effective"),
            tokens=tokens,
            eta=eta,
            dataset=dataset,
            details=details,
        )


def _newest(folder: Path, pattern: str) -> Path:
    files = sorted(folder.rglob(pattern), key=lambda file: file.stat().st_mtime)
    if not files:
        raise RunFailed(f"{folder} has no {pattern}; see log.txt there")
    return files[-1]


def _retained(samples: Iterable[str]) -> Iterable[dict[str, Any]]:
    for line in samples:
        for counts in json.loads(line).get("token_counts") or ():
            if counts and counts.get("retained_patches"):
                yield counts["retained_patches"]


# ---------------------------------------------------------------------------------------------------------------
# scripts/v1_5/eval, scripts/v1_6/eval, scripts/video

# benchmark: script, pattern of the score that it prints (None: its server has the answers), scale, folder of its data
SCRIPTS = {
    "MMB": ("mmbench.sh", r"^Accuracy: ([\d.]+)%", 1, "mmbench"),
    "MMB-CN": ("mmbench_cn.sh", r"^Accuracy: ([\d.]+)%", 1, "mmbench_cn"),
    "SQA": ("sqa.sh", r"IMG-Accuracy: ([\d.]+)%", 1, "scienceqa"),
    "VizWiz": ("vizwiz.sh", None, 1, "vizwiz"),
    "GQA": ("gqa.sh", r"^Accuracy: ([\d.]+)%", 1, "gqa"),
    "MME": ("mme.sh", r"^total score: ([\d.]+)", 1, "MME"),
    "POPE": ("pope.sh", r"^Mean F1: ([\d.]+)", 100, "pope"),
    "TextVQA": ("textvqa.sh", r"^Accuracy: ([\d.]+)%", 1, "textvqa"),
    "VQAv2": ("vqav2.sh", None, 1, "vqav2"),
    "OCRBench": ("ocrbench.sh", r"^Final Score: ([\d.]+) of", 1, "ocrbench"),
    "TGIF": ("tgif.sh", r"^exact: ([\d.]+)%", 1, "GPT_Zero_Shot_QA/TGIF_Zero_Shot_QA"),
    "MSVD": ("msvd.sh", r"^exact: ([\d.]+)%", 1, "GPT_Zero_Shot_QA/MSVD_Zero_Shot_QA"),
    "MSRVTT": ("msrvtt.sh", r"^exact: ([\d.]+)%", 1, "GPT_Zero_Shot_QA/MSRVTT_Zero_Shot_QA"),
    "ActivityNet": ("activitynet.sh", r"^exact: ([\d.]+)%", 1, "GPT_Zero_Shot_QA/Activitynet_Zero_Shot_QA"),
}
_OURS = ("answers", "answers_upload", "predictions")


class Scripts(Commands):
    """LLaVA's own protocol. Each cell gets a folder of links to the data, so that answers of cells stay apart."""

    name = "llava.eval"

    def _words(self, cell: Cell) -> list[str]:
        place = MODELS[cell.model].scripts
        if place is None or cell.benchmark not in SCRIPTS:
            raise RunFailed(f"no script asks {cell.benchmark} of {cell.model}: try --harness lmms")
        script = ROOT / "scripts" / place / SCRIPTS[cell.benchmark][0]
        if not script.exists():
            raise RunFailed(f"no script asks {cell.benchmark} of {cell.model}: try the other --harness")
        if cell.limit is not None:
            raise RunFailed("the benchmark scripts ask every question: leave out --limit, or use --harness lmms")
        settings, folder = cell.settings, self.folder(cell)
        words = ["bash", str(script), "all" if settings is None else str(settings["K"]), self.checkpoint(cell)]
        if settings is not None:
            words += ["--mob-config", str(folder / "mob.json")]
        words += ["--log-retained-patches", str(folder / "retained.jsonl")]  # of several GPUs: retained-4_0.jsonl ...
        return [*words, "--batch-size", str(self.batch), *shlex.split(self.extra)]

    def command(self, cell: Cell) -> str:
        words = shlex.join(self._words(cell))
        written = f"  # mob.json: {json.dumps(cell.settings)}" if cell.settings else ""
        return _here(f"MOB_EVAL_DATA={shlex.quote(str(self.folder(cell) / 'data'))} {words}{written}")

    def run(self, cell: Cell) -> Result:
        words, folder = self._words(cell), self.folder(cell)
        script, pattern, scale, data = SCRIPTS[cell.benchmark]
        resumed = (folder / "log.txt").exists()
        source = Path(os.environ.get("MOB_EVAL_DATA", "playground/data/eval")).resolve()
        link(source / data, folder / "data" / data)
        if cell.settings is not None:
            (folder / "mob.json").write_text(json.dumps(cell.settings))
        began = time.perf_counter()
        printed = _logged(
            words, folder / "log.txt", {"MOB_EVAL_DATA": str(folder / "data"), "MOB_PYTHON": sys.executable}
        )
        seconds = time.perf_counter() - began
        score, metric = None, "to be scored by the benchmark's server"
        if pattern is not None:
            found = [float(value) for value in re.findall(pattern, printed, re.MULTILINE)]
            if not found:
                raise RunFailed(f"{script} printed no score; see {folder / 'log.txt'}")
            score, metric = scale * (sum(found) if cell.benchmark == "MME" else found[-1]), f"what {script} prints"
        rows = [json.loads(line) for file in _records(folder) for line in file.read_text().splitlines()]
        kept = (row["retained_patches"] for row in rows if row.get("retained_patches"))
        tokens, eta = summary(kept, MODELS[cell.model].layers)
        count = len(rows) or None
        dataset = {"name": data, "revision": None, "sha256": _asked(folder)}  # files that the user has put there
        details = {"resumed": resumed, "script": script}
        return Result(score, metric, seconds, count, tokens=tokens, eta=eta, dataset=dataset, details=details)


def _records(folder: Path) -> list[Path]:
    """What was kept: one file, or one of each GPU, those of the newest division."""
    files = sorted(folder.glob("retained*.jsonl"), key=lambda file: file.stat().st_mtime)
    if not files:
        return []
    division = files[-1].stem.rpartition("_")[0]
    return [file for file in files if file.stem.rpartition("_")[0] == division]


def _asked(folder: Path) -> dict[str, str]:
    """SHA-256 of the question files, as the answers' settings name them."""
    found: dict[str, str] = {}
    for file in sorted(folder.rglob("*.settings.json")):
        found |= json.loads(file.read_text()).get("questions", {})
    return found


def link(source: Path, target: Path) -> None:
    """``target`` becomes a folder of links to what ``source`` holds, but for answers, which are the cell's own."""
    if not source.is_dir():
        raise RunFailed(
            f"{source} is not there: lay out the data as in LLaVA's docs/Evaluation.md and set MOB_EVAL_DATA"
        )
    target.mkdir(parents=True, exist_ok=True)
    for entry in source.iterdir():
        if entry.name not in _OURS and not (target / entry.name).is_symlink():
            (target / entry.name).symlink_to(entry)


def runner_for(cell: Cell, harness: str, **options: Any) -> Runner:
    """``harness``: "lmms" or "llava"; benchmarks that lmms-eval does not have go to the scripts either way."""
    from paper.local import Formula, Scenes

    if cell.benchmark == LMMS_SCENES:
        return Lmms(**options)
    if cell.model == SCENES:
        return Scenes()
    if cell.benchmark in Formula.columns:
        return Formula()
    video = MODELS[cell.model].scripts == "video"
    return Scripts(**options) if harness == "llava" or video else Lmms(**options)
