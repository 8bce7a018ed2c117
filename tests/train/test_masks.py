"""Label masks equal a character-level reference, for every template and tokenizer."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaTokenizer, PreTrainedTokenizerFast

import checkpoints
from llava.constants import IGNORE_INDEX, IMAGE_TOKEN_INDEX
from llava.conversation import SeparatorStyle, conv_templates
from llava.mm_utils import tokenizer_image_token
from llava.scenes.checkpoint import NUM_PATCHES, PROMPT, build_tokenizer
from llava.scenes.evaluate import batches, questions
from llava.train.data import BARE, conversation_for, expand
from llava.train.masks import encode, render, tokens_of

TURNS = ("<image>\ndescribe the picture", "it shows a red star", "and now?", "Ünï 明 2\n\ntwo lines ", "thanks", "bye")
# What stands before and after an answer.
MARKS = {
    SeparatorStyle.SINGLE: ("Assistant:", "###"),
    SeparatorStyle.TWO: ("ASSISTANT:", "</s>"),
    SeparatorStyle.MPT: ("<|im_start|>assistant\n", "<|im_end|>"),
    SeparatorStyle.CHATML: ("<|im_start|>assistant\n", "<|im_end|>\n"),
    SeparatorStyle.LLAMA_2: ("[/INST]", " </s>"),
    SeparatorStyle.LLAMA_3: ("<|start_header_id|>assistant<|end_header_id|>\n\n", "<|eot_id|>"),
    SeparatorStyle.GEMMA: ("<start_of_turn>model\n", "<end_of_turn>\n"),
    SeparatorStyle.PLAIN: ("<image>", "\n"),
}
TEMPLATES = sorted([*conv_templates, BARE])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer")
    checkpoints.sentencepiece_model(path)
    return path


@pytest.fixture(scope="module", params=["legacy", "new", "legacy, whole", "new, whole", "bytes"])
def tokenizer(request, folder):
    """Sentencepiece with both settings, cut at pictures or whole; and a byte-level one that joins across words."""
    if request.param == "bytes":
        return byte_level()
    made = LlamaTokenizer.from_pretrained(folder, legacy=request.param.startswith("legacy"))
    made.add_tokens(["<image>"], special_tokens=True)
    if "whole" in request.param:
        made.chat_template = "{{ messages }}"
    return made


def byte_level():
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    raw.decoder = decoders.ByteLevel()
    corpus = [
        "ASSISTANT: it shows a red star",
        "assistant\nit shows",
        "Assistant: it###Human: and now?",
        "star \n\n",
    ] * 9
    raw.train_from_iterator(
        corpus, trainers.BpeTrainer(vocab_size=400, initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    )
    made = PreTrainedTokenizerFast(tokenizer_object=raw, bos_token="<s>", eos_token="</s>")
    made.add_tokens(["<image>", "<|im_end|>"], special_tokens=True)
    made.chat_template = "{{ messages }}"
    return made


def turns_for(conv, turns=TURNS):
    return turns[:2] if conv.sep_style is SeparatorStyle.PLAIN else turns


def answer_spans(prompt, conv, turns):
    """Found in the finished prompt by its marks."""
    before, after = MARKS[conv.sep_style]
    if "zephyr" in prompt or "<|assistant|>" in prompt:
        before, after = "<|assistant|>\n", "</s>"
    spans, place = [], 0
    for answer in turns[1::2]:
        start = prompt.index(before, place) + len(before)
        at = prompt.index(answer, start)
        assert prompt[start:at].strip() == ""
        place = prompt.index(after, at + len(answer)) + len(after)
        spans.append((start, place))
    return spans


def reference(prompt, spans, tokenizer):
    """A token is learnt if its last character is in an answer; character by character, from offsets."""
    ids, ends, start = [], [], 0
    chunked = not tokenizer.chat_template
    chunks = prompt.split("<image>") if chunked else [prompt]
    for number, chunk in enumerate(chunks):
        if number:
            ids.append(IMAGE_TOKEN_INDEX)
            ends.append(start)
            start += len("<image>")
        out = tokenizer(chunk, return_offsets_mapping=True)
        for token, (_, end) in zip(out["input_ids"], out["offset_mapping"], strict=True):
            if token == tokenizer.bos_token_id and end == 0:
                if number == 0:
                    ids.append(token)
                    ends.append(0)
                continue
            ids.append(token)
            ends.append(start + end)
        start += len(chunk)
    picture = tokenizer.convert_tokens_to_ids("<image>")
    ids = [IMAGE_TOKEN_INDEX if i == picture else i for i in ids]
    learnt = [any(a < end <= b for a, b in spans) for end in ends]
    return ids, [i if yes and i != IMAGE_TOKEN_INDEX else IGNORE_INDEX for i, yes in zip(ids, learnt, strict=True)]


@pytest.mark.parametrize("name", TEMPLATES)
def test_masks_equal_the_reference(tokenizer, name):
    conv = conversation_for(name)
    turns = turns_for(conv)
    dialogue = render(turns, conv)
    spans = answer_spans(dialogue.prompt, conv, turns)
    assert list(dialogue.answers) == spans
    ids, labels = encode(dialogue, tokens_of(tokenizer))
    assert (ids, labels) == reference(dialogue.prompt, spans, tokenizer)
    learnt = tokenizer.decode([label for label in labels if label != IGNORE_INDEX])
    assert "red star" in learnt and "picture" not in learnt


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_limit_changes_nothing_of_what_is_kept(tokenizer, name):
    conv = conversation_for(name)
    dialogue = render(turns_for(conv), conv)
    ids, labels = encode(dialogue, tokens_of(tokenizer))
    for limit in range(len(ids) + 2):
        assert encode(dialogue, tokens_of(tokenizer), limit) == (ids[:limit], labels[:limit])


def test_long_conversations_cost_what_is_kept(folder):
    """Each answer is found by tokenising all that comes before it: not those behind the longest length."""
    made = LlamaTokenizer.from_pretrained(folder, legacy=False)
    pairs = [turn for n in range(60) for turn in (f"describe picture {n}", "it shows a red star " * (n % 5 + 1))]
    dialogue, tokens, calls = render(pairs, conv_templates["v1"]), tokens_of(made), []
    ids, labels = encode(dialogue, tokens)
    limit = len(ids) // 6
    assert encode(dialogue, lambda text: calls.append(text) or tokens(text), limit) == (ids[:limit], labels[:limit])
    begun = sum(len(tokens(dialogue.prompt[:start])) <= limit for start, _ in dialogue.answers)
    assert 5 < begun < 20 and len(calls) <= 2 * (begun + 1)


@settings(max_examples=60, deadline=None)
@given(
    texts=st.lists(st.text("aR :\n\t.#é明</s>", min_size=1, max_size=8).filter(str.strip), min_size=2, max_size=6),
    name=st.sampled_from(["v1", "llama_2", "mpt", "qwen_2", "llava_v0"]),
    legacy=st.booleans(),
)
def test_any_text(folder, texts, name, legacy):
    """Whatever is said, each character of an answer is learnt, and none of a question."""
    made = LlamaTokenizer.from_pretrained(folder, legacy=legacy)
    turns = texts[: len(texts) // 2 * 2]
    conv = conv_templates[name]
    dialogue = render(turns, conv)
    ids, labels = encode(dialogue, tokens_of(made))
    assert (ids, labels) == reference(dialogue.prompt, dialogue.answers, made)


def test_what_is_learnt_in_words(folder):
    """Vicuna's prompt, by eye."""
    made = LlamaTokenizer.from_pretrained(folder, legacy=False)
    dialogue = render(("USER said", "a star", "why", "it is red"), conv_templates["v1"])
    ids, labels = encode(dialogue, tokens_of(made))
    assert ids == tokenizer_image_token(dialogue.prompt, made)
    runs, last = [], IGNORE_INDEX
    for label in labels:
        if label != IGNORE_INDEX:
            runs = [*runs, [label]] if last == IGNORE_INDEX else [*runs[:-1], [*runs[-1], label]]
        last = label
    assert [made.decode(run) for run in runs] == ["a star</s>", "it is red</s>"]


