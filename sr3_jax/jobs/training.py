"""Training, followed by an evaluation."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import functools
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np
from absl import logging
from etils import epath

from sr3_jax import models, parallel
from sr3_jax.checkpoints import Checkpointer
from sr3_jax.config import (
    Config,
    data_sections,
    image_sets,
    layouts,
    networks,
    optimizers,
    run_file,
    schedules,
)
from sr3_jax.evaluation.report import grids
from sr3_jax.inference.generator import Generator
from sr3_jax.inference.super_resolver import SuperResolver
from sr3_jax.jobs import features, fields, initial_weights, shared
from sr3_jax.jobs.evaluating import evaluate
from sr3_jax.training import event_file, loop
from sr3_jax.training import state as training_state
from sr3_jax.training import step as training_step
from sr3_jax.training import tasks as training_tasks

_NUM_LOGGED_SAMPLES = 4
_NUM_MEASURED = 1024  # training images, for `config.model.measure_sigma_data`


def train(config: Config, workdir: epath.Path) -> None:
    """Trains or resumes in `workdir`, and evaluates.

    Writes `config.json`, `checkpoints/`, TensorBoard's event files and `evaluation/`. A config that
    is refused leaves the workdir as it was.

    Raises:
      ValueError: the config cannot work, or its network is not that of the checkpoints.
      HeldError: another training runs in the workdir.
    """
    with shared.holding(workdir, "training"):
        _train(config, workdir)


class TrainingProgram(NamedTuple):
    """The jitted training step of a config; the initial state, and its shapes and shardings."""

    denoiser: models.Denoiser
    init: Callable[[], training_state.TrainState]
    state: training_state.TrainState
    step: jax.stages.Wrapped
    teacher: training_tasks.Teacher | None


def training_program(config: Config, layout: parallel.Layout) -> TrainingProgram:
    """Returns the training step of a config; nothing is allocated or compiled."""
    denoiser, optimizer = networks.denoiser(config), optimizers.optimizer(config)
    init = functools.partial(
        training_state.init_state, denoiser.network, optimizer, config.seed, config.data.image_size
    )
    shapes = jax.eval_shape(init)
    state = jax.tree.map(
        lambda a, sharding: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding),
        shapes,
        training_state.state_shardings(layout, shapes),
    )
    schedule = schedules.training_schedule(config)
    teacher = _teacher(config)
    step = training_step.make_train_step(denoiser, schedule, optimizer, config, layout, teacher)
    step = training_step.jit_train_step(step, layout, shapes, is_taught=teacher is not None)
    return TrainingProgram(denoiser, init, state, step, teacher)


def teacher_shapes(program: TrainingProgram, layout: parallel.Layout) -> list[models.Params]:
    """Returns the shapes of what the step takes after the batch: a teacher's parameters, if any."""
    if program.teacher is None:
        return []
    params = jax.eval_shape(program.teacher.denoiser.cast_params, program.state.params)
    whole = layout.whole
    return [jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=whole), params)]


def _teacher(config: Config) -> training_tasks.Teacher | None:
    """Returns the teacher of a student's config: the same network, in more calls."""
    if not config.distillation.teacher_calls:
        return None
    denoiser = dataclasses.replace(
        networks.denoiser(config), guidance=config.distillation.teacher_guidance
    )
    return training_tasks.Teacher(
        denoiser, schedules.segments(config), config.distillation.truth, config.sampling.clip
    )


