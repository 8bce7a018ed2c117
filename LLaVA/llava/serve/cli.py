"""Talk with a LLaVA about a picture: ``python -m llava.serve.cli --image-file photo.jpg``.

The picture belongs to the first turn. An empty line or Ctrl-D ends the talk, Ctrl-C ends an answer. Every turn reads
the whole talk anew and is pruned anew, with all of its text as the prompt (``--mob-*``; ``--debug`` says what was
kept). Without ``--model-path`` the tiny checkpoint that ships with this package answers; it was made for one turn.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

import torch
from PIL import Image
from transformers import TextStreamer

from llava.constants import DEFAULT_IMAGE_TOKEN
from llava.conversation import conv_mode_for, conv_templates
from llava.eval.model import decode, generation_options
from llava.eval.prompts import encode, place_images
from llava.eval.run_llava import Asker, bounded, exit_code, image_parser, positive, say
from llava.mm_utils import load_images, process_images
from mob.flags import add_mob_flags


class Talk:
    """A dialogue about pictures with a loaded model."""

    def __init__(self, asker: Asker, images: list[Image.Image], conv_mode: str | None = None) -> None:
        self.asker, self.images = asker, images
        self.turns: list[tuple[str, str | None]] = []  # questions and answers; the last may be open
        # None: the checkpoint's chat template, or where it has none the conversation that goes with its name.
        self.mode = conv_mode or (None if asker.tokenizer.chat_template else conv_mode_for(asker.name))
        if self.mode is not None and self.mode not in conv_templates:
            raise ValueError(f"no conversation template {self.mode!r}: use one of {', '.join(sorted(conv_templates))}")
        asker.model.config.MoB_config = asker.mob

    def prompt(self) -> str:
        """The whole dialogue, open for the next answer."""
        first, *later = self.turns
        tagged = getattr(self.asker.model.config, "mm_use_im_start_end", False)
        turns = [(place_images(first[0], len(self.images), tagged), first[1]), *later]
        return self._templated(turns) if self.mode is None else self._conversed(turns)

    def _conversed(self, turns: list[tuple[str, str | None]]) -> str:
        conv = conv_templates[self.mode].copy()
        for question, answer in turns:
            conv.append_message(conv.roles[0], question)
            conv.append_message(conv.roles[1], answer)
        return conv.get_prompt()

    def _templated(self, turns: list[tuple[str, str | None]]) -> str:
        messages = []
        for question, answer in turns:
            marks = question.count(DEFAULT_IMAGE_TOKEN)
            text = question.replace(f"{DEFAULT_IMAGE_TOKEN}\n", "").replace(DEFAULT_IMAGE_TOKEN, "")
            messages.append(_message("user", text, marks))
            if answer is not None:
                messages.append(_message("assistant", answer))
        return self.asker.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)

    def ask(self, question: str) -> str:
        """One turn; the answer is printed while it is made. Interrupted, it is forgotten."""
        model, tokenizer = self.asker.model, self.asker.tokenizer
        self.turns.append((question, None))
        try:
            ids = encode(self.prompt(), tokenizer).to(model.device)
            pixels = process_images(self.images, self.asker.image_processor, model.config)
            streamer = TextStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
            options = generation_options(self.asker.args) | {"streamer": streamer}
            model.pruning.clear()
            with torch.inference_mode():
                out = model.generate(ids, images=pixels, image_sizes=[i.size for i in self.images], **options)
        except BaseException:
            self.turns.pop()
            raise
        answer = decode(out, tokenizer, model.generation_config.eos_token_id)[0]
        self.turns[-1] = question, answer
        return answer


def _message(role: str, text: str, pictures: int = 0) -> dict[str, Any]:
    return {"role": role, "content": [{"type": "image"}] * pictures + [{"type": "text", "text": text}]}


def talk(args: argparse.Namespace) -> None:
    """Read questions from standard input until an empty line or its end."""
    images = load_images(image_parser(args))
    dialogue = Talk(Asker(args), images, args.conv_mode)
    user, assistant = conv_templates[dialogue.mode].roles if dialogue.mode else ("USER", "ASSISTANT")
    while True:
        try:
            question = input(f"{user}: ").strip()
        except (EOFError, KeyboardInterrupt):
            question = ""
        if not question:
            say("bye")
            return
        print(f"{assistant}: ", end="", flush=True)
        try:
            dialogue.ask(question)
        except KeyboardInterrupt:
            say("(interrupted; this turn is forgotten)")
        if args.debug:
            _describe(dialogue)


def _describe(dialogue: Talk) -> None:
    say(f"prompt: {dialogue.prompt()!r}" if dialogue.turns else "prompt: none")
    for record in dialogue.asker.model.pruning.records:
        say(f"kept {record.K} of {record.N} visual tokens from layer {record.layer} on")


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m llava.serve.cli", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model-path", help="folder or hub name (default: the checkpoint that ships with the package)")
    parser.add_argument("--model-base")
    parser.add_argument("--image-file", required=True, help="path or URL; several with --sep between")
    parser.add_argument("--sep", default=",")
    parser.add_argument("--device", default="cuda", help="cuda, mps or cpu (default: the best there is)")
    parser.add_argument("--conv-mode", help="conversation template (default: the checkpoint's own)")
    parser.add_argument("--temperature", type=bounded(0, None), default=0.2, help="0: greedy (0.2)")
    parser.add_argument("--top_p", "--top-p", type=bounded(0, 1))
    parser.add_argument("--max-new-tokens", "--max_new_tokens", type=positive, default=512, help="(512)")
    parser.add_argument("--load-8bit", action="store_true")
    parser.add_argument("--load-4bit", action="store_true")
    parser.add_argument("--use-flash-attn", action="store_true")
    parser.add_argument("--debug", action="store_true", help="show prompts, and what was kept")
    add_mob_flags(parser)
    args = parser.parse_args(argv)
    args.num_beams = 1  # an answer that is printed while it is made has one beam
    return args


def main(argv: list[str] | None = None) -> int:
    return exit_code(talk, parse(argv))


if __name__ == "__main__":
    sys.exit(main())
