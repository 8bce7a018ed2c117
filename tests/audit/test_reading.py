"""Logs of every kind are understood, and wrong ones are one line."""

from __future__ import annotations

import json
import re

import pytest

from audit_logs import RECORD, lmms, write
from mob.audit.__main__ import main
from mob.audit.media import Reference
from mob.audit.reading import read
from mob.audit.scoring import verdict


def test_lmms_eval(tmp_path):
    log = write(tmp_path / "2025_samples_gqa.jsonl", lmms({"layers": 32}, exact_match=1.0))
    (sample,) = read([log]).samples
    assert (sample.name, sample.task, sample.question, sample.answer, sample.targets) == (
        "7",
        "gqa",
        "what?",
        "A",
        ["A"],
    )
    assert sample.right is True and sample.why == "exact_match: 1" and sample.records == [RECORD]
    assert sample.mean_tokens == [(2 * 22 + 30 * 3) / 32]
    assert read([tmp_path]).samples == [sample]  # a folder of logs


def test_the_entry_of_the_plugin_names_pictures_by_hash(tmp_path):
    pictures = [{"sha256": "ab" * 32, "width": 64, "height": 48}, {"sha256": "cd" * 32, "video": "clip.mp4"}]
    entry = {"task": "mme", "split": "test", "idx": 0, "pictures": pictures, "grids": [[[4, 4], [2, 3]], [[1, 1]]]}
    (sample,) = read([write(tmp_path / "x.jsonl", lmms(entry))]).samples
    assert sample.task == "mme"
    assert sample.media == [
        [Reference(None, "ab" * 32, (64.0, 48.0))],
        [Reference("clip.mp4", "cd" * 32)],
    ]


def test_several_requests_and_stages_before_the_decoder(tmp_path):
    early = {"method": "codebook", "layer": 0, "N": 44, "K": 22, "radius": 0.5}
    counts = [{"retained_patches": RECORD.to_dict() | {"stages": [early], "layers": 4}}, None]
    counts.append({"retained_patches": RECORD.to_dict()})
    (sample,) = read([write(tmp_path / "x.jsonl", lmms(token_counts=counts))], layers=22).samples
    assert len(sample.records) == 2 and sample.mean_tokens == [(2 * 22 + 2 * 3) / 4, (2 * 22 + 20 * 3) / 22]
    assert sample.records[0].stages == [{"method": "codebook", "N": 44, "K": 22, "radius": 0.5}]


def test_llava_eval_files_are_put_together(tmp_path):
    """Answers, records and questions share ids; an id twice in a file, as in MME, is two samples."""
    answers = [{"question_id": "q", "prompt": f"is it {i}?", "text": t} for i, t in enumerate(("Yes.", "no"))]
    records = [{"question_id": "q", "image": "a.png", "retained_patches": RECORD.to_dict()} for _ in range(2)]
    questions = [
        {"question_id": "q", "text": "?", "image": "a.png", "label": t, "category": "c"} for t in ("yes", "yes")
    ]
    paths = [
        write(tmp_path / name, *rows)
        for name, rows in (("questions.jsonl", questions), ("answers.jsonl", answers), ("kept.jsonl", records))
    ]
    for order in (paths, paths[::-1]):
        samples = read(order).samples
        assert [s.question for s in samples] == ["is it 0?", "is it 1?"]
        assert [s.answer for s in samples] == ["Yes.", "no"] and [s.right for s in samples] == [True, False]
        assert [s.task for s in samples] == ["c", "c"] and samples[0].media == [[Reference("a.png")]]
    again = [write(tmp_path / f"b{name.name}", name.read_text()) for name in paths[1:]]
    assert len(read(paths + again).samples) == 4  # another run over the same questions


def test_a_null_record_is_no_question_and_keeps_the_count(tmp_path):
    kept = [{"question_id": 3, "retained_patches": one} for one in (None, RECORD.to_dict())]
    answers = [{"question_id": 3, "round_id": i, "prompt": f"{i}?", "text": "x"} for i in range(2)]
    question = {"id": "3", "image": "a.png", "conversations": []}
    paths = [write(tmp_path / f"{i}.jsonl", *rows) for i, rows in enumerate(([question], answers, kept))]
    reading = read(paths)
    assert [s.question for s in reading.samples] == ["1?"] and reading.without_entry == 1
    assert reading.samples[0].media == [[Reference("a.png")]]  # one question, asked in two rounds
    pred = {"id": "v1", "video_name": "clip", "question": "what?", "answer": "run", "pred": "runs"}
    paths = [
        write(tmp_path / "pred.jsonl", pred),
        write(tmp_path / "k.jsonl", {"id": "v1"} | kept[1] | {"question_id": "v1"}),
    ]
    (sample,) = read(paths).samples
    assert (sample.question, sample.answer, sample.targets, sample.right) == ("what?", "runs", ["run"], False)
    assert sample.media == [[Reference("clip")]]


