"""Tasks in this process: the scenes, and lmms-eval's own on local data."""

from __future__ import annotations

import json
import os
from argparse import Namespace
from pathlib import Path

import lmms_eval.tasks
import pytest
import torch
from lmms_eval.evaluator import simple_evaluate
from lmms_eval.models import get_model
from lmms_eval.tasks import TaskManager
from paper.runners import LMMS  # benchmarks/ is put on the path by this folder's conftest

from audit_logs import Page
from llava.scenes.checkpoint import PATHS
from llava.scenes.evaluate import batches, questions, right
from mob import MoBConfig
from mob.audit import __main__ as audit
from mob_lmms_eval import command, logs
from mob_lmms_eval.register import MODELS

UPSTREAM = Path(lmms_eval.tasks.__file__).parent
ALL = ["scienceqa_img", "mme", "pope", "gqa", "textvqa_val", "vizwiz_vqa_val", "vqav2_val", "ocrbench"]
ALL += ["mmbench_en_dev_static"]
FOLDERS = {"scienceqa_img": "scienceqa", "vizwiz_vqa_val": "vizwiz_vqa", "mmbench_en_dev_static": "mmbench"}


def manager(*folders):
    """A task manager that reads these folders only: reading all of lmms-eval's takes seconds."""
    return TaskManager("ERROR", include_path=[str(folder) for folder in folders], include_defaults=False)


def evaluate(lm, tasks, manager, tmp_path, **more):
    """As the command line does; (results, samples by task)."""
    cli = Namespace(
        process_with_media=False, reasoning_tags="none", output_path=str(tmp_path), agentic_trace_mode="basic"
    )
    out = simple_evaluate(
        lm, tasks=list(tasks), task_manager=manager, cli_args=cli, bootstrap_iters=0, verbosity="ERROR", **more
    )
    return out["results"], out["samples"]


@pytest.fixture(scope="module")
def scenes():
    return manager(command.TASKS)


def test_the_audit_shows_the_pictures_of_a_dataset(scenes, tmp_path):
    """The documents hold their pictures: ``save_pictures`` puts them where the audit looks."""
    more = {"K": 22, "log_retained_patches": True, "save_pictures": str(tmp_path / "pictures")}
    lm = get_model("llava-v1.5-mob")(batch_size=8, device="cpu", **more)
    _, samples = evaluate(lm, [smaller("mob_scenes", scenes, 1)], scenes, tmp_path)
    log = tmp_path / "1_samples_mob_scenes.jsonl"
    log.write_text("".join(json.dumps(line, default=str) + "\n" for line in samples["mob_scenes"]))
    words = ["--images", str(tmp_path / "pictures"), "--html", str(tmp_path / "report.html"), "--quiet"]
    assert audit.main([str(log), *words]) == 0
    page = Page((tmp_path / "report.html").read_text())
    assert page.data["trouble"] == {} and len(page.data["samples"]) == len(samples["mob_scenes"])
    for one in page.data["samples"]:
        assert one["pictures"][0]["shots"] and one["pictures"][0]["box"] == [0, 0, 1, 1]
        assert one["records"][0]["mean"] == (2 * 196 + 4 * 22) / 6 and one["right"] is not None and one["question"]


def smaller(name, scenes, questions):
    """A task of the scenes with fewer questions."""
    config = scenes._get_config(name)
    config["dataset_kwargs"] = config["dataset_kwargs"] | {"questions": questions}
    return config | {"task": name}


