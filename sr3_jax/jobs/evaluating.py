"""Evaluation of a trained network, and scores of images that any program made."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping

import jax
import numpy as np
import tqdm
from absl import logging
from etils import epath

from sr3_jax import data_factory, factory, parallel
from sr3_jax.data import folders
from sr3_jax.evaluation import evaluator, outputs, pictures, scoring
from sr3_jax.inference.super_resolver import SuperResolver
from sr3_jax.jobs import shared
from sr3_jax.training.step import Batch

# The strip of refinement: columns from noise to image, and rows.
_NUM_REFINEMENT_PICTURES = 9
_NUM_REFINED = 4

# Between the seeds of an image's samples; images have neighbouring ones.
_NEXT_SAMPLE = 1 << 24


def evaluate(config: factory.ConfigDict, workdir: epath.Path) -> None:
    """Scores a checkpoint (`config.evaluation.checkpoint`) on held-out images; prints the table.

    In `workdir/evaluation` it leaves every image (see `evaluation.outputs`), which the next run
    with the same weights and sampling finds there, `metrics.json` (means by method), `images.json`
    (every number), `samples.png` and, of SR3, `refinement.png`.
    """
    folder = workdir / "evaluation"
    images = folder / "images"
    resolver = SuperResolver.from_config(config, workdir / "checkpoints")
    shared.list_images(config, workdir, training=False)
    pipeline = data_factory.evaluation_pipeline(
        config, resolver.batch_size * jax.process_count(), index_dir=workdir / shared.INDEX
    )
    name = factory.method(config)
    with shared.progress_bar("evaluate", pipeline.num_images) as bar:
        method = outputs.kept(
            _method(config, resolver, bar, folder), name, images, _recipe(config, resolver)
        )
        evaluation = evaluator.evaluate(
            {"bicubic": evaluator.bicubic(resolver.factor), name: method},
            outputs.with_inputs(_counted(pipeline.evaluation_batches(), bar), images),
            num_pictures=config.evaluation.num_pictures,
            **factory.metric_options(config),
            share=parallel.of_all_processes,
        )
    shared.count_unusable(pipeline)
    if jax.process_index() != 0:
        return
    evaluator.write_json(evaluation.means, folder / "metrics.json")
    names = [pipeline.name(int(number)) for number in evaluation.index]
    each = {
        "names": names,
        "files": [outputs.file_of(int(number)) for number in evaluation.index],
        "scores": evaluation.of_images,
    }
    evaluator.write_json(each, folder / "images.json")
    shown = {shared.LABELS.get(key, key): made for key, made in evaluation.pictures.items()}
    pictures.save(pictures.grid(shown), folder / "samples.png")
    for skipped, reason in pipeline.skipped.items():
        logging.warning("not scored: %s: %s", skipped, reason)
    print(evaluator.table(evaluation.means))
    print("results:", folder)


def _method(
    config: factory.ConfigDict, resolver: SuperResolver, bar: tqdm.tqdm, folder: epath.Path
) -> evaluator.Method:
    """The network; while it works the bar moves. Draws `refinement.png` of its first images."""
    num_samples, side = factory.num_samples(config), factory.network_input(config)
    steps = resolver.num_refinements(1)
    times = np.round(np.linspace(steps, 0, min(_NUM_REFINEMENT_PICTURES, steps + 1))).astype(int)
    wanted = not factory.predicts_image(config) and jax.process_index() == 0

    def run(low: np.ndarray, index: np.ndarray) -> tuple[np.ndarray, float]:
        nonlocal wanted
        size = tuple(resolver.factor * n for n in low.shape[1:3])
        inputs = evaluator.resize(low, (side, side)) if side else low
        share = len(low) * jax.process_count() / resolver.num_refinements(len(low)) / num_samples
        samples, seconds = [], 0.0
        for k in range(num_samples):
            result = resolver.sample(
                inputs,
                # One stream for each image of the set, whatever the batches.
                seed=[(config.seed + int(i) + k * _NEXT_SAMPLE) % 2**32 for i in index],
                num_snapshots=len(times) if wanted else 0,
                progress=lambda: shared.advance(bar, share),
            )
            if wanted:
                columns = {
                    f"t = {t}": picture[:_NUM_REFINED]
                    for t, picture in zip(times, result.refinement, strict=True)
                }
                pictures.save(pictures.grid(columns), folder / "refinement.png")
                wanted = False
            samples.append(evaluator.resize(result.images, size) if side else result.images)
            seconds += result.seconds
        return np.stack(samples), seconds

    return evaluator.Method(run, num_samples)


def _counted(batches: Iterable[Batch], bar: tqdm.tqdm) -> Iterator[Batch]:
    """The batches; when one is done, the bar stands at as many images as there were."""
    done = 0
    for batch in batches:
        yield batch
        done += int((batch["index"] >= 0).sum()) * jax.process_count()
        bar.update(min(done, bar.total) - bar.n)


def _recipe(config: factory.ConfigDict, resolver: SuperResolver) -> str:
    """All that decides what a network makes of an input: weights, sampling, seed."""
    weights = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(resolver.params):
        weights.update(jax.tree_util.keystr(path).encode())
        weights.update(np.ascontiguousarray(leaf).tobytes())
    sections = json.loads(config.to_json())
    how = {key: sections[key] for key in ("seed", "model", "diffusion", "sampling")}
    how["sampling"].pop("batch_size")
    how["network_input"] = factory.network_input(config)
    return json.dumps([weights.hexdigest(), how], sort_keys=True)


def score(
    workdir: epath.Path,
    reference: str,
    outputs: Mapping[str, str],
    low_resolution: str | None = None,
    *,
    luminance: bool = False,
    border: int = 0,
) -> None:
    """Scores folders of images that any program made; prints the table.

    Writes `metrics.json` (means by method) and `images.json` (every number) in `workdir`.
    """
    if jax.process_index() != 0:
        return
    target = folders.folder(reference)
    with shared.progress_bar("score", len(target)) as bar:
        scores = scoring.score_folders(
            target,
            {name: folders.folder(path) for name, path in outputs.items()},
            folders.folder(low_resolution) if low_resolution else None,
            luminance=luminance,
            border=border,
            progress=functools.partial(bar.update, 1),
        )
    evaluator.write_json(scores.means, workdir / "metrics.json")
    evaluator.write_json(
        {"names": scores.names, "scores": scores.of_images}, workdir / "images.json"
    )
    print(evaluator.table(scores.means))
    if luminance or border:
        print(f"PSNR and SSIM of {'Y' if luminance else 'RGB'}, {border} pixels cut off each side")
