"""Two modes of eta: the split, whether there are two, the running threshold, and the command."""

from __future__ import annotations

import copy
import json
import math
import os
import pickle
import subprocess
import sys
from collections import deque

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlavaForConditionalGeneration

import mob
from llava.scenes import evaluate
from llava.scenes.checkpoint import PATH
from llava.scenes.questions import WEAK
from mob.config import MoBConfig
from mob.coupling import OnlineSplit, split
from mob.coupling.__main__ import etas, main
from mob.flags import resolve
from mob.record import RetainedPatches
from tiny import ONE, TWO, batch, llava, pictures

quick = settings(max_examples=60, deadline=None, derandomize=True)
numbers = st.lists(st.floats(0, 2, width=32), min_size=1, max_size=40)


def two(count=100, gap=0.3, share=0.5, seed=0, sigma=0.03):
    """Two clear modes, at 1 and 1 + gap."""
    random = np.random.default_rng(seed)
    upper = round(count * share)
    return [*random.normal(1.0, sigma, count - upper), *random.normal(1.0 + gap, sigma, upper)]


def one(count=100, seed=0):
    return list(np.random.default_rng(seed).normal(1.0, 0.1, count))


@quick
@given(numbers)
def test_no_other_cut_leaves_less_variance(values):
    modes = split(values)
    data = np.sort(np.asarray(values, dtype=np.float64))

    def within(cut):
        return sum(((part - part.mean()) ** 2).sum() for part in (data[:cut], data[cut:]))

    cuts = [cut for cut in range(1, len(data)) if data[cut] > data[cut - 1]]
    if not cuts:
        assert modes.tau == data[0] and modes.reason
        return
    got = int((data <= modes.tau).sum())
    assert got in cuts
    assert within(got) <= min(map(within, cuts)) + 1e-9
    assert modes.low <= modes.tau <= modes.high and modes.share == pytest.approx(1 - got / len(data))


@quick
@given(numbers, st.randoms(use_true_random=False))
def test_the_order_does_not_matter(values, random):
    mixed = list(values)
    random.shuffle(mixed)
    assert split(mixed) == split(values)


@pytest.mark.parametrize("count, share, seed", [(100, 0.5, 0), (300, 0.2, 1), (60, 0.7, 2), (3000, 0.4, 3)])
def test_two_modes_are_found(count, share, seed):
    modes = split(two(count, share=share, seed=seed))
    assert modes.separated and 1.08 < modes.tau < 1.22
    assert modes.low == pytest.approx(1.0, abs=0.02) and modes.high == pytest.approx(1.3, abs=0.02)
    weights = [
        1 / (1 + math.exp(-(at - (modes.low + modes.high) / 2) / modes.spread)) for at in (modes.low, modes.high)
    ]
    assert weights == pytest.approx([0.05, 0.95])


def test_one_mode_is_seldom_taken_for_two():
    """At most one in twenty of any of these; the limit leaves room for chance."""
    random = np.random.default_rng(0)
    draws = {"normal": random.normal, "uniform": random.uniform, "skewed": random.gumbel}
    for name, draw in draws.items():
        for count in (60, 150, 600):
            found = sum(split(draw(size=count)).separated for _ in range(100))
            assert found <= 14, (name, count)


@pytest.mark.parametrize(
    "values, reason",
    [
        ([1.0, 2.0] * 10, "20 values"),
        ([1.0] * 99 + [2.0], "less than a tenth"),
        ([1.0] * 182 + [2.0] * 18, "less than a tenth"),
        (one(200), "one mode explains"),
    ],
)
def test_why_there_are_not_two(values, reason):
    assert reason in split(values).reason


def test_a_tenth_is_enough():
    assert split([*np.linspace(1.0, 1.1, 178), *np.linspace(2.0, 2.1, 22)]).separated


@pytest.mark.parametrize("wrong", [[], [1.0, float("nan")], [float("inf")]])
def test_what_is_no_eta(wrong):
    with pytest.raises(ValueError, match="give numbers"):
        split(wrong)


# ---------------------------------------------------------------------------------------------------------- running


def run(online, values, size=7):
    """tau after every batch."""
    out = []
    for start in range(0, len(values), size):
        online.add(torch.tensor(values[start : start + size]))
        out.append(online.settle()[0])
    return out


def shuffled(values, seed=0):
    return np.random.default_rng(seed).permutation(values).tolist()


