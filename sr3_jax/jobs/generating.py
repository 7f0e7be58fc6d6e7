"""Images by a cascade, stage by stage into files, so that it can be stopped and shared.

Each file says in a comment by which recipe it was made. So an image of another recipe, of a folder
that is made anew, is told from those that are there already, and from what is not ours.
"""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import functools
import io
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath
from jaxtyping import UInt8

from sr3_jax import parallel
from sr3_jax.config import Config, cascades, image_sets, with_sampling
from sr3_jax.data import image_files, resumable, storage
from sr3_jax.evaluation import neighbours
from sr3_jax.evaluation.outputs import Files, file_of
from sr3_jax.evaluation.report import grids
from sr3_jax.inference import cascade
from sr3_jax.jobs import features, shared

_COMMENT = "made by recipe "  # of each image, with the digest of the recipe
_BESIDE = ("grid.png", "stages.png", "labels.csv", "report.md")  # what else is written
_GRID, _STAGES = 64, 3  # images in grid.png and rows of stages.png, at most
_COMPARED, _SHOWN = 64, 20_000  # images, and those of the training that each is compared with
_MOST_COLUMNS = 10  # of grid.png, where each class has one


@dataclasses.dataclass(frozen=True)
class Options:
    """What is asked for.

    Attributes:
      num_images: how many; image k has number k.
      labels: their classes in turn; empty for all that the networks know.
      seed: of all noise.
      overwrite: make images anew that are there.
      renew: those only that were made in another way, where else that is an error.
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
      config: of the cascade.
      guidance: of all stages that know classes, in place of theirs.

    Raises:
      FileNotFoundError: a stage is missing.
      ValueError: stages do not fit together, or guidance is of no use.
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


def measure_of(config: cascades.Cascade, stages: Sequence[cascade.Stage]) -> features.Wanted | None:
    """Returns what to measure of the last stage's images; None if nothing."""
    c = config.evaluation
    if not c.feature_metrics:
        return None
    last = stages[-1].config
    evaluation = dataclasses.replace(
        last.evaluation,
        feature_metrics=c.feature_metrics,
        fid_reference=c.fid_reference,
        inception_weights=c.inception_weights,
        image_size=0,
    )
    return features.Wanted(dataclasses.replace(last, evaluation=evaluation), c.paper_tables)


def evaluate(config: Config, workdir: epath.Path) -> None:
    """Draws images by a network without a source, and looks whether they are copies.

    In `workdir/evaluation` it leaves `config.evaluation.num_images` of them (64 where that is 0),
    `grid.png`, `neighbours.png` (`evaluation.neighbours`), and where the config asks for FID
    `report.md`. What is there of the same weights and sampling is not made again.
    """
    stage = cascade.open_stage(workdir, config=config)
    options = Options(config.evaluation.num_images or _GRID, seed=config.seed, renew=True)
    measure = None
    if config.evaluation.feature_metrics:
        reference = config.evaluation.fid_reference or "train"
        evaluation = dataclasses.replace(config.evaluation, fid_reference=reference)
        measured = dataclasses.replace(config, evaluation=evaluation)
        table = config.evaluation.paper_table
        measure = features.Wanted(measured, (table,) if table else ())
    generate([stage], workdir / "evaluation", options, measure)
    if jax.process_index() == 0:
        images = Files(workdir / "evaluation" / str(stage.image_size), range(options.num_images))
        _compare(config, workdir, images)
    parallel.wait_for_all()


