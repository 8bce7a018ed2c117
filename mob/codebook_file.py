"""Files of prototypes of redundant visual tokens: ``codebook.safetensors``, one tensor and what is known of its origin.

Read by the rule ``codebook`` and written by the package ``redundancy_codebook``. Never a pickle. A path in a
checkpoint's config.json was chosen by whoever wrote that file, see ``vetted``. Prototypes belong to one model: they lie
in the space of its projector's outputs, and another model of the same width would give cosines that mean nothing.
"""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from mob.covering import unit_rows

FORMAT = "mob-codebook/1"
_KEY = "codebook"  # one entry of metadata: safetensors writes several in no certain order
# Both roundings of a weight, so that a model loaded in another 16-bit type than the codebook's is still recognised.
HASHED_AS = (torch.float16, torch.bfloat16)
_PROJECTORS = ("multi_modal_projector", "vision_tower.merger", "visual.merger")


@dataclass(frozen=True, eq=False)
class Codebook:
    """Prototypes of redundant tokens.

    Attributes:
        prototypes: (n, D), floating point, as the projector gave them (not normalised).
        metadata: JSON-ready; "D", "model", "projector_sha256" and how it was built, see ``redundancy_codebook``.
        cluster_id, source_index: (n,) int32 or None: cluster of each row, and its picture in ``metadata["pictures"]``.
    """

    prototypes: Tensor
    metadata: dict[str, Any] = field(default_factory=dict)
    cluster_id: Tensor | None = None
    source_index: Tensor | None = None

    def __post_init__(self) -> None:
        check_prototypes(self.prototypes, "the codebook")
        for name in ("cluster_id", "source_index"):
            rows = getattr(self, name)
            if rows is not None and rows.shape != self.prototypes.shape[:1]:
                raise ValueError(f"{name} has shape {tuple(rows.shape)} for {len(self.prototypes)} prototypes")

    @property
    def D(self) -> int:
        return self.prototypes.shape[1]

    def __len__(self) -> int:
        return len(self.prototypes)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the file, all of it or nothing. ValueError where that cannot be done."""
        tensors = {"prototypes": self.prototypes.contiguous()}
        for name in ("cluster_id", "source_index"):
            if getattr(self, name) is not None:
                tensors[name] = getattr(self, name).to(torch.int32).contiguous()
        known = {**self.metadata, "D": self.D, "prototypes_sha256": tensor_sha256(self.prototypes), "format": FORMAT}
        target = Path(path)
        partial = target.with_name(f".{target.name}.{os.getpid()}")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            partial.write_bytes(save(tensors, {_KEY: json.dumps(known, sort_keys=True)}))
            os.replace(partial, target)
        except (OSError, SafetensorError) as error:
            partial.unlink(missing_ok=True)
            raise ValueError(f"cannot write {target}: {error}") from error


def read_codebook(path: str | os.PathLike[str]) -> Codebook:
    """The codebook in a file, on the CPU. ValueError, one line, for whatever else is there."""
    file = Path(path).expanduser()
    if not file.is_file():
        raise ValueError(f"there is no codebook at {file}: give the path of a codebook.safetensors")
    try:
        with safe_open(file, "pt") as content:
            head = content.metadata() or {}
            names = set(content.keys())
            tensors = {name: content.get_tensor(name) for name in names & {"prototypes", "cluster_id", "source_index"}}
    except (SafetensorError, OSError) as error:
        raise ValueError(
            f"{file} is not a safetensors file ({_line(error)}): a codebook of the original release (.pt) is turned "
            "into one by python -m redundancy_codebook import-legacy"
        ) from error
    try:
        metadata = json.loads(head.get(_KEY, "{}"))
    except json.JSONDecodeError as error:
        raise ValueError(f"the metadata of {file} are damaged ({_line(error)}): build or import it again") from error
    if not isinstance(metadata, dict) or metadata.get("format") != FORMAT or "prototypes" not in tensors:
        raise ValueError(f"{file} holds no codebook of format {FORMAT!r}: build or import one")
    prototypes = check_prototypes(tensors["prototypes"], str(file))
    if metadata.get("prototypes_sha256") != tensor_sha256(prototypes):
        raise ValueError(f"the prototypes in {file} are not those that it was saved with: build or import it again")
    return Codebook(prototypes, metadata, tensors.get("cluster_id"), tensors.get("source_index"))


def check_prototypes(rows: Any, name: str) -> Tensor:
    """The tensor itself. ValueError unless it is (n, D), floating point, finite and without zero rows."""
    if not isinstance(rows, Tensor) or rows.layout != torch.strided:
        raise ValueError(f"{name} holds {type(rows).__name__}, not a dense tensor of prototypes")
    if rows.ndim != 2 or 0 in rows.shape:
        raise ValueError(f"{name} has shape {tuple(rows.shape)}: prototypes are (n, D) with at least one row")
    if rows.dtype not in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        raise ValueError(f"{name} has dtype {rows.dtype}: prototypes are floating point")
    if not bool(torch.isfinite(rows).all()):
        raise ValueError(f"{name} has NaN or infinity in it: build it again")
    if bool((rows == 0).all(1).any()):
        raise ValueError(f"{name} has a row of zeros, which is similar to nothing: remove it")
    return rows


# ---------------------------------------------------------------------------------------------------------------
# Whose path

RULE, ALLOWED = "codebook", "MOB_CODEBOOKS"
_allowed: set[Path] = set()


def allow_codebook(path: str | os.PathLike[str]) -> None:
    """Let a model's config name this file, for as long as the process runs.

    ``MOB_CODEBOOKS`` in the environment does the same for several paths, separated as in PATH.
    """
    _allowed.add(Path(path).expanduser().resolve())


def allow_codebooks_of(settings: Any) -> None:
    """The same for the codebook that a ``MoB_config`` names which the user gave, in code or to a command."""
    if (options := _options(settings)) and options.get("path"):
        allow_codebook(options["path"])


def vetted(settings: Any, folder: str | None) -> Any:
    """A ``MoB_config`` out of a model's config, with the full path of its codebook.

    Args:
        settings: any value; without a codebook in it, it comes back as it is.
        folder: of the model, if it is one. A relative path counts from there, and must stay in it.

    Raises:
        ValueError: any other path that nobody allowed.
    """
    options = _options(settings)
    named = options.get("path") if options else None
    if not named or not isinstance(named, str):
        return settings
    given = Path(named).expanduser()
    allowed = {*_allowed, *(Path(p).expanduser().resolve() for p in os.environ.get(ALLOWED, "").split(os.pathsep) if p)}
    if given.resolve() in allowed:
        return settings
    root = Path(folder).resolve() if folder and Path(folder).is_dir() else None
    inside = None if root is None or given.is_absolute() else (root / given).resolve()
    if inside is None or not inside.is_relative_to(root):
        raise ValueError(
            f"the codebook {named!r} is named by the model's config, and only files within the model's folder are used "
            f"unasked: call mob.allow_codebook({named!r}) or set {ALLOWED} where you know the file"
        )
    changed = {**options, "path": str(inside)}
    return {**settings, "options": changed if settings["method"] == RULE else {**settings["options"], RULE: changed}}


def _options(settings: Any) -> Mapping[str, Any] | None:
    """The rule's own part of a ``MoB_config``, None where it is not there."""
    if not isinstance(settings, Mapping) or RULE not in str(settings.get("method", "")).split("+"):
        return None
    options = settings.get("options")
    if isinstance(options, Mapping) and settings["method"] != RULE:
        options = options.get(RULE)
    return options if isinstance(options, Mapping) else None


