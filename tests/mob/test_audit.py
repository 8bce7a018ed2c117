"""The audit page: logs of every kind are understood, pictures found, and nothing that a log says becomes markup."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from importlib.resources import files
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image

from mob.audit.__main__ import main
from mob.audit.media import Reference
from mob.audit.page import json_block
from mob.audit.pictures import ABSENT, AMBIGUOUS, BROKEN, NAMELESS, Album, default_side
from mob.audit.reading import read
from mob.audit.scoring import verdict
from mob.picture import PROMPT_COLOUR, VISUAL_COLOUR
from mob.record import RetainedPatches

RECORD = RetainedPatches(
    keep_indices=[1, 6, 17],
    prompt_center=[True, False, True],
    image=[0, 0, 0],
    view=[0, 0, 1],
    row=[0, 1, 0],
    column=[1, 2, 1],
    grids=[[[4, 4], [2, 3]]],
    N=22,
    K=3,
    K_p=2,
    layer=2,
    eta=0.75,
    eps_p=0.5,
    eps_v=0.75,
    milliseconds=1.5,
)
HOSTILE = (
    "</script><script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "<!--<script>",
    "%%DATA%% %%PICTURES%% %%SCRIPT%%",
    "\u202ereversed \u2028 \x00 \ud800",
    "]]>&lt;b&gt;",
)


def lmms(entry=None, **more):
    """A line as lmms-eval writes it."""
    entry = RECORD.to_dict() | (entry or {})
    line = {"doc_id": 7, "input": "what?", "target": "A", "filtered_resps": ["A"], "doc_hash": "a" * 64}
    return line | {"token_counts": [{"input_tokens": 9, "retained_patches": entry}]} | more


def write(path: Path, *rows) -> Path:
    path.write_text("".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows))
    return path


def picture(path: Path, size=(64, 48), colour="red") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)
    return path


def report(tmp_path: Path, *rows, options=("--no-pictures",)) -> str:
    target = tmp_path / "report.html"
    log = write(tmp_path / "log_samples_toy.jsonl", *rows)
    assert main([str(log), "--html", str(target), "--quiet", *map(str, options)]) == 0
    return target.read_text()


class Page(HTMLParser):
    """Tags, attributes and the text of scripts and styles."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.texts: list[tuple[str, dict, str]] = []
        self._open = None
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag in ("script", "style"):
            self._open = [tag, dict(attrs), ""]

    def handle_data(self, data):
        if self._open:
            self._open[2] += data

    def handle_endtag(self, tag):
        if self._open and self._open[0] == tag:
            self.texts.append(tuple(self._open))
            self._open = None

    @property
    def data(self) -> dict:
        return json.loads(next(text for _, attrs, text in self.texts if attrs.get("id") == "data"))

    @property
    def pictures(self) -> list[Image.Image]:
        found = [text for _, attrs, text in self.texts if re.fullmatch(r"p\d+", attrs.get("id", ""))]
        return [Image.open(BytesIO(base64.b64decode(text.partition("base64,")[2]))) for text in found]


# ---------------------------------------------------------------------------------------------------------------
# Reading


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
# Pictures


def test_pictures_are_found_by_name_path_or_hash(tmp_path):
    secret = picture(tmp_path / "secret.png", colour="blue")
    root = tmp_path / "pictures"
    one, two = picture(root / "a" / "same.png"), picture(root / "b" / "same.png", colour="green")
    plain = picture(root / "Plain.JPG", colour="white")
    with Image.open(plain) as image:
        pixels = hashlib.sha256(image.convert("RGB").tobytes()).hexdigest()
    album = Album(root)
    assert len(album) == 3
    for reference, expected in (
        (Reference("plain.jpg"), plain),
        (Reference("train2017/plain"), plain),
        (Reference("x\\b\\same.png"), two),
        (Reference("same.png"), AMBIGUOUS),
        (Reference(None, hashlib.sha256(one.read_bytes()).hexdigest()), one),
        (Reference("gone.png", hashlib.sha256(two.read_bytes()).hexdigest()[:12]), two),
        (Reference(None, pixels), plain),
        (Reference(None, "0" * 64), ABSENT),
        (Reference(str(secret)), ABSENT),
        (Reference("../secret.png"), ABSENT),
        (Reference(".."), ABSENT),
        (Reference(), NAMELESS),
    ):
        assert album.find(reference) == expected, reference


