"""``MoBConfig``: everything that decides how a model is pruned, and its spelling as the ``config.MoB_config`` dict."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mob.budget import ENDS, SCHEDULES, Budget, budget, check_keep, split
from mob.checks import check_distance, check_flag
from mob.coupling.modes import TUNABLE, OnlineSplit
from mob.covering import METRICS
from mob.methods.base import Named, balanced, before_only, check_order, own_layers, parse
from mob.methods.mob import AUTO

# The release notes write l_idx; mob.prune says layer.
_ALIASES = {"layer": "l_idx", "kp_ratio": "Kp_ratio", "prune_layer": "l_idx"}
REGIMES = (*ENDS, AUTO)
# Keys that are options of the last rule, for those that have a field of the name.
ADAPTIVE = ("regime", "tau", "spread", "epsilon")
_SIZES = ("K_p", "k", "Kp_ratio", "k_ratio", "alpha")  # what a regime decides, besides the schedule
CALIBRATE = "python -m mob.coupling calibrate LOGS --save FOLDER"


@dataclass(frozen=True)
class MoBConfig:
    """Settings of one pruning stage. Keys of the paper's release keep their names.

    Attributes:
        K: visual tokens to keep, an integer, or a share in (0, 1) of each sample's tokens; None switches pruning off.
        K_p, k: prompt centres and covering fold as integers.
        Kp_ratio, k_ratio: the same as K_p / K and k / K_p.
        alpha: weight of alignment against preservation: K_p / K where neither K_p nor Kp_ratio is given.
        l_idx: decoder layer at whose entry tokens leave, counted from 0; layers 0 .. l_idx - 1 see every token. None:
            2, or the first layer where the model allows it.
        distance_metric: "cosine" or "euclidean" (distances of unit rows, the same choice either way).
        schedule: where K_p and k come from if nothing above says so (see ``mob.budget``).
        image_token_start_index, image_token_length: accepted for compatibility. The span found in the input wins; a
            contradiction gives one warning.
        per_picture: K is split over the pictures of a sample in proportion to their tokens, and each is pruned on its
            own; False: one budget over all of them.
        keep_newlines: newline tokens of tiled pictures always stay and do not count; by default they are visual tokens
            like others. "rows", after rules before the decoder: those stay whose row has a token left.
        positions: "keep": tokens keep their positions; "reindex": they are numbered afresh. None: "reindex" after rules
            before the decoder, as published, "keep" after the others, which know nothing else. Multimodal positions are
            always kept.
        method: name of a rule in ``mob.methods``, or rules before the decoder and one within, joined by "+".
        regime: "strong" or "weak": the paper's schedules of these names. "auto": K_p and k of each picture follow from
            its eta, between these two (see ``mob.methods.mob``); takes the place of all that sets K_p or k.
        tau, spread: where "auto" changes from strong to weak, and over how much of eta (0: at once, the paper's
            recipe); ``mob.coupling calibrate`` finds both. Other regimes do not look at them.
        online: with "auto", tau follows the last samples; True, or a dict of the numbers of
            ``mob.coupling.OnlineSplit``. What is kept then depends on the order of samples and on batches.
        epsilon: fewer than K tokens stay where these cover a picture to this radius, 0..2; of rules mob and visual.
        options: the rule's own fields; of joined rules, a dict of them for each name, and in it K, what a rule before
            the last leaves (an integer, or a share of what arrives there; twice what the next one leaves, unless said).
    """

    K: int | float | None = None
    K_p: int | None = None
    k: int | None = None
    Kp_ratio: float | None = None
    k_ratio: float | None = None
    alpha: float | None = None
    l_idx: int | None = None
    distance_metric: str = "cosine"
    schedule: str = "default"
    image_token_start_index: int | None = None
    image_token_length: int | None = None
    per_picture: bool = True
    keep_newlines: bool | str = False
    positions: str | None = None
    method: str = "mob"
    regime: str | None = None
    tau: float | None = None
    spread: float | None = None
    online: bool | Mapping[str, Any] = False
    epsilon: float | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.K is not None:
            check_keep(self.K)
        for name, low in (("K_p", 0), ("k", 1), ("l_idx", 1)):
            _check_integer(name, getattr(self, name), low)
        for name in ("image_token_start_index", "image_token_length"):
            _check_integer(name, getattr(self, name), 0)
        check_flag("per_picture", self.per_picture)
        if not isinstance(self.keep_newlines, bool) and self.keep_newlines != "rows":
            raise ValueError(f"keep_newlines={self.keep_newlines!r}: give True or False, or 'rows'")
        for name in ("Kp_ratio", "k_ratio", "alpha"):
            _check_share(name, getattr(self, name))
        if self.K_p is not None and self.Kp_ratio is not None:
            raise ValueError("K_p and Kp_ratio both set the number of prompt centres: give one of them")
        if self.k is not None and self.k_ratio is not None:
            raise ValueError("k and k_ratio both set the covering fold: give one of them")
        if isinstance(self.K, int) and self.K_p is not None and self.K_p > self.K:
            raise ValueError(f"K_p={self.K_p} with K={self.K}: prompt centres are part of the budget, choose K_p <= K")
        _check_choice("distance_metric", self.distance_metric, METRICS)
        _check_choice("schedule", self.schedule, SCHEDULES)
        if self.positions is not None:
            _check_choice("positions", self.positions, ("keep", "reindex"))
        if not isinstance(self.options, Mapping):
            raise ValueError(f"options={self.options!r}: give a dict of the rule's own fields")
        sizes = {name: getattr(self, name) for name in _SIZES}
        if self.K is None and (given := [name for name, value in sizes.items() if value is not None]):
            raise ValueError(f"{' and '.join(given)} without K: set K, the number (or share) of visual tokens to keep")

        self._check_adaptive()

    def _check_adaptive(self) -> None:
        for name in ("tau", "spread", "epsilon"):
            check_distance(name, getattr(self, name))
        if self.epsilon is not None and self.K is None:
            raise ValueError("epsilon without K: set K, the most visual tokens to keep")
        if self.regime is None:
            set_ = [name for name in ("tau", "spread", "online") if getattr(self, name) not in (None, False)]
            if set_:
                raise ValueError(f"{' and '.join(set_)} without regime: add regime='auto'")
            return
        _check_choice("regime", self.regime, REGIMES)
        set_ = [name for name in _SIZES if getattr(self, name) is not None]
        set_ += ["schedule"] if self.schedule != "default" else []
        if set_:
            raise ValueError(
                f"regime={self.regime!r} and {' and '.join(set_)} both set K_p or k: give one or the other"
            )
        self.running()
        if self.regime == AUTO and self.tau is None and not self.online:
            raise ValueError(f"regime='auto' without tau: find it on your data with {CALIBRATE}, or set online=True")

    def running(self) -> OnlineSplit | None:
        """A new running threshold, where ``online`` asks for one."""
        if self.online is False or self.online is None:
            return None
        if self.online is not True and not isinstance(self.online, Mapping):
            raise ValueError(f"online={self.online!r}: give True or False, or a dict such as {{'window': 512}}")
        given = {} if self.online is True else dict(self.online)
        for key in given:
            if key not in TUNABLE:
                close = difflib.get_close_matches(str(key), TUNABLE, n=1, cutoff=0.5)
                hint = f"did you mean {close[0]!r}?" if close else f"known keys: {', '.join(TUNABLE)}"
                raise ValueError(f"online has no key {key!r}: {hint}")
        if "drift" in given and self.tau is None:
            raise ValueError("online: drift is measured from a calibrated tau: set tau, or leave drift out")
        return OnlineSplit(self.tau, self.spread, **given)

    def rules(self) -> tuple[list[Named], Named | None]:
        """The rules before the decoder and the one within it (see ``mob.methods.parse``), with what the keys above say.

        Raises:
            ValueError: an unknown rule or option, or a key that the last rule has no use for.
        """
        values = {name: getattr(self, name) for name in ADAPTIVE if getattr(self, name) is not None}
        if self.regime in ENDS:  # a schedule, which ``budget`` knows
            values = {name: value for name, value in values.items() if name == "epsilon"}
        early, late = parse(self.method, self.options)
        early = self._doubled(early, late)
        check_order(early)
        if not early:
            if self.keep_newlines == "rows":
                raise ValueError("keep_newlines='rows' works after rules before the decoder only: give True or False")
            if self.positions == "reindex":
                raise ValueError(
                    "positions='reindex' works after rules before the decoder only: leave it out, or 'keep'"
                )
        last = late or early[-1]
        self._check_used(last.name, late)
        known = {one.name for one in dataclasses.fields(last.rule)}
        asked = {**values, **({"regime": self.regime} if self.regime else {})}
        if strange := [name for name in asked if name not in known]:
            raise ValueError(f"rule {last.name!r} has no use for {' and '.join(strange)}: use method='mob', or drop it")
        inside = [name for name in ADAPTIVE if getattr(last.rule, name, None)]
        # A regime in options would pass by what is checked of the keys above; a radius is a rule's own affair.
        if wrong := [name for name in inside if name in values or name != "epsilon"]:
            raise ValueError(f"{wrong[0]} is set in options: set it beside K")
        if not values:
            return early, late
        own = last._replace(rule=dataclasses.replace(last.rule, **values))
        return (early, own) if late else ([*early[:-1], own], None)

    def _check_used(self, last: str, late: Named | None) -> None:
        """ValueError for keys that the rule named ``last`` has no use for, which would pass without a word."""
        given = [name for name in _SIZES if getattr(self, name) is not None]
        given += ["schedule"] if self.schedule != "default" else []
        if given and not balanced(last):
            raise ValueError(
                f"rule {last!r} has no use for {' and '.join(given)}, which set prompt centres: use method='mob', "
                "or leave them out"
            )
        if self.l_idx is not None and late is None:
            raise ValueError(f"layer={self.l_idx}: {last} prunes before the decoder, leave layer (l_idx) out")

    def _doubled(self, early: list[Named], late: Named | None) -> list[Named]:
        """Rules before the last with what they keep: where nothing is said, twice what the next one keeps."""
        out, K = [] if late else early[-1:], self.K
        for one in reversed(early[: len(early) if late else -1]):
            if one.K is None and not getattr(one.rule, "adaptive", False):
                if not isinstance(K, int):  # a share counts what arrives, which depends on this very number
                    example = {one.name: {"K": 0.5}}
                    raise ValueError(
                        f"method={self.method!r}: say how many tokens {one.name} keeps, such as options={example}, or "
                        "give K as an integer (then it keeps twice as many)"
                    )
                one = one._replace(K=2 * K)
            out, K = [one, *out], one.K
        return out

    @classmethod
    def from_dict(cls, values: Mapping[str, Any] | None) -> MoBConfig:
        """Read a ``MoB_config`` dict; None and {} mean off. ValueError with a suggestion on an unknown key."""
        if values is not None and not isinstance(values, Mapping):
            raise ValueError(f"MoB_config={values!r}: give a dict, such as {{'K': 64}}, or None to switch pruning off")
        known = [f.name for f in dataclasses.fields(cls)]
        renamed: dict[str, Any] = {}
        for key, value in (values or {}).items():
            name = _ALIASES.get(key, key)
            if name not in known:
                close = difflib.get_close_matches(str(key), [*known, *_ALIASES], n=1, cutoff=0.5)
                hint = f"did you mean {close[0]!r}?" if close else f"known keys: {', '.join(known)}"
                raise ValueError(f"MoB_config has no key {key!r}: {hint}")
            if name in renamed:
                raise ValueError(f"MoB_config sets {name!r} twice (as {key!r} too): keep one of them")
            renamed[name] = value
        return cls(**renamed)

    def to_dict(self) -> dict[str, Any]:
        """The shortest ``MoB_config`` dict that means the same; JSON-ready."""
        out = {}
        for f in dataclasses.fields(self):
            default = {} if f.name == "options" else f.default
            if (value := getattr(self, f.name)) != default:
                out[f.name] = dict(value) if f.name == "options" else value
        return out

    @property
    def enabled(self) -> bool:
        return self.K is not None

    def budget(self, N: int) -> Budget:
        """The integers for a sample of N visual tokens; everything is kept when pruning is off."""
        if self.K is None or N == 0:
            return Budget(N=N, K=N, K_p=0, k=1)
        ratio = self.Kp_ratio if self.Kp_ratio is not None else self.alpha
        schedule = self.regime if self.regime in ENDS else self.schedule
        return budget(N, self.K, K_p=self.K_p, k=self.k, Kp_ratio=ratio, k_ratio=self.k_ratio, schedule=schedule)

    def parts(self, whole: Budget, lengths: Sequence[int]) -> list[Budget]:
        """The budgets of a sample's pictures, of these many visual tokens."""
        if not self.per_picture or len(lengths) < 2 or whole.identity:
            return [whole]
        return split(whole, lengths, fixed_fold=self.k is not None)


