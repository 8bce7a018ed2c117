"""The stock console script ``lmms-eval`` in a working folder with local data: what a user types."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest

from mob_lmms_eval import logs

PROMISED = ("--model", "llava-v1.6-mob", "--tasks", "scienceqa_img", "--batch-size", "1", "--log-retained-patches")


def samples(folder, task):
    (file,) = folder.glob(f"**/*_samples_{task}.jsonl")
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_the_promised_command(run, work, lmms):
    """To the letter; its default checkpoint and the dataset are folders of these names here."""
    code, output = run(lmms, *PROMISED)
    assert code == 0, output
    assert "|scienceqa_img|" in output.replace(" ", "") and "max_length" not in output
    lines = samples(work / "logs", "scienceqa_img")
    assert [line["doc_id"] for line in lines] == [0, 1, 2, 3]
    for number, line in enumerate(lines):
        (entry,) = logs.retained(line)
        record = logs.record_of(entry)
        assert (entry["task"], entry["doc_id"], entry["split"]) == ("scienceqa_img", number, "test")
        assert entry["conv_template"] == "vicuna_v1"
        if number == 2:  # without a picture
            assert record.N == record.K == 0 and entry["pictures"] == []
            continue
        (picture,) = entry["pictures"]
        assert len(picture["sha256"]) == 64 and picture["width"] and picture["height"]
        assert record.N > record.K == len(record.keep_indices) == len(record.prompt_center) > 0
        assert record.layer == 2 and record.k >= 1 and record.K_p > 0 and record.milliseconds > 0
        assert None not in (record.eta, record.eps_p, record.eps_v) and len(record.grids[0]) == 2


def test_failures_are_one_line_and_a_code(run, lmms, tmp_path):
    """Here the hub cannot be reached and nothing is in the working folder."""
    code, output = run(lmms, *PROMISED, cwd=tmp_path)
    assert code == 1
    last = output.strip().splitlines()[-1]
    assert last.startswith("error: cannot find the model 'liuhaotian/llava-v1.6-vicuna-7b'"), output
    assert "Traceback" not in output and not (tmp_path / "logs").exists()


@pytest.mark.slow
def test_a_failure_of_lmms_evals_own_gives_a_code_too(run, lmms, tmp_path):
    code, output = run(lmms, "--model", "llava-v1.5-mob", "--tasks", "mob_scenes,nothing", cwd=tmp_path)
    assert code == 1 and "nothing" in output


def torchrun(*words):
    return sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", *words


def test_two_processes_log_every_sample_once(run, tmp_path):
    """45 documents: the second process gets one less, and repeats one for company."""
    own = ("--model", "llava-v1.5-mob", "--tasks", "mob_scenes", "--limit", "9", "--log-retained-patches")
    words = torchrun("lmms_eval", *own, "--batch-size", "2", "--output-path", str(tmp_path / "two"))
    code, output = run(*words, cwd=tmp_path, ACCELERATE_USE_CPU="true")
    assert code == 0, output
    lines = samples(tmp_path / "two", "mob_scenes")
    assert sorted(line["doc_id"] for line in lines) == list(range(9))
    entries = [next(logs.retained(line)) for line in lines]
    assert sorted(entry["doc_id"] for entry in entries) == list(range(9))
    assert all(entry["doc_id"] == line["doc_id"] for entry, line in zip(entries, lines, strict=True))


@pytest.mark.slow
def test_other_ways_to_start_it(run, lmms, work, tmp_path):
    """`eval`, `python -m`, `--config`; and the list of models."""
    starts = {"eval": (lmms, "eval"), "module": (sys.executable, "-m", "lmms_eval")}
    for name, start in starts.items():
        code, output = run(*start, *PROMISED, f"--output-path={tmp_path / name}")
        assert code == 0 and len(samples(tmp_path / name, "scienceqa_img")) == 4, output
    assert logs.differences(tmp_path / "eval", tmp_path / "module") == []
    (tmp_path / "run.yaml").write_text("model: llava-v1.6-mob\ntasks: scienceqa_img\nbatch_size: 1\n")
    code, output = run(lmms, "--config", str(tmp_path / "run.yaml"))
    assert code == 0 and "exact_match" in output, output
    code, output = run(lmms, "models")
    assert code == 0 and "qwen2.5-vl-mob" in output


@pytest.mark.slow
def test_the_same_run_twice_and_replayed(run, lmms, work, tmp_path):
    """Identical logs but for milliseconds; the kept indices, fed back, give the same answers."""
    runs = {"one": "K=0.25", "two": "K=0.25", "replayed": f"replay={tmp_path / 'one'}"}
    for name, arguments in runs.items():
        words = (*PROMISED, "--model_args", arguments, "--output_path", str(tmp_path / name))
        code, output = run(lmms, *words)
        assert code == 0, output
    code, output = run(sys.executable, "-m", "mob_lmms_eval.logs", str(tmp_path / "one"), str(tmp_path / "two"))
    assert (code, output) == (0, "the same\n")
    one, again = (samples(tmp_path / name, "scienceqa_img") for name in ("one", "replayed"))
    assert [line["filtered_resps"] for line in one] == [line["filtered_resps"] for line in again]
    kept = [[next(logs.retained(line))["keep_indices"] for line in lines] for lines in (one, again)]
    assert kept[0] == kept[1]


@pytest.mark.slow
def test_killed_three_times_it_ends_with_the_same_answers(run, lmms, environment, tmp_path):
    own = (lmms, "--model", "llava-v1.5-mob", "--tasks", "mob_scenes", "--limit", "200", "--log-retained-patches")
    code, output = run(*own, "--output-path", str(tmp_path / "whole"), cwd=tmp_path)
    assert code == 0, output
    journal, chance = tmp_path / "journal", random.Random(6)
    own = (*own, "--model_args", f"resume={journal}", "--output-path", str(tmp_path / "resumed"))
    for _ in range(3):
        before = answers(journal)
        started = subprocess.Popen(
            own, cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        stop = before + chance.randint(1, 50)
        while answers(journal) < stop and started.poll() is None:
            time.sleep(0.01)
        started.send_signal(signal.SIGKILL)
        assert started.wait() == -signal.SIGKILL, "it was to be killed while it ran"
    kept = answers(journal)
    assert 3 <= kept < 200 and not (tmp_path / "resumed").exists()
    code, output = run(*own, cwd=tmp_path)
    assert code == 0, output
    assert answers(journal) <= 201, "what was there was not asked again; a torn line may have been"
    assert logs.differences(tmp_path / "whole", tmp_path / "resumed") == []


def answers(folder):
    return sum(file.read_bytes().count(b"\n") for file in folder.glob("*.jsonl")) if folder.exists() else 0


@pytest.mark.slow
def test_the_main_command_on_a_laptop(run, lmms, tmp_path):
    """All scenes: about a minute on one thread, most of it for 450 answers."""
    code, output = run(lmms, "--model", "llava-v1.5-mob", "--tasks", "mob_scenes", "--batch-size", "8", cwd=tmp_path)
    assert code == 0, output
    shown = {row.split("|")[4].strip(): row.split("|")[6] for row in output.splitlines() if row.startswith("|mob_")}
    shown |= {row.split("|")[4].strip(): row.split("|")[6] for row in output.splitlines() if row.startswith("|    ")}
    assert float(shown["accuracy"]) > 0.9 and {"exist", "colour", "shape", "ocr", "count"} <= set(shown)
    assert not os.path.exists(tmp_path / "logs"), "without the flag nothing is logged"
