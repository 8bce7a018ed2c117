"""The models of this repository for lmms-eval: pruned by MoB, with a log of the visual tokens that were kept."""
