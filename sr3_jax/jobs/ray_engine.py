"""Upscaling on a Ray cluster: actors of Ray Data, each with one network on its host's devices.

Inputs go to the actors in chunks of names. What an actor makes it writes itself, whole or not at
all, and only rows come back, so that nothing is lost where an actor dies: Ray starts another one,
which does the chunk again, image by image; the one at which it dies again and again fails.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging as std_logging
import os
import secrets
import signal
import sys
import threading
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from absl import logging
from etils import epath

from sr3_jax.data import sources, storage
from sr3_jax.inference import files, manifest, reading
from sr3_jax.parallel import StoppedError

if TYPE_CHECKING:  # which imports this module
    from sr3_jax.jobs.upscaling import Work

_CHUNK = 64  # images that an actor is given at once, and at most done again
_MAX_DEATHS = 3  # of actors at one image
_NO_PROGRESS_SECONDS = 6 * 3600  # of a cluster without any row: a job that hangs must end
_LOOPBACK = "127.0.0.1"
_PASSED_ON = ("JAX_", "XLA_", "LIBTPU_", "SR3_")  # variables, to workers
_OBJECT_STORE_BYTES = 100 << 20  # of a cluster of this machine alone: only names and rows go there


class ActorError(RuntimeError):
    """An actor could not start."""


class Upscaler:
    """The actor."""

    def __init__(self, work: Work) -> None:
        """Loads the network; where that fails, every row says so."""
        self._work, self._failure = work, ""
        try:
            self._resolver = work.load()
        except Exception as error:  # whatever it is, it must reach the user
            self._failure = f"{type(error).__name__}: {error}"

    def __call__(self, batch: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
        """From chunks to rows, both as JSON."""
        rows = []
        for chunk in batch["chunk"]:
            refs = [sources.FileRef(*pair) for pair in json.loads(str(chunk))]
            for record in self._upscale(refs):
                rows.append(json.dumps(dataclasses.asdict(record)))
        return {"record": rows}

    def _upscale(self, refs: list[sources.FileRef]) -> Iterator[manifest.Record]:
        if self._failure:
            yield from (self._record(ref, "broken", self._failure) for ref in refs)
            return
        output = epath.Path(self._work.output)
        mark = _Mark(output, "/".join(ref.name for ref in refs))
        if not mark.deaths:
            with mark:
                yield from self._together(refs)
            return
        for ref in refs:
            its = _Mark(output, ref.name)
            if its.deaths >= _MAX_DEATHS - 1:  # the first was the chunk's
                yield self._record(ref, "failed", f"{_MAX_DEATHS} workers died at it")
                continue
            with its:
                yield from self._together([ref])
        mark.remove()

    def _together(self, refs: list[sources.FileRef]) -> Iterator[manifest.Record]:
        done = set()
        try:
            for record in files.upscale_files(
                self._resolver, refs, self._work.output, self._work.options
            ):
                done.add(record.input)
                yield record
        except Exception as error:  # one image must not end the job of a million
            for ref in refs:
                if ref.name in done:
                    continue
                if len(refs) > 1:
                    yield from self._together([ref])
                else:
                    yield self._record(ref, "failed", f"{type(error).__name__}: {error}")

    def _record(self, ref: sources.FileRef, status: str, error: str = "") -> manifest.Record:
        seed = reading.seed_of(ref.name, self._work.options.seed)
        return manifest.Record(ref.name, reading.output_name(ref.name), status, error, seed=seed)


class _Mark:
    """A file that is there while something is done, and so after an actor has died at it."""

    def __init__(self, output: epath.Path, name: str) -> None:
        self._path = output / ".manifest" / f"{zlib.crc32(name.encode()):08x}.running"
        self.deaths = int(self._path.read_text()) if self._path.exists() else 0

    def __enter__(self) -> None:
        storage.write_whole(str(self._path), str(self.deaths + 1).encode())

    def __exit__(self, *_: object) -> None:
        self.remove()

    def remove(self) -> None:
        self._path.unlink(missing_ok=True)


def run(
    work: Work,
    inputs: Sequence[sources.FileRef],
    address: str | None = None,
    num_workers: int | None = None,
) -> Iterator[manifest.Record]:
    """Yields one record for each input, in no particular order.

    Args:
      work: what actors do; its folders must be reachable from all hosts.
      inputs: the images.
      address: of a cluster, `auto` for the one this machine belongs to; None starts one of this
        machine alone, unless this process is connected to one.
      num_workers: actors; None for one on each host with TPUs, one for each GPU, or, of a cluster
        without either, one on each host.

    Raises:
      ImportError: Ray is not installed.
      ActorError: the network cannot be loaded there.
      StoppedError: a signal asked to stop.
    """
    with contextlib.ExitStack() as stack:
        ray = stack.enter_context(cluster(address))
        from ray import data

        yield from _rows(ray, data, work, inputs, num_workers)


def _rows(
    ray: Any, data: Any, work: Work, inputs: Sequence[sources.FileRef], num_workers: int | None
) -> Iterator[manifest.Record]:
    """See `run`."""
    try:
        each, count = _resources(ray)
        std_logging.getLogger("ray.data").setLevel(std_logging.CRITICAL)  # what is told by rows
        context = data.DataContext.get_current()
        context.enable_progress_bars = False
        context.execution_no_progress_timeout_s = _NO_PROGRESS_SECONDS
        context.issue_detectors_config.detectors = []
        actors = num_workers or count
        size = max(1, min(_CHUNK, -(-len(inputs) // actors)))
        pairs = [(ref.name, os.fspath(epath.Path(ref.path))) for ref in inputs]
        chunks = [{"chunk": json.dumps(pairs[i : i + size])} for i in range(0, len(pairs), size)]
        rows = data.from_items(chunks, override_num_blocks=len(chunks)).map_batches(
            Upscaler,
            batch_size=1,
            fn_constructor_args=(work,),
            compute=data.ActorPoolStrategy(size=min(actors, len(chunks))),
            **each,
        )
        with _stopping_at_once():
            for row in rows.iter_rows():
                record = manifest.Record(**json.loads(row["record"]))
                if record.status == "broken":
                    raise ActorError(f"a worker could not start: {record.error}")
                yield record
    except _Stop as stop:
        message = "the same command does what is missing"
        raise StoppedError(stop.number, message) from None


class _Stop(BaseException):
    """Not an Exception, so that nothing of Ray's swallows it."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = signal.Signals(number)


