"""MMBench, and the files that servers want."""

from __future__ import annotations

import base64
import json
import re
import zipfile
from types import SimpleNamespace
from xml.etree import ElementTree

import pytest

from evaluating import answers, as_json, failure, flags, lines, rows_of
from llava.eval import convert, eval_mmbench, model_vqa_mmbench
from llava.eval.xlsx import write_xlsx


def bench(tmp_path, picture):
    text = base64.b64encode(picture.read_bytes()).decode()
    header = ["index", "question", "hint", "A", "B", "C", "D", "answer", "category", "image", "split"]
    rows = [
        ["1", "what?", "look", "cat", "dog", "", "", "B", "c", text, "dev"],
        ["2", '"quoted"\tq', "nan", "1", "2", "3", "4", "D", "c", "1", "dev"],
    ]
    rows[1][1] = '"""quoted"" q"'  # a cell in quotes, as pandas writes one
    table = tmp_path / "t.tsv"
    table.write_text("".join("\t".join(row) + "\n" for row in [header, *rows]))
    return table


def test_mmbench_questions(tmp_path, data):
    table = bench(tmp_path, data.images / "0.png")
    args = SimpleNamespace(
        question_file=table, all_rounds=True, single_pred_prompt=True, lang="cn", model_path="m", image_folder=""
    )
    asked = model_vqa_mmbench.questions(args)
    assert [(q.row["question_id"], q.row["round_id"]) for q in asked] == [(1, 0), (1, 1), *((2, i) for i in range(4))]
    assert asked[0].row["prompt"] == "look\nwhat?\nA. cat\nB. dog"
    assert asked[0].query == "look\nwhat?\nA. cat\nB. dog\n请直接回答选项字母。"
    assert asked[1].row["prompt"] == "look\nwhat?\nA. dog\nB. cat"
    assert (asked[1].row["options"], asked[1].row["option_char"]) == (["dog", "cat"], ["B", "A"])
    assert asked[2].row["prompt"].startswith('"quoted" q\nA. 1')
    assert asked[2].load()[0].size == asked[0].load()[0].size  # row 2 shares the picture of row 1


def test_mmbench_scores_and_spreadsheet(tmp_path, data, capsys):
    table = bench(tmp_path, data.images / "0.png")

    def row(name, number, text, chars):
        return {"question_id": name, "round_id": number, "text": text, "option_char": chars}

    rows = [row(1, 0, "B", ["A", "B"]), row(1, 1, "A. dog", ["B", "A"]), row(2, 0, "D.", list("ABCD"))]
    out = lines(tmp_path / "r" / "run.jsonl", rows)
    assert eval_mmbench.evaluate(table, out) == (2, 100.0)
    lines(out, [*rows[:1], row(1, 1, "B", ["B", "A"]), rows[2]])
    assert eval_mmbench.main(flags(annotation_file=table, result_file=out)) == 0
    assert "Accuracy: 50.00%" in capsys.readouterr().out
    given = flags(annotation_file=table, result_dir=out.parent, upload_dir=tmp_path / "up", experiment="run")
    assert convert.main(["mmbench", *given]) == 0
    header, *cells = sheet(tmp_path / "up" / "run.xlsx")
    assert header == ["index", "question", "A", "B", "C", "D", "prediction", "answer", "split"]
    assert cells == [
        ["1", "what?", "cat", "dog", None, None, "B", "B", "dev"],
        ["2", '"quoted" q', "1", "2", "3", "4", "D.", "D", "dev"],
    ]


def sheet(path):
    """The cells of a spreadsheet that this package wrote, by their places."""
    with zipfile.ZipFile(path) as file:
        assert file.testzip() is None
        for name in file.namelist():
            ElementTree.fromstring(file.read(name))
        root = ElementTree.fromstring(file.read("xl/worksheets/sheet1.xml"))
    space = "{http://schemas.openxmlformats.org/spreadsheetml/2006/main}"
    rows = []
    for row in root.iter(f"{space}row"):
        found = {re.sub(r"\d", "", cell.get("r")): "".join(cell.itertext()) for cell in row}
        rows.append([found.get(chr(65 + at)) for at in range(ord(max(found)) - 64)])
    return rows


