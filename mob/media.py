"""Reading pictures, whatever they are: files, URLs and inline text become upright RGB, or fail with one clear line."""

from __future__ import annotations

import base64
import binascii
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image, ImageFile, ImageOps

MAX_IMAGE_PIXELS = 178_956_970  # where Pillow, too, calls a picture a decompression bomb
MAX_DOWNLOAD_BYTES = 64 * 2**20
DOWNLOAD_TIMEOUT = (5, 30)  # seconds to connect, seconds between two packets

Size = tuple[int, int]


class ImageError(ValueError):
    """A picture that cannot be used; the message is one line that says what is wrong and what to do."""

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))  # a file's name or a decoder's text may hold line breaks


def load_image(source: str | os.PathLike[str]) -> Image.Image:
    """An upright RGB picture from a path, an http(s) URL, or inline ``data:...;base64,`` / ``base64:`` text.

    Transparent parts show white, of an animation the first frame counts, 16-bit grey keeps its upper 8 bits.
    Raises ImageError.
    """
    text = os.fspath(source)
    scheme = text[:8].lower()
    if scheme.startswith(("http://", "https://")):
        return _decode(BytesIO(_download(text)), text)
    if scheme.startswith(("data:", "base64:")):
        return load_image_from_base64(text)
    return _load_file(Path(text))


def load_images(sources: Iterable[str | os.PathLike[str]]) -> list[Image.Image]:
    """``load_image`` for each source, in order."""
    if isinstance(sources, (str, os.PathLike)):
        raise ValueError(f"load_images takes a list, not one source: use load_image({os.fspath(sources)!r})")
    return [load_image(source) for source in sources]


def load_image_from_base64(image: str) -> Image.Image:
    """An upright RGB picture from base64 text, with or without a ``data:...;base64,`` or ``base64:`` head."""
    head, mark, payload = image.partition("base64," if image[:5].lower() == "data:" else "base64:")
    if not mark:
        payload = head
    try:
        content = base64.b64decode("".join(payload.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise ImageError("the inline picture is not base64: encode the file's bytes with base64.b64encode") from error
    if not content:
        raise ImageError("the inline picture is empty: put the base64 text of a picture file after the comma")
    return _decode(BytesIO(content), "the inline picture")


def _load_file(path: Path) -> Image.Image:
    try:
        if not path.exists():
            raise ImageError(f"there is no picture at {path}: check the path")
        if path.is_dir():
            raise ImageError(f"{path} is a directory: name one picture file in it")
        if not path.is_file():  # a pipe or a device could be read for ever
            raise ImageError(f"{path} is not a regular file: save the picture to a file first")
        if path.stat().st_size == 0:
            raise ImageError(f"{path} is empty (0 bytes): copy or download the picture again")
        with path.open("rb") as file:
            return _decode(file, str(path))
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise ImageError(f"{str(path)[:200]} cannot be read ({reason}): check its name and permissions") from error


def _download(url: str) -> bytes:
    try:
        import requests  # here, so that nothing but a URL needs it
    except ImportError as error:
        raise ImageError(f"{url} needs the requests package: pip install requests, or give a file's path") from error
    try:
        with requests.get(url, stream=True, timeout=DOWNLOAD_TIMEOUT) as response:
            response.raise_for_status()
            content = bytearray()
            for chunk in response.iter_content(2**16):
                content += chunk
                if len(content) > MAX_DOWNLOAD_BYTES:  # counted here: a server may not announce the length, or lie
                    limit = f"{MAX_DOWNLOAD_BYTES / 2**20:g} MiB"
                    raise ImageError(f"{url} is larger than {limit}: download and shrink it, then give the file's path")
    except ImageError:
        raise
    except requests.HTTPError as error:
        status = error.response.status_code
        raise ImageError(f"{url} answered with HTTP status {status}: open it in a browser to check it") from error
    except (requests.RequestException, ValueError) as error:  # ValueError: some host names fail below requests
        reason = type(error).__name__
        raise ImageError(f"{url} could not be downloaded ({reason}): check the address and the network") from error
    if not content:
        raise ImageError(f"{url} sent nothing (0 bytes): check the address")
    return bytes(content)


def _decode(file: IO[bytes], name: str) -> Image.Image:
    try:
        image = Image.open(file)
        _refuse_if_huge(image.size, name)  # the header is read, the pixels are not
        return upright_rgb(image)
    except ImageError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise _too_large(name, str(error)) from error
    except Image.UnidentifiedImageError as error:
        raise ImageError(f"{name} is not a picture in a format Pillow knows: convert it to PNG or JPEG") from error
    except Exception as error:  # decoders meet hostile bytes here, and each has its own way to fail
        reason = str(error) or type(error).__name__
        raise ImageError(f"{name} is damaged ({reason}): copy or download the picture again") from error


@contextmanager
def _whole_pictures_only() -> Iterator[None]:
    """Some libraries (lmms-eval) tell Pillow to fill what is missing of a broken picture with grey, for everybody."""
    before, ImageFile.LOAD_TRUNCATED_IMAGES = ImageFile.LOAD_TRUNCATED_IMAGES, False
    try:
        yield
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = before


def _refuse_if_huge(size: Size, name: str) -> None:
    if size[0] * size[1] > MAX_IMAGE_PIXELS:
        raise _too_large(name, f"{size[0]} x {size[1]}, limit {MAX_IMAGE_PIXELS:,} pixels")


def _too_large(name: str, detail: str) -> ImageError:
    return ImageError(f"{name} has too many pixels ({detail}): shrink it first")


def upright_rgb(image: Image.Image) -> Image.Image:
    """An opened picture as ``load_image`` gives it: turned as its EXIF says, on white, the first frame, RGB. Raises
    what decoders raise where it is not whole."""
    with _whole_pictures_only():
        image = ImageOps.exif_transpose(image)
        image.load()
    if image.mode.startswith("I;16"):  # convert() would clip every value above 255 to white
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if not image.has_transparency_data:
        return image.convert("RGB")
    layer = image.convert("RGBA")
    white = Image.new("RGBA", layer.size, "white")
    return Image.alpha_composite(white, layer).convert("RGB")
