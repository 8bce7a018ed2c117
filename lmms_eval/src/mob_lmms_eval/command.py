"""The command line of the stock ``lmms-eval``, for our models: hyphens, ``--log-retained-patches``, exit codes.

lmms-eval 0.7.3 has no way to add a flag, but it loads its plugins before it reads ``sys.argv``. So the list is
rewritten there: flags may be spelled with hyphens, and the one new flag becomes what lmms-eval understands. Other
models' command lines are left alone.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

FLAG = "--log_retained_patches"
OPTION = "log_retained_patches=True"
TASKS = Path(__file__).parent / "tasks"
OUTPUT = "./logs/"
# lmms-eval spells these few with hyphens itself.
_HYPHENS = ("--process-docs-parallel", "--power-analysis", "--effect-size", "--std-a", "--std-b")

_state = {"prepared": False}


class Refused(SystemExit):
    """A command line that cannot work; lmms-eval catches every exception but this one, and would exit with 0."""

    def __init__(self, message: str) -> None:
        super().__init__(f"error: {' '.join(message.split())}")


def prepare(argv: list[str], models: Collection[str]) -> None:
    """Rewrite ``argv`` in place, once in a process, if it asks for one of our models or for our flag."""
    if _state["prepared"]:
        return
    new = rewritten(argv[1:], models)
    if new is None:
        return
    _state["prepared"] = True
    argv[1:] = new
    _fail_with_a_code()


def rewritten(words: list[str], models: Collection[str]) -> list[str] | None:
    """The words after the program's name as lmms-eval 0.7.3 reads them; None where they are not ours.

    Raises:
        Refused: the flag without a model of ours, or together with --use_cache, which stores answers only.
    """
    words = [_underscored(word) for word in words]
    model, flag = _value(words, "--model"), FLAG in words
    if model not in models and not flag:
        return None
    if model not in models:
        close = difflib.get_close_matches(str(model), list(models), n=1)
        hint = f"did you mean {close[0]}?" if close else f"use one of {', '.join(models)}"
        raise Refused(f"--log-retained-patches needs a model that prunes, and --model is {model}: {hint}")
    if flag:
        words = [word for word in words if word != FLAG]
        if _value(words, "--use_cache", "-c") is not None:
            raise Refused(
                "--use_cache keeps answers without what was retained, so it does not go with --log-retained-patches: "
                "use --model_args resume=FOLDER, which keeps both"
            )
        words = _with_option(words)
        words += [] if "--log_samples" in words else ["--log_samples"]
        words += [] if _value(words, "--output_path") is not None else ["--output_path", OUTPUT]
    words += [] if _value(words, "--include_path") is not None else ["--include_path", str(TASKS)]
    if {"-h", "--help"}.isdisjoint(words) and _value(words, "--tasks") is None and _value(words, "--config") is None:
        raise Refused("--tasks is missing: name one, such as --tasks mob_scenes, which needs no download")
    return words


def _underscored(word: str) -> str:
    name, mark, value = word.partition("=")
    if not name.startswith("--") or name in _HYPHENS:
        return word
    return "--" + name[2:].replace("-", "_") + mark + value


def _value(words: list[str], *names: str) -> str | None:
    """What a flag is given, as ``--flag value`` or ``--flag=value``; the last one counts."""
    found = None
    for at, word in enumerate(words):
        name, mark, value = word.partition("=")
        if name in names:
            found = value if mark else words[at + 1] if at + 1 < len(words) else None
    return found


def _with_option(words: list[str]) -> list[str]:
    """The words with our option at the end of --model_args."""
    out, given = list(words), _value(words, "--model_args")
    if given is None:
        return [*out, "--model_args", OPTION]
    at = max(i for i, word in enumerate(out) if word.partition("=")[0] == "--model_args")
    text = f"{given},{OPTION}" if given else OPTION
    if "=" in out[at]:
        out[at] = f"--model_args={text}"
    else:
        out[at + 1] = text
    return out


def _fail_with_a_code() -> None:
    """lmms-eval 0.7.3 prints what went wrong and exits with 0: make that 1."""
    from loguru import logger

    def check(record: dict) -> None:
        if record["name"] == "lmms_eval.__main__" and record["message"].startswith("Error during evaluation"):
            raise SystemExit(1)

    logger.configure(patcher=check)  # the one setting that survives when lmms-eval sets its logger up anew


@contextmanager
def one_line(where: str = "") -> Iterator[None]:
    """In the stock command a ValueError becomes its one line and exit code 1; from Python it stays an exception."""
    try:
        yield
    except ValueError as error:
        if not _state["prepared"]:
            raise
        raise Refused(f"{where}{error}") from None