def _train(config: Config, workdir: epath.Path) -> None:
    shared.check_same_config(config)
    resumes, initial, teacher = _has_checkpoints(workdir), None, None
    if resumes:
        config = run_file.with_measured(config, workdir / "config.json")
    else:
        config, initial = initial_weights.find(config, "train.initial_weights")
    if config.distillation.teacher_calls:
        config, teacher = initial_weights.find(config, "distillation.teacher")
    layout = layouts.layout(config)
    mesh = layout.mesh
    # Faults are found now, not after days of training.
    schedules.sampler(config)
    features.check(config)
    program = training_program(config, layout)
    denoiser, like = program.denoiser, program.state
    optimizers.check_frozen(config, like.params)
    model = denoiser.network
    _check_memory(like, mesh)
    _check_can_resume(config, workdir)
    shared.list_images(config, workdir, training=True)
    if not config.units.is_measured:
        config = _with_units(config, workdir)
    if config.model.measure_sigma_data:
        rms = image_sets.residual_rms(config, _NUM_MEASURED, workdir / shared.INDEX)
        logging.info("config.model.sigma_data is %g, of %d training images", rms, _NUM_MEASURED)
        config = run_file.with_sigma_data(config, rms)
        program = training_program(config, layout)
        denoiser = program.denoiser
    pipeline = image_sets.training_pipeline(config, workdir / shared.INDEX)
    shared.check_same_images(pipeline)
    shared.check_usable(config, workdir)
    checkpointer = Checkpointer(
        workdir / "checkpoints",
        keep_last=config.checkpoint.keep_last,
        keep_best=config.checkpoint.keep_best,
    )
    shared.check_shared(checkpointer.directory)  # it may be a link to another disk
    state = _first_state(program.init, like, checkpointer)
    if initial is not None:
        state = initial_weights.put_into(state, initial, config)
    if int(state.step) >= config.train.num_steps:
        # The run is complete; compiling its steps would take minutes.
        checkpointer.close()
        _keep_config(config, workdir)
        evaluate(config, workdir)
        return

    def batches(start_step: int) -> Iterator[training_step.Batch]:
        with contextlib.closing(pipeline.training_batches(start_step)) as stream:
            for batch in shared.with_known_classes(pipeline, stream, model.num_classes):
                yield parallel.to_global(batch, mesh)

    shapes = training_step.batch_shapes(
        layout, config.train.batch_size, *pipeline.sizes, pipeline.dtype, pipeline.channels[:3]
    )
    step, validate = _compile(config, workdir, program, layout, state, shapes, teacher)
    parallel.wait_for_all()
    writer = event_file.EventFile(str(workdir) if jax.process_index() == 0 else None)
    flops_of_image = models.count_flops(model, config.data.image_size)
    hooks = loop.Hooks(
        validate=validate,
        sample=_logged_samples(config, workdir, mesh),
        learning_rate=optimizers.learning_rate(config),
        counts=functools.partial(shared.count_unusable, pipeline),
        flops_per_step=flops_of_image and 3 * flops_of_image * config.train.batch_size,
        peak_flops=parallel.peak_flops(mesh.devices.flat[0], model.dtype),
        profile_directory=str(workdir / "profile"),
    )
    _keep_config(config, workdir)
    with parallel.StopSignal() as stop_signal:
        hooks.stop_signal = stop_signal.asked
        loop.train(state, step, batches, config, checkpointer, writer, hooks)
    checkpointer.close()
    evaluate(config, workdir)


def _with_units(config: Config, workdir: epath.Path) -> Config:
    """Returns the config with `config.units` of its file, or as measured on all training images.

    Each process measures them all, so that none waits for another, and all find the same.
    """
    if config.units.file:
        return image_sets.with_statistics(config, image_sets.read_statistics(config.units.file))
    count = len(image_sets.training_source(config, workdir / shared.INDEX))
    logging.info("measuring config.units on %d training images", count)
    with shared.progress_bar("measure", count) as bar:
        found = image_sets.statistics(config, workdir / shared.INDEX, bar.update)
    return image_sets.with_statistics(config, data_sections.flat(found))