def test_save_record_also_indented(tmp_path):
    record = {"query": "what number?", "answer": "95", "image_file": "scene.png"} | RECORD.to_dict()
    path = tmp_path / "record.json"
    path.write_text(json.dumps(record, indent=2))
    (sample,) = read([path]).samples
    assert (sample.question, sample.answer, sample.targets, sample.right) == ("what number?", "95", [], None)
    assert sample.media == [[Reference("scene.png")]] and sample.task == "record"


@pytest.mark.parametrize(
    ("line", "answer", "targets", "right"),
    [
        ({"exact_match": 0.3}, "x", ["x"], False),
        ({"exact_match": True}, "x", ["y"], True),
        ({"mme_perception_score": {"question_id": 1, "score": 1.0}}, "", [], True),
        ({"seed_all": 1, "acc": 0}, "", [], False),
        ({"ocrbench_accuracy": {"prediction": "a cat", "ground_truth": "Cat!"}}, "", [], True),
        ({"cider_score": 87.1}, "B. blue", ["B"], True),  # not a share: answer and target decide
        ({}, "(b)", ["B"], True),
        ({}, "Because", ["B"], False),
        ({}, "two", ["2", "Two."], True),
        ({}, "", ["x"], None),
        ({}, "x", [], None),
    ],
)
def test_right_or_wrong(line, answer, targets, right):
    assert verdict(line, answer, targets)[0] is right


# ---------------------------------------------------------------------------------------------------------------
# Errors


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot read .*No such file"),
        ('{"doc_id": 1}\n{"doc', "line 2: not JSON"),
        ("[1]\n", r"line 1: JSON, but no object \(1\)"),
        ("\n\n", "no retained patches in 0 lines; .*--log-retained-patches.*--save-record"),
        ('{"doc_id": 1, "retained_patches": null}\n', "no retained patches in 1 lines"),
        ('{"doc_id": 1, "retained_patches": {"task": "off", "pictures": []}}\n', "no retained patches in 1 lines"),
        ('{"retained_patches": {"keep_indices": "x"}}\n', "line 1: retained_patches without a list keep_indices"),
        ('{"retained_patches": {"keep_indices": [1], "K": 2}}\n', "line 1: K=2 but the lists"),
        (
            '{"retained_patches": {"keep_indices": [1], "row": ["a"]}}\n',
            "line 1: row of retained_patches is not a list",
        ),
        ('{"retained_patches": {"keep_indices": [1], "grids": [[4, 4]]}}\n', "line 1: grids of .* is not a list"),
        ('{"retained_patches": {"keep_indices": [1], "grids": [[[9999, 9999]]]}}\n', "line 1: grids .* more than"),
        ('{"retained_patches": {"keep_indices": [1], "N": "many"}}\n', "line 1: N of retained_patches is 'many'"),
        ("[" * 100_000, "line 1: not JSON|nested too deeply"),
    ],
)
def test_one_line_and_exit_code_2(tmp_path, capsys, content, message):
    log = tmp_path / "log.jsonl"
    if content is not None:
        log.write_text(content)
    assert main([str(log), "--html", str(tmp_path / "x.html"), "--no-pictures"]) == 2
    error = capsys.readouterr().err
    assert re.search(message, error) and error.startswith("error: ") and error.count("\n") == 1
    assert not (tmp_path / "x.html").exists()


def test_wrong_folders(tmp_path, capsys):
    log = str(write(tmp_path / "log.jsonl", lmms()))
    assert main([log, "--html", str(tmp_path / "x.html"), "--images", str(tmp_path / "none")]) == 2
    assert "no such folder" in capsys.readouterr().err
    assert main([log, "--html", str(tmp_path / "none" / "x.html"), "--no-pictures"]) == 2
    assert "cannot write" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    assert main([str(tmp_path / "empty"), "--html", str(tmp_path / "x.html"), "--no-pictures"]) == 2
    assert "holds no *_samples_*.jsonl" in capsys.readouterr().err
    with pytest.raises(SystemExit):  # argparse: pictures, or none, must be said
        main([log, "--html", "x.html"])
