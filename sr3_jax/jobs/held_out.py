"""Sampling of held-out images, for evaluation and calibration alike."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
import tqdm
from etils import epath

from sr3_jax import parallel, sizes
from sr3_jax.config import Config, as_recorded
from sr3_jax.evaluation import evaluator, outputs
from sr3_jax.evaluation.report import grids
from sr3_jax.inference import loading
from sr3_jax.inference.super_resolver import SuperResolver
from sr3_jax.jobs import fields, shared
from sr3_jax.models import Batch

# The strip of refinement: columns from noise to image, and rows.
_NUM_REFINEMENT_PICTURES = 9
_NUM_REFINED = 4

# Between the seeds of an image's samples; images have neighbouring ones.
_NEXT_SAMPLE = 1 << 24


class Network(NamedTuple):
    """A network as a method of `evaluator.evaluate`, which moves a bar and may draw a strip.

    The strip shows the first images of the set, from noise to image. The batch that makes these
    draws it before their files are written. So an evaluation that goes on leaves the same strip as
    one that was not stopped.

    Attributes:
      config: the config; it says how many samples are drawn, and from which seeds.
      resolver: the network.
      fingerprint: what `fingerprint` returns.
      bar: the bar.
      strip: file of the strip; None: it is not drawn.
    """

    config: Config
    resolver: SuperResolver
    fingerprint: str
    bar: tqdm.tqdm
    strip: epath.Path | None = None

    def lacks_strip(self, inputs: evaluator.Inputs) -> bool:
        """Returns whether these inputs are in the strip, and it is missing or of other inputs."""
        if (
            self.strip is None
            or self.config.predicts_image
            or jax.process_index()
            or inputs.index[0] >= self.resolver.batch_size
        ):
            return False
        return outputs.read(self.strip, self._strip_digest(inputs.low)) is None

    def run(self, inputs: evaluator.Inputs) -> tuple[np.ndarray, float]:
        """Samples high resolutions; see `evaluator.Run`."""
        # The signal is taken for this call alone: a process that waits for others, or compiles,
        # should end as any program.
        with parallel.StopSignal(alone=True) as stop:
            return self._sample(inputs, stop)

    def _sample(
        self, given: evaluator.Inputs, stop: parallel.StopSignal
    ) -> tuple[np.ndarray, float]:
        resolver, config, is_strip_due = self.resolver, self.config, self.lacks_strip(given)
        low, index = given.low, given.index
        side, size = config.evaluation.network_input, sizes.scaled(low.shape[1:3], resolver.factor)
        inputs = evaluator.resize(low, (side, side)) if side else low
        calls = resolver.num_refinements(inputs.shape) * config.num_samples
        share = len(low) * jax.process_count() / calls
        steps = resolver.nfe()
        times = np.linspace(steps, 0, min(_NUM_REFINEMENT_PICTURES, steps + 1)).round().astype(int)
        samples, seconds = [], 0.0

        def advance() -> None:
            shared.check_signal(stop)
            shared.advance(self.bar, share)

        for k in range(config.num_samples):
            result = resolver.sample(
                inputs,
                # One stream for each image of the set, whatever the batches.
                seed=[(config.seed + int(i) + k * _NEXT_SAMPLE) % 2**32 for i in index],
                num_snapshots=len(times) if is_strip_due and k == 0 else 0,
                label=given.label if resolver.num_classes else None,
                maps=given.maps,
                progress=advance,
            )
            if is_strip_due and k == 0:
                columns = {
                    f"t = {t}": y_t[:_NUM_REFINED]
                    for t, y_t in zip(times, result.refinement, strict=True)
                }
                if resolver.scalings:
                    columns = fields.drawn(columns, resolver.scalings.image)
                outputs.write(grids.grid(columns), self.strip, self._strip_digest(low), 0.0)
            made = result.images
            samples.append(evaluator.resize(made, tuple(size)) if side else made)
            seconds += result.seconds
        return np.stack(samples), seconds

    def _strip_digest(self, low: np.ndarray) -> str:
        return outputs.digest(self.fingerprint, low[:_NUM_REFINED])


def counted(batches: Iterable[Batch], bar: tqdm.tqdm) -> Iterator[Batch]:
    """Yields the batches; after each, moves the bar to the number of images that are done."""
    done = 0
    for batch in batches:
        yield batch
        done += int((batch["index"] >= 0).sum()) * jax.process_count()
        bar.update(min(done, bar.total) - bar.n)


def fingerprint(config: Config, workdir: epath.Path, resolver: SuperResolver) -> str:
    """Returns everything that decides what a network makes of an input: weights, sampling, seed."""
    weights = loading.weights_digest(config, workdir / "checkpoints", resolver.checkpoint_step)
    sections = ("model", "diffusion", "sampling")
    how: dict[str, Any] = {section: as_recorded(config, section) for section in sections}
    if not config.has_levels:
        how["units"] = as_recorded(config, "units")
    how |= {"seed": config.seed, "network_input": config.evaluation.network_input}
    return json.dumps([weights, how], sort_keys=True)
