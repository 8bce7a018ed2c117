"""Shared set-up: one thread, because the models are tiny and the machines of CI are small."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # for the commands that tests start

import torch

torch.set_num_threads(1)

# Files that take longest, to be started first: two cores are then busy until the end.
LONG = ("llava/test_accuracy.py", "mob/test_rules.py", "lmms_eval/test_tasks.py", "paper_tables/test_tables.py")


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: not item.path.as_posix().endswith(LONG))  # stable: the rest keeps its order
