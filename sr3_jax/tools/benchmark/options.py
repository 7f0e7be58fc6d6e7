"""Scores of upscaling's options on held-out images: `tools.benchmark --what=options`."""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.stats
from etils import epath
from jaxtyping import Float, UInt8

from sr3_jax.config import run_file
from sr3_jax.data import degrade
from sr3_jax.data.image_files import to_8_bits
from sr3_jax.evaluation import evaluator
from sr3_jax.evaluation.report import grids, markdown
from sr3_jax.inference import visualization
from sr3_jax.inference.super_resolver import SuperResolver
from sr3_jax.jobs import shared
from sr3_jax.metrics import registry

_SHOWN = 4  # images, in a picture
_BLOCK = 8  # pixels a side, over which deviation and error are compared


def measure(
    workdir: epath.PathLike,
    num_images: int,
    steps: int | None = None,
    num_samples: int = 8,
    picture: epath.PathLike | None = None,
) -> dict[str, Any]:
    """Measures plain and consistent samples, means of several, and half the network's factor.

    Args:
      workdir: workdir of a training run, whose held-out images are used.
      num_images: number of them.
      steps: refinement steps; None for the workdir's.
      num_samples: number of samples whose mean is taken.
      picture: file for a picture of samples, means and deviations of the first images.

    Returns:
      Means of the metrics by option, and the results of `_uncertainty`.
    """
    workdir = epath.Path(workdir)
    config = run_file.load(workdir / "config.json")
    low, high, _ = shared.held_out(config, workdir, num_images)
    low, high = map(to_8_bits, (low, high))
    rows: dict[str, dict[str, float]] = {}
    for name, consistent in (("one sample", False), ("consistent", True)):
        resolver = SuperResolver.from_workdir(workdir, consistent=consistent)
        samples = np.stack(
            [
                resolver.upscale(low, steps, seed=[k * len(low) + i for i in range(len(low))])
                for k in range(num_samples)
            ]
        )
        mean = np.round(samples.mean(0)).astype(np.uint8)
        rows[name] = _score(samples[0], high, low)
        rows[f"{name}, mean of {num_samples}"] = _score(mean, high, low)
        if not consistent:
            worth = _uncertainty(samples, high)
            if picture is not None:
                _draw(low, samples, high, epath.Path(picture))
    resolver = SuperResolver.from_workdir(workdir)
    factor, seeds = resolver.factor / 2, range(len(low))
    if factor == int(factor):
        # The truth at half the size, and the input at half, as if it came so.
        truth, small = (degrade.by_area(a, a.shape[1] // 2) for a in (high, low))
        made = resolver.upscale(low, steps, list(seeds), factor=factor)
        rows[f"factor {factor:g}: result resized"] = _score(made, truth, low)
        made = resolver.upscale(small, steps, list(seeds))
        rows[f"factor {factor:g}: input resized before"] = _score(made, truth, low)
    return {"images": len(low), "calls": resolver.nfe(steps), "rows": rows} | worth


def report(result: dict[str, Any]) -> str:
    """Returns the result as Markdown."""
    rows = result["rows"]
    columns = list(next(iter(rows.values())))
    cells = [[name, *(f"{row[column]:.3f}" for column in columns)] for name, row in rows.items()]
    return "\n".join(
        [
            f"{result['images']} held-out images, {result['calls']} network calls each\n",
            markdown.table(["option", *columns], cells),
            f"\nuncertainty: rank correlation of deviation and error over blocks of {_BLOCK}x"
            f"{_BLOCK} pixels {result['rank_correlation']:.2f}; samples are "
            f"{result['distance_ratio']:.2f} times as far from each other as from the truth "
            "(root mean squares)",
        ]
    )


def _score(
    made: UInt8[np.ndarray, "n h w 3"],
    high: UInt8[np.ndarray, "n h w 3"],
    low: UInt8[np.ndarray, "n low_h low_w 3"],
) -> dict[str, float]:
    shift = np.abs(made.mean((1, 2)) - low.mean((1, 2)))
    scores = evaluator.score(made, high, low)
    return {
        **{registry.find(name).heading: float(np.mean(each)) for name, each in scores.items()},
        "colour shift (levels)": float(shift.max(-1).mean()),
        "largest": float(shift.max()),
    }


def _draw(
    low: UInt8[np.ndarray, "n low_h low_w 3"],
    samples: UInt8[np.ndarray, "k n h w 3"],
    high: UInt8[np.ndarray, "n h w 3"],
    path: epath.Path,
) -> None:
    of_each = samples[:, :_SHOWN].swapaxes(0, 1)
    height = high.shape[1]
    columns = {
        "input": low[:_SHOWN],
        "one sample": of_each[:, 0],
        "another": of_each[:, 1],
        f"mean of {len(samples)}": np.rint(of_each.mean(1)).astype(np.uint8),
        # Without the scale below.
        "deviation": np.stack(
            [visualization.uncertainty(visualization.deviation(one))[:height] for one in of_each]
        ),
        "reference": high[:_SHOWN],
    }
    grids.save(grids.grid(columns), path)


def _uncertainty(
    samples: UInt8[np.ndarray, "k n h w 3"], high: UInt8[np.ndarray, "n h w 3"]
) -> dict[str, float]:
    """Measures whether samples differ where, and by as much as, they are wrong.

    Returns:
      `rank_correlation` of deviation and error of the mean over blocks, and `distance_ratio`: the
      distance between two samples over that of a sample from the truth (root mean squares), which
      is 1 for draws from the distribution of the truth.
    """
    deviation = np.stack([visualization.deviation(images) for images in samples.swapaxes(0, 1)])
    unit = samples.astype(np.float32) / 255
    error = np.square(unit.mean(0) - high / np.float32(255)).mean(-1)
    spread, wrong = (_blocks(a).ravel() for a in (np.square(deviation), error))
    # The mean square difference of two draws is twice their variance.
    apart = 2 * unit.var(0, ddof=1).mean()
    from_truth = np.square(unit - high / np.float32(255)).mean()
    return {
        "rank_correlation": float(scipy.stats.spearmanr(spread, wrong).statistic),
        "distance_ratio": float(np.sqrt(apart / from_truth)),
    }


def _blocks(maps: Float[np.ndarray, "n h w"]) -> Float[np.ndarray, "n rows columns"]:
    """Returns means over blocks."""
    height, width = (n // _BLOCK * _BLOCK for n in maps.shape[1:])
    cut = maps[:, :height, :width]
    return cut.reshape(len(maps), height // _BLOCK, _BLOCK, width // _BLOCK, _BLOCK).mean((2, 4))
