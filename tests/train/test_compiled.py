"""torch.compile takes the models as they are loaded, pruned or not, and changes no result."""

from __future__ import annotations

import pytest
import torch

import checkpoints
from llava.model.builder import load_pretrained_model
from llava.train.train import train
from training import losses, same, weights


@pytest.fixture(autouse=True)
def afresh():
    torch._dynamo.reset()  # or it counts what other tests have compiled
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize("settings", [{}, {"K": 2, "l_idx": 1}], ids=["plain", "pruned"])
def test_a_compiled_pass_is_the_pass(tmp_path, settings):
    """Dynamo once took the encoder's method for what stands before it on the instance, and ran in circles."""
    folder = checkpoints.stock_folder(tmp_path / "hf", checkpoints.model())
    _, model, _, _ = load_pretrained_model(str(folder), None, "hf", device="cpu", MoB_config=settings)
    ids = torch.tensor([[1, *[model.config.image_token_id] * 4, 5, 6, 7]])
    batch = {"input_ids": ids, "labels": ids, "pixel_values": torch.randn(1, 3, 28, 28)}
    compiled = torch.compile(model, backend="eager")
    for mode in (False, True):
        model.train(mode)
        with torch.no_grad():
            one, other = model(**batch), compiled(**batch)
        assert torch.equal(one.loss, other.loss) and torch.equal(one.logits, other.logits)


@pytest.mark.slow
@pytest.mark.parametrize("flags", [(), ("--mob_K", "2")], ids=["plain", "pruned"])
def test_a_compiled_run_is_the_run(world, squares, tmp_path, flags):
    """LLaVA-NeXT's published commands have the flag."""
    flags = (*flags, "--max_steps", "2")
    plain = train(argv=world.flags(tmp_path / "a", squares, *flags))
    asked = ("--torch_compile", "True", "--torch_compile_backend", "eager")
    compiled = train(argv=world.flags(tmp_path / "b", squares, *flags, *asked))
    assert losses(plain) == losses(compiled)
    assert same(weights(plain.start.model), weights(compiled.start.model))
