"""The command line that talks: turns, the picture in the first, and clear ends."""

from __future__ import annotations

import pytest

import checkpoints
from evaluating import failure
from llava.serve import cli


def talk(monkeypatch, picture, said, *more):
    lines = iter(said)

    def read(prompt):
        print(prompt, end="")
        line = next(lines, EOFError())
        if isinstance(line, BaseException):
            raise line
        return line

    monkeypatch.setattr("builtins.input", read)
    return cli.main(["--image-file", str(picture), "--temperature", "0", "--device", "cpu", *more])


def test_the_embedded_checkpoint_answers(monkeypatch, data, capsys):
    row = data.of("colour")[0]
    assert talk(monkeypatch, data.images / row["image"], [row["text"]], "--mob-K", "50", "--debug") == 0
    out, err = capsys.readouterr()
    assert out.startswith(f"USER: ASSISTANT: {row['expected']}\n")
    assert "kept 50 of 196 visual tokens" in err and "bye" in err and err.count("<image>") == 1


@pytest.mark.parametrize("layout, mode", [("stock", None), ("original", None), ("stock", "vicuna_v1")])
def test_later_turns_hold_the_earlier_ones(monkeypatch, data, tmp_path, capsys, layout, mode):
    source = checkpoints.model()
    if layout == "stock":
        path = checkpoints.stock_folder(tmp_path / "llava-hf", source)
    else:
        tower = checkpoints.tower_folder(tmp_path / "tower", source)
        path = checkpoints.original_folder(tmp_path / "llava-v1.5", tower, source)
    more = ["--model-path", str(path), "--max-new-tokens", "4", "--debug", *(["--conv-mode", mode] if mode else [])]
    assert talk(monkeypatch, data.images / "0.png", ["one?", "two?", ""], *more) == 0
    prompts = [line for line in capsys.readouterr().err.splitlines() if line.startswith("prompt: ")]
    assert len(prompts) == 2
    assert all(prompt.count("<image>") == 1 and prompt.count("one?") == 1 for prompt in prompts)
    assert prompts[1].index("<image>") < prompts[1].index("one?") < prompts[1].index("two?")


def test_an_interrupted_answer_is_forgotten(monkeypatch, data, capsys):
    real = cli.Talk.ask

    def ask(self, question):
        if question == "stop":
            monkeypatch.setattr(self.asker.model, "generate", interrupted)
        return real(self, question)

    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli.Talk, "ask", ask)
    assert talk(monkeypatch, data.images / "0.png", ["stop", KeyboardInterrupt()], "--debug") == 0
    err = capsys.readouterr().err
    assert "forgotten" in err and "prompt: none" in err


def test_wrong_options(monkeypatch, data, capsys):
    assert talk(monkeypatch, "/nowhere.png", []) == 2
    assert "there is no picture" in failure(capsys)
    assert talk(monkeypatch, data.images / "0.png", [], "--conv-mode", "x") == 2
    assert "no conversation template" in failure(capsys)
