"""The commands, on the embedded checkpoint: what they write, and one clear line for whatever is wrong."""

from __future__ import annotations

import inspect
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import mob
import zoo
from codebook import books
from llava.scenes import evaluate
from llava.scenes.checkpoint import PATH
from mob.budget import Budget
from mob.codebook_file import Codebook, check_model, read_codebook
from mob.methods import SpanView, create
from redundancy_codebook import calibration, cli, inspection, models, plots
from redundancy_codebook.pictures import from_scenes

CPU = ["--device", "cpu"]
ASK = ["--question", "which shape is most common ?"]
RECIPE = ["--p-quantile", "0.9", "--J-quantile", "0.9", "--min-pictures", "1", "--picture-largest", "25"]


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The folder of ``build`` on three scenes."""
    folder = tmp_path_factory.mktemp("built")
    assert cli.main(["build", "--scenes", "3", "--out", str(folder), "--no-bar", *ASK, *RECIPE, *CPU]) == 0
    return folder


@pytest.fixture()
def book(built):
    return str(built / "codebook.safetensors")


def fails(capsys, *command):
    """The one line that a wrong command prints."""
    capsys.readouterr()
    assert cli.main([str(word) for word in command]) == 2
    out, err = capsys.readouterr()
    assert not out and len(err.strip().splitlines()) == 1 and err.startswith("error: ")
    return err


def test_build_makes_a_codebook_of_its_model(built, book):
    found = read_codebook(book)
    known = found.metadata
    assert known["model"] == "llava-scenes" and known["D"] == 160 and known["feature_stage"] == "projector"
    assert known["measure"]["sampling"] == "grid" and known["build"]["measured_tokens"] == 75
    assert set(known["pictures"]) <= {f"scene-{10_000_000 + i}" for i in range(3)} and len(found) > 0
    subject = models.load(None, "cpu")
    rule = create("codebook", {"path": book, "theta": 0.999})
    rule.check(subject.model)
    features = models.encode(subject, zoo.noise(1, 3, 112, 112)).features[None]
    assert rule.keep(SpanView(features, features[:, :0]), Budget(196, 196, 0, 1)).shape == (1, 196)


def test_mob_prunes_with_it(book):
    subject = models.load(None, "cpu")
    if "mm_encoder_outputs" not in inspect.signature(type(subject.model.model).forward).parameters:
        pytest.skip("this transformers takes no encoded pictures")
    picture = from_scenes(1, 7)[0].load()
    before, after = models.split_prompt(subject, "which shape is most common ?")
    image = subject.model.config.image_token_index
    inputs = {
        "input_ids": torch.tensor([[*before, *[image] * 196, *after]]),
        "pixel_values": models.base_view(subject, picture),
    }
    theta = calibration.theta_for(calibration.scores(subject, read_codebook(book), from_scenes(1, 7), bar=False), 60)
    with mob.prune(subject.model, method="codebook", options={"path": book, "theta": theta}) as pruning:
        out = subject.model.generate(**inputs, max_new_tokens=2, do_sample=False)
    assert [(record.N, record.K) for record in pruning.records] == [(196, 60)]
    assert out.shape[0] == 1


def test_building_again_gives_the_same_bytes(built, book, tmp_path):
    again = tmp_path / "again.safetensors"
    assert cli.main(["cluster", str(built / "run"), "--out", str(again), *RECIPE]) == 0
    assert again.read_bytes() == Path(book).read_bytes()


def test_the_log_tells_of_every_call(built, tmp_path):
    first = (built / "build.log").read_text()
    for words in (
        "redundancy_codebook build --scenes 3",
        "torch ",
        "measured: 75 tokens of 3 pictures",
        "prototypes: ",
    ):
        assert words in first


def test_the_shipped_codebook_is_of_the_shipped_model_and_of_its_training_pictures():
    folder = Path(__file__).parents[2] / "codebooks" / "scenes"
    found = read_codebook(folder / "codebook.safetensors")
    check_model(found, models.load(None, "cpu").model)
    seeds = [int(name.removeprefix("scene-")) for name in found.metadata["pictures"]]
    assert min(seeds) >= 10_000_000 and max(seeds) < 10_000_200  # evaluation uses the small ones
    assert found.metadata["build"]["measured_pictures"] == 200
    calibrated = json.loads((folder / "calibration.json").read_text())
    assert calibrated["prototypes_sha256"] == found.metadata["prototypes_sha256"]
    assert str(len(found)) in (folder / "build.log").read_text().splitlines()[-2]
    assert sum(file.stat().st_size for file in folder.glob("*.*")) < 500_000


def test_accuracy_with_a_codebook_needs_one(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["evaluate", "--methods", "codebook+mob"])
    with pytest.raises(SystemExit) as caught:
        evaluate.main()
    assert caught.value.code == 2 and "needs --codebook" in capsys.readouterr().err


@pytest.mark.parametrize(
    "method", ["codebook", "codebook+mob", "early-random", "random+mob", "random", "divprune", "divprune+mob"]
)
def test_rules_are_compared_at_equal_numbers(method, book):
    """K tokens each; of joined rules twice as many reach MoB; positions are kept."""
    subject = models.load(None, "cpu")
    if "mm_encoder_outputs" not in inspect.signature(type(subject.model.model).forward).parameters:
        pytest.skip("this transformers takes no encoded pictures")
    (asked,) = [one for one in evaluate.questions(1) if one.question.task == "shape"]
    _, inputs = next(evaluate.batches([asked], 1))
    settings = evaluate.settings_for(method, 20, 3, evaluate.Setup(codebook=book))
    with mob.prune(subject.model, **settings.to_dict()) as pruning:
        evaluate.right(subject.model, inputs, settings)
        subject.model(**{key: value for key, value in inputs.items() if key != "labels"})
    (record,) = pruning.records
    late = method == "random" or "+" in method
    assert record.K == 20 and record.layer == (2 if late else 0)
    assert [stage["K"] for stage in record.stages][:1] == ([40] if "+" in method else [] if late else [20])
    assert settings.positions == (None if method == "random" else "keep")


def test_rules_are_named_as_elsewhere(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["evaluate", "--methods", "mob", "divprune+mbo"])
    with pytest.raises(SystemExit):
        evaluate.main()
    assert "did you mean 'mob'" in capsys.readouterr().err
    assert evaluate.settings_for("divprune+cdpruner+mob", 8, 0, evaluate.Setup()).rules()[0][0].K == 32


def test_inspect(book, capsys):
    assert cli.main(["inspect", book]) == 0
    assert "for llava-scenes" in capsys.readouterr().out
    assert cli.main(["inspect", book, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["metadata"]["D"] == 160 and found["numbers"]["distinct_rows"] == found["numbers"]["prototypes"]


def test_numbers_of_a_codebook():
    rows = torch.tensor([[3.0, 0, 0], [0, 4.0, 0], [0, 0, 5.0], [3.0, 0, 0]])
    found = inspection.describe(Codebook(rows, {}, None, torch.tensor([0, 1, 1, 2])))
    assert found["norm"]["max"] == 5 and found["distinct_rows"] == 3 and found["left_after_dedup"]["0.9"] == 3
    assert found["pairwise_cosine"]["max"] == 1 and found["pairwise_cosine"]["min"] == 0
    assert found["coverage"]["share_at_0.45"] == 0.5 and found["pictures"] == 3
    assert "clusters" not in inspection.describe(Codebook(rows[:1]))


def test_import_legacy(tmp_path, capsys):
    source = books.released(tmp_path / "a.pt", zoo.noise(4, 160))
    target = tmp_path / "a.safetensors"
    assert cli.main(["import-legacy", str(source), str(target)]) == 0
    assert "not tied to a model" in capsys.readouterr().err
    assert read_codebook(target).metadata["projector_sha256"] is None
    assert cli.main(["import-legacy", str(source), str(target), "--model-path", str(PATH), *CPU]) == 0
    assert read_codebook(target).metadata["projector_sha256"]
    narrow = books.released(tmp_path / "b.pt", zoo.noise(4, 48))
    assert "another model" in fails(capsys, "import-legacy", narrow, target, "--model-path", PATH, *CPU)


def test_calibrate(built, book, tmp_path, capsys):
    for domain, seed in (("one", 1), ("two", 2)):
        (tmp_path / domain).mkdir()
        Image.fromarray((zoo.noise(40, 40, 3, seed=seed).clamp(0, 1) * 255).byte().numpy()).save(
            tmp_path / domain / "x.png"
        )
    command = ["calibrate", book, "--images", str(tmp_path), "--thetas", "0.2,0.6,1", "--target", "0.5", *CPU]
    assert cli.main([*command, "--out", str(tmp_path / "c.json")]) == 0
    assert "keeps 0.5 on average" in capsys.readouterr().out
    saved = json.loads((tmp_path / "c.json").read_text())
    assert list(saved["tables"]) == ["all", "one", "two"]
    kept = [row["mean_keep"] for row in saved["tables"]["all"]]
    assert kept == sorted(kept) and saved["pictures"] == 2
    assert cli.main([*command[:-4], *CPU]) == 0 and (built / "calibration.json").exists()


def test_calibration_counts():
    values = torch.rand(5, 50, generator=torch.Generator().manual_seed(0))
    rows = calibration.table(values, list("aabbb"), (0.3, 0.7))
    for name, mine in (("all", values), ("a", values[:2]), ("b", values[2:])):
        for row in rows[name]:
            counts = [int((one < row["theta"]).sum()) for one in mine]
            assert row["mean_keep"] == pytest.approx(sum(counts) / len(counts)) and row["p5"] <= row["p95"]
    for target in (1, 10, 25.5, 0.3, 50):
        theta = calibration.theta_for(values, target)
        wanted = target * 50 if target < 1 else target
        assert float((values < theta).sum() / 5) == pytest.approx(wanted, abs=0.5)
    with pytest.raises(ValueError, match="has 50 tokens"):
        calibration.theta_for(values, 51)


def test_translate(tmp_path, capsys):
    config = {"mm_vision_select_feature": "high_info_patch", "toxic_codebook_flag": True, "toxic_codebook_thres": 0.45}
    file = tmp_path / "config.json"
    file.write_text(json.dumps(config))
    assert cli.main(["translate", str(file), "--codebook", "c.safetensors"]) == 0
    assert json.loads(capsys.readouterr().out)["options"]["theta"] == 0.45
    assert "names no" in fails(capsys, "translate", file)
    file.write_text("[]")
    assert "holds no config" in fails(capsys, "translate", file)


def test_errors_are_one_line(built, book, tmp_path, capsys):
    out = ["--out", tmp_path / "out"]
    assert "which pictures" in fails(capsys, "measure", *out)
    assert "--coco-root" in fails(capsys, "measure", *out, "--coco", "x.json")
    assert "there is no file" in fails(capsys, "measure", *out, "--images", tmp_path / "none")
    assert "numbers and ranges" in fails(capsys, "measure", *out, "--scenes", 1, "--ranks", "x")
    assert "at least one scene" in fails(capsys, "measure", *out, "--scenes", 0)
    assert "count=0" in fails(capsys, "measure", *out, "--scenes", 1, "--count", 0)
    assert "not a folder" in fails(capsys, "measure", *out, "--scenes", 1, "--model-path", "./none")
    assert "holds no run" in fails(capsys, "cluster", tmp_path)
    assert "lower min_pictures" in fails_after_notes(capsys, "cluster", built / "run", "--min-pictures", 50)
    assert "no codebook at" in fails(capsys, "inspect", tmp_path / "none.safetensors")
    (tmp_path / "a.pt").write_bytes(b"x")
    assert "import-legacy" in fails(capsys, "inspect", tmp_path / "a.pt")
    assert "ends in .safetensors" in fails(capsys, "import-legacy", tmp_path / "a.pt", tmp_path / "b.pt")
    assert "half precision" in fails(capsys, "import-legacy", tmp_path / "a.pt", tmp_path / "b.safetensors")
    assert "numbers with commas" in fails(capsys, "calibrate", book, "--scenes", 1, "--thetas", "a", *CPU)
    Codebook(torch.ones(2, 5)).save(tmp_path / "five.safetensors")
    assert "width 5" in fails(capsys, "calibrate", tmp_path / "five.safetensors", "--scenes", 1, *CPU)
    assert "pictures 0 to 2" in fails(capsys, "plot", "maps", built / "run", "--number", 3, "--out", tmp_path / "m.png")


def fails_after_notes(capsys, *command):
    assert cli.main([str(word) for word in command]) == 2
    return capsys.readouterr().err.strip().splitlines()[-1]


@pytest.mark.parametrize("command", [[], ["measure"], ["bake"], ["build", "--out", "x", "--sampling", "odd"]])
def test_wrong_arguments(command, capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(command)
    assert caught.value.code == 2


def test_figures(built, book, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    for command in (
        ["maps", built / "run", "--number", 1],
        ["codebook", book],
        ["keep", book, "--scenes", 2, "--thetas", "0.5,0.9", *CPU],
        ["summary", built / "run", *RECIPE],
    ):
        target = tmp_path / f"{command[0]}.png"
        assert cli.main(["plot", *map(str, command), "--out", str(target)]) == 0
        with Image.open(target) as image:
            assert min(image.size) > 200
    assert "cannot write the figure" in fails(capsys, "plot", "codebook", book, "--out", tmp_path / "x.odd")


def test_figures_without_matplotlib(monkeypatch, book, tmp_path, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert "pip install matplotlib" in fails(capsys, "plot", "codebook", book, "--out", tmp_path / "x.png")


def test_the_plane_without_scikit_learn(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.manifold", None)
    rows = zoo.noise(9, 6).numpy()
    points, kind = plots._plane(rows, 0)
    centred = rows - rows.mean(0)
    assert kind == "PCA" and points.shape == (9, 2)
    values = sorted(np.linalg.eigvalsh(centred.T @ centred))[::-1][:2]
    assert (points**2).sum(0) == pytest.approx(values)
    assert plots._plane(rows[:1], 0)[0].shape == (1, 2)
