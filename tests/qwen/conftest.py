"""Checkpoints on disk, once per run: one folder of each family in the hub's layout, and one that transformers saved."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image
from transformers import AutoTokenizer

import qwen_checkpoints as checkpoints
from Qwen2VL_MoB.modeling_qwen2_vl_self import MoB


@pytest.fixture(scope="session")
def tokenizer():
    return checkpoints.tokenizer()


@pytest.fixture(scope="session")
def sources(tokenizer):
    """The weights that the folders of a family hold."""
    return {family: checkpoints.model(family, tokenizer) for family in checkpoints.FAMILIES}


@pytest.fixture(scope="session")
def folders(tmp_path_factory, sources, tokenizer):
    """(family, layout) -> folder."""
    root, made = tmp_path_factory.mktemp("qwen"), {}
    for family, source in sources.items():
        hub, saved = root / f"{family}-hub", root / f"{family}-saved"
        made[family, "hub"] = checkpoints.hub_folder(hub, family, source, tokenizer)
        made[family, "saved"] = checkpoints.saved_folder(saved, family, source, tokenizer)
    return made


@pytest.fixture(scope="session")
def loaded(folders):
    """family -> (model, tokenizer). Leave the models as they are."""
    return {
        family: (
            MoB.from_pretrained(folders[family, "hub"]).eval(),
            AutoTokenizer.from_pretrained(folders[family, "hub"]),
        )
        for family in checkpoints.FAMILIES
    }


@pytest.fixture(params=checkpoints.FAMILIES)
def qwen(request, loaded):
    """(model, tokenizer) of each family, with pruning off and no records."""
    model, tokenizer = loaded[request.param]
    before = dict(model.config.MoB_config)
    yield model, tokenizer
    model.config.MoB_config = before
    model.pruning.record = False
    model.pruning.clear()


@pytest.fixture(scope="session")
def pixels():
    """uint8 (3, 3, 61, 92): three noisy pictures."""
    return np.random.default_rng(5).integers(0, 256, (3, 61, 92, 3), dtype=np.uint8).transpose(0, 3, 1, 2)


@pytest.fixture(scope="session")
def picture(pixels):
    return Image.fromarray(pixels[0].transpose(1, 2, 0))


@pytest.fixture(scope="session")
def clip(tmp_path_factory):
    """A video of 20 frames at 5 a second, 64 x 48; frame i is grey level 10 * i."""
    av = pytest.importorskip("av")
    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=5)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for i in range(20):
            frame = np.full((48, 64, 3), 10 * i, np.uint8)
            frame[:, : 3 * i] = 255 - 10 * i
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return path