def _compile(
    config: Config,
    workdir: epath.Path,
    program: TrainingProgram,
    layout: parallel.Layout,
    state: training_state.TrainState,
    batch: Mapping[str, jax.ShapeDtypeStruct],
    teacher: initial_weights.Trained | None,
) -> tuple[loop.TrainStep, loop.Validate]:
    """Compiles the training step and the validation; those of a student have its teacher's weights.

    Raises:
      ValueError: a step does not fit into memory.
    """
    logging.info(
        "compiling the training step and the validation, which usually takes one to five minutes, "
        "or seconds if they were compiled before"
    )
    start, mesh = time.perf_counter(), layout.mesh
    taught_by = teacher_shapes(program, layout)
    lowered = program.step.lower(state, batch, *taught_by)
    compiled = parallel.compile_for(mesh.devices.flat[0], lowered)
    _check_memory_of(compiled, mesh)
    if teacher is not None:
        weights = program.teacher.denoiser.cast_params(initial_weights.read(teacher))
        taught_by = [jax.tree.map(initial_weights.placed, *taught_by, weights)]
    validate = _validation(config, workdir, program, state.ema_params, mesh, taught_by)
    logging.info("compiled in %.0f s; the first step begins", time.perf_counter() - start)
    return lambda *given: compiled(*given, *taught_by), validate


def _check_can_resume(config: Config, workdir: epath.Path) -> None:
    """Checks that the config can resume the run in `workdir`, if any; logs changed keys."""
    path = workdir / "config.json"
    if not _has_checkpoints(workdir) or not path.exists():
        return
    before = run_file.load(path)
    run_file.check_same_network(before, config, path)
    if jax.process_index() == 0:
        for key, (old, new) in run_file.changed_keys(before, config).items():
            logging.warning("config.%s was %r in this workdir and is now %r", key, old, new)


def _has_checkpoints(workdir: epath.Path) -> bool:
    checkpoints = workdir / "checkpoints"
    return checkpoints.is_dir() and any(step.name.isdigit() for step in checkpoints.iterdir())


def _keep_config(config: Config, workdir: epath.Path) -> None:
    """Writes config.json; only after all checks, since a finished run needs its own."""
    if jax.process_index() == 0:
        run_file.save(config, workdir / "config.json")


def _check_memory(like: training_state.TrainState, mesh: jax.sharding.Mesh) -> None:
    """Checks that the training state fits into memory, before minutes of compilation."""
    needed = sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(like)
    )
    millions = sum(leaf.size for leaf in jax.tree.leaves(like.params)) / 1e6
    _check_free(
        needed,
        mesh,
        "the training state (parameters, average, Adam) of this network of "
        f"{millions:.0f}M parameters takes {{}} GB of memory",
        "Lower config.model.channels or config.model.multipliers, or split the state over more "
        "devices by config.parallel.layout=zero1",
    )


def _check_memory_of(program: jax.stages.Compiled, mesh: jax.sharding.Mesh) -> None:
    """Checks that the temporary arrays of a compiled training step fit beside the state.

    It checks CPUs alone, since the compilers for TPUs and GPUs refuse programs that do not fit.
    """
    found = program.memory_analysis()
    if found is not None and mesh.local_devices[0].platform == "cpu":
        _check_free(
            found.temp_size_in_bytes,
            mesh,
            "a training step takes {} GB of memory besides its state",
            "Lower config.train.batch_size, raise config.train.accumulate_steps, set "
            "config.model.remat, or use more devices",
        )


def _check_free(needed: int, mesh: jax.sharding.Mesh, need: str, fix: str) -> None:
    """Raises ValueError if a device has fewer free bytes than needed."""
    device = mesh.local_devices[0]
    if device.platform == "cpu":
        needed *= len(mesh.local_devices)  # they share the memory of the machine
    free = parallel.free_bytes(device)
    if free is not None and needed > free:
        need = need.format(f"{needed / 1e9:.3g}")
        raise ValueError(f"{need}, but {free / 1e9:.3g} GB are free. {fix}")


