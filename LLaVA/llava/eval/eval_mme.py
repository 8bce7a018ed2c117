"""MME: ``python -m llava.eval.eval_mme --benchmark-dir MME_Benchmark_release_version --result-file answers.jsonl``.

Each picture has two questions. A category scores the percent of questions right plus the percent of pictures with both
right, 200 at most; perception is the sum of ten categories, cognition of four. An answer is the word yes or no within
its first four letters. The right answers are read from the benchmark's folder, a text file of ``question<tab>Yes``
lines for each picture.
"""

from __future__ import annotations

import re
import sys
from collections import defaultdict
from pathlib import Path

from llava.eval.files import folder, read_text
from llava.eval.metrics import answers_of, complete, finish, make_parser, percent

PERCEPTION = ["existence", "count", "position", "color", "posters", "celebrity", "scene", "landmark", "artwork", "OCR"]
COGNITION = ["commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning"]
_REQUESTS = ("Answer the question using a single word or phrase.", "Please answer yes or no.")

Key = tuple[str, str, str]  # category, picture without its ending, question


def bare(question: str) -> str:
    """The question without what asks for a short answer, blanks made single."""
    for request in _REQUESTS:
        question = question.replace(request, "")
    return re.sub(r"\s+", " ", question).strip()


def yes_or_no(text: str) -> str:
    start = text.strip().lower()[:4]
    return next((word for word in ("yes", "no") if word in start), "other")


def truth(benchmark: Path) -> dict[Key, str]:
    """The right answer of every question."""
    out: dict[Key, str] = {}
    for category in PERCEPTION + COGNITION:
        place = benchmark / category
        inner = place / "questions_answers_YN"
        for file in sorted((inner if inner.is_dir() else place).glob("*.txt")):
            for number, line in enumerate(read_text(file).splitlines(), 1):
                question, tab, answer = line.rpartition("\t")
                if line.strip() and not tab:
                    raise ValueError(f"{file}, line {number}: no tab between question and answer")
                if line.strip():
                    out[category, file.stem, bare(question)] = answer.strip().lower()
    if not out:
        raise ValueError(f"--benchmark-dir {benchmark}: no questions in {PERCEPTION[0]}/*.txt or other categories")
    return out


def evaluate(benchmark_dir: str, result_file: str) -> dict[str, float]:
    """The score of each category that the benchmark's folder has, 0 to 200."""
    right = truth(folder(benchmark_dir, "--benchmark-dir"))
    said: dict[Key, str] = {}
    for row in answers_of(result_file, needs=("question_id", "prompt", "text")):
        category, _, picture = str(row["question_id"]).rpartition("/")
        said[category.split("/")[0], Path(picture).stem, bare(row["prompt"])] = yes_or_no(row["text"])
    complete(sum(key in said for key in right), len(right), result_file)
    pictures: dict[str, dict[str, list[bool]]] = defaultdict(lambda: defaultdict(list))
    for key, answer in right.items():
        pictures[key[0]][key[1]].append(said[key] == answer)
    return {category: _score(list(found.values())) for category, found in pictures.items()}


def _score(pictures: list[list[bool]]) -> float:
    questions = [one for picture in pictures for one in picture]
    return percent(sum(questions), len(questions)) + percent(sum(map(all, pictures)), len(pictures))


def main(argv: list[str] | None = None) -> int:
    parser = make_parser("llava.eval.eval_mme", __doc__)
    parser.add_argument("--benchmark-dir", required=True)
    parser.add_argument("--result-file", required=True)
    args = parser.parse_args(argv)

    def work() -> None:
        scores = evaluate(args.benchmark_dir, args.result_file)
        for title, names in (("Perception", PERCEPTION), ("Cognition", COGNITION)):
            there = [name for name in names if name in scores]
            part = f" ({len(there)} of {len(names)} categories)" if len(there) < len(names) else ""
            print(f"=========== {title} ===========\ntotal score: {sum(scores[n] for n in there):.2f}{part}\n")
            for name in there:
                print(f"\t {name}  score: {scores[name]:.2f}")
            print()

    return finish(work)


if __name__ == "__main__":
    sys.exit(main())
