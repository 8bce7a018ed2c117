"""Names that users of the original repository look for, and what importing needs."""

from __future__ import annotations

import hashlib
import inspect
import subprocess
import sys

import llava.constants
import llava.conversation
import llava.mm_utils
import next_checkpoints
from llava_next import constants, conversation, mm_utils
from llava_next.model import LlavaOnevisionForConditionalGeneration, LlavaQwenForCausalLM
from llava_next.model.builder import load_pretrained_model

GOLDEN = {
    "qwen_1_5": "928e144fb516",
    "qwen_2": "928e144fb516",
    "qwen_2_5": "d6e4af3828e1",
    "gemma_instruct": "beee6e94a128",
    "mistral_orca": "b5fcbb55ff04",
    "mistral_zephyr": "577ad887ea9f",
    "llava_llama_2_simple": "1a20e3af21dd",
    "llava_llama_2_mmtag": "420b360ac5e5",
    "llava_mistral_instruct": "b89525f98314",
    "vicuna_v1": "080b3549d584",
}


def test_constants_and_mm_utils_are_llavas():
    for name in (name for name in vars(llava.constants) if name.isupper()):
        assert getattr(constants, name) == getattr(llava.constants, name)
    for name in mm_utils.__all__:
        if name not in ("load_video", "process_video", "process_images", "VideoError"):
            assert getattr(mm_utils, name) is getattr(llava.mm_utils, name)


def test_conversations_render_what_checkpoints_were_trained_on():
    assert conversation.conv_templates is llava.conversation.conv_templates
    for key, expected in GOLDEN.items():
        conv = conversation.conv_templates[key].copy()
        for role, text in zip((0, 1, 0, 1), ("<image>\nQ1", "A1", "Q2", None), strict=True):
            conv.append_message(conv.roles[role], text)
        assert hashlib.sha256(conv.get_prompt().encode()).hexdigest()[:12] == expected, key


def test_the_signature_of_the_original():
    parameters = inspect.signature(load_pretrained_model).parameters
    names = "model_path model_base model_name load_8bit load_4bit device_map torch_dtype attn_implementation"
    assert list(parameters) == [*names.split(), "customized_config", "overwrite_config", "kwargs"]
    defaults = {name: one.default for name, one in parameters.items() if one.default is not inspect.Parameter.empty}
    assert defaults["torch_dtype"] == "float16" and defaults["attn_implementation"] == "flash_attention_2"
    assert defaults["device_map"] == "auto"
    assert LlavaQwenForCausalLM is LlavaOnevisionForConditionalGeneration


def test_importing_needs_no_optional_package():
    code = (
        "import sys\n"
        "for name in ('torchvision', 'av', 'peft', 'requests', 'decord'): sys.modules[name] = None\n"
        "import llava_next.model.builder, llava_next.mm_utils, llava_next.run, llava_next.conversation\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=next_checkpoints.environment()
    )
    assert done.returncode == 0, done.stderr
