"""``llava.train.train`` with FlashAttention-2, where it is installed."""

from __future__ import annotations

import sys

from llava.train.train import main

if __name__ == "__main__":
    sys.exit(main(attn_implementation="flash_attention_2"))
