"""``MoB_config``: the keys of the paper's release, readable errors, and a lossless way through JSON."""

from __future__ import annotations

import dataclasses
import json

import pytest

from mob.budget import Budget
from mob.config import MoBConfig
from mob.methods import METHODS, create, register

RELEASE = {
    "l_idx": 2,
    "K": 192,
    "Kp_ratio": 11 / 24,
    "k_ratio": 3 / 40,
    "image_token_start_index": 35,
    "image_token_length": 576,
    "distance_metric": "euclidean",
}


def test_keys_of_the_release():
    config = MoBConfig.from_dict(RELEASE)
    assert {key: getattr(config, key) for key in RELEASE} == RELEASE
    assert config.enabled and config.budget(576) == Budget(576, 192, 88, 7)


def test_alpha_weighs_alignment_against_preservation():
    assert MoBConfig.from_dict({"K": 64, "alpha": 0.25}).budget(576).K_p == 16


def test_schedule_fills_what_is_not_given():
    assert MoBConfig(K=64).budget(576) == Budget(576, 64, 32, 4)
    assert MoBConfig(K=192, schedule="strong-release").budget(576).K_p == 88
    assert MoBConfig(K=64, K_p=10, k=3).budget(576) == Budget(576, 64, 10, 3)


@pytest.mark.parametrize("off", [None, {}, {"K": None}, {"l_idx": 3}])
def test_off_keeps_everything(off):
    config = MoBConfig.from_dict(off)
    assert not config.enabled and config.budget(576).identity


def test_a_sample_without_pictures_needs_no_budget():
    assert MoBConfig(K=64).budget(0) == Budget(0, 0, 0, 1)


@pytest.mark.parametrize(
    "key, name, value", [("layer", "l_idx", 3), ("prune_layer", "l_idx", 3), ("kp_ratio", "Kp_ratio", 0.5)]
)
def test_aliases(key, name, value):
    assert getattr(MoBConfig.from_dict({"K": 64, key: value}), name) == value
    with pytest.raises(ValueError, match=f"sets '{name}' twice"):
        MoBConfig.from_dict({key: value, name: value})


def test_no_layer_means_the_default_layer():
    assert MoBConfig.from_dict({"K": 64, "l_idx": None}) == MoBConfig(K=64)


@pytest.mark.parametrize(
    "key, hint",
    [
        ("Kp_ration", "did you mean 'Kp_ratio'"),
        ("kratio", "did you mean 'k_ratio'"),
        ("image_token_lenght", "did you mean 'image_token_length'"),
        ("layers", "did you mean 'layer'"),
        ("distance", "did you mean 'distance_metric'"),
        ("temperature_of_the_sea", "known keys: K, K_p, k, Kp_ratio"),
        (3, "known keys: K, K_p, k, Kp_ratio"),
    ],
)
def test_unknown_keys_get_a_hint(key, hint):
    with pytest.raises(ValueError, match=hint):
        MoBConfig.from_dict({"K": 64, key: 1})


@pytest.mark.parametrize(
    "values, message",
    [
        ({"K": 0}, "keep at least one"),
        ({"K": -5}, "keep at least one"),
        ({"K": 64.0}, "a float is a share"),
        ({"K": "64"}, "integer number of tokens"),
        ({"K": True}, "integer number of tokens"),
        ({"K": 64, "K_p": 65}, "K_p=65 with K=64"),
        ({"K_p": -1}, "K_p=-1"),
        ({"K_p": 0.5}, "K_p=0.5: give an integer"),
        ({"k": 0}, "k=0: must be at least 1"),
        ({"k": True}, "k=True"),
        ({"l_idx": 0}, "l_idx=0.*layer 0"),
        ({"l_idx": "2"}, "l_idx='2'"),
        ({"image_token_start_index": -1}, "image_token_start_index=-1"),
        ({"image_token_length": 1.5}, "image_token_length=1.5"),
        ({"Kp_ratio": 1.01}, "Kp_ratio=1.01: give a number between 0 and 1"),
        ({"Kp_ratio": float("nan")}, "Kp_ratio=nan"),
        ({"k_ratio": -0.1}, "k_ratio=-0.1"),
        ({"alpha": "half"}, "alpha='half'"),
        ({"alpha": True}, "alpha=True"),
        ({"per_picture": 1}, "give True or False"),
        ({"keep_newlines": "no"}, "give True or False"),
        ({"K": 64, "K_p": 3, "Kp_ratio": 0.5}, "give one of them"),
        ({"k": 2, "k_ratio": 0.5}, "give one of them"),
        ({"distance_metric": "cosin"}, "did you mean 'cosine'"),
        ({"distance_metric": "L7"}, "use one of cosine, euclidean"),
        ({"schedule": "strong_release"}, "did you mean 'strong-release'"),
        ({"schedule": None}, "schedule=None"),
        ({"options": None}, "options=None"),
        ({"options": 3}, "options=3"),
    ],
)
def test_wrong_values_are_errors(values, message):
    with pytest.raises(ValueError, match=message):
        MoBConfig.from_dict(values)


@pytest.mark.parametrize("values", ["K=64", 64, ["K", 64]])
def test_what_is_not_a_dict_is_an_error(values):
    with pytest.raises(ValueError, match="MoB_config"):
        MoBConfig.from_dict(values)


@pytest.mark.parametrize(
    "config",
    [
        MoBConfig(),
        MoBConfig.from_dict(RELEASE),
        MoBConfig(K=0.25, alpha=0.5, k=3, l_idx=5, schedule="weak"),
        MoBConfig(K=64, K_p=8, method="random", options={"seed": 3}),
    ],
)
def test_round_trip_through_json(config):
    assert MoBConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_to_dict_is_as_short_as_possible():
    assert MoBConfig().to_dict() == {}
    assert MoBConfig.from_dict({"K": 64, "layer": None, "distance_metric": "cosine"}).to_dict() == {"K": 64}
    assert MoBConfig.from_dict({"K": 64, "layer": 2}).to_dict() == {"K": 64, "l_idx": 2}


def test_settings_cannot_be_changed_behind_their_checks():
    with pytest.raises(dataclasses.FrozenInstanceError):
        MoBConfig(K=64).K = 0


def test_rules_are_known_by_name():
    assert {"mob", "prompt", "visual", "random"} <= set(METHODS)
    assert create("random", {"seed": 3}).seed == 3 and create("random").seed == 0
    assert [create(name).name for name in METHODS] == list(METHODS)


@pytest.mark.parametrize(
    "name, options, message",
    [
        ("ramdom", {}, "did you mean 'random'"),
        ("nothing alike", {}, "known rules: .*mob"),
        (None, {}, "known rules: .*mob"),
        ("random", {"sead": 3}, "no option 'sead'; its options: seed"),
        ("prompt", {"seed": 3}, "its options: none"),
        ("visual", {"epsilom": 1.0}, "did you mean 'epsilon'"),
    ],
)
def test_wrong_rules_are_errors(name, options, message):
    with pytest.raises(ValueError, match=message):
        create(name, options)


def test_a_name_is_registered_once():
    with pytest.raises(ValueError, match="registered already"):
        register("mob")(object)
    assert METHODS["mob"] is not object


def test_alpha_counts_where_nothing_else_sets_the_prompt_centres():
    """The release notes give alpha beside Kp_ratio."""
    assert MoBConfig(K=64, alpha=0.25).budget(576).K_p == 16
    assert MoBConfig(K=64, alpha=0.25, Kp_ratio=0.5).budget(576).K_p == 32
    assert MoBConfig(K=64, alpha=0.25, K_p=7).budget(576).K_p == 7
