"""Tasks for lmms-eval that need no download: questions about the scenes of ``llava.scenes``."""
