"""Every model through lmms-eval's interface: batches, likelihoods, records, replay, resume."""

from __future__ import annotations

import json
from inspect import signature

import eval_data
import pytest
import torch
from lmms_eval.api.instance import GenerationResult, Instance
from lmms_eval.models import get_model
from PIL import Image
from transformers import LlavaModel

from mob.early import ENCODED
from mob.record import RetainedPatches
from mob.video import read_frames
from mob_lmms_eval import logs
from mob_lmms_eval.base import MoBModel
from mob_lmms_eval.register import MODELS

SHORT = {"max_new_tokens": 6, "temperature": 0, "do_sample": False, "until": ["\n\n"]}
DOCS = [
    {"text": "What is in the picture?", "pictures": [0], "choices": ["a star", "red", "it shows a human"]},
    {"text": "describe <image> and <image>, please", "pictures": [1, 2], "choices": ["yes", "no picture"]},
    {"text": "a question about nothing", "pictures": [], "choices": ["polite", "a"]},
    {"text": "the <image> tag is text", "pictures": [3], "choices": ["star", "a chat between"]},
]
FAMILIES = sorted(MODELS)
VIDEOS = ["llava-onevision-mob", "video-llava-mob", "qwen2-vl-mob", "qwen2.5-vl-mob"]


def visuals(doc):
    return [eval_data.picture(i) for i in doc["pictures"]] + doc.get("videos", [])


def asked(lm, docs=DOCS, kwargs=SHORT, scored=False, **metadata):
    """One request for each document (for each choice of it), as lmms-eval makes them."""
    lm.task_dict["t"] = {"test": docs}
    out = []
    for number, doc in enumerate(docs):
        common = {"task": "t", "doc_id": number, "repeats": 1, **metadata}
        tail = (visuals, number, "t", "test")
        if scored:
            rows = enumerate(doc["choices"])
            out += [Instance("loglikelihood", (doc["text"], f" {c}", *tail), i, metadata=common) for i, c in rows]
        else:
            out.append(Instance("generate_until", (doc["text"], dict(kwargs), *tail), 0, metadata=common))
    return out


def build(name, folders, **more) -> MoBModel:
    options = {"pretrained": str(folders[name]), "K": 0.5, "log_retained_patches": True} | more
    return get_model(name)(device="cpu", **options)


def plain(results):
    """What came out, without what may vary."""
    out = []
    for one in results:
        record = json.loads(json.dumps(one.token_counts.to_dict().get(logs.FIELD)))
        record and record.pop("milliseconds", None)
        out.append((one.text, one.token_counts.input_tokens, one.token_counts.output_tokens, record))
    return out


@pytest.mark.parametrize("name", FAMILIES)
def test_batches_answer_as_single_questions(name, folders):
    single, several = (build(name, folders, batch_size=size) for size in ("1", "3"))
    one, three = single.generate_until(asked(single)), several.generate_until(asked(several))
    assert all(isinstance(result, GenerationResult) for result in one)
    for a, b in zip(plain(one), plain(three), strict=True):
        assert a[:3] == b[:3]
        assert close(a[3], b[3])
    records = [logs.record_of(result.token_counts.retained) for result in one]
    assert [record.N > record.K > 0 for record in records] == [True, True, False, True]
    shown = [[(p["width"], p["height"]) for p in result.token_counts.retained["pictures"]] for result in one]
    assert shown == [[eval_data.picture(i).size for i in doc["pictures"]] for doc in DOCS]
    assert len({p["sha256"] for result in one for p in result.token_counts.retained["pictures"]}) == 4
    assert [result.token_counts.retained["doc_id"] for result in one] == [0, 1, 2, 3]

    scored, again = single.loglikelihood(asked(single, scored=True)), several.loglikelihood(asked(several, scored=True))
    for a, b in zip(plain(scored), plain(again), strict=True):
        assert abs(a[0][0] - b[0][0]) < 1e-4 and a[0][1] == b[0][1]
        assert a[1:3] == b[1:3] and close(a[3], b[3])


