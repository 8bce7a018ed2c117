"""Asking: answers, batches, chunks, interruptions, pictures that cannot be read, and files that are wrong."""

from __future__ import annotations

import json
import multiprocessing
import random
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

import checkpoints
import next_checkpoints
from evaluating import ask, failure, lines, rows_of
from llava.eval import model_vqa, model_vqa_loader
from llava.eval.answering import HOPELESS, chunk
from llava.eval.model import conv_mode, decode, pad_left


@pytest.fixture()
def asked(data, tmp_path):
    return lines(tmp_path / "questions.jsonl", data.rows)


def some(data, tmp_path, count):
    return lines(tmp_path / "questions.jsonl", data.rows[:count])


def test_answers_are_right_and_in_the_original_shape(data, asked, tmp_path):
    out = tmp_path / "new" / "folder" / "answers.jsonl"
    assert ask(data, asked, out, "--batch-size", "8") == 0
    rows = rows_of(out)
    assert [row["question_id"] for row in rows] == [row["question_id"] for row in data.rows]
    assert list(rows[0]) == ["question_id", "prompt", "text", "answer_id", "model_id", "metadata"]
    assert rows[0]["prompt"] == data.rows[0]["text"] and rows[0]["metadata"] == {}
    right = [row["text"] == one["expected"] for row, one in zip(rows, data.rows, strict=True)]
    assert sum(right) / len(right) > 0.9
    assert len({row["answer_id"] for row in rows}) == len(rows)


@pytest.mark.parametrize("flags", [["--mob-K", "30"], ["--mob-off", "--num_beams", "2"]])
def test_batches_equal_single_questions(data, tmp_path, flags):
    questions = some(data, tmp_path, 13)  # the last batch is short
    for size in ("1", "4"):
        assert ask(data, questions, tmp_path / f"{size}.jsonl", "--batch-size", size, *flags) == 0
    assert (tmp_path / "1.jsonl").read_bytes() == (tmp_path / "4.jsonl").read_bytes()


def test_sampling_depends_on_the_question_alone(data, tmp_path, capsys):
    questions = some(data, tmp_path, 12)
    sampled = ["--temperature", "3", "--top_p", "0.99", "--seed", "5"]
    for name, more in (("a", []), ("b", ["--batch-size", "4"]), ("c", ["--seed", "6"])):
        assert ask(data, questions, tmp_path / name, *sampled, *more) == 0
    assert "one question at a time" in capsys.readouterr().err
    first, again, other = ([row["text"] for row in rows_of(tmp_path / name)] for name in "abc")
    assert first == again != other
    half = ["--num-chunks", "2", "--chunk-idx", "1"]
    assert ask(data, questions, tmp_path / "half", *sampled, *half) == 0
    assert [row["text"] for row in rows_of(tmp_path / "half")] == first[6:]


@pytest.mark.parametrize("folder", ["stock", "original"])
def test_other_layouts_with_tiles(data, tmp_path, folder):
    """LLaVA-1.6: pictures of several shapes in one batch, and text alone."""
    source = checkpoints.next_model()
    tower = checkpoints.tower_folder(tmp_path / "tower", source)
    if folder == "stock":
        path = checkpoints.stock_folder(tmp_path / "llava-next-hf", source)
    else:
        path = checkpoints.original_folder(tmp_path / "llava-v1.6", tower, source, with_tower=True, **checkpoints.NEXT)
    Image.effect_noise((90, 40), 80).convert("RGB").save(tmp_path / "wide.png")
    rows = [{"question_id": 1, "image": str(tmp_path / "wide.png"), "text": "describe"}, *data.rows[:2]]
    questions = lines(tmp_path / "q.jsonl", [*rows, {"question_id": 2, "text": "no picture"}])
    for size in ("1", "4"):
        flags = ["--model-path", str(path), "--batch-size", size, "--max_new_tokens", "4", "--mob-K", "5"]
        more = ["--mob-layer", "1", "--log-retained-patches", str(tmp_path / f"r{size}")]
        assert ask(data, questions, tmp_path / f"a{size}", *flags, *more) == 0
    assert (tmp_path / "a1").read_bytes() == (tmp_path / "a4").read_bytes()
    kept = [row["retained_patches"] for row in rows_of(tmp_path / "r4")]
    assert [record["K"] for record in kept] == [5, 5, 5, 0]
    assert kept[0]["N"] != kept[1]["N"] and len(kept[0]["grids"][0]) == 2


