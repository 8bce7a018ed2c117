"""``measure``: the experiments over many pictures, into a folder that can be continued."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from redundancy_codebook.experiment import ABLATIONS, TOKENS_PER_PASS, Options, Reader, measure, replacement
from redundancy_codebook.models import Subject, base_view, encode, identity, newline, seen, split_prompt
from redundancy_codebook.pictures import Picture, fingerprint
from redundancy_codebook.runs import Run, open_run, write_table, writing
from redundancy_codebook.sampling import SAMPLINGS, choose

QUESTIONS = ("What does this picture show? Answer with the single word that describes it best.",)
# The embedded checkpoint knows few words, and each of its questions is about one thing only.
SCENES_QUESTIONS = ("how many objects are there ?", "what number is on the sign ?", "which shape is most common ?")


@dataclass(frozen=True)
class Settings:
    """Of a run; saved with it, and a run goes on only with the same.

    Attributes:
        questions: asked about every picture. Of several, each measurement is the largest: a token is redundant only if
            it is so for all of them. The published experiments ask one.
        template, conv_mode, answer: see ``models.split_prompt``.
        sampling: which patches are tested: "grid", "cls", "random" or "all"; ``count`` and ``seed`` of "random",
            ``ranks`` of "cls" (None: the published ones).
        ablation: what stands in for a token that is left out: "pad" (the embedding of ``pad_id``, by default the
            model's padding word), "zero", "mean" (the picture's mean token), or nothing, "delete".
        newline: end the picture with the model's newline token, where it has one.
        crop: resize and crop pictures where the checkpoint would pad them, as the published experiments did.
        repeat, head_topk, divergence_topk: see ``experiment.Options``.
        tokens_per_pass: rows are batched up to so many tokens; lower it where memory runs out.
    """

    questions: tuple[str, ...] = QUESTIONS
    template: str | None = None
    conv_mode: str | None = None
    answer: str = ""
    sampling: str = "grid"
    count: int = 64
    ranks: tuple[int, ...] | None = None
    seed: int = 0
    ablation: str = "pad"
    pad_id: int | None = None
    newline: bool = True
    crop: bool = False
    repeat: int = 1
    head_topk: int = Options.head_topk
    divergence_topk: int = Options.divergence_topk
    tokens_per_pass: int = TOKENS_PER_PASS

    def __post_init__(self) -> None:
        for name, choices in (("sampling", SAMPLINGS), ("ablation", ABLATIONS)):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name}={getattr(self, name)!r}: use one of {', '.join(choices)}")
        for name in ("count", "tokens_per_pass"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: must be at least 1")
        if not self.questions:
            raise ValueError("questions is empty: give at least one")
        self.options()

    def options(self) -> Options:
        return Options(self.repeat, self.head_topk, self.divergence_topk)


def run(subject: Subject, pictures: Sequence[Picture], folder: str | Path, settings: Settings, bar: bool = True) -> Run:
    """Measure what is not measured yet.

    Args:
        folder: of a new run, or of one that was begun with the same model, settings and pictures.
        bar: show progress and the time left, on standard error.

    Raises:
        ValueError: settings that do not fit the model, a folder with another run, or a picture that cannot be read.
    """
    model = subject.model
    end = newline(subject) if settings.newline else None
    readers = []
    for question in settings.questions:
        before, after = split_prompt(subject, question, settings.template, settings.conv_mode, settings.answer)
        readers.append(Reader(model, before, after, end, settings.tokens_per_pass))
    pad = readers[0].embed([pad_id(subject, settings)])[0]
    if settings.sampling == "cls" and "siglip" in model.config.vision_config.model_type:
        choose("cls", subject.grid)  # refuses
    dtype = model.dtype if model.dtype in (torch.float16, torch.bfloat16) else torch.float32
    with writing(folder, manifest(subject, pictures, settings, dtype)) as writer:
        left = range(writer.done, len(pictures))
        off = None if bar else True  # None: off where standard error is no terminal
        progress = tqdm(left, initial=writer.done, total=len(pictures), unit="picture", disable=off, leave=False)
        for number in progress:
            picture = pictures[number]
            image = picture.load()
            view = encode(subject, base_view(subject, image, settings.crop))
            indices = choose(
                settings.sampling,
                subject.grid,
                cls_cosine=view.cls_cosine,
                ranks=settings.ranks,
                count=settings.count,
                seed=(settings.seed, number),
            )
            missing = replacement(settings.ablation, view.features, pad)
            tested = (view.features, subject.grid, indices, missing, settings.options())
            answers = [_measure(reader, *tested) for reader in readers]
            values = {name: torch.stack([one[name] for one in answers]).amax(0) for name in answers[0]}
            if view.cls_cosine is not None:
                values["cls_cosine"] = view.cls_cosine[indices].cpu()
            box = seen(subject, image.size, settings.crop)
            about = {"picture": picture.name, "domain": picture.domain, "size": image.size, "box": box}
            writer.add(about, indices, values, view.features[indices])
    finished = open_run(folder)
    write_table(finished)
    return finished


def _measure(reader: Reader, *tested: Any) -> dict[str, torch.Tensor]:
    try:
        return measure(reader, *tested)
    except torch.OutOfMemoryError as error:
        raise ValueError(f"out of memory: lower --tokens-per-pass (now {reader.tokens_per_pass})") from error


def pad_id(subject: Subject, settings: Settings) -> int:
    """The word that stands in for a token: the one asked for, the tokenizer's or config's padding, or word 0."""
    config = subject.model.config.get_text_config()
    for token in (settings.pad_id, getattr(config, "pad_token_id", None), subject.tokenizer.pad_token_id, 0):
        if token is not None:
            break
    size = subject.model.get_input_embeddings().num_embeddings
    if not 0 <= token < size:
        raise ValueError(f"pad_id={token}: this model's words are 0 to {size - 1}")
    return token


def manifest(subject: Subject, pictures: Sequence[Picture], settings: Settings, dtype: torch.dtype) -> dict[str, Any]:
    """What a run must agree in to be continued. No dates: the same run twice gives the same bytes."""
    return {
        "identity": identity(subject),
        "settings": asdict(settings),
        "pad_id": pad_id(subject, settings),
        "features_dtype": str(dtype).removeprefix("torch."),
        "pictures": {"count": len(pictures), "sha256": fingerprint(pictures)},
        "versions": versions(),
    }


def versions() -> dict[str, str | None]:
    out: dict[str, str | None] = {}
    for name in ("torch", "transformers", "mob", "redundancy-codebook"):
        try:
            out[name] = version(name)
        except PackageNotFoundError:
            out[name] = None
    return out
