"""Scores, against small examples that were counted by hand; MMBench and files for servers are in ``test_files.py``."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from evaluating import answers, as_json, failure, flags, lines, rows_of
from llava.eval import (
    convert,
    eval_gqa,
    eval_mme,
    eval_ocrbench,
    eval_pope,
    eval_science_qa,
    eval_textvqa,
    model_vqa_science,
)
from llava.eval.eval_mme import yes_or_no
from llava.eval.eval_science_qa import letter
from llava.eval.m4c_evaluator import (
    EvalAIAnswerProcessor,
    STVQAAccuracyEvaluator,
    STVQAANLSEvaluator,
    TextVQAAccuracyEvaluator,
    edit_distance,
)
from llava.eval.metrics import by_question

# ---------------------------------------------------------------------------------------------------------------
# The answer processor and soft accuracy


@pytest.mark.parametrize(
    "given, expected",
    [
        ("The Two dogs.", "2 dogs"),
        ("a  red\nstar\t", "red star"),
        ("dont know", "don't know"),
        ("couldnt've", "couldn't've"),
        ("couldn'tve", "couldn't've"),
        ("none", "0"),
        ("ten", "10"),
        ("1,000", "1000"),
        ("3.50", "3.50"),
        ("u.s.a.", "usa"),
        ("yes, it is!", "yes it is"),
        ("left/right", "left right"),
        ("semi-final", "semi final"),
        ("- left", "left"),
        ("(a)", ""),
        ("dog's", "dog 's"),
        ("Is it?", "is it"),
        ("an apple", "apple"),
        ("", ""),
    ],
)
def test_answers_are_normalised(given, expected):
    assert EvalAIAnswerProcessor()(given) == expected


def test_soft_accuracy():
    """Of ten people 3 said "red", 2 "blue", 5 "Green": left out one by one, red loses one of three in 3 of 10 cases."""
    ten = ["red"] * 3 + ["blue"] * 2 + ["Green"] * 5
    score = TextVQAAccuracyEvaluator().scores(ten)
    assert score["red"] == pytest.approx((3 * 2 / 3 + 7) / 10)
    assert score["blue"] == pytest.approx((2 * 1 / 3 + 8 * 2 / 3) / 10)
    assert score["green"] == 1
    entries = [{"pred_answer": text, "gt_answers": ten} for text in ("The red.", "green", "black", "blue")]
    assert TextVQAAccuracyEvaluator().eval_pred_list(entries) == pytest.approx((0.9 + 1 + 0 + 0.6) / 4)
    with pytest.raises(ValueError, match="nothing to score"):
        TextVQAAccuracyEvaluator().eval_pred_list([])


def test_scene_text():
    assert [edit_distance(*p) for p in (("kitten", "sitting"), ("", "ab"), ("a", "a"), ("ab", "ba"))] == [3, 2, 0, 2]
    entries = [{"pred_answer": "Stop", "gt_answers": ["shop", "STOP"]}, {"pred_answer": "abcd", "gt_answers": ["abxy"]}]
    assert STVQAANLSEvaluator().eval_pred_list(entries) == pytest.approx((1 + 0.5) / 2)
    assert STVQAAccuracyEvaluator().eval_pred_list(entries) == 0.5
    assert STVQAANLSEvaluator().get_anls("abcd", "axyz") == 0


# ---------------------------------------------------------------------------------------------------------------
# POPE


def test_pope(tmp_path, capsys):
    questions = [{"question_id": i, "category": "random", "text": "q"} for i in range(7)]
    questions += [{"question_id": 9, "category": "popular", "text": "q"}]
    labels = ["yes", "yes", "yes", "no", "no", "no", "no"]
    (tmp_path / "coco").mkdir()
    lines(tmp_path / "coco" / "coco_pope_random.json", [{"label": label} for label in labels])
    lines(tmp_path / "coco" / "coco_pope_popular.json", [{"label": "no"}])
    said = {
        0: "Yes, it is.",
        1: "There is not, sadly",
        2: "yes",
        3: "No, no",
        4: "Maybe. no",
        5: "no",
        6: "nope",
        9: "no",
    }
    given = flags(
        annotation_dir=tmp_path / "coco",
        question_file=lines(tmp_path / "q", questions),
        result_file=answers(tmp_path / "a", said),
    )
    assert eval_pope.main(given) == 0
    found = eval_pope.evaluate(*given[1::2])
    one = found["random"]
    assert (one.TP, one.FP, one.TN, one.FN) == (2, 2, 2, 1)  # only the first sentence counts; "nope" is no "no"
    assert one.accuracy == pytest.approx(4 / 7) and one.precision == 0.5 and one.recall == pytest.approx(2 / 3)
    assert one.f1 == pytest.approx(2 * 0.5 * (2 / 3) / (0.5 + 2 / 3)) and one.yes_ratio == pytest.approx(4 / 7)
    assert found["popular"].f1 == 0 and found["popular"].accuracy == 1
    out = capsys.readouterr().out
    assert (
        "Category: random, # samples: 7" in out and "2\t2\t2\t1" in out and "0.571, 0.571, 0.500, 0.667, 0.571" in out
    )
    answers(tmp_path / "a", {0: "yes"})
    assert eval_pope.main(given) == 2
    assert "finish the run first" in failure(capsys)


# ---------------------------------------------------------------------------------------------------------------
# ScienceQA


@pytest.mark.parametrize(
    "text, expected",
    [
        ("B", "B"),
        ("B. blue", "B"),
        ("The answer is C.", "C"),
        ("So. The answer is C. Really.", "C"),
        ("The answer is A. The answer is B.", "FAILED"),
        ("b", "FAILED"),
        ("B blue", "FAILED"),
        ("F. far", "FAILED"),
        ("", "FAILED"),
    ],
)
def test_letters(text, expected):
    assert letter(text) == expected


def science(tmp_path):
    problems = {
        "1": {
            "question": "Q1",
            "choices": ["x", "y"],
            "answer": 1,
            "hint": "H",
            "image": "image.png",
            "lecture": "L\nM",
        },
        "2": {"question": "Q2", "choices": ["x", "y", "z"], "answer": 2, "hint": "", "image": None, "solution": "S"},
        "3": {"question": "Q3", "choices": ["x", "y"], "answer": 0, "hint": "", "image": None},
        "4": {"question": "Q4", "choices": ["x", "y"], "answer": 0, "hint": "", "image": "image.png"},
    }
    as_json(tmp_path / "sqa" / "problems.json", problems)
    as_json(tmp_path / "sqa" / "pid_splits.json", {"test": ["1", "2", "3", "4"], "val": ["1"]})
    return tmp_path / "sqa"


def test_science_qa(tmp_path, capsys):
    base = science(tmp_path)
    said = {"1": "B", "2": "The answer is C.", "3": "E"}  # 3 has no option E, and 4 no answer
    more = flags(result_file=answers(tmp_path / "a", said), output_result=tmp_path / "r.json")
    assert eval_science_qa.main([*flags(base_dir=base, output_file=tmp_path / "o.json"), *more]) == 0
    assert capsys.readouterr().out == "Total: 4, Correct: 2, Accuracy: 50.00%, IMG-Accuracy: 50.00%\n"
    summary = json.loads((tmp_path / "r.json").read_text())
    assert summary["results"] == {"1": 1, "2": 2, "3": -1, "4": -1} and summary["acc"] == 50
    wrong = json.loads((tmp_path / "o.json").read_text())["incorrect"]
    assert [one["parsed_ans"] for one in wrong] == ["E", "FAILED"] and wrong[1]["ground_truth"] == "A"
    assert eval_science_qa.main([*flags(base_dir=tmp_path), *more]) == 2
    assert "there is no file" in failure(capsys)


def test_science_questions(tmp_path):
    base = science(tmp_path)
    assert convert.main(["sqa", *flags(base_dir=base)]) == 0
    rows = json.loads((base / "llava_test_CQM-A.json").read_text())
    assert rows[0] == {
        "id": "1",
        "image": "1/image.png",
        "conversations": [
            {"from": "human", "value": "Context: H\nQ1\nA. x\nB. y\n<image>"},
            {"from": "gpt", "value": "The answer is B."},
        ],
    }
    assert "image" not in rows[1] and rows[1]["conversations"][0]["value"] == "Q2\nA. x\nB. y\nC. z"
    assert convert.main(["sqa", *flags(base_dir=base, split="val", prompt_format="QCM-LEA")]) == 0
    val = json.loads((base / "llava_val_QCM-LEA.json").read_text())
    assert val[0]["conversations"][1]["value"] == "L\\nM The answer is B."
    asked = SimpleNamespace(
        question_file=base / "llava_test_CQM-A.json", single_pred_prompt=True, model_path="m", image_folder=""
    )
    first, second, *_ = model_vqa_science.questions(asked)
    request = "Answer with the option's letter from the given choices directly."
    assert first.row["prompt"] == f"<image>\nContext: H\nQ1\nA. x\nB. y\n{request}"
    assert first.query == f"Context: H\nQ1\nA. x\nB. y\n{request}" and second.row["prompt"] == second.query
    assert second.load() == []


def test_wrong_science_files(tmp_path, capsys):
    assert convert.main(["sqa", *flags(base_dir=science(tmp_path), prompt_format="X-A")]) == 2
    assert "--prompt-format X-A" in failure(capsys)
    as_json(tmp_path / "q.json", [{"id": 1, "conversations": []}])
    assert model_vqa_science.main(flags(question_file=tmp_path / "q.json")) == 2
    assert "entry 0: its conversation has no first turn" in failure(capsys)


# ---------------------------------------------------------------------------------------------------------------
# TextVQA, MME, GQA, OCRBench


def test_textvqa(tmp_path, capsys):
    request = "Answer the question using a single word or phrase."
    prompts = [
        f"What is It?\nReference OCR token: a, b\n{request}",
        f"Reference OCR token: a, b\nwho?\n{request}",
        f"where?\n{request}",
        "OCR tokens: a b. Question: when? Short answer:",
    ]
    questions = ["what is it?", "who?", "where?", "when?"]
    assert [eval_textvqa.prompt_processor(prompt) for prompt in prompts] == questions
    data = [{"image_id": "i", "question": q.upper(), "answers": ["stop"] * 10} for q in questions]
    gold = as_json(tmp_path / "gold.json", {"data": data})
    said = ["Stop.", "go", "the stop", "stop"]
    rows = [{"question_id": "i", "prompt": p, "text": t} for p, t in zip(prompts, said, strict=True)]
    out = lines(tmp_path / "d" / "run.jsonl", rows)
    assert eval_textvqa.main(flags(annotation_file=gold, result_file=out)) == 0
    assert capsys.readouterr().out == "run\nSamples: 4\nAccuracy: 75.00%\n\n"
    assert eval_textvqa.main(flags(annotation_file=gold, result_dir=out.parent)) == 0
    lines(out, [{"question_id": "j", "prompt": prompts[2], "text": ""}])
    assert eval_textvqa.main(flags(annotation_file=gold, result_file=out)) == 2
    assert "is not in" in failure(capsys)
    lines(out, [{"question_id": "i", "prompt": "bare", "text": ""}])
    assert eval_textvqa.main(flags(annotation_file=gold, result_file=out)) == 2
    assert "the prompt 'bare'" in failure(capsys)


def test_mme(tmp_path, capsys):
    base = tmp_path / "MME"
    (base / "count").mkdir(parents=True)
    (base / "artwork" / "questions_answers_YN").mkdir(parents=True)
    two = "Is it one? Please answer yes or no.\tYes\nIs it  two? Please answer yes or no.\tNo\n"
    for file in ("count/a.txt", "count/b.txt", "artwork/questions_answers_YN/c.txt"):
        (base / file).write_text(two)
    ask = "{}\nAnswer the question using a single word or phrase."
    said = {"count/a.png": ("Yes", "no."), "count/b.png": ("yes", "Yes"), "artwork/images/c.jpg": ("No", "not so")}
    rows = [
        {"question_id": name, "prompt": ask.format(question), "text": text}
        for name, texts in said.items()
        for question, text in zip(("Is it one?", "Is it two?"), texts, strict=True)
    ]
    out = lines(tmp_path / "a", rows)
    # count: 3 of 4 questions and 1 of 2 pictures; artwork: 1 of 2, none
    assert eval_mme.evaluate(base, out) == {"count": 125, "artwork": 50}
    assert eval_mme.main(flags(benchmark_dir=base, result_file=out)) == 0
    assert "total score: 175.00 (2 of 10 categories)" in capsys.readouterr().out
    assert [yes_or_no(text) for text in ("Yes.", "I know", "nono", "a long yes")] == ["yes", "other", "no", "other"]
    lines(out, rows[1:])
    assert eval_mme.main(flags(benchmark_dir=base, result_file=out)) == 2
    assert "answers 5 of 6" in failure(capsys)


def test_gqa(tmp_path, capsys):
    out, dst = answers(tmp_path / "a", {"1": "Red.", "2": "on the left", "3": "No"}), tmp_path / "p" / "p.json"
    assert convert.main(["gqa", *flags(src=out, dst=dst)]) == 0
    assert json.loads(dst.read_text())[0] == {"questionId": "1", "prediction": "red"}
    gold = as_json(tmp_path / "g", {"1": {"answer": "red"}, "2": {"answer": "left"}, "3": {"answer": "no"}})
    assert eval_gqa.main(flags(questions=gold, predictions=dst)) == 0
    assert "Samples: 3\nAccuracy: 66.67%" in capsys.readouterr().out


def test_two_questions_with_one_id_are_refused():
    one = {"question_id": 1, "prompt": "a", "text": "x"}
    assert by_question([one, one | {"text": "y"}])[1]["text"] == "y"  # asked again
    with pytest.raises(ValueError, match="two questions have the id 1"):
        by_question([one, one | {"prompt": "b"}])


def test_ocrbench(tmp_path, capsys):
    rows = [
        {"id": 211, "question": "q", "image_path": "i", "answers": ["Centre"], "type": "T", "dataset_name": "SVT"},
        {"id": 211, "question": "q", "image_path": "j", "answers": "a b", "type": "T", "dataset_name": "SVT"},
        {"id": 2, "question": "q", "image_path": "i", "answers": ["x ^ 2"], "type": "F", "dataset_name": "HME100k"},
        {"id": 3, "question": "q", "image_path": "i", "answers": ["X"], "type": "F", "dataset_name": "HME100k"},
    ]
    gold = as_json(tmp_path / "gold.json", rows)
    out = answers(tmp_path / "a", {0: "CENTRE street", 1: "ab", 2: "x^ 2", 3: "x"})
    assert eval_ocrbench.main(flags(annotation_file=gold, result_file=out)) == 0
    assert capsys.readouterr().out == "T: 1 of 2\nF: 1 of 2\nFinal Score: 2 of 4\n"
    assert convert.main(["ocrbench", *flags(src=gold, dst=tmp_path / "q")]) == 0
    asked = [{"question_id": number, "image": image, "text": "q"} for number, image in enumerate("ijii")]
    assert rows_of(tmp_path / "q") == asked  # the file's own ids are not unique
