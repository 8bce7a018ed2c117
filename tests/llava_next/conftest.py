"""Synthetic checkpoints and a video, shared by the tests of this folder."""

import pytest

import next_checkpoints


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    """One folder for each family and layout; all of a family with the same weights."""
    return next_checkpoints.write_all(tmp_path_factory.mktemp("next"))


@pytest.fixture(scope="session")
def clip(tmp_path_factory):
    """A video of 12 frames, 40 x 30, getting brighter."""
    return next_checkpoints.write_video(tmp_path_factory.mktemp("video") / "clip.mp4")
