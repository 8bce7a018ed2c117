"""Pruning rules by name. A rule is a pure function from tensors to indices; a new one is a file and a line here."""

from __future__ import annotations

from mob.methods.base import METHODS, Merged, Rule, SpanView, TowerView, create, needs_of, parse, register
from mob.methods.cdpruner import CDPruner
from mob.methods.codebook import CodebookRule
from mob.methods.divprune import DivPrune
from mob.methods.given import Given
from mob.methods.mmtok import MMTok
from mob.methods.mob import MoB
from mob.methods.pooling import Pooling
from mob.methods.prompt import Prompt
from mob.methods.random import Random
from mob.methods.scope import Scope
from mob.methods.visionzip import VisionZip
from mob.methods.visual import Visual

__all__ = [
    "METHODS",
    "CDPruner",
    "CodebookRule",
    "DivPrune",
    "Given",
    "MMTok",
    "Merged",
    "MoB",
    "Pooling",
    "Prompt",
    "Random",
    "Rule",
    "Scope",
    "SpanView",
    "TowerView",
    "VisionZip",
    "Visual",
    "create",
    "needs_of",
    "parse",
    "register",
]
