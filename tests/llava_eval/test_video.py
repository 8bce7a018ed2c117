"""Questions about videos: asking, scoring by strings, and a judge, who is played here."""

from __future__ import annotations

import json
import sys
from types import SimpleNamespace

import pytest

import next_checkpoints as made
from evaluating import failure, lines, rows_of
from llava_next.eval import eval_video_qa, video_qa
from llava_next.eval.eval_video_qa import contains, exact
from llava_next.eval.judge import Verdict, openai_client, read
from next_checkpoints import NEXT_VIDEO, ONEVISION, VIDEO_LLAVA


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    families = (ONEVISION, NEXT_VIDEO, VIDEO_LLAVA)
    return {one: made.stock_folder(root / f"{one}-hf", one, made.source_of(one, root)) for one in families}


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    place = tmp_path_factory.mktemp("videos")
    for number in range(3):
        made.write_video(place / f"video{number}.mp4", made.frames(6 + 3 * number)[::-1])
    (place / "v_act.mp4").symlink_to(place / "video1.mp4")
    (place / "bad.mp4").write_bytes(b"no video")
    return place


def ask(folder, videos, place, rows, *more, answers=None):
    (place / "q.json").write_text(json.dumps(rows))
    words = ["--model_path", str(folder), "--video_dir", str(videos), "--gt_file_question", str(place / "q.json")]
    if answers is not None:
        (place / "a.json").write_text(json.dumps(answers))
        words += ["--gt_file_answers", str(place / "a.json")]
    words += ["--output_dir", str(place / "out"), "--frames", "2", "--max_new_tokens", "3", "--device", "cpu", *more]
    return video_qa.main(words)


ROWS = [
    {"question_id": f"q{i}", "video_name": name, "question": f"what {i}?"}
    for i, name in enumerate(("video0", "act", "video2.mp4", "video1", "video0"))
]
TRUTH = [{"question_id": f"q{i}", "answer": f"a{i}"} for i in (3, 2, 1, 0, 4)]


@pytest.mark.parametrize("family", [ONEVISION, NEXT_VIDEO, VIDEO_LLAVA])
def test_batches_equal_single_questions(folders, videos, tmp_path, family):
    for size in ("1", "3"):
        log = ["--log-retained-patches", str(tmp_path / f"kept{size}"), "--mob-K", "3", "--mob-layer", "1"]
        more = ["--output_name", size, "--batch-size", size, *log]
        assert ask(folders[family], videos, tmp_path, ROWS, *more, answers=TRUTH) == 0
    assert (tmp_path / "out" / "1.json").read_bytes() == (tmp_path / "out" / "3.json").read_bytes()
    rows = rows_of(tmp_path / "out" / "1.json")
    assert [(row["id"], row["answer"]) for row in rows] == [(f"q{i}", f"a{i}") for i in range(5)]
    assert list(rows[0]) == ["id", "question", "answer", "pred"] and all(row["pred"] for row in rows)
    assert all(row["retained_patches"]["K"] == 3 for row in rows_of(tmp_path / "kept3"))


def test_chunks_keep_their_answers(folders, videos, tmp_path):
    """Answers are matched by question, and by place in the whole list where there are no ids."""
    rows = [{key: value for key, value in row.items() if key != "question_id"} for row in ROWS]
    for index in ("0", "1"):
        more = ["--num_chunks", "2", "--chunk_idx", index, "--output_name", f"2_{index}"]
        assert ask(folders[VIDEO_LLAVA], videos, tmp_path, rows, *more, answers=[{"answer": i} for i in range(5)]) == 0
    found = rows_of(tmp_path / "out" / "2_1.json")
    assert [(row["id"], row["answer"]) for row in found] == [(3, 3), (4, 4)]


def test_an_interrupted_run_goes_on_and_bad_videos_are_noted(folders, videos, tmp_path, capsys):
    rows = [*ROWS[:2], ROWS[2] | {"video_name": "bad"}, ROWS[3] | {"video_name": "none"}, ROWS[4]]
    more = ["--output_name", "x", "--batch-size", "2"]
    assert ask(folders[VIDEO_LLAVA], videos, tmp_path, rows, *more) == 1
    assert "2 of them are empty" in failure(capsys)
    out = tmp_path / "out" / "x.json"
    whole = out.read_bytes()
    out.write_bytes(whole[: whole.find(b"\n") + 9])
    assert ask(folders[VIDEO_LLAVA], videos, tmp_path, rows, *more) == 1
    assert out.read_bytes() == whole
    assert [bool(row["pred"]) for row in rows_of(out)] == [True, True, False, False, True]
    assert ask(folders[VIDEO_LLAVA], videos, tmp_path, rows, *more, "--frames", "3") == 2
    assert "another frames (2, now 3)" in failure(capsys)


