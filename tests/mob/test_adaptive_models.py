"""Adaptive budgets as settings, and in whole models, against the slow reference."""

from __future__ import annotations

import inspect
import json
from fractions import Fraction

import pytest
import torch

import mob
import zoo
from adaptive_reference import SlowAdaptive, SlowFamily, adapted
from mob.budget import budget
from mob.config import MoBConfig, overlay
from mob.covering import select
from mob.methods import create
from mob.methods.base import Adapted
from mob.record import RetainedPatches
from tiny import NONE, ONE, PATCHES, TWO, batch, llava, pictures, prompt

# -------------------------------------------------------------------------------------------------------- settings


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"regime": "atuo"}, "did you mean 'auto'"),
        ({"regmie": "auto"}, "did you mean 'regime'"),
        ({"regime": "auto"}, "python -m mob.coupling calibrate"),
        ({"tau": 1.2}, "add regime='auto'"),
        ({"regime": "auto", "tau": 3}, "between 0 and 2"),
        ({"regime": "auto", "tau": 1.2, "K_p": 3}, "K_p both set"),
        ({"regime": "weak", "Kp_ratio": 0.5, "k": 2}, "k and Kp_ratio both set"),
        ({"regime": "strong", "schedule": "weak"}, "schedule both set"),
        ({"regime": "auto", "online": {"windwo": 100}}, "did you mean 'window'"),
        ({"regime": "auto", "online": {"window": 100, "warm_up": 200}}, "never be over"),
        ({"regime": "auto", "online": {"drift": 0.1}}, "drift is measured from a calibrated tau"),
        ({"regime": "auto", "online": 3}, "give True or False"),
        ({"epsilon": 2.5}, "between 0 and 2"),
        ({"epsilon": 1.0, "K": None}, "epsilon without K"),
    ],
)
def test_wrong_settings_are_one_line(wrong, message):
    with pytest.raises(ValueError, match=message) as raised:
        MoBConfig.from_dict({"K": 8, **wrong})
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"regime": "weak", "method": "visual"}, "no use for regime"),
        ({"epsilon": 1.0, "method": "random"}, "'random' has no use for epsilon"),
        ({"epsilon": 1.0, "options": {"epsilon": 0.5}}, "epsilon is set in options: set it beside K"),
        ({"options": {"regime": "auto", "tau": 1.2}}, "regime is set in options: set it beside K"),
        ({"options": {"tau": 3.0}}, "tau=3.0: give a distance"),
        ({"options": {"epsilon": True}}, "epsilon=True: give a distance"),
        ({"method": "random", "options": {"seed": 1.5}}, "seed=1.5: give an integer"),
        ({"method": "visual", "options": {"early": "no"}}, "early='no': give True or False"),
        (
            {"method": "divprune+mob", "options": {"divprune": {"K": 9}, "mob": {"K": 3}}},
            "K of its last rule is the K beside",
        ),
        ({"options": {"regime": "weak"}}, "settings of MoBConfig"),
        ({"method": "fastv", "K_p": 3}, "'fastv' has no use for K_p, which set prompt centres"),
        ({"method": "random", "k": 2, "alpha": 0.5}, "no use for k and alpha"),
        ({"method": "divprune", "schedule": "weak"}, "no use for schedule"),
        ({"method": "divprune", "layer": 1}, "layer=1: divprune prunes before the decoder"),
    ],
)
def test_keys_that_the_rule_has_no_use_for(wrong, message):
    with pytest.raises(ValueError, match=message):
        mob.prune(llava(torch.float32), K=8, **wrong)


