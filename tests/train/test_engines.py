"""Two processes train one model: torchrun, and DeepSpeed's ZeRO-2 and ZeRO-3 where it is installed; one under
accelerate's launcher, which has MPI start more of them on CPUs."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers

from llava.model.builder import load_pretrained_model
from llava.train.train import train

ROOT = Path(__file__).parents[2]
CHILD = Path(__file__).with_name("engine_child.py")
CHECKPOINTED = ("--gradient_checkpointing", "True")
FLAGS = ("--max_steps", "6", "--per_device_train_batch_size", "2", "--group_by_modality_length", "True")
FLAGS += ("--optim", "adamw_torch")
LORA = ("--lora_enable", "True", "--lora_r", "4", "--mm_projector_lr", "1e-3")
needs_deepspeed = pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="pip install deepspeed")


TORCHRUN = ("torch.distributed.run", "--standalone", "--nproc_per_node", "2")
ACCELERATE = [
    "accelerate.commands.launch",
    "--cpu",
    "--num_processes",
    "1",
    "--num_machines",
    "1",
    "--mixed_precision",
    "no",
]


def launch(argv, answers, tmp_path, launcher=TORCHRUN, **more):
    """Two processes on this machine, or what the launcher starts; what rank 0 wrote."""
    environment = os.environ | {
        "DS_ACCELERATOR": "cpu",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "LLaVA"), os.environ.get("PYTHONPATH", "")]),
        "TORCH_EXTENSIONS_DIR": str(tmp_path / "extensions"),  # a killed build elsewhere leaves a lock that hangs
        **more,
    }
    command = [sys.executable, "-m", *launcher, str(CHILD)]
    done = subprocess.run([*command, str(answers), *argv], env=environment, capture_output=True, text=True, timeout=540)
    assert done.returncode == 0, done.stderr[-6000:]
    return torch.load(answers, weights_only=True)


def logits(model, given):
    inputs = {key: given[key] for key in ("input_ids", "attention_mask", "pixel_values") if key in given}
    with torch.no_grad():
        return model(**inputs).logits


@pytest.mark.slow
@pytest.mark.parametrize(
    "flags",
    [(), ("--gradient_checkpointing", "True", *LORA), ("--mob_K", "2", "--mob_method", "divprune")],
    ids=["full", "lora", "early"],
)
def test_torchrun(world, tmp_path, flags):
    """Two processes with half the batch each give what one gives; some of their batches are text only."""
    data = world.data("engines", samples=6, texts=6)
    argv = world.flags(tmp_path / "two", data, *FLAGS, *flags, "--ddp_backend", "gloo", "--lora_dropout", "0")
    two = launch(argv, tmp_path / "answers.pt", tmp_path)
    assert two["engine"] == "DistributedDataParallel 0"
    alone = (*FLAGS, *flags, "--per_device_train_batch_size", "2", "--gradient_accumulation_steps", "2")
    one = train(argv=world.flags(tmp_path / "one", data, *alone, "--lora_dropout", "0"))
    losses = [entry["loss"] for entry in one.state.log_history if "loss" in entry]
    assert torch.allclose(torch.tensor(two["losses"]), torch.tensor(losses), atol=5e-3)
    _, model, _, _ = load_pretrained_model(str(tmp_path / "two"), None, "llava", device="cpu")
    assert torch.allclose(logits(model, two), two["logits"], atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    "stage", [None, pytest.param(2, marks=needs_deepspeed), pytest.param(3, marks=needs_deepspeed)]
)
def test_one_process_with_pictures_and_one_without(world, tmp_path, stage):
    """In every step; the same as one process with both."""
    data = world.data("alternating", samples=6, texts=6)
    records = json.loads(data.read_text())
    data.write_text(json.dumps([record for pair in zip(records[:6], records[6:], strict=True) for record in pair]))
    flags = (*FLAGS, "--group_by_modality_length", "False", "--train_sampling_strategy", "sequential")
    flags += ("--per_device_train_batch_size", "1")
    engine = ("--use_cpu", "False", "--deepspeed", config(tmp_path, stage)) if stage else ("--ddp_backend", "gloo")
    two = launch(world.flags(tmp_path / "two", data, *flags, *engine), tmp_path / "answers.pt", tmp_path)
    one = train(argv=world.flags(tmp_path / "one", data, *flags, "--gradient_accumulation_steps", "2"))
    losses = [entry["loss"] for entry in one.state.log_history if "loss" in entry]
    assert torch.allclose(torch.tensor(two["losses"]), torch.tensor(losses), atol=5e-3)


@pytest.mark.slow
def test_accelerate(world, tmp_path):
    """Its launcher sets up what a plain start sets up too."""
    data = world.data("engines", samples=6, texts=6)
    launched = world.flags(tmp_path / "launched", data, *FLAGS)
    found = launch(launched, tmp_path / "answers.pt", tmp_path, [*ACCELERATE, "--dynamo_backend", "no"], RANK="0")
    alone = train(argv=world.flags(tmp_path / "alone", data, *FLAGS))
    losses = [entry["loss"] for entry in alone.state.log_history if "loss" in entry]
    assert torch.allclose(torch.tensor(found["losses"]), torch.tensor(losses), atol=1e-5)
    _, model, _, _ = load_pretrained_model(str(tmp_path / "launched"), None, "llava", device="cpu")
    assert torch.allclose(logits(model, found), found["logits"], atol=1e-4)


def config(tmp_path, stage):
    """The configuration that ships, for CPUs."""
    values = json.loads((ROOT / "scripts" / f"zero{stage}.json").read_text())
    values["zero_optimization"]["overlap_comm"] = False
    file = tmp_path / f"zero{stage}.json"
    file.write_text(json.dumps(values))
    return str(file)


@pytest.mark.slow
@needs_deepspeed
@pytest.mark.parametrize("stage", [2, 3])
@pytest.mark.parametrize(
    "flags",
    [(), (*LORA, *CHECKPOINTED), ("--mob_K", "2", "--mob_layer", "1", *CHECKPOINTED)],
    ids=["full", "lora", "pruned"],
)
def test_deepspeed(world, tmp_path, stage, flags):
    """The saved folder loads into the stock class and answers as the running engine did; a second start continues."""
    data = world.data("engines", samples=6, texts=6)
    more = (
        "--use_cpu",
        "False",
        "--deepspeed",
        config(tmp_path, stage),
        "--save_strategy",
        "steps",
        "--save_steps",
        "3",
    )
    argv = world.flags(tmp_path / "out", data, *FLAGS, *flags, *more)
    first = launch(argv, tmp_path / "answers.pt", tmp_path)
    assert first["engine"] == f"DeepSpeedEngine {stage}"
    assert first["losses"][-1] < first["losses"][0]
    stock, info = transformers.LlavaForConditionalGeneration.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    _, model, _, _ = load_pretrained_model(str(tmp_path / "out"), None, "llava", device="cpu")
    assert torch.allclose(logits(model, first), first["logits"], atol=1e-4)
    if "--mob_K" not in flags:
        assert torch.allclose(logits(stock, first), first["logits"], atol=1e-4)
    one = world.flags(tmp_path / "one", data, *FLAGS, *flags, "--gradient_accumulation_steps", "2")
    losses = [entry["loss"] for entry in train(argv=one).state.log_history if "loss" in entry]
    assert LORA[0] in flags or torch.allclose(torch.tensor(first["losses"]), torch.tensor(losses), atol=1e-2)
    if not flags:
        for folder in (tmp_path / "out").glob("checkpoint-6"):
            folder.rename(tmp_path / "gone")
        again = launch(argv, tmp_path / "again.pt", tmp_path)
        assert torch.allclose(again["logits"], first["logits"], atol=1e-4)