@quick
@given(st.lists(st.floats(0, 2, width=32), max_size=127), st.one_of(st.none(), st.floats(0.5, 1.5)))
def test_nothing_moves_before_the_warm_up_is_over(values, tau0):
    assert set(run(OnlineSplit(tau0, 0.1 if tau0 else None), values)) <= {tau0}


def test_after_the_warm_up_there_is_a_threshold():
    online = OnlineSplit(window=128, warm_up=100)
    seen = run(online, shuffled(two(200)), 1)
    assert seen[:99] == [None] * 99 and 1.05 < seen[-1] < 1.25 and online.spread > 0
    assert len(online._etas) == 128


@settings(max_examples=15, deadline=None, derandomize=True)
@given(st.integers(0, 1000), st.floats(0.2, 0.8), st.floats(0.001, 0.1), st.floats(0.0, 0.2))
def test_steps_are_larger_than_the_hysteresis_and_drift_is_bounded(seed, gap, hysteresis, drift):
    tau0 = 1.1
    online = OnlineSplit(tau0, 0.05, window=110, warm_up=100, hysteresis=hysteresis, drift=drift)
    seen = [tau0, *run(online, shuffled(two(240, gap, seed=seed), seed))]
    for before, after in zip(seen, seen[1:], strict=False):
        assert after == before or abs(after - before) > hysteresis
        assert abs(after - tau0) <= drift + 1e-12
    assert online.spread == 0.05


@settings(max_examples=15, deadline=None, derandomize=True)
@given(st.integers(0, 1000))
def test_each_threshold_is_what_the_window_says(seed):
    """A slow version: the split of the last values, where these and both halves show two modes and it is far enough."""
    values, tau, window = shuffled(two(250, 0.25, seed=seed), seed), None, deque(maxlen=120)
    online = OnlineSplit(window=120, warm_up=100, hysteresis=0.005)
    for start in range(0, len(values), 10):
        part = torch.tensor(values[start : start + 10])
        online.add(part)
        window.extend(part.tolist())
        if len(window) >= 100:
            modes, *halves = (split(list(window)[first::step]) for first, step in ((0, 1), (0, 2), (1, 2)))
            if not any(part.reason for part in (modes, *halves)) and (tau is None or abs(modes.tau - tau) > 0.005):
                tau = modes.tau
        assert online.settle()[0] == tau


def test_one_mode_moves_nothing():
    assert set(run(OnlineSplit(1.0, 0.1, warm_up=100), one(200, seed=4))) == {1.0}


def test_one_mode_is_seldom_taken_for_two_however_often_one_looks():
    found = [run(OnlineSplit(), np.random.default_rng(seed).uniform(0, 1, 800))[-1] for seed in range(20)]
    assert sum(tau is not None for tau in found) <= 3


@pytest.mark.parametrize("apart, least", [(2, 0), (4, 10)])
def test_how_far_apart_two_modes_have_to_be(apart, least):
    """Two normal modes of equal size: not told apart at two standard deviations, always at four."""
    found = 0
    for seed in range(10):
        random = np.random.default_rng(seed)
        etas = random.normal(1.5, 0.03, 800) + apart * 0.03 * (random.random(800) < 0.5)
        found += run(OnlineSplit(), etas)[-1] is not None
    assert found == least


def test_a_calibrated_threshold_keeps_its_spread():
    online = OnlineSplit(1.3, None, window=100, warm_up=100)
    assert run(online, shuffled(two(200)))[-1] != 1.3 and online.spread is None


def test_the_threshold_follows_the_data():
    online = OnlineSplit(window=100, warm_up=100)
    first = run(online, shuffled(two(200)))[-1]
    last = run(online, [value + 0.4 for value in shuffled(two(200))])[-1]
    assert last - first == pytest.approx(0.4, abs=0.06)


def test_nan_is_left_out_and_state_can_be_copied():
    online = OnlineSplit(warm_up=100)
    online.add(torch.tensor([float("nan"), 1.0]))
    for same in (copy.deepcopy(online), pickle.loads(pickle.dumps(online))):
        same.settle()
        assert list(same._etas) == [1.0]
    assert not online._etas


# ---------------------------------------------------------------------------------------------------------- command


def record(eta, **more):
    return RetainedPatches(grids=[[[4, 4]]], N=16, eta=eta, **more).to_dict()


