"""``RetainedPatches``: which visual tokens of a sample were kept, why, and with what budget. JSON in and out."""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass, field

from mob.cost import mean_tokens


@dataclass(frozen=True)
class RetainedPatches:
    """One sample of one pruned pass. A sample without a picture has N = K = 0 and empty lists.

    Attributes:
        keep_indices: kept visual tokens, numbered 0 .. N-1 in sequence order over all pictures of the sample.
        prompt_center: for each of them, True for a prompt centre, False for a visual centre.
        image, view, row, column: for each of them, the picture it belongs to, the view of that picture (0: the whole,
            1: its tiles; or the frame of a video) and the cell in the view's grid. A newline token has column -1, a
            token without a place row -1 too.
        grids: [rows, columns] of every view of every picture: ``grids[image][view]``.
        N, K, K_p, k: the budget (K_p and k as asked for; fewer distinct candidates leave fewer prompt centres).
        layer, method: where and by which rule; of several stages the last.
        stages: the stages before that one, each with method, layer, N and K of the sample. Those before the decoder
            have layer 0, and radius: how far (0..2) the farthest dropped token is from what stayed.
        depth: decoder layers of the model, 0 where a record does not say.
        eta, eps_p, eps_v: Hausdorff radii in 0..2 (see ``mob.coupling``); None where nothing was dropped or a set is
            empty.
        milliseconds: time of the selection, of the whole batch and all stages; None if not dropped.
        adaptive: where the budget adapts, what decided: regime, tau, spread and, one number a picture, eta, weight (0
            strong, 1 weak), K_p and k; epsilon and K_max. The record's K_p is then the sum over the pictures, its k the
            largest, and its K what really stayed.
    """

    keep_indices: list[int] = field(default_factory=list)
    prompt_center: list[bool] = field(default_factory=list)
    image: list[int] = field(default_factory=list)
    row: list[int] = field(default_factory=list)
    column: list[int] = field(default_factory=list)
    view: list[int] = field(default_factory=list)
    grids: list[list[list[int]]] = field(default_factory=list)
    N: int = 0
    K: int = 0
    K_p: int = 0
    k: int = 1
    layer: int = 2
    method: str = "mob"
    stages: list[dict] = field(default_factory=list)
    depth: int = 0
    eta: float | None = None
    eps_p: float | None = None
    eps_v: float | None = None
    milliseconds: float | None = None
    adaptive: dict = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.view:  # records of before there were views
            object.__setattr__(self, "view", [0] * self.K)
        lists = ("keep_indices", "prompt_center", "image", "view", "row", "column")
        lengths = {len(getattr(self, name)) for name in lists}
        if lengths != {self.K}:
            raise ValueError(f"K={self.K} but the lists of this record have lengths {sorted(lengths)}")

    @property
    def mean_tokens(self) -> float | None:
        """Visual tokens per decoder layer, averaged over all layers; None where the depth is not known."""
        if not self.depth:
            return None
        stages = [(stage.get("layer", 0), stage["K"]) for stage in self.stages]
        return mean_tokens(self.N, [*stages, (self.layer, self.K)], self.depth)

    def to_dict(self) -> dict:
        """Plain Python values, ready for JSON."""
        return dataclasses.asdict(self)

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), allow_nan=False)

    @classmethod
    def from_dict(cls, values: dict) -> RetainedPatches:
        """The record that ``to_dict`` wrote. ValueError when keys are unknown or lengths disagree."""
        known = {f.name for f in dataclasses.fields(cls)}
        if unknown := set(values) - known:
            raise ValueError(f"not a RetainedPatches record, unknown keys: {', '.join(sorted(unknown))}")
        return cls(**values)

    @classmethod
    def from_json(cls, text: str) -> RetainedPatches:
        return cls.from_dict(json.loads(text))


def number(value: float) -> float | None:
    """A float for JSON: NaN becomes None."""
    return None if math.isnan(value) else value