def close(a, b):
    """Records that agree but for the last bits of the radii."""
    radii = ("eta", "eps_p", "eps_v")
    same = {k: v for k, v in a.items() if k not in radii} == {k: v for k, v in b.items() if k not in radii}
    return same and all(a.get(k) == b.get(k) or abs(a[k] - b[k]) < 1e-4 for k in radii)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_pruner_does_not_see_the_answer(name, folders):
    lm = build(name, folders)
    scored = lm.loglikelihood(asked(lm, scored=True))
    generated = lm.generate_until(asked(lm))
    kept = {}
    for result in scored:
        record = result.token_counts.retained
        kept.setdefault(record["doc_id"], []).append(record["keep_indices"])
    for doc_id, choices in kept.items():
        assert choices == [generated[doc_id].token_counts.retained["keep_indices"]] * len(choices)


@pytest.mark.parametrize("name", FAMILIES)
def test_likelihoods_are_the_models_own(name, folders):
    """Against the loss of the stock forward over the whole prompt and answer, one by one, unpruned."""
    lm = build(name, folders, mob=False, K=None, batch_size=2)
    results = lm.loglikelihood(asked(lm, scored=True))
    assert all("K" not in result.token_counts.retained for result in results)
    for request, result in zip(asked(lm, scored=True), results, strict=True):
        from mob_lmms_eval import samples

        sample = samples.read(request, lm.task_dict)
        prompt = lm.prompt(sample)
        text = prompt + lm._continuation(prompt, sample)
        count = result.token_counts.output_tokens
        assert lm.tokenizer.decode(lm.tokens(text)[-count:-1]).strip() == sample.continuation.strip()
        inputs = lm.inputs([text], [sample])
        labels = inputs["input_ids"].clone()
        labels[:, :-count] = -100
        with torch.no_grad():
            loss = lm.model(**inputs, labels=labels).loss
        assert abs(float(loss) - result.text[0]) < 1e-4


@pytest.mark.parametrize("name", VIDEOS)
def test_videos(name, folders, clip):
    docs = [{"text": "what happens?", "pictures": [], "videos": [str(clip)], "choices": ["a star", "red"]}]
    lm = build(name, folders, frames=4)
    (result,) = lm.generate_until(asked(lm, docs))
    record = result.token_counts.retained
    (shown,) = record["pictures"]
    assert len(shown["sha256"]) == 64 and shown["video"] == "clip.mp4" and "image_file" not in shown
    frame = Image.fromarray(read_frames(clip, [0])[0])
    assert (shown["width"], shown["height"]) == frame.size
    (left, top, right, bottom), short = shown["box"], min(frame.size)
    assert right - left == (short if "video-llava" in name else frame.width), "Video-LLaVA sees the middle square"
    assert bottom - top == (short if "video-llava" in name else frame.height)
    assert len(record["grids"][0]) == (2 if "qwen" in name else 5 if "onevision" in name else 4)
    assert len(lm.loglikelihood(asked(lm, docs, scored=True))) == 2


def test_llava_does_not_look_at_videos(folders, clip):
    lm = build("llava-v1.5-mob", folders)
    docs = [{"text": "what happens?", "pictures": [], "videos": [str(clip)]}]
    with pytest.raises(ValueError, match="shows videos"):
        lm.generate_until(asked(lm, docs))


@pytest.mark.parametrize("name", FAMILIES)
def test_kept_indices_fed_back_give_the_same_answers(name, folders, tmp_path):
    lm = build(name, folders, per_picture=False)
    first, scored = lm.generate_until(asked(lm)), lm.loglikelihood(asked(lm, scored=True))
    for number, results in enumerate((first, scored)):
        lines: dict[int, list] = {}
        for result in results:
            lines.setdefault(result.token_counts.retained["doc_id"], []).append(result.token_counts.to_dict())
        text = [json.dumps({"doc_id": i, "token_counts": line}) for i, line in lines.items()]
        (tmp_path / f"{number}_samples_t.jsonl").write_text("\n".join(text))
    for number, results in enumerate((first, scored)):
        again = build(name, folders, K=None, replay=str(tmp_path / f"{number}_samples_t.jsonl"), batch_size=3)
        repeated = again.loglikelihood(asked(again, scored=True)) if number else again.generate_until(asked(again))
        for a, b in zip(plain(results), plain(repeated), strict=True):
            assert a[0] == b[0]
            assert {**a[3], "method": "given"} == {**b[3], "method": "given"}, "radii and all"
    with pytest.raises(ValueError, match="has no document 0 of t"):
        (tmp_path / "0_samples_t.jsonl").write_text(text[1].replace('"idx": 0', '"idx": 9') + "\n")
        again = build(name, folders, K=None, replay=str(tmp_path / "0_samples_t.jsonl"))
        again.generate_until(asked(again))


