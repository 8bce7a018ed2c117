"""Pruning rules by name. A rule is a pure function from tensors to indices; a new one is a file and a line here."""

from __future__ import annotations

from mob.methods.base import METHODS, Merged, Rule, SpanView, TowerView, create, needs_of, own_layers, parse, register
from mob.methods.cdpruner import CDPruner
from mob.methods.codebook import CodebookRule
from mob.methods.dart import DART
from mob.methods.divprune import DivPrune
from mob.methods.fastv import FastV
from mob.methods.given import Given
from mob.methods.mmtok import MMTok
from mob.methods.mob import MoB
from mob.methods.pooling import Pooling
from mob.methods.prompt import Prompt
from mob.methods.pyramiddrop import PyramidDrop
from mob.methods.random import Random
from mob.methods.scope import Scope
from mob.methods.sparsevlm import SparseVLM, SparseVLMPlus
from mob.methods.visionzip import VisionZip
from mob.methods.visual import Visual

__all__ = [
    "DART",
    "METHODS",
    "CDPruner",
    "CodebookRule",
    "DivPrune",
    "FastV",
    "Given",
    "MMTok",
    "Merged",
    "MoB",
    "Pooling",
    "Prompt",
    "PyramidDrop",
    "Random",
    "Rule",
    "Scope",
    "SpanView",
    "SparseVLM",
    "SparseVLMPlus",
    "TowerView",
    "VisionZip",
    "Visual",
    "create",
    "needs_of",
    "own_layers",
    "parse",
    "register",
]
