"""MoB: training-free pruning of visual tokens in multimodal language models.

``with mob.prune(model, K=64) as pruning: model.generate(**inputs)`` works on stock transformers models;
``mob.attach(model)`` honours ``model.config.MoB_config`` at every call.
"""

from mob.codebook_file import allow_codebook
from mob.config import MoBConfig
from mob.modeling import MoBMixin
from mob.pruner import Pruning, attach, prune
from mob.record import RetainedPatches

__version__ = "0.1.0"
__all__ = ["MoBConfig", "MoBMixin", "Pruning", "RetainedPatches", "allow_codebook", "attach", "prune"]
