"""LLaVA-1.5 and 1.6 behind the evaluation commands: pictures to tensors, batches of questions to texts."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from llava.constants import DEFAULT_IMAGE_TOKEN
from llava.eval.answering import Question, Report, finish, run
from llava.eval.files import folder
from llava.eval.prompts import build_prompt, encode
from llava.eval.run_llava import EMBEDDED, Asker
from llava.mm_utils import get_model_name_from_path, process_images, seen_box
from mob import RetainedPatches
from mob.audit.writing import digest_of, layers_of, save_picture, shown
from mob.media import ImageError, load_image, load_image_from_base64

LETTER_PROMPT = "Answer with the option's letter from the given choices directly."


@dataclass(frozen=True)
class Pictures:
    """Pictures of one question as the model takes them, and their (width, height) before; SHA-256 for the log."""

    tensors: list[Tensor]
    sizes: list[tuple[int, int]]
    digests: list[str | None]


class Llava:
    """An ``Answerer`` about pictures."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.asker = Asker(args)
        model, name = self.asker.model, self.asker.name
        model.config.MoB_config = self.asker.mob
        model.pruning.record = args.log_retained_patches is not None
        self.conv_mode = conv_mode(args.conv_mode, name)
        self.settings = model_settings(args.model_path or EMBEDDED.name, model, self.asker.mob)

    def process(self, media: list[Image.Image]) -> Pictures:
        digests = [digest_of(image) if self.args.log_retained_patches else None for image in media]
        if self.args.save_pictures:
            for image in media:
                save_picture(image, self.args.save_pictures)
        return Pictures(self._tensors(media), [image.size for image in media], digests)

    def shown(self, media: Pictures, files: Sequence[str]) -> dict[str, Any]:
        asker, names = self.asker, files or [None] * len(media.sizes)
        pictures = [
            shown(size, name=name, digest=digest, box=seen_box(size, asker.image_processor, asker.model.config))
            for size, name, digest in zip(media.sizes, names, media.digests, strict=True)
        ]
        return {"pictures": pictures, "layers": layers_of(asker.model.config)}

    def _tensors(self, images: list[Image.Image]) -> list[Tensor]:
        """One by one: a picture's pixels must not depend on what else is in its batch."""
        asker = self.asker
        try:
            return [process_images([image], asker.image_processor, asker.model.config)[0] for image in images]
        except ImageError:
            raise
        except (ValueError, OverflowError, MemoryError, ZeroDivisionError) as error:  # a side of no pixels, say
            sizes = ", ".join(f"{image.width} x {image.height}" for image in images)
            raise ImageError(f"a picture of {sizes} pixels cannot be cut to the model's size ({error})") from error

    def answer(self, queries: Sequence[str], media: Sequence[Pictures]) -> list[tuple[str, RetainedPatches | None]]:
        model, tokenizer = self.asker.model, self.asker.tokenizer
        rows = [self._ids(query, len(one.tensors)) for query, one in zip(queries, media, strict=True)]
        ids, mask = pad_left(rows)
        tensors = [tensor for one in media for tensor in one.tensors]
        sizes = [size for one in media for size in one.sizes]
        model.pruning.clear()
        with torch.inference_mode():
            out = model.generate(
                ids, attention_mask=mask, images=tensors, image_sizes=sizes, **generation_options(self.args)
            )
        texts = decode(out, tokenizer, model.generation_config.eos_token_id)
        return list(zip(texts, per_sample(model.pruning.records, len(rows)), strict=True))

    def _ids(self, query: str, pictures: int) -> Tensor:
        asker = self.asker
        text = build_prompt(query, pictures, asker.tokenizer, asker.model.config, asker.name, self.conv_mode)
        return encode(text, asker.tokenizer)[0]


# ---------------------------------------------------------------------------------------------------------------
# What models of every family share


