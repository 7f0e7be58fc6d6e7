"""Upscaling on a Ray cluster, by actors with one network each on the devices of their host.

An actor takes a chunk of inputs, writes their outputs, whole or not at all, and returns records. If
it dies, others do its chunk again, image by image. An image at which actors die again and again
fails.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import os
import secrets
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

from absl import logging
from etils import epath

from sr3_jax import parallel
from sr3_jax.data import sources
from sr3_jax.inference import cascade, manifest, upscale_files
from sr3_jax.inference.inputs import UpscaleOptions
from sr3_jax.inference.super_resolver import SuperResolver
from sr3_jax.jobs import shared

_CHUNK = 64  # images of a chunk, which may all be done again
_MAX_DEATHS = 3  # of actors at one image
_NO_PROGRESS_SECONDS = 6 * 3600  # without any answer of an actor; then the job ends
_LOOPBACK = "127.0.0.1"
_PASSED_ON = ("JAX_", "XLA_", "LIBTPU_", "SR3_")  # prefixes of variables that workers get
_OBJECT_STORE_BYTES = 100 << 20  # of a cluster of this machine, for names and records


class ActorError(RuntimeError):
    """An actor could not start, or none answers."""


@dataclasses.dataclass(frozen=True)
class Work:
    """The work of an actor, or of this process: a network, the folder of outputs, and options."""

    network: cascade.Stage
    output: str
    options: UpscaleOptions

    def load(self) -> SuperResolver:
        """Loads the network onto this process's devices."""
        parallel.keep_compiled()
        return self.network.load()


class Upscaler:
    """The actor."""

    def __init__(self, work: Work) -> None:
        """Loads the network; `upscale` raises the errors of that."""
        self._work, self._failure = work, ""
        try:
            self._resolver = work.load()
        except Exception as error:  # any error must reach the user
            self._failure = f"{type(error).__name__}: {error}"

    def upscale(self, refs: Sequence[sources.FileRef]) -> list[manifest.Record]:
        """Upscales a chunk, which may be empty; after an error, image by image."""
        if self._failure:
            raise ActorError(f"a worker could not start: {self._failure}")
        records: list[manifest.Record] = []
        try:
            for record in upscale_files.upscale_files(
                self._resolver, refs, self._work.output, self._work.options
            ):
                records.append(record)
        except Exception as error:  # one image must not end the job of a million
            if len(refs) == 1:
                return [_failed(self._work, refs[0], f"{type(error).__name__}: {error}")]
            done = {record.input for record in records}
            for ref in refs:
                records += self.upscale([ref]) if ref.name not in done else []
        return records


def _failed(work: Work, ref: sources.FileRef, error: str) -> manifest.Record:
    made, seed = work.options.output_names(ref.name)[0], work.options.seed_of(ref.name)
    return manifest.Record(ref.name, made, "failed", error, seed=seed)


