"""Crowded scenes: legible pictures, answers that follow from them, where they are to be seen, and training on them."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from itertools import combinations

import numpy as np
import pytest
import torch
from transformers import AutoProcessor, LlavaForConditionalGeneration

from llava.scenes import crowded, crowded_questions, dialogues, evaluate, generator
from llava.scenes.checkpoint import NUM_PATCHES, PATH, SPECIAL, build, build_tokenizer, save, split_of
from llava.scenes.crowded import CORNER, CORNERS, GAP, owner_boxes
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
from llava.scenes.evaluate import Scores, batches, questions
from llava.scenes.generator import BACKGROUND, COLOURS, GRID, PATCH, SHAPES, SIGN, SIZE
from llava.scenes.losses import SceneLosses, untrained, without_head
from llava.scenes.packing import GROUPS, IGNORE, QUESTIONS, ScenePictures, hide_things, patch_labels
from llava.scenes.packing import TASKS as COUNTED
from llava.scenes.questions import Question
from llava.scenes.splits import SPLITS, split_of_vocabulary
from llava.scenes.train import main as train

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


def digest(parts) -> str:
    total = hashlib.sha256()
    for part in parts:
        total.update(part if isinstance(part, bytes) else repr(part).encode())
    return total.hexdigest()[:16]


def test_easy_scenes_are_what_they_were():
    """Pictures, owners, digits, held-out questions and training rows, hashed before there were crowded scenes."""
    scenes = [generator.sample(seed) for seed in range(20)]
    facts = [(a.scene, a.question.task, a.question.text, a.question.answer, a.question.refers) for a in questions(20)]
    assert digest(scene.draw().tobytes() for scene in scenes) == "13805a07759e0426"
    assert digest(facts) == "517335a92b9dc90c"
    patches = (part.tobytes() for scene in scenes for part in (scene.patch_owners(), scene.patch_digits()))
    assert digest(patches) == "52b8d01d9507c6ad"
    data = ScenePictures(2, 4, seed=3, hide=0.5)
    rows = (
        part for i in range(8) for key, value in sorted(data[i].items()) for part in (key.encode(), bytes_of(value))
    )
    assert digest(rows) == "e0b7f0427e705efc"


def bytes_of(tensor):
    return tensor.numpy().tobytes()


def test_a_seed_is_a_picture():
    assert crowded.sample(7) == crowded.sample(7) != crowded.sample(8)
    assert crowded.sample(7).draw().tobytes() == crowded.sample(7).draw().tobytes()
    assert SCENES[0].draw().size == (SIZE, SIZE) and SCENES[0].draw().mode == "RGB"
    again = [ASK[task](SCENES[0], rng(5)) for task in TASKS]
    assert again == [ASK[task](SCENES[0], rng(5)) for task in TASKS]


def test_pictures_are_crowded():
    things = [len(scene.things) for scene in SCENES]
    assert min(things) >= 13 and np.mean([15 <= n <= 22 for n in things]) > 0.97
    assert {len(scene.signs) for scene in SCENES} == {1, 2, 3}
    for scene in SCENES:
        (colour, pattern), (other, its) = scene.backgrounds
        assert colour != other and pattern != its
        assert len({s.colour for s in scene.signs}) == len({s.number for s in scene.signs}) == len(scene.signs)


def test_nothing_is_hidden():
    """Boxes lie inside the picture and at least GAP apart, and every thing owns a patch of its own."""
    for scene in SCENES:
        boxes = owner_boxes(scene)
        assert set(boxes) == {*range(len(scene.things)), *(SIGN + i for i in range(len(scene.signs)))}
        for x, y, w, h in boxes.values():
            assert w <= x <= SIZE - w and h <= y <= SIZE - h
        for (x, y, w, h), (a, b, v, u) in combinations(boxes.values(), 2):
            assert max(abs(x - a) - w - v, abs(y - b) - h - u) > GAP
        owners = scene.patch_owners()
        assert set(owners) == {BACKGROUND, *boxes}


def test_things_and_signs_show_their_colour():
    """The nearest colour word to the pixels in the middle of every object, and along every sign's upper edge."""
    names, values = list(COLOURS), np.array(list(COLOURS.values()), dtype=float)

    def nearest(pixels):
        return names[int(((values - pixels.reshape(-1, 3).mean(0)) ** 2).sum(1).argmin())]

    for scene in SCENES[:60]:
        picture = np.asarray(scene.draw(), dtype=float)
        for thing in scene.things:
            x, y = round(thing.x), round(thing.y)
            assert nearest(picture[y - 1 : y + 1, x - 1 : x + 1]) == thing.colour
        for sign in scene.signs:
            top, left = round(sign.y - scene.sign_half[1]) + 2, round(sign.x - 8)
            assert nearest(picture[top : top + 1, left : left + 16]) == sign.colour


