"""The training loop: data to steps, and what happens between steps."""

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
from sr3_jax.parallel import StoppedError
from sr3_jax.training.event_file import EventFile
from sr3_jax.training.state import Params, TrainState
from sr3_jax.training.step import Batch, TrainStep

_STEPS_AHEAD = 2
_STEPS_BEFORE_TRACE = 10

Validate = Callable[[Params], Mapping[str, float]]
Sample = Callable[[Params, int], np.ndarray | None]


class NonFiniteError(RuntimeError):
    """Training diverged: a loss or a gradient was not finite."""


@dataclasses.dataclass
class Hooks:
    """What the caller lets happen between steps; the loop knows no evaluation.

    Attributes:
      validate: numbers that describe parameters, computed before each checkpoint.
      sample: a picture `[height, width, 3]` uint8 of samples, for the log of process 0; None on
        the others.
      learning_rate: of a step, for the log.
      counts: more numbers for the log, such as those of unusable images.
      flops_per_step: floating-point operations of a step, over all devices; None: unknown.
      peak_flops: operations per second that one device can do; None: unknown.
      profile_directory: where traces of the profiler go.
      stop_signal: of a step that is done: the signal that asked the job to stop, or None.
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
      state: where to begin; its buffers are donated.
      train_step: compiled, donates its state.
      batches: the batches from a given step on, on the devices.
      config: how long, and what how often, by its sections `train` and `checkpoint`.
      checkpointer: where states are saved.
      writer: where numbers and pictures go.
      hooks: what else happens.

    Returns:
      The last state.

    Raises:
      StoppedError: where `hooks.stop_signal` gave one, once the step under way is done and saved.
      NonFiniteError: naming the step whose loss or gradient was not finite; the checkpoint
        before it stays the last.
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
                        # Who is asked to stop has seconds, not minutes.
                        validate = (lambda _: {}) if stop else hooks.validate
                        save(state, checkpointer, writer, validate)
                if stop:
                    message = f"step {step} is saved; the same command goes on from it"
                    raise StoppedError(stop, message)
                if hooks.sample and _every(step, config.train.sample_every_steps):
                    with log.pause():
                        picture = hooks.sample(state.ema_params, step)
                        if picture is not None:
                            writer.write_image(step, "samples", picture)
    finally:
        # Whatever ended the loop: what was started to be written is written whole, and the
        # data pipeline's threads end.
        getattr(stream, "close", lambda: None)()
        checkpointer.wait()
        writer.flush()
    return state


def save(
    state: TrainState, checkpointer: Checkpointer, writer: EventFile, validate: Validate
) -> None:
    """Validates the averaged parameters and saves the state."""
    step = int(state.step)
    metrics = dict(validate(state.ema_params))
    writer.write_scalars(step, metrics)
    checkpointer.save(step, state, metrics)


def _every(step: int, period: int) -> bool:
    return period > 0 and step % period == 0


class _Trace:
    """Traces a few steps with jax's profiler, after the first of a run, which are not typical."""

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
        """Starts where it is time."""
        if self._first == step <= self._last:
            jax.profiler.start_trace(self._directory)
            self._running = True

    def after(self, step: int, metrics: Mapping[str, jax.Array]) -> None:
        """Stops where it is time, once the last of the steps is done."""
        if self._running and step == self._last:
            jax.block_until_ready(metrics)
            jax.profiler.stop_trace()
            self._running = False
            logging.info("profile of steps %d to %d in %s", self._first, step, self._directory)


class _Log:
    """The progress line, the metrics log and the watch for non-finite numbers.

    Metrics stay on the device until they are looked at, so that steps are dispatched without
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
        """Takes note of a dispatched step."""
        self._pending.append((step, metrics))
        self._num_steps += 1
        self._bar.update()
        # The next steps are dispatched while a step runs, but no further ahead: who asks for a
        # stop waits for all of them.
        if len(self._pending) > _STEPS_AHEAD:
            jax.block_until_ready(self._pending[-1 - _STEPS_AHEAD][1])

    def check_finite(self) -> None:
        """Waits for all steps so far; raises NonFiniteError naming the first bad one."""
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
        """Logs means and rates since the last call."""
        self.check_finite()
        seconds = time.perf_counter() - self._clock
        rate = self._num_steps / seconds
        scalars = {
            name: sum(values[name] for values in self._recent) / len(self._recent)
            for name in self._recent[0]
        }
        self._bar.set_postfix_str(f"loss {scalars['loss']:.4f}", refresh=False)
        scalars["images_per_second"] = rate * self._batch_size
        scalars["steps_per_second"] = rate
        hooks = self._hooks
        if hooks.learning_rate:
            scalars["learning_rate"] = float(hooks.learning_rate(step - 1))
        scalars.update(hooks.counts())
        if hooks.flops_per_step:
            scalars["flops_per_second"] = hooks.flops_per_step * rate
            if hooks.peak_flops:
                peak = hooks.peak_flops * jax.device_count()
                scalars["share_of_peak"] = scalars["flops_per_second"] / peak
        self._writer.write_scalars(step, scalars)
        self._recent.clear()
        self._reset_clock()

    @contextlib.contextmanager
    def pause(self) -> Iterator[None]:
        """A context whose time does not count as training."""
        if self._pending:  # what was dispatched does count
            jax.block_until_ready(self._pending[-1][1])
        begin = time.perf_counter()
        yield
        self._clock += time.perf_counter() - begin

    def _reset_clock(self) -> None:
        self._clock, self._num_steps = time.perf_counter(), 0
