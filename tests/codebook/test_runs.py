"""Runs that are stopped and go on, and pictures from all sources."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import torch
from PIL import Image

from mob.media import ImageError
from redundancy_codebook import cli, models
from redundancy_codebook.measuring import SCENES_QUESTIONS, Settings, run
from redundancy_codebook.pictures import from_coco, from_files, from_scenes
from redundancy_codebook.runs import FEATURES, LINES, MANIFEST, TABLE, VALUES, open_run, writing

FILES = (MANIFEST, LINES, FEATURES)
SCENES = 3
ASKED = Settings(questions=SCENES_QUESTIONS[1:], sampling="random", count=6)
COMMAND = ["measure", "--scenes", str(SCENES), "--sampling", "random", "--count", "6", "--no-bar", "--device", "cpu"]
COMMAND += [word for question in ASKED.questions for word in ("--question", question)]


@pytest.fixture(scope="module")
def subject():
    return models.load(None, "cpu")


@pytest.fixture(scope="module")
def undisturbed(subject, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    run(subject, from_scenes(SCENES), folder, ASKED, bar=False)
    return {name: (folder / name).read_bytes() for name in FILES}


def content(folder):
    return {name: (folder / name).read_bytes() for name in FILES}


def test_a_run_holds_what_was_measured(subject, tmp_path):
    found = run(subject, from_scenes(2), tmp_path, ASKED, bar=False)
    assert [line["picture"] for line in found.lines] == ["scene-10000000", "scene-10000001"]
    assert found.tested == 12 and found.features().shape == (12, 160) and found.picture_of.tolist() == [0] * 6 + [1] * 6
    picture = from_scenes(1, 10_000_001)[0]
    seen = models.encode(subject, models.base_view(subject, picture.load()))
    assert torch.equal(found.features()[6:], seen.features[found.lines[1]["indices"]])
    assert all(len(found.values(name)) == 12 for name in (*VALUES, "cls_cosine"))
    assert bool(((found.values("p_top1") > 0.02) & (found.values("p_top1") <= 1)).all())
    legacy, true = found.values("global_legacy_mean_reverse"), found.values("global_jsd")
    assert bool((10 * legacy >= 0.98 * true - 1e-6).all())


def test_of_several_questions_the_largest_value_counts(subject, tmp_path):
    alone = []
    for number, question in enumerate(ASKED.questions):
        own = replace(ASKED, questions=(question,))
        alone.append(run(subject, from_scenes(1), tmp_path / str(number), own, bar=False))
    both = run(subject, from_scenes(1), tmp_path / "both", ASKED, bar=False)
    for name in VALUES:
        assert torch.equal(both.values(name), torch.maximum(*(one.values(name) for one in alone)))


def test_a_killed_run_goes_on_to_the_same_bytes(undisturbed, tmp_path):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-m", "redundancy_codebook", *COMMAND, "--out", str(tmp_path)]
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE)
    lines = tmp_path / LINES
    deadline = time.monotonic() + 300
    while not (lines.exists() and lines.stat().st_size) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(random.uniform(0, 0.3))
    process.send_signal(signal.SIGKILL)
    assert process.wait() in (-signal.SIGKILL, 0)
    assert 0 < len(open_run(tmp_path).lines) <= SCENES
    assert cli.main([*COMMAND, "--out", str(tmp_path)]) == 0
    assert content(tmp_path) == undisturbed


@pytest.mark.parametrize("seed", range(6))
def test_whatever_was_written_half_is_written_again(subject, undisturbed, tmp_path, seed):
    """Features are written first, so a kill leaves any beginning of them and of the lines."""
    draw = random.Random(seed)
    (tmp_path / MANIFEST).write_bytes(undisturbed[MANIFEST])
    for name in (LINES, FEATURES):
        size = draw.randint(len(undisturbed[name]) // 2, len(undisturbed[name]))
        (tmp_path / name).write_bytes(undisturbed[name][:size])
    run(subject, from_scenes(SCENES), tmp_path, ASKED, bar=False)
    assert content(tmp_path) == undisturbed


def test_another_run_in_the_same_folder_is_refused(subject, tmp_path):
    run(subject, from_scenes(1), tmp_path, ASKED, bar=False)
    before = content(tmp_path)
    with pytest.raises(ValueError, match="another settings"):
        run(subject, from_scenes(1), tmp_path, Settings(questions=("how many ?",)), bar=False)
    with pytest.raises(ValueError, match="another pictures"):
        run(subject, from_scenes(2), tmp_path, ASKED, bar=False)
    manifest = json.loads((tmp_path / MANIFEST).read_text())
    with writing(tmp_path, manifest), pytest.raises(ValueError, match="another process"):
        run(subject, from_scenes(1), tmp_path, ASKED, bar=False)
    assert content(tmp_path) == before


def test_a_table_where_pyarrow_is(subject, tmp_path):
    pyarrow = pytest.importorskip("pyarrow.parquet")
    found = run(subject, from_scenes(2), tmp_path, ASKED, bar=False)
    table = pyarrow.read_table(tmp_path / TABLE).to_pydict()
    assert table["index"] == [index for line in found.lines for index in line["indices"]]
    assert table["global_jsd"] == found.values("global_jsd").tolist()
    assert table["picture"] == ["scene-10000000"] * 6 + ["scene-10000001"] * 6


def test_settings_are_checked():
    for wrong in ({"sampling": "grit"}, {"ablation": "noise"}, {"count": 0}, {"repeat": 0}, {"divergence_topk": 1}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            Settings(**wrong)


def test_a_word_that_is_none_is_refused(subject, tmp_path):
    with pytest.raises(ValueError, match="words are 0 to 79"):
        run(subject, from_scenes(1), tmp_path, Settings(questions=("?",), pad_id=80), bar=False)


# ---------------------------------------------------------------------------------------------------------------
# Pictures


def test_files_and_folders(tmp_path):
    for name in ("b/2.png", "b/1.JPG", "a/x.png", "a/notes.txt"):
        file = tmp_path / name
        file.parent.mkdir(exist_ok=True)
        Image.new("RGB", (4, 4)).save(file, "png") if not name.endswith("txt") else file.write_text("")
    found = from_files([str(tmp_path), str(tmp_path / "b/2.png")])
    assert [(p.domain, p.name.rsplit("/", 1)[1]) for p in found] == [("a", "x.png"), ("b", "1.JPG"), ("b", "2.png")]
    assert found[0].load().size == (4, 4)
    (tmp_path / "a/x.png").write_bytes(b"no")
    with pytest.raises(ImageError):
        found[0].load()
    for wrong, message in ((tmp_path / "c", "there is no"), (tmp_path / "a/notes.txt", None)):
        if message:
            with pytest.raises(ValueError, match=message):
                from_files([str(wrong)])
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="has no pictures"):
        from_files([str(tmp_path / "empty")])


def test_coco(tmp_path):
    entries = [
        {"cocoid": 7, "split": "train", "filepath": "train2014", "filename": "a.png"},
        {"cocoid": 3, "split": "val", "filepath": "val2014", "filename": "b.png"},
    ]
    file = tmp_path / "dataset_coco.json"
    file.write_text(json.dumps({"images": entries}))
    (tmp_path / "train2014").mkdir()
    Image.new("RGB", (5, 4)).save(tmp_path / "train2014/a.png")
    found = from_coco(str(file), str(tmp_path))
    assert [p.name for p in found] == ["7"] and found[0].load().size == (5, 4)
    with pytest.raises(ValueError, match="no pictures of split 'test'"):
        from_coco(str(file), str(tmp_path), "test")
    for broken in ("{", "[]", '{"images": [{}]}'):
        file.write_text(broken)
        with pytest.raises(ValueError, match="not Karpathy's"):
            from_coco(str(file), str(tmp_path))
