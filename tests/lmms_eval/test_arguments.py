"""--model_args of our models."""

from __future__ import annotations

import pytest
from lmms_eval.utils import simple_parse_args_string

from mob.flags import DEFAULT
from mob_lmms_eval import arguments

FAMILY = {"conv_template": str, "frames": int, "fps": float}


def read(text):
    """As lmms-eval hands them on."""
    return arguments.read(simple_parse_args_string(text), FAMILY)


def test_every_option_of_the_pruner():
    text = "K=64,Kp_ratio=0.5,k_ratio=0.125,layer=3,schedule=weak,per_picture=False,keep_newlines=true,method=mob"
    own, mob = read(f"pretrained=a/b,conv_template=vicuna_v1,{text}")
    assert own == {"pretrained": "a/b", "conv_template": "vicuna_v1"}
    assert mob == {
        "K": 64,
        "Kp_ratio": 0.5,
        "k_ratio": 0.125,
        "l_idx": 3,
        "schedule": "weak",
        "per_picture": False,
        "keep_newlines": True,
        "method": "mob",
    }
    assert arguments.settings(mob, {}, True)["l_idx"] == 3
    assert read("K=0.25,K_p=4,k=1,alpha=0.5,l_idx=2,distance_metric=euclidean")[1]["K_p"] == 4


def test_adaptive_budgets():
    assert read("K=64,regime=auto,tau=1.2,spread=0.02")[1] == {"K": 64, "regime": "auto", "tau": 1.2, "spread": 0.02}
    assert read('K=64,regime=auto,online={"window": 128}')[1]["online"] == {"window": 128}
    assert read("K=64,method=visual,epsilon=0.8")[1] == {"K": 64, "method": "visual", "epsilon": 0.8}
    saved = {"K": 9, "regime": "auto", "tau": 1.2}
    assert arguments.settings({"schedule": "weak"}, saved, True) == {"K": 9, "schedule": "weak"}
    with pytest.raises(ValueError, match="no use for epsilon"):
        read("K=64,method=random,epsilon=0.8")


def test_options_of_a_rule():
    assert read("K=0.25,method=random,seed=3")[1]["options"] == {"seed": 3}
    assert read("K=3,method=given,indices=[1,2,5]")[1]["options"] == {"indices": [1, 2, 5]}
    assert read('K=3,method=random,options={"seed": 4}')[1]["options"] == {"seed": 4}


@pytest.mark.parametrize(
    "text, message",
    [
        ("Kpratio=0.5", "has no 'Kpratio': did you mean 'Kp_ratio'"),
        ("pretrain=x", "did you mean 'pretrained'"),
        ("seed=3", "has no 'seed'"),
        ("method=ramdom,K=3", "did you mean 'random'"),
        ("K=1.5", "must lie between 0 and 1"),
        ("K=abc", "give an integer"),
        ("schedule=stron", "did you mean 'strong'"),
        ("K=4,K_p=8", "choose K_p <= K"),
        ("layer=0", "l_idx=0: must be at least 1"),
        ("layer=2,l_idx=3", "twice"),
        ("frames=many", "give an integer"),
        ("log_retained_patches=3", "give True or False"),
        ("mob=False,K=3", "mob=False.*drop one"),
        ("replay=x,K=3", "replay.*drop one"),
        ("K=3,method=given,indices=[1", "is not JSON"),
        ("K=3,regime=auto", "mob.coupling calibrate"),
        ("K=3,regime=weak,K_p=2", "both set K_p"),
        ("K=3,regmie=weak", "did you mean 'regime'"),
        ("zzz=1", "known: K, K_p"),
    ],
)
def test_wrong_arguments_are_one_line(text, message):
    with pytest.raises(ValueError, match=message) as raised:
        read(text)
    assert "\n" not in str(raised.value)


def test_types_follow_the_option():
    own, _ = read("pretrained=7,fps=2,frames=4")
    assert own == {"pretrained": "7", "fps": 2.0, "frames": 4} and isinstance(own["fps"], float)
    assert arguments.read({"pretrained": None, "K": 5}, FAMILY) == ({}, {"K": 5})


def test_settings_over_the_checkpoint():
    saved = {"K": 9, "l_idx": 3, "method": "random", "options": {"seed": 1}}
    assert arguments.settings({}, saved, True) == saved
    assert arguments.settings({"K": 5}, saved, True) == saved | {"K": 5}
    assert arguments.settings({"method": "mob"}, saved, True) == {"K": 9, "l_idx": 3, "method": "mob"}
    assert arguments.settings({"l_idx": 4}, None, True) == {"l_idx": 4, **DEFAULT}
    assert arguments.settings({}, saved, False) == {}
