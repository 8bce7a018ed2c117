"""The prompts are checked against digests of what the original code renders, not against this code's own ideas."""

from __future__ import annotations

import base64
import hashlib
from io import BytesIO

import pytest
from PIL import Image

from llava.conversation import Conversation, SeparatorStyle, conv_mode_for, conv_templates, default_conversation

# keys, version, UTF-8 length and sha256[:12] of the prompt for the dialogue in `rendered`.
GOLDEN = [
    ("default v0", "Unknown", 1704, "ae7747f153a9"),
    ("v1 vicuna_v1", "v1", 208, "080b3549d584"),
    ("llava_v1", "v1", 210, "ff54643a6973"),
    ("llava_v0", "Unknown", 217, "129350366331"),
    ("v0_mmtag llava_v0_mmtag", "v0_mmtag", 372, "d4b0484ba881"),
    ("v1_mmtag llava_v1_mmtag", "v1_mmtag", 365, "a26c3bd49529"),
    ("llama_2", "llama_v2", 580, "ce0da33a83ab"),
    ("llava_llama_2", "llama_v2", 258, "5853d830822f"),
    ("mistral_instruct llava_mistral_instruct", "llama_v2", 50, "b89525f98314"),
    ("chatml_direct mistral_direct", "mpt", 172, "654dfeac3e00"),
    ("mpt", "mpt", 259, "45965cc860c1"),
    ("qwen_1_5 qwen_2", "qwen", 183, "928e144fb516"),
    ("qwen_2_5", "qwen", 223, "d6e4af3828e1"),
    ("gemma_instruct", "gemma", 138, "beee6e94a128"),
    ("mistral_orca", "mpt", 299, "b5fcbb55ff04"),
    ("mistral_zephyr", "mpt", 118, "577ad887ea9f"),
    ("llava_llama_2_simple", "llama_v2", 141, "1a20e3af21dd"),
    ("llava_llama_2_mmtag", "llama_v2_mmtag", 234, "420b360ac5e5"),
]
GOLDEN_BY_KEY = [(key, *rest) for keys, *rest in GOLDEN for key in keys.split()]
WITHOUT_DIGEST = {"plain", "v0_plain", "llava_llama_3"}

SAID = ("<image>\nQ1", "A1", "Q2", None)


def started(key: str, *messages: object) -> Conversation:
    conv = conv_templates[key].copy()
    for i, message in enumerate(messages):
        conv.append_message(conv.roles[i % 2], message)
    return conv


def rendered(key: str) -> str:
    return started(key, *SAID).get_prompt()


def picture(width: int = 8, height: int = 6, colour: str = "red", mode: str = "RGB") -> Image.Image:
    return Image.new(mode, (width, height), colour)


@pytest.mark.parametrize(("key", "version", "length", "digest"), GOLDEN_BY_KEY)
def test_prompt_is_byte_identical_to_the_original(key: str, version: str, length: int, digest: str) -> None:
    prompt = rendered(key).encode()
    assert (len(prompt), hashlib.sha256(prompt).hexdigest()[:12]) == (length, digest)
    assert conv_templates[key].version == version


def test_every_template_is_checked() -> None:
    assert set(conv_templates) == {key for key, *_ in GOLDEN_BY_KEY} | WITHOUT_DIGEST


