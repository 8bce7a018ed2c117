"""The mixin behind every thin model class: ``from_pretrained(..., MoB_config=...)`` and ``config.MoB_config``."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedModel
from transformers.conversion_mapping import get_checkpoint_conversion_mapping, register_checkpoint_conversion_mapping

from mob.codebook_file import allow_codebooks_of
from mob.config import MoBConfig
from mob.early import generate
from mob.pruner import Pruning, attach


def keep_key_conversions(cls: type, stock: type) -> None:
    """Let a subclass read the checkpoints that its stock class reads.

    transformers renames the keys of old checkpoints for its own classes only; without this a subclass would load them
    with random weights.
    """
    mapping = get_checkpoint_conversion_mapping(stock.__name__)
    if mapping is None:
        mapping = get_checkpoint_conversion_mapping(stock.config_class.model_type)
    register_checkpoint_conversion_mapping(cls.__name__, mapping or [], overwrite=True)


class MoBMixin:
    """Put before a stock class: ``class LlavaForConditionalGeneration(MoBMixin, transformers.Llava...)``.

    Keep the stock class's name, so that ``config.architectures`` of a saved model stays readable for everybody.
    ``model.pruning`` is the attached ``Pruning``; set ``model.pruning.record = True`` to collect records.
    """

    pruning: Pruning
    prunes_in_generate = True  # nothing needs to stand before the method of an instance

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        stock = next((c for c in cls.__mro__ if c.__module__.startswith("transformers.models.")), None)
        if stock is None:
            raise TypeError(f"{cls.__name__}: list a stock transformers class after MoBMixin")
        keep_key_conversions(cls, stock)

    def __init__(self, config: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(config, *args, **kwargs)
        self.pruning = attach(self)

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """As the stock class; rules before the decoder make the prompt shorter first."""
        return generate(self, super().generate, args, kwargs)

    @classmethod
    def from_pretrained(cls, *args: Any, MoB_config: dict[str, Any] | None = None, **kwargs: Any) -> PreTrainedModel:
        """As the stock class; ``MoB_config`` replaces what config.json says and is saved with the model.

        Raises:
            ValueError: a wrong key or value in ``MoB_config``, before anything is loaded.
        """
        MoBConfig.from_dict(MoB_config)
        allow_codebooks_of(MoB_config)
        loaded = super().from_pretrained(*args, **kwargs)
        if MoB_config is not None:
            model = loaded[0] if isinstance(loaded, tuple) else loaded
            model.config.MoB_config = dict(MoB_config)
        return loaded