def test_wrong_files(folders, videos, tmp_path, capsys):
    model, more = folders[VIDEO_LLAVA], ["--output_name", "x"]
    for rows, answers, message in (
        ([{"video_name": "a"}], None, "entry 0: there is no 'question'"),
        (ROWS, TRUTH[:2], "no answer to question q0"),
        (ROWS, [{"answer": 1}], "1 answers to 5 questions"),
        ({}, None, "holds no list"),
    ):
        assert ask(model, videos, tmp_path, rows, *more, answers=answers) == 2
        assert message in failure(capsys)
    assert ask(model, tmp_path / "none", tmp_path, ROWS, *more) == 2
    assert "--video-dir" in failure(capsys)
    assert ask(video_qa.EXAMPLE.split("/")[0], videos, tmp_path, ROWS, *more) == 2
    failure(capsys)
    with pytest.raises(SystemExit):
        ask(model, videos, tmp_path, ROWS)


# ---------------------------------------------------------------------------------------------------------------
# Scores


def test_strings():
    assert exact("The Dog.", "dog") and not exact("a big dog", "dog")
    assert contains("It is a big dog, running.", "big dog") and not contains("bigger dog", "big dog")
    assert contains("yes", "Yes") and not contains("eyes", "yes")
    assert contains("2 cats", "two") and not contains("red", "the")


def results(tmp_path):
    said = (("dog", "A dog."), ("cat", "a cat on a mat"), ("red", "blue"), ("yes", ""))
    rows = [{"id": i, "question": f"q{i}", "answer": a, "pred": p} for i, (a, p) in enumerate(said)]
    return lines(tmp_path / "r" / "answers.json", rows)


def test_scores_without_a_judge(tmp_path, capsys):
    file = results(tmp_path)
    for path in (file, file.parent):
        assert eval_video_qa.main(["--pred_path", str(path)]) == 0
        assert capsys.readouterr().out == "exact: 25.00% (1 of 4)\ncontains: 50.00% (2 of 4)\n"
    lines(file, [{"id": 1, "question": "q", "answer": None, "pred": "p"}])
    assert eval_video_qa.main(["--pred_path", str(file)]) == 2
    assert "--gt-file-answers" in failure(capsys)


@pytest.mark.parametrize(
    "text, expected",
    [
        ('{"pred": "yes", "score": 5}', Verdict(True, 5)),
        ("Sure: {'pred': 'No', 'score': 0.0}", Verdict(False, 0)),
        ('```json\n{"score": 3, "pred": "yes"}\n```', Verdict(True, 3)),
        ('{"pred": "maybe", "score": 3}', None),
        ('{"pred": "yes", "score": 7}', None),
        ('{"pred": "yes", "score": 4.5}', None),
        ('{"pred": "yes"}', None),
        ("", None),
    ],
)
def test_replies(text, expected):
    assert read(text) == expected


class Played:
    """A client in the manner of the openai package, whose replies are given by the model's answer."""

    def __init__(self, replies):
        self.replies, self.asked = replies, []
        self.chat = SimpleNamespace(completions=SimpleNamespace(create=self.create))

    def create(self, model, messages, temperature):
        text = messages[-1]["content"]
        self.asked.append(text)
        assert model == "judge-1" and temperature == 0 and messages[0]["role"] == "system"
        reply = next(value for key, value in self.replies.items() if f"Question: {key}\n" in text)
        if isinstance(reply, Exception):
            raise reply
        return SimpleNamespace(choices=[SimpleNamespace(message=SimpleNamespace(content=reply))])


YES, NO = '{"pred": "yes", "score": 4}', '{"pred": "no", "score": 1}'


def judge(file, client, *more):
    words = ["--pred-path", str(file), "--judge", "openai", "--judge-model", "judge-1", *more]
    return eval_video_qa.main(words, client=lambda base: client)


def test_a_judge(tmp_path, capsys):
    file, client = results(tmp_path), Played({"q0": YES, "q1": YES, "q2": NO, "q3": "hm"})
    assert judge(file, client) == 1
    out, err = capsys.readouterr()
    assert "judge (judge-1) accuracy: 66.67% (2 of 3)" in out and "score: 3.00" in out and "1 replies" in err
    assert "Correct answer: cat\nModel's answer: a cat on a mat" in "".join(client.asked)
    assert len(client.asked) == 3 + 3  # the reply that cannot be read is asked for three times
    client = Played({"q3": NO})
    assert judge(file, client) == 0
    assert len(client.asked) == 1 and "50.00% (2 of 4)" in capsys.readouterr().out
    kept = rows_of(f"{file}.judged.jsonl")
    assert [row["right"] for row in kept] == [True, True, False, False]
    assert judge(file, Played({})) == 0  # all is known
    assert eval_video_qa.main(["--pred_path", str(file.parent)]) == 0  # verdicts are no answers


def test_a_judge_who_is_not_there(tmp_path, capsys, monkeypatch):
    file = results(tmp_path)
    assert judge(file, Played({"q0": YES, "q1": RuntimeError("quota\nreached"), "q2": NO}), "--num-tasks", "1") == 2
    assert "does not reply (quota reached)" in failure(capsys)
    assert [row["id"] for row in rows_of(f"{file}.judged.jsonl")] == [0]
    assert judge(file, Played({"q1": NO, "q2": NO, "q3": NO})) == 0
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(ValueError, match="pip install openai"):
        openai_client()
    with pytest.raises(SystemExit):
        eval_video_qa.main(["--pred-path", "x", "--judge", "openai"])