@pytest.mark.parametrize(
    "more", [{"method": "divprune"}, {"method": "divprune+mob", "options": {"divprune": {"K": 0.75}}}]
)
@pytest.mark.may_skip("rules before the decoder need a newer transformers than the oldest that is supported")
@pytest.mark.skipif(ENCODED not in signature(LlavaModel.forward).parameters, reason="not in this transformers")
def test_rules_before_the_decoder(folders, tmp_path, more):
    """In batches as one by one; they leave no numbers by which a log could be replayed."""
    single, several = (build("llava-v1.5-mob", folders, batch_size=size, **more) for size in (1, 3))
    for scored in (False, True):
        one, three = (
            plain(getattr(lm, "loglikelihood" if scored else "generate_until")(asked(lm, scored=scored)))
            for lm in (single, several)
        )
        for a, b in zip(one, three, strict=True):
            assert a[1:3] == b[1:3] and a[3]["keep_indices"] == b[3]["keep_indices"]
            assert a[0] == b[0] if not scored else abs(a[0][0] - b[0][0]) < 1e-4
    line = {"doc_id": 0, "token_counts": [single.generate_until(asked(single))[0].token_counts.to_dict()]}
    (tmp_path / "0_samples_t.jsonl").write_text(json.dumps(line))
    with pytest.raises(ValueError, match="document 0 of t was pruned before the decoder"):
        logs.replays(tmp_path)


def test_a_log_of_several_budgets_per_picture_can_be_replayed(folders, tmp_path):
    lm = build("llava-v1.5-mob", folders)
    first = lm.generate_until(asked(lm))
    text = [json.dumps({"doc_id": i, "token_counts": [r.token_counts.to_dict()]}) for i, r in enumerate(first)]
    (tmp_path / "0_samples_t.jsonl").write_text("\n".join(text))
    again = build("llava-v1.5-mob", folders, K=None, replay=str(tmp_path))
    repeated = again.generate_until(asked(again))
    assert [a.text for a in first] == [b.text for b in repeated]
    kept = [[r.token_counts.retained["keep_indices"] for r in results] for results in (first, repeated)]
    assert kept[0] == kept[1]


class Killed(BaseException):
    """As a signal would."""


@pytest.mark.parametrize("scored", [False, True])
def test_a_stopped_evaluation_goes_on(folders, tmp_path, monkeypatch, scored):
    """Stopped after each batch in turn; what is in the journal is not asked again."""
    name, docs = "llava-v1.5-mob", DOCS * 2

    def run(lm):
        requests = asked(lm, docs, scored=scored)
        return plain(lm.loglikelihood(requests) if scored else lm.generate_until(requests))

    expected = run(build(name, folders, batch_size=2))
    calls, limit = [0], [0]
    for method in ("_generate", "_score"):
        original = getattr(MoBModel, method)

        def counted(self, *args, original=original):
            if calls[0] == limit[0]:
                raise Killed
            calls[0] += 1
            return original(self, *args)

        monkeypatch.setattr(MoBModel, method, counted)
    for stop in (1, 1, 1):
        calls[0], limit[0] = 0, stop
        with pytest.raises(Killed):
            run(build(name, folders, batch_size=2, resume=str(tmp_path)))
    calls[0], limit[0] = 0, -1
    assert run(build(name, folders, batch_size=2, resume=str(tmp_path))) == expected
    rest = (len(asked(build(name, folders), docs, scored=scored)) + 1) // 2 - 3
    assert calls[0] == rest
    calls[0] = 0
    assert run(build(name, folders, batch_size=2, resume=str(tmp_path))) == expected and calls[0] == 0
    assert run(build(name, folders, batch_size=2, K=0.25, resume=str(tmp_path))) != expected and calls[0] > 0


def test_the_journal_knows_the_picture(folders, tmp_path):
    lm = build("llava-v1.5-mob", folders, resume=str(tmp_path))
    docs = [dict(DOCS[0])]
    lm.generate_until(asked(lm, docs))
    again = build("llava-v1.5-mob", folders, resume=str(tmp_path))
    docs[0]["pictures"] = [4]
    fresh = again.generate_until(asked(again, docs))
    assert fresh[0].token_counts.retained["pictures"][0]["width"] == eval_data.picture(4).width


