"""Generation by a cascade, stage by stage into files, by jobs that can be stopped and shared.

The comment of each file holds the digest of its stage's fingerprint. So images of another
fingerprint, and files of other programs, are known apart from those that are done.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath
from jaxtyping import UInt8

from sr3_jax import parallel
from sr3_jax.config import Config, cascades, changed, image_sets, with_sampling
from sr3_jax.data import image_files, resumable, storage
from sr3_jax.evaluation import neighbours
from sr3_jax.evaluation.outputs import Files, file_of
from sr3_jax.evaluation.report import grids
from sr3_jax.inference import cascade
from sr3_jax.jobs import features, shared

_COMMENT = "made by recipe "  # before the digest in each PNG; images are found again by it
_BESIDE = ("grid.png", "stages.png", "labels.csv", "report.md")  # the other files written
_GRID, _STAGES = 64, 3  # images in grid.png and rows of stages.png, at most
_COMPARED, _SHOWN = 64, 20_000  # generated images, and training images they are compared with
_MOST_COLUMNS = 10  # classes with a column in grid.png


@dataclasses.dataclass(frozen=True)
class GenerateOptions:
    """Which images are generated, and which existing ones are replaced.

    Attributes:
      num_images: number of images, 1 to a million.
      labels: their classes in turn; empty for all classes of the networks.
      seed: seed of all noise.
      overwrite: replaces all existing images.
      renew: replaces existing images that were made in another way; otherwise they are an error.
    """

    num_images: int
    labels: tuple[int, ...] = ()
    seed: int = 0
    overwrite: bool = False
    renew: bool = False

    def __post_init__(self):
        if self.num_images < 1:
            raise ValueError(f"num_images = {self.num_images}; it must be at least 1")
        if self.num_images > 10**6:
            raise ValueError(
                f"num_images = {self.num_images}, more than the million that names have digits for"
            )


def stages_of(config: cascades.Cascade, guidance: float | None = None) -> list[cascade.Stage]:
    """Opens the stages of a cascade's config (configs/cascade_ffhq_1024.py).

    Args:
      config: config of the cascade.
      guidance: scale of all class-conditional stages; None for that of each.

    Raises:
      FileNotFoundError: a stage is missing.
      ValueError: guidance is given, and no stage is class-conditional.
    """
    stages = []
    for section in config.stages:
        stage = cascade.open_stage(section.workdir, section.checkpoint, **section.sampling)
        if guidance is not None and stage.num_classes:
            guided = with_sampling(stage.config, {"guidance": float(guidance)})
            stage = dataclasses.replace(stage, config=guided)
        stages.append(stage)
    if guidance is not None and not any(stage.num_classes for stage in stages):
        raise ValueError(f"guidance = {guidance}, but no stage knows classes; leave it out")
    return stages


def measure_of(
    config: cascades.Cascade, stages: Sequence[cascade.Stage]
) -> features.GeneratedMetrics | None:
    """Returns what to measure of the last stage's images; None if nothing."""
    if not config.evaluation.feature_metrics:
        return None
    values = {
        f.name: getattr(config.evaluation, f.name) for f in dataclasses.fields(config.evaluation)
    }
    tables = values.pop("paper_tables")
    last = stages[-1].config
    evaluation = dataclasses.replace(last.evaluation, **values, image_size=0)
    return features.GeneratedMetrics(dataclasses.replace(last, evaluation=evaluation), tables)


def evaluate(config: Config, workdir: epath.Path) -> None:
    """Generates images by a network without a source, and compares them with training images.

    Writes into `workdir/evaluation`: `config.evaluation.num_images` images (64 if that is 0),
    `grid.png`, `neighbours.png` (`evaluation.neighbours`), and `report.md` if the config asks for
    FID. Images of the same weights and sampling are not made again.
    """
    stage = cascade.open_stage(workdir, config=config)
    options = GenerateOptions(config.evaluation.num_images or _GRID, seed=config.seed, renew=True)
    measure, given = None, config.evaluation
    if given.feature_metrics:
        measured = changed(config, {"evaluation.fid_reference": given.fid_reference or "train"})
        tables = (given.paper_table,) if given.paper_table else ()
        measure = features.GeneratedMetrics(measured, tables)
    generate([stage], workdir / "evaluation", options, measure)
    if jax.process_index() == 0:
        images = Files(workdir / "evaluation" / str(stage.image_size), range(options.num_images))
        _compare(config, workdir, images)
    parallel.wait_for_all()


def _compare(config: Config, workdir: epath.Path, images: Files) -> None:
    """Draws `neighbours.png`: images beside the training images that they are nearest to."""
    found = neighbours.compare(
        np.stack([images[k] for k in range(min(_COMPARED, len(images)))]),
        image_sets.shown_in_training(config, _SHOWN, workdir / shared.INDEX),
        image_sets.held_out_images(config, _COMPARED, workdir / shared.INDEX),
        mirror=config.train.flip,
    )
    grids.save(found.picture(), workdir / "evaluation" / "neighbours.png")
    print(found)