def test_spreadsheets_hold_any_text(tmp_path):
    text = ' <b> & "quotes" 中文 🦓\x00\x0b\nnew line '
    write_xlsx(tmp_path / "x.xlsx", ["a", "b"], [[text, 2.5], [None, "y" * 40_000]])
    _, first, second = sheet(tmp_path / "x.xlsx")
    assert first == [text.replace("\x00\x0b", ""), "2.5"]
    assert second[0] is None and len(second[1]) == 32_767


def test_spreadsheets_are_read_by_others(tmp_path):
    openpyxl = pytest.importorskip("openpyxl")
    write_xlsx(tmp_path / "x.xlsx", ["index"] + ["c"] * 27, [[1, " a<b ", *range(26)]])
    values = list(openpyxl.load_workbook(tmp_path / "x.xlsx").active.values)
    assert values[1][:3] == (1, " a<b ", 0) and values[1][27] == 25


# ---------------------------------------------------------------------------------------------------------------
# The other files for servers


def test_server_files(tmp_path, capsys):
    out = answers(tmp_path / "a", {1: "The Two.", 2: "no"})
    asked = lines(tmp_path / "q", [{"question_id": 2, "image": "b.jpg"}, {"question_id": 1, "image": "a.jpg"}])
    given = flags(annotation_file=asked, result_file=out, result_upload_file=tmp_path / "v.json")
    assert convert.main(["vizwiz", *given]) == 0
    expected = [{"image": "b.jpg", "answer": "no"}, {"image": "a.jpg", "answer": "2"}]
    assert json.loads((tmp_path / "v.json").read_text()) == expected
    assert convert.main(["mmvet", *flags(src=out, dst=tmp_path / "m.json")]) == 0
    assert json.loads((tmp_path / "m.json").read_text()) == {"v1_1": "The Two.", "v1_2": "no"}
    lines(asked, [{"question_id": 3, "image": "c.jpg"}])
    assert convert.main(["vizwiz", *given]) == 2
    assert "answers 0 of 1" in failure(capsys)


def test_vqav2(tmp_path):
    answers(tmp_path / "answers" / "s" / "c" / "merge.jsonl", {1: "A dog."})
    lines(tmp_path / "llava_vqav2_mscoco_test2015.jsonl", [{"question_id": 1}, {"question_id": 2}])
    assert convert.main(["vqav2", *flags(dir=tmp_path, split="s", ckpt="c")]) == 0
    found = json.loads((tmp_path / "answers_upload" / "s" / "c.json").read_text())
    assert found == [{"question_id": 1, "answer": "dog"}, {"question_id": 2, "answer": ""}]


def test_seed(tmp_path, capsys):
    kinds = {"Scene": 1, "Action": 2}
    rows = [(1, "A", 1, "image"), (2, "B", 1, "image"), ("v3", "C", 2, "video")]
    asked = [dict(zip(("question_id", "answer", "question_type_id", "data_type"), row, strict=True)) for row in rows]
    gold = as_json(tmp_path / "g.json", {"questions": asked, "question_type": kinds})
    out = answers(tmp_path / "a", {1: "A", 2: "A", "v3": "C"})
    given = flags(annotation_file=gold, result_file=out, result_upload_file=tmp_path / "u")
    assert convert.main(["seed", *given]) == 0
    printed = capsys.readouterr().out
    assert "total accuracy: 66.67% (2 of 3)" in printed and "Scene: 50.00%" in printed
    assert "video accuracy: 100.00%" in printed
    assert rows_of(tmp_path / "u")[2] == {"question_id": "v3", "prediction": "C"}


def test_bad_answers_files(tmp_path, capsys):
    out = tmp_path / "a"
    for text, message in (("", "holds no answers"), ("{}\n", "line 1: there is no 'question_id'"), ("{", "not JSON")):
        out.write_text(text)
        assert convert.main(["gqa", *flags(src=out, dst=tmp_path / "b")]) == 2
        assert message in failure(capsys)
    lines(out, [{"question_id": 1, "text": "", "error": "e"}])
    assert convert.main(["gqa", *flags(src=out, dst=tmp_path / "b")]) == 0
    assert "1 of 1 answers are empty" in capsys.readouterr().err