def test_records_of_what_was_kept(data, tmp_path):
    questions, log = some(data, tmp_path, 5), tmp_path / "kept.jsonl"
    more = ["--mob-K", "20", "--log-retained-patches", str(log), "--batch-size", "2", "--num_beams", "2"]
    assert ask(data, questions, tmp_path / "a", *more) == 0
    assert [row["question_id"] for row in rows_of(log)] == [row["question_id"] for row in data.rows[:5]]
    assert all(len(row["retained_patches"]["keep_indices"]) == 20 for row in rows_of(log))
    assert ask(data, questions, tmp_path / "b", "--mob-off", "--log-retained-patches", str(tmp_path / "none")) == 0
    assert all(row["retained_patches"] is None for row in rows_of(tmp_path / "none"))


def test_open_questions(data, tmp_path):
    assert ask(data, some(data, tmp_path, 2), tmp_path / "a", main=model_vqa.main) == 0
    assert len(rows_of(tmp_path / "a")) == 2


def test_chunks_cover_everything_once():
    for count in range(30):
        for chunks in range(1, 9):
            parts = [chunk(count, chunks, index) for index in range(chunks)]
            assert [number for part in parts for number in part] == list(range(count))
            assert all(len(part) in (0, len(parts[0])) for part in parts[:-1] if part.stop < count)
    with pytest.raises(ValueError, match="counted from 0 to 3"):
        chunk(10, 4, 4)


def test_chunks_together_are_the_whole(data, tmp_path):
    questions = some(data, tmp_path, 6)
    assert ask(data, questions, tmp_path / "whole") == 0
    parts = []
    for index in range(4):
        part = tmp_path / f"4_{index}"
        assert ask(data, questions, part, "--num-chunks", "4", "--chunk-idx", str(index)) == 0
        parts += rows_of(part)
    for row in (together := parts) + (whole := rows_of(tmp_path / "whole")):
        del row["answer_id"]
    assert together == whole


# ---------------------------------------------------------------------------------------------------------------
# Interruptions


def without_times(path):
    rows = rows_of(path)
    for row in rows:
        row["retained_patches"].pop("milliseconds")
    return rows


def test_killed_three_times_it_answers_as_if_undisturbed(data, tmp_path):
    """SIGKILL at random moments; nothing is lost, repeated or different."""
    questions = some(data, tmp_path, 30)
    log = "--log-retained-patches"
    shared = ["--batch-size", "3", "--mob-K", "40"]
    assert ask(data, questions, tmp_path / "whole", *shared, log, str(tmp_path / "whole.kept")) == 0
    out = tmp_path / "killed"
    given = [data, questions, out, *shared, log, str(tmp_path / "killed.kept")]
    context = multiprocessing.get_context("forkserver")  # processes of their own that need not import torch again
    context.set_forkserver_preload(["llava.eval.model_vqa_loader"])
    chance, before = random.Random(3), 0
    for _ in range(3):
        process = context.Process(target=ask, args=given)
        process.start()
        wanted, end = before + chance.randint(1, 5), time.time() + 60
        while (count := out.read_bytes().count(b"\n") if out.exists() else 0) < wanted:
            assert process.is_alive() and time.time() < end
            time.sleep(0.005)
        time.sleep(chance.uniform(0, 0.1))
        process.kill()
        process.join()
        assert process.exitcode == -9
        before = count
    left = out.read_bytes()
    assert left.count(b"\n") < 30
    with out.open("ab") as file:
        file.write(b'{"question_id": "tor')  # what a cut of the power may leave
    assert ask(*given) == 0
    assert out.read_bytes().startswith(left[: left.rfind(b"\n") + 1])
    assert out.read_bytes() == (tmp_path / "whole").read_bytes()
    assert without_times(tmp_path / "killed.kept") == without_times(tmp_path / "whole.kept")


