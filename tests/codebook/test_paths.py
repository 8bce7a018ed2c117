"""Whose path: a codebook that a model's config names, and one that the user names."""

from __future__ import annotations

import json
import os
import warnings

import pytest
import torch

import mob
import zoo
from families.test_early import KNOWN
from mob import codebook_file
from mob.codebook_file import Codebook, allow_codebook, projector_sha256, vetted
from mob.flags import resolve


@pytest.fixture(autouse=True)
def nothing_allowed(monkeypatch):
    monkeypatch.setattr(codebook_file, "_allowed", set())
    monkeypatch.delenv("MOB_CODEBOOKS", raising=False)


class Thin(mob.MoBMixin, zoo.transformers.LlavaForConditionalGeneration):
    pass


@pytest.fixture()
def folder(tmp_path):
    """A model's folder with a codebook of it, and the same one beside the folder."""
    model = zoo.FAMILIES["llava"].model(torch.float32)
    place = tmp_path / "model"
    model.save_pretrained(place)
    book = Codebook(zoo.noise(5, 48).float(), {"projector_sha256": projector_sha256(model)})
    for file in (place / "codebook.safetensors", tmp_path / "outside.safetensors"):
        book.save(file)
    return place


def configured(folder, path, method="codebook"):
    """The folder with a config.json that somebody else wrote."""
    options = {"path": str(path), "theta": 0.5}
    options = options if method == "codebook" else {"codebook": options}
    config = json.loads((folder / "config.json").read_text())
    config["MoB_config"] = {"method": method, "options": options} | ({"K": 3} if "+" in method else {})
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize("method", ["codebook", "codebook+mob"])
def test_a_file_in_the_models_folder_is_used(folder, method, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    configured(folder, "codebook.safetensors", method)
    model = Thin.from_pretrained(folder).eval()
    options = model.pruning._settings().options
    options = options if method == "codebook" else options["codebook"]
    assert options == {"path": str(folder / "codebook.safetensors"), "theta": 0.5}
    assert "path" in json.dumps(model.config.MoB_config)  # the config itself is as it was
    assert str(folder) not in json.dumps(model.config.MoB_config)


@pytest.mark.parametrize("method", ["codebook", "codebook+mob"])
@pytest.mark.parametrize("name", ["absolute", "../outside.safetensors", "link.safetensors"])
def test_any_other_file_needs_consent(folder, name, method, monkeypatch):
    outside = folder.parent / "outside.safetensors"
    (folder / "link.safetensors").symlink_to(outside)
    path = outside if name == "absolute" else name
    configured(folder, path, method)
    opened = []
    monkeypatch.setattr(codebook_file, "read_codebook", lambda file: opened.append(file))
    with pytest.raises(ValueError, match="named by the model's config.*allow_codebook") as caught:
        Thin.from_pretrained(folder)
    assert "\n" not in str(caught.value) and not opened
    monkeypatch.undo()
    if name == "absolute":
        monkeypatch.setenv("MOB_CODEBOOKS", os.pathsep.join(["/nowhere", str(outside)]))
        Thin.from_pretrained(folder)
        monkeypatch.delenv("MOB_CODEBOOKS")
        allow_codebook(outside)
        Thin.from_pretrained(folder)


def test_what_the_user_gives_is_consent(folder, tmp_path):
    outside = tmp_path / "outside.safetensors"
    given = {"method": "codebook", "options": {"path": str(outside), "theta": 0.5}}
    model = Thin.from_pretrained(folder, MoB_config=given)
    assert model.pruning._settings().options["path"] == str(outside)
    codebook_file._allowed.clear()
    with mob.prune(zoo.FAMILIES["llava"].model(torch.float32), method="codebook", options=given["options"]):
        pass
    file = tmp_path / "mob.json"
    file.write_text(json.dumps(given))
    assert vetted(resolve(type("Args", (), {"mob_config": file}), None, False), None) == given


def test_other_flags_are_no_consent_to_a_saved_codebook(tmp_path):
    saved = {"method": "codebook", "options": {"path": str(tmp_path / "outside.safetensors")}}
    for flags in ({"mob_K": 4}, {"mob_method": "codebook"}):
        with pytest.raises(ValueError, match="mob.allow_codebook"):
            vetted(resolve(type("Args", (), flags), saved, False), None)


def test_a_config_that_was_changed_by_hand_says_what_to_do(folder, tmp_path):
    model = Thin.from_pretrained(folder)
    model.config.MoB_config = {"method": "codebook", "options": {"path": str(tmp_path / "outside.safetensors")}}
    with pytest.raises(ValueError, match="mob.allow_codebook"):
        model(**zoo.one(zoo.FAMILIES["llava"].samples()[0], torch.float32))


def test_other_settings_come_back_as_they_are():
    for settings in (None, {}, {"K": 3}, {"method": "mob", "options": {"path": "/x"}}, {"method": "codebook"}, 7):
        assert vetted(settings, None) is settings
    for folder in (None, "", "somebody/on-the-hub"):
        with pytest.raises(ValueError, match="only files within the model's folder"):
            vetted({"method": "codebook", "options": {"path": "c.safetensors"}}, folder)


@pytest.mark.skipif(not KNOWN, reason="this transformers takes no encoded pictures")
def test_a_codebook_of_other_weights_is_refused_once_these_are_there(folder):
    """While a model is being loaded there is nothing to compare; the first pass does."""
    configured(folder, "codebook.safetensors")
    inputs = zoo.one(zoo.FAMILIES["llava"].samples()[0], torch.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = Thin.from_pretrained(folder).eval()
        model.generate(**inputs, max_new_tokens=1)
    Codebook(zoo.noise(5, 48).float(), {"projector_sha256": {"float16": "0"}}).save(folder / "codebook.safetensors")
    model = Thin.from_pretrained(folder).eval()
    for call in (lambda: model.generate(**inputs, max_new_tokens=1), lambda: model(**inputs)):
        with pytest.raises(ValueError, match="other weights"):
            call()


def test_a_pickle_is_never_read(folder):
    """Not even from the model's own folder."""
    torch.save(torch.ones(5, 48), folder / "codebook.pt")
    configured(folder, "codebook.pt")
    with pytest.raises(ValueError, match="not a safetensors file"):
        Thin.from_pretrained(folder)
