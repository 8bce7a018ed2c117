"""Shared set-up: one thread, because the models are tiny and the machines of CI are small."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # for the commands that tests start

import torch

torch.set_num_threads(1)