@pytest.mark.parametrize("tail", [b'{"question_id": 3, "te', b"\0\0\0\0\n", b"{}\n{"])
def test_torn_ends_are_repaired(data, tmp_path, tail):
    questions, out = some(data, tmp_path, 6), tmp_path / "a"
    assert ask(data, questions, out) == 0
    whole = out.read_bytes()
    three = b"".join(whole.splitlines(keepends=True)[:3])
    out.write_bytes(three + tail)
    expected = 2 if tail.startswith(b"{}") else 0  # a whole line that answers nothing is not ours
    assert ask(data, questions, out) == expected
    assert expected or out.read_bytes() == whole


def test_a_finished_run_changes_nothing(data, tmp_path):
    questions, out = some(data, tmp_path, 3), tmp_path / "a"
    assert ask(data, questions, out) == 0
    whole, time_before = out.read_bytes(), out.stat().st_mtime_ns
    assert ask(data, questions, out) == 0
    assert (out.read_bytes(), out.stat().st_mtime_ns) == (whole, time_before)
    out.write_bytes(whole[:-40])
    assert ask(data, questions, out, "--batch-size", "2") == 0  # another batch size asks the same
    assert out.read_bytes() == whole
    assert ask(data, questions, out, "--no-resume", "--mob-K", "9") == 0
    assert out.read_bytes() != whole


def test_other_settings_are_refused(data, tmp_path, capsys):
    questions, out = some(data, tmp_path, 3), tmp_path / "a"
    assert ask(data, questions, out, "--mob-K", "9") == 0
    for more, name in (
        ([], "MoB_config"),
        (["--mob-K", "9", "--max_new_tokens", "7"], "max_new_tokens"),
        (["--mob-K", "9", "--num-chunks", "3"], "num_chunks"),
    ):
        assert ask(data, questions, out, *more) == 2
        assert f"another {name}" in (line := failure(capsys)) and "--no-resume" in line
    changed = lines(questions, [*data.rows[:2], data.rows[5]])
    assert ask(data, changed, out, "--mob-K", "9") == 2
    assert "another questions" in failure(capsys)
    Path(f"{out}.settings.json").unlink()
    assert ask(data, changed, out, "--mob-K", "9") == 2
    assert "is missing" in failure(capsys)


def test_records_must_be_there_for_all(data, tmp_path, capsys):
    questions, out = some(data, tmp_path, 3), tmp_path / "a"
    assert ask(data, questions, out) == 0
    assert ask(data, questions, out, "--log-retained-patches", str(tmp_path / "kept")) == 2
    assert "has 3 answers" in failure(capsys)
    assert ask(data, questions, out, "--log-retained-patches", str(out)) == 2
    assert "two files" in failure(capsys)


def test_two_runs_on_one_file(data, tmp_path, capsys):
    fcntl = pytest.importorskip("fcntl")
    questions, out = some(data, tmp_path, 1), tmp_path / "a"
    with (tmp_path / ".a.lock").open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert ask(data, questions, out) == 2
    assert "another run" in failure(capsys)


def test_ctrl_c_says_how_far_it_came(data, tmp_path, capsys, monkeypatch):
    questions, out = some(data, tmp_path, 4), tmp_path / "a"
    answered = model_vqa_loader.ask_pictures.__globals__["Llava"].answer

    def interrupted(self, queries, media):
        if out.exists() and out.read_bytes().count(b"\n") == 2:
            raise KeyboardInterrupt
        return answered(self, queries, media)

    monkeypatch.setattr("llava.eval.model.Llava.answer", interrupted)
    assert ask(data, questions, out) == 130
    assert "stopped: 2 of 4 answers" in capsys.readouterr().err


# ---------------------------------------------------------------------------------------------------------------
# Pictures and files that are wrong


def test_a_bad_picture_is_noted_and_asked_again(data, tmp_path, capsys):
    rows = [dict(row) for row in data.rows[:6]]
    rows[1]["image"], rows[4]["image"] = str(tmp_path / "damaged.png"), "missing.png"
    (tmp_path / "damaged.png").write_bytes(b"no picture")
    questions, out, log = lines(tmp_path / "q", rows), tmp_path / "a", tmp_path / "kept"
    more = ["--batch-size", "3", "--mob-K", "20", "--log-retained-patches", str(log)]
    assert ask(data, questions, out, *more) == 1
    assert "2 of them are empty (" in failure(capsys)
    found = rows_of(out)
    assert [bool(row["text"]) for row in found] == [True, False, True, True, False, True]
    assert "not a picture" in found[1]["error"] and "no picture at" in found[4]["error"]
    Image.open(data.images / "0.png").save(tmp_path / "damaged.png")
    assert ask(data, questions, out, *more) == 1
    assert "1 of them are empty (" in failure(capsys)
    mended = rows_of(out)
    assert mended[1]["text"] and "error" not in mended[1] and mended[1]["answer_id"] == found[1]["answer_id"]
    assert [row["retained_patches"] is not None for row in rows_of(log)] == [True, True, True, True, False, True]
    assert [mended[i] for i in (0, 2, 3, 4, 5)] == [found[i] for i in (0, 2, 3, 4, 5)]


