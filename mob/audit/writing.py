"""What a log says of the pictures that were shown, in the keys that ``mob.audit.media`` reads."""

from __future__ import annotations

import hashlib
import os
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image


def shown(
    size: tuple[int, int],
    *,
    name: str | None = None,
    video: str | None = None,
    digest: str | None = None,
    box: Sequence[float] | None = None,
) -> dict[str, Any]:
    """An entry of ``pictures``; what is not known is left out.

    Args:
        size: (width, height) in pixels.
        name, video: the file of a picture, or of a video; a data: URL is no name.
        digest: SHA-256 of a picture's RGB pixels (see ``digest_of``) or of a file.
        box: (left, top, right, bottom) of what the model saw, in pixels of the picture; padding lies beyond its edges.
    """
    if name is not None and name[:5].lower() == "data:":
        name = None
    known = {"image_file": name, "video": video, "sha256": digest, "width": size[0], "height": size[1]}
    known["box"] = [round(float(value), 2) for value in box] if box is not None else None
    return {key: value for key, value in known.items() if value is not None}


def layers_of(config: Any) -> int:
    """Decoder layers of a model, from which a reader of the log gets mean tokens a layer."""
    return int(config.get_text_config().num_hidden_layers)


def digest_of(image: Image.Image) -> str:
    """SHA-256 of the RGB pixels."""
    return hashlib.sha256(image.convert("RGB").tobytes()).hexdigest()


def save_picture(image: Image.Image, folder: str | os.PathLike[str]) -> None:
    """Write ``<digest>.png`` unless it is there: datasets hold their pictures where the audit cannot look.

    Several processes and threads may write the same picture; each file is there as a whole or not at all.

    Raises:
        ValueError: the folder cannot be written.
    """
    target = Path(folder).expanduser() / f"{digest_of(image)}.png"
    if target.exists():
        return
    beside = target.with_name(f".{uuid.uuid4().hex}.part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            image.convert("RGB").save(beside, "PNG", compress_level=1)
            os.replace(beside, target)
        finally:
            beside.unlink(missing_ok=True)
    except OSError as error:
        raise ValueError(
            f"cannot write pictures to {folder} ({error.strerror or error}): name another folder"
        ) from None
