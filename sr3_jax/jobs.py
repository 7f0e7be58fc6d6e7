"""The jobs behind `main`: they put training, evaluation and inference together."""

from __future__ import annotations

import collections
import contextlib
import functools
import json
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
import tqdm
from absl import logging
from clu import metric_writers
from etils import epath

from sr3_jax import config_file, data_factory, factory, models, parallel
from sr3_jax.data import folders, storage
from sr3_jax.evaluation import evaluator, pictures, scoring
from sr3_jax.inference import files
from sr3_jax.inference.super_resolver import SuperResolver
from sr3_jax.training import checkpoint, loop
from sr3_jax.training import state as training_state
from sr3_jax.training import step as training_step

if TYPE_CHECKING:  # imported only where images are read: it takes seconds
    from sr3_jax.data.pipeline import Pipeline

# The strip of refinement: columns from noise to image, and rows.
_NUM_REFINEMENT_PICTURES = 9
_NUM_REFINED = 4
_NUM_LOGGED_SAMPLES = 4

# Of columns of pictures, where they are not a method's name.
_LABELS = {"sr3": "SR3", "srcnn": "SRCNN"}

# In the workdir: the images found when the run began.
_INDEX = "index"


def train(config: factory.ConfigDict, workdir: epath.Path) -> None:
    """Trains, or goes on training, in `workdir`, and evaluates.

    Leaves `config.json`, `checkpoints/`, TensorBoard's event files, and `evaluation/`.
    """
    options = factory.loop_options(config)
    model, schedule = factory.model(config), factory.training_schedule(config)
    optimizer = factory.optimizer(config)
    step_options = training_step.StepOptions(**factory.step_options(config))
    layout = factory.layout(config)
    mesh = layout.mesh
    factory.inference_schedule(config)  # an unusable one should fail now, not after training
    _list_images(config, workdir)
    pipeline = data_factory.training_pipeline(config, workdir / _INDEX)
    _keep_config(config, workdir)

    checkpointer = checkpoint.Checkpointer(
        workdir / "checkpoints",
        keep_last=config.checkpoint.keep_last,
        keep_best=config.checkpoint.keep_best,
    )
    state = _first_state(config, model, optimizer, layout, checkpointer)
    if int(state.step) >= options.num_steps:
        # Compiling the steps of a large network, of which none is left, takes minutes.
        checkpointer.close()
        evaluate(config, workdir)
        return
    train_step = training_step.make_train_step(model, schedule, optimizer, step_options, layout)

    def batches(start_step: int) -> Iterator[training_step.Batch]:
        with contextlib.closing(pipeline.training_batches(start_step)) as stream:
            for batch in stream:
                yield parallel.to_global(batch, mesh)

    shapes = training_step.batch_shapes(
        layout, options.batch_size, config.data.image_size, config.data.low_resolution
    )
    program = training_step.jit_train_step(train_step, layout, state)
    compiled = parallel.compile_for(mesh.devices.flat[0], program.lower(state, shapes))
    validate = _validation(config, workdir, model, schedule, state.ema_params, mesh)
    parallel.wait_for_all()
    writer = (
        metric_writers.SummaryWriter(str(workdir))
        if jax.process_index() == 0
        else metric_writers.MultiWriter([])
    )
    flops_of_image = models.count_flops(model, config.data.image_size)
    hooks = loop.Hooks(
        validate=validate,
        sample=_logged_samples(config, workdir, mesh),
        learning_rate=factory.learning_rate(config),
        counts=functools.partial(_count_unusable, pipeline),
        flops_per_step=3 * flops_of_image * options.batch_size,
        peak_flops=parallel.peak_flops(mesh.devices.flat[0], model.dtype),
        profile_directory=str(workdir / "profile"),
    )
    with parallel.StopSignal() as stop_signal:
        hooks.stop_signal = stop_signal.asked
        loop.train(state, compiled, batches, options, checkpointer, writer, hooks)
    checkpointer.close()
    evaluate(config, workdir)


def _count_unusable(images: Pipeline) -> dict[str, int]:
    """Of all processes; too many of them end each process alike."""
    damaged, too_small = images.unusable
    # Below zero for the one kind, so that one exchange does for both.
    found = parallel.union(np.concatenate([damaged, -1 - too_small]))
    damaged = found[found >= 0]
    images.check_damaged(damaged)
    return {"images_damaged": len(damaged), "images_too_small": len(found) - len(damaged)}


