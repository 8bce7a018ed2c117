"""Training: the two stages of LLaVA-1.5, LoRA, LLaVA-1.6's tiles, and training under pruning.

On transformers' Trainer and stock model classes. Where it departs from the original repository:

- Version v0 is rendered as at inference (``###Human: ...###Assistant: ...###``), not with the original's own header.
  It needs no ``[PAD]`` token: padding is masked.
- ``--mm_projector_type`` is mlp2x_gelu, ``--mm_vision_select_layer`` -2 and ``--model_max_length`` 2048 by default; a
  picture counts for all its tokens and is never cut in two.
- A record or picture that cannot be used stops the run, or is named and replaced (``--on_bad_sample skip``); nothing is
  trained on a blank picture, and no sample with labels of -100 only.
- Pictures are turned upright as their EXIF says, at inference too. Boxes in RefCOCO and VG count in pixels as they are
  stored; where such a picture has the mark, they no longer fit.
- Every run can be continued, projector-only ones too.
- Under pruning, the words of all questions guide the choice of tokens, and no word of an answer does.
"""
