"""Codebooks of the original release, bare half-precision tensors in a pickle, as ``codebook.safetensors``."""

from __future__ import annotations

import hashlib
import json
import pickle
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mob.codebook_file import Codebook, check_prototypes

# What is known of the released files, by their hash.
KNOWN = {
    "1373a7b984523b1ead891f7b80fd45d767ea26dcfdbe57ebe9bb94bd0083d2ac": "llava-v1.5-7b",
    "e961a9069d0d7b0e43c2395b7d5058ca3a7f1a2720aaecb0687dc6719cdba198": "llava-onevision-qwen2-7b",
}
_HINT = "a published codebook is one tensor in half precision"


def import_legacy(
    source: str | Path, ids: str | Path | None = None, identity: dict[str, Any] | None = None
) -> Codebook:
    """A published codebook file.

    Read with ``weights_only``, so nothing in it is run, and onto the CPU, whatever device it was saved from.

    Args:
        ids: the JSON list of picture ids beside it, one for each row; None: the file of the same name, if it is there.
        identity: of the model that it belongs to, as ``models.identity`` gives it. The file itself does not say; a
            released one is recognised by its hash.

    Raises:
        ValueError: anything else than one tensor (n, D) of finite floating-point numbers; ids that do not fit; a model
            of another width.
    """
    file = Path(source).expanduser()
    prototypes = read_tensor(file)
    sha = hashlib.sha256(file.read_bytes()).hexdigest()
    if identity and identity["D"] != prototypes.shape[1]:
        raise ValueError(
            f"{file} has prototypes of width {prototypes.shape[1]}, the model {identity['model']} has {identity['D']}: "
            "it belongs to another model"
        )
    names = _read_ids(file, None if ids is None else Path(ids).expanduser(), len(prototypes))
    metadata: dict[str, Any] = {"model": KNOWN.get(sha), "feature_stage": "projector", "projector_sha256": None}
    metadata |= identity or {}
    metadata["imported"] = {"file": file.name, "sha256": sha, "released_for": KNOWN.get(sha)}
    metadata["licence"] = "activations of its model on its pictures: the licences of both apply"
    index = None
    if names:
        unique = list(dict.fromkeys(names))
        place = {name: i for i, name in enumerate(unique)}
        metadata["pictures"] = unique
        index = torch.tensor([place[name] for name in names], dtype=torch.int32)
    return Codebook(prototypes, metadata, None, index)


def read_tensor(file: Path) -> Tensor:
    """The one tensor in a file that torch.save wrote, detached, on the CPU."""
    if not file.is_file():
        raise ValueError(f"there is no codebook at {file}: check the path")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            value = torch.load(file, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, zipfile.BadZipFile, RuntimeError, EOFError, OSError, ValueError) as error:
        raise ValueError(f"{file} cannot be read as a tensor ({_line(error)}): {_HINT}") from error
    except Exception as error:  # a damaged pickle fails in any way: KeyError, AttributeError, IndexError ...
        raise ValueError(
            f"{file} is damaged or no codebook ({type(error).__name__}: {_line(error)}): {_HINT}"
        ) from error
    if type(value) not in (Tensor, torch.nn.Parameter):
        raise ValueError(f"{file} holds a {type(value).__name__}: {_HINT}")
    value = value.detach()
    if value.layout == torch.strided and value.device.type == "cpu":
        stored = value.untyped_storage().nbytes()
        if value.numel() * value.element_size() > stored:  # strides of zero would make gigabytes of a few bytes
            raise ValueError(f"{file} holds a tensor of shape {tuple(value.shape)} on {stored} bytes: {_HINT}")
    else:
        raise ValueError(f"{file} holds a tensor that is {value.layout} on {value.device}: {_HINT}")
    return check_prototypes(value, str(file)).contiguous().clone()


def _read_ids(file: Path, ids: Path | None, rows: int) -> list[str] | None:
    beside = file.with_suffix(".json")
    if ids is None and not beside.is_file():
        return None
    source = ids or beside
    try:
        names = json.loads(source.read_text())
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(
            f"{source} is not a JSON list of picture ids ({_line(error)}): remove it, or name another"
        ) from None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names) or len(names) != rows:
        raise ValueError(f"{source} must be a JSON list of {rows} strings, one for each prototype")
    return names


def _line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0][:200]
