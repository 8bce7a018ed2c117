"""Records, samples, batches and their order."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from transformers import CLIPVisionConfig

import checkpoints
from llava.constants import IGNORE_INDEX
from llava.conversation import conv_templates
from llava.model.formats import load_image_processor, load_tokenizer, translate_config
from llava.train.data import DataCollatorForSupervisedDataset, LazySupervisedDataset, conversation_for, expand
from llava.train.records import BadSample, Refusals, read_records
from llava.train.sampling import LengthGroupedSampler

V1 = conv_templates["v1"]


def said(*texts):
    return [{"from": ("human", "gpt")[i % 2], "value": text} for i, text in enumerate(texts)]


def write(path, records):
    path.write_text(json.dumps(records))
    return path


# Records

BAD = {
    "no list of conversations": {"conversations": "hello"},
    "turn 0 is not": {"conversations": [{"from": "system", "value": "x"}]},
    "same speaker": {"conversations": [*said("a", "b"), {"from": "gpt", "value": "c"}]},
    "turn 1 is empty": {"conversations": said("a", " ")},
    "has no answer": {"conversations": said("a")},
    "names 1 picture": {"image": "x.png", "conversations": said("no place", "b")},
    "names 0 picture": {"conversations": said("<image>\nwhere", "b")},
    "answer holds <image>": {"image": "x.png", "conversations": said("<image>", "<image>")},
    "must be the name of a file": {"image": 3, "conversations": said("<image>", "b")},
    "turn 1 holds half a surrogate pair": {"conversations": said("a", "bad \ud83d end")},
    'has "images": pictures are read from "image" only': {"images": ["x.png"], "conversations": said("what", "b")},
    'has "video": only pictures are trained': {"video": "x.mp4", "conversations": said("what", "b")},
    "asks about a <video>: only pictures": {"conversations": said("a", "b", "<video>\nwhat", "c")},
}


@pytest.mark.parametrize("reason", BAD)
def test_bad_records_stop_the_run_or_are_named(tmp_path, reason, capsys):
    good = {"id": "good", "conversations": said("a", "b")}
    file = write(tmp_path / "data.json", [good, {"id": "bad"} | BAD[reason]])
    with pytest.raises(BadSample, match=f"id bad.*{reason}.*1 of 2 records.*--on_bad_sample skip"):
        read_records(file, V1, Refusals("stop"))
    refusals = Refusals("skip", tmp_path / "log.jsonl")
    assert [record.name for record in read_records(file, V1, refusals)] == ["record 0 (id good)"]
    assert refusals.count() == 1 and reason in capsys.readouterr().err
    assert reason in json.loads((tmp_path / "log.jsonl").read_text())["reason"]


def test_unreadable_files(tmp_path):
    with pytest.raises(ValueError, match="cannot be read"):
        read_records(tmp_path / "none.json", V1, Refusals("skip"))
    (tmp_path / "x.json").write_text("{")
    with pytest.raises(ValueError, match="not valid JSON"):
        read_records(tmp_path / "x.json", V1, Refusals("skip"))
    with pytest.raises(ValueError, match="list of records"):
        read_records(write(tmp_path / "y.json", {}), V1, Refusals("skip"))
    with pytest.raises(ValueError, match="lists of data sets are not read; join"):
        read_records(write(tmp_path / "y.yaml", {}), V1, Refusals("skip"))
    with pytest.raises(ValueError, match="no usable record"):
        read_records(write(tmp_path / "z.json", [1, "a"]), V1, Refusals("skip"))


def test_pictures_are_placed_as_at_inference(tmp_path):
    two = {"image": ["a.png", "b.png"], "conversations": said("one <image> two <image>", "b", "more", "c")}
    one = {"image": "a.png", "conversations": [{"from": "gpt", "value": "hello"}, *said("what is <image> this", "b")]}
    file = tmp_path / "data.jsonl"
    file.write_text("\n".join(map(json.dumps, [one, two])))
    first, second = read_records(file, V1, Refusals("stop"))
    assert first.turns == ("<image>\nwhat is  this", "b") and first.images == ("a.png",)
    assert second.turns[0] == "one <image> two <image>" and len(second.turns) == 4
    assert (first.length, second.length) == (128 + 5, 256 + 7)
    tagged = read_records(file, conv_templates["v1_mmtag"], Refusals("stop"))[0]
    assert tagged.turns[0].startswith("<Image><image></Image>\n")
    marked = read_records(file, V1, Refusals("stop"), start_end=True)[0]
    assert marked.turns[0].startswith("<im_start><image><im_end>\n")


def test_the_placeholder_as_a_word_of_a_text(family, tmp_path):
    """Texts about web pages hold it; where it stands as in LLaVA's data, at either end, a picture is missing."""
    text = {"conversations": said("what is <image> in RSS?", "a tag: <image> opens it", "thanks", "<image>")}
    data = dataset(family, tmp_path, [text])
    assert data.records[0].images == () and data.records[0].turns[0] == "what is < image> in RSS?"
    sample = data[0]
    assert data.config.image_token_id not in sample["input_ids"] and "pixel_values" not in sample
    lost = write(tmp_path / "lost.json", [{"conversations": said("what is this?\n<image>", "a star")}])
    with pytest.raises(BadSample, match="names 0 picture"):
        read_records(lost, V1, Refusals("stop"))


