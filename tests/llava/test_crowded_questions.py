"""Questions about crowded scenes: answers, evidence, wordings, what training does to them."""

from __future__ import annotations

from collections import Counter
from itertools import combinations

import numpy as np
import pytest

from llava.scenes import crowded, crowded_questions, dialogues, evaluate, generator
from llava.scenes.checkpoint import NUM_PATCHES, build_tokenizer
from llava.scenes.crowded import CORNER, CORNERS, owner_boxes
from llava.scenes.crowded_questions import (
    ASK,
    FILLERS,
    LEAD,
    PLURALS,
    STRONG,
    TASKS,
    WEAK,
    WORDINGS,
    drop_word,
    without,
)
from llava.scenes.evaluate import questions
from llava.scenes.generator import BACKGROUND, COLOURS, SHAPES, SIGN, SIZE
from llava.scenes.packing import ScenePictures, hide_things
from llava.scenes.questions import Question
from llava.scenes.splits import SPLITS, split_of_vocabulary

CROWDED = SPLITS["crowded"]
SCENES = [CROWDED.scene(number) for number in range(150)]


def rng(seed=0):
    return np.random.default_rng(seed)


@pytest.fixture(scope="module")
def asked():
    """(scene, question) for every task that a scene has, three wordings each."""
    found = []
    for scene in SCENES:
        for number, task in enumerate(TASKS):
            for again in range(3):
                question = ASK[task](scene, rng([scene.seed, number, again]))
                found += [] if question is None else [(scene, question)]
    return found


def groups_of(scene, words):
    """Objects that "red objects" or "stars" means, from the scene's list."""
    (word,) = [w for w in words if w in COLOURS or w in PLURALS.values()]
    return [i for i, t in enumerate(scene.things) if t.colour == word or PLURALS[t.shape] == word]


def by_hand(scene, question):
    """(answer, owners of the patches that carry it), worked out from the text and the scene's lists alone."""
    text, everything = question.text.split(), range(len(scene.things))
    colours, shapes = [w for w in text if w in COLOURS], [w for w in text if w in SHAPES]
    if question.task == "exist":
        there = [i for i in everything if (scene.things[i].colour, scene.things[i].shape) == (colours[0], shapes[0])]
        return "yes" if there else "no", there
    if question.task == "colour":
        (one,) = [i for i in everything if scene.things[i].shape == shapes[0]]
        return scene.things[one].colour, [one]
    if question.task == "shape":
        (one,) = [i for i in everything if scene.things[i].colour == colours[0]]
        return scene.things[one].shape, [one]
    if question.task == "ocr":
        (one,) = [i for i, s in enumerate(scene.signs) if s.colour == colours[0]]
        return scene.signs[one].number, [SIGN + one]
    if question.task == "area":
        right, bottom = "right" in text, "bottom" in text
        inner = [SIZE - CORNER if far else CORNER for far in (right, bottom)]
        found = {}
        for owner, (x, y, w, h) in owner_boxes(scene).items():
            reaches = [
                at + half > edge if far else at - half < edge
                for at, half, edge, far in zip((x, y), (w, h), inner, (right, bottom), strict=True)
            ]
            found |= {owner: None} if all(reaches) else {}
        (one,) = found
        thing = scene.signs[one - SIGN] if one >= SIGN else scene.things[one]
        return f"{thing.colour} {'sign' if one >= SIGN else thing.shape}", [one]
    if question.task == "count":
        group = groups_of(scene, text)
        return str(len(group)), group
    if question.task == "compare":
        at = text.index("than")
        more, less = groups_of(scene, text[:at]), groups_of(scene, text[at:])
        assert abs(len(more) - len(less)) >= LEAD and more and less
        return "yes" if len(more) > len(less) else "no", more + less
    values = [t.shape if question.task == "modeshape" else t.colour for t in scene.things]
    ranking = sorted(set(values), key=values.count, reverse=True)
    assert len(ranking) == 1 or values.count(ranking[0]) >= values.count(ranking[1]) + LEAD
    return ranking[0], list(everything)


def test_answers_follow_from_the_scene(asked):
    for scene, question in asked:
        answer, owners = by_hand(scene, question)
        assert question.answer == answer
        assert sorted(question.refers + question.evidence) == sorted(owners)
        assert bool(question.evidence) <= (question.task in STRONG) and bool(question.refers) <= (question.task in WEAK)


def test_answers_cannot_be_guessed(asked):
    for task in TASKS:
        answers = Counter(question.answer for _, question in asked if question.task == task)
        assert sum(answers.values()) > 150
        most = answers.most_common(1)[0][1] / sum(answers.values())
        assert most < (0.6 if task in ("exist", "compare") else 0.3), (task, answers)


def test_weak_questions_rest_on_few_patches_and_strong_ones_on_many(asked):
    """The share of the picture that carries the answer, without a model: means of tasks and of couplings."""
    shares = {task: [] for task in TASKS}
    owners = {scene.seed: scene.patch_owners() for scene in SCENES}
    for scene, question in asked:
        patches = question.answer_patches(owners[scene.seed])
        assert patches.shape == (NUM_PATCHES,) and patches.any() == bool(question.refers or question.evidence)
        shares[question.task].append(patches.mean())
    means = {task: np.mean(values) for task, values in shares.items()}
    assert all(means[task] < 0.07 for task in WEAK), means
    assert means["count"] > 0.04 and all(means[task] > 0.12 for task in STRONG if task != "count"), means
    assert np.mean([means[t] for t in STRONG]) > 5 * np.mean([means[t] for t in WEAK])


