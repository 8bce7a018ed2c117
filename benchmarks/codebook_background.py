"""What happens to the embedded checkpoint when a codebook leaves no background at all.

    python benchmarks/codebook_background.py

Keeps 22 of 196 tokens by the codebook in codebooks/scenes, before the decoder, but takes some of them from the most
redundant ones; 15 held-out questions of each kind. One line of JSON for each number of such tokens: percent right, and
the most frequent first words of the answers. Quoted in RedundancyCodebook/README.md.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from unittest import mock

import torch
from torch import Tensor
from transformers import LlavaForConditionalGeneration

from llava.scenes import evaluate
from llava.scenes.checkpoint import PATH, build_tokenizer
from llava.scenes.packing import IGNORE
from mob import Pruning
from mob.methods import codebook

K, ASKED = 22, 15
SETUP = evaluate.Setup(codebook=str(Path(__file__).parent.parent / "codebooks/scenes/codebook.safetensors"))


def mixed(redundant: int):
    """A stand-in for ``keep_lowest``: so many of the ``count`` tokens are the most redundant ones."""

    def keep(values: Tensor, count: int) -> Tensor:
        rank = codebook._ranks(values)
        return (rank < count - redundant) | (rank >= values.shape[-1] - redundant)

    return keep


@torch.inference_mode()
def first_words(model: LlavaForConditionalGeneration) -> Counter[str]:
    """What the answers begin with."""
    tokenizer, found = build_tokenizer(), Counter()
    for _, inputs in evaluate.batches(evaluate.questions(ASKED), 45):
        with Pruning(model, evaluate.settings_for("codebook", K, 0, SETUP)):
            tokens = model(**inputs).logits.argmax(-1)
        before = (inputs["labels"] != IGNORE).int().argmax(1) - 1  # each answer is predicted from the place before it
        found.update(tokenizer.decode([token]) for token in tokens.gather(1, before[:, None])[:, 0].tolist())
    return found


def main() -> None:
    model = LlavaForConditionalGeneration.from_pretrained(PATH, dtype=torch.float32).eval()
    for redundant in (0, 1, 4, 11):
        with mock.patch.object(codebook, "keep_lowest", mixed(redundant)):
            scores = evaluate.run(model, ["codebook"], [K], ASKED, setup=SETUP, batch=45)
            words = first_words(model)
        right = round(scores.macro(("codebook", K))[0], 1)
        print(json.dumps({"K": K, "most_redundant": redundant, "right": right, "answers": dict(words.most_common(3))}))


if __name__ == "__main__":
    main()
