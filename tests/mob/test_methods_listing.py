"""What ``python -m mob.methods`` says of a rule is what the rule does."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

from mob.methods import METHODS
from mob.methods.__main__ import describe, main, table
from mob.methods.base import highest, needs_of
from views import LENGTHS, PARTS, answer, rule_of, view_of

HELD = {"hidden states": "visual", "features": "visual", "prompt": "prompt", "words": "prompt"}
each_rule = pytest.mark.parametrize("name", sorted(METHODS))


def same(some, others):
    """Whether two answers agree: choices to the letter, new values to rounding."""
    pairs = zip(some, others, strict=True)
    return all(torch.allclose(*pair, rtol=0, atol=1e-12 * pair[0].is_floating_point()) for pair in pairs)


def is_batched(rule):
    """Whether a batch, padded, is answered as its samples are, alone."""
    together = answer(rule, view_of())
    return all(same([part[row : row + 1] for part in together], answer(rule, view_of([row]))) for row in range(3))


@each_rule
def test_a_rule_looks_at_what_it_says_and_at_nothing_else(name, tmp_path):
    rule, said = rule_of(name, tmp_path), describe(name)["needs"]
    usual = answer(rule, view_of())
    others = [(part, view_of(other=part, seed=seed)) for part in PARTS for seed in (1, 2, 3)]
    seen = {part for part, view in others if not same(usual, answer(rule, view))}
    assert seen == {HELD.get(one, one) for one in said} - {"codebook file"}
    early = getattr(rule, "early", False)
    assert not set(said) & ({"hidden states", "prompt"} if early else {"features", "words"})


@each_rule
def test_a_rule_takes_batches_if_it_says_so(name, tmp_path):
    assert describe(name)["batch"] is is_batched(rule_of(name, tmp_path))


@dataclass(frozen=True)
class Mixing:
    """Looks at its neighbours in the batch."""

    batch = False
    needs = ("hidden states",)

    def select(self, view, budget):
        return highest(view.visual[..., 0] * view.visual.mean(), budget.K)


@dataclass(frozen=True)
class Silent:
    """Says nothing of itself."""

    def select(self, view, budget):
        return highest(view.visual[..., 0], budget.K)


def test_a_rule_that_mixes_samples_is_found_out(monkeypatch):
    monkeypatch.setitem(METHODS, "mixing", Mixing)
    assert len(LENGTHS) == 3 and not is_batched(Mixing()) and describe("mixing")["batch"] is False
    assert "layer 2, or any other  hidden states  no" in table(["mixing"])


def test_of_a_rule_that_does_not_say_anything_may_be_looked_at(monkeypatch):
    monkeypatch.setitem(METHODS, "silent", Silent)
    assert describe("silent")["needs"] == ["hidden states", "prompt"] and needs_of(Silent()) == ()
    monkeypatch.setattr(Silent, "early", True, raising=False)
    assert describe("silent")["needs"] == ["features", "words"] and describe("silent")["where"] == "before the decoder"


def test_what_every_view_holds_is_not_asked_of_the_model():
    """A rule within the decoder that needs more is given a probe; mob must not be."""
    for name in ("mob", "prompt", "visual", "random", "given", "cdpruner", "mmtok", "divprune"):
        assert needs_of(METHODS[name]) == ()
    assert needs_of(METHODS["sparsevlm"]) == ("embeddings", "attention")
    assert needs_of(METHODS["pooling"]) == ("cells",)


def test_the_table_says_what_rules_look_at(capsys):
    main([])
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    for name, said in (
        ("random", "layer 2, or any other, or before the decoder nothing yes"),
        ("mob", "layer 2, or any other hidden states, prompt yes"),
        ("cdpruner", "before the decoder features, words yes"),
        ("mmtok", "before the decoder features, words yes"),
        ("codebook", "before the decoder features, codebook file yes"),
        ("scope", "before the decoder tower yes"),
        ("fastv", "layer 2, or any other attention yes"),
    ):
        assert said in " ".join(lines[name].split())
    assert main(["cdpruner"]) == 0
    assert "looks at: features, words\nbatches: yes" in capsys.readouterr().out
