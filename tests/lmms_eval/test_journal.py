"""Answers on disk, and logs."""

from __future__ import annotations

import json

import pytest

from mob.record import RetainedPatches
from mob_lmms_eval import logs
from mob_lmms_eval.journal import Journal


def test_what_was_written_is_there_again(tmp_path):
    one = Journal(tmp_path / "a" / "b")
    one.add([("x", {"value": "yes"}), ("y", {"value": [0.25, True]})])
    assert one.get("x") is None, "a process goes by what was there when it began"
    again = Journal(tmp_path / "a" / "b")  # the first one was killed: nobody closed it
    assert again.get("x") == {"value": "yes"} and again.get("y") == {"value": [0.25, True]} and len(again) == 2
    assert again.get("z") is None


def test_a_line_that_was_being_written_is_lost_alone(tmp_path):
    one = Journal(tmp_path)
    one.add([("x", {"value": "yes"})])
    with one.file.open("ab") as file:
        file.write(b'{"key": "y", "val')
    again = Journal(tmp_path)
    again.add([("z", {"value": "no"})])
    third = Journal(tmp_path)
    assert [third.get(key) for key in "xyz"] == [{"value": "yes"}, None, {"value": "no"}]


@pytest.mark.parametrize("line", [b"3", b"[]", b"null", b'{"value": 1}', b"\xff\xfe", b""])
def test_lines_that_are_no_answers_are_passed_over(tmp_path, line):
    (tmp_path / "answers-x.jsonl").write_bytes(line + b'\n{"key": "k", "value": "v"}\n')
    assert Journal(tmp_path).get("k") == {"value": "v"}


def test_no_answer_no_file(tmp_path):
    Journal(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_used(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="resume=.*cannot be used"):
        Journal(tmp_path / "file")


def entry(doc_id, milliseconds=1.0, indices=(0, 3), grids=((2, 4),), N=8):
    record = RetainedPatches(
        keep_indices=list(indices),
        prompt_center=[True, False],
        image=[0, 0],
        row=[0, 0],
        column=list(indices),
        grids=[[list(grid) for grid in grids]],
        N=N,
        K=2,
        K_p=1,
        k=1,
        layer=3,
        eta=0.5,
        milliseconds=milliseconds,
    )
    own = {"task": "t", "split": "test", "doc_id": doc_id, "idx": 0, "pictures": [], "conv_template": "hf"}
    return own | record.to_dict(), record


def write(folder, name, entries):
    folder.mkdir(exist_ok=True)
    lines = [
        {"doc_id": one["doc_id"], "token_counts": [{"input_tokens": 3, logs.FIELD: one}], "filtered_resps": "A"}
        for one in entries
    ]
    (folder / name).write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def test_runs_are_compared_but_for_milliseconds(tmp_path, capsys):
    a = write(tmp_path / "a", "1_samples_t.jsonl", [entry(0)[0], entry(1)[0]])
    b = write(tmp_path / "b", "2_samples_t.jsonl", [entry(1, 9.0)[0], entry(0, 3.0)[0]])
    c = write(tmp_path / "c", "3_samples_t.jsonl", [entry(0)[0], entry(1, indices=(0, 4))[0]])
    assert logs.differences(a, b) == []
    assert logs.main([str(a), str(b)]) == 0 and capsys.readouterr().out == "the same\n"
    found = logs.differences(a, c)
    assert len(found) == 2 and all("t/1" in line and ": 3 / 4" in line for line in found)
    assert logs.main([str(a), str(c)]) == 1
    assert logs.main([str(a), str(tmp_path / "nowhere")]) == 2 and "check the path" in capsys.readouterr().err
    assert logs.main([]) == 2


def test_the_newest_log_of_a_task_counts(tmp_path):
    a = write(tmp_path / "a", "1_samples_t.jsonl", [entry(0)[0]])
    write(a, "2_samples_t.jsonl", [entry(0, indices=(1, 2))[0]])
    write(a, "1_samples_u.jsonl", [entry(0)[0]])
    found = logs.read(a)
    assert list(found) == [("t", 0), ("u", 0)]
    assert next(logs.retained(found["t", 0]))["keep_indices"] == [1, 2]


def test_a_document_twice_is_an_error(tmp_path):
    a = write(tmp_path / "a", "1_samples_t.jsonl", [entry(0)[0], entry(0)[0]])
    with pytest.raises(ValueError, match="logged twice"):
        logs.read(a)


def test_replay_keeps_what_was_kept(tmp_path):
    whole, record = entry(4)
    assert logs.record_of(whole) == record
    newlines, _ = entry(5, grids=((2, 3),))  # two newlines among the eight
    off = {"task": "t", "split": "test", "doc_id": 6, "idx": 0, "pictures": [], "conv_template": "hf"}
    found = logs.replays(write(tmp_path / "a", "1_samples_t.jsonl", [whole, newlines, off]))
    assert found["t", 4, 0] == {
        "K": 2,
        "K_p": 1,
        "k": 1,
        "l_idx": 3,
        "method": "given",
        "options": {"indices": [0, 3], "prompt_center": [True, False]},
        "per_picture": False,
        "keep_newlines": True,
    }
    assert not found["t", 5, 0]["keep_newlines"] and found["t", 6, 0] == {}


def test_a_log_without_records_cannot_be_replayed(tmp_path):
    (tmp_path / "1_samples_t.jsonl").write_text('{"doc_id": 0, "token_counts": [null]}\n')
    with pytest.raises(ValueError, match="--log-retained-patches"):
        logs.replays(tmp_path)