def _first_state(
    init: Callable[[], training_state.TrainState],
    like: training_state.TrainState,
    checkpointer: Checkpointer,
) -> training_state.TrainState:
    """Returns the latest checkpoint's state, or a fresh one, sharded over the devices."""
    if not checkpointer.steps:
        shardings = jax.tree.map(lambda leaf: leaf.sharding, like)
        fresh = jax.jit(init, out_shardings=shardings).lower().compile()
        # Initialisation may use collectives, which time out while another process compiles.
        parallel.wait_for_all()
        return fresh()
    step, state = checkpointer.restore(like)
    logging.info("resuming at step %d of %s", step, checkpointer.directory)
    return state


def _validation(
    config: Config,
    workdir: epath.Path,
    program: TrainingProgram,
    params: models.Params,
    mesh: jax.sharding.Mesh,
    taught_by: Sequence[models.Params],
) -> loop.Validate:
    """Returns a compiled function: parameters to mean losses of held-out images, at fixed noise."""
    schedule = schedules.training_schedule(config)
    of_batch = training_step.make_validation(program.denoiser, schedule, config, program.teacher)
    batch_size = config.train.batch_size // config.train.accumulate_steps
    pipeline = image_sets.evaluation_pipeline(config, batch_size, index_dir=workdir / shared.INDEX)
    layout = parallel.Layout(mesh)
    sums = training_step.jit_validation(of_batch, layout)
    shapes = training_step.batch_shapes(
        layout, batch_size, *pipeline.sizes, pipeline.dtype, pipeline.channels[:3]
    )
    whole = jax.tree.map(
        lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=layout.whole), params
    )
    lowered = sums.lower(whole, shapes, *taught_by)
    compiled = parallel.compile_for(mesh.devices.flat[0], lowered)

    def validate(params: training_state.Params) -> dict[str, float]:
        params = parallel.gather(params, mesh)
        totals: collections.Counter[str] = collections.Counter()
        count = 0.0
        classes = program.denoiser.network.num_classes
        batches = pipeline.evaluation_batches()
        for batch in shared.with_known_classes(pipeline, batches, classes):
            found, rows = compiled(params, parallel.to_global(batch, mesh), *taught_by)
            totals.update({name: float(value) for name, value in found.items()})
            count += float(rows)
        return {name: total / max(count, 1.0) for name, total in totals.items()}

    return validate


def _logged_samples(
    config: Config, workdir: epath.Path, mesh: jax.sharding.Mesh
) -> Callable[..., np.ndarray | None]:
    """Returns a function that draws samples for the log, on process 0.

    They are of the first held-out images, or from noise alone. The first call compiles.
    """
    count = _NUM_LOGGED_SAMPLES
    pipeline = image_sets.evaluation_pipeline(
        config, count, count, split=False, index_dir=workdir / shared.INDEX, signed=False
    )
    network: SuperResolver | Generator | None = None
    method = config.method

    def draw(params: training_state.Params) -> np.ndarray:
        nonlocal network
        if network is None:
            kind = SuperResolver if config.has_source else Generator
            network = kind.from_params(config, params)
        network.set_params(params)
        if isinstance(network, Generator):
            classes = config.model.num_classes
            label = np.arange(count**2) % classes if classes else None
            return grids.mosaic(network.generate(count**2, label=label))
        batch = next(pipeline.evaluation_batches())
        kept = batch["weight"] > 0
        low, high = batch["low_resolution"][kept], batch["high_resolution"][kept]
        known = batch["label"][kept] if network.num_classes else None
        maps = batch["maps"][kept] if "maps" in batch else None
        made = network.upscale(low, label=known, maps=maps)
        shown = {"input": low, shared.LABELS.get(method, method): made, "reference": high}
        if network.scalings:
            shown = fields.drawn(shown, network.scalings.image)
        return grids.grid(shown)

    def sample(params: training_state.Params, _: int) -> np.ndarray | None:
        params = parallel.on_this_process(parallel.gather(params, mesh))
        picture = draw(params) if jax.process_index() == 0 else None
        parallel.wait_for_all()
        return picture

    return sample