def write(folder, values, **more):
    file = folder / "log.jsonl"
    lines = [json.dumps({"question_id": i, "retained_patches": record(eta, **more)}) for i, eta in enumerate(values)]
    file.write_text("\n".join(lines) + "\n")
    return file


def test_calibrate_saves_into_a_models_folder(tmp_path, capsys):
    model = tmp_path / "model"
    model.mkdir()
    config = {"model_type": "llava", "MoB_config": {"K": 64, "Kp_ratio": 0.5, "l_idx": 2}, "other": [1]}
    (model / "config.json").write_text(json.dumps(config))
    assert main(["calibrate", str(write(tmp_path, two())), "--save", str(model)]) == 0
    saved = json.loads((model / "config.json").read_text())
    settings_ = saved.pop("MoB_config")
    assert saved == {"model_type": "llava", "other": [1]}
    assert set(settings_) == {"K", "l_idx", "regime", "tau", "spread"}
    assert (settings_["regime"], settings_["l_idx"]) == ("auto", 2)
    assert settings_["tau"] == pytest.approx(split(two()).tau, abs=1e-6)
    assert MoBConfig.from_dict(settings_).rules()[1].rule.tau == settings_["tau"]
    assert [file.name for file in model.iterdir()] == ["config.json"]
    said = capsys.readouterr().out
    assert "100 etas: 50 up to tau" in said and "separation" in said and "^ tau" in said


def test_calibrate_saves_what_mob_config_takes(tmp_path):
    target = tmp_path / "tau.json"
    assert main(["calibrate", str(write(tmp_path, two())), "--save", str(target)]) == 0

    class Args:
        mob_config = target

    assert resolve(Args, {"K": 9, "schedule": "weak"}, False) == {"K": 9, **json.loads(target.read_text())}


def test_one_mode_is_not_saved_unless_forced(tmp_path, capsys):
    target, log = tmp_path / "tau.json", str(write(tmp_path, one(200)))
    assert main(["calibrate", log, "--save", str(target)]) == 1
    assert not target.exists() and "not two modes" in capsys.readouterr().out
    assert main(["calibrate", log, "--save", str(target), "--force"]) == 0
    assert json.loads(target.read_text())["tau"] == pytest.approx(1.0, abs=0.05)