def test_requests_come_back_in_their_order(folders):
    """Different generation_kwargs cannot share a batch."""
    lm = build("llava-v1.5-mob", folders, batch_size=4)
    requests = asked(lm, DOCS * 2)
    for number, request in enumerate(requests):
        request.args[1]["max_new_tokens"] = 3 + number % 2
    out = lm.generate_until(requests)
    assert [r.token_counts.retained["doc_id"] for r in out] == list(range(8))
    assert all(r.token_counts.output_tokens <= 3 + i % 2 for i, r in enumerate(out))


def test_beams_and_sampling(folders, tmp_path):
    lm = build("llava-v1.5-mob", folders, batch_size=2, resume=str(tmp_path))
    docs = [doc for doc in DOCS if len(doc["pictures"]) < 2]  # transformers 5.17 mixes up several pictures under beams
    beams = lm.generate_until(asked(lm, docs, kwargs=SHORT | {"num_beams": 3}))
    assert [r.token_counts.retained["doc_id"] for r in beams] == [0, 1, 2]
    single = lm.generate_until(asked(lm, docs))
    kept = [[r.token_counts.retained["keep_indices"] for r in results] for results in (beams, single)]
    assert kept[0] == kept[1]
    lines = sum(len(file.read_text().splitlines()) for file in tmp_path.iterdir())
    torch.manual_seed(0)
    lm = build("llava-v1.5-mob", folders, resume=str(tmp_path))
    lm.generate_until(asked(lm, kwargs={"max_new_tokens": 4, "do_sample": True, "temperature": 1.5}))
    assert sum(len(file.read_text().splitlines()) for file in tmp_path.iterdir()) == lines, "draws are not kept"


def test_without_the_flag_there_are_token_counts_alone(folders):
    lm = build("llava-v1.5-mob", folders, log_retained_patches=False)
    counts = lm.generate_until(asked(lm))[0].token_counts.to_dict()
    assert set(counts) == {"input_tokens", "output_tokens"}


@pytest.mark.parametrize(
    "more, message",
    [
        ({"Kp_ration": 0.5}, "did you mean 'Kp_ratio'"),
        ({"layer": 99}, "this model can be pruned at layers 1 to 3"),
        ({"conv_template": "vicuna"}, "did you mean 'vicuna_v1'"),
        ({"conv_template": "hf"}, "has no chat template"),
        ({"dtype": "half"}, "use auto, float32"),
        ({"batch_size": "auto"}, "give a number of prompts"),
        ({"pretrained": "/nowhere"}, "is not a folder"),
        ({"pretrained": "nobody/nothing"}, "cannot find the model 'nobody/nothing'"),
        ({"replay": "/nowhere", "K": None}, "check the path"),
    ],
)
def test_wrong_arguments_are_one_line(folders, more, message):
    with pytest.raises(ValueError, match=message) as raised:
        build("llava-v1.5-mob", folders, **more)
    assert "\n" not in str(raised.value)


def test_the_conversation_is_vicuna_v1_unless_the_name_says_more(folders, tmp_path):
    assert build("llava-v1.5-mob", folders).conv_template == "vicuna_v1"
    assert build("llava-v1.5-mob", folders, conv_template="llava_v0").conv_template == "llava_v0"
    (tmp_path / "llava-v1.6-mistral-7b").symlink_to(folders["llava-v1.5-mob"])
    named = {"llava-v1.5-mob": tmp_path / "llava-v1.6-mistral-7b"}
    assert build("llava-v1.5-mob", named).conv_template == "mistral_instruct"


def test_the_log_says_what_the_paper_needs(folders):
    lm = build("llava-v1.5-mob", folders, K=2, K_p=1, k=1, layer=3)
    whole = lm.generate_until(asked(lm))[0].token_counts.to_dict()[logs.FIELD]
    record = logs.record_of(whole)
    assert isinstance(record, RetainedPatches) and record.milliseconds > 0
    assert (record.N, record.K, record.K_p, record.k, record.layer) == (4, 2, 1, 1, 3)
    assert record.grids == [[[2, 2]]] and None not in (record.eta, record.eps_p, record.eps_v)
    assert {"task", "split", "doc_id", "idx", "pictures", "conv_template", "layers"} <= set(whole)
    assert whole["layers"] == lm.model.config.text_config.num_hidden_layers
    json.dumps(whole, allow_nan=False)