def overlay(saved: Mapping[str, Any] | None, given: Mapping[str, Any]) -> dict[str, Any]:
    """A ``MoB_config`` with another over it. The options of a method leave with it, and so does what was said for a
    regime, which leaves too where K_p or k are set in another way; and the other way round. A layer leaves where the
    new method prunes at layers of its own, or before the decoder; what sets prompt centres where it has none."""
    names = {_ALIASES.get(key, key) for key in given}
    gone: set[str] = set()
    if "method" in given and given["method"] != (saved or {}).get("method", "mob"):
        gone |= {*ADAPTIVE, "online", "options"}
        gone |= {"l_idx"} if own_layers(str(given["method"])) or before_only(str(given["method"])) else set()
        gone |= set() if balanced(str(given["method"])) else {*_SIZES, "schedule"}
    if names & {*_SIZES, "schedule"}:
        gone |= {"regime", "tau", "spread", "online"}
    if "regime" in given:
        gone |= {*_SIZES, "schedule"}
    return {key: value for key, value in (saved or {}).items() if _ALIASES.get(key, key) not in gone} | dict(given)


def _check_integer(name: str, value: Any, low: int) -> None:
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"{name}={value!r}: give an integer")
    if value < low:
        extra = " (generation reads lengths from layer 0, so it must stay complete)" if name == "l_idx" else ""
        raise ValueError(f"{name}={value}: must be at least {low}{extra}")


def _check_share(name: str, value: Any) -> None:
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1:
        raise ValueError(f"{name}={value!r}: give a number between 0 and 1")


def _check_choice(name: str, value: Any, choices) -> None:
    if value not in choices:
        close = difflib.get_close_matches(str(value), list(choices), n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"use one of {', '.join(choices)}"
        raise ValueError(f"{name}={value!r}: {hint}")
