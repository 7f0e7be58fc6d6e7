"""Released networks: those that come with the package, and those of the Hugging Face Hub.

A released network is a folder that is read wherever the workdir of a training run is:

    config.json          of its training, without paths
    weights.safetensors  the averaged parameters
    inference.json       how to sample; absent where that was not tuned
    calibration.json     intervals; absent where they were not calibrated
    README.md            the model card
"""

from __future__ import annotations

import contextlib
import logging
import re
import types
from collections.abc import Iterator

from etils import epath

from sr3_jax.data import storage

DEFAULT = "photos_4x"  # of upscaling
WEIGHTS = "weights.safetensors"
FILES = ("config.json", WEIGHTS, "inference.json", "calibration.json", "README.md")
HUB = "hf://"
_FOLDER = epath.Path(__file__).parent


def names() -> list[str]:
    """Returns the names of the networks that come with the package."""
    return sorted(path.parent.name for path in _FOLDER.glob(f"*/{WEIGHTS}"))


def locate(workdir: epath.PathLike) -> epath.Path:
    """Returns the folder of a network, which is downloaded where it is on the hub.

    Args:
      workdir: the workdir of a run, or the folder of a released network, local or a URL;
        `hf://USER/NAME` or `hf://USER/NAME@REVISION` of the hub; or one of `names`, unless
        there is a folder of that name.

    Raises:
      ImportError: huggingface_hub is not installed.
      FileNotFoundError: the hub has no such network, or cannot be reached.
      ValueError: the address is incomplete.
    """
    text = str(workdir)
    if _is_of_hub(text):
        return _fetched(text)
    folder = epath.Path(workdir).expanduser()
    return shipped(text) if text in names() and not folder.exists() else folder


def shipped(name: str) -> epath.Path:
    """Returns the folder of a network of `names`; raises ValueError if there is none."""
    if name not in names():
        known = ", ".join(names()) or "none"
        raise ValueError(
            f"no network {name!r} comes with this version of sr3_jax ({known} does); give the "
            f"workdir of a training run, or {HUB}USER/NAME"
        )
    return _FOLDER / name


def check_free(folder: epath.PathLike, flag: str, *, overwrite: bool = False) -> None:
    """Checks that a network may be written into a folder, which `flag` gives.

    Raises:
      FileExistsError: the folder is the workdir of a training run; or it has a network, and
        `overwrite` is false.
      OSError: it takes no files.
    """
    folder = epath.Path(folder)
    if (folder / "checkpoints").exists():
        raise FileExistsError(f"{flag}={folder} is the workdir of a training run; give another")
    there = [name for name in FILES if (folder / name).exists()]
    if there and not overwrite:
        fix = "give another folder" + (", or --overwrite" if flag == "--to" else "")
        raise FileExistsError(f"{flag}={folder} has {', '.join(there)}; {fix}")
    storage.check_writable(folder, flag)


def is_for_results(workdir: epath.PathLike) -> bool:
    """Returns whether `locate(workdir)` is a folder of the user, who may want results in it."""
    return not (_is_of_hub(str(workdir)) or storage.is_within(locate(workdir), _FOLDER))


def _is_of_hub(workdir: str) -> bool:
    return workdir.startswith("hf:/")  # epath makes one slash of two


def check_login(address: str) -> None:
    """Checks that `hf://USER/NAME` can be written to by the user who is logged in.

    Raises:
      ImportError: huggingface_hub is not installed.
      ValueError: the address is incomplete.
      RuntimeError: nobody is logged in, or the hub cannot be reached.
    """
    _repository(address)
    hub = _hub()
    with _named_failure(address, RuntimeError):
        hub.whoami()


def upload(folder: str, address: str, message: str, *, private: bool = False) -> None:
    """Uploads a folder to `hf://USER/NAME` as one commit; raises as `check_login`."""
    repository, _ = _repository(address)
    hub = _hub()
    with _named_failure(address, RuntimeError):
        hub.create_repo(repository, private=private, exist_ok=True)
        hub.upload_folder(repo_id=repository, folder_path=folder, commit_message=message)


def _fetched(address: str) -> epath.Path:
    """Returns the local copy of a network of the hub."""
    repository, revision = _repository(address)
    hub = _hub()
    with _named_failure(address, FileNotFoundError):
        found = epath.Path(
            hub.snapshot_download(repository, revision=revision, allow_patterns=list(FILES))
        )
    if missing := [name for name in FILES[:2] if not (found / name).exists()]:
        raise FileNotFoundError(
            f"{address} is no network of sr3_jax: it has no {' and no '.join(missing)}"
        )
    return found


def _repository(address: str) -> tuple[str, str | None]:
    """Returns USER/NAME and the revision, if any, of `hf://USER/NAME@REVISION`."""
    repository, separator, revision = address.removeprefix("hf:").lstrip("/").partition("@")
    is_named = re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", repository)
    if not is_named or (separator and not revision):
        raise ValueError(
            f"{address} is no address of a network; give {HUB}USER/NAME, or {HUB}USER/NAME@REVISION"
        )
    return repository, revision or None


def _hub() -> types.ModuleType:
    try:
        import huggingface_hub
    except ImportError as error:
        raise ImportError(
            f"{HUB} needs the package huggingface_hub: pip install 'sr3_jax[hub]'"
        ) from error
    for name in ("httpx", "httpx2"):  # which log every request
        logging.getLogger(name).setLevel(logging.WARNING)
    return huggingface_hub


@contextlib.contextmanager
def _named_failure(address: str, kind: type[Exception]) -> Iterator[None]:
    """Turns the hub's errors into one of `kind` that names the address."""
    try:
        yield
    except Exception as error:  # the hub's, the disk's, and those of two libraries for HTTP
        reason = " ".join(str(error).split())[:300].rstrip(".")
        raise kind(
            f"{address}: {reason}. Check name and network; what is private, and every upload, "
            "takes a login first: hf auth login"
        ) from error
