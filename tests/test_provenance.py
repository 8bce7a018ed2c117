"""Result files: valid JSON that reads line by line, without this machine's folders."""

import json
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llava.provenance import provenance, write_result

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@given(st.dictionaries(st.text(), values, max_size=4))
def test_a_result_comes_back_as_it_was(tmp_path_factory, result):
    file = tmp_path_factory.getbasetemp() / "results" / "one.json"
    write_result(file, result)
    assert json.loads(file.read_text()) == result


def test_what_holds_nothing_else_stands_on_one_line(tmp_path):
    write_result(tmp_path / "one.json", {"rows": [{"K": 1, "range": [2, 3]}, {"K": 4}], "say": 'a [\n"b"'})
    lines = [line.strip() for line in (tmp_path / "one.json").read_text().splitlines()]
    assert '"range": [ 2, 3 ]' in lines and '{ "K": 4 }' in lines and '"say": "a [\\n\\"b\\""' in lines


def test_numbers_that_are_none_are_refused(tmp_path):
    with pytest.raises(ValueError):
        write_result(tmp_path / "one.json", {"right": float("nan")})
    assert not (tmp_path / "one.json").exists()


def test_the_command_names_no_folder_of_this_machine(monkeypatch, tmp_path):
    here = Path.cwd()
    words = [
        "/opt/bin/python",
        "-m",
        "a.b",
        f"{here}/x/y.py",
        "--json",
        "/tmp/z/r.json",
        f"--model={tmp_path}/m",
        "k=v",
    ]
    monkeypatch.setattr(sys, "orig_argv", words)
    assert provenance()["command"] == "python -m a.b x/y.py --json r.json --model=m k=v"