@pytest.mark.parametrize(
    ("key", "prompt"),
    [
        (
            "vicuna_v1",
            "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, "
            "detailed, and polite answers to the user's questions. USER: <image>\nQ1 ASSISTANT: A1</s>USER: Q2 "
            "ASSISTANT:",
        ),
        (
            "llava_v0",
            "A chat between a curious human and an artificial intelligence assistant. The assistant gives helpful, "
            "detailed, and polite answers to the human's questions.###Human: <image>\nQ1###Assistant: A1###Human: Q2"
            "###Assistant:",
        ),
        ("mistral_instruct", "[INST] <image>\nQ1 [/INST] A1 </s>[INST] Q2 [/INST]"),
        (
            "chatml_direct",
            "<|im_start|>system\nAnswer the questions.<|im_end|><|im_start|>user\n<image>\nQ1<|im_end|>"
            "<|im_start|>assistant\nA1<|im_end|><|im_start|>user\nQ2<|im_end|><|im_start|>assistant\n",
        ),
        (
            "llava_llama_2",
            "[INST] <<SYS>>\nYou are a helpful language and vision assistant. You are able to understand the visual "
            "content that the user provides, and assist the user with a variety of tasks using natural language.\n"
            "<</SYS>>\n\n<image>\nQ1 [/INST] A1 </s><s>[INST] Q2 [/INST]",
        ),
        (
            "qwen_1_5",
            "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n<image>\nQ1<|im_end|>\n"
            "<|im_start|>assistant\nA1<|im_end|>\n<|im_start|>user\nQ2<|im_end|>\n<|im_start|>assistant\n",
        ),
        (
            "llava_llama_3",
            "<|start_header_id|>system<|end_header_id|>\n\nYou are a helpful language and vision assistant. You are "
            "able to understand the visual content that the user provides, and assist the user with a variety of "
            "tasks using natural language.<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n<image>\nQ1<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\nA1<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n"
            "Q2<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
        ),
    ],
)
def test_rendered_string(key: str, prompt: str) -> None:
    assert rendered(key) == prompt


@pytest.mark.parametrize("key", ["plain", "v0_plain"])
def test_plain_is_the_texts_and_line_ends(key: str) -> None:
    conv = started(key, "<image>", "a red square")
    assert conv.get_prompt() == "<image>\na red square\n"
    assert conv.version == "plain"


def test_default_is_vicuna_v1() -> None:
    assert default_conversation is conv_templates["vicuna_v1"]
    assert default_conversation.sep_style is SeparatorStyle.TWO


@pytest.mark.parametrize(
    ("model_name", "key"),
    [
        ("llava-v1.6-mob", "llava_v1"),
        ("llava-v1.5-7b", "llava_v1"),
        ("LLaVA-V1.5-13B", "llava_v1"),
        ("llava-llama-2-13b-chat", "llava_llama_2"),
        ("llava-v1-llama-2-7b", "llava_llama_2"),
        ("llava-v1.6-mistral-7b", "mistral_instruct"),
        ("llava-v1.6-34b", "chatml_direct"),
        ("llava-v1.6-34b-mob", "chatml_direct"),
        ("llava-mpt-7b", "mpt"),
        ("llava-v1-mpt-7b", "llava_v1"),
        ("llava-7b", "llava_v0"),
        ("llava-1.5-7b-hf", "llava_v1"),
        ("", "llava_v0"),
    ],
)
def test_conv_mode_for(model_name: str, key: str) -> None:
    assert conv_mode_for(model_name) == key


@pytest.mark.parametrize("text", ["Q <image> x", "<image>\nQ  x", "Q  x\n<image>"])
def test_picture_message_puts_its_token_in_front(text: str) -> None:
    prompt = started("vicuna_v1", (text, picture(), "Default"), None).get_prompt()
    assert prompt.endswith(" USER: <image>\nQ  x ASSISTANT:")
    assert prompt.count("<image>") == 1


def test_mmtag_picture_gets_a_turn_of_its_own() -> None:
    prompt = started("v1_mmtag", ("<image>\nQ", picture(), "Default"), None).get_prompt()
    assert prompt.endswith(" USER: <Image><image></Image> ASSISTANT: Received.</s>USER: Q ASSISTANT:")


def test_rendering_changes_no_message() -> None:
    conv = started("v1_mmtag", ("<image>\nQ", picture(), "Default"), None)
    assert conv.get_prompt() == conv.get_prompt()
    assert len(conv.messages) == 2


def test_copy_is_independent() -> None:
    original = conv_templates["v0"]
    conv = original.copy()
    conv.append_message("Human", "hello")
    conv.messages[0][1] = "changed"
    assert len(original.messages) == 2
    assert original.messages[0][1].startswith("What are the key differences")
    assert conv.version == original.version and conv.offset == 2


