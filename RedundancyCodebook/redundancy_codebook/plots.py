"""Figures: measurements over a picture, what a codebook keeps, a codebook in the plane, and a run in one figure.

Needs matplotlib (``pip install matplotlib``); t-SNE needs scikit-learn too, without it the plane is that of PCA.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from mob.codebook_file import Codebook
from mob.covering import unit_rows
from redundancy_codebook.building import Stages
from redundancy_codebook.runs import Run

Box = tuple[float, float, float, float]
_DIM = 0.75
_LEAST = 1e-12  # stands for zero where the axis is logarithmic


def save_maps(run: Run, number: int, image: Image.Image, target: str | Path, divergence: str) -> None:
    """p_top1 and J of the tested patches of one picture of a run, over the picture."""
    plt = _pyplot()
    line = run.lines[number]
    J = run.score(divergence)[run.picture_of == number].clamp_min(_LEAST).tolist()
    figure, axes = plt.subplots(1, 3, figsize=(12, 4), layout="constrained")
    axes[0].imshow(image)
    axes[0].set_title(Path(line["picture"]).name)
    for axis, (title, values) in zip(axes[1:], (("p_top1", line["p_top1"]), (f"J ({divergence})", J)), strict=True):
        grid = np.full(run.manifest["identity"]["grid"], np.nan)
        grid.flat[line["indices"]] = values
        axis.imshow(image, alpha=0.4)
        norm = None if title == "p_top1" else "log"  # J goes over many powers of ten
        shown = axis.imshow(grid, extent=_extent(line["box"]), alpha=0.85, interpolation="nearest", norm=norm)
        axis.set_title(title)
        figure.colorbar(shown, ax=axis, shrink=0.8)
    _frame(axes, image)
    _save(figure, target)


def save_masks(
    images: Sequence[tuple[Image.Image, Box]],
    values: torch.Tensor,
    grid: tuple[int, int],
    thetas: Sequence[float],
    target: str | Path,
) -> None:
    """Every picture once for each theta, dropped patches dark.

    Args:
        images: pictures, and the region of each that its tokens show.
        values: (pictures, L) redundancies.
    """
    plt = _pyplot()
    shape = (len(images), len(thetas))
    figure, axes = plt.subplots(*shape, figsize=(3 * shape[1], 3 * shape[0]), squeeze=False, layout="constrained")
    for (image, box), row, own in zip(images, axes, values, strict=True):
        for axis, theta in zip(row, thetas, strict=True):
            keep = (own < theta).reshape(grid).numpy()
            dark = np.zeros((*grid, 4))
            dark[..., 3] = np.where(keep, 0, _DIM)
            axis.imshow(image)
            axis.imshow(dark, extent=_extent(box), interpolation="nearest")
            axis.set_title(f"theta {theta:g}: {int(keep.sum())} of {keep.size}", fontsize=9)
        _frame(row, image)
    _save(figure, target)


def save_codebook(book: Codebook, target: str | Path, seed: int = 0) -> str:
    """The prototypes in the plane, coloured by cluster, or by picture where clusters are not known.

    Returns:
        What the plane is: "t-SNE" or "PCA".
    """
    plt = _pyplot()
    points, kind = _plane(unit_rows(book.prototypes).numpy(), seed)
    colour = book.cluster_id if book.cluster_id is not None else book.source_index
    colour = None if colour is None else np.unique(colour.numpy(), return_inverse=True)[1] % 20
    figure, axis = plt.subplots(figsize=(6, 5), layout="constrained")
    axis.scatter(points[:, 0], points[:, 1], s=14, c=colour, cmap="tab20")
    by = "cluster" if book.cluster_id is not None else "picture"
    axis.set_title(f"{len(book)} prototypes, {kind} of their directions, coloured by {by}", fontsize=10)
    axis.set_xticks([])
    axis.set_yticks([])
    _save(figure, target)
    return kind


def save_summary(run: Run, stages: Stages, target: str | Path, divergence: str) -> None:
    """Where the thresholds lie, what each step leaves, and how the measurements go with rank or place."""
    plt = _pyplot()
    p, J = run.values("p_top1"), run.score(divergence)
    figure, axes = plt.subplots(2, 2, figsize=(10, 8), layout="constrained")
    _scatter(axes[0, 0], p, J, stages, divergence)
    counts = {
        "tested": len(p),
        "redundant": int(stages.redundant.sum()),
        "candidates": int(stages.candidates.sum()),
        "prototypes": int(stages.kept.sum()),
    }
    bars = axes[0, 1].bar(list(counts), list(counts.values()))
    axes[0, 1].bar_label(bars)
    axes[0, 1].set_title(f"tokens of {len(run.lines)} pictures that each step leaves")
    if run.lines and "cls_cosine" in run.lines[0]:
        _against_cls(axes[1, 0], run.values("cls_cosine"), p, J)
    else:
        axes[1, 0].hist(p.numpy(), bins=40)
        axes[1, 0].set_xlabel("p_top1")
    rows, columns = run.manifest["identity"]["grid"]
    places = torch.tensor([index for line in run.lines for index in line["indices"]])
    sums = torch.zeros(rows * columns, dtype=torch.float64).index_add(0, places, stages.redundant.double())
    seen = torch.zeros_like(sums).index_add(0, places, torch.ones_like(places, dtype=torch.float64))
    share = (sums / seen).reshape(rows, columns).numpy()
    figure.colorbar(axes[1, 1].imshow(share, interpolation="nearest"), ax=axes[1, 1])
    axes[1, 1].set_title("share redundant, by place of the tested patch")
    axes[1, 1].set(xlabel="column", ylabel="row")
    _save(figure, target)


def _scatter(axis: Any, p: torch.Tensor, J: torch.Tensor, stages: Stages, divergence: str) -> None:
    for mask, colour, label in (
        (~stages.redundant, "0.7", "not redundant"),
        (stages.redundant & ~stages.kept, "tab:orange", "redundant"),
        (stages.kept, "tab:red", "prototype"),
    ):
        axis.scatter(p[mask], J[mask].clamp_min(_LEAST), s=4, c=colour, label=label)
    axis.axvline(stages.p_max, lw=0.8, c="k")
    axis.axhline(stages.J_max, lw=0.8, c="k")
    axis.set_yscale("log")
    axis.set_xlabel("p_top1")
    axis.set_ylabel(f"J ({divergence})")
    axis.set_title("every tested token, and the two thresholds")
    axis.legend(fontsize=8, markerscale=3)


def _against_cls(axis: Any, cosine: torch.Tensor, p: torch.Tensor, J: torch.Tensor, bins: int = 12) -> None:
    """Means over equally large groups by cosine to the CLS token."""
    order = cosine.sort().indices
    groups = [part for part in order.chunk(bins) if len(part)]
    x = [float(cosine[part].mean()) for part in groups]
    axis.plot(x, [float(p[part].mean()) for part in groups], "o-", label="p_top1")
    axis.set_xlabel("cosine to CLS")
    axis.set_ylabel("mean p_top1", color="tab:blue")
    axis.set_title(f"{len(groups)} equally large groups by cosine to CLS")
    other = axis.twinx()
    other.plot(x, [float(J[part].mean()) for part in groups], "s--", c="tab:red")
    other.set_ylabel("mean J", color="tab:red")


def _plane(units: np.ndarray, seed: int) -> tuple[np.ndarray, str]:
    """(n, 2), and by which method."""
    try:
        from sklearn.manifold import TSNE
    except ImportError:
        TSNE = None
    if TSNE is not None and len(units) > 3:
        perplexity = min(30.0, (len(units) - 1) / 3)
        return TSNE(perplexity=perplexity, init="pca", random_state=seed).fit_transform(units), "t-SNE"
    centred = units - units.mean(0)
    left, size, _ = np.linalg.svd(centred, full_matrices=False)
    points = (left * size)[:, :2]
    return np.pad(points, ((0, 0), (0, 2 - points.shape[1]))), "PCA"


def _extent(box: Sequence[float]) -> tuple[float, float, float, float]:
    """matplotlib wants left, right, bottom, top; pixel 0 begins at -0.5."""
    left, top, right, bottom = box
    return left - 0.5, right - 0.5, bottom - 0.5, top - 0.5


def _frame(axes: Sequence[Any], image: Image.Image) -> None:
    for axis in axes:
        axis.set_xlim(-0.5, image.width - 0.5)
        axis.set_ylim(image.height - 0.5, -0.5)
        axis.axis("off")


def _pyplot() -> Any:
    try:
        import matplotlib
    except ImportError as error:
        raise ValueError("figures need matplotlib: pip install matplotlib") from error
    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def _save(figure: Any, target: str | Path) -> None:
    file = Path(target)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(file, dpi=120)
    except (OSError, ValueError) as error:
        raise ValueError(f"cannot write the figure {file}: {error}") from error
    finally:
        _pyplot().close(figure)
