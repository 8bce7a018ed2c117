"""Flags of llava.train: the old ones, wrong ones, and what is written beside a run."""

from __future__ import annotations

import json
import shutil
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest
from transformers import CLIPVisionConfig

import checkpoints
from llava.train.arguments import parse, translate
from llava.train.build import pinpoints
from llava.train.train import main, train
from training import LORA, ORIGINAL, PROJECTOR, losses, trainer_for

ROOT = Path(__file__).parents[2]


def test_tensorboard_where_it_is_installed(world, squares, tmp_path, monkeypatch):
    monkeypatch.setattr("llava.train.arguments.is_tensorboard_available", lambda: True)
    flags = [word for word in world.flags(tmp_path, squares) if word not in ("--report_to", "none")]
    assert parse(flags)[2].report_to == ["tensorboard"]
    assert parse([*flags, "--report_to", "none"])[2].report_to == []
    monkeypatch.setattr("llava.train.arguments.is_tensorboard_available", lambda: False)
    assert parse(flags)[2].report_to == []


def test_tensorboard_gets_the_curve(world, squares, tmp_path, monkeypatch):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "curves"))
    flags = [word for word in world.flags(tmp_path / "out", squares) if word not in ("--report_to", "none")]
    trainer = train(argv=[*flags, "--max_steps", "3"])
    events = EventAccumulator(str(tmp_path / "curves"))
    events.Reload()
    assert [round(event.value, 4) for event in events.Scalars("train/loss")] == [round(x, 4) for x in losses(trainer)]
    assert {"train/hours_left", "train/train_tokens_per_second"} <= set(events.Tags()["scalars"])


def test_old_flags_are_translated(capsys):
    old = [
        "--evaluation_strategy",
        "no",
        "--warmup_ratio=0.03",
        "--save_safetensors",
        "False",
        "--group_by_length",
        "True",
    ]
    assert translate([*old, "--bf16", "True"]) == [
        *("--eval_strategy", "no", "--warmup_steps", "0.03"),
        *("--train_sampling_strategy", "group_by_length", "--bf16", "True"),
    ]
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "--warmup_ratio: now --warmup_steps" in said


@pytest.mark.parametrize("steps, counts", [("0", "0.5"), ("7", "7")])
def test_warmup_in_steps_wins_over_a_share_but_not_where_it_is_none(steps, counts, capsys):
    for order in (
        ("--warmup_ratio", "0.5", "--warmup_steps", steps),
        ("--warmup_steps", steps, "--warmup_ratio", "0.5"),
    ):
        assert translate(list(order)) == ["--warmup_steps", counts]
        assert "left out, the other" in capsys.readouterr().err


GONE = """
    overwrite_output_dir evaluation_strategy per_gpu_train_batch_size per_gpu_eval_batch_size warmup_ratio logging_dir
    save_safetensors no_cuda use_mps_device jit_mode_eval use_ipex fp16_opt_level half_precision_backend tpu_num_cores
    tpu_metrics_debug past_index fsdp_min_num_params fsdp_transformer_layer_cls_to_wrap adafactor group_by_length
    use_legacy_prediction_loop include_inputs_for_metrics fp16_backend push_to_hub_model_id push_to_hub_organization
    push_to_hub_token mp_parameters torchdynamo ray_scope dispatch_batches split_batches include_tokens_per_second
""".split()  # noqa: SIM905


@pytest.mark.parametrize("name", GONE)
def test_every_flag_of_transformers_4_is_known(name, tmp_path, capsys):
    """The fields of TrainingArguments in 4.37, the original's version, that 5 does not have."""
    values = {
        "per_gpu_train_batch_size": "2",
        "per_gpu_eval_batch_size": "2",
        "warmup_ratio": "0.1",
        "evaluation_strategy": "no",
        "torchdynamo": "eager",
    }
    needed = ["--model_name_or_path", "x", "--data_path", "y", "--output_dir", str(tmp_path), "--use_cpu", "True"]
    parse([*needed, f"--{name}", values.get(name, "True"), "--report_to", "none"])
    assert f"--{name}: " in capsys.readouterr().err


