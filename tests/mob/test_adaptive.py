"""Budgets that follow each picture: K_p and k from eta, and a radius that ends the selection."""

from __future__ import annotations

import contextlib
import inspect
import json
import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import mob
import reference
import zoo
from mob import farthest
from mob.budget import between, budget, prompt_share
from mob.config import MoBConfig, overlay
from mob.coupling import radii, weak_weight
from mob.covering import Ragged, Selection, cosines, prompt_centers, select, unit_rows
from mob.farthest import NEVER, demanded_rows, gram_rows, in_blocks, loop
from mob.methods import create
from mob.methods.base import Adapted, SpanView
from mob.record import RetainedPatches
from tiny import NONE, ONE, PATCHES, TWO, batch, llava, pictures, prompt

quick = settings(max_examples=40, deadline=None, derandomize=True)


def rows(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# ------------------------------------------------------------------------------------------------------- K_p and k


@quick
@given(st.integers(1, 3000), st.integers(1, 3000), st.sampled_from([0.0, 1.0]))
def test_the_ends_are_the_papers_schedules(N, K, weight):
    K = min(K, N)
    whole = budget(N, K, schedule="weak" if weight else "strong")
    K_p, k = between(N, K, torch.tensor([weight], dtype=torch.float64))
    assert (int(K_p), int(k)) == (whole.K_p, whole.k)


@quick
@given(st.integers(1, 3000), st.integers(1, 3000), st.integers(0, 64))
def test_between_the_ends_shares_are_interpolated_and_rounded_half_up(N, K, step):
    """Against exact fractions; weights of 1/64 are exact in floats too."""
    K, w = min(K, N), Fraction(step, 64)
    strong, weak = prompt_share(N, K, "strong"), prompt_share(N, K, "weak")
    share = K * (strong + w * (weak - strong))
    if abs(share % 1 - Fraction(1, 2)) < Fraction(1, 10**9) and share % 1 != Fraction(1, 2):
        return
    K_p = math.floor(share + Fraction(1, 2))
    k = max(1, math.floor(K_p * (Fraction(3, 40) + w * Fraction(2, 40)) + Fraction(1, 2)))
    got = between(N, K, torch.tensor([step / 64], dtype=torch.float64))
    half = share % 1 == Fraction(
        1, 2
    )  # a share such as 1/3 times the weight is not exact: the half may fall either way
    assert int(got[0]) in ({K_p - 1, K_p} if half and 0 < step < 64 else {K_p})
    if int(got[0]) == K_p:
        assert int(got[1]) == k


@quick
@given(st.integers(1, 700), st.integers(1, 700), st.floats(0, 1), st.floats(0, 1))
def test_more_weight_never_means_fewer_prompt_centres(N, K, a, b):
    K = min(K, N)
    K_p, k = between(N, K, torch.tensor(sorted([a, b]), dtype=torch.float64))
    assert K_p[0] <= K_p[1] <= budget(N, K, schedule="weak").K_p <= K and 1 <= k[0] <= k[1]


def test_the_weight_is_logistic_in_eta():
    eta = torch.tensor([0.0, 1.2, 1.25, 1.3, 2.0, float("nan")])
    weight = weak_weight(eta, 1.25, 0.05).tolist()
    expected = [1 / (1 + math.exp(-(e - 1.25) / 0.05)) for e in (0, 1.2, 1.25, 1.3, 2)]
    assert weight[:5] == pytest.approx(expected, abs=1e-6) and weight[5] == 0
    assert weak_weight(eta, 1.25, 0.0).tolist() == [0, 0, 0, 1, 1, 0]  # tau itself is strong


@quick
@given(st.integers(0, 10**6))
def test_numbers_for_each_sample_equal_one_call_for_each(seed):
    generator = torch.Generator().manual_seed(seed)
    visual, text = rows(5, 18, 8, seed=seed), rows(5, 4, 8, seed=seed + 1)
    mask = torch.arange(4) < torch.randint(0, 5, (5, 1), generator=generator)
    K_p, k = torch.randint(0, 9, (5,), generator=generator), torch.randint(1, 6, (5,), generator=generator)
    for epsilon in (None, 1.1):
        got = select(visual, text, 8, K_p, k, prompt_mask=mask, epsilon=epsilon)
        bounded = select(visual, text, 8, K_p, k, prompt_mask=mask, epsilon=epsilon, at_most=int(K_p.max()))
        for row in range(5):
            alone = select(
                visual[row], text[row], 8, int(K_p[row]), int(k[row]), prompt_mask=mask[row], epsilon=epsilon
            )
            one = select(visual[row], text[row], 8, K_p[row], k[row], prompt_mask=mask[row], epsilon=epsilon)
            for a, b, c, d in zip(got, alone, bounded, one, strict=True):
                assert torch.equal(a[row], b) and torch.equal(c[row], b) and torch.equal(d, b)


def test_numbers_outside_are_cut_off_and_wrong_tensors_are_errors():
    visual, text = rows(2, 9, 4), rows(2, 3, 4, seed=1)
    wide = select(visual, text, 5, torch.tensor([99, -3]), torch.tensor([0, 99]))
    assert torch.equal(wide.indices[0], select(visual[0], text[0], 5, 5, 1).indices)
    assert torch.equal(wide.indices[1], select(visual[1], text[1], 5, 0, 9).indices)
    for wrong in (torch.tensor([1.0, 2.0]), torch.tensor([1, 2, 3])):
        with pytest.raises(ValueError, match="give one integer for each sample"):
            select(visual, text, 5, wrong, 2)


def test_adaptive_numbers_never_wait_for_the_device(monkeypatch):
    """Tensors on "meta" have no values: whatever reads one on the host raises."""
    monkeypatch.setattr(torch, "autocast", lambda *a, **k: contextlib.nullcontext())  # meta has no autocast
    view = SpanView(torch.empty(3, 50, 8, device="meta"), torch.empty(3, 4, 8, device="meta"))
    for epsilon in (None, 1.0):
        got = create("mob", {"regime": "auto", "tau": 1.2, "epsilon": epsilon}).select(view, budget(50, 20))
        assert got.indices.shape == (3, 20) and got.asked["K_p"].shape == (3,)


def test_prompt_centres_of_unlike_numbers():
    units, text = unit_rows(rows(3, 12, 6)), unit_rows(rows(3, 4, 6, seed=1))
    counts = torch.tensor([0, 3, 7])
    found = prompt_centers(units, text, counts, torch.tensor([1, 2, 9]), None, None)
    assert found.sum(1).tolist() == [0, 3, 7]


# --------------------------------------------------------------------------------------------------------- epsilon


def prefix(visual, text, K, K_p, k, epsilon):
    """The prompt centres, and then the shortest prefix of the farthest-point order that covers to epsilon."""
    order, centres = farthest_order(visual, text, K, K_p, k)
    start = max(len(centres), 1)
    for count in range(start, len(order) + 1):
        if radius(visual, order[:count]) <= epsilon:
            break
    kept = sorted(order[:count])
    return kept, [v in centres for v in kept]


def farthest_order(visual, text, K, K_p, k):
    """Prompt centres, then tokens in the order in which smaller and larger K take them."""
    K = min(K, len(visual))
    full, flags = reference.select(visual, text, K, K_p, k)
    centres = [v for v, flag in zip(full, flags, strict=True) if flag]
    order = list(centres)
    if not order:
        order = reference.select(visual, text, 1, 0, 1)[0]
    while len(order) < K:
        rest = [v for v in range(len(visual)) if v not in order]
        order.append(max(rest, key=lambda v: (min(1 - reference.cosine(visual[v], visual[c]) for c in order), -v)))
    assert sorted(order) == full
    return order, centres


def radius(visual, chosen):
    return max(min(math.sqrt(max(0, 2 - 2 * reference.cosine(v, visual[c]))) for c in chosen) for v in visual)


def listed(selection):
    """(indices, prompt centres) of one sample, those that are kept."""
    real = selection.real.tolist()
    return tuple([v for v, r in zip(part.tolist(), real, strict=True) if r] for part in selection[:2])


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.integers(0, 10**6), st.sampled_from([0.0, 0.4, 0.7, 0.9, 1.0, 1.1, 1.2, 1.3, 1.41, 2.0]))
def test_epsilon_keeps_the_shortest_prefix_that_covers(seed, epsilon):
    generator = torch.Generator().manual_seed(seed)

    def pick(low, high):
        return int(torch.randint(low, high + 1, (1,), generator=generator))

    N, L, d, K = pick(1, 24), pick(0, 4), pick(2, 8), pick(1, 26)
    K_p, k = pick(0, K), pick(1, 4)
    visual, text = rows(N, d, seed=seed), rows(L, d, seed=seed + 1)
    if seed % 3 == 0:
        visual = visual[torch.randint(0, N // 2 + 1, (N,), generator=generator)]
    got = select(visual, text, K, K_p, k, epsilon=epsilon)
    assert isinstance(got, Ragged) and got.indices.shape == (min(K, N),)
    assert listed(got) == tuple(prefix(visual.double().numpy(), text.double().numpy(), K, K_p, k, epsilon))
    assert len(set(got.indices.tolist())) == min(K, N)
    real = got.real.tolist()
    assert real[0] and real == sorted(real, reverse=True)


def test_a_smaller_radius_never_keeps_fewer():
    visual, text = rows(60, 6), rows(3, 6, seed=1)
    counts = [int(select(visual, text, 40, 4, 2, epsilon=e).real.sum()) for e in np.linspace(0, 2, 21)]
    assert counts == sorted(counts, reverse=True) and counts[0] == 40 and counts[-1] == 4


def test_a_batch_stops_where_its_samples_stop():
    visual = torch.cat([rows(2, 40, 6), 0.2 * rows(2, 40, 6, seed=5) + rows(1, 1, 6, seed=6)])
    text, mask = rows(4, 3, 6, seed=1), torch.arange(3) < torch.tensor([[3], [0], [2], [1]])
    seen = torch.arange(40) < torch.tensor([[40], [33], [40], [25]])
    got = select(visual, text, 24, 5, 2, epsilon=0.9, visual_mask=seen, prompt_mask=mask)
    counts = got.real.sum(1).tolist()
    assert len(set(counts)) > 2
    for row in range(4):
        alone = select(visual[row][seen[row]], text[row][mask[row]], 24, 5, 2, epsilon=0.9)
        assert listed(Ragged(*(part[row] for part in got))) == listed(alone)


@pytest.mark.parametrize("stop", [0.05, 0.3, 0.6, 1.9])
def test_all_ways_stop_alike(stop):
    units = unit_rows(rows(3, 80, 12))
    taken = torch.zeros(3, 80, dtype=torch.bool).index_fill(1, torch.tensor([3]), True)
    distance = (1 - cosines(units, units[:, 3:4])[..., 0]).masked_fill(taken, NEVER)
    ways = [loop(taken, distance, 50, 49, make(units), stop) for make in (gram_rows, demanded_rows)]
    ways.append(in_blocks(units, taken, distance, 50, stop))
    assert torch.equal(ways[0], ways[1]) and torch.equal(ways[0], ways[2])


@pytest.mark.parametrize("gram", [True, False])
def test_accelerators_stop_alike_and_leave_the_kernel_alone(gram, monkeypatch):
    units = unit_rows(rows(3, 80, 12))
    taken = torch.zeros(3, 80, dtype=torch.bool).index_fill(1, torch.tensor([3]), True)
    distance = (1 - cosines(units, units[:, 3:4])[..., 0]).masked_fill(taken, NEVER)
    monkeypatch.setattr(farthest, "makes_gram", lambda *sizes: gram)
    monkeypatch.setattr(farthest, "triton_kernel", lambda units: pytest.fail("the kernel knows no radius"))
    got = farthest.on_accelerator(units, taken, distance, 50, 49, 0.5)
    assert torch.equal(got, loop(taken, distance, 50, 49, gram_rows(units), 0.5)) and int(got.sum(1).min()) < 50


def test_without_epsilon_nothing_is_ragged():
    assert type(select(rows(9, 4), rows(2, 4), 4, 2, 1)) is Selection
    with pytest.raises(ValueError, match="between 0 and 2"):
        select(rows(9, 4), rows(2, 4), 4, 2, 1, epsilon=2.5)


def test_radii_leave_out_what_is_not_kept():
    visual, text = rows(1, 30, 6), rows(1, 3, 6, seed=1)
    ragged = select(visual, text, 20, 4, 2, epsilon=1.0)
    count = int(ragged.real.sum())
    assert count < 20
    short = radii(visual, text, None, ragged.indices[:, :count], ragged.prompt_center[:, :count])
    assert all(torch.equal(a, b) for a, b in zip(radii(visual, text, None, *ragged), short, strict=True))


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
        ({"epsilon": 1.0, "options": {"epsilon": 0.5}}, "keep the one beside K"),
        ({"options": {"regime": "weak"}}, "settings of MoBConfig"),
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


def test_what_is_asked_for_later_replaces_what_it_contradicts():
    saved = {"K": 9, "regime": "auto", "tau": 1.2, "l_idx": 3}
    assert overlay(saved, {"Kp_ratio": 0.5}) == {"K": 9, "l_idx": 3, "Kp_ratio": 0.5}
    assert overlay(saved, {"method": "random"}) == {"K": 9, "l_idx": 3, "method": "random"}
    assert overlay(saved, {"regime": "weak"}) == {**saved, "regime": "weak"}
    assert overlay({"K": 9, "kp_ratio": 0.5, "schedule": "weak"}, {"regime": "strong"}) == {"K": 9, "regime": "strong"}


# --------------------------------------------------------------------------------------------------- whole models


def adapted(tau, spread, epsilon):
    """(visual, prompt, K) -> the tokens that one picture keeps, by the book."""

    def choose(visual, text, K):
        if tau is None:
            K_p, k = 2, 2
        else:
            eta = reference.hausdorff(visual, text)
            w = 1 / (1 + math.exp(-(eta - tau) / spread))
            strong, weak = (float(prompt_share(len(visual), K, name)) for name in ("strong", "weak"))
            K_p = math.floor(K * (strong + w * (weak - strong)) + 0.5)
            k = max(1, math.floor(K_p * (3 / 40 + w * 2 / 40) + 0.5))
        if epsilon is None:
            return reference.select(visual, text, K, K_p, k)[0]
        return prefix(visual, text, K, K_p, k, epsilon)[0]

    return choose


class SlowAdaptive(reference.SlowLlava):
    """Every picture of a sample by ``choose``."""

    def __init__(self, model, choose):
        super().__init__(model.double(), lambda n: None, 2)
        self.rule = choose

    def _choose(self, ids, hidden, start, end, budget):
        visual = [i for i in range(start, end) if ids[i] == self.image_token and i not in self.dropped]
        text = [i for i in range(start, end) if ids[i] != self.image_token]
        self.kept.append([])
        if not visual:
            return
        values = hidden.double().numpy()
        asked = [i for i in text if i > visual[-1]] or [i for i in text if i > 0]
        for at in range(0, len(visual), PATCHES):
            here = values[visual[at : at + PATCHES]]
            self.kept[-1] += [at + i for i in self.rule(here, values[asked], PATCHES // 2)]
        self.dropped |= {v for i, v in enumerate(visual) if i not in self.kept[-1]}


class SlowFamily(reference.SlowDecoder):
    """The same for any model: a share of the tokens of every picture, each by ``choose``."""

    def __init__(self, model, choose, share, **more):
        super().__init__(model, budget=lambda n: None, **more)
        self.rule, self.share = choose, share

    def _choose(self, ids, hidden, start, end, lengths):
        visual = [i for i in range(start, end) if ids[i] in self.visual_ids]
        text = [i for i in range(start, end) if ids[i] not in self.visual_ids]
        values, at = hidden.double().numpy(), 0
        self.kept.append([])
        if not visual:
            return
        asked = [i for i in text if i > visual[-1]] or [i for i in text if i > 0]
        for length, K in zip(
            lengths, reference.shares(math.floor(self.share * len(visual) + 0.5), lengths), strict=True
        ):
            self.kept[-1] += [at + i for i in self.rule(values[visual[at : at + length]], values[asked], K)]
            at += length
        self.dropped |= {v for i, v in enumerate(visual) if i not in self.kept[-1]}


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
        for more in ({"regime": "auto", "tau": 1.2}, {"epsilon": 2.0}):
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
    with mob.prune(model, K=8, regime="auto", online={"window": 60, "warm_up": 50}) as pruning, torch.no_grad():
        model(**inputs)
        first = pruning.records[-1]
        assert "tau" not in first.adaptive and (first.K_p, first.k) == (budget(16, 8).K_p, budget(16, 8).k)
        state = pruning._running
        state.add(torch.tensor([0.5, 0.51, 0.52, 1.8, 1.81, 1.82] * 10))
        model(**inputs)
    last = pruning.records[-1]
    assert last.adaptive["tau"] == pytest.approx((0.52 + 1.8) / 2, abs=0.7) and len(last.adaptive["K_p"]) == 1


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