def test_other_media_as_words_of_a_text(tmp_path):
    """Code for web pages is full of them, and a key without a value says nothing."""
    page = {"video": None, "images": [], "conversations": said("does <video> need a src?", "<video> needs one")}
    assert read_records(write(tmp_path / "x.json", [page]), V1, Refusals("stop"))[0].turns[1] == "<video> needs one"


def test_lines_end_where_lines_end(tmp_path):
    """A string may hold marks that Unicode calls line ends; and some editors write a mark of byte order."""
    said_so = [{"id": n, "conversations": said(f"a{mark}b", "c")} for n, mark in enumerate("\u2028\u2029\x85")]
    file = tmp_path / "data.jsonl"
    file.write_text("\ufeff" + "\n".join(json.dumps(one, ensure_ascii=False) for one in said_so), encoding="utf-8")
    assert [one.turns[0] for one in read_records(file, V1, Refusals("stop"))] == ["a\u2028b", "a\u2029b", "a\x85b"]


def test_what_another_worker_has_named_is_not_named_again(tmp_path, capsys):
    for _ in range(2):
        Refusals("skip", tmp_path / "log.jsonl").add("record 3", BadSample("record 3 is no picture"))
    assert capsys.readouterr().err.count("record 3") == 1
    assert Refusals("skip", tmp_path / "log.jsonl").count() == 1


def test_versions():
    assert conversation_for("v1") is V1 and conversation_for("plain").version == "plain"
    with pytest.raises(ValueError, match="--version v9: use one of"):
        conversation_for("v9")


# Samples


@pytest.fixture(scope="module", params=["1.5", "1.6"])
def family(request, tmp_path_factory):
    """(config, tokenizer, image processor) of a model without weights."""
    root = tmp_path_factory.mktemp("family")
    source = checkpoints.model()
    tower = checkpoints.tower_folder(root / "clip", source)
    checkpoints.sentencepiece_model(root)
    raw = checkpoints.original_config(tower, source, **({} if request.param == "1.5" else checkpoints.NEXT))
    config, tokenizer = translate_config(raw, CLIPVisionConfig.from_pretrained(tower)), load_tokenizer(root, raw)
    config.image_token_index = tokenizer.convert_tokens_to_ids("<image>")
    return SimpleNamespace(config=config, tokenizer=tokenizer, processor=load_image_processor(tower))


