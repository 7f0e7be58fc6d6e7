"""One job for a folder: the second one ends at once and says who holds it.

On a disk the lock is the kernel's (`flock`), which lets go when its process dies, however it dies.
In a bucket, and on file systems without such locks, it is a file that its holder renews every few
seconds; a holder that has not renewed it for a while is taken for dead, without comparing clocks.
"""

import contextlib
import datetime
import errno
import fcntl
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator, Mapping

from absl import logging

from sr3_jax.data import storage

NAME = ".sr3.lock"

# Of locks that are renewed.
_RENEW_SECONDS = 10.0
_DEAD_SECONDS = 35.0
_SETTLE_SECONDS = 2.0

_NO_LOCKS_HERE = (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK)


class HeldError(RuntimeError):
    """Another job holds the folder."""


@contextlib.contextmanager
def hold(folder: str | os.PathLike[str], job: str) -> Iterator[None]:
    """Holds a folder, which is made where missing, as long as the context lasts.

    Args:
        folder: local or a URL.
        job: what is done there, for people to read: `training`.

    Raises:
        HeldError: another job holds it; the message says which, on which host, and since when.
        OSError: the folder cannot be written.
    """
    folder = os.path.expanduser(folder)
    path = os.path.join(folder, NAME)
    me = {
        "job": job,
        "host": socket.gethostname(),
        "process": os.getpid(),
        "since": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "token": secrets.token_hex(8),
    }
    with contextlib.ExitStack() as stack:
        if storage.is_url(path):
            stack.enter_context(_renewed(folder, path, me))
        else:
            missing = folder
            while missing and not os.path.isdir(missing):
                stack.callback(_remove_if_empty, missing)  # the deepest first
                missing = os.path.dirname(missing)
            os.makedirs(folder, exist_ok=True)
            stack.enter_context(_by_kernel(folder, path, me))
        yield


def _remove_if_empty(folder: str) -> None:
    with contextlib.suppress(OSError):
        os.rmdir(folder)


@contextlib.contextmanager
def _by_kernel(folder: str, path: str, me: Mapping[str, object]) -> Iterator[None]:
    while True:
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
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
        except BlockingIOError:
            with open(descriptor, "rb") as file:
                raise HeldError(_held(folder, file.read())) from None
        except OSError as error:
            os.close(descriptor)
            if error.errno not in _NO_LOCKS_HERE:
                raise
            with _renewed(folder, path, me):
                yield
            return
        # The holder before removed the file after it was opened here: this lock is of no file.
        if _is_file_at(descriptor, path):
            break
        os.close(descriptor)
    try:
        os.ftruncate(descriptor, 0)
        os.write(descriptor, json.dumps(me).encode())
        yield
    finally:
        # Before the lock goes: nobody else can have this file.
        with contextlib.suppress(OSError):
            os.remove(path)
        os.close(descriptor)


def _is_file_at(descriptor: int, path: str) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path, follow_symlinks=False))
    except FileNotFoundError:
        return False


@contextlib.contextmanager
def _renewed(folder: str, path: str, me: Mapping[str, object]) -> Iterator[None]:
    before = _read(path)
    if before:
        deadline = time.monotonic() + _DEAD_SECONDS
        logging.info("waiting to see whether the job that holds %s is alive", folder)
        while time.monotonic() < deadline:
            time.sleep(1.0)
            now = _read(path)
            if not now:
                break
            if now != before:
                raise HeldError(_held(folder, now))
        else:
            logging.warning("%s: the job that held it is gone: %s", folder, _who(before))
    storage.write_whole(path, json.dumps({**me, "renewed": 0}).encode())
    # Of two that find nobody at the same moment, the last to write has it.
    time.sleep(_SETTLE_SECONDS)
    now = _read(path)
    if not _is_mine(now, me):
        raise HeldError(_held(folder, now))
    ended = threading.Event()

    def renew() -> None:
        count = 0
        while not ended.wait(_RENEW_SECONDS):
            count += 1
            try:
                if not _is_mine(_read(path), me):
                    logging.error("%s: another job has taken over the folder", folder)
                    return
                storage.write_whole(path, json.dumps({**me, "renewed": count}).encode())
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


def _read(path: str) -> bytes:
    try:
        return storage.read(path)
    except FileNotFoundError:
        return b""


def _parsed(content: bytes) -> dict[str, object]:
    try:
        found = json.loads(content)
        return found if isinstance(found, dict) else {}
    except ValueError:
        return {}


def _is_mine(content: bytes, me: Mapping[str, object]) -> bool:
    return _parsed(content).get("token") == me["token"]


def _who(content: bytes) -> str:
    found = _parsed(content)
    if not found:
        return "a job that has just begun"
    return (
        f"{found.get('job')} on host {found.get('host')}, process {found.get('process')}, since "
        f"{found.get('since')}"
    )


def _held(folder: str, content: bytes) -> str:
    return (
        f"{storage.shown(folder)} is in use by {_who(content)}. Wait until that ends, end it, or "
        "give another folder"
    )