@pytest.mark.parametrize(
    "flags, message",
    [
        (("--bits", "4"), "add --lora_enable"),
        (("--bits", "4", *LORA), "add --save_format original"),
        (("--bits", "4", *LORA, *ORIGINAL), "pip install bitsandbytes"),
        (("--mm_projector_type", "linear"), "only mlp2x_gelu"),
        (("--version", "v9"), "--version v9: use one of"),
        (("--mm_tunable_parts", "mm_resampler"), "use mm_mlp_adapter"),
        (("--freeze_backbone", "True", "--freeze_mm_mlp_adapter", "True"), "nothing would be trained"),
        (("--pretrain_mm_mlp_adapter", "/nowhere.bin"), "there is no such file"),
        (("--on_bad_sample", "ignore"), "use one of stop, skip"),
        (("--save_format", "gguf"), "use one of hf, original"),
        (("--mob_K", "0"), "keep at least one"),
        (("--mob_K", "few"), "--mob_K few: give a number such as 64, or a share such as 0.25"),
        (("--mob_K", "2", "--mob_off", "True"), "--mob_off and --mob_K contradict each other"),
        (("--fp16", "True"), "--fp16 is for GPUs"),
        (("--gradient_accumulation_steps", "0"), "--gradient_accumulation_steps 0: give 1 or more"),
        (("--mm_vision_select_layer", "-9"), "--mm_vision_select_layer -9: the tower has"),
        (("--image_grid_pinpoints", "(2x1),(1x2)", "--image_aspect_ratio", "anyres"), "name the smallest grid first"),
        (("--lora_enable", "True", *PROJECTOR), "leave out --lora_enable"),
        (("--image_aspect_ratio", "anyres"), "no image_grid_pinpoints"),
        (("--image_aspect_ratio", "wide"), "--image_aspect_ratio wide: use one of square, pad, anyres"),
        (("--image_aspect_ratio", "anyres_max_9"), "--image_aspect_ratio anyres_max_9: use one of square, pad, anyres"),
        (("--mm_projector_rl", "1e-5"), "unknown flag --mm_projector_rl, did you mean --mm_projector_lr"),
        (("--frames_upbound=32",), "unknown flag --frames_upbound, see python -m llava.train.train --help"),
        (("--bf16", "True", "x"), "'x' belongs to no flag"),
        (("--mob_random_K", "1.0", "0.5", "3"), "mixes numbers and shares"),
        (("--report_to", "clearml"), "--report_to clearml: it is not installed"),
        (("--mm_use_im_start_end", "True", *PROJECTOR), "only a run of the whole model trains"),
        (("--mm_use_im_start_end", "True", *LORA), "only a run of the whole model trains"),
        (("--image_grid_pinpoints", "[[28, 56]]"), "pad pictures are not cut into tiles"),
        (("--label_smoothing_factor", "0.1"), "answers would guide the pruning"),
        ((*PROJECTOR, "--unfreeze_mm_vision_tower", "True"), "--unfreeze_mm_vision_tower: other flags train"),
        ((*PROJECTOR, "--freeze_mm_mlp_adapter", "True"), "--freeze_mm_mlp_adapter: other flags train"),
        (("--mm_tunable_parts", "mm_language_model", "--freeze_backbone", "True"), "--freeze_backbone: other flags"),
        (("--mm_tunable_parts", "mm_mlp_adapter,mm_language_model", *PROJECTOR), "--tune_mm_mlp_adapter: other flags"),
        (("--mm_vision_tower_lr", "1e-6"), "--mm_vision_tower_lr: mm_vision_tower is not trained"),
        (("--freeze_mm_mlp_adapter", "True", "--mm_projector_lr", "1e-5"), "--mm_projector_lr: mm_mlp_adapter is not"),
    ],
)
def test_wrong_flags_are_one_line(world, squares, tmp_path, flags, message, monkeypatch):
    monkeypatch.setattr("llava.train.build.is_bitsandbytes_available", lambda: False)
    with pytest.raises(ValueError, match=message) as error:
        trainer_for(world.flags(tmp_path, squares, *flags))
    assert "\n" not in str(error.value)


def test_deepspeed_that_is_not_there_is_one_line(world, squares, tmp_path, monkeypatch, capsys):
    def missing(package):
        raise PackageNotFoundError(f"The '{package}>=0.9.3' distribution was not found\nTry: pip install")

    monkeypatch.setattr("transformers.integrations.deepspeed.dep_version_check", missing)
    engine = ("--deepspeed", str(ROOT / "scripts" / "zero2.json"))
    monkeypatch.setattr("sys.argv", ["train", *world.flags(tmp_path, squares, *engine)])
    assert main() == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last == "error: --deepspeed needs DeepSpeed: pip install --upgrade deepspeed, or leave the flag out"


def test_a_wrong_sample_in_a_worker_is_one_line(world, tmp_path, monkeypatch, capsys):
    data = world.data("broken", samples=4)
    (data.parent / "2.png").write_bytes(b"no picture")
    argv = world.flags(tmp_path / "out", data, "--dataloader_num_workers", "1")
    monkeypatch.setattr("sys.argv", ["train", *argv])
    assert main() == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("error: ") and "id 2" in last and "--on_bad_sample skip" in last
    trainer = train(argv=[*argv, "--on_bad_sample", "skip"])
    assert trainer.train_dataset.refusals.count() == 1
    assert "1 bad sample(s) skipped" in capsys.readouterr().err


