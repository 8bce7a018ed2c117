"""``calibrate``: how many tokens each theta keeps of your own pictures."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from mob.codebook_file import Codebook, check_model
from mob.covering import unit_rows
from mob.methods.codebook import redundancy
from redundancy_codebook.models import Subject, base_view, encode
from redundancy_codebook.pictures import Picture

THETAS = tuple(round(0.05 * i, 2) for i in range(1, 21))


def scores(
    subject: Subject, book: Codebook, pictures: Sequence[Picture], crop: bool = False, bar: bool = True
) -> Tensor:
    """float32 (pictures, L): the redundancy of every token of one view of each.

    Raises:
        ValueError: the codebook is another model's, or a picture cannot be read.
    """
    check_model(book, subject.model)
    units = unit_rows(book.prototypes).to(subject.model.device)
    rows = []
    for picture in tqdm(pictures, unit="picture", disable=None if bar else True, leave=False):
        seen = encode(subject, base_view(subject, picture.load(), crop))
        rows.append(redundancy(seen.features, units).cpu())
    if not rows:
        raise ValueError("no pictures to calibrate on: give at least one")
    return torch.stack(rows)


def table(
    values: Tensor, domains: Sequence[str], thetas: Sequence[float] = THETAS
) -> dict[str, list[dict[str, float]]]:
    """For "all" and, where there are several, for each domain: theta with the mean, 5th and 95th percentile over
    pictures of the tokens that it keeps (before ``min_keep``)."""
    groups = {"all": torch.ones(len(values), dtype=torch.bool)}
    if len(set(domains)) > 1:
        groups |= {name: torch.tensor([domain == name for domain in domains]) for name in sorted(set(domains))}
    return {name: [_row(values[mine], theta) for theta in thetas] for name, mine in groups.items()}


def _row(values: Tensor, theta: float) -> dict[str, float]:
    kept = (values < theta).sum(1).double()
    low, high = kept.quantile(torch.tensor([0.05, 0.95], dtype=torch.float64)).tolist()
    return {
        "theta": theta,
        "mean_keep": float(kept.mean()),
        "p5": low,
        "p95": high,
        "share": float(kept.mean()) / values.shape[1],
    }


def theta_for(values: Tensor, target: float) -> float:
    """The theta that keeps ``target`` tokens on average (a share where it is below 1); rounded up to 4 digits."""
    wanted = target * values.shape[1] if target < 1 else target
    if not 0 < wanted <= values.shape[1]:
        raise ValueError(f"target={target}: a picture has {values.shape[1]} tokens; give a number or share of them")
    place = min(values.numel(), max(1, round(wanted * len(values))))
    theta = float(values.flatten().sort().values[place - 1])
    return min(1.0, int(theta * 1e4 + 1) / 1e4 if theta >= 0 else round(theta + 5e-5, 4))


def save(path: Path, book_path: str, book: Codebook, tables: dict[str, Any], pictures: int) -> None:
    """Write calibration.json. ValueError where that cannot be done."""
    content = {
        "codebook": book_path,
        "prototypes_sha256": book.metadata.get("prototypes_sha256"),
        "pictures": pictures,
        "tables": tables,
    }
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content, indent=1) + "\n")
    except OSError as error:
        raise ValueError(f"cannot write {path} ({error.strerror}): choose another --out") from error


def render(tables: dict[str, list[dict[str, float]]]) -> str:
    """As text for a terminal."""
    lines = []
    for name, rows in tables.items():
        lines.append(f"{name}:")
        lines.append("  theta   mean kept   share      p5     p95")
        lines += [
            f"  {r['theta']:5g}   {r['mean_keep']:9.1f}   {r['share']:5.1%}   {r['p5']:5.0f}   {r['p95']:5.0f}"
            for r in rows
        ]
    return "\n".join(lines)
