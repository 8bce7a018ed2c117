"""Good pictures come back upright in RGB; every bad one is refused in a single line that says what to do."""

from __future__ import annotations

import base64
import os
import struct
import sys
import threading
import warnings
import zlib
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile

from llava.mm_utils import ImageError, load_image, load_image_from_base64, load_images
from mob import media

RED, BLUE, WHITE = (255, 0, 0), (0, 0, 255), (255, 255, 255)


def encoded(image: Image.Image, image_format: str = "PNG", **options: object) -> bytes:
    buffer = BytesIO()
    image.save(buffer, image_format, **options)
    return buffer.getvalue()


def noise_png(side: int = 64) -> bytes:
    return encoded(Image.frombytes("RGB", (side, side), np.random.default_rng(0).bytes(3 * side * side)))


def png_claiming(width: int, height: int) -> bytes:
    """The header of a picture whose pixels are not there."""
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + png_chunk(b"IDAT", b"") + png_chunk(b"IEND", b"")


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


RED_PNG = encoded(Image.new("RGB", (4, 2), RED))


def refusal(source: object) -> str:
    with pytest.raises(ImageError) as caught:
        load_image(source)
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    return message


def saved(folder: Path, content: bytes, name: str = "picture.png") -> Path:
    path = folder / name
    path.write_bytes(content)
    return path


# ---------------------------------------------------------------------------------------------------------------
# Good pictures


@pytest.mark.parametrize("as_type", [str, Path])
def test_path(tmp_path: Path, as_type: type) -> None:
    image = load_image(as_type(saved(tmp_path, RED_PNG)))
    assert (image.mode, image.size, image.getpixel((3, 1))) == ("RGB", (4, 2), RED)


@pytest.mark.parametrize("head", ["data:image/png;base64,", "base64:"])
def test_inline(head: str) -> None:
    text = base64.b64encode(RED_PNG).decode()
    assert load_image(head + text).getpixel((0, 0)) == RED
    assert load_image_from_base64(head + text).size == (4, 2)


def test_bare_base64_may_have_line_breaks() -> None:
    assert load_image_from_base64(base64.encodebytes(noise_png()).decode()).size == (64, 64)


def test_exif_orientation_is_applied(tmp_path: Path) -> None:
    image = Image.new("RGB", (32, 16), RED)
    image.paste(BLUE, (16, 0, 32, 16))
    exif = Image.Exif()
    exif[0x0112] = 6  # taken with the camera on its side: turn clockwise
    upright = load_image(saved(tmp_path, encoded(image, "JPEG", exif=exif, quality=95, subsampling=0), "turned.jpg"))
    assert upright.size == (16, 32)
    top, bottom = upright.getpixel((8, 4)), upright.getpixel((8, 28))
    assert top[0] > 200 > 50 > top[2] and bottom[2] > 200 > 50 > bottom[0]


def rgba() -> Image.Image:
    return Image.frombytes("RGBA", (3, 1), bytes([*BLUE, 255, *BLUE, 0, *BLUE, 128]))


def palette_with_transparency() -> bytes:
    image = Image.frombytes("P", (2, 1), b"\x00\x01")
    image.putpalette([*BLUE, *RED])
    return encoded(image, transparency=1)


def test_transparency_shows_white(tmp_path: Path) -> None:
    image = load_image(saved(tmp_path, encoded(rgba())))
    assert [image.getpixel((x, 0)) for x in range(3)] == [BLUE, WHITE, (127, 127, 255)]


def test_transparent_palette_entry_shows_white(tmp_path: Path) -> None:
    image = load_image(saved(tmp_path, palette_with_transparency()))
    assert [image.getpixel((x, 0)) for x in range(2)] == [BLUE, WHITE]


def test_grey_of_16_bits_keeps_its_shades(tmp_path: Path) -> None:
    grey = Image.fromarray(np.array([[0, 256 * 100, 65535]], dtype=np.uint16))
    image = load_image(saved(tmp_path, encoded(grey)))
    assert [image.getpixel((x, 0))[0] for x in range(3)] == [0, 100, 255]


def test_first_frame_of_an_animation(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in (RED, BLUE)]
    gif = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert load_image(saved(tmp_path, gif, "moving.gif")).getpixel((2, 2)) == RED


def test_load_images_keeps_the_order(tmp_path: Path) -> None:
    blue = saved(tmp_path, encoded(Image.new("RGB", (1, 1), BLUE)), "blue.png")
    red = saved(tmp_path, RED_PNG, "red.png")
    assert [image.getpixel((0, 0)) for image in load_images([blue, str(red)])] == [BLUE, RED]


def test_load_images_refuses_a_single_name() -> None:
    with pytest.raises(ValueError, match="use load_image"):
        load_images("picture.png")


# ---------------------------------------------------------------------------------------------------------------
# Bad files


def test_missing_file(tmp_path: Path) -> None:
    assert refusal(tmp_path / "none.png") == f"there is no picture at {tmp_path / 'none.png'}: check the path"


def test_directory(tmp_path: Path) -> None:
    assert refusal(tmp_path) == f"{tmp_path} is a directory: name one picture file in it"


