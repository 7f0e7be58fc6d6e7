"""One job for a folder: the second one ends at once and says who holds it.

On a disk the lock is the kernel's (`flock`), which lets go when its process dies, however it dies.
In a bucket, and on file systems without such locks, it is a file that its holder renews every few
seconds; a holder that has not renewed it for a while is taken for dead, without comparing clocks.
"""

import contextlib
import datetime
import errno
import fcntl
import itertools
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping

from absl import logging

from sr3_jax.data import storage

NAME = ".sr3.lock"

# Times of locks that are renewed.
_RENEW_SECONDS = 10.0
_DEAD_SECONDS = 35.0
_SETTLE_SECONDS = 2.0

_NO_LOCKS_HERE = (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK)

_Holder = Mapping[str, object]  # who holds a lock; empty for nobody


class HeldError(RuntimeError):
    """Another job holds the folder."""


@contextlib.contextmanager
def hold(folder: str | os.PathLike[str], job: str, flag: str = "--workdir") -> Iterator[None]:
    """Holds a folder, which is made where missing, as long as the context lasts.

    Args:
      folder: local or a URL.
      job: name of the work there, such as `training`, for people to read.
      flag: flag of the command that gives the folder, or one that it lies in.

    Raises:
      HeldError: another job holds it; the message says which, on which host, and since when.
      OSError: the folder takes no files; see `storage.check_writable`.
    """
    storage.check_writable(folder, flag)
    folder = os.path.expanduser(folder)
    path = os.path.join(folder, NAME)
    me = {
        "job": job,
        "host": socket.gethostname(),
        "process": os.getpid(),
        "since": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "token": secrets.token_hex(8),
    }
    descriptor = None
    with contextlib.ExitStack() as stack:
        if not storage.is_url(path):
            missing = folder
            while missing and not os.path.isdir(missing):
                stack.callback(_try, os.rmdir, missing)  # the deepest first, and only empty ones
                missing = os.path.dirname(missing)
            os.makedirs(folder, exist_ok=True)
            descriptor = _lock(path)
        if descriptor is None:
            stack.enter_context(_renewed(path, me))
        else:
            stack.callback(os.close, descriptor)
            stack.callback(_try, os.remove, path)  # before it is closed: nobody else has this file
            os.ftruncate(descriptor, 0)
            os.write(descriptor, json.dumps(me).encode())
        yield


def _try(function: Callable[[str], object], path: str) -> None:
    with contextlib.suppress(OSError):
        function(path)


def _lock(path: str) -> int | None:
    """Opens and locks a file; returns its descriptor, or None if the file system has no locks."""
    while True:
        try:
            flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
            descriptor = os.open(path, flags, 0o666)
        except OSError as error:
            if error.errno not in (errno.ELOOP, errno.EISDIR):
                raise
            raise FileExistsError(
                f"{storage.shown(path)}, the lock of the folder, is a link or a folder, which this "
                "program never makes; remove it"
            ) from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(descriptor), os.stat(path, follow_symlinks=False)):
                return descriptor
        except FileNotFoundError:
            pass
        except OSError as error:
            os.close(descriptor)
            if isinstance(error, BlockingIOError):
                raise _held(path, _read(path)) from None
            if error.errno in _NO_LOCKS_HERE:
                return None
            raise
        # The holder before removed the file after it was opened here: this lock is of no file.
        os.close(descriptor)


@contextlib.contextmanager
def _renewed(path: str, me: _Holder) -> Iterator[None]:
    if before := _read(path):
        deadline = time.monotonic() + _DEAD_SECONDS
        logging.info("waiting to see whether the job that holds %s is alive", path)
        while (now := _read(path)) == before and time.monotonic() < deadline:
            time.sleep(1.0)
        if now == before:
            logging.warning("%s: the job that held it is gone: %s", path, _who(before))
        elif now:
            raise _held(path, now)
    _write(path, me, 0)
    # If two find nobody at the same moment, the last one to write has the lock.
    time.sleep(_SETTLE_SECONDS)
    if not _is_mine(now := _read(path), me):
        raise _held(path, now)
    ended = threading.Event()

    def renew() -> None:
        for count in itertools.count(1):
            if ended.wait(_RENEW_SECONDS):
                return
            try:
                if not _is_mine(_read(path), me):
                    logging.error("%s: another job has taken over the folder", path)
                    return
                _write(path, me, count)
            except OSError as error:
                logging.warning("%s cannot be renewed: %s", path, error)

    thread = threading.Thread(target=renew, name="lock", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        with contextlib.suppress(OSError):
            if _is_mine(_read(path), me):
                storage.remove(path)


def _write(path: str, me: _Holder, count: int) -> None:
    storage.write_whole(path, json.dumps({**me, "renewed": count}).encode())


def _read(path: str) -> _Holder:
    try:
        found = json.loads(storage.read(path))
    except (FileNotFoundError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _is_mine(holder: _Holder, me: _Holder) -> bool:
    return holder.get("token") == me["token"]


def _who(holder: _Holder) -> str:
    if not holder:
        return "a job that has just begun"
    job, host, process, since = map(holder.get, ("job", "host", "process", "since"))
    return f"{job} on host {host}, process {process}, since {since}"


def _held(path: str, holder: _Holder) -> HeldError:
    return HeldError(
        f"{storage.shown(os.path.dirname(path))} is in use by {_who(holder)}. Wait until that "
        "ends, end it, or give another folder"
    )