def run(
    work: Work,
    inputs: Sequence[sources.FileRef],
    stop: parallel.StopSignal,
    address: str | None = None,
    num_workers: int | None = None,
) -> Iterator[manifest.Record]:
    """Yields one record for each input, in no particular order.

    Args:
      work: what the actors make; all hosts must reach its folders.
      inputs: the images.
      stop: entered here, and checked every second.
      address: address of a cluster, or `auto` for that of this machine; None starts one of this
        machine alone, unless this process is connected to one.
      num_workers: number of actors; None for one on each host with TPUs, one for each GPU, or, if
        the cluster has neither, one on each host.

    Raises:
      ImportError: Ray is not installed.
      ActorError: an actor cannot load the network, or none has answered for six hours.
      StoppedError: a signal asked to stop.
    """
    with cluster(address) as ray, stop:  # in this order, since Ray handles SIGTERM as it starts
        each, count = _resources(ray)
        upscaler = ray.remote(**each)(Upscaler)
        actors = num_workers or count
        size = max(1, min(_CHUNK, -(-len(inputs) // actors)))
        refs = [sources.FileRef(ref.name, os.fspath(epath.Path(ref.path))) for ref in inputs]
        # Chunks that are left, and how many actors have died at each.
        left = collections.deque((refs[i : i + size], 0) for i in range(0, len(refs), size))
        free: list[Any] = []
        busy: dict[Any, tuple[Any, list[sources.FileRef], int]] = {}

        def give(actor: Any, chunk: list[sources.FileRef], deaths: int) -> None:
            busy[actor.upscale.remote(chunk)] = (actor, chunk, deaths)

        for _ in range(min(actors, len(left))):
            give(upscaler.remote(work), [], 0)  # it answers when the network is loaded
        answered = time.monotonic()
        while left or any(chunk for _, chunk, _ in busy.values()):
            while left and free:
                give(free.pop(), *left.popleft())
            for answer in ray.wait(list(busy), timeout=1.0)[0]:
                answered = time.monotonic()
                actor, chunk, deaths = busy.pop(answer)
                records: list[manifest.Record] = []
                try:
                    records = ray.get(answer)
                    free.append(actor)
                except ray.exceptions.RayTaskError as error:
                    raise error.cause from None
                except ray.exceptions.RayError as error:
                    deaths += 1
                    if deaths >= _MAX_DEATHS and not chunk:
                        raise ActorError(f"{deaths} workers died as they began: {error}") from error
                    give(upscaler.remote(work), [], 0 if chunk else deaths)
                    if deaths >= _MAX_DEATHS and len(chunk) == 1:
                        records = [_failed(work, chunk[0], f"{deaths} workers died at it")]
                    else:
                        left += [([ref], deaths) for ref in chunk]
                yield from records
            shared.check_signal(stop)
            if time.monotonic() - answered > _NO_PROGRESS_SECONDS:
                raise ActorError(f"no worker has answered for {_NO_PROGRESS_SECONDS // 3600} hours")


@contextlib.contextmanager
def cluster(address: str | None, **options: Any) -> Iterator[Any]:
    """Yields Ray, connected to a cluster; an existing connection is kept.

    A cluster of this machine alone listens on the loopback interface and asks for a token that only
    this process and its workers have. By default Ray listens on all interfaces and runs whatever it
    is sent.

    Args:
      address: address of a cluster, or `auto`; None starts one of this machine alone.
      **options: of `ray.init`, for a cluster of this machine.

    Raises:
      ImportError: Ray is not installed.
      ActorError: this version of Ray does not keep to the loopback interface.
    """
    # Set before the import: no reports of usage, and no upload of this folder.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    closed = {}
    if address is None and "ray" not in sys.modules:
        # The first makes Ray keep the loopback address that it is given, as on macOS.
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
            hint = "pip install 'sr3_jax[ray]'"
            raise ImportError(f"--engine=ray needs Ray ({error}): {hint}") from error
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
        closed = {"address": "local", "include_dashboard": False, "_node_ip_address": _LOOPBACK}
        given = {"num_cpus": os.cpu_count(), "object_store_memory": _OBJECT_STORE_BYTES, **options}
        ray.init(**closed, **quiet, **given)
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
    # Other machines get the settings of jax and of this project, and this package as it is here.
    variables = {k: v for k, v in os.environ.items() if k.startswith(_PASSED_ON)}
    package = epath.Path(__file__).parent.parent
    runtime_env = {"env_vars": variables, "py_modules": [str(package)]}
    ray.init(address=address, runtime_env=runtime_env, **quiet)


def _resources(ray: Any) -> tuple[dict[str, Any], int]:
    """Returns the resources of an actor, and how many actors there is room for."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if chips := [node["TPU"] for node in nodes if node.get("TPU")]:
        # All chips of a host, since a process that takes some of them locks the others.
        return {"num_cpus": 0, "resources": {"TPU": min(chips)}}, len(chips)
    if gpus := int(sum(node.get("GPU", 0) for node in nodes)):
        return {"num_cpus": 1, "num_gpus": 1}, gpus
    cores = [node["CPU"] for node in nodes if node.get("CPU")]
    return {"num_cpus": min(cores)}, len(cores)