def test_empty_file(tmp_path: Path) -> None:
    path = saved(tmp_path, b"")
    assert refusal(path) == f"{path} is empty (0 bytes): copy or download the picture again"


def test_not_a_picture(tmp_path: Path) -> None:
    path = saved(tmp_path, b"<html>not found</html>")
    assert refusal(path) == f"{path} is not a picture in a format Pillow knows: convert it to PNG or JPEG"


@pytest.mark.parametrize("keep", [0.1, 0.5, 0.9])
def test_truncated_file(tmp_path: Path, keep: float) -> None:
    content = noise_png()
    message = refusal(saved(tmp_path, content[: int(keep * len(content))]))
    assert "is damaged" in message and message.endswith("copy or download the picture again")


def test_truncated_file_whatever_others_have_told_pillow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    content = noise_png()
    assert "damaged" in refusal(saved(tmp_path, content[: len(content) // 2]))
    assert ImageFile.LOAD_TRUNCATED_IMAGES


def test_flipped_bytes(tmp_path: Path) -> None:
    content = bytearray(noise_png())
    content[200:400] = bytes(200)
    assert "is damaged" in refusal(saved(tmp_path, bytes(content)))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes on this system")
def test_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    assert "is not a regular file" in refusal(tmp_path / "pipe.png")


def test_name_that_no_file_can_have() -> None:
    message = refusal("a" * 5000)
    assert "cannot be read" in message and len(message) < 400
    assert "check the path" in refusal("pic\0ture.png")


def test_message_is_one_line_even_for_a_name_of_two(tmp_path: Path) -> None:
    assert "there is no picture" in refusal(tmp_path / "two\nlines.png")


@pytest.mark.parametrize("side", [14_000, 60_000])
@pytest.mark.parametrize("pillow_limit", [None, Image.MAX_IMAGE_PIXELS])
def test_enormous_picture_is_refused_by_its_header(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, side: int, pillow_limit: int | None
) -> None:
    # With the pixels absent, decoding would call the file damaged: the size must be seen first.
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", pillow_limit)
    message = refusal(saved(tmp_path, png_claiming(side, side)))
    assert "has too many pixels" in message and "178" in message and message.endswith("shrink it first")


def test_our_limit_holds_to_the_pixel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(media, "MAX_IMAGE_PIXELS", 7)
    assert "4 x 2, limit 7 pixels" in refusal(saved(tmp_path, RED_PNG))
    monkeypatch.setattr(media, "MAX_IMAGE_PIXELS", 8)
    assert load_image(tmp_path / "picture.png").size == (4, 2)


def test_pillows_warning_made_an_error_becomes_ours(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        assert "has too many pixels" in refusal(saved(tmp_path, png_claiming(10_000, 10_000)))


# ---------------------------------------------------------------------------------------------------------------
# Bad inline pictures


@pytest.mark.parametrize("text", ["data:image/png;base64,@@@@", "base64:abc", "data:image/svg+xml,%3Csvg/%3E"])
def test_inline_that_is_not_base64(text: str) -> None:
    assert refusal(text) == "the inline picture is not base64: encode the file's bytes with base64.b64encode"


@pytest.mark.parametrize("text", ["data:image/png;base64,", "base64:"])
def test_empty_inline(text: str) -> None:
    assert "the inline picture is empty" in refusal(text)


def test_inline_that_is_no_picture() -> None:
    assert "the inline picture is not a picture" in refusal("base64:" + base64.b64encode(b"hello there").decode())


# ---------------------------------------------------------------------------------------------------------------
# Downloads


class Site(BaseHTTPRequestHandler):
    pages = {"/red.png": RED_PNG, "/empty.png": b"", "/page.html": b"<html></html>", "/long.png": bytes(5000)}

    def do_GET(self) -> None:
        page = self.pages.get(self.path)
        self.send_response(404 if page is None else 200)
        self.end_headers()  # no Content-Length: the reader has to count for itself
        self.wfile.write(page or b"")

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    server = ThreadingHTTPServer(("127.0.0.1", 0), Site)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_download(site: str) -> None:
    assert load_image(f"{site}/red.png").getpixel((0, 0)) == RED


def test_download_answers_that_are_no_picture(site: str) -> None:
    assert "answered with HTTP status 404" in refusal(f"{site}/none.png")
    assert "sent nothing (0 bytes)" in refusal(f"{site}/empty.png")
    assert "page.html is not a picture" in refusal(f"{site}/page.html")


def test_download_stops_at_the_limit(site: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(media, "MAX_DOWNLOAD_BYTES", 2**10)
    message = refusal(f"{site}/long.png")
    assert "is larger than 0.000976562 MiB" in message and "give the file's path" in message


def test_download_without_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "requests", None)
    assert "pip install requests" in refusal("https://example.org/picture.png")


def test_unreachable_site(site: str) -> None:
    message = refusal("http://127.0.0.1:1/picture.png")  # no service listens on port 1
    assert "could not be downloaded (ConnectionError)" in message


@pytest.mark.parametrize("url", ["http://", "https://[broken/picture.png", "http://a..b/picture.png"])
def test_broken_address(url: str) -> None:
    assert "could not be downloaded" in refusal(url)