# ---------------------------------------------------------------------------------------------------------------
# Reading once


def codebook_at(path: str | os.PathLike[str]) -> Codebook:
    """``read_codebook``, remembered until the file changes."""
    return _cached(*_version(path))


def units_at(path: str | os.PathLike[str], device: torch.device) -> Tensor:
    """Normalised prototypes, float32 (n, D) on a device, remembered until the file changes."""
    return _cached_units(*_version(path), str(device))


def _version(path: str | os.PathLike[str]) -> tuple[str, int, int]:
    file = Path(path).expanduser()
    try:
        state = file.stat()
    except OSError as error:
        raise ValueError(f"there is no codebook at {file} ({error.strerror}): check the path") from None
    return str(file.resolve()), state.st_mtime_ns, state.st_size


@lru_cache(maxsize=8)
def _cached(path: str, changed: int, size: int) -> Codebook:
    return read_codebook(path)


@lru_cache(maxsize=8)
def _cached_units(path: str, changed: int, size: int, device: str) -> Tensor:
    with torch.inference_mode(False):  # what is remembered must be usable in every mode
        return unit_rows(_cached(path, changed, size).prototypes).to(device)


# ---------------------------------------------------------------------------------------------------------------
# Whose prototypes


def check_model(codebook: Codebook, model: nn.Module, name: str = "the codebook") -> None:
    """Refuse a codebook of another model: another width, or a projector with other weights.

    Imported codebooks may not know their projector, and projectors of quantised or offloaded models cannot be
    compared: then only the width is, and a warning says so.

    Raises:
        ValueError: another model's.
    """
    width = _unwrapped(model).config.get_text_config().hidden_size
    if width != codebook.D:
        raise ValueError(
            f"{name} has prototypes of width {codebook.D}, this model of {width}: build one for this model"
        )
    if all(weight.is_meta for weight in model.parameters()):
        return  # is being loaded; asked again before its first pass
    known, found = codebook.metadata.get("projector_sha256"), projector_sha256(model)
    if not known or not found:
        which = "does not say which model it is for" if not known else "cannot be compared with this model's projector"
        warnings.warn(f"{name} {which}; its width fits, nothing else was checked", stacklevel=2)
    elif not any(known.get(kind) == value for kind, value in found.items()):
        made_for = codebook.metadata.get("model") or "another model"
        raise ValueError(
            f"{name} was made for {made_for}, whose projector has other weights than this model's: build one for this "
            "model"
        )


