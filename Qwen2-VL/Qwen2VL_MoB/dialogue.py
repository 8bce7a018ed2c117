"""``model.chat``: ask about pictures and videos, in one turn or several."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import TextStreamer

from Qwen2VL_MoB.patches import Patches
from Qwen2VL_MoB.processing import Processing
from Qwen2VL_MoB.prompts import SYSTEM, check_text, encode, expand, place, render

LENGTH = 512


class Turn(tuple):
    """A finished turn: the pair (query, answer), which also remembers what the question was about.

    ``pictures`` and ``videos`` are the processed patches, so that a later turn sees them again, at the same resolution
    and without reading files again. As JSON only the pair survives.
    """

    pictures: tuple[Patches, ...]
    videos: tuple[Patches, ...]

    def __new__(cls, query: str, answer: str, pictures: Sequence[Patches] = (), videos: Sequence[Patches] = ()) -> Turn:
        turn = super().__new__(cls, (query, answer))
        turn.pictures, turn.videos = tuple(pictures), tuple(videos)
        return turn

    def __getnewargs__(self) -> tuple:
        return (*self, self.pictures, self.videos)


class ChatMixin:
    """``chat`` for a Qwen-VL of transformers; put before the model class."""

    def chat(
        self,
        tokenizer: Any,
        query: str,
        image: Any = None,
        video: Any = None,
        history: Sequence[Sequence[str]] | None = None,
        system: str | None = SYSTEM,
        stream: Any = False,
        processor: Any = None,
        max_new_tokens: int | None = None,
        generation_config: Any = None,
        return_history: bool = False,
        min_pixels: int | None = None,
        max_pixels: int | None = None,
        **gen_kwargs: Any,
    ) -> str | tuple[str, list[Turn]]:
        """Answer a question about pictures and videos.

        Args:
            tokenizer: that of the checkpoint; its chat template is used if it has one, else Qwen's own form.
            query: the question. ``<image>`` and ``<video>`` in it say where pictures and videos go (one mark for each);
                without marks the pictures come first, then the videos, then the text.
            image: one of these, or a list of them:
                a PIL picture; a path; an http(s), file or data URL; {"image": any of these, "max_pixels": ...};
                a numpy or torch array (H, W), (3, H, W) or (H, W, 3), or a batch (B, 3, H, W) or (B, H, W, 3): integers
                are 0..255, floats are 0..1 if none is above 1, else 0..255 (details in ``Qwen2VL_MoB.pictures``);
                processed patches, as (pixel_values, image_grid_thw) or a dict with these keys; pixel_values is
                (n, 1176), for Qwen3-VL (n, 1536).
            video: one of these, or a list of them:
                a path; a list of frames, each anything that is a picture; an array (T, 3, H, W) or (T, H, W, 3);
                {"video": any of these, "fps": ..., "nframes": ..., "min_frames": ..., "max_frames": ..., "video_start":
                seconds, "video_end": seconds, "sample_fps": of given frames (2)}; processed patches, as a dict with
                pixel_values_videos and video_grid_thw. In a list, a path that ends like a video file is a video, any
                other is a frame. Of a file, two frames a second are read, at least 4 and at most 768.
            history: earlier turns, as this method returned them; [] begins a dialogue. Plain (query, answer) pairs do,
                but carry no pictures.
            system: the system message. None leaves it to the template.
            stream: True writes the answer to standard output as it comes; or a streamer of transformers.
            processor: the processor of transformers, where the files in the checkpoint's folder are not to be used.
            max_new_tokens: by default what ``generation_config`` says, or 512.
            generation_config: in place of the checkpoint's own.
            return_history: return the history even where none was given.
            min_pixels, max_pixels: of each picture and each frame of this turn; default: the checkpoint's.
            gen_kwargs: for ``generate``, such as do_sample=False or num_beams=3.

        Returns:
            The answer; (answer, history) if ``history`` was given or ``return_history`` is set. The history is a new
            list of ``Turn``.

        Raises:
            ValueError: something that cannot be read or does not fit; one line that says what to do.
        """
        past = _turns(history)
        processing = self.processing(tokenizer, processor)
        pictures = processing.pictures(image, min_pixels, max_pixels)
        videos = processing.videos(video, min_pixels, max_pixels)
        if not (query or pictures or videos):
            raise ValueError("query is empty and there is no picture: ask something")
        asked = Turn(query, "", pictures, videos)
        inputs = self.chat_inputs(tokenizer, [*past, asked], system, processing)
        inputs = {key: value.to(self.device) for key, value in inputs.items()}
        options = _options(tokenizer, generation_config or self.generation_config, max_new_tokens, gen_kwargs)
        if generation_config is not None:
            options["generation_config"] = generation_config
        if stream:
            streamer = TextStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
            options["streamer"] = streamer if stream is True else stream
        out = self.generate(**inputs, **options)
        ids = out if isinstance(out, Tensor) else out.sequences
        answer = tokenizer.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()
        if history is None and not return_history:
            return answer
        return answer, [*past, Turn(query, answer, pictures, videos)]

    def chat_inputs(
        self, tokenizer: Any, turns: Sequence[Turn], system: str | None = SYSTEM, processing: Any = None
    ) -> dict[str, Tensor]:
        """What ``generate`` takes for a dialogue, on the CPU, batch of one; the last turn's answer is left open.

        ``Qwen2VL_MoB.prompts.pad_batch`` joins several.
        """
        processing = processing or self.processing(tokenizer)
        messages = []
        if system is not None:
            check_text(system, "system")
            messages.append({"role": "system", "content": system})
        for turn in turns:
            messages.append({"role": "user", "content": place(turn[0], len(turn.pictures), len(turn.videos))})
            messages.append({"role": "assistant", "content": turn[1]})
        family = self.config.model_type
        pictures, videos = ([one for turn in turns for one in getattr(turn, kind)] for kind in ("pictures", "videos"))
        text = expand(render(messages[:-1], tokenizer, family), pictures, videos, processing.merge, family)
        return encode(text, tokenizer, self.config) | processing.collect(pictures, videos)

    def processing(self, tokenizer: Any = None, processor: Any = None) -> Processing:
        """What turns pictures into patches, by the files of this checkpoint (or of the tokenizer's folder)."""
        if processor is not None:
            return Processing.from_processor(processor, self.config)
        if (made := self.__dict__.get("_processing")) is None:
            name = self.config._name_or_path or getattr(tokenizer, "name_or_path", "")
            made = Processing.from_pretrained(name, self.config, getattr(self.config, "_commit_hash", None))
            self.__dict__["_processing"] = made
        return made


def _turns(history: Sequence[Sequence[str]] | None) -> list[Turn]:
    """Earlier turns, checked. Plain pairs become turns without pictures."""
    turns = []
    for pair in history or ():
        if isinstance(pair, Turn):
            turns.append(pair)
            continue
        if isinstance(pair, str) or not isinstance(pair, Sequence) or len(pair) != 2:
            raise ValueError(f"history holds {pair!r:.60}: give what chat returned, or (query, answer) pairs of text")
        for text in pair:
            check_text(text, "history")
        turns.append(Turn(*pair))
    return turns


def _options(tokenizer: Any, generation: Any, length: int | None, given: dict[str, Any]) -> dict[str, Any]:
    """Keywords of ``generate``; an answer ends at <|im_end|> whatever else the checkpoint says."""
    stops = given.get("eos_token_id", generation.eos_token_id)
    stops = [] if stops is None else [stops] if isinstance(stops, int) else torch.as_tensor(stops).tolist()
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    if "eos_token_id" not in given and isinstance(end, int) and end not in (*stops, tokenizer.unk_token_id):
        stops.append(end)
    pad = generation.pad_token_id if generation.pad_token_id is not None else tokenizer.pad_token_id
    options: dict[str, Any] = {"max_new_tokens": length or generation.max_new_tokens or LENGTH}
    if stops:
        options |= {"eos_token_id": stops, "pad_token_id": stops[0] if pad is None else pad}
    return options | given
