"""Pictures are found, the page holds everything, and nothing that a log says becomes markup."""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
import subprocess
from importlib.resources import files

import pytest
from PIL import Image

from audit_logs import HOSTILE, Page, lmms, picture, report
from mob.audit.media import Reference
from mob.audit.page import json_block
from mob.audit.pictures import ABSENT, AMBIGUOUS, BROKEN, NAMELESS, Album, default_side
from mob.picture import PROMPT_COLOUR, VISUAL_COLOUR
from mob.record import RetainedPatches

NODE = pytest.mark.may_skip("Node is no Python package; the page itself needs none")

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


@NODE
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


@NODE
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


@NODE
def test_where_a_square_grid_lies_on_a_wide_picture():
    wide, view = {"size": [200, 100]}, {"of": 1, "rows": 2, "columns": 2}
    boxes = node("return ['whole', 'pad', 'crop'].map((s) => d.boxOf(v[0], v[1], s))", wide, view)
    assert boxes == [[0, 0, 1, 1], [0, -0.5, 1, 1.5], [0.25, 0, 0.75, 1]]
    cells = node("return [0, 3].map((i) => d.cellBox(v[0], v[1], i, 200, 100))", boxes[1], view)
    assert cells == [[0, 0, 100, 50], [100, 50, 200, 100]]  # the upper half of the first lies in the padding
