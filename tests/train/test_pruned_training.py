"""The command behind the table of pruned training runs as a whole, small, and goes on where it was killed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_pruned_training_is_measured_and_continued(tmp_path):
    def run(*more):
        sizes = ["--steps", "2", "--n", "1", "--rounds", "1", "--seeds", "0"]
        where = ["--work", str(tmp_path / "work"), "--json", str(tmp_path / "result.json")]
        command = [sys.executable, "benchmarks/pruned_training.py", *where, *sizes, *more]
        subprocess.run(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'LLaVA'}"}, check=True)

    run("--variants", "full")
    assert not (tmp_path / "result.json").exists()  # two of the three are still to be trained
    trained = tmp_path / "work" / "seed0" / "full" / "model.safetensors"
    before = trained.stat().st_mtime_ns
    run()
    assert trained.stat().st_mtime_ns == before
    found = json.loads((tmp_path / "result.json").read_text())
    assert [(row["trained"], row["K"]) for row in found["rows"]] == [
        (variant, K) for variant in ("full", "pruned", "random") for K in (196, 65, 22)
    ]
    for row in found["rows"]:
        assert 0 <= row["low"] <= row["points"] <= row["high"] <= 100
        assert ("more_than_full" in row) == (row["trained"] != "full")
    assert set(found["cpu_seconds_a_step"]) == {"196", "65", "22", "random"}
