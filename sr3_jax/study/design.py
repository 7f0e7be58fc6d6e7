"""A study: its pictures, and the pairs that each subject sees, with their order and sides.

A study is a folder with `study.json` and `images/`, whose file names say nothing of methods. Trial
t of all trials, counted over subjects, shows image t mod N (in an order that the seed shuffles); at
each visit an image gets the next pair of methods, and after each pair once, the sides change. So
after any number of subjects images, pairs and sides have been shown equally often, but for one.
"""

from __future__ import annotations

import dataclasses
import datetime
import itertools
import json
import math
import secrets
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from etils import epath
from jaxtyping import UInt8

from sr3_jax.data import folders, image_files, pairs, resampling, storage

REFERENCE = "reference"
QUESTIONS = {
    1: "Which of the two images is a better high quality version of the low resolution image in "
    "the middle?",
    2: "Which image would you guess is from a camera?",
}
CONSENT = (
    "In this study you compare pairs of pictures. It takes about {minutes}. You may stop "
    "at any time, and withdraw what you have answered. What is kept: your answers, their times, "
    "the size of your window, and a random code in place of your name, which a cookie keeps in "
    "your browser. Nothing is sent to anybody but the server of this study."
)
FILE = "study.json"
_IMAGES = "images"
_VERSION = 1
_DEGRADED = "degraded"
_BLOCK = 12  # pixels a side that a degraded picture has in place of each


@dataclasses.dataclass(frozen=True)
class Options:
    """How a study is made.

    Attributes:
      task: 1, with the low resolution in the middle, or 2, without (the paper's).
      seconds: how long a pair is shown; 0: until it is answered.
      trials: pairs of a subject, without practice and checks; 0: all pictures, 50 at most.
      pairs: `reference`, each method against the reference, for fool rates; `all`, also methods
        against each other.
      practice: trials before, whose answers are told.
      checks: trials between the others whose answer is plain; who misses more than
        `most_failed_checks` is left out of results.
      most_failed_checks: see `checks`.
      break_every: trials between rests; 0: none.
      scale: pixels of the screen for each pixel of a picture, a side.
      invitations: number of addresses, each for one subject; 0: the page is open to all.
      until: last day (ISO 8601) on which answers are taken; empty: no end.
      title: heading of the page.
      consent: text that subjects agree to; empty: `CONSENT`.
      seed: of order, sides and assignment.
    """

    task: Literal[1, 2] = 2
    seconds: int | float = 3.0
    trials: int = 0
    pairs: Literal["reference", "all"] = "reference"
    practice: int = 2
    checks: int = 4
    most_failed_checks: int = 1
    break_every: int = 25
    scale: int = 1
    invitations: int = 0
    until: str = ""
    title: str = "Which picture?"
    consent: str = ""
    seed: int = 0

    def __post_init__(self):
        at_least = {"trials": 0, "practice": 0, "checks": 0, "most_failed_checks": 0}
        at_least |= {"break_every": 0, "scale": 1, "invitations": 0, "seconds": 0}
        for name, least in at_least.items():
            if not least <= (given := getattr(self, name)) < math.inf:
                raise ValueError(f"{name} = {given}; it must be at least {least}")
        if self.task not in QUESTIONS:
            raise ValueError(f"task = {self.task}; give 1 or 2")
        if self.pairs not in ("reference", "all"):
            raise ValueError(f"pairs = {self.pairs!r}; give reference or all")
        if self.until:
            try:
                datetime.date.fromisoformat(self.until)
            except ValueError as error:
                raise ValueError(f"until = {self.until!r}; give a day as 2026-12-31") from error


class Trial(NamedTuple):
    """What is shown at once.

    Attributes:
      kind: `practice`, `check` or `main`.
      image: name of the picture.
      left, right: the methods, or `reference`, or `degraded`.
    """

    kind: str
    image: str
    left: str
    right: str

    @property
    def expected(self) -> str:
        """The side that a careful subject chooses; empty where nothing is expected."""
        if self.kind == "main":
            return ""
        return "left" if self.left == REFERENCE else "right"