@pytest.mark.parametrize("K", [None, 22])
def test_scenes_score_as_their_own_evaluation(scenes, tmp_path, K):
    """Every answer against llava.scenes.evaluate, which asks by labels rather than by generating."""
    more = {"mob": False} if K is None else {"K": K, "layer": 2, "log_retained_patches": True}
    lm = get_model("llava-v1.5-mob")(batch_size=16, device="cpu", **more)
    model, asked = lm.model, questions(6)
    (_, inputs), settings = next(batches(asked, len(asked))), None if K is None else MoBConfig(K=K, l_idx=2)
    model.config.MoB_config = {}
    with torch.no_grad():
        expected = right(model, inputs, settings)
    model.config.MoB_config = lm.mob
    results, samples = evaluate(lm, [smaller("mob_scenes", scenes, 6)], scenes, tmp_path)
    assert [bool(sample["accuracy"]) for sample in samples["mob_scenes"]] == expected
    scores = results["mob_scenes"]
    kinds = ("exist", "colour", "shape", "ocr", "pattern", "bgcolour", "modeshape", "modecolour", "count")
    assert all(0 <= scores[f"{kind},none"] <= 1 for kind in kinds)
    assert scores["accuracy,none"] == sum(expected) / len(expected) > 0.8
    if K:
        entry = next(logs.retained(samples["mob_scenes"][0]))
        assert (entry["K"], entry["N"], entry["layer"]) == (22, 196, 2)
        assert entry["pictures"][0]["width"] == 112


def test_crowded_scenes_score_as_their_own_evaluation(scenes, tmp_path):
    """Pictures and answers of the other split, and the checkpoint that was trained on it, by a path of any form."""
    path, asked = os.path.relpath(PATHS["crowded"]), questions(3, "crowded")
    lm = get_model("llava-v1.5-mob")(pretrained=path, batch_size=16, device="cpu", mob=False)
    assert lm.conv_template == "hf"
    _, inputs = next(batches(asked, len(asked), "crowded"))
    with torch.no_grad():
        expected = right(lm.model, inputs, None)
    results, samples = evaluate(lm, [smaller("mob_scenes_crowded", scenes, 3)], scenes, tmp_path)
    found = samples["mob_scenes_crowded"]
    assert [bool(sample["accuracy"]) for sample in found] == expected and sum(expected) > 0.8 * len(expected)
    assert {sample["doc"]["kind"] for sample in found} == {one.question.task for one in asked}
    assert {f"{one.question.task},none" for one in asked} <= set(results["mob_scenes_crowded"])


def test_scenes_as_multiple_choice(scenes, tmp_path):
    lm = get_model("llava-v1.5-mob")(batch_size=8, device="cpu", K=44, log_retained_patches=True)
    results, samples = evaluate(lm, [smaller("mob_scenes_choice", scenes, 3)], scenes, tmp_path)
    assert results["mob_scenes_choice"]["acc,none"] > 0.8
    for sample in samples["mob_scenes_choice"]:
        entries = list(logs.retained(sample))
        assert [entry["idx"] for entry in entries] == list(range(len(sample["token_counts"])))
        assert len({tuple(entry["keep_indices"]) for entry in entries}) == 1


def check(name, results, samples, tasks, count=4):
    for task in tasks:
        assert [sample["doc_id"] for sample in samples[task]] == list(range(count))
        assert [value for key, value in results[task].items() if key.endswith(",none") and "stderr" not in key]
        for number, sample in enumerate(samples[task]):
            (entry,) = logs.retained(sample)
            assert entry["task"] == task and entry["doc_id"] == number
            shown = task != "scienceqa_img" or number != 2  # the one without a picture
            assert (len(entry["keep_indices"]) > 0) == shown == bool(entry["pictures"])
            assert entry["N"] > entry["K"] or not shown, (name, task)


def upstream(tasks):
    return manager(*(UPSTREAM / FOLDERS.get(task, task.removesuffix("_val")) for task in tasks))


@pytest.fixture
def here(work, tmp_path, monkeypatch):
    """In the working folder, with a cache of its own."""
    import datasets

    monkeypatch.chdir(work)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")


def build(name, folders, **more):
    return get_model(name)(
        device="cpu", pretrained=str(folders[name]), K=0.5, log_retained_patches=True, batch_size=2, **more
    )


@pytest.mark.parametrize("name", sorted(MODELS))
def test_all_promised_tasks(name, here, folders, tmp_path):
    results, samples = evaluate(build(name, folders), ALL, upstream(ALL), tmp_path, gen_kwargs="max_new_tokens=4")
    check(name, results, samples, ALL)
    for task, metrics, _ in LMMS.values():  # what the paper's tables look for
        assert task not in ALL or all(isinstance(results[task][f"{one},none"], (int, float)) for one in metrics)
