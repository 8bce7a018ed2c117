"""Notes of layouts on encoded pictures: ``generate`` encodes before its first pass, and then forgets their sizes."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import nn

from mob.layout import ENCODERS, NOTE, declared, picture_features


class Noting:
    """Stands before an encoder method of a model while pruning is on; notes on each picture's features their layout."""

    def __init__(self, base: nn.Module, name: str) -> None:
        self.base, self.name = base, name

    @property
    def __signature__(self) -> inspect.Signature:  # generate asks for it
        return inspect.signature(self._method)

    @property
    def _method(self) -> Any:
        return getattr(type(self.base), self.name).__get__(self.base)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        # Not self._method: torch.compile resolves a bound method by its name on the instance, which is this object.
        output = getattr(type(self.base), self.name)(self.base, *args, **kwargs)
        self._note(output, args, kwargs)
        return output

    @torch.compiler.disable  # the tower is worth compiling, this is not
    def _note(self, output: Any, args: tuple, kwargs: dict) -> None:
        given = inspect.signature(self._method).bind(*args, **kwargs)
        given.apply_defaults()
        pictures = declared(self.base.config, dict(given.arguments)).get(ENCODERS[self.name])
        features = picture_features(output)
        if pictures and len(features) == len(pictures):
            for one, picture in zip(features, pictures, strict=True):
                setattr(one, NOTE, picture)