@dataclasses.dataclass(frozen=True)
class Study:
    """A study that was made.

    Attributes:
      folder: where it lies.
      options: how it was made.
      methods: names of the methods.
      files: file of each picture, by its name and method; `input` is that in the middle.
      sizes: width and height of each picture.
      images: names of the pictures of main trials, in the shuffled order.
      practice_images: names of the pictures of practice, then of checks.
      codes: of invited subjects; empty: everybody is let in.
      identity: random; browsers keep a cookie of this name.
    """

    folder: epath.Path
    options: Options
    methods: tuple[str, ...]
    files: Mapping[str, Mapping[str, str]]
    sizes: Mapping[str, tuple[int, int]]
    images: tuple[str, ...]
    practice_images: tuple[str, ...]
    codes: tuple[str, ...]
    identity: str = ""

    @property
    def alternatives(self) -> list[tuple[str, str]]:
        """The pairs of methods that main trials show."""
        found = [(REFERENCE, method) for method in self.methods]
        if self.options.pairs == "all":
            found += itertools.combinations(self.methods, 2)
        return found

    @property
    def num_trials(self) -> int:
        """Number of main trials of a subject."""
        return min(self.options.trials or 50, len(self.images))

    @property
    def duration(self) -> str:
        """Roughly how long a subject takes, such as `5 minutes`."""
        count = self.num_trials + self.options.practice + self.options.checks
        minutes = math.ceil(count * (max(self.options.seconds, 3.0) + 2.0) / 60)
        return f"{minutes} minute{'s' * (minutes != 1)}"

    def trials(self, number: int) -> list[Trial]:
        """Returns the trials of a subject, in order; `number` counts subjects from 0."""
        pairs_, count = self.alternatives, self.num_trials
        main = []
        for t in range(number * count, (number + 1) * count):
            visit, place = divmod(t, len(self.images))
            turn, pair = divmod(visit + place, len(pairs_))
            # Sides also change from pair to pair, so that few trials of a subject have both.
            main.append(self._trial("main", self.images[place], pairs_[pair], (turn + pair) % 2))
        rng = np.random.default_rng([self.options.seed, number])
        rng.shuffle(main)
        plain = [
            self._trial("practice", name, (REFERENCE, _DEGRADED), int(side))
            for name, side in zip(
                self.practice_images, rng.permuted(_alternate(self.practice_images)), strict=True
            )
        ]
        practice, checks = plain[: self.options.practice], plain[self.options.practice :]
        # Spread over the study, each at a place of its own share.
        for k in reversed(range(len(checks))):
            edges = np.linspace(0, len(main), len(checks) + 1).astype(int)
            at = int(rng.integers(edges[k], edges[k + 1] + 1))
            main.insert(at, checks[k]._replace(kind="check"))
        return practice + main

    def _trial(self, kind: str, image: str, pair: Sequence[str], swapped: int) -> Trial:
        return Trial(kind, image, *(reversed(pair) if swapped else pair))

    @property
    def is_over(self) -> bool:
        """Whether its last day is gone, by the clock of this machine."""
        until = self.options.until
        return bool(until) and datetime.date.today() > datetime.date.fromisoformat(until)


def _alternate(names: Sequence[str]) -> list[int]:
    return [k % 2 for k in range(len(names))]


def make(
    folder: epath.PathLike,
    reference: str,
    outputs: Mapping[str, str],
    low_resolution: str = "",
    options: Options = Options(),  # noqa: B008  (frozen)
) -> Study:
    """Makes a study of folders of pictures, which are matched by name, whole or not at all.

    Args:
      folder: for the study; it must not exist, or be empty.
      reference: folder of photographs.
      outputs: folders of outputs by the name of the method.
      low_resolution: folder of the inputs, for task 1; they are shown enlarged by bicubic.
      options: how.

    Raises:
      FileExistsError: there is something in the folder.
      ValueError: pictures have no partner, cannot be read, or have other sizes; there are too few.
    """
    folder = epath.Path(storage.absolute(folder))
    _check(folder, outputs, low_resolution, options)
    given = {REFERENCE: reference, **outputs}
    if low_resolution:
        given["input"] = low_resolution
    sources = {name: folders.folder(epath.Path(path)) for name, path in given.items()}
    matched = dict(zip(given, pairs.match(*sources.values()), strict=True))
    names = [ref.name for ref in sources[REFERENCE]]
    plain, main = _divided(names, options)
    # Under another name until it is whole.
    partial = folder.with_name(f".{folder.name}.partial")
    if partial.exists():
        partial.rmtree()
    (partial / _IMAGES).mkdir(parents=True)
    files, sizes = {}, {}
    try:
        for i, name in enumerate(names):
            pictures = _pictures({key: images[i] for key, images in matched.items()}, name in plain)
            height, width, _ = pictures[REFERENCE].shape
            # Names that tell subjects nothing.
            files[name] = {key: f"{secrets.token_hex(10)}.png" for key in pictures}
            sizes[name] = width, height
            for key, pixels in pictures.items():
                (partial / _IMAGES / files[name][key]).write_bytes(image_files.encode_image(pixels))
    except BaseException:
        partial.rmtree()
        raise
    codes = tuple(secrets.token_urlsafe(9) for _ in range(options.invitations))
    study = Study(
        folder, options, tuple(outputs), files, sizes, main, plain, codes, secrets.token_hex(6)
    )
    (partial / FILE).write_text(json.dumps(_as_json(study), indent=1) + "\n")
    if folder.exists():
        folder.rmdir()  # which is empty
    partial.rename(folder)
    return study