def dataset(family, folder, records, policy="stop", **kwargs):
    refusals = Refusals(policy, folder / "log.jsonl")
    parts = (family.tokenizer, family.processor, family.config, V1)
    return LazySupervisedDataset(write(folder / "data.json", records), *parts, refusals=refusals, **kwargs)


def pictured(number, size=(30, 30)):
    return {"id": number, "image": f"{number}.png", "conversations": said("<image>\nwhat", "a red star")}


def test_a_batch_is_what_the_stock_model_takes(family, tmp_path):
    sizes = [(30, 30), (80, 30), (30, 64)]
    for number, size in enumerate(sizes):
        Image.new("RGB", size, "red").save(tmp_path / f"{number}.png")
    both = {"image": ["0.png", "1.png"], "conversations": said("<image> and <image>", "two stars")}
    data = dataset(family, tmp_path, [pictured(1), {"conversations": said("hi", "a star")}, both])
    batch = DataCollatorForSupervisedDataset(0)([data[i] for i in range(3)])
    ids, token = batch["input_ids"], family.config.image_token_id
    assert ids.shape == batch["labels"].shape == batch["attention_mask"].shape
    runs = (ids == token).sum(1).tolist()
    if family.config.model_type == "llava":
        assert runs == [4, 0, 8] and batch["pixel_values"].shape == (3, 3, 28, 28)
    else:
        assert batch["image_sizes"].tolist() == [[30, 80], [30, 30], [30, 80]]
        assert batch["pixel_values"].shape[:2] == (3, 5) and runs[1] == 0 and runs[0] > 4
    assert (batch["labels"][ids == token] == IGNORE_INDEX).all()
    assert (batch["labels"][batch["attention_mask"] == 0] == IGNORE_INDEX).all()
    learnt = batch["labels"][0]
    assert family.tokenizer.decode(learnt[learnt != IGNORE_INDEX]) == "a red star</s>"
    assert data.modality_lengths[1] < 0 < data.modality_lengths[0] and min(data.lengths) > 0


def test_bad_pictures(family, tmp_path, capsys):
    """Named, counted and replaced by the next sample of their kind, or the end of the run."""
    for number in (0, 2):
        Image.new("RGB", (30, 30), "red").save(tmp_path / f"{number}.png")
    (tmp_path / "1.png").write_bytes(b"\x89PNG broken")
    (tmp_path / "3.png").write_bytes(b"")
    records = [pictured(0), pictured(1), {"conversations": said("hi", "b")}, pictured(2), pictured(3)]
    with pytest.raises(BadSample, match=r"record 1 \(id 1\).*1.png"):
        dataset(family, tmp_path, records)[1]
    data = dataset(family, tmp_path, records, "skip")
    assert torch.equal(data[1]["input_ids"], data[3]["input_ids"]) and "pixel_values" in data[1]
    assert torch.equal(data[4]["input_ids"], data[0]["input_ids"])
    data[1]
    assert data.refusals.count() == 2 and "id 1" in capsys.readouterr().err
    (tmp_path / "0.png").unlink()
    (tmp_path / "2.png").unlink()
    with pytest.raises(BadSample, match="is --image_folder right"):
        data[0]
    assert "pixel_values" not in data[2]


def test_long_samples_are_cut(family, tmp_path):
    Image.new("RGB", (30, 30), "red").save(tmp_path / "0.png")
    long = {"conversations": said("hi", "red " * 200)}
    data = dataset(family, tmp_path, [pictured(0), long], max_length=200)
    assert len(data[1]["input_ids"]) == 200 and (data[1]["labels"][-1] != IGNORE_INDEX)
    data.max_length = 4
    with pytest.raises(BadSample, match="no answer within --model_max_length 4$"):
        data[0]


