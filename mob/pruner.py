"""The mechanism: forward hooks that carry a pruning rule into any stock Hugging Face decoder.

``begin`` runs before the base model: it finds visual and prompt tokens and hands a ``Plan`` down as a keyword.
``enter`` runs before every decoder layer: at a stage's layer the rule chooses, later layers get the short tensors.
``end`` runs after the base model and brings the output back to full length. Nothing is copied or replaced, state
between calls is one attribute on the cache, and everything else lives in the plan of the pass, so threads do not meet.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from mob import probe
from mob.anatomy import STATE, Anatomy, dissect
from mob.budget import keep_count
from mob.codebook_file import vetted
from mob.config import MoBConfig
from mob.coupling import OnlineSplit
from mob.early import ENCODED, EarlyStage, Generate, Shorter, brings_pictures, is_short, joined, shorten
from mob.layout import ENCODERS, declared
from mob.methods import Rule
from mob.methods.base import Depth
from mob.methods.mob import AUTO
from mob.noting import Noting
from mob.plan import Plan
from mob.record import RetainedPatches
from mob.recorder import Recorder
from mob.spans import Spans, find_kinds, find_real, find_spans
from mob.stages import Stage, schedule, stages_of
from mob.within import Choice, arrive, by_sample, choose

PLAN, ANSWER = "mob_plan", "mob_answer"


@dataclass(eq=False)
class Pruning:
    """Pruning of one model: a context manager, or attached for good. Made by ``prune`` and ``attach``.

    Attributes:
        model: the model, unwrapped from PEFT.
        settings: fixed settings, or None to read ``model.config.MoB_config`` at each call.
        record: whether to keep a ``RetainedPatches`` per sample in ``records``.
    """

    model: nn.Module
    settings: MoBConfig | None = None
    record: bool = False
    _anatomy: Anatomy = field(init=False, repr=False)
    _recorder: Recorder = field(init=False, repr=False, default_factory=Recorder)
    _handles: list = field(init=False, repr=False, default_factory=list)
    _warned: bool = field(init=False, repr=False, default=False)
    _running: OnlineSplit | None = field(init=False, repr=False, default=None)
    _running_for: Any = field(init=False, repr=False, default=None)

    def __post_init__(self) -> None:
        self._anatomy = dissect(self.model)
        self.model = self._anatomy.top
        self._check(self._settings())

    @property
    def records(self) -> list[RetainedPatches]:
        """One record per sample of every pruned pass, in batch order. Beams count as samples."""
        return self._recorder.records()

    def clear(self) -> None:
        """Forget the records so far."""
        self._recorder.clear()

    def __enter__(self) -> Pruning:
        if self._handles:
            raise ValueError("this pruning is active already: make a new one with mob.prune")
        parts = self._anatomy
        stack = parts.base.__dict__.setdefault(STATE, [])
        stack.append(self)
        add = self._handles.append
        if parts.top is not parts.base:
            add(parts.top.register_forward_pre_hook(self._note_labels, with_kwargs=True))
        add(parts.base.register_forward_pre_hook(self._begin, with_kwargs=True))
        add(parts.base.register_forward_hook(self._end, with_kwargs=True))
        for name in filter(partial(hasattr, parts.base), ENCODERS):
            parts.base.__dict__.setdefault(name, Noting(parts.base, name))
        if hasattr(parts.top, "generate") and not hasattr(parts.top, "prunes_in_generate"):
            parts.top.__dict__.setdefault("generate", Generate(parts.top))
        for index, layer in enumerate(parts.layers):
            add(layer.register_forward_pre_hook(_Enter(self, index), with_kwargs=True))
        return self

    def __exit__(self, *exception: object) -> None:
        self.detach()

    def detach(self) -> None:
        """Remove every hook; the model is as before."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        stack = self._anatomy.base.__dict__.get(STATE, [])
        if self in stack:
            stack.remove(self)
        if not stack:
            for name in (STATE, *ENCODERS):
                self._anatomy.base.__dict__.pop(name, None)
            if isinstance(self._anatomy.top.__dict__.get("generate"), Generate):
                del self._anatomy.top.__dict__["generate"]

    def _active(self) -> bool:
        """Of nested prunings only the innermost acts."""
        return self._anatomy.base.__dict__[STATE][-1] is self

    def _settings(self) -> MoBConfig:
        if self.settings is not None:
            return self.settings
        config = self.model.config
        return MoBConfig.from_dict(vetted(getattr(config, "MoB_config", None), getattr(config, "name_or_path", None)))

    def _check(self, settings: MoBConfig) -> None:
        early, late = settings.rules()
        for one in (*early, *([late] if late else [])):
            if hasattr(one.rule, "check"):
                one.rule.check(self.model)
        depth = self._depth(settings)
        depth.check(depth.layer)
        if late is not None:
            schedule(late.rule, 1000, keep_count(1000, settings.K or 1), depth)
            probe.check(self._anatomy, late.rule)

    def _depth(self, settings: MoBConfig) -> Depth:
        return Depth(len(self._anatomy.layers), self._anatomy.first_layer, settings.l_idx)

    def _note_labels(self, top: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
        """Tokens that labels ask for must not guide the selection, and the base model never sees labels."""
        labels = kwargs.get("labels")
        if labels is None or not self._active():
            return None
        return args, {**kwargs, ANSWER: labels != -100}

    def _begin(self, base: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
        if not self._active():
            return None
        answer = kwargs.pop(ANSWER, None)
        args, kwargs, answer, whole = self._shorten(args, kwargs, answer)
        plan = self._plan(args, kwargs, answer)
        if plan is None and whole is not None:
            plan = Plan(whole[0].shape[1], 0)
        if kwargs.get(ENCODED) is not None:
            kwargs[ENCODED] = joined(kwargs[ENCODED])
        if plan is not None:
            plan.whole = whole
            plan.owner = self
            kwargs[PLAN] = plan
        return args, kwargs

    def _early(self, settings: MoBConfig) -> list[EarlyStage]:
        """The stages before the decoder, none when pruning is off."""
        early, late = settings.rules()
        decides = [getattr(one.rule, "adaptive", False) for one in early]  # itself, how many
        if settings.K is None and not (all(decides) or (late is None and decides[-1])):
            return []
        return [
            EarlyStage(one.name, one.rule, settings.K if late is None and one is early[-1] else one.K) for one in early
        ]

    def shorten(self, kwargs: dict, answer: Tensor | None = None) -> Shorter | None:
        """What a call with pictures becomes by the stages before the decoder; None to leave it alone."""
        settings = self._settings()
        stages = self._early(settings)
        if not stages or kwargs.get("input_ids") is None or is_short(kwargs):
            return None
        return shorten(self._anatomy, stages, settings, kwargs, self.record, answer)

    def _shorten(self, args: tuple, kwargs: dict, answer: Tensor | None) -> tuple:
        """The same for a plain forward pass: its arguments, and what brings its output back to full length."""
        given = {**kwargs, "input_ids": args[0]} if args else kwargs
        if not brings_pictures(given):  # as in every step of decoding
            return args, kwargs, answer, None
        shorter = self.shorten(given, answer)
        if shorter is None:
            return args, kwargs, answer, None
        if given.get("past_key_values") is not None:
            raise ValueError(
                "after a rule before the decoder only generate knows how to go on with a cache: call model.generate, "
                "or leave past_key_values out"
            )
        if answer is not None:
            answer = answer.gather(1, shorter.rows.clamp_min(0).to(answer.device))
        # A cache would hold the short prompt, and nobody outside knows: generate is the way to go on.
        short = {**shorter.kwargs, "use_cache": False}
        return (), short, answer, (shorter.rows, given["input_ids"].shape[1])

    def _plan(self, args: tuple, kwargs: dict, answer: Tensor | None) -> Plan | None:
        """What to do in this pass; None to leave it alone."""
        ids = kwargs.get("input_ids", args[0] if args else None)
        embeddings = kwargs.get("inputs_embeds")
        length = (embeddings if ids is None else ids).shape[1]
        cache = kwargs.get("past_key_values")
        if length == 1:  # decoding: a picture is never a single token, and generated placeholders are text
            return self._go_on(cache, length, 0)
        past = 0 if cache is None else int(cache.get_seq_length())
        if past == 0 and hasattr(cache, STATE):
            delattr(cache, STATE)  # the cache was reset
        settings = self._settings()
        if not settings.enabled and not self._early(settings):
            return self._go_on(cache, length, past)
        self._check(settings)
        config = self.model.config
        kinds = find_kinds(config, ids, embeddings, self._anatomy.embed)
        real = find_real(kwargs.get("attention_mask"), kinds, past)
        spans = find_spans(kinds, real, answer, past == 0, config, declared(config, kwargs), settings.keep_newlines)
        if past == 0:
            self._warn_of_other_span(settings, spans)
        stages = self._stages(settings, spans)
        if self.record and (past == 0 or any(spans.visual_counts)):
            self._recorder.open(spans, stages, settings.method, len(self._anatomy.layers), settings.regime)
        if all(budget.identity for stage in stages for budget in stage.budgets):
            return self._go_on(cache, length, past)
        self._anatomy.check_window(cache, length)
        return Plan(length, past, getattr(cache, STATE, ()), spans, stages)

    def _go_on(self, cache: Any, length: int, past: int) -> Plan | None:
        """The plan of a pass that drops nothing: needed where short layers are in the cache."""
        shorts = getattr(cache, STATE, ())
        if not shorts:
            return None
        self._anatomy.check_window(cache, length)
        return Plan(length, past, shorts)

    def _stages(self, settings: MoBConfig, spans: Spans) -> tuple[Stage, ...]:
        """What happens where in this pass, ascending by layer. MoB is one stage."""
        _, late = settings.rules()
        if late is None or settings.K is None:
            return ()
        return stages_of(settings, self._with_running_tau(settings, late.rule), self._depth(settings), spans)

    def _with_running_tau(self, settings: MoBConfig, rule: Rule) -> Rule:
        """The rule with the threshold that earlier passes have led to, where ``online`` asks for one."""
        asked = (settings.tau, settings.spread, settings.online)
        if self._running_for != asked:  # starts anew when it is asked for in another way
            self._running_for, self._running = asked, settings.running() if settings.regime == AUTO else None
        if self._running is None:
            return rule
        tau, spread = self._running.settle()
        return replace(rule, tau=tau, spread=spread or 0.0)

    def _enter(self, plan: Plan, index: int, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        for stage in plan.stages:
            if stage.layer == index and any(not budget.identity for budget in stage.budgets):
                args, kwargs = self._prune(plan, stage, args, kwargs)
        kwargs = plan.shorten(index, kwargs, self._anatomy.flash)
        later = [stage for stage in plan.stages if stage.layer > index and plan.at(stage.layer) is None]
        if any(index in probe.noted_layers(stage.rule, stage.layer) for stage in later):
            plan.notes[index] = _noted(args, kwargs)
        return args, kwargs

    def _prune(self, plan: Plan, stage: Stage, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        """At a stage's layer: choose what stays, and hand on the shorter hidden states."""
        hidden = args[0] if args else kwargs["hidden_states"]
        cut = plan.at(stage.layer)  # there when the layer runs again
        if cut is None:
            choice = self._choose(plan, stage, _noted(args, kwargs))
            real, seen = plan.spans.real_counts, plan.spans.visual_counts
            if choice.ragged:  # only the device knows how many stay: the one wait that such rules cost
                counts = choice.keep.sum(1).tolist()
            else:
                counts = [r - n + b.K for r, n, b in zip(real, seen, stage.budgets, strict=True)]
            cut = plan.drop(stage.layer, choice.keep, counts, choice.into)
            if stage.layer > 1:  # what entered layer 0 stays: later stages may ask too
                plan.notes.pop(stage.layer - 1, None)
            if kwargs.get("past_key_values") is not None:
                setattr(kwargs["past_key_values"], STATE, plan.shorts)
        hidden = cut.apply(hidden)
        return ((hidden, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": hidden})

    @torch.no_grad()
    def _choose(self, plan: Plan, stage: Stage, noted: probe.Noted) -> Choice:
        """Ask a stage's rule, and hand on what it has measured: to the running threshold, and to the records."""
        there = arrive(self._anatomy, plan, stage, noted)
        with self._recorder.timed(there.hidden.device, self.record) as clock:
            choice = choose(stage, there)
        if choice.ragged and stage is not plan.stages[-1]:
            raise ValueError(f"rule {stage.rule.name!r} may keep fewer tokens than its budget in its last stage only")
        for pictures, asked in choice.asked:
            if self._running is not None and "eta" in asked:
                self._running.add(asked["eta"])
            if self.record:
                self._recorder.ask(pictures, asked)
        if self.record:
            for members, view, selection in by_sample(stage, there, choice):
                self._recorder.note(members, view, selection, clock)
        return choice

    def _end(self, base: nn.Module, args: tuple, kwargs: dict, output: Any) -> Any:
        """Bring what the base model returns back to the length of its input."""
        plan: Plan | None = kwargs.get(PLAN)
        if plan is None or plan.owner is not self:
            return None
        if not plan.cuts and any(not budget.identity for stage in plan.stages for budget in stage.budgets):
            raise ValueError(f"{type(self.model).__name__} hands nothing on to its decoder layers: it cannot be pruned")
        if not (plan.cuts or plan.whole):
            return None
        last = len(self._anatomy.layers)

        def full(states: tuple) -> tuple:  # entry i is what layer i - 1 gave, entry 0 the embeddings
            return tuple(plan.expand(state, i - 1) for i, state in enumerate(states))

        if not hasattr(output, "get"):
            # Nothing says which entry holds the hidden states; attentions have four dimensions.
            rest = (full(v) if isinstance(v, tuple) and v and v[0].ndim == 3 else v for v in output[1:])
            return (plan.expand(output[0], last), *rest)
        output["last_hidden_state"] = plan.expand(output["last_hidden_state"], last)
        if output.get("hidden_states") is not None:
            output["hidden_states"] = full(output["hidden_states"])
        return output

    def _warn_of_other_span(self, settings: MoBConfig, spans: Spans) -> None:
        """The release notes configure where the picture is; the input knows better. Said once."""
        start, length = settings.image_token_start_index, settings.image_token_length
        if self._warned or (start is None and length is None) or not any(spans.visual_counts):
            return
        sample = next(i for i, n in enumerate(spans.visual_counts) if n)
        order = spans.visual[sample][spans.real[sample]]
        found = int(order.to(torch.uint8).argmax()), spans.visual_counts[sample]
        asked = found[0] if start is None else start, found[1] if length is None else length
        if found != asked:
            self._warned = True
            warnings.warn(
                f"MoB_config says that the picture starts at token {asked[0]} and has {asked[1]} tokens; in this input "
                f"it starts at {found[0]} and has {found[1]}. The input is right; remove image_token_start_index and "
                "image_token_length, or correct them, to silence this.",
                stacklevel=2,
            )


def _noted(args: tuple, kwargs: dict) -> probe.Noted:
    return probe.Noted(args[0] if args else kwargs["hidden_states"], kwargs)


@dataclass(frozen=True, eq=False)
class _Enter:
    """The hook of one layer: a bound method that knows the layer's index, and survives deepcopy and pickle."""

    pruning: Pruning
    index: int

    def __call__(self, layer: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
        plan: Plan | None = kwargs.pop(PLAN, None)
        return None if plan is None else plan.owner._enter(plan, self.index, args, kwargs)


def prune(
    model: nn.Module,
    K: int | float | None = None,
    K_p: int | None = None,
    k: int | None = None,
    layer: int | None = None,
    method: str = "mob",
    record: bool = True,
    **more: Any,
) -> Pruning:
    """Prune while a ``with`` block lasts: ``with mob.prune(model, K=64) as pruning: model.generate(**inputs)``.

    Args:
        model: any stock vision-language model of transformers, also wrapped by PEFT, quantised or dispatched.
        K: visual tokens to keep of each sample, an integer or a share in (0, 1): those that are left after the last
            stage of a rule that has several (``mob.cost.keep_for_mean`` finds the K of a mean over all layers).
        K_p, k: prompt centres and covering fold; by default from the paper's schedule (``mob.budget``).
        layer: decoder layer at whose entry the others leave, counted from 0; by default 2, or the first layer where the
            model allows it (3 in a Qwen3-VL).
        method: a rule's name, see ``mob.methods.METHODS``.
        record: keep ``RetainedPatches`` in ``pruning.records``.
        more: any other key of ``MoBConfig``, such as schedule="weak" or options={"seed": 3}.

    Keep the block open for the whole conversation: a cache that was filled inside needs the hooks to go on.

    Raises:
        ValueError: a budget, key, layer or model that cannot work; the message says what to do.
    """
    if isinstance(K, (dict, MoBConfig)):
        raise ValueError(
            "mob.prune takes keys: prune(model, K=64), prune(model, **keys), or Pruning(model, a MoBConfig)"
        )
    values = {"K": K, "K_p": K_p, "k": k, "l_idx": layer, "method": method, **more}
    return Pruning(model, MoBConfig.from_dict({key: v for key, v in values.items() if v is not None}), record)


def attach(model: nn.Module, record: bool = False) -> Pruning:
    """Prune for good, honouring ``model.config.MoB_config`` at every call; ``.detach()`` undoes it.

    Sets ``model.config.MoB_config`` to {} (off) where there is none.
    """
    pruning = Pruning(model, None, record)
    if getattr(pruning.model.config, "MoB_config", None) is None:
        pruning.model.config.MoB_config = {}
    return pruning.__enter__()