@pytest.mark.parametrize(
    "make, words, message",
    [
        (lambda f: write(f, two()), ["--save", "nowhere"], "no such folder"),
        (lambda f: write(f, [None, None]), [], "no eta"),
        (lambda f: f / "absent.jsonl", [], "cannot read"),
    ],
)
def test_what_is_wrong_is_one_line(make, words, message, tmp_path, capsys):
    words = [str(tmp_path / word) if word == "nowhere" else word for word in words]
    assert main(["calibrate", str(make(tmp_path)), *words]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_a_broken_config_is_left_alone(tmp_path, capsys):
    log = str(write(tmp_path, two()))
    (tmp_path / "config.json").write_text("[1")
    assert main(["calibrate", log, "--save", str(tmp_path)]) == 2
    assert (tmp_path / "config.json").read_text() == "[1" and "cannot read" in capsys.readouterr().err
    (tmp_path / "config.json").write_text('{"MoB_config": {"regmie": 1}}')
    assert main(["calibrate", log, "--save", str(tmp_path)]) == 2
    assert "did you mean 'regime'" in capsys.readouterr().err


def test_layers_are_not_mixed():
    with pytest.raises(ValueError, match="layer 2 and layer 3"):
        etas([RetainedPatches(eta=1.0), RetainedPatches(eta=1.1, layer=3)])
    before = [{"method": "divprune", "layer": 0, "N": 16, "K": 8}]
    with pytest.raises(ValueError, match="layer 2 and layer 2 after divprune"):
        etas([RetainedPatches(eta=1.0), RetainedPatches(eta=1.1, stages=before)])
    few = [{**before[0], "K": 4}]
    with pytest.raises(ValueError, match="behind 'divprune' with different K"):
        etas([RetainedPatches(eta=1.0, stages=few), RetainedPatches(eta=1.1, stages=before)])
    share = [{**before[0], "N": 9, "K": 5}]  # half of nine, rounded
    assert etas([RetainedPatches(eta=1.0, stages=share), RetainedPatches(eta=1.1, stages=before)])[3] == ("divprune",)
    with pytest.raises(ValueError, match="'pyramiddrop', which had pruned at layer 3 before"):
        etas([RetainedPatches(eta=1.0, method="pyramiddrop", stages=[{**before[0], "layer": 3}])])


@pytest.mark.parametrize(
    "saved, message",
    [
        ({"K": 64, "method": "dart"}, "rule 'dart' has no use for regime"),
        ({"K": 64, "l_idx": 3}, "prunes at layer 3, these logs are of layer 2"),
        ({"K": 64, "layer": 3}, "prunes at layer 3, these logs are of layer 2"),
        (
            {"K": 64, "method": "divprune+mob", "options": {"divprune": {"K": 0.5}}},
            "prunes by divprune before the decoder, these logs were taken behind no",
        ),
    ],
)
def test_nothing_is_saved_that_could_not_be_used(saved, message, tmp_path, capsys):
    log, file = str(write(tmp_path, two())), tmp_path / "config.json"
    file.write_text(text := json.dumps({"MoB_config": saved}))
    assert main(["calibrate", log, "--save", str(tmp_path)]) == 2
    assert message in capsys.readouterr().err and file.read_text() == text


def test_tau_behind_a_rule_is_saved_where_that_rule_is(tmp_path, capsys):
    log = str(write(tmp_path, two(), stages=[{"method": "divprune", "layer": 0, "N": 16, "K": 8}]))
    file = tmp_path / "config.json"
    file.write_text(json.dumps({"MoB_config": {"K": 64}}))
    assert main(["calibrate", log, "--save", str(tmp_path)]) == 2
    assert "these logs were taken behind divprune" in capsys.readouterr().err
    file.write_text(
        json.dumps({"MoB_config": {"K": 64, "method": "divprune+mob", "options": {"divprune": {"K": 0.5}}}})
    )
    assert main(["calibrate", log, "--save", str(tmp_path)]) == 0
    assert json.loads(file.read_text())["MoB_config"]["regime"] == "auto"


def test_eta_of_records_of_a_model():
    """Of one picture the sample's own; of several, those that a rule saw."""
    model = llava(torch.float32)
    inputs = {**batch(ONE, TWO), "pixel_values": pictures(3, torch.float32)}
    for more, count in (({}, 1), ({"regime": "auto", "tau": 1.3}, 3)):
        with mob.prune(model, K=8, **more) as pruning, torch.no_grad():
            model(**inputs)
        values, left, layer, _ = etas(pruning.records)
        assert layer == 2 and len(values) == count and sum(left.values()) == (count == 1)
        assert values[0] == pytest.approx(pruning.records[0].eta, abs=1e-5)


def test_the_command_prints_plainly_where_it_must(tmp_path):
    log = str(write(tmp_path, two()))
    command = [sys.executable, "-m", "mob.coupling", "calibrate", log]
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONWARNINGS": "error::RuntimeWarning:runpy"}
    done = subprocess.run(command, capture_output=True, env=environment, timeout=120)
    assert done.returncode == 0 and b"tau 1." in done.stdout and not done.stderr
    assert done.stdout.isascii()


def test_eta_of_the_embedded_checkpoint_tells_its_questions_apart(tmp_path, capsys):
    """Of real records: questions about one object lie above the threshold, those about the whole picture below."""
    model = LlavaForConditionalGeneration.from_pretrained(PATH, dtype=torch.float32).eval()
    asked = evaluate.questions(8)
    lines = []
    with mob.prune(model, K=22) as pruning, torch.no_grad():
        for _, inputs in evaluate.batches(asked, 36):
            model(**inputs)
    for one, kept in zip(asked, pruning.records, strict=True):
        lines.append(json.dumps({"task": one.question.task, "retained_patches": kept.to_dict()}))
    (tmp_path / "log.jsonl").write_text("\n".join(lines))
    target = tmp_path / "tau.json"
    assert main(["calibrate", str(tmp_path / "log.jsonl"), "--save", str(target), "--force"]) == 0
    tau = json.loads(target.read_text())["tau"]
    pairs = zip(asked, pruning.records, strict=True)
    right = [(kept.eta > tau) == (one.question.task in WEAK) for one, kept in pairs]
    assert sum(right) / len(right) > 0.75  # of eight scenes only, whose etas go together; of many scenes 0.94
    assert f"{len(asked)} etas" in capsys.readouterr().out
