"""Pruning rules by name. A rule is a pure function from tensors to indices; a new one is a file and a line here."""

from __future__ import annotations

from mob.methods.base import METHODS, Rule, SpanView, create, parse, register
from mob.methods.codebook import CodebookRule
from mob.methods.divprune import DivPrune
from mob.methods.given import Given
from mob.methods.mob import MoB
from mob.methods.prompt import Prompt
from mob.methods.random import Random
from mob.methods.visual import Visual

__all__ = [
    "METHODS",
    "CodebookRule",
    "DivPrune",
    "Given",
    "MoB",
    "Prompt",
    "Random",
    "Rule",
    "SpanView",
    "Visual",
    "create",
    "parse",
    "register",
]
