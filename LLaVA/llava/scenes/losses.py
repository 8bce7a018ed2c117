"""The four losses of the embedded checkpoint, written on the stock submodules of ``LlavaForConditionalGeneration``."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import LlavaConfig, LlavaForConditionalGeneration

from llava.scenes.checkpoint import NUM_PATCHES, SPECIAL, build, build_config, build_tokenizer, split_of
from llava.scenes.packing import GROUPS, IGNORE, PREFIX, QUESTIONS, TASKS, attention_mask
from llava.scenes.splits import SPLITS

GROUP_WEIGHTS = {"kind": 1.0, "shape": 3.0, "pattern": 1.0, "colour": 1.0, "digit": 1.0}
ALIGN_TEMPERATURE, GROUND_TEMPERATURE = 0.07, 0.1
GROUND_LAYERS = (1, 2, 3)
END_WEIGHT = 0.1
HIDE_LAYER = 2  # where hidden patches vanish, the layer that MoB prunes at


class SceneLlava(LlavaForConditionalGeneration):
    """The stock model with a head that training throws away: whether an object's centre lies in a patch."""

    def __init__(self, config: LlavaConfig):
        super().__init__(config)
        self.centre = nn.Linear(config.text_config.hidden_size, 1)


def untrained(seed: int = 0, split: str = "easy", start: str | Path | None = None) -> SceneLlava:
    """``llava.scenes.checkpoint.build`` with the head.

    Args:
        start: folder of a trained model of ours to take the weights from instead; words that it does not have keep
            their fresh embeddings. ValueError where it knows words that ``split`` does not.
    """
    stock = build(seed, split)
    if start is not None:
        _take_over(stock, start)
    model = SceneLlava(stock.config)
    torch.manual_seed(seed)
    model.centre.reset_parameters()
    model.load_state_dict(stock.state_dict() | {f"centre.{k}": v for k, v in model.centre.state_dict().items()})
    return model


@torch.no_grad()
def _take_over(model: LlavaForConditionalGeneration, folder: str | Path) -> None:
    trained = LlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    known, room = len(trained.get_input_embeddings().weight), len(model.get_input_embeddings().weight)
    if SPLITS[split_of(model)].words()[: known - len(SPECIAL)] != SPLITS[split_of(trained)].words():
        raise ValueError(f"{folder} knows {known} words, this run only {room}: train with --split {split_of(trained)}")
    embeddings = model.get_input_embeddings().weight.clone()
    embeddings[:known] = trained.get_input_embeddings().weight
    tied = dict.fromkeys(("model.language_model.embed_tokens.weight", "lm_head.weight"), embeddings)
    model.load_state_dict(trained.state_dict() | tied)


def without_head(model: SceneLlava) -> LlavaForConditionalGeneration:
    """The stock model, with copies of the weights and a config that training has not written to."""
    stock = LlavaForConditionalGeneration(build_config(split_of(model)))
    stock.load_state_dict({k: v for k, v in model.state_dict().items() if not k.startswith("centre.")})
    return stock


