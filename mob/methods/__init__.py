"""Pruning rules by name. A rule is a pure function from tensors to indices; a new one is a file and a line here."""

from __future__ import annotations

from mob.methods.base import METHODS, Rule, SpanView, create, register
from mob.methods.mob import MoB
from mob.methods.prompt import Prompt
from mob.methods.random import Random
from mob.methods.visual import Visual

__all__ = ["METHODS", "MoB", "Prompt", "Random", "Rule", "SpanView", "Visual", "create", "register"]