def test_each_picture_is_in_the_page_once_and_small(tmp_path):
    picture(tmp_path / "p" / "large.png", (900, 300))
    rows = [lmms({"image_file": "large.png", "box": [0, 0, 900, 150]}), lmms({"image_file": "large.png"})]
    page = Page(report(tmp_path, *rows, options=("--images", tmp_path / "p", "--max-picture", 90)))
    assert [image.size for image in page.pictures] == [(90, 30)]
    first, second = (sample["pictures"] for sample in page.data["samples"])
    assert first == [{"name": "large.png", "shots": [0], "size": [900, 300], "box": [0, 0, 1, 0.5]}]
    assert second == [{"name": "large.png", "shots": [0], "size": [900, 300]}]
    assert default_side(100) > default_side(1000) > default_side(5000)


def test_missing_and_broken_pictures_are_counted_not_fatal(tmp_path, capsys):
    (tmp_path / "p").mkdir()
    (tmp_path / "p" / "broken.png").write_bytes(b"no picture")
    rows = [lmms({"image_file": name, "image_size": [40, 20]}) for name in ("broken.png", "gone.png")]
    rows += [lmms(), lmms(dict(RetainedPatches(N=0).to_dict()))]  # the last has no picture to miss
    page = Page(report(tmp_path, *rows, options=("--images", tmp_path / "p")))
    assert page.data["trouble"] == {BROKEN: 1, ABSENT: 1, NAMELESS: 1}
    assert page.data["samples"][1]["pictures"] == [{"name": "gone.png", "shots": [], "size": [40, 20]}]
    assert page.data["samples"][3]["pictures"] == []
    assert "1 sample with a picture not found" in capsys.readouterr().err


def test_frames_of_a_video_and_one_picture_for_a_record(tmp_path):
    av = pytest.importorskip("av")
    with av.open(str(tmp_path / "clip.mp4"), "w") as container:
        stream = container.add_stream("mpeg4", rate=5)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for _ in range(5):
            container.mux(stream.encode(av.VideoFrame(64, 48, "yuv420p")))
        container.mux(stream.encode())
    rows = [lmms({"video": "clip.mp4"}), lmms({"images": ["f1.png", "f2.png"]})]
    for name in ("f1.png", "f2.png"):
        picture(tmp_path / name)
    page = Page(report(tmp_path, *rows, options=("--images", tmp_path)))
    assert [sample["pictures"][0]["shots"] for sample in page.data["samples"]] == [[0, 1], [2, 3]]
    page = Page(report(tmp_path, lmms(), lmms(), options=("--images", tmp_path / "f1.png")))
    assert len(page.pictures) == 1


# ---------------------------------------------------------------------------------------------------------------
# The page


def test_the_page_holds_everything_and_asks_nobody(tmp_path):
    picture(tmp_path / "a.png")
    page = Page(report(tmp_path, lmms({"image_file": "a.png"}, acc=0), options=("--images", tmp_path)))
    for tag, attrs in page.tags:
        assert tag not in ("img", "iframe", "object", "base", "form") or tag == "form" and "action" not in attrs
        assert "src" not in attrs and attrs.get("href", "#")[:6] in ("#", "#sampl", "data:,")
        assert not any(name.startswith("on") or name == "style" for name in attrs)
    policy = next(attrs["content"] for _, attrs in page.tags if attrs.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'; img-src data:;") and "unsafe" not in policy
    for tag, attrs, text in page.texts:
        if "type" not in attrs:  # what a browser would run, or apply
            digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
            assert f"{tag}-src 'sha256-{digest}'" in policy
    (sample,) = page.data["samples"]
    assert (sample["question"], sample["answer"], sample["targets"], sample["right"]) == ("what?", "A", ["A"], False)
    assert {key: sample["records"][0][key] for key in ("N", "K", "K_p", "k", "layer", "method", "eta", "eps_p")} == {
        **{"N": 22, "K": 3, "K_p": 2, "k": 1, "layer": 2, "method": "mob", "eta": 0.75, "eps_p": 0.5}
    }
    style = next(text for tag, _, text in page.texts if tag == "style")
    for colour in (PROMPT_COLOUR, VISUAL_COLOUR):
        assert "rgb({} {} {})".format(*colour) in style
    assert "prefers-color-scheme: dark" in style and "%%" not in style


def test_hostile_texts_stay_texts(tmp_path):
    plain = Page(report(tmp_path, lmms(), lmms(), options=("--no-pictures", "--title", "plain")))
    for text in HOSTILE:
        entry = {"task": text, "method": text, "image_file": text, "doc_id": text}
        row = lmms(entry, input=text, filtered_resps=text, target=[text], exact_match={"score": 0.2, "x": text})
        title = text.encode("utf-8", "replace").decode().replace("\x00", "")
        page = Page(report(tmp_path, row, row, options=("--no-pictures", "--title", title)))
        assert page.tags[:4] == plain.tags[:4] and [t for t, _ in page.tags] == [t for t, _ in plain.tags]
        sample = page.data["samples"][0]
        assert sample["question"] == sample["answer"] == sample["targets"][0] == sample["id"] == text.strip()
        assert page.data["tasks"] == [text]


def test_the_data_block_cannot_end_early():
    block = json_block([*HOSTILE, "\u2028"])
    assert not set("<>&\u2028") & set(block) and block.isascii()
    assert json.loads(block) == [*HOSTILE, "\u2028"]
    with pytest.raises(ValueError):
        json_block(float("nan"))


def test_our_script_never_makes_markup_of_text():
    for name in ("data.js", "draw.js", "plots.js", "app.js"):
        text = (files("mob.audit") / name).read_text("utf-8")
        for word in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "Function(", "fetch("):
            assert word not in text, (name, word)


