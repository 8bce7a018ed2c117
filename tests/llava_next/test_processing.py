"""Counting tokens, and building model inputs from prompts, pictures and videos."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from transformers.image_processing_utils import select_best_resolution
from transformers.models.llava_next_video.processing_llava_next_video import LlavaNextVideoProcessor
from transformers.models.llava_onevision.processing_llava_onevision import LlavaOnevisionProcessor

import next_checkpoints as made
from llava_next.mm_utils import load_image, load_video, process_images, process_video
from llava_next.model.builder import load_pretrained_model
from llava_next.processing import frame_processor, prepare
from llava_next.prompts import build_prompt, place_media
from llava_next.tokens import image_tokens, video_tokens
from mob.media import ImageError
from mob.video import VideoError
from next_checkpoints import NEXT_VIDEO, ONEVISION, SIDES, VIDEO_LLAVA

# The configs of the published checkpoints; the classes' defaults are theirs.
REAL = {
    ONEVISION: transformers.LlavaOnevisionConfig(),
    NEXT_VIDEO: transformers.LlavaNextVideoConfig(),
    VIDEO_LLAVA: transformers.VideoLlavaConfig(),
}
FAMILIES = list(REAL)


@pytest.fixture(scope="module")
def loaded(folders):
    """(tokenizer, model, image processor) of each family."""
    return {
        family: load_pretrained_model(str(folders[f"{family}/stock"]), None, "", device="cpu", attn_implementation=None)
        for family in FAMILIES
    }


def given(loaded, family, prompt, images=(), videos=()):
    tokenizer, model, processor, _ = loaded[family]
    return prepare(prompt, tokenizer, processor, model.config, images, videos)


def picture(size=(90, 60)):
    return Image.effect_noise(size, 90).convert("RGB")


class TestCounts:
    @pytest.mark.parametrize("frames, expected", [(1, 197), (8, 1569), (32, 6273)])
    def test_onevision_videos(self, frames, expected):
        assert video_tokens(REAL[ONEVISION], frames) == expected == 196 * frames + 1

    def test_other_videos(self):
        assert video_tokens(REAL[NEXT_VIDEO], 1) == 144 and video_tokens(REAL[NEXT_VIDEO], 32) == 4608
        assert video_tokens(REAL[VIDEO_LLAVA], 8) == 2056 == REAL[VIDEO_LLAVA].video_seq_length
        assert image_tokens(REAL[VIDEO_LLAVA], (640, 480)) == 256 == REAL[VIDEO_LLAVA].image_seq_length

    @pytest.mark.parametrize(
        "size, expected",
        [((336, 336), 1176), ((640, 480), 2340), ((480, 640), 2352), ((1280, 720), 1948), ((2000, 400), 1598)]
        + [((672, 672), 2928), ((50, 246), 696), ((1008, 336), 2328), ((336, 1008), 2376)],
    )
    def test_next_pictures(self, size, expected):
        assert image_tokens(REAL[NEXT_VIDEO], size) == expected

    def test_onevision_pictures(self):
        config = REAL[ONEVISION]
        assert image_tokens(config, (384, 384)) == 729 + 27 * 28
        assert image_tokens(config, (640, 480), alone=False) == 730
        assert image_tokens(config, (2304, 2304)) <= 729 * 10 + 81
        assert image_tokens(config, (2304, 2304)) == 729 + 81 * 82  # 36 views' worth shrunk to nine

    @pytest.mark.parametrize("family", [ONEVISION, NEXT_VIDEO])
    def test_as_transformers_counts(self, family):
        """On random and extreme sizes, with the text half of the stock processors."""
        cls = LlavaOnevisionProcessor if family == ONEVISION else LlavaNextVideoProcessor
        config = REAL[family]
        side = config.vision_config.image_size
        stock = SimpleNamespace(
            image_processor=SimpleNamespace(image_grid_pinpoints=config.image_grid_pinpoints),
            num_image_tokens=729,
            num_additional_image_tokens=0,
            patch_size=14,
            vision_aspect_ratio="anyres_max_9",
        )
        stock._get_unpadded_features = cls._get_unpadded_features.__get__(stock)
        rng = np.random.default_rng(0)
        sizes = [
            *np.exp(rng.uniform(0, 8.5, (300, 2))).astype(int).tolist(),
            [1, 1],
            [10_000, 20],
            [20, 10_000],
            [1, 999],
        ]
        for width, height in sizes:
            expected = cls._get_number_of_features(stock, height, width, side, side)
            assert image_tokens(config, (width, height)) == expected, (width, height)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("size", [(90, 60), (1, 1), (10_000, 20), (20, 10_000), (42, 42), (37, 311), (3, 2)])
def test_the_model_agrees_with_every_count(loaded, family, size):
    """It raises where placeholders and features differ."""
    inputs = given(loaded, family, "a <image> b", [picture(size)])
    model = loaded[family][1]
    with torch.no_grad():
        assert torch.isfinite(model(**inputs).logits).all()
    assert int((inputs["input_ids"] == model.config.image_token_id).sum()) == image_tokens(model.config, size)


@pytest.mark.parametrize("size", [(384, 384), (1000, 700), (2304, 2304), (1200, 90)])
def test_at_real_sizes_the_tower_makes_as_many_features(size):
    """27 x 27 patches and all 36 resolutions, with narrow layers; shrinking to nine views' worth included."""
    config = made.config(ONEVISION, (300, 301))
    config.vision_config.image_size, config.vision_config.num_hidden_layers = 384, 1
    config.image_grid_pinpoints, config.vision_aspect_ratio = REAL[ONEVISION].image_grid_pinpoints, "anyres_max_9"
    base = transformers.LlavaOnevisionModel(config).eval()
    pixels = torch.zeros(1, math.prod(side // 384 for side in best(size, config)) + 1, 3, 384, 384)
    with torch.no_grad():
        features = base.get_image_features(pixels, torch.tensor([size[::-1]]), return_dict=True).pooler_output
    assert len(features[0]) == image_tokens(config, size) == image_tokens(REAL[ONEVISION], size)


def best(size, config):
    return select_best_resolution(size[::-1], [list(pair) for pair in config.image_grid_pinpoints])


@pytest.mark.parametrize("family", FAMILIES)
def test_pixels_are_the_stock_processors(loaded, family):
    one = picture((90, 50))
    inputs = given(loaded, family, "<image>", [one])
    expected = dict(made.processor(family)([one], return_tensors="pt", **options(family, loaded)))
    key = next(name for name in inputs if name.startswith("pixel_values"))
    assert torch.equal(inputs[key], expected["pixel_values"])
    if "image_sizes" in expected:
        assert torch.equal(inputs["image_sizes"], torch.as_tensor(expected["image_sizes"]))


def options(family, loaded):
    config = loaded[family][1].config
    return {} if family == VIDEO_LLAVA else {"image_grid_pinpoints": config.image_grid_pinpoints}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_mixed_batch(loaded, family):
    """Two pictures, one picture with a video, text alone: as each by itself."""
    _, model, processor, _ = loaded[family]
    prompts = ["<image> and <image> ?", "a <video> then <image> of it", "describe it"]
    images = [[picture((90, 50)), picture((30, 80))], [picture((60, 60))], []]
    videos = [[], [process_video(made.frames(), processor, 2)], []]
    batch = given(loaded, family, prompts, images, videos)
    assert batch["attention_mask"][:, -1].tolist() == [1, 1, 1]  # padded on the left
    with torch.no_grad():
        together = model(**batch).logits[:, -1]
        for i in range(3):
            alone = model(**given(loaded, family, prompts[i], images[i], videos[i])).logits[0, -1]
            assert torch.allclose(alone, together[i], atol=2e-3, rtol=1e-4)


def test_several_onevision_pictures_are_one_squared_view_each(loaded):
    inputs = given(loaded, ONEVISION, "<image><image>", [picture((90, 30)), picture()])
    assert inputs["pixel_values"].shape == (2, 1, 3, 42, 42) and inputs["batch_num_images"].tolist() == [2]
    assert inputs["image_sizes"].tolist() == [[30, 90], [60, 90]]
    assert inputs["pixel_values"][0, 0, :, 0].abs().max() < 0.02  # the mean colour, normalised
    stock = made.processor(ONEVISION)([[picture((90, 30)), picture()]], return_tensors="pt")["pixel_values"]
    assert stock.shape == inputs["pixel_values"].shape


@pytest.mark.parametrize("family", FAMILIES)
class TestVideos:
    def test_a_file_frames_and_pictures_give_the_same(self, loaded, family, clip):
        processor = loaded[family][2]
        array = load_video(clip, 4)
        assert array.shape == (4, 30, 40, 3) and array.dtype == np.uint8
        assert np.all(np.diff(array.mean((1, 2, 3))) > 30)  # first to last
        pixels = process_video(clip, processor, frames=4)
        assert pixels.shape == (4, 3, SIDES[family], SIDES[family])
        assert torch.equal(process_video(array, processor, None), pixels)
        assert torch.equal(process_video([Image.fromarray(one) for one in array], processor, 4), pixels)
        assert torch.equal(process_video(str(clip), processor, 4), pixels)

    def test_a_frame_is_a_picture_without_tiles(self, loaded, family):
        processor, frame = loaded[family][2], picture((40, 30))
        own = frame_processor(processor)(frame, return_tensors="pt")["pixel_values"]
        assert torch.equal(process_video([frame], processor, None), own)
        if family == ONEVISION:  # squeezed
            assert torch.equal(own[0], processor([frame], return_tensors="pt")["pixel_values"][0, 0])

    def test_the_model_agrees_with_the_count(self, loaded, family):
        _, model, processor, _ = loaded[family]
        for count in (1, 3, 12):
            inputs = given(loaded, family, "a <video> b", (), [process_video(made.frames(), processor, count)])
            with torch.no_grad():
                model(**inputs)
            visual = int((inputs["input_ids"] == model.config.video_token_id).sum())
            assert visual == video_tokens(model.config, count)

    def test_more_frames_than_there_are(self, loaded, family):
        pixels = process_video(made.frames(2), loaded[family][2], 5)
        assert len(pixels) == 5 and torch.equal(pixels[0], pixels[1])

    def test_a_panorama(self, loaded, family):
        frames = np.zeros((2, 10, 6000, 3), np.uint8)
        assert process_video(frames, loaded[family][2], None).shape[-1] == SIDES[family]

    def test_no_frames(self, loaded, family):
        for source in ([], np.zeros((0, 4, 4, 3), np.uint8)):
            with pytest.raises(VideoError, match="without frames"):
                process_video(source, loaded[family][2])


def test_broken_videos(tmp_path, clip):
    (tmp_path / "empty.mp4").write_bytes(b"")
    (tmp_path / "text.mp4").write_text("no video")
    (tmp_path / "cut.mp4").write_bytes(clip.read_bytes()[:200])
    made.write_video(tmp_path / "none.mp4", np.zeros((0, 30, 40, 3), np.uint8))
    for name in ("empty", "text", "cut", "none", "missing"):
        with pytest.raises(VideoError) as error:
            load_video(tmp_path / f"{name}.mp4")
        assert "\n" not in str(error.value)


class TestOddPictures:
    def files(self, folder):
        frames = [Image.new("RGB", (40, 30), colour) for colour in ("red", "green", "blue")]
        frames[0].save(folder / "animated.gif", save_all=True, append_images=frames[1:])
        palette = Image.new("P", (30, 30), 1)
        palette.putpalette([255, 0, 0, 0, 255, 0] + [0] * 762)
        palette.save(folder / "palette.png", transparency=1)
        Image.new("L", (30, 40), 100).save(folder / "grey.png")
        Image.new("1", (9, 9)).save(folder / "bits.png")
        return ["animated.gif", "palette.png", "grey.png", "bits.png"]

    @pytest.mark.parametrize("family", FAMILIES)
    def test_they_are_pictures_like_others(self, loaded, family, tmp_path):
        for name in self.files(tmp_path):
            inputs = given(loaded, family, "<image>", [load_image(tmp_path / name)])
            with torch.no_grad():
                assert torch.isfinite(loaded[family][1](**inputs).logits).all()

    def test_transparency_shows_white_and_the_first_frame_counts(self, tmp_path):
        self.files(tmp_path)
        assert load_image(tmp_path / "palette.png").getpixel((3, 3)) == (255, 255, 255)
        assert load_image(tmp_path / "animated.gif").getpixel((3, 3))[0] > 200

    @pytest.mark.parametrize("family", FAMILIES)
    def test_pictures_of_other_modes_are_converted(self, loaded, family):
        for mode in ("L", "RGBA", "P", "CMYK"):
            given(loaded, family, "<image><image>", [Image.new(mode, (20, 30)), picture()])

    def test_a_panorama_among_several_is_refused_rather_than_squared(self, loaded):
        with pytest.raises(ImageError, match="too long to pad to a square"):
            given(loaded, ONEVISION, "<image><image>", [Image.new("RGB", (30_000, 2)), picture()])


class TestPrune:
    @pytest.mark.parametrize("family", FAMILIES)
    def test_records_have_the_right_numbers(self, loaded, family):
        _, model, processor, _ = loaded[family]
        video = process_video(made.frames(), processor, 3)
        inputs = given(loaded, family, ["see <image> ?", "see <video> ?"], [[picture()], []], [[], [video]])
        model.pruning.record = True
        model.pruning.clear()
        kept = []
        for K in (2, 3):
            model.config.MoB_config = {"K": K, "l_idx": 1}
            with torch.no_grad():
                model(**inputs)
            records = model.pruning.records[-2:]
            assert [one.N for one in records] == [image_tokens(model.config, (90, 60)), video_tokens(model.config, 3)]
            assert [one.K for one in records] == [K, K] and all(len(one.keep_indices) == K for one in records)
            kept.append([one.keep_indices for one in records])
        assert kept[0] != kept[1]
        model.config.MoB_config = {}
        assert model.pruning.record

    @pytest.mark.parametrize("family", FAMILIES)
    def test_generating_keeps_everything_at_K_of_N(self, loaded, family):
        model = loaded[family][1]
        inputs = given(loaded, family, "see <image> ?", [picture()])
        options = {"max_new_tokens": 3, "min_new_tokens": 3, "do_sample": False}
        plain = model.generate(**inputs, **options)
        for K, equal in ((10_000, True), (2, None)):
            model.config.MoB_config = {"K": K, "l_idx": 1}
            pruned = model.generate(**inputs, **options)
            assert pruned.shape == plain.shape and (equal is None or torch.equal(pruned, plain))
        model.config.MoB_config = {}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "prompt, images, videos", [("no place", 1, 0), ("<image>", 0, 0), ("<image><image>", 1, 0), ("<video>", 1, 0)]
)
def test_places_and_media_must_agree(loaded, family, prompt, images, videos):
    with pytest.raises(ValueError, match="put one <image> or <video>"):
        given(loaded, family, prompt, [picture()] * images, [torch.zeros(1, 3, 9, 9)] * videos)


@pytest.mark.parametrize("family", FAMILIES)
def test_frames_of_another_size_or_number(loaded, family):
    with pytest.raises(ValueError, match="use the image processor that was loaded"):
        given(loaded, family, "<video>", (), [torch.zeros(2, 3, 9, 9)])
    side = SIDES[family]
    with pytest.raises(ValueError, match="equally many frames"):
        given(loaded, family, "<video><video>", (), [torch.zeros(n, 3, side, side) for n in (1, 2)])


def test_other_models_are_refused(loaded):
    tokenizer, _, processor, _ = loaded[ONEVISION]
    with pytest.raises(ValueError, match="llava.mm_utils"):
        prepare("x", tokenizer, processor, transformers.LlavaConfig())


def test_process_images(loaded):
    pictures = [picture((90, 30)), picture((30, 90))]
    _, model, processor, _ = loaded[ONEVISION]
    tiles = process_images(pictures, processor, model.config)
    assert [len(one) for one in tiles] == [4, 4] and tiles[0].shape[1:] == (3, 42, 42)
    padded = process_images(
        pictures, processor, SimpleNamespace(image_aspect_ratio="pad", image_grid_pinpoints=[[42, 42]])
    )
    assert padded.shape == (2, 3, 42, 42)
    plain = process_images(pictures, loaded[VIDEO_LLAVA][2], loaded[VIDEO_LLAVA][1].config)
    assert plain.shape == (2, 3, 28, 28)


class TestPrompts:
    config = {family: SimpleNamespace(model_type=family) for family in FAMILIES}

    def test_places(self):
        assert place_media("Q", 2, 1) == "<image>\n<image>\n<video>\nQ"
        assert place_media("a <image-placeholder> b <video-placeholder>", 1, 1) == "a <image> b <video>"
        assert place_media("Q", 0, 0) == "Q"
        for query in ("<video-placeholder><video-placeholder>", "<image-placeholder>"):
            with pytest.raises(ValueError, match="make them equal"):
                place_media(query, 0, 1)

    def test_the_checkpoints_own_template(self, loaded):
        tokenizer = loaded[VIDEO_LLAVA][0]
        prompt = build_prompt("what?", 1, 1, tokenizer, self.config[VIDEO_LLAVA])
        assert prompt == "USER: <image>\n<video>\nwhat? ASSISTANT:"

    def test_a_template_for_text_alone_says_the_same_as_the_conversation(self, folders):
        tokenizer = transformers.Qwen2Tokenizer.from_pretrained(folders[f"{ONEVISION}/bin"])
        assert tokenizer.chat_template == made.TEXT_TEMPLATE
        own = build_prompt("what 'type'?", 1, 0, tokenizer, self.config[ONEVISION])
        named = build_prompt("what 'type'?", 1, 0, tokenizer, self.config[ONEVISION], conv_mode="qwen_1_5")
        assert own == named
        assert own.endswith("<|im_start|>user\n<image>\nwhat 'type'?<|im_end|>\n<|im_start|>assistant\n")

    def test_a_template_without_videos(self, loaded):
        tokenizer = SimpleNamespace(
            chat_template="x",
            apply_chat_template=lambda messages, **_: "".join(c.get("text", "") for c in messages[0]["content"]),
        )
        assert build_prompt("what?", 0, 1, tokenizer, self.config[NEXT_VIDEO]) == "<video>\nwhat?"

    @pytest.mark.parametrize(
        "family, start",
        [(ONEVISION, "<|im_start|>system"), (NEXT_VIDEO, "A chat between a curious user"), (VIDEO_LLAVA, "A chat")],
    )
    def test_without_a_template_the_family_decides(self, family, start):
        tokenizer, config = SimpleNamespace(chat_template=None, eos_token="</s>"), REAL[family]
        prompt = build_prompt("Q", 1, 0, tokenizer, config)
        assert prompt.startswith(start) and "<image>\nQ" in prompt
        with pytest.raises(ValueError, match="no conversation template 'x'"):
            build_prompt("Q", 1, 0, tokenizer, config, "x")

    def test_no_second_bos(self, loaded):
        tokenizer, model, processor, _ = loaded[VIDEO_LLAVA]
        for prompt in ("<s>describe", "describe"):
            ids = prepare(prompt, tokenizer, processor, model.config)["input_ids"][0].tolist()
            assert ids[0] == 1 and ids.count(1) == 1