def evaluate(config: factory.ConfigDict, workdir: epath.Path) -> None:
    """Scores a checkpoint (`config.evaluation.checkpoint`) on held-out images; prints the table.

    Writes `evaluation/metrics.json`, `samples.png` and, of SR3, `refinement.png` in `workdir`.
    """
    resolver = SuperResolver.from_config(config, workdir / "checkpoints")
    _list_images(config, workdir)
    pipeline = data_factory.evaluation_pipeline(
        config, resolver.batch_size * jax.process_count(), index_dir=workdir / _INDEX
    )

    method = factory.method(config)
    steps = resolver.num_refinements(1)
    times = np.round(np.linspace(steps, 0, min(_NUM_REFINEMENT_PICTURES, steps + 1))).astype(int)
    refinement: dict[str, np.ndarray] = {}

    def run(low: np.ndarray, index: np.ndarray) -> tuple[np.ndarray, float]:
        # One stream for each image of the set, whatever the batches.
        seeds = [config.seed + int(i) for i in index]
        share = len(low) * jax.process_count() / resolver.num_refinements(len(low))
        kept_times = times[:0] if refinement or factory.predicts_image(config) else times
        result = resolver.sample(
            low,
            seed=seeds,
            num_snapshots=len(kept_times),
            progress=lambda: _advance(bar, share),
        )
        for t, picture in zip(kept_times, result.refinement, strict=True):
            refinement[f"t = {t}"] = picture[:_NUM_REFINED]
        return result.images, result.seconds

    with _progress_bar("evaluate", pipeline.num_images) as bar:
        evaluation = evaluator.evaluate(
            {"bicubic": evaluator.bicubic(resolver.factor), method: run},
            pipeline.evaluation_batches(),
            num_pictures=config.evaluation.num_pictures,
            **factory.metric_options(config),
            share=parallel.of_all_processes,
        )
    _count_unusable(pipeline)
    if jax.process_index() != 0:
        return
    folder = workdir / "evaluation"
    evaluator.write_scores(evaluation.scores, folder / "metrics.json")
    shown = {_LABELS.get(name, name): made for name, made in evaluation.pictures.items()}
    written = {"samples.png": shown}
    if refinement:
        written["refinement.png"] = refinement
    for name, columns in written.items():
        pictures.save(pictures.grid(columns), folder / name)
    for name, reason in pipeline.skipped.items():
        logging.warning("not scored: %s: %s", name, reason)
    print(evaluator.table(evaluation.scores))
    print("pictures:", *(folder / name for name in written))


def upscale(
    workdir: epath.Path,
    input_path: epath.Path,
    output: epath.Path,
    steps: int | None,
    seed: int,
) -> int:
    """Upscales a file or a folder; returns how many inputs failed."""
    inputs = files.find_inputs(input_path)[jax.process_index() :: jax.process_count()]
    resolver = SuperResolver.from_workdir(workdir)
    with _progress_bar("upscale", len(inputs)) as bar:
        report = files.upscale_files(
            resolver,
            inputs,
            output,
            steps=steps,
            seed=seed,
            progress=functools.partial(_advance, bar),
        )
    print(f"{len(report.written)} of {len(inputs)} images written to {output}")
    for name, reason in report.failed.items():
        print(f"failed: {name}: {reason}")
    return len(report.failed)


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
    with _progress_bar("score", len(target)) as bar:
        scores = scoring.score_folders(
            target,
            {name: folders.folder(path) for name, path in outputs.items()},
            folders.folder(low_resolution) if low_resolution else None,
            luminance=luminance,
            border=border,
            progress=functools.partial(bar.update, 1),
        )
    evaluator.write_scores(scores.means, workdir / "metrics.json")
    each = {"names": scores.names, "scores": scores.of_images}
    storage.write_whole(workdir / "images.json", (json.dumps(each) + "\n").encode())
    print(evaluator.table(scores.means))
    if luminance or border:
        print(f"PSNR and SSIM of {'Y' if luminance else 'RGB'}, {border} pixels cut off each side")


def _list_images(config: factory.ConfigDict, workdir: epath.Path) -> None:
    """Has process 0 list the images where no list is kept yet, and leave it to the others."""
    if jax.process_index() == 0:
        data_factory.training_source(config, workdir / _INDEX)
        data_factory.evaluation_source(config, workdir / _INDEX)
    parallel.wait_for_all()