def test_keys_reach_the_last_rule():
    config = MoBConfig.from_dict({"K": 8, "regime": "auto", "tau": 1.2, "spread": 0.1, "epsilon": 0.9})
    assert config.rules()[1].rule == create("mob", {"regime": "auto", "tau": 1.2, "spread": 0.1, "epsilon": 0.9})
    early, late = MoBConfig(K=8, method="visual", options={"early": True}, epsilon=0.5).rules()
    assert late is None and early[0].rule.epsilon == 0.5
    joined = MoBConfig(K=8, method="visual+mob", options={"visual": {"early": True, "K": 12}}, epsilon=0.5).rules()
    assert joined[0][0].rule.epsilon is None and joined[1].rule.epsilon == 0.5
    assert json.loads(json.dumps(config.to_dict())) == config.to_dict()
    assert MoBConfig.from_dict(config.to_dict()) == config


def test_a_rule_before_the_last_leaves_twice_as_many_unless_said():
    def kept(method, K=8, **options):
        return [one.K for one in MoBConfig(K=K, method=method, options=options).rules()[0]]

    assert kept("divprune+mob") == [16] and kept("divprune+cdpruner+mob") == [32, 16]
    assert kept("divprune+cdpruner") == [16, None]  # the last one's is the K beside
    assert kept("divprune+cdpruner+mob", cdpruner={"K": 30}) == [60, 30]
    with pytest.raises(ValueError, match="or give K as an integer"):
        kept("divprune+mob", K=0.5)
    with pytest.raises(ValueError, match="say how many tokens divprune keeps"):
        kept("divprune+cdpruner+mob", cdpruner={"K": 0.5})


def test_what_is_asked_for_later_replaces_what_it_contradicts():
    saved = {"K": 9, "regime": "auto", "tau": 1.2, "l_idx": 3}
    assert overlay(saved, {"Kp_ratio": 0.5}) == {"K": 9, "l_idx": 3, "Kp_ratio": 0.5}
    assert overlay(saved, {"method": "random"}) == {"K": 9, "l_idx": 3, "method": "random"}
    assert overlay(saved, {"method": "sparsevlm"}) == {"K": 9, "method": "sparsevlm"}  # which has layers of its own
    assert overlay(saved, {"method": "pyramiddrop", "l_idx": 2})["l_idx"] == 2  # refused later, not forgotten
    assert overlay({"K": 9, "K_p": 3, "l_idx": 3}, {"method": "divprune"}) == {"K": 9, "method": "divprune"}
    assert overlay({"K": 9, "K_p": 3}, {"method": "divprune+mob"}) == {"K": 9, "K_p": 3, "method": "divprune+mob"}
    assert overlay(saved, {"regime": "weak"}) == {**saved, "regime": "weak"}
    dart = {"K": 9, "method": "dart", "options": {"published": True}}
    assert overlay(dart, {"method": "mob"}) == {"K": 9, "method": "mob"}
    assert overlay(dart, {"method": "dart", "K": 5}) == {**dart, "K": 5}
    assert overlay({"K": 9, "kp_ratio": 0.5, "schedule": "weak"}, {"regime": "strong"}) == {"K": 9, "regime": "strong"}


# --------------------------------------------------------------------------------------------------- whole models

NEW, SAMPLES, IMAGES = 3, (ONE, TWO, NONE), (1, 2, 0)
CASES = {  # (settings, tau, spread, epsilon); K is a half, 8 of 16 tokens of every picture
    "auto": ({"regime": "auto", "tau": 1.3, "spread": 0.1}, 1.3, 0.1, None),
    "epsilon": ({"epsilon": 1.15, "Kp_ratio": 0.25, "k": 2}, None, None, 1.15),
    "both": ({"regime": "auto", "tau": 1.35, "spread": 0.05, "epsilon": 1.1}, 1.35, 0.05, 1.1),
}


def generate(model, inputs, pixels, **more):
    given = {**inputs, **more, **({} if pixels is None else {"pixel_values": pixels})}
    out = model.generate(
        **given, max_new_tokens=NEW, do_sample=False, pad_token_id=0, return_dict_in_generate=True, output_logits=True
    )
    return out, out.sequences[:, inputs["input_ids"].shape[1] :].tolist()