@contextlib.contextmanager
def _stopping_at_once() -> Iterator[None]:
    """Signals end the wait for the next row, which may be hours away.

    Set when Ray runs, which takes SIGTERM itself.
    """

    def stop(number: int, _: object) -> None:
        for each in before:  # a second one must not break the shutdown
            signal.signal(each, signal.SIG_IGN)
        raise _Stop(number)

    main = threading.current_thread() is threading.main_thread()
    numbers = (signal.SIGINT, signal.SIGTERM) if main else ()
    before = {number: signal.signal(number, stop) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def cluster(address: str | None, **options: Any) -> Iterator[Any]:
    """Yields Ray, connected to a cluster; one that this process is connected to already is kept.

    A cluster of this machine alone listens on the loopback interface and asks for a token, which
    this process and its workers alone have. Ray itself would listen on all interfaces, and run
    whatever anyone sends it.

    Args:
      address: of a cluster, or `auto`; None starts one of this machine alone.
      **options: of `ray.init`, for a cluster of this machine.

    Raises:
      ImportError: Ray is not installed.
      ActorError: this version of Ray does not keep to the loopback interface.
    """
    # Before it is imported: it would tell its makers about each use, and upload this folder.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    closed = {}
    if address is None and "ray" not in sys.modules:
        # The first has Ray keep the loopback address that it is given, as it does on macOS.
        closed = {
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
        }
    before = {name: os.environ.get(name) for name in closed}
    os.environ.update(closed)
    try:
        try:
            import ray
        except ImportError as error:
            raise ImportError(
                f"--engine=ray needs Ray ({error}): pip install 'ray[data]'"
            ) from error
        if ray.is_initialized():
            yield ray
            return
        try:
            _start(ray, address, **options)
            yield ray
        finally:
            ray.shutdown()
    finally:
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value


def _start(ray: Any, address: str | None, **options: Any) -> None:
    quiet = {"log_to_driver": False, "logging_level": "ERROR"}
    if address is None:
        given = {"num_cpus": os.cpu_count(), **options}
        ray.init(
            address="local",
            object_store_memory=_OBJECT_STORE_BYTES,
            include_dashboard=False,
            _node_ip_address=_LOOPBACK,
            **quiet,
            **given,
        )
        if any(node["NodeManagerAddress"] != _LOOPBACK for node in ray.nodes()):
            raise ActorError(
                f"Ray {ray.__version__} listens on all interfaces of this machine, as it does "
                "where it was imported before this job; use --engine=local"
            )
        return
    if os.environ.get("RAY_AUTH_MODE") != "token":
        logging.warning(
            "RAY_AUTH_MODE is not `token`: unless a firewall keeps others from its ports, anyone "
            "can run programs on the cluster at %s (docs/upscaling.md)",
            address,
        )
    # To other machines: jax's settings and this project's, and this package as it is here.
    variables = {k: v for k, v in os.environ.items() if k.startswith(_PASSED_ON)}
    package = epath.Path(__file__).parent.parent
    runtime_env = {"env_vars": variables, "py_modules": [str(package)]}
    ray.init(address=address, runtime_env=runtime_env, **quiet)


def _resources(ray: Any) -> tuple[dict[str, Any], int]:
    """What an actor is given, and how many there are room for."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if chips := [node["TPU"] for node in nodes if node.get("TPU")]:
        # All of a host's: a process that takes some of them locks the others.
        return {"num_cpus": 0, "resources": {"TPU": min(chips)}}, len(chips)
    if gpus := int(sum(node.get("GPU", 0) for node in nodes)):
        return {"num_cpus": 1, "num_gpus": 1}, gpus
    cores = [node["CPU"] for node in nodes if node.get("CPU")]
    return {"num_cpus": min(cores)}, len(cores)