def test_a_folder_that_cannot_be_made_is_one_line(world, squares, tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr("sys.argv", ["train", *world.flags(tmp_path / "file" / "out", squares)])
    assert main() == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith(f"error: {tmp_path / 'file' / 'out'}") and last.endswith(": Not a directory")


def test_messages_of_several_lines_are_whole_on_one(world, squares, tmp_path, monkeypatch, capsys):
    flags = world.flags(tmp_path, squares, "--load_best_model_at_end", "True", "--save_strategy", "steps")
    monkeypatch.setattr("sys.argv", ["train", *flags])
    assert main() == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("error: --load_best_model_at_end requires") and "Save strategy" in last


def test_vicunas_generation_settings_can_be_saved(world, squares, tmp_path):
    """Vicuna's file names a temperature without sampling, which transformers refuses to write, at the very end."""
    base = tmp_path / "vicuna"
    shutil.copytree(world.base, base)
    (base / "generation_config.json").write_text('{"temperature": 0.9, "top_p": 0.6, "max_length": 4096}')
    flags = ("--model_name_or_path", str(base), "--max_steps", "1")
    train(argv=world.flags(tmp_path / "llava-x", squares, *flags))
    assert json.loads((tmp_path / "llava-x" / "generation_config.json").read_text())["temperature"] == 0.9


def test_pinpoints():
    assert pinpoints("(1x1),...,(2x2)", 336) == [[336, 336], [336, 672], [672, 336], [672, 672]]
    assert pinpoints("[[336, 672]]", 336) == "[[336, 672]]" and pinpoints(None, 336) is None


@pytest.mark.parametrize(
    "flags, message",
    [
        (("--mm_vision_select_layer", "-1"), "was made with -2"),
        (("--mm_vision_select_feature", "cls_patch"), "was made with patch"),
        (("--mm_projector_type", "linear"), "was made with mlp2x_gelu"),
        (("--mm_use_im_start_end", "True"), "was made with none"),
        (("--image_aspect_ratio", "anyres"), "treats pictures otherwise"),
        (("--image_grid_pinpoints", "[[28, 56]]"), "was made with none"),
        (("--mm_patch_merge_type", "spatial_unpad"), "was made with flat"),
        (("--bits", "4", *LORA, *ORIGINAL), "is in the layout of transformers"),
    ],
)
def test_flags_do_not_change_a_finished_model(world, squares, tmp_path, flags, message):
    train(argv=world.flags(tmp_path / "one", squares, "--max_steps", "1"))
    started = ("--model_name_or_path", str(tmp_path / "one"), "--mm_vision_select_layer", "-2", "--version", "llava_hf")
    argv = world.flags(tmp_path / "two", squares, *started, base=False)
    trainer_for(argv)
    with pytest.raises(ValueError, match=message):
        trainer_for([*argv, *flags])
    with pytest.raises(ValueError, match="is the model that the run starts from"):
        trainer_for([*argv, "--output_dir", str(tmp_path / "one")])


@pytest.mark.parametrize(
    "flags, message",
    [
        (("--mm_vision_select_layer", "-1"), "was made with -2"),
        (("--mm_use_im_start_end", "True"), "was made with none"),
    ],
)
def test_nor_one_of_the_original_layout(world, squares, tmp_path, flags, message):
    whole = checkpoints.original_folder(tmp_path / "llava-v1.5-tiny", world.tower, checkpoints.model())
    argv = world.flags(tmp_path / "out", squares, "--model_name_or_path", str(whole), base=False)
    assert trainer_for(argv).start.mode == "full"  # the projector that is published beside it makes it no adapter
    with pytest.raises(ValueError, match=message):
        trainer_for([*argv, *flags])


def test_a_named_tower_is_that_of_the_folder(world, squares, tmp_path):
    train(argv=world.flags(tmp_path / "one", squares, "--max_steps", "1"))
    started = ("--model_name_or_path", str(tmp_path / "one"), "--version", "llava_hf", "--vision_tower")
    trainer_for(world.flags(tmp_path / "two", squares, *started, str(world.tower), base=False))
    other = CLIPVisionConfig.from_pretrained(world.tower)
    other.image_size *= 2
    other.save_pretrained(tmp_path / "other")
    with pytest.raises(ValueError, match="its image_size is 56, that of the tower in .* 28"):
        trainer_for(world.flags(tmp_path / "two", squares, *started, str(tmp_path / "other"), base=False))
