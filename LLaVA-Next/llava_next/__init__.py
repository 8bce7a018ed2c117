"""LLaVA-OneVision, LLaVA-NeXT-Video and Video-LLaVA with MoB, beside the ``llava`` package for LLaVA-1.5 and 1.6."""