def _check(
    folder: epath.Path, outputs: Mapping[str, str], low_resolution: str, options: Options
) -> None:
    """Raises as `make`, before anything is read."""
    if options.until and datetime.date.fromisoformat(options.until) < datetime.date.today():
        raise ValueError(f"until = {options.until!r} is over; give a day to come")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"{folder} exists already; give a folder that does not")
    for reserved in {"input", REFERENCE, _DEGRADED} & outputs.keys():
        raise ValueError(f"a method cannot be called {reserved!r}; give it another name")
    if not outputs:
        raise ValueError("there is no method; give the folder of at least one")
    if (options.task == 1) != bool(low_resolution):
        needs = "shows the low resolution, and needs" if options.task == 1 else "does not take"
        raise ValueError(f"task {options.task} {needs} a folder of low resolutions")


def _divided(names: Sequence[str], options: Options) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Returns the pictures of practice and checks, and those of main trials, both shuffled.

    Raises:
      ValueError: there are too few.
    """
    num_plain = options.practice + options.checks
    if len(names) <= num_plain:
        raise ValueError(
            f"{len(names)} pictures are too few: {num_plain} are taken for practice and checks, "
            "and subjects compare others; give more pictures, or fewer of those"
        )
    if options.trials > len(names) - num_plain:
        raise ValueError(
            f"trials = {options.trials}, but no subject sees a picture twice and "
            f"{len(names) - num_plain} are left after practice and checks"
        )
    order = np.random.default_rng(options.seed).permutation(len(names))
    shuffled = tuple(names[i] for i in order)
    return shuffled[:num_plain], shuffled[num_plain:]


def _pictures(refs: Mapping[str, Any], is_plain: bool) -> dict[str, UInt8[np.ndarray, "_h _w 3"]]:
    """Reads what is shown of a picture; raises ValueError if sizes differ."""
    pictures = {
        key: np.ascontiguousarray(image_files.to_8_bits(ref.read().image))
        for key, ref in refs.items()
    }
    shape = pictures[REFERENCE].shape
    if "input" in pictures:
        pictures["input"] = _enlarged(pictures["input"], shape[:2])
    for key, pixels in pictures.items():
        if pixels.shape != shape:
            raise ValueError(
                f"{refs[REFERENCE].name}: {key} is {pixels.shape[1]}x{pixels.shape[0]}, and the "
                f"reference {shape[1]}x{shape[0]}; give pictures of one size"
            )
    if not is_plain:
        return pictures
    kept = {key: pictures[key] for key in (REFERENCE, "input") if key in pictures}
    return {**kept, _DEGRADED: _degraded(pictures[REFERENCE])}


def _as_json(study: Study) -> dict[str, Any]:
    values = {field.name: getattr(study, field.name) for field in dataclasses.fields(study)}
    del values["folder"]
    return {"version": _VERSION, **values, "options": dataclasses.asdict(study.options)}


def load(folder: epath.PathLike) -> Study:
    """Reads a study.

    Raises:
      FileNotFoundError: the folder has none.
      ValueError: the file is damaged, or of another version.
    """
    path = epath.Path(storage.absolute(folder)) / FILE
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist; make a study by `sr3 study new`")
    try:
        values = json.loads(path.read_text())
        version = values.pop("version")
        if version != _VERSION:
            raise ValueError(f"it is of version {version}, and this program reads {_VERSION}")
        values["options"] = Options(**values["options"])
        values["sizes"] = {name: tuple(size) for name, size in values["sizes"].items()}
        for key in ("methods", "images", "practice_images", "codes"):
            values[key] = tuple(values[key])
        return Study(path.parent, **values)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error


def _enlarged(
    low: UInt8[np.ndarray, "h w 3"], size: tuple[int, int]
) -> UInt8[np.ndarray, "h2 w2 3"]:
    scale = size[0] / low.shape[0]
    large = resampling.resize(np.float32(low[None]), scale, size)[0]
    return np.rint(large.clip(0, 255)).astype(np.uint8)


def _degraded(pixels: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "h w 3"]:
    """Returns a picture in blocks, which nobody takes for a photograph."""
    rows, columns = (np.arange(n) // _BLOCK * _BLOCK for n in pixels.shape[:2])
    return pixels[rows][:, columns]
