"""The code in docs/adding_a_method.md runs, in order, and does what the page says; the list of rules is complete."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from mob.methods import METHODS
from mob.methods.__main__ import main
from tiny import inputs, llava

PAGE = Path(__file__).parents[2] / "docs" / "adding_a_method.md"


@pytest.fixture
def page(monkeypatch):
    """What the page's code leaves behind, run on a tiny model."""
    known, module = set(METHODS), ModuleType("page")
    monkeypatch.setitem(sys.modules, "page", module)
    names = module.__dict__
    names.update(model=llava(torch.float32), inputs=inputs())
    try:
        for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL):
            exec(compile(block, str(PAGE), "exec", dont_inherit=True), names)
        yield names
    finally:
        for name in set(METHODS) - known:
            del METHODS[name]


def test_the_page_runs(page, capsys):
    record = page["pruning"].records[0]
    assert (record.method, record.K, record.layer) == ("twice", 5, 3)
    assert record.stages == [{"method": "twice", "layer": 2, "N": 16, "K": 10}]
    assert record.mean_tokens == pytest.approx((2 * 16 + 10 + 2 * 5) / 5)
    assert page["fair"] == {"mob": 282, "twice": 224}  # (2 576 + (576 + K) / 2 + 2 K) / 5 = 400
    *pictured, text = page["loud"].records
    assert len(pictured) == 2 and all(0 < one.K < 5 for one in pictured) and text.K == 0
    assert main(["longest"]) == 0 and "options: order=2.0" in capsys.readouterr().out


def test_a_rule_of_the_page_is_known_until_it_is_forgotten(page, capsys):
    assert main(["longst"]) == 2
    assert capsys.readouterr().err.strip() == "no pruning rule named 'longst': did you mean 'longest'?"


def test_every_rule_is_listed(capsys):
    assert main(["--json"]) == 0
    rules = {one["name"]: one for one in json.loads(capsys.readouterr().out)}
    assert set(rules) == set(METHODS)
    for one in rules.values():
        assert one["paper"] and one["text"] and one["where"]
        assert one["objective"] in ("alignment", "preservation", "both", "given", "")
    assert rules["pyramiddrop"]["stages"] == 3 and rules["fastv"]["needs"] == ["attention"]
    assert rules["sparsevlm"]["options"] == {"recycle": True, "layers": None}
    assert rules["divprune"]["where"].startswith("before the decoder")


def test_the_table_has_a_line_for_each(capsys):
    assert main([]) == 0
    head, *lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == sorted(METHODS)
    assert head.split() == ["name", "objective", "prunes", "looks", "at", "batches", "paper"]


def test_a_wrong_name_is_answered_with_the_nearest(capsys):
    assert main(["fastw"]) == 2
    assert "did you mean 'fastv'?" in capsys.readouterr().err
    assert main(["nothing alike"]) == 2
    assert "known rules: cdpruner, codebook" in capsys.readouterr().err