def _keep_config(config: factory.ConfigDict, workdir: epath.Path) -> None:
    """Writes config.json; says what changed where the run goes on under another config."""
    path = workdir / "config.json"
    workdir.mkdir(parents=True, exist_ok=True)
    if path.exists():
        changed = config_file.changed_keys(config_file.load(path), config)
        for key, (old, new) in changed.items() if jax.process_index() == 0 else ():
            logging.warning("config.%s was %r in this workdir and is now %r", key, old, new)
    if jax.process_index() == 0:
        config_file.save(config, path)


def _first_state(config, model, optimizer, layout, checkpointer) -> training_state.TrainState:
    """The newest checkpoint's state, or a fresh one, laid out on the devices."""
    init = functools.partial(
        training_state.init_state, model, optimizer, config.seed, config.data.image_size
    )
    shapes = jax.eval_shape(init)
    lies = training_state.state_shardings(layout, shapes)
    if not checkpointer.steps:
        fresh = jax.jit(init, out_shardings=lies).lower().compile()
        # Devices may pass each other random numbers, and wait for the slowest compiler.
        parallel.wait_for_all()
        return fresh()
    like = jax.tree.map(
        lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), shapes, lies
    )
    step, state = checkpointer.restore(like)
    logging.info("resuming at step %d of %s", step, checkpointer.directory)
    return state


def _validation(config, workdir, model, schedule, params, mesh) -> loop.Validate:
    """Means over the held-out images, with noise that never changes; compiled at once."""
    of_batch = training_step.make_validation(model, schedule, config.train.loss)

    @functools.partial(jax.jit, out_shardings=parallel.replicated(mesh))
    def sums(params: training_state.Params, batch: training_step.Batch) -> tuple[Any, Any]:
        count = batch["weight"].sum()
        return jax.tree.map(lambda mean: mean * count, of_batch(params, batch)), count

    batch_size = config.train.batch_size // config.train.accumulate_steps
    pipeline = data_factory.evaluation_pipeline(config, batch_size, index_dir=workdir / _INDEX)
    size, low_resolution = pipeline.sizes
    layout = parallel.Layout(mesh)
    shapes = training_step.batch_shapes(layout, batch_size, size, low_resolution)
    whole = jax.tree.map(
        lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=layout.whole), params
    )
    compiled = parallel.compile_for(mesh.devices.flat[0], sums.lower(whole, shapes))

    def validate(params: training_state.Params) -> dict[str, float]:
        params = parallel.gather(params, mesh)
        totals: collections.Counter[str] = collections.Counter()
        count = 0.0
        for batch in pipeline.evaluation_batches():
            found, rows = compiled(params, parallel.to_global(batch, mesh))
            totals.update({name: float(value) for name, value in found.items()})
            count += float(rows)
        return {name: total / max(count, 1.0) for name, total in totals.items()}

    return validate


def _logged_samples(
    config: factory.ConfigDict, workdir: epath.Path, mesh: jax.sharding.Mesh
) -> Callable[..., np.ndarray | None]:
    """Draws the first held-out images for the log, on process 0; compiled at the first call."""
    count = _NUM_LOGGED_SAMPLES
    pipeline = data_factory.evaluation_pipeline(
        config, count, count, split=False, index_dir=workdir / _INDEX
    )
    resolver: SuperResolver | None = None
    method = factory.method(config)

    def draw(params: training_state.Params) -> np.ndarray:
        nonlocal resolver
        if resolver is None:
            resolver = SuperResolver.from_params(config, params)
        resolver.set_params(params)
        batch = next(pipeline.evaluation_batches())
        kept = batch["weight"] > 0
        low, high = batch["low_resolution"][kept], batch["high_resolution"][kept]
        label = _LABELS.get(method, method)
        return pictures.grid({"input": low, label: resolver.upscale(low), "reference": high})

    def sample(params: training_state.Params, _: int) -> np.ndarray | None:
        params = parallel.on_this_process(parallel.gather(params, mesh))
        picture = draw(params) if jax.process_index() == 0 else None
        parallel.wait_for_all()
        return picture

    return sample


def _advance(bar: tqdm.tqdm, share: float) -> None:
    """Moves on by a share of an image; sums of shares may round to more than the total."""
    bar.update(min(share, bar.total - bar.n))


def _progress_bar(name: str, total: int) -> tqdm.tqdm:
    """A bar over images that moves while a batch is refined."""
    return tqdm.tqdm(
        total=total,
        desc=name,
        unit="image",
        dynamic_ncols=True,
        disable=jax.process_index() != 0,
        bar_format="{l_bar}{bar}| {n:.1f}/{total} images [{elapsed}<{remaining}]",
    )