class SceneLosses(nn.Module):
    """``align`` is the loss of stage A, ``forward`` those of the other stages."""

    def __init__(self, model: SceneLlava):
        super().__init__()
        self.model, self.tasks = model, TASKS[split_of(model)]
        tokenizer = build_tokenizer()
        for group, names in GROUPS.items():
            self.register_buffer(f"words_{group}", torch.tensor(tokenizer.convert_tokens_to_ids(list(names))))
        prefix = tokenizer.encode("USER:", add_special_tokens=True)
        self.register_buffer("prefix", torch.tensor(prefix))

    def patches(self, pixels: Tensor) -> Tensor:
        """Projected picture tokens, (B, 196, d), as the stock model computes them."""
        tower = self.model.model.vision_tower(pixels).last_hidden_state[:, 1:]
        return self.model.model.multi_modal_projector(tower)

    def align(self, batch: dict[str, Tensor]) -> Tensor:
        return self._align(self.patches(batch["pixels"]), batch)

    def _align(self, patches: Tensor, batch: dict[str, Tensor]) -> Tensor:
        """Each patch names its words: softmax over cos(patch, word) within each group, plus object centres."""
        table = F.normalize(self.model.get_input_embeddings().weight, dim=-1)
        unit = F.normalize(patches, dim=-1)
        loss = F.binary_cross_entropy_with_logits(self.model.centre(patches)[..., 0], batch["centres"])
        for group, weight in GROUP_WEIGHTS.items():
            logits = unit @ table[getattr(self, f"words_{group}")].T / ALIGN_TEMPERATURE
            loss = loss + weight * _cross_entropy(logits, batch[f"patch_{group}"])
        return loss / (1 + sum(GROUP_WEIGHTS.values()))

    def forward(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(answer loss, alignment loss, grounding loss, per-task [right, asked] counts (tasks + 1, 2))."""
        patches = self.patches(batch["pixels"])
        align = self._align(patches, batch)
        decoder = self.model.model.language_model
        prefix = decoder.embed_tokens(self.prefix).expand(len(patches), -1, -1)
        hidden = torch.cat([prefix, patches, decoder.embed_tokens(batch["ids"])], 1)
        positions = torch.arange(PREFIX, device=hidden.device).expand(len(hidden), -1)
        rotary = decoder.rotary_emb(hidden, position_ids=torch.cat([positions, batch["position"]], 1))
        mask = attention_mask(batch["segment"])
        late = mask & ~batch["hidden"][:, None, None]
        ground = hidden.new_zeros(())
        for index, layer in enumerate(decoder.layers):
            if index in GROUND_LAYERS:
                ground = ground + _grounding(hidden, batch) / len(GROUND_LAYERS)
            hidden = layer(hidden, attention_mask=mask if index < HIDE_LAYER else late, position_embeddings=rotary)
        logits = self.model.lm_head(decoder.norm(hidden[:, PREFIX:]))
        answer, counts = self._answers(logits, batch)
        return answer, align, ground, counts

    def _answers(self, logits: Tensor, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        target = batch["target"]
        asked = target != IGNORE
        each = F.cross_entropy(logits.flatten(0, 1), target.flatten(), ignore_index=IGNORE, reduction="none")
        end = self.model.config.text_config.eos_token_id
        weight = asked.flatten() * torch.where(target.flatten() == end, END_WEIGHT, 1.0)
        loss = (each * weight).sum() / weight.sum()
        wrong = (asked & (target != end) & (logits.argmax(-1) != target)).float()
        row = F.one_hot(batch["segment"].clamp_min(0), QUESTIONS).float()
        missed = (row * (wrong * (batch["segment"] >= 0))[..., None]).sum(1) > 0
        tasks = F.one_hot(batch["task"].clamp_min(0), len(self.tasks) + 1).float() * (batch["task"] >= 0)[..., None]
        total = tasks.sum((0, 1))
        return loss, torch.stack([total - (tasks * missed[..., None]).sum((0, 1)), total], -1)


def _cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Mean over the labelled entries, zero when there are none."""
    each = F.cross_entropy(logits.flatten(0, -2), target.flatten(), ignore_index=IGNORE, reduction="sum")
    return each / (target != IGNORE).sum().clamp_min(1)


def _grounding(hidden: Tensor, batch: dict[str, Tensor]) -> Tensor:
    """One softmax over all (prompt token, patch) cosines of a question: its mass must fall on the referred patches.

    This is the coupling that MoB's prompt centres look for; large models have it, a tiny one has to be taught.
    """
    visual = F.normalize(hidden[:, PREFIX - NUM_PATCHES : PREFIX], dim=-1)
    text = F.normalize(hidden[:, PREFIX:], dim=-1)
    logits = text @ visual.transpose(1, 2) / GROUND_TEMPERATURE
    refers = batch["refers"].gather(1, batch["segment"].clamp_min(0)[..., None].expand(-1, -1, NUM_PATCHES))
    total = logits.logsumexp(-1)
    inside = logits.masked_fill(~refers, -1e4).logsumexp(-1)
    member = batch["prompt"][..., None] & (batch["segment"][..., None] == torch.arange(QUESTIONS, device=text.device))
    grounded = batch["refers"].any(-1) & member.any(1)

    def per_question(scores: Tensor) -> Tensor:
        return scores[..., None].masked_fill(~member, -1e4).logsumexp(1)

    loss = per_question(total) - per_question(inside)
    return loss.masked_fill(~grounded, 0).sum() / grounded.sum().clamp_min(1)
