"""Pruning rules by name. A rule is a pure function from tensors to indices; a new one is a file and a line here."""

from __future__ import annotations

from mob.methods.base import METHODS, Rule, SpanView, create, parse, register
from mob.methods.codebook import CodebookRule
from mob.methods.dart import DART
from mob.methods.divprune import DivPrune
from mob.methods.fastv import FastV
from mob.methods.given import Given
from mob.methods.mob import MoB
from mob.methods.prompt import Prompt
from mob.methods.pyramiddrop import PyramidDrop
from mob.methods.random import Random
from mob.methods.sparsevlm import SparseVLM, SparseVLMPlus
from mob.methods.visual import Visual

__all__ = [
    "DART",
    "METHODS",
    "CodebookRule",
    "DivPrune",
    "FastV",
    "Given",
    "MoB",
    "Prompt",
    "PyramidDrop",
    "Random",
    "Rule",
    "SpanView",
    "SparseVLM",
    "SparseVLMPlus",
    "Visual",
    "create",
    "parse",
    "register",
]