def projector(model: nn.Module) -> nn.Module | None:
    """The module whose outputs are visual tokens, None where it is not known."""
    base = _unwrapped(model)
    base = getattr(base, base.base_model_prefix, base) if getattr(base, "base_model_prefix", "") else base
    for path in _PROJECTORS:
        found: Any = base
        for part in path.split("."):
            found = getattr(found, part, None)
        if found is not None:
            return found
    return None


def _unwrapped(model: nn.Module) -> nn.Module:
    """The transformers model inside PEFT."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


_HASHES: WeakKeyDictionary[nn.Module, tuple[tuple, dict[str, str] | None]] = WeakKeyDictionary()


def projector_sha256(model: nn.Module) -> dict[str, str] | None:
    """Hashes of the projector's weights, one for each type of ``HASHED_AS``; None where they cannot be read."""
    module = projector(model)
    weights = [] if module is None else sorted(module.state_dict(keep_vars=True).items())
    if not weights or any(w.is_meta or not w.is_floating_point() for _, w in weights):
        return None
    state = tuple((w.data_ptr(), None if w.is_inference() else w._version) for _, w in weights)
    if module not in _HASHES or _HASHES[module][0] != state:
        _HASHES[module] = state, {str(kind).removeprefix("torch."): _hash(weights, kind) for kind in HASHED_AS}
    return _HASHES[module][1]


def _hash(weights: list[tuple[str, Tensor]], kind: torch.dtype) -> str:
    digest = hashlib.sha256()
    for name, weight in weights:
        digest.update(f"{name} {tuple(weight.shape)}\n".encode())
        digest.update(_bytes(weight.detach().to("cpu", kind)))
    return digest.hexdigest()


def tensor_sha256(rows: Tensor) -> str:
    """Of shape, type and values."""
    digest = hashlib.sha256(f"{rows.dtype} {tuple(rows.shape)}\n".encode())
    digest.update(_bytes(rows.detach().cpu()))
    return digest.hexdigest()


def _bytes(rows: Tensor) -> memoryview:
    return memoryview(rows.contiguous().flatten().view(torch.uint8).numpy())


def _line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