def test_dict_holds_text_only() -> None:
    conv = started("vicuna_v1", ("<image>\nQ", picture(), "Default"), "A")
    assert conv.dict() == {
        "system": conv.system,
        "roles": ("USER", "ASSISTANT"),
        "messages": [["USER", "<image>\nQ"], ["ASSISTANT", "A"]],
        "offset": 0,
        "sep": " ",
        "sep2": "</s>",
    }


@pytest.mark.parametrize("messages", [(), (None,), ("",)])
def test_llama_2_needs_a_first_message(messages: tuple) -> None:
    with pytest.raises(ValueError, match="append one first"):
        started("llava_llama_2", *messages).get_prompt()


def test_llama_2_needs_the_user_first() -> None:
    conv = conv_templates["llama_2"].copy()
    conv.append_message("ASSISTANT", "A")
    with pytest.raises(ValueError, match="'USER'"):
        conv.get_prompt()


def test_gemma_refuses_a_system_sentence() -> None:
    conv = started("gemma_instruct", "Q")
    conv.system = "Be brief."
    with pytest.raises(ValueError, match="first message"):
        conv.get_prompt()


@pytest.mark.parametrize(
    ("mode", "size", "expected"),
    [
        ("Default", (8, 6), (8, 6)),
        ("Crop", (8, 6), (8, 6)),
        ("Pad", (8, 6), (8, 8)),
        ("Resize", (8, 6), (336, 336)),
        ("Default", (1344, 1000), (1344, 1000)),
        ("Default", (2688, 1344), (1344, 672)),
        ("Default", (1344, 2688), (672, 1344)),
        ("Default", (2000, 2000), (672, 672)),
        ("Default", (5000, 2), (1344, 1)),
    ],
)
def test_process_image_size(mode: str, size: tuple, expected: tuple) -> None:
    assert default_conversation.process_image(picture(*size), mode, return_pil=True).size == expected


def test_pad_fills_with_the_mean_colour() -> None:
    padded = default_conversation.process_image(picture(2, 6), "Pad", return_pil=True)
    assert [padded.getpixel((x, 3)) for x in (1, 2, 3, 4)] == [
        (122, 116, 104),
        (255, 0, 0),
        (255, 0, 0),
        (122, 116, 104),
    ]


def test_process_image_refuses_an_unknown_mode() -> None:
    with pytest.raises(ValueError, match="'Squash'.*Resize"):
        default_conversation.process_image(picture(), "Squash")


def test_process_image_encodes_losslessly_by_default() -> None:
    decoded = Image.open(BytesIO(base64.b64decode(default_conversation.process_image(picture(), "Default"))))
    assert (decoded.format, decoded.size, decoded.getpixel((0, 0))) == ("PNG", (8, 6), (255, 0, 0))


def test_get_images_takes_the_users_pictures_in_order() -> None:
    red, blue, green = picture(colour="red"), picture(colour="blue"), picture(colour="green")
    conv = started("v0", ("Q", red, "Default"), "A", "no picture", "A", ("Q", [blue, green], "Resize"), None)
    images = conv.get_images(return_pil=True)
    assert [image.getpixel((0, 0)) for image in images] == [(255, 0, 0), (0, 0, 255), (0, 128, 0)]
    assert [image.size for image in images] == [(8, 6), (336, 336), (336, 336)]
    assert all(isinstance(image, str) for image in conv.get_images())


def test_get_images_leaves_out_worked_examples() -> None:
    conv = started("vicuna_v1", ("Q", picture(colour="red"), "Default"), "A", ("Q", picture(colour="blue"), "Default"))
    conv.offset = 2
    assert [image.getpixel((0, 0)) for image in conv.get_images(return_pil=True)] == [(0, 0, 255)]


def test_gradio_pairs_hide_the_worked_example() -> None:
    conv = started("v0", ("<image>\nQ", picture(colour="#ff000080", mode="RGBA"), "Default"), "A", "Q2", None)
    (first, answer), second = conv.to_gradio_chatbot()
    assert first.startswith('<img src="data:image/jpeg;base64,') and first.endswith("/>Q")
    assert (answer, second) == ("A", ["Q2", None])