def _compare(config: Config, workdir: epath.Path, images: Files) -> None:
    """Draws `neighbours.png`: images, and the training images that they are nearest to."""
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
    options: Options,
    measure: features.Wanted | None = None,
) -> None:
    """Makes the images that are missing, stage by stage; then looks at them.

        OUTPUT/64/000012.png      the 13th image as the stage that makes 64 pixels made it
        OUTPUT/1024/000012.png    as the last one did
        OUTPUT/grid.png           the first ones; stages.png: some at all sizes
        OUTPUT/labels.csv         the class of each, where there are classes
        OUTPUT/report.md          FID and Inception score, where asked for

    Files are written whole or not at all, and image k depends on seed, k and its label alone: so
    the same command goes on where it was stopped, on any number of processes and devices, and may
    ask for more images. Networks are loaded one after the other.

    Args:
      stages: see `stages_of`.
      output: the folder.
      options: what is asked for.
      measure: what of the last stage's images; see `measure_of`.

    Raises:
      ValueError: stages do not fit together, or the folder has images made in another way. Before
        anything is sampled.
      StoppedError: a signal asked to stop.
    """
    output = epath.Path(storage.absolute(output))
    cascade.check(stages, options.labels)
    if measure is not None:
        features.check_generated(measure, options.num_images)
    folders = [output / str(stage.image_size) for stage in stages]
    made_by = _fingerprints(stages, options)
    numbers = range(jax.process_index(), options.num_images, jax.process_count())
    with shared.holding(output, "generation"):
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


def _fingerprints(stages: Sequence[cascade.Stage], options: Options) -> list[resumable.Fingerprint]:
    """Returns that of each stage's images, which holds those of all stages before it."""
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
    options: Options,
) -> None:
    """Checks that nothing would be replaced that is not ours; then keeps the fingerprints.

    Raises:
      ValueError: images made in another way, or files that this program did not write. Before
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
    """Returns the numbers of the images that are made, and what is wrong with other files there.

    Images of another fingerprint are neither: they are made anew.
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
    options: Options,
    comment: str,
    stop: parallel.StopSignal,
) -> None:
    """Makes the images of these numbers in one stage, from what the one before made."""
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
        shared.progress_of(name, len(numbers), stop) as (advance, each_call),
    ):

        def begin() -> Iterator[Callable[[], np.ndarray]]:
            """In the order of the numbers: functions that wait for the images of a batch."""
            for first in range(0, len(numbers), size):
                some = np.asarray(numbers[first : first + size])
                pixels = np.stack([next(inputs) for _ in some]) if before else None
                calls = len(network.refiner.batches(len(some), (low, low))) * network.nfe()
                progress = functools.partial(advance, len(some) / calls) if each_call else None
                labels = cascade.labels_of(stages, options.labels, some)
                keys = cascade.keys_of(options.seed, index, some)
                yield from cascade.start(network, pixels, keys, labels, progress)

        images = (image for batch in resumable.one_behind(begin()) for image in batch)
        made = zip(numbers, images, strict=True)
        for _ in resumable.in_threads(write, made, ahead=2 * size, eager=True):
            advance(0.0 if each_call else 1.0)


def _show(
    stages: Sequence[cascade.Stage],
    folders: Sequence[epath.Path],
    output: epath.Path,
    options: Options,
) -> None:
    """Draws what was made, and says which class each image is of."""
    numbers = np.arange(options.num_images)
    labels = cascade.labels_of(stages, options.labels, numbers)
    if labels is not None:
        text = io.StringIO()
        rows = csv.writer(text, lineterminator="\n")
        names = map(file_of, numbers.tolist())
        rows.writerows([("image", "label"), *zip(names, labels, strict=True)])
        storage.write_whole(output / "labels.csv", text.getvalue().encode())
    last = Files(folders[-1], numbers.tolist())
    classes = [] if labels is None else sorted({*labels.tolist()})
    if 1 < len(classes) <= _MOST_COLUMNS and options.num_images >= len(classes):
        rows = min(_GRID // 8, options.num_images // len(classes))
        chosen = {str(c): numbers[labels == c][:rows] for c in classes}
        shown = {c: np.stack([last[int(k)] for k in found]) for c, found in chosen.items()}
        grids.save(grids.grid(shown), output / "grid.png")
    else:
        images = np.stack([last[k] for k in range(min(_GRID, options.num_images))])
        grids.save(grids.mosaic(images), output / "grid.png")
    if len(stages) > 1:
        some = range(min(_STAGES, options.num_images))
        sizes = {
            f"{stage.image_size}x{stage.image_size}": np.stack([Files(f, some)[k] for k in some])
            for stage, f in zip(stages, folders, strict=True)
        }
        grids.save(grids.grid(sizes), output / "stages.png")
    print(f"{options.num_images} images are in {folders[-1]}; some of them: {output}/grid.png")