def test_a_wrong_folder_stops_soon(data, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    questions = lines(tmp_path / "q", data.rows[:24])
    assert ask(data, questions, tmp_path / "a", "--image-folder", str(tmp_path / "empty")) == 2
    assert f"not one of the first {HOPELESS} questions" in failure(capsys)
    assert len(rows_of(tmp_path / "a")) == HOPELESS
    assert ask(data, questions, tmp_path / "a", "--batch-size", "8") == 0  # the right folder: all of it
    assert all(row["text"] for row in rows_of(tmp_path / "a"))


def test_wrong_files(data, tmp_path, capsys):
    out = tmp_path / "a"
    assert ask(data, tmp_path / "none.jsonl", out) == 2
    assert "there is no file" in failure(capsys)
    questions = lines(tmp_path / "q", data.rows[:2])
    with questions.open("a") as file:
        file.write('{"question_id": 3, "te\n')
    assert ask(data, questions, out) == 2
    assert "q, line 3: not JSON" in failure(capsys)
    for row, message in (([1], "not an object"), ({"question_id": 3}, "there is no 'text'")):
        lines(questions, [*data.rows[:2], row])
        assert ask(data, questions, out) == 2
        assert f"line 3: {message}" in failure(capsys)
    lines(questions, data.rows[:2])
    assert ask(data, questions, out, "--image-folder", "/nowhere") == 2
    assert "--image-folder /nowhere: there is no such folder" in failure(capsys)
    assert ask(data, questions, "/proc/none/a") == 2
    assert "cannot be written" in failure(capsys)
    assert ask(data, questions, out, "--chunk-idx", "1") == 2
    assert "--chunk-idx 1" in failure(capsys)
    assert not out.exists()


def test_in_a_process_of_its_own(data, tmp_path):
    command = [sys.executable, "-m", "llava.eval.model_vqa_loader", "--question-file", "/nowhere.jsonl"]
    done = subprocess.run(command, capture_output=True, text=True, env=next_checkpoints.environment())
    assert done.returncode == 2 and "Traceback" not in done.stderr and done.stderr.startswith("error: ")


# ---------------------------------------------------------------------------------------------------------------
# Pieces


def test_pretrained_models_get_tagged_pictures():
    assert conv_mode("v1", "llava-plain-7b") == "v1_mmtag"
    assert conv_mode("v1", "llava-plain-finetune") == conv_mode("v1", "llava-v1.5-7b") == "v1"
    assert conv_mode(None, "llava-plain-7b") is None


def test_rows_are_cut_at_their_end():
    import torch

    tokenizer = SimpleNamespace(decode=lambda row, skip_special_tokens: " ".join(map(str, row)))
    new = torch.tensor([[5, 6, 2, 9, 9], [5, 6, 7, 8, 3], [1, 1, 1, 1, 1]])
    assert decode(new, tokenizer, [2, 3]) == ["5 6", "5 6 7 8", "1 1 1 1 1"]
    assert decode(new, tokenizer, None)[0] == "5 6 2 9 9"
    ids, mask = pad_left([torch.tensor([4, 5]), torch.tensor([6])])
    assert ids.tolist() == [[4, 5], [0, 6]] and mask.tolist() == [[1, 1], [0, 1]]


def test_settings_lie_beside_the_answers(data, tmp_path):
    assert ask(data, some(data, tmp_path, 1), tmp_path / "a", "--mob-K", "9") == 0
    settings = json.loads((tmp_path / "a.settings.json").read_text())
    assert settings["MoB_config"] == {"K": 9} and settings["dtype"] == "float32" and settings["number"] == 1