def test_plain_learns_the_caption_and_its_end(folder):
    made = LlamaTokenizer.from_pretrained(folder, legacy=True)
    dialogue = render(("look at this <image>", "a red star"), conv_templates["plain"])
    assert dialogue.prompt == "<image>a red star\n"
    ids, labels = encode(dialogue, tokens_of(made))
    assert ids[:2] == [made.bos_token_id, IMAGE_TOKEN_INDEX] and labels == [IGNORE_INDEX] * 2 + ids[2:]


def test_the_prompt_is_that_of_inference(folder):
    """Up to the answer, training and inference render and tokenise alike."""
    made = LlamaTokenizer.from_pretrained(folder, legacy=True)
    for name in ("v1", "mpt", "llava_llama_2", "qwen_2", "gemma_instruct", "llava_llama_3", "llava_v0"):
        conv = conv_templates[name].copy()
        conv.append_message(conv.roles[0], TURNS[0])
        conv.append_message(conv.roles[1], None)
        asked = tokenizer_image_token(conv.get_prompt(), made)
        ids, labels = encode(render(TURNS[:2], conv_templates[name]), tokens_of(made))
        assert ids[: len(asked)] == asked and labels[len(asked) - 1] == IGNORE_INDEX != labels[len(asked)]


def test_the_embedded_checkpoint_is_trained_as_it_is_asked():
    """Ids and labels of a sample are those that ``llava.scenes.evaluate`` scores, and of its prompt."""
    tokenizer = build_tokenizer()
    picture = tokenizer.convert_tokens_to_ids("<image>")
    for number, asked in enumerate(questions(1)):
        turns = (f"<image>\n{asked.question.text}", asked.question.answer)
        dialogue = render(turns, conversation_for(BARE))
        assert dialogue.prompt.startswith(PROMPT.format(asked.question.text))
        ids, labels = encode(dialogue, tokens_of(tokenizer))
        ids, labels, _ = expand(ids, labels, [NUM_PATCHES], picture, 1000)
        _, inputs = list(batches(questions(1), 1))[number]
        assert ids == inputs["input_ids"][0].tolist() and labels == inputs["labels"][0].tolist()


def test_a_token_across_the_begin_of_an_answer():
    """The byte-level tokenizer joins the end of a role with the answer: the joined token is learnt."""
    made = byte_level()
    dialogue = render(("hi", "it shows a red star"), conv_templates["mpt"])
    tokens, start = tokens_of(made), dialogue.answers[0][0]
    ids, labels = encode(dialogue, tokens)
    before = tokens(dialogue.prompt[:start])
    assert before != ids[: len(before)]
    first = next(i for i, label in enumerate(labels) if label != IGNORE_INDEX)
    assert made.decode(ids[:first]) + made.decode(ids[first:]) == dialogue.prompt
    joined = made.decode(ids[first])
    assert "\n" in joined and joined.rpartition("\n")[2]