def test_easy_questions_say_where_their_answers_are_too():
    for number in range(30):
        scene = generator.sample(number)
        owners = scene.patch_owners()
        for task, ask in SPLITS["easy"].ask.items():
            question = ask(scene, rng(number))
            if question is None:
                continue
            patches = question.answer_patches(owners)
            if task in ("pattern", "bgcolour"):
                assert (patches == (owners == BACKGROUND)).all()
            elif task in ("modeshape", "modecolour", "count"):
                assert (patches == ((owners >= 0) & (owners != SIGN))).all()
            else:
                assert patches.any() == (question.answer != "no")


def test_negatives_are_hard():
    near = total = 0
    for scene in SCENES:
        question = ASK["exist"](scene, rng(scene.seed))
        if question.answer == "no":
            text = question.text.split()
            total += 1
            near += all(any(getattr(t, key) in text for t in scene.things) for key in ("colour", "shape"))
    assert total > 40 and near / total > 0.75


def test_the_vocabulary_covers_everything(asked):
    tokenizer, easy = build_tokenizer("crowded"), build_tokenizer()
    texts = [f"{q.text} {q.answer}" for _, q in asked] + [" ".join(CROWDED.words()), "none unknown"]
    texts += [w.format(*["red objects"] * 2) for group in WORDINGS.values() for w in group]
    assert all(tokenizer.unk_token_id not in ids for ids in tokenizer(texts)["input_ids"])
    old, new = easy.get_vocab(), tokenizer.get_vocab()
    assert new.items() > old.items() and easy("is there more")["input_ids"][-1] == easy.unk_token_id
    for _, question in asked[:300]:
        ids = tokenizer.encode(question.answer, add_special_tokens=False)
        assert tokenizer.decode(ids) == question.answer
    assert [split_of_vocabulary(len(split.words())) for split in SPLITS.values()] == list(SPLITS)
    with pytest.raises(ValueError, match="32000 words is not that of any scenes"):
        split_of_vocabulary(32000)


def test_every_wording_is_used(asked):
    used, values = {task: set() for task in TASKS}, {*COLOURS, *SHAPES, *PLURALS.values(), "{}"}

    def pattern(text):
        """One mark for what was asked about, whether "stars" or "red objects"."""
        text = " ".join("{}" if word in values else word for word in text.split())
        return text.replace("{} {}", "{}").replace("{} objects", "{}").replace("{} object", "{}")

    for _, question in asked:
        text = question.text.replace(" an orange", " a orange")
        for place in CORNERS:
            text = text.replace(place, "{}") if question.task == "area" else text
        used[question.task].add(pattern(text))
    for task, wordings in WORDINGS.items():
        assert used[task] == {pattern(wording) for wording in wordings} and len(used[task]) == len(wordings)


def test_a_missing_word_is_no_confident_answer(asked):
    lost = kept = 0
    for number, (_, question) in enumerate(asked):
        dropped = drop_word(question, rng(number))
        before, after = question.text.split(), dropped.text.split()
        assert after[-1] == before[-1] and 0 <= len(before) - len(after) <= 1 and after != before
        missing = Counter(before) - Counter(after)
        assert sum(missing.values()) == 1
        (word,) = missing
        if word in FILLERS:
            kept += 1
            assert (dropped.answer, dropped.refers, dropped.evidence) == (
                question.answer,
                question.refers,
                question.evidence,
            )
        else:
            lost += 1
            assert dropped == Question("unknown", dropped.text, "unknown") and "<unk>" in after
    assert min(lost, kept) > 500


def test_questions_about_what_is_gone(asked):
    for number, (scene, question) in list(enumerate(asked))[::12]:
        gone, _ = hide_things(scene, rng(number))
        blind = without(question, gone)
        _, owners = by_hand(scene, question)
        left = tuple(owner for owner in owners if owner not in gone)
        if not gone:
            assert blind is question
        elif question.task in ("compare", "modeshape", "modecolour"):
            assert blind is None
        elif question.task == "count":
            assert blind.answer == str(len(left)) and sorted(blind.evidence) == sorted(left)
        elif owners and not left:
            assert blind.answer == ("no" if question.task == "exist" else "unknown") and not blind.refers
        else:
            assert blind.answer == question.answer and blind.refers == left


def test_a_sign_that_is_not_there_has_no_number():
    found = [(scene, ASK["ocr"](scene, rng(scene.seed), plain=False)) for scene in SCENES]
    none = [(scene, question) for scene, question in found if question.answer == "none"]
    assert none
    for scene, question in none:
        assert not {s.colour for s in scene.signs} & set(question.text.split()) and not question.refers
        assert without(question, {0, SIGN}) is question


def test_splits_share_no_seeds():
    """Held-out scenes of both splits, dialogues and training: ranges that a run of any length here keeps apart."""
    n, give_up = 2000, evaluate._GIVE_UP
    ranges = [range(split.first, split.first + give_up * n) for split in SPLITS.values()]
    ranges += [range(dialogues.FIRST, dialogues.FIRST + 1_000_000), range(10_000_000, 10**12)]
    for one, other in combinations(ranges, 2):
        assert one.stop <= other.start or other.stop <= one.start
    assert [one.scene for one in questions(3, "crowded")][0] == 0
    assert CROWDED.scene(0) == crowded.sample(1_000_000) and ScenePictures(1, 1, seed=0).first >= 10_000_000


def test_crowded_questions_are_all_registered():
    assert tuple(ASK) == TASKS == CROWDED.tasks and set(WORDINGS) == set(TASKS) and WEAK + STRONG == TASKS
    assert CROWDED.without is crowded_questions.without
