"""Which visual tokens say nothing: the experiments, the codebook they give, and what it keeps (arXiv 2503.20540).

The rule that prunes with a codebook is ``mob.methods.codebook``; here is everything that makes one.
"""

from mob.codebook_file import Codebook, read_codebook
from redundancy_codebook.translate import translate

__version__ = "1.0.0"
__all__ = ["Codebook", "read_codebook", "translate"]
