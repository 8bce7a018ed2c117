"""Answer open questions at length, as LLaVA-Bench and MM-Vet ask them: ``python -m llava.eval.model_vqa``.

Questions are JSON lines ``{"question_id", "image", "text"}``, answers JSON lines ``{"question_id", "prompt", "text",
"answer_id", "model_id", "metadata"}`` in the same order. See ``llava.eval.answering`` for batches, interruptions and
pictures that cannot be read.
"""

from __future__ import annotations

import sys

from llava.eval.answering import make_parser
from llava.eval.model import ask_pictures
from llava.eval.model_vqa_loader import questions


def main(argv: list[str] | None = None) -> int:
    args = make_parser("llava.eval.model_vqa", __doc__, length=1024).parse_args(argv)
    return ask_pictures(args, questions)


if __name__ == "__main__":
    sys.exit(main())
