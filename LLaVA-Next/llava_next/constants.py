"""The names and numbers of ``llava.constants``, under the name that this package's users look for them."""

from llava.constants import *  # noqa: F403