def model_settings(path: Any, model: Any, mob: dict[str, Any]) -> dict[str, Any]:
    """What the answers owe to the model: which one, in which precision, with which pruning."""
    return {"model_path": str(path), "dtype": str(model.dtype).removeprefix("torch."), "MoB_config": mob}


def generation_options(args: argparse.Namespace) -> dict[str, Any]:
    """Keywords of ``generate``; temperature 0 is greedy."""
    options = {"max_new_tokens": args.max_new_tokens, "num_beams": args.num_beams, "do_sample": args.temperature > 0}
    if args.temperature > 0:
        options |= {"temperature": args.temperature} | ({} if args.top_p is None else {"top_p": args.top_p})
    return options


def pad_left(rows: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Ids (B, T) and their mask; the pad id does not matter, nobody sees it."""
    width = max(map(len, rows))
    ids, mask = torch.zeros(len(rows), width, dtype=torch.long), torch.zeros(len(rows), width, dtype=torch.long)
    for number, row in enumerate(rows):
        ids[number, width - len(row) :] = row
        mask[number, width - len(row) :] = 1
    return ids, mask


def decode(new: Tensor, tokenizer: Any, end: int | Iterable[int] | None) -> list[str]:
    """Texts of new tokens (B, T); a row that ends before the others is filled with something after its end token."""
    ends = {end} if isinstance(end, int) else set(end or ())
    rows = []
    for row in new.tolist():
        stop = next((i for i, token in enumerate(row) if token in ends), len(row))
        rows.append(tokenizer.decode(row[:stop], skip_special_tokens=True).strip())
    return rows


def per_sample(records: Sequence[RetainedPatches], samples: int) -> list[RetainedPatches | None]:
    """A record for each sample of a batch: beams have one each and begin alike. None where nothing was recorded."""
    if not records:
        return [None] * samples
    return list(records[:: len(records) // samples])


def conv_mode(wanted: str | None, model_name: str) -> str | None:
    """``--conv-mode``, for a model that was only pretrained with the variant whose pictures are in tags."""
    name = model_name.lower()
    if wanted and "plain" in name and "finetune" not in name and "mmtag" not in wanted:
        return f"{wanted}_mmtag"
    return wanted


# ---------------------------------------------------------------------------------------------------------------
# Questions about pictures


def picture_question(
    args: argparse.Namespace,
    key: dict[str, Any],
    prompt: str,
    query: str | None = None,
    image: str | None = None,
    inline: str | None = None,
    **extra: Any,
) -> Question:
    """A question in the shape of the original's answers files.

    Args:
        key: the first fields of the answer: ``question_id``, ``round_id``.
        prompt: what the answer says it was asked; ``query``: what the model is asked, where that is something else.
        image: a file in --image-folder, or a URL; ``inline``: base64 text instead. Neither: text alone.
        extra: further fields of the answer.
    """
    name = get_model_name_from_path(str(args.model_path or EMBEDDED))
    row = key | {"prompt": prompt, "text": None} | extra
    row |= {"answer_id": None, "model_id": name, "metadata": {}}

    def load() -> list[Image.Image]:
        if inline is not None:
            return [load_image_from_base64(inline)]
        if image is None:
            return []
        return [load_image(image if "://" in image[:8] else Path(args.image_folder) / image)]

    query = prompt if query is None else query
    if DEFAULT_IMAGE_TOKEN in query:  # the pictures come first whatever a question's text says
        query = query.replace(DEFAULT_IMAGE_TOKEN, "").strip()
    return Question(row, query, load, files=() if image is None or inline is not None else (image,))


def ask_pictures(args: argparse.Namespace, questions: Any) -> int:
    """The whole of a command: ``questions(args)`` makes the list; its exit code."""

    def work() -> Report:
        asked = questions(args)
        if args.image_folder:
            folder(args.image_folder, "--image-folder")
        return run(args, asked, lambda: Llava(args), [args.question_file])

    return finish(args, work)
