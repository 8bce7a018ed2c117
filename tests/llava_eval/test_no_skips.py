"""In CI a test of the evaluation that is skipped fails, and says why; elsewhere, and where it may, it is skipped."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

TESTS = """
import pytest

def test_skips():
    pytest.skip("no matplotlib")

@pytest.mark.skipif(True, reason="no network")
def test_marked():
    pass

def test_imports():
    pytest.importorskip("no_such_module")

@pytest.mark.may_skip("not on this platform")
def test_may():
    pytest.skip("no fcntl")

@pytest.mark.xfail(reason="known")
def test_known():
    assert False

def test_passes():
    pass
"""


def outcome(folder: Path, **more: str) -> str:
    environment = {key: value for key, value in os.environ.items() if key != "CI"} | more
    words = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", os.devnull, "--rootdir", str(folder)]
    environment["PYTHONPATH"] = str(Path(__file__).parents[1])
    return subprocess.run([*words, str(folder)], capture_output=True, text=True, env=environment).stdout


def test_skips_fail_in_ci_alone(tmp_path):
    (tmp_path / "conftest.py").write_text("from no_skips import pytest_runtest_makereport\n")
    (tmp_path / "test_it.py").write_text(TESTS)
    assert "1 passed, 4 skipped, 1 xfailed" in outcome(tmp_path)
    out = outcome(tmp_path, CI="1")
    assert "2 failed, 1 passed, 1 skipped, 1 xfailed" in out and "1 error" in out  # a mark's skip happens in the set-up
    for reason in ("no matplotlib", "no network", "could not import 'no_such_module'"):
        assert f"has to be there: Skipped: {reason}" in out


def test_ci_says_that_it_is_ci():
    text = (Path(__file__).parents[2] / ".ci" / "run").read_text()
    assert "CI=${CI:-1}" in text and "scripts/test.sh" in text
