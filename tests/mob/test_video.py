"""Frames come back in the order asked for, and every bad video is refused in one line."""

from __future__ import annotations

import numpy as np
import pytest

from mob.video import VideoError, probe, read_frames, uniform_indices

av = pytest.importorskip("av")


def write_video(path, frames=30, rate=24, size=(48, 64), codec="mpeg4"):
    """Frame i is grey of value 8 i."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate)
        stream.height, stream.width = size
        stream.pix_fmt = "yuv420p"
        container.start_encoding()  # a header, also of a file without frames
        for number in range(frames):
            grey = np.full((*size, 3), 8 * number, np.uint8)
            for packet in stream.encode(av.VideoFrame.from_ndarray(grey, format="rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    return path


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    return write_video(tmp_path_factory.mktemp("video") / "grey.mp4")


def numbers(frames):
    return [round(float(frame.mean()) / 8) for frame in frames]


def test_probe(video):
    info = probe(video)
    assert (info.frames, info.fps, info.width, info.height) == (30, 24.0, 64, 48)
    assert info.seconds == 1.25


def test_a_container_that_does_not_count_its_frames(tmp_path):
    assert probe(write_video(tmp_path / "grey.mpg", codec="mpeg1video")).frames == 30


def test_frames_in_the_order_asked_for(video):
    frames = read_frames(video, [29, 0, 7, 7, 13])
    assert frames.shape == (5, 48, 64, 3) and frames.dtype == np.uint8
    assert numbers(frames) == [29, 0, 7, 7, 13]
    assert numbers(read_frames(f"file://{video}", [4])) == [4]


def test_a_header_that_promises_too_much(video):
    assert numbers(read_frames(video, [3, 40, 50])) == [3, 29, 29]


def test_uniform_indices():
    assert uniform_indices(30, 8) == [0, 4, 8, 12, 17, 21, 25, 29]
    assert uniform_indices(3, 6) == [0, 0, 1, 1, 2, 2]
    assert uniform_indices(1, 2) == [0, 0] and uniform_indices(9, 1) == [0]
    for frames, count in ((0, 4), (4, 0)):
        with pytest.raises(ValueError, match="must be at least 1"):
            uniform_indices(frames, count)


def test_bad_videos_are_one_line(tmp_path, video):
    (tmp_path / "empty.mp4").write_bytes(b"")
    (tmp_path / "text.mp4").write_text("not a video")
    (tmp_path / "cut.mp4").write_bytes(video.read_bytes()[:900])
    with av.open(str(tmp_path / "sound.wav"), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono")
        frame.rate = 8000
        for packet in stream.encode(frame):
            container.mux(packet)
    bad = {
        "empty.mp4": "0 bytes",
        "text.mp4": "damaged, or not a video",
        "cut.mp4": "damaged",
        "sound.wav": "no video stream",
        "none.mp4": "there is no video",
        ".": "is not a file",
        "x" * 300: "cannot be read",
    }
    for name, message in bad.items():
        for read in (probe, lambda path: read_frames(path, [0])):
            with pytest.raises(VideoError, match=message) as caught:
                read(tmp_path / name)
            assert len(str(caught.value).splitlines()) == 1


def test_no_frames(tmp_path):
    with pytest.raises(VideoError, match="no frames|no video"):
        probe(write_video(tmp_path / "none.mp4", frames=0))


def test_wrong_indices(video):
    for indices in ([], [-1, 3]):
        with pytest.raises(ValueError, match="counted from 0"):
            read_frames(video, indices)


def test_a_damaged_end_is_the_end(tmp_path):
    """A file that breaks off is read as far as it goes."""
    whole = write_video(tmp_path / "whole.mpg", codec="mpeg1video").read_bytes()
    (tmp_path / "cut.mpg").write_bytes(whole[: len(whole) // 2])
    frames = read_frames(tmp_path / "cut.mpg", [0, 29])
    assert numbers(frames[:1]) == [0] and 0 < numbers(frames[1:])[0] < 29
