"""Names and numbers that checkpoints, conversation files and servers agree on. Changing one breaks old data."""

from __future__ import annotations

# Serving: seconds between a worker's signs of life, and how long the controller waits before it drops a silent one.
CONTROLLER_HEART_BEAT_EXPIRATION = 30
WORKER_HEART_BEAT_INTERVAL = 15
LOGDIR = "."

# Token ids that no vocabulary holds: a label the loss skips, and the place where a picture's features go.
IGNORE_INDEX = -100
IMAGE_TOKEN_INDEX = -200

DEFAULT_IMAGE_TOKEN = "<image>"
DEFAULT_IMAGE_PATCH_TOKEN = "<im_patch>"
DEFAULT_IM_START_TOKEN = "<im_start>"
DEFAULT_IM_END_TOKEN = "<im_end>"
# What a user may write inside a query to say where the picture belongs.
IMAGE_PLACEHOLDER = "<image-placeholder>"

# Video-LLaVA.
DEFAULT_VIDEO_TOKEN = "<video>"
DEFAULT_VIDEO_PATCH_TOKEN = "<im_patch>"
DEFAULT_VID_START_TOKEN = "<vid_start>"
DEFAULT_VID_END_TOKEN = "<vid_end>"
VIDEO_PLACEHOLDER = "<video-placeholder>"
MAX_IMAGE_LENGTH = 16
MAX_VIDEO_LENGTH = 1
PAD_LENGTH = 620