def test_with_a_radius_K_is_only_the_most():
    """K at or above N does not keep all: the radius decides, with the tokens that a K just below N would leave."""
    model, pixels = llava(torch.float32), pictures(3, torch.float32)

    def kept(K, **more):
        with mob.prune(model, K=K, **more) as pruning:
            _, answers = generate(model, batch(*SAMPLES), pixels)
        return [record.keep_indices for record in pruning.records], answers

    plain = generate(model, batch(*SAMPLES), pixels)[1]
    radius, _ = kept(2 * PATCHES, epsilon=1.15)
    assert [len(one) for one in radius] != [PATCHES, 2 * PATCHES, 0]
    assert kept(2 * PATCHES + 9, epsilon=1.15)[0] == radius
    assert kept(PATCHES - 1, epsilon=1.15)[0][0] == radius[0]
    everything, answers = kept(99, epsilon=0.0)
    assert [len(one) for one in everything] == [PATCHES, 2 * PATCHES, 0] and answers == plain


@pytest.mark.parametrize("attention, dtype", [("sdpa", torch.float64), ("eager", torch.float32)])
@pytest.mark.parametrize("case", CASES)
def test_generate_equals_the_reference(case, attention, dtype):
    """A padded batch of one, two and no pictures against each sample alone, without cache."""
    more, *numbers = CASES[case]
    model, pixels = llava(dtype, attention), pictures(3, dtype)
    with mob.prune(model, K=0.5, **more) as pruning:
        out, answers = generate(model, batch(*SAMPLES), pixels)
    slow, start = SlowAdaptive(model, adapted(*numbers)), 0
    for row, (ids, count) in enumerate(zip(SAMPLES, IMAGES, strict=True)):
        own = pixels[start : start + count].double() if count else None
        expected, logits = slow.generate([(ids, own, NEW)])
        start += count
        assert answers[row] == expected[0]
        got = torch.stack([step[row] for step in out.logits]).double()
        assert (got - logits[0].float().double()).abs().max() <= 1e-4 * max(1, logits[0].abs().max())
        record = pruning.records[row]
        assert record.keep_indices == slow.kept[0] and len(slow.kept[0]) == record.K
        assert RetainedPatches.from_json(record.to_json()) == record
        if more.get("epsilon"):
            assert record.adaptive.get("K_max", 0) == (PATCHES // 2 * count) and (count == 0 or record.K > 0)
        if more.get("regime"):
            assert len(record.adaptive.get("eta", [])) == count and record.K_p == sum(record.adaptive.get("K_p", [0]))
    if more.get("epsilon"):
        assert sum(record.K for record in pruning.records) < sum(IMAGES) * PATCHES // 2


@pytest.mark.parametrize("case", ["auto", "both"])
@pytest.mark.parametrize("name", ["llava_next", "llava_onevision", "qwen2_vl", "qwen3_vl"])
def test_families(name, case):
    """Tiles, videos and pictures of unlike sizes, in one padded batch."""
    family = zoo.FAMILIES[name]
    more, *numbers = CASES[case]
    model = family.model()
    with mob.prune(model, K=0.5, layer=family.layer, **more) as pruning, torch.no_grad():
        logits = model(**zoo.collate(family.samples())).logits
    slow = SlowFamily(model, adapted(*numbers), Fraction(1, 2), layer=family.layer, attends=family.attends)
    for row, sample in enumerate(family.samples()):
        inputs = zoo.one(sample)
        exact = slow.run(inputs, [(0, inputs["input_ids"].shape[1])], [zoo.lengths(sample)])[-1]
        assert pruning.records[row].keep_indices == slow.kept[0]
        assert (logits[row, -1] - exact).abs().max() <= 1e-5 * max(1.0, exact.abs().max())


@pytest.mark.parametrize("case", CASES)
def test_second_turn(case):
    more, *numbers = CASES[case]
    model, pixels = llava(torch.float64), pictures(2)
    turn = prompt(42, "image", 43, 44)
    with mob.prune(model, K=0.5, **more) as pruning:
        first, answer = generate(model, {"input_ids": torch.tensor([ONE])}, pixels[:1])
        ids = torch.cat([first.sequences, torch.tensor([turn])], 1)
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        out, last = generate(model, inputs, pixels[1:], past_key_values=first.past_key_values)
    slow = SlowAdaptive(model, adapted(*numbers))
    expected, logits = slow.generate([(ONE, pixels[:1], NEW), (turn, pixels[1:], NEW)])
    assert [answer[0], last[0]] == expected
    assert (torch.stack(out.logits, 1)[0] - logits[1].float()).abs().max() < 1e-4
    assert [record.keep_indices for record in pruning.records] == slow.kept


@pytest.mark.parametrize("regime, tau", [("strong", 2.0), ("weak", 0.0)])
def test_auto_far_from_tau_is_the_schedule(regime, tau):
    model = llava(torch.float32)
    inputs = {**batch(ONE, prompt(1, "image", 30)), "pixel_values": pictures(2, torch.float32)}
    records = []
    given = ({"regime": "auto", "tau": tau, "spread": 0.001}, {"regime": regime}, {"schedule": regime})
    for more in given:
        with mob.prune(model, K=6, **more) as pruning, torch.no_grad():
            model(**inputs)
        records.append([(r.keep_indices, r.prompt_center, r.K_p, r.k) for r in pruning.records])
    assert records[0] == records[1] == records[2]


def test_everything_kept_is_bit_identical():
    model, inputs = llava(torch.float32), {**batch(ONE), "pixel_values": pictures(1, torch.float32)}
    with torch.no_grad():
        plain = model(**inputs).logits
        for more in ({"regime": "auto", "tau": 1.2}, {"regime": "strong"}):
            with mob.prune(model, K=PATCHES, **more) as pruning:
                assert torch.equal(model(**inputs).logits, plain)
            assert pruning.records[0].adaptive == {} and pruning.records[0].K == PATCHES


@pytest.mark.parametrize("layer", ["early", "within"])
def test_visual_with_a_radius(layer):
    model, inputs = llava(torch.float32), {**batch(ONE, TWO), "pixel_values": pictures(3, torch.float32)}
    options = {"early": True} if layer == "early" else {}
    if layer == "early" and "mm_encoder_outputs" not in inspect.signature(type(model.model).forward).parameters:
        pytest.skip("rules before the decoder need encoded pictures")
    counts = {}
    for epsilon in (0.2, 1.0, 2.0):
        with mob.prune(model, K=0.75, method="visual", epsilon=epsilon, options=options) as pruning, torch.no_grad():
            model(**inputs)
        counts[epsilon] = [record.K for record in pruning.records]
    assert counts[0.2] == [12, 24] and counts[2.0] == [1, 2]  # one of every picture stays
    assert all(one <= whole for one, whole in zip(counts[1.0], (12, 24), strict=True))


def test_a_rule_that_answers_unevenly_does_so_last():
    class Uneven:
        name = "uneven"

        def plan(self, N, K, depth):
            return [(2, N - 1), (3, K)]

        def select(self, view, budget):
            return Adapted(*select(view.visual, view.prompt, budget.K, 0, 1, epsilon=2.0), {})

    from mob.methods.base import METHODS

    model, inputs = llava(torch.float32), {**batch(ONE), "pixel_values": pictures(1, torch.float32)}
    METHODS["uneven"] = type("Registered", (Uneven,), {"__dataclass_fields__": {}})
    try:
        with mob.prune(model, K=6, method="uneven"), pytest.raises(ValueError, match="last stage only"):
            model(**inputs)
    finally:
        del METHODS["uneven"]


# ---------------------------------------------------------------------------------------------------------- online


def test_online_follows_the_passes_before():
    model = llava(torch.float32)
    inputs = {**batch(ONE), "pixel_values": pictures(1, torch.float32)}
    with mob.prune(model, K=8, regime="auto", online={"window": 120, "warm_up": 100}) as pruning, torch.no_grad():
        model(**inputs)
        first = pruning.records[-1]
        assert "tau" not in first.adaptive and (first.K_p, first.k) == (budget(16, 8).K_p, budget(16, 8).k)
        state = pruning._running
        state.add(torch.tensor([0.5, 0.51, 0.52, 1.8, 1.81, 1.82] * 20))
        model(**inputs)
    last = pruning.records[-1]
    assert last.adaptive["tau"] == pytest.approx((0.52 + 1.8) / 2, abs=1e-6) and len(last.adaptive["K_p"]) == 1


def test_online_sees_the_eta_of_every_picture():
    model = llava(torch.float32)
    with mob.prune(model, K=8, regime="auto", tau=1.2, online=True) as pruning, torch.no_grad():
        for seed in range(4):
            model(**batch(ONE, TWO), pixel_values=pictures(3, torch.float32, seed))
        state = pruning._running
    state.settle()
    logged = [eta for one in pruning.records for eta in one.adaptive["eta"]]
    assert len(logged) == 12 and list(state._etas) == pytest.approx(logged, abs=1e-6)


def test_the_padding_of_a_prompt_has_no_part_in_eta():
    """Prompts of unequal lengths with equal budgets: each as if alone."""
    model, short, long = llava(torch.float32), prompt(1, "image", 30), prompt(1, 20, 21, "image", *range(30, 38))
    pixels, alone = pictures(2, torch.float32), []
    with mob.prune(model, K=8, regime="auto", tau=1.2, spread=0.1) as pruning, torch.no_grad():
        model(**batch(short, long), pixel_values=pixels)
        together = [(one.keep_indices, one.adaptive) for one in pruning.records]
        for row, sample in enumerate((short, long)):
            pruning.clear()
            model(**batch(sample), pixel_values=pixels[row : row + 1])
            alone += [(one.keep_indices, one.adaptive) for one in pruning.records]
    for (kept, adaptive), (its, own) in zip(together, alone, strict=True):
        assert kept == its and adaptive["K_p"] == own["K_p"]
        assert adaptive["eta"] == pytest.approx(own["eta"], abs=1e-5)


def test_a_radius_before_the_decoder_is_logged_with_its_stage():
    model = llava(torch.float32)
    if "mm_encoder_outputs" not in inspect.signature(model.forward).parameters:
        pytest.skip("this transformers takes no encoded pictures")
    with mob.prune(model, K=12, method="visual", options={"early": True}, epsilon=1.0) as pruning, torch.no_grad():
        model(**batch(ONE), pixel_values=pictures(1, torch.float32))
    (stage,) = pruning.records[0].stages
    assert (stage["epsilon"], stage["K_max"]) == (1.0, 12) and stage["K"] == pruning.records[0].K < 12
    assert stage["radius"] <= 1.0 + 1e-6


@pytest.mark.parametrize("regime", ["strong", "weak"])
def test_fixed_regimes_are_logged(regime):
    model = llava(torch.float32)
    with mob.prune(model, K=8, regime=regime) as pruning, torch.no_grad():
        model(**batch(ONE), pixel_values=pictures(1, torch.float32))
    assert pruning.records[0].adaptive == {"regime": regime}


def test_online_starts_at_the_calibrated_threshold():
    model = llava(torch.float32)
    inputs = {**batch(ONE), "pixel_values": pictures(1, torch.float32)}
    given = {"regime": "auto", "tau": 1.2, "spread": 0.1}
    kept = []
    for more in ({}, {"online": True}):
        with mob.prune(model, K=8, **given, **more) as pruning, torch.no_grad():
            model(**inputs)
        kept.append((pruning.records[0].keep_indices, pruning.records[0].adaptive))
    assert kept[0] == kept[1]
