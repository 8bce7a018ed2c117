"""What ``benchmarks/adaptive.py`` asks, and the table that is made of it."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT / "benchmarks")]

import adaptive  # noqa: E402
import adaptive_tables  # noqa: E402


def test_each_row_has_its_like_beside_it(tmp_path, monkeypatch):
    file = tmp_path / "adaptive-easy.json"
    words = ["--json", str(file), "--n", "2", "--epsilon", "0.2", "0.7", "--online", "22"]
    assert adaptive.main(words) == 0
    rows = json.loads(file.read_text())["rows"]
    plain, online, wide, same, narrow, few = rows
    assert (plain["K"], plain["tokens"], online["tokens"]) == (22, 22, 22) and online["online"]
    # Fewer than 128 questions: no threshold yet, so the default decides.
    assert online["minus"]["points"] == 0 and online["macro"] == plain["macro"]
    for radius, fixed in ((wide, same), (narrow, few)):
        assert radius["tokens"] < 65 and fixed["K"] == max(1, round(radius["tokens"])) == fixed["tokens"]
        difference = radius["macro"]["points"] - fixed["macro"]["points"]
        assert radius["minus"]["points"] == pytest.approx(difference, abs=0.02)
    assert narrow["tokens"] < wide["tokens"]
    monkeypatch.setattr(adaptive_tables, "RESULTS", tmp_path)
    monkeypatch.setattr(adaptive_tables, "SPLITS", ("easy",))
    table = adaptive_tables.adaptive()
    assert table.count("\n| easy |") == 3 and f"K = {few['K']} for all" in table
