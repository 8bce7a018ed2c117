"""The rewritten command line, without lmms-eval."""

from __future__ import annotations

import pytest

from mob_lmms_eval import command
from mob_lmms_eval.register import MODELS

MOB = ["--model", "llava-v1.6-mob", "--tasks", "scienceqa_img"]
INCLUDE = ["--include_path", str(command.TASKS)]


def rewritten(*words):
    return command.rewritten(list(words), MODELS)


def test_the_promised_command():
    assert rewritten(*MOB, "--batch-size", "1", "--log-retained-patches") == [
        *MOB,
        *("--batch_size", "1"),
        *("--model_args", "log_retained_patches=True"),
        "--log_samples",
        *("--output_path", "./logs/"),
        *INCLUDE,
    ]


@pytest.mark.parametrize(
    "given, wanted",
    [
        (["--batch-size=2"], ["--batch_size=2"]),
        (["--model-args", "K=64"], ["--model_args", "K=64"]),
        (["--process-docs-parallel", "2"], ["--process-docs-parallel", "2"]),
        (["--effect-size=0.1", "-b", "2"], ["--effect-size=0.1", "-b", "2"]),
    ],
)
def test_hyphens(given, wanted):
    assert rewritten(*MOB, *given) == [*MOB, *wanted, *INCLUDE]


@pytest.mark.parametrize(
    "given, wanted",
    [
        (["--model_args", "K=64"], ["--model_args", "K=64,log_retained_patches=True"]),
        (["--model_args=K=64,k=2"], ["--model_args=K=64,k=2,log_retained_patches=True"]),
        (["--model-args", ""], ["--model_args", "log_retained_patches=True"]),
    ],
)
def test_the_flag_becomes_an_option_of_the_model(given, wanted):
    own = ["--log_samples", "--output_path", "out", *INCLUDE]
    assert rewritten(*MOB, *given, "--log_retained_patches", "--log-samples", "--output-path", "out") == [
        *MOB,
        *wanted,
        *own[:3],
        *INCLUDE,
    ]


def test_what_is_given_stays():
    assert rewritten(*MOB, "--include-path", "mine") == [*MOB, "--include_path", "mine"]
    assert rewritten("--model=llava-v1.5-mob", "--tasks=pope") == ["--model=llava-v1.5-mob", "--tasks=pope", *INCLUDE]
    assert rewritten("--model", "llava-v1.5-mob", "--help") == ["--model", "llava-v1.5-mob", "--help", *INCLUDE]


@pytest.mark.parametrize("words", [["--model", "llava_hf", "--batch-size", "1"], ["--tasks", "list"], ["--model"], []])
def test_other_command_lines_are_left_alone(words):
    assert rewritten(*words) is None
    argv = ["lmms-eval", *words]
    command.prepare(argv, MODELS)
    assert argv == ["lmms-eval", *words]


@pytest.mark.parametrize(
    "words, message",
    [
        ([*MOB, "--use-cache", "x", "--log-retained-patches"], "--use_cache keeps answers without .* resume=FOLDER"),
        ([*MOB, "-c", "x", "--log_retained_patches"], "--use_cache"),
        ([*MOB, "--use_cache=x", "--log_retained_patches"], "--use_cache"),
        (["--model", "llava-v1.6", "--tasks", "pope", "--log-retained-patches"], "did you mean llava-v1.6-mob"),
        (["--model", "gpt", "--log-retained-patches"], "use one of llava-v1.5-mob, "),
        (["--model", "llava-v1.6-mob"], "--tasks is missing"),
    ],
)
def test_refusals_are_one_line(words, message):
    with pytest.raises(command.Refused, match=message) as raised:
        rewritten(*words)
    assert str(raised.value).startswith("error: ") and "\n" not in str(raised.value)


def test_errors_stay_exceptions_in_python(monkeypatch):
    with pytest.raises(ValueError, match="^wrong$"), command.one_line("here: "):
        raise ValueError("wrong")
    monkeypatch.setitem(command._state, "prepared", True)
    with pytest.raises(SystemExit, match="^error: here: wrong thing$"), command.one_line("here: "):
        raise ValueError("wrong\nthing")


def test_a_failure_that_lmms_eval_only_prints_ends_the_process():
    """Its own exit code would be 0. A message from elsewhere is left alone."""
    from loguru import logger

    command._fail_with_a_code()
    try:
        failed = "logger.error('Error during evaluation: nothing there')"
        exec(failed, {"__name__": "elsewhere", "logger": logger})
        exec("logger.error('Tasks were not found')", {"__name__": "lmms_eval.__main__", "logger": logger})
        with pytest.raises(SystemExit) as raised:
            exec(failed, {"__name__": "lmms_eval.__main__", "logger": logger})
        assert raised.value.code == 1
    finally:
        logger.configure(patcher=lambda record: None)
