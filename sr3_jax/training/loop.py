"""The training loop: steps, logging, validation, checkpoints and samples."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import math
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping

import jax
import numpy as np
import tqdm
from absl import logging

from sr3_jax.checkpoints import Checkpointer
from sr3_jax.config import Config
from sr3_jax.models import Batch, Params
from sr3_jax.parallel import StoppedError
from sr3_jax.training.event_file import EventFile
from sr3_jax.training.state import TrainState
from sr3_jax.training.step import TrainStep

_STEPS_AHEAD = 2
_STEPS_BEFORE_TRACE = 10

Validate = Callable[[Params], Mapping[str, float]]
Sample = Callable[[Params, int], np.ndarray | None]


class NonFiniteError(RuntimeError):
    """Training diverged: a loss or a gradient was not finite."""


@dataclasses.dataclass
class Hooks:
    """Callbacks and constants that the caller gives the loop, which imports no evaluation.

    Attributes:
      validate: returns validation metrics of parameters; called before each checkpoint.
      sample: returns a picture `[height, width, 3]`, uint8, of samples at a step, for the log of
        process 0; None on the other processes.
      learning_rate: returns the learning rate of a step, for the log.
      counts: returns further numbers for the log, such as those of unusable images.
      flops_per_step: floating-point operations of a step over all devices; None if unknown.
      peak_flops: peak FLOP/s of one device; None if unknown.
      profile_directory: folder of the profiler's traces.
      stop_signal: called after each step; returns the signal that asked the job to stop, or None.
    """

    validate: Validate
    sample: Sample | None = None
    learning_rate: Callable[[int], float] | None = None
    counts: Callable[[], Mapping[str, float]] = dict
    flops_per_step: float | None = None
    peak_flops: float | None = None
    profile_directory: str = ""
    stop_signal: Callable[[int], signal.Signals | None] = lambda step: None


def train(
    state: TrainState,
    train_step: TrainStep,
    batches: Callable[[int], Iterator[Batch]],
    config: Config,
    checkpointer: Checkpointer,
    writer: EventFile,
    hooks: Hooks,
) -> TrainState:
    """Trains from `state.step` to `config.train.num_steps`, and saves the last state.

    Args:
      state: the initial state; its buffers are donated.
      train_step: the compiled step, which donates its state.
      batches: returns the batches from a step on, on the devices.
      config: the config of the run.
      checkpointer: saves the states.
      writer: writes scalars and pictures.
      hooks: callbacks between steps.

    Raises:
      StoppedError: `hooks.stop_signal` returned a signal; the current step is done and saved.
      NonFiniteError: a loss or gradient is not finite; names the step. The checkpoint before it
        stays the last.
    """
    start = int(state.step)
    if start >= config.train.num_steps:
        return state
    log = _Log(start, config, writer, hooks)
    stream = batches(start)
    try:
        with log, _Trace(start, config.profile_steps, hooks.profile_directory) as trace:
            for step in range(start + 1, config.train.num_steps + 1):
                trace.before(step)
                state, metrics = train_step(state, next(stream))
                log.add(step, metrics)
                trace.after(step, metrics)
                last = step == config.train.num_steps
                stop = hooks.stop_signal(step)
                if last or step % config.train.log_every_steps == 0:
                    log.write(step)
                    checkpointer.check()
                if last or stop or step % config.checkpoint.every_steps == 0:
                    log.check_finite()
                    with log.pause():
                        # A preemption leaves seconds, so validation is skipped.
                        validate = (lambda _: {}) if stop else hooks.validate
                        _save(state, checkpointer, writer, validate)
                if stop:
                    message = f"step {step} is saved; the same command goes on from it"
                    raise StoppedError(stop, message)
                period = config.train.sample_every_steps
                if hooks.sample and period and step % period == 0:
                    with log.pause():
                        picture = hooks.sample(state.ema_params, step)
                        if picture is not None:
                            writer.write_image(step, "samples", picture)
    finally:
        # End the data pipeline's threads, and finish pending writes.
        getattr(stream, "close", lambda: None)()
        checkpointer.wait()
        writer.flush()
    return state


def _save(
    state: TrainState, checkpointer: Checkpointer, writer: EventFile, validate: Validate
) -> None:
    """Validates the averaged parameters and saves the state."""
    step = int(state.step)
    metrics = dict(validate(state.ema_params))
    writer.write_scalars(step, metrics)
    checkpointer.save(step, state, metrics)


class _Trace:
    """Traces a few steps with jax's profiler, after the first ones, which are not typical."""

    def __init__(self, start: int, num_steps: int, directory: str) -> None:
        self._first = start + _STEPS_BEFORE_TRACE + 1
        self._last = start + _STEPS_BEFORE_TRACE + num_steps
        self._directory, self._running = directory, False

    def __enter__(self) -> _Trace:
        return self

    def __exit__(self, *_: object) -> None:
        if self._running:
            jax.profiler.stop_trace()

    def before(self, step: int) -> None:
        if self._first == step <= self._last:
            jax.profiler.start_trace(self._directory)
            self._running = True

    def after(self, step: int, metrics: Mapping[str, jax.Array]) -> None:
        if self._running and step == self._last:
            jax.block_until_ready(metrics)
            jax.profiler.stop_trace()
            self._running = False
            logging.info("profile of steps %d to %d in %s", self._first, step, self._directory)


