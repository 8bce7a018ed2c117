"""The published settings, and the scripts around training."""

from __future__ import annotations

import json
import re
import runpy
import subprocess
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, HfArgumentParser

import checkpoints
from llava.model.builder import load_pretrained_model
from llava.scenes.checkpoint import PATH
from llava.train.arguments import _RENAMED, DataArguments, MobArguments, ModelArguments, TrainingArguments, parse
from llava.train.train import train

ROOT = Path(__file__).parents[2]
SCRIPTS = ROOT / "scripts"
# Total batch on 8 GPUs, rates, and what else the paper's tables say.
PUBLISHED = {
    "pretrain": {"save": 24000, "batch": 256, "lr": 1e-3, "zero": 2, "version": "plain", "projector": True},
    "finetune": {"save": 50000, "batch": 128, "lr": 2e-5, "zero": 3, "version": "v1", "projector": False},
    "finetune_lora": {
        "save": 50000,
        "batch": 128,
        "lr": 2e-4,
        "zero": 3,
        "version": "v1",
        "projector": False,
        "lora": (128, 256, 2e-5),
    },
    "finetune_task": {"save": 50000, "batch": 128, "lr": 2e-5, "zero": 3, "version": "v1", "projector": False},
    "finetune_task_lora": {
        "save": 50000,
        "batch": 128,
        "lr": 2e-4,
        "zero": 3,
        "version": "v1",
        "projector": False,
        "lora": (128, 256, 2e-5),
    },
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_scripts_hold_the_published_settings(name):
    """What a script would start, read by our own parser, without the parts that need a GPU."""
    script = SCRIPTS / "v1_5" / f"{name}.sh"
    environment = {"LAUNCH": "printf %s\\n", "PATH": "/usr/bin:/bin"}
    done = subprocess.run(
        ["bash", script, "--output_dir", "elsewhere"], env=environment, capture_output=True, text=True, check=True
    )
    module, *words = done.stdout.split("\n")[:-1]
    assert module == "llava.train.train_mem"
    config = words[words.index("--deepspeed") + 1]
    del words[words.index("--deepspeed") : words.index("--deepspeed") + 2]
    model, data, args, _ = parse([*words, "--use_cpu", "True"])
    wanted = PUBLISHED[name]
    assert 8 * args.per_device_train_batch_size * args.gradient_accumulation_steps == wanted["batch"]
    assert args.learning_rate == wanted["lr"] and model.version == wanted["version"]
    assert json.loads((ROOT / config).read_text())["zero_optimization"]["stage"] == wanted["zero"]
    assert model.tune_mm_mlp_adapter == wanted["projector"] and args.lora_enable == ("lora" in wanted)
    if "lora" in wanted:
        assert (args.lora_r, args.lora_alpha, args.mm_projector_lr) == wanted["lora"]
    assert args.output_dir == "elsewhere"  # what is given last wins
    assert (args.num_train_epochs, args.weight_decay, args.warmup_steps, args.model_max_length) == (1, 0, 0.03, 2048)
    assert args.lr_scheduler_type == "cosine" and args.bf16 and args.gradient_checkpointing
    assert (model.mm_projector_type, model.mm_vision_select_layer) == ("mlp2x_gelu", -2)
    assert not model.mm_use_im_start_end and not model.mm_use_im_patch_token
    assert model.vision_tower == "openai/clip-vit-large-patch14-336"  # 24 x 24 patches
    assert (args.save_steps, args.save_total_limit, args.dataloader_num_workers) == (wanted["save"], 1, 4)
    first = {"finetune", "finetune_lora"} & {name}
    stage1 = "./checkpoints/llava-v1.5-13b-pretrain/mm_projector.bin" if first else None
    assert model.pretrain_mm_mlp_adapter == stage1
    assert args.group_by_modality_length == (name != "pretrain")
    assert data.image_aspect_ratio == (None if name == "pretrain" else "pad")
    if name.startswith("finetune_task"):
        assert model.model_name_or_path == "liuhaotian/llava-v1.5-13b" and model.pretrain_mm_mlp_adapter is None


@pytest.mark.parametrize("name", PUBLISHED)
@pytest.mark.parametrize("chosen", ["", "my zero.json"])
def test_scripts_start_without_deepspeed_or_with_another_configuration(name, chosen):
    environment = {"LAUNCH": "printf %s\\n", "PATH": "/usr/bin:/bin", "DEEPSPEED": chosen}
    script = SCRIPTS / "v1_5" / f"{name}.sh"
    done = subprocess.run(["bash", script], env=environment, capture_output=True, text=True, check=True)
    words = done.stdout.split("\n")
    assert [after for flag, after in zip(words, words[1:], strict=False) if flag == "--deepspeed"] == [chosen][
        : len(chosen)
    ]


@pytest.mark.parametrize("name", ["zero2", "zero3", "zero3_offload"])
def test_deepspeed_configs(name):
    config = json.loads((SCRIPTS / f"{name}.json").read_text())
    zero = config["zero_optimization"]
    assert zero["stage"] == int(name[4]) and config["bf16"]["enabled"] == "auto"
    assert zero.get("stage3_gather_16bit_weights_on_model_save", zero["stage"] == 2)
    assert ("offload_param" in zero) == ("optimizer" in config) == name.endswith("offload")


@pytest.fixture(scope="module")
def lora(world, squares, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "llava-lora"
    flags = ("--lora_enable", "True", "--lora_r", "2", "--save_format", "original", "--max_steps", "2")
    train(argv=world.flags(out, squares, *flags))
    return out


def test_merging(world, lora, tmp_path):
    merge = runpy.run_path(str(SCRIPTS / "merge_lora_weights.py"))["merge"]
    expected = load_pretrained_model(str(lora), str(world.base), "llava-lora", device="cpu")[1].state_dict()
    for layout in ("hf", "original"):
        merge(str(lora), str(world.base), str(tmp_path / layout), layout, "float32")
        model = load_pretrained_model(str(tmp_path / layout), None, "llava", device="cpu")[1]
        for name, value in model.state_dict().items():
            rows = slice(checkpoints.VOCABULARY)
            assert torch.equal(value[rows], expected[name][rows]), name
        assert json.loads((tmp_path / layout / "config.json").read_text())["tokenizer_model_max_length"] == 256
        assert AutoTokenizer.from_pretrained(tmp_path / layout).model_max_length == 256
    assert json.loads((tmp_path / "original" / "config.json").read_text())["unfreeze_mm_vision_tower"] is True
    with pytest.raises(ValueError, match="the model that it was trained on"):
        merge(str(lora), None, str(tmp_path / "x"))
    with pytest.raises(ValueError, match="--dtype int3"):
        merge(str(lora), str(world.base), str(tmp_path / "x"), "hf", "int3")


def test_taking_the_projector_out(world, squares, lora, tmp_path):
    extract = runpy.run_path(str(SCRIPTS / "extract_mm_projector.py"))["extract"]
    source = checkpoints.next_model()
    tower = checkpoints.tower_folder(tmp_path / "tower", source)
    folders = [
        checkpoints.stock_folder(tmp_path / "hf", source),
        checkpoints.original_folder(tmp_path / "bin", tower, source, **checkpoints.NEXT),
        checkpoints.original_folder(tmp_path / "st", tower, source, weights="safetensors", **checkpoints.NEXT),
    ]
    expected = {
        k: v for k, v in checkpoints.original_weights(source, False).items() if "mm_projector" in k or "newline" in k
    }
    for folder in folders:
        extract(str(folder), str(tmp_path / "out.bin"))
        found = torch.load(tmp_path / "out.bin", weights_only=True)
        assert found.keys() == expected.keys() and all(torch.equal(found[k], expected[k]) for k in found)
    with pytest.raises(ValueError, match="holds no projector"):
        extract(str(world.base), str(tmp_path / "none.bin"))
    with pytest.raises(ValueError, match="is a folder: name a file in it"):
        extract(str(folders[0]), str(tmp_path))


@pytest.mark.parametrize(
    "script, flags",
    [
        ("merge_lora_weights.py", ("--model-base", "{base}", "--save-model-path", "{file}/out")),
        ("extract_mm_projector.py", ("--model-path", "{whole}", "--output", "{file}/deep/out.bin")),
    ],
)
def test_where_nothing_can_be_written_is_one_line(world, lora, tmp_path, monkeypatch, capsys, script, flags):
    (tmp_path / "file").write_text("")
    given = [flag.format(base=world.base, file=tmp_path / "file", whole=PATH) for flag in flags]
    monkeypatch.setattr("sys.argv", [script, "--model-path", str(lora), *given])
    assert runpy.run_path(str(SCRIPTS / script))["main"]() == 2
    assert capsys.readouterr().err.strip().splitlines()[-1].startswith("error: [Errno 20] Not a directory")


def test_the_page_about_training_names_real_flags_and_files():
    page = (ROOT / "docs" / "training.md").read_text()
    parser = HfArgumentParser((ModelArguments, DataArguments, TrainingArguments, MobArguments))
    ours = {word for action in parser._actions for word in action.option_strings}
    old = {f"--{name}" for name in _RENAMED} | {"--group_by_length", "--adafactor"}
    assert all(flag in page for flag in old)
    others = {"--out", "--pictures", "--image-file", "--query", "--nproc_per_node", "--module", "--output", "--mob-off"}
    others |= {"--model-path", "--model-base", "--save-model-path", "--work", "--seeds", "--first-new"}
    assert not set(re.findall(r"(?<![\w-])--[A-Za-z][\w-]*", page)) - ours - old - others
    for script in re.findall(r"(?:scripts|benchmarks|tests|LLaVA)/[\w./-]+\w", page):
        assert (ROOT / script).exists(), script


def test_scores_beside_those_that_ship(capsys):
    compare = runpy.run_path(str(SCRIPTS / "scenes" / "compare.py"))["main"]
    assert compare([]) == 2
    assert compare([str(ROOT / "benchmarks" / "results" / "scenes.json")]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[1][0] == "vanilla" and all(line[2:5] == line[5:8] for line in lines[1:])