def test_a_question_longer_than_the_limit_does_not_stop_a_run(family, tmp_path, capsys):
    """Upstream trains it on nothing: some dialogues of its data are like this. Here the next one takes its place."""
    good, long = {"conversations": said("hi", "red star")}, {"id": 5, "conversations": said("red " * 300, "star")}
    data = dataset(family, tmp_path, [long, good], max_length=200)
    assert data.refusals.policy == "stop" and torch.equal(data[0]["input_ids"], data[1]["input_ids"])
    assert "id 5" in capsys.readouterr().err
    Image.new("RGB", (30, 30), "red").save(tmp_path / "0.png")
    data = dataset(family, tmp_path, [pictured(0), long | {"id": 6}], max_length=200)
    assert torch.equal(data[1]["input_ids"], data[0]["input_ids"])  # no other text is there, but a picture


def test_pictures_that_are_not_there_are_found_before_the_run(family, tmp_path, capsys):
    Image.new("RGB", (30, 30), "red").save(tmp_path / "0.png")
    with pytest.raises(BadSample, match="record 1 .*there is no file .*1.png; of 3 records 2 have lost a picture"):
        dataset(family, tmp_path, [pictured(0), pictured(1), pictured(2)])
    endless = {"image": "x" * 300 + ".png", "conversations": said("<image>", "b")}
    with pytest.raises(BadSample, match="record 1 has|record 1: there is no file"):
        dataset(family, tmp_path, [pictured(0), endless])
    data = dataset(family, tmp_path, [pictured(0), pictured(1), pictured(2)], "skip")
    assert len(data) == 1 and data.refusals.count() == 2 and "2.png" in capsys.readouterr().err
    with pytest.raises(BadSample, match="nor any other: is --image_folder right"):
        dataset(family, tmp_path, [pictured(1)], "skip")


def test_pictures_are_never_cut_in_two():
    ids, labels = [1, 7, -200, 8, -200, 9], [-100, -100, -100, 8, -100, 9]
    assert expand(ids, labels, [3, 4], 5, 100) == (
        [1, 7, 5, 5, 5, 8, 5, 5, 5, 5, 9],
        [-100] * 5 + [8] + [-100] * 4 + [9],
        2,
    )
    assert expand(ids, labels, [3, 4], 5, 9) == ([1, 7, 5, 5, 5, 8], [-100] * 5 + [8], 1)
    assert expand(ids, labels, [3, 4], 5, 4) == ([1, 7], [-100] * 2, 0)


# Order


def test_batches_of_one_modality_and_alike_in_length():
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(1, 1000, (1003,), generator=generator).tolist()
    lengths = [length if i % 3 else -length for i, length in enumerate(lengths)]
    sampler = LengthGroupedSampler(4, 8, lengths, seed=3, group_by_modality=True)
    order = list(sampler)
    assert sorted(order) == list(range(1003)) and len(sampler) == 1003
    whole = [order[start : start + 32] for start in range(0, 1003, 32)]
    alike = [len({lengths[i] > 0 for i in group}) == 1 for group in whole]
    assert sum(alike) >= 1003 // 32 - 2 and all(alike[:-3])
    for group in whole[:20]:
        totals = [sum(abs(lengths[i]) for i in group[start : start + 4]) for start in range(0, 32, 4)]
        assert max(totals) < 1.35 * min(totals)
    kinds = [lengths[group[0]] > 0 for group in whole[:-3]]
    assert 0 < sum(kinds) < len(kinds) and kinds != sorted(kinds)  # interleaved


def test_the_order_depends_on_seed_and_epoch_alone():
    lengths = list(range(1, 100))
    first, again = (LengthGroupedSampler(2, 2, lengths, seed=1) for _ in range(2))
    assert list(first) == list(first) == list(again)
    again.set_epoch(1)
    other = LengthGroupedSampler(2, 2, lengths, seed=2)
    assert len({tuple(first), tuple(again), tuple(other)}) == 3
    with pytest.raises(ValueError, match="length 0"):
        LengthGroupedSampler(2, 2, [1, 0])