def generate(
    stages: Sequence[cascade.Stage],
    output: epath.Path,
    options: GenerateOptions,
    measure: features.GeneratedMetrics | None = None,
) -> None:
    """Makes the images that are missing, stage by stage; then draws and measures them.

        OUTPUT/64/000012.png      the 13th image as the stage that makes 64 pixels made it
        OUTPUT/1024/000012.png    as the last one did
        OUTPUT/grid.png           the first ones; stages.png: some at all sizes
        OUTPUT/labels.csv         the class of each, of class-conditional networks
        OUTPUT/report.md          FID and Inception score, if they are measured

    Files are written whole or not at all, and image k depends on seed, k and its label alone. So
    the same command goes on where it was stopped, on any number of processes and devices, and may
    ask for more images. Networks are loaded one after the other.

    Args:
      stages: see `stages_of`.
      output: the folder.
      options: which images.
      measure: metrics of the last stage's images; see `measure_of`.

    Raises:
      ValueError: stages do not fit together, or the folder has images made in another way; raised
        before anything is sampled.
      StoppedError: a signal asked to stop.
    """
    output = epath.Path(storage.absolute(output))
    cascade.check(stages, options.labels)
    if measure is not None:
        features.check_generated(measure, options.num_images)
    folders = [output / str(stage.image_size) for stage in stages]
    made_by = _fingerprints(stages, options)
    numbers = range(jax.process_index(), options.num_images, jax.process_count())
    with shared.holding(output, "generation", "--output"):
        if jax.process_index() == 0:
            _prepare(output, folders, made_by, options)
        parallel.wait_for_all()
        with parallel.StopSignal(alone=True) as stop:
            for i, folder in enumerate(folders):
                made = set() if options.overwrite else _survey(folder, numbers, made_by[i])[0]
                if made:
                    print(f"{len(made)} of {len(numbers)} images are in {folder}")
                if missing := [k for k in numbers if k not in made]:
                    comment = _COMMENT + made_by[i].digest
                    _make(stages, i, missing, output, options, comment, stop)
        parallel.wait_for_all()
        if jax.process_index() == 0:
            _show(stages, folders, output, options)
            if measure is not None:
                last = Files(folders[-1], range(options.num_images))
                features.report_generated(measure, stages, last, output)


def _fingerprints(
    stages: Sequence[cascade.Stage], options: GenerateOptions
) -> list[resumable.Fingerprint]:
    """Returns the fingerprint of each stage's images, which includes all stages before it."""
    values: dict[str, Any] = {"seed": options.seed}
    if stages[0].num_classes:
        values["labels"] = list(options.labels) or "all in turn"
    older, made_by = {}, []
    for number, stage in enumerate(stages, 1):
        own = stage.fingerprint()
        values |= {f"stage_{number}.{key}": value for key, value in own.values.items()}
        older |= {f"stage_{number}.{key}": value for key, value in own.older.items()}
        made_by.append(dataclasses.replace(own, values=dict(values), older=dict(older)))
    return made_by


def _prepare(
    output: epath.Path,
    folders: Sequence[epath.Path],
    made_by: Sequence[resumable.Fingerprint],
    options: GenerateOptions,
) -> None:
    """Checks that only files of this program would be replaced; then keeps the fingerprints.

    Raises:
      ValueError: there are images made in another way, or files of other programs; raised before
        anything is touched.
    """
    anew = []
    for folder, fingerprint in zip(folders, made_by, strict=True):
        if options.overwrite or (options.renew and not fingerprint.fits(folder)):
            anew.append(folder)
            continue
        fingerprint.check(folder)
        if unknown := _survey(folder, range(options.num_images), fingerprint)[1]:
            raise ValueError(
                f"{len(unknown)} files in {folder} are not images that this program made there, or "
                f"are damaged: {shared.listed(unknown)}. Move them, give another folder, or "
                "--overwrite to make them anew"
            )
    if not (any(map(resumable.has_fingerprint, folders)) or options.overwrite or options.renew):
        if found := [name for name in _BESIDE if (output / name).exists()]:
            raise ValueError(
                f"{output / found[0]} would be replaced, which this program did not write; give "
                "another folder, or --overwrite to replace it"
            )
    for folder, fingerprint in zip(folders, made_by, strict=True):
        resumable.remove_partials(folder)
        # A folder of an older version stays one: its images have no comments.
        if folder in anew or not _is_older(folder):
            fingerprint.keep(folder)