def test_five_thousand_samples_without_pictures_are_a_few_megabytes(tmp_path):
    row = json.dumps(lmms(exact_match=1)) + "\n"
    page = report(tmp_path, row * 5000)
    assert page.count('"question":') == 5000 and len(page) < 5e6


# ---------------------------------------------------------------------------------------------------------------
# The script's arithmetic, where there is a Node


def node(script: str, *values) -> object:
    if shutil.which("node") is None:
        pytest.skip("no node")
    code = f"const d = require({json.dumps(str(files('mob.audit') / 'data.js'))}); const v = {json.dumps(values)};"
    code += f"console.log(JSON.stringify((() => {{ {script} }})()))"
    out = subprocess.run(["node", "-e", code], capture_output=True, text=True, check=True)
    return json.loads(out.stdout)


def test_cells_are_unpacked_where_they_were(tmp_path):
    record = Page(report(tmp_path, lmms())).data["samples"][0]["records"][0]
    views = node("return d.viewsOf(v[0]).map((x) => [x.rows, x.columns, x.place, x.of, [...x.cells]])", record)
    whole, tiles = [0] * 16, [0] * 6
    whole[1], whole[6], tiles[1] = 2, 1, 2
    assert views == [[4, 4, 0, 2, whole], [2, 3, 1, 2, tiles]]
    heat = node("return d.heatOf([{records: [v[0]]}], '2 × 3', 0)", record)
    assert heat["views"] == 1 and heat["prompt"] == [0, 1, 0, 0, 0, 0] and sum(heat["visual"]) == 0
    heat = node("return d.heatOf([{records: [v[0]]}], '', 4)", record)
    assert heat["views"] == 2 and sum(heat["visual"]) == 0.5 and heat["prompt"][1] == 1


def test_statistics_of_the_page():
    assert node("return d.wilson(...v)", 8, 10) == pytest.approx([0.8, 0.4902, 0.9433], abs=1e-4)
    assert node("return d.histogram(v, 0, 1, 4)", 0, 0.24, 0.25, 1) == [2, 1, 0, 1]
    assert node("return [d.median(v), d.mean(v)]", 3, 1, 2, 6) == [2.5, 3]
    assert node("return d.axis(...v)", 1.32, 1.69) == {"low": 1.3, "high": 1.7, "ticks": [1.3, 1.4, 1.5, 1.6, 1.7]}
    assert node("return d.axis(0.5, 0.5)")["low"] < 0.5 < node("return d.axis(0.5, 0.5)")["high"]
    samples = [{"right": i >= 10, "records": [{"eta": i / 20}]} for i in range(20)] + [{"right": None, "records": [{}]}]
    points = node("return d.accuracyByEta(v[0], 10)", samples)
    assert [(p["n"], p["share"]) for p in points] == [(5, 0), (5, 0), (5, 1), (5, 1)]
    order = node("return d.ordered(v[0], 'down').map((s) => s.records[0].eta)", samples)
    assert order[0] == 0.95 and order[-1] is None


def test_where_a_square_grid_lies_on_a_wide_picture():
    wide, view = {"size": [200, 100]}, {"of": 1, "rows": 2, "columns": 2}
    boxes = node("return ['whole', 'pad', 'crop'].map((s) => d.boxOf(v[0], v[1], s))", wide, view)
    assert boxes == [[0, 0, 1, 1], [0, -0.5, 1, 1.5], [0.25, 0, 0.75, 1]]
    cells = node("return [0, 3].map((i) => d.cellBox(v[0], v[1], i, 200, 100))", boxes[1], view)
    assert cells == [[0, 0, 100, 50], [100, 50, 200, 100]]  # the upper half of the first lies in the padding


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
