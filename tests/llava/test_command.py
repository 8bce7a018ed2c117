"""The flags that every command over scenes has."""

import argparse

import pytest
import torch

from llava.scenes.checkpoint import PATHS
from llava.scenes.command import add_questions, load_model
from tiny import llava


def _load(*argv):
    parser = argparse.ArgumentParser()
    add_questions(parser, n=7)
    args = parser.parse_args(argv)
    return args, load_model(parser, args)


@pytest.mark.parametrize("split", PATHS)
def test_each_split_has_its_checkpoint(split):
    args, model = _load("--split", split)
    assert (args.model_path, args.n) == (PATHS[split], 7)
    assert model.dtype == torch.float32 and not model.training


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--model-path", "no/such/folder"], "no/such/folder"),
        (["--n", "0"], "--n must be at least 1"),
        (["--split", "busy"], "invalid choice: 'busy'"),
    ],
)
def test_what_cannot_be_asked_ends_the_command(argv, said, capsys):
    with pytest.raises(SystemExit, match="2"):
        _load(*argv)
    assert said in capsys.readouterr().err


def test_a_model_that_is_not_of_scenes_is_named_as_such(tmp_path, capsys):
    llava().save_pretrained(tmp_path)
    with pytest.raises(SystemExit, match="2"):
        _load("--model-path", str(tmp_path))
    assert "words" in capsys.readouterr().err