def test_digits_can_be_read():
    """Digits stand out from their sign by brightness, and fill most of the two halves' height."""
    for scene in SCENES[:60]:
        grey = np.asarray(scene.draw().convert("L"), dtype=float)
        for sign in scene.signs:
            w, h = scene.sign_half
            inside = grey[round(sign.y - h) + 2 : round(sign.y + h) - 2, round(sign.x - w) + 2 : round(sign.x + w) - 2]
            middle = inside.shape[1] // 2
            for half in (inside[:, :middle], inside[:, middle:]):
                ink = np.abs(half - np.median(inside[0])) > 60
                assert ink.sum() >= 8 and 7 <= np.ptp(np.flatnonzero(ink.any(1))) + 1 <= 13


def test_digits_lie_on_their_sign():
    for scene in SCENES:
        digits, owners = scene.patch_digits().reshape(GRID, GRID), scene.patch_owners().reshape(GRID, GRID)
        for index, sign in enumerate(scene.signs):
            mine = np.where(owners == SIGN + index, digits, -1)
            assert {str(d) for d in mine[mine >= 0]} == set(sign.number)
        assert (owners[digits >= 0] >= SIGN).all()


def test_patch_owners_and_backgrounds_agree_with_the_pixels():
    """Backgrounds against the half-plane at each patch's centre; an object's centre belongs to it."""
    for scene in SCENES[:60]:
        owners = scene.patch_owners().reshape(GRID, GRID)
        for index, thing in enumerate(scene.things):
            assert owners[int(thing.y // PATCH), int(thing.x // PATCH)] == index or (owners == index).any()
        colours, patterns = (words.reshape(GRID, GRID) for words in scene.patch_backgrounds())
        angle, offset = scene.edge
        for row in range(GRID):
            for column in range(GRID):
                x, y = column * PATCH + PATCH / 2 - SIZE / 2, row * PATCH + PATCH / 2 - SIZE / 2
                which = scene.backgrounds[int(np.cos(angle) * x + np.sin(angle) * y > offset)]
                assert (colours[row, column], patterns[row, column]) == which


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


def test_patch_labels_agree_with_the_scene():
    for scene in SCENES[:50]:
        labels, owners = patch_labels(scene), scene.patch_owners()
        colours, patterns = scene.patch_backgrounds()
        for patch, owner in enumerate(owners):
            said = {group: None if v[patch] == IGNORE else GROUPS[group][v[patch]] for group, v in labels.items()}
            if owner == BACKGROUND:
                expected = {"kind": "background", "shape": None, "pattern": patterns[patch], "colour": colours[patch]}
            elif owner >= SIGN:
                expected = {"kind": "sign", "shape": None, "pattern": None, "colour": scene.signs[owner - SIGN].colour}
                assert said["digit"] is None or said["digit"] in scene.signs[owner - SIGN].number
            else:
                thing = scene.things[owner]
                expected = {"kind": "object", "shape": thing.shape, "pattern": None, "colour": thing.colour}
            assert said | expected == said


def test_training_rows_mix_both_kinds_of_scenes():
    data = ScenePictures(20, 3, seed=1, split="crowded", hide=0.5)
    tokenizer, kinds, full = build_tokenizer("crowded"), Counter(), 0
    for index in range(len(data)):
        row = data[index]
        names = [COUNTED["crowded"][t] for t in row["task"].tolist() if 0 <= t < len(COUNTED["crowded"])]
        kinds[any(name.startswith("crowded-") for name in names)] += 1
        assert len({name.startswith("crowded-") for name in names}) == 1
        full += int(row["segment"].max()) + 1 == QUESTIONS
        unknown = row["ids"] == tokenizer.unk_token_id
        assert not (unknown & ~row["prompt"]).any()
    assert 0.5 < kinds[True] / len(data) < 0.9 and full > 0.8 * len(data)
    again = ScenePictures(20, 3, seed=1, split="crowded", hide=0.5)[7]
    assert all(torch.equal(value, again[key]) for key, value in data[7].items())


def test_a_crowded_model_is_small_and_knows_its_words(tmp_path):
    model = build(seed=1, split="crowded")
    save(model, tmp_path)
    assert sum(file.stat().st_size for file in tmp_path.iterdir()) <= 6 * 2**20
    again = LlavaForConditionalGeneration.from_pretrained(tmp_path, dtype=torch.float32)
    assert split_of(again) == "crowded" and split_of(build()) == "easy"
    tokenizer = AutoProcessor.from_pretrained(tmp_path).tokenizer
    assert len(tokenizer) == len(again.get_input_embeddings().weight) == len(SPECIAL) + len(CROWDED.words())
    assert type(without_head(untrained(1, "crowded"))) is LlavaForConditionalGeneration


def test_a_start_takes_over_all_weights():
    """On easy questions the enlarged model says what the shipped one says; words that it knows more are new."""
    shipped = LlavaForConditionalGeneration.from_pretrained(PATH, dtype=torch.float32).eval()
    model = without_head(untrained(3, "crowded", PATH)).eval()
    known = len(shipped.get_input_embeddings().weight)
    _, inputs = next(batches(questions(2), 18))
    with torch.no_grad():
        ours, theirs = model(**inputs).logits, shipped(**inputs).logits
    assert torch.equal(ours[..., :known], theirs)
    fresh = build(3, "crowded").get_input_embeddings().weight[known:]
    assert torch.equal(model.get_input_embeddings().weight[known:], fresh) and len(fresh)
    again = without_head(untrained(0, "easy", PATH)).state_dict()
    assert all(torch.equal(value, again[name]) for name, value in shipped.state_dict().items())


def test_evaluation_of_both_splits():
    """Questions reach the model in its own words; macros of the couplings are those of their tasks."""
    found = questions(4, "crowded")
    assert Counter(one.question.task for one in found) == dict.fromkeys(TASKS, 4)
    for vocabulary in SPLITS:
        tokenizer = build_tokenizer(vocabulary)
        unknown = sum(int((b["input_ids"] == tokenizer.unk_token_id).sum()) for _, b in batches(found, 12, vocabulary))
        assert (unknown > 0) == (vocabulary == "easy")
    scores, values = Scores(found), [bool(i % 3) for i in range(len(found))]
    scores.add(("prompt", 22), values)
    scores.add(("visual", 22), [not value for value in values])
    for group, tasks in (("weak", WEAK), ("strong", STRONG)):
        right = [np.mean([v for v, a in zip(values, found, strict=True) if a.question.task == t]) for t in tasks]
        assert abs(scores.macro(("prompt", 22), group)[0] - 100 * np.mean(right)) < 1e-9
        (entry,) = [e for e in evaluate.separation(scores) if e["coupling"] == group]
        assert abs(entry["points"] - 100 * (2 * np.mean(right) - 1)) < 1e-9 and entry["low"] <= entry["points"]


def test_the_evaluation_command_asks_about_crowded_scenes(tmp_path, monkeypatch, capsys):
    words = ["evaluate", "--split", "crowded", "--n", "2", "--K", "22", "--methods", "vanilla", "visual", "prompt"]
    monkeypatch.setattr("sys.argv", [*words, "--json", str(tmp_path / "out.json")])
    evaluate.main()
    assert "strong questions: prompt - visual" in capsys.readouterr().out
    out = json.loads((tmp_path / "out.json").read_text())
    assert out["setup"]["split"] == "crowded" and {e["coupling"] for e in out["prompt_minus_visual"]} == {
        "weak",
        "strong",
    }
    assert all(set(row["tasks"]) == set(TASKS) and {"weak", "strong"} <= set(row) for row in out["rows"])


FLAGS = ["--split", "crowded", "--align-steps", "1", "--steps", "2", "--align-pictures", "2", "--until", "answer"]
FLAGS += ["--pictures", "2", "--save-every", "1", "--no-compile", "--device", "cpu"]


def test_training_continues_to_the_same_bytes_and_folders_belong_to_a_run(tmp_path, capsys):
    """A stop in stage B; then other settings in the same folder are refused."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train(["--out", str(whole), *FLAGS])
    train(["--out", str(parts), *FLAGS, "--stop-after", "2"])
    assert "stopped after 2 steps" in capsys.readouterr().out and not (parts / "answer" / "checkpoint").exists()
    train(["--out", str(parts), *FLAGS])
    files = [(folder / "answer" / "checkpoint" / "model.safetensors").read_bytes() for folder in (whole, parts)]
    assert files[0] == files[1]
    for more, name in (
        (["--no-grounding"], "ground_weight"),
        (["--start", str(PATH)], "start"),
        (["--seed", "1"], "seed"),
    ):
        with pytest.raises(SystemExit):
            train(["--out", str(parts), *FLAGS, *more])
        assert f"is a run with another {name}" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        train(["--out", str(tmp_path / "small"), "--start", str(whole / "answer" / "checkpoint")])
    assert "train with --split crowded" in capsys.readouterr().err


def test_without_grounding_that_loss_moves_nothing(tmp_path):
    """Stage B of --no-grounding follows the other losses; the grounding loss is logged all the same."""
    from torch.utils.data import default_collate

    from llava.scenes.trainer import ALIGN_WEIGHT, GROUND_WEIGHT, SceneTrainer, arguments

    data = ScenePictures(2, 2, seed=3, split="crowded")
    batch = default_collate([data[i] for i in range(2)])
    args = arguments(tmp_path, steps=2, pictures=2, lr=1e-3, seed=0, save_every=100, device="cpu")
    model = untrained(1, "crowded")
    answer, align, ground, counts = SceneLosses(model)(batch)
    for weight in (0.0, GROUND_WEIGHT):
        trainer = SceneTrainer(model, data, args, ground_weight=weight)
        loss, parts = trainer.compute_loss(model, batch, return_outputs=True)
        assert torch.allclose(loss, answer + ALIGN_WEIGHT * align + weight * ground) and float(parts["ground"]) > 0
    assert counts.shape == (len(COUNTED["crowded"]) + 1, 2)
    assert int(counts[:, 1].sum()) == int((batch["task"] >= 0).sum())


def test_crowded_questions_are_all_registered():
    assert tuple(ASK) == TASKS == CROWDED.tasks and set(WORDINGS) == set(TASKS) and WEAK + STRONG == TASKS
    assert CROWDED.without is crowded_questions.without