class _Log:
    """The progress bar, the log of metrics, and the check for numbers that are not finite.

    Metrics stay on the devices until they are logged, so that steps are dispatched without
    waiting for each other.
    """

    def __init__(self, start: int, config: Config, writer: EventFile, hooks: Hooks) -> None:
        self._batch_size, self._writer, self._hooks = config.train.batch_size, writer, hooks
        self._pending: collections.deque[tuple[int, Mapping[str, jax.Array]]] = collections.deque()
        self._recent: list[dict[str, float]] = []
        self._bar = tqdm.tqdm(
            total=config.train.num_steps,
            initial=start,
            desc="train",
            unit="step",
            disable=jax.process_index() != 0,
            dynamic_ncols=True,
            mininterval=1.0,
            file=sys.stderr,
        )
        self._reset_clock()

    def __enter__(self) -> _Log:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def add(self, step: int, metrics: Mapping[str, jax.Array]) -> None:
        """Records a dispatched step."""
        self._pending.append((step, metrics))
        self._num_steps += 1
        self._bar.update()
        # Dispatch only a few steps ahead: a stop waits for all of them.
        if len(self._pending) > _STEPS_AHEAD:
            jax.block_until_ready(self._pending[-1 - _STEPS_AHEAD][1])

    def check_finite(self) -> None:
        """Waits for all dispatched steps; raises NonFiniteError that names the first bad one."""
        steps = [step for step, _ in self._pending]
        fetched = jax.device_get([metrics for _, metrics in self._pending])  # all at once
        self._pending.clear()
        for step, metrics in zip(steps, fetched, strict=True):
            values = {name: float(value) for name, value in metrics.items()}
            for name, value in values.items():
                if not math.isfinite(value):
                    raise NonFiniteError(
                        f"{name} is {value} at step {step}; the last good checkpoint is kept. "
                        "A lower config.train.learning_rate or config.train.clip_norm, or "
                        "config.model.dtype=float32, usually helps"
                    )
            self._recent.append(values)

    def write(self, step: int) -> None:
        """Logs means and rates over the steps since the last call."""
        self.check_finite()
        seconds = time.perf_counter() - self._clock
        rate = self._num_steps / seconds
        scalars = {
            name: sum(values[name] for values in self._recent) / len(self._recent)
            for name in self._recent[0]
        }
        self._bar.set_postfix_str(f"loss {scalars['loss']:.4f}", refresh=False)
        scalars |= {"images_per_second": rate * self._batch_size, "steps_per_second": rate}
        hooks = self._hooks
        if hooks.learning_rate:
            scalars["learning_rate"] = float(hooks.learning_rate(step - 1))
        scalars.update(hooks.counts())
        if hooks.flops_per_step:
            scalars["flops_per_second"] = flops = hooks.flops_per_step * rate
            if hooks.peak_flops:
                scalars["share_of_peak"] = flops / (hooks.peak_flops * jax.device_count())
        self._writer.write_scalars(step, scalars)
        self._recent.clear()
        self._reset_clock()

    @contextlib.contextmanager
    def pause(self) -> Iterator[None]:
        """Returns a context whose time is not counted in the rates."""
        if self._pending:  # steps that were dispatched before do count
            jax.block_until_ready(self._pending[-1][1])
        begin = time.perf_counter()
        yield
        self._clock += time.perf_counter() - begin

    def _reset_clock(self) -> None:
        self._clock, self._num_steps = time.perf_counter(), 0