def _survey(
    folder: epath.Path, numbers: Sequence[int], fingerprint: resumable.Fingerprint
) -> tuple[set[int], dict[str, str]]:
    """Returns the numbers of the finished images, and what is wrong with files of other programs.

    Images of another fingerprint are in neither: they are made anew.
    """
    there, is_older = resumable.existing(folder), _is_older(folder)
    wanted, made, unknown = [k for k in numbers if file_of(k) in there], set(), {}

    def comment(k: int) -> str | Exception:
        try:
            return image_files.comment_of(storage.read(str(folder / file_of(k))))
        except (image_files.BadImageError, OSError) as error:
            return error

    found = resumable.in_threads(comment, wanted, ahead=256)
    for k, said in zip(wanted, found, strict=True):
        if isinstance(said, Exception):
            unknown[file_of(k)] = str(said)
        elif said == _COMMENT + fingerprint.digest or (is_older and not said.startswith(_COMMENT)):
            made.add(k)
        elif not said.startswith(_COMMENT):
            unknown[file_of(k)] = "it does not say that it was made here"
    return made, unknown


def _is_older(folder: epath.Path) -> bool:
    """Returns whether images were made by a version that wrote no comments."""
    values = resumable.read_fingerprint(folder)
    return values is not None and not any(key.endswith("network") for key in values)


def _make(
    stages: Sequence[cascade.Stage],
    index: int,
    numbers: Sequence[int],
    output: epath.Path,
    options: GenerateOptions,
    comment: str,
    stop: parallel.StopSignal,
) -> None:
    """Makes the images of these numbers in one stage, from those of the stage before."""
    stage, before = stages[index], stages[index - 1] if index else None
    network, devices = stage.load(), jax.local_device_count()
    size = -(-network.batch_size // devices) * devices
    low = before.image_size if before else stage.image_size

    def read(number: int) -> UInt8[np.ndarray, "h w 3"]:
        return image_files.read_rgb(str(output / str(low) / file_of(number)))

    def write(made: tuple[int, np.ndarray]) -> None:
        path = output / str(stage.image_size) / file_of(made[0])
        image_files.write_image(made[1], path, comment=comment)

    inputs = resumable.in_threads(read, numbers if before else (), ahead=2 * size)
    name = f"{stage.image_size} pixels"
    with (
        contextlib.closing(inputs),
        shared.progress_of(name, len(numbers), stop) as (after_call, after_image),
    ):

        def begin() -> Iterator[Callable[[], np.ndarray]]:
            """Yields functions that wait for the images of a batch, in the order of numbers."""
            for first in range(0, len(numbers), size):
                some = np.asarray(numbers[first : first + size])
                pixels = np.stack([next(inputs) for _ in some]) if before else None
                calls = network.refiner.num_calls(len(some), (low, low)) * network.nfe()
                progress = after_call and functools.partial(after_call, len(some) / calls)
                labels = cascade.labels_of(stages, options.labels, some)
                keys = cascade.keys_of(options.seed, index, some)
                yield from cascade.start(network, pixels, keys, labels, progress)

        images = (image for batch in resumable.one_behind(begin()) for image in batch)
        made = zip(numbers, images, strict=True)
        for _ in resumable.in_threads(write, made, ahead=2 * size, eager=True):
            after_image()


def _show(
    stages: Sequence[cascade.Stage],
    folders: Sequence[epath.Path],
    output: epath.Path,
    options: GenerateOptions,
) -> None:
    """Draws `grid.png` and `stages.png`, and writes the class of each image."""
    numbers = np.arange(options.num_images)
    labels = cascade.labels_of(stages, options.labels, numbers)
    if labels is not None:
        rows = (f"{file_of(k)},{label}\n" for k, label in enumerate(labels))
        storage.write_whole(output / "labels.csv", f"image,label\n{''.join(rows)}".encode())
    images = [Files(folder, numbers.tolist()) for folder in folders]
    stack = lambda files, chosen: np.stack([files[int(k)] for k in chosen])  # noqa: E731
    classes = [] if labels is None else np.unique(labels).tolist()
    if 1 < len(classes) <= _MOST_COLUMNS and options.num_images >= len(classes):
        rows = min(_GRID // 8, options.num_images // len(classes))
        shown = {str(c): stack(images[-1], numbers[labels == c][:rows]) for c in classes}
        grid = grids.grid(shown)
    else:
        grid = grids.mosaic(stack(images[-1], numbers[:_GRID]))
    grids.save(grid, output / "grid.png")
    if len(stages) > 1:
        sizes = (f"{stage.image_size}x{stage.image_size}" for stage in stages)
        made = (stack(files, numbers[:_STAGES]) for files in images)
        grids.save(grids.grid(dict(zip(sizes, made, strict=True))), output / "stages.png")
    print(f"{options.num_images} images are in {folders[-1]}; some of them: {output}/grid.png")
