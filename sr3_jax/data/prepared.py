"""A folder of images as a few large files: written once by `tools.prepare_data`, opened at once.

    manifest.json                      what is in it: sizes, counts, checksums, classes
    images-00000-of-00012.tfrecord     tf.train.Example: image (an encoded file), filename, label
    index.npz                          where each record lies
    skipped.txt                        what was left out, and why

The manifest is written last, so that a folder that has one is whole. Until then `parts/` has a note
of each finished file, from which an interrupted preparation goes on.
"""

import dataclasses
import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from sr3_jax.data import (
    degrade,
    folders,
    index_file,
    records,
    resumable,
    source_kinds,
    sources,
    storage,
    windows,
)
from sr3_jax.data.image_files import BadImageError, encode_image

_MANIFEST, _INDEX, _SKIPPED, _PARTS = "manifest.json", "index.npz", "skipped.txt", "parts"
_FORMAT = 1
_FILE_NAME = re.compile(r"images-\d{5,}-of-\d{5,}\.tfrecord")
_REMEDY = "Remove the folder that prepare_data wrote, and prepare the images again"

# Types of the values for a file, in the manifest, and in the note of a file.
_FILE = {"file": {str}, "count": {int}, "bytes": {int}, "sha256": {str}}
_KEYS = {
    **{"plan": {str}, "made_of": {str}, "classes": {list}, "files": {list}},
    **dict.fromkeys(("format", "image_size", "count", "too_small", "damaged"), {int}),
}
_NOTE = _FILE | {"offsets": {list}, "sizes": {list}, "skipped": {dict}}


@dataclasses.dataclass(frozen=True)
class Plan:
    """The images to prepare, and the files to make of them.

    Attributes:
      images: the pictures.
      output: the folder to fill, local or a URL.
      image_size: side of the largest central square after it is resized by area, in pixels,
        kept as PNG of its own depth; 0 to keep the files as they are.
      images_per_file: most images of a file.
    """

    images: folders.Folder
    output: str
    image_size: int
    images_per_file: int

    @property
    def num_files(self) -> int:
        """Returns the number of files."""
        return -(-len(self.images) // self.images_per_file)

    def file_name(self, part: int) -> str:
        """Returns the name of file `part`, from 0."""
        return f"images-{part:05d}-of-{self.num_files:05d}.tfrecord"

    def digest(self) -> str:
        """Returns a digest that is equal for plans whose files are interchangeable."""
        digest = hashlib.sha256(f"{self.image_size} {self.images_per_file}".encode())
        for array in self.images.to_arrays().values():
            digest.update(array.tobytes())
        return digest.hexdigest()

    def path(self, *names: str) -> str:
        """Returns the path of a file under `output`."""
        return os.path.join(self.output, *names)


def check_place(plan: Plan) -> None:
    """Raises ValueError if `output` is, or lies within, the folder of the images."""
    inner, outer = plan.output, plan.images.root
    if storage.is_within(inner, outer):
        raise ValueError(
            f"--output={inner} is, or lies within, --input={outer}, the folder of the images; give "
            f"a folder beside it, such as {outer.rstrip('/')}_prepared"
        )


def begin(plan: Plan) -> list[int]:
    """Makes the folder, where nobody else may be at work; returns the files still to be written.

    Raises:
      FileExistsError: the folder holds something else.
    """
    manifest, note = plan.path(_MANIFEST), plan.path(_PARTS, "plan.json")
    found = next((path for path in (manifest, note) if storage.exists(path)), None)
    if found:
        if resumable.read_json(found, {"plan": {str}}, _REMEDY)["plan"] != plan.digest():
            raise FileExistsError(
                f"--output={plan.output} holds what was made of other images or with other "
                "options; give another folder, or empty this one"
            )
        if found == manifest:
            return []
    elif storage.matches(plan.output, "*"):
        raise FileExistsError(f"--output={plan.output} is not empty; give another folder")
    resumable.write_rows(note, [{"plan": plan.digest()}])
    resumable.remove_partials(plan.output)
    done = set(storage.matches(plan.path(_PARTS), "*.json"))
    return [part for part in range(plan.num_files) if _note(plan, part) not in done]


def write_file(plan: Plan, part: int) -> tuple[int, int]:
    """Writes file `part`; returns how many images are in it, and how many were left out."""
    first = part * plan.images_per_file
    name = plan.file_name(part)
    digest = hashlib.sha256()
    offsets, sizes, position = [], [], 0
    skipped: dict[str, list] = {}
    with storage.open_whole(plan.path(name)) as file:
        for ref in plan.images[first : first + plan.images_per_file]:
            try:
                content = _example(ref, plan.image_size)
            except BadImageError as error:
                skipped[ref.name] = [str(error), isinstance(error, windows.TooSmallError)]
                continue
            record = records.write_record(content)
            offsets.append(position + records.HEADER_BYTES)
            sizes.append(len(content))
            file.write(record)
            digest.update(record)
            position += len(record)
    values = (name, len(sizes), position, digest.hexdigest(), offsets, sizes, skipped)
    resumable.write_rows(_note(plan, part), [dict(zip(_NOTE, values, strict=True))])
    return len(sizes), len(skipped)


def finish(plan: Plan) -> dict[str, Any]:
    """Writes index and manifest, once every file is there; returns the manifest.

    Raises:
      ValueError: no image could be used, or the note of a file is damaged.
    """
    if storage.exists(plan.path(_MANIFEST)):
        return _manifest(plan.output)
    parts = [_read_note(plan, part) for part in range(plan.num_files)]
    counts = [part["count"] for part in parts]
    skipped = {name: reason for part in parts for name, reason in part["skipped"].items()}
    if not sum(counts):
        examples = "; ".join(f"{name}: {reason}" for name, (reason, _) in list(skipped.items())[:5])
        raise ValueError(f"no image of {plan.images.root} can be used: {examples}")
    index_file.write_arrays(
        plan.path(_INDEX),
        file_index=np.repeat(np.arange(len(parts), dtype=np.int32), counts),
        offset=np.concatenate([part["offsets"] for part in parts]),
        size=np.concatenate([part["sizes"] for part in parts]),
    )
    lines = (f"{storage.shown(name)}\t{reason}\n" for name, (reason, _) in skipped.items())
    storage.write_whole(plan.path(_SKIPPED), "".join(lines).encode())
    num_too_small = sum(too_small for _, too_small in skipped.values())
    manifest = {
        "format": _FORMAT,
        "plan": plan.digest(),
        "made_of": plan.images.root,
        "image_size": plan.image_size,
        "count": sum(counts),
        "too_small": num_too_small,
        "damaged": len(skipped) - num_too_small,
        "classes": list(plan.images.classes),
        "files": [{key: part[key] for key in _FILE} for part in parts],
    }
    storage.write_whole(plan.path(_MANIFEST), (json.dumps(manifest, indent=2) + "\n").encode())
    storage.remove_folder(plan.path(_PARTS))
    return manifest


def is_prepared(path: str | os.PathLike[str]) -> bool:
    """Returns whether `path` is a folder that `finish` left."""
    return storage.exists(os.path.join(path, _MANIFEST))


def open_prepared(path: str | os.PathLike[str], image_size: int) -> records.Records:
    """Opens the images of a prepared folder; reads the manifest and the index alone.

    Raises:
      ValueError: they are under `image_size`, written by another version, or damaged.
    """
    folder = os.fspath(path)
    manifest = _manifest(folder)
    if 0 < manifest["image_size"] < image_size:
        raise ValueError(
            f"{folder} was prepared with --image_size={manifest['image_size']}, and "
            f"config.data.image_size is {image_size}; prepare the images for that"
        )
    files = [os.path.join(folder, file["file"]) for file in manifest["files"]]
    index = os.path.join(folder, _INDEX)
    try:
        arrays = index_file.read_arrays(storage.read(index))
        found = records.Records(files, arrays)
        _check_index(arrays, manifest["files"])
    except (ValueError, KeyError, OverflowError, FileNotFoundError) as error:
        raise ValueError(f"{index} is damaged: {error}. {_REMEDY}") from error
    return found


def faults(place: source_kinds.Place) -> Iterator[str]:
    """Yields what is wrong with the path of TFRecord files; see `source_kinds`."""
    if "*" not in place.path and not storage.exists(place.path):
        yield (
            f"{place.key('path')} = {place.path!r} does not exist; give a TFRecord file, a "
            "pattern of them, or their folder"
        )


def open_source(place: source_kinds.Place) -> records.Records:
    """Returns the images of a prepared folder, or of any TFRecord files."""
    if is_prepared(place.path):
        return open_prepared(place.path, place.image_size)
    files = records.tfrecord_files(place.path, place.image_size)
    return records.open_records(files, place.index)


def damaged_files(path: str | os.PathLike[str]) -> Iterator[str]:
    """Compares each file of a prepared folder with the manifest; yields what is wrong."""
    folder = os.fspath(path)
    for file in _manifest(folder)["files"]:
        found = os.path.join(folder, file["file"])
        if not storage.exists(found):
            yield f"{found} is missing"
            continue
        with storage.open_read(found) as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        if digest != file["sha256"]:
            yield f"{found} has checksum {digest}, where the manifest says {file['sha256']}"


def _manifest(folder: str) -> dict[str, Any]:
    """Reads a manifest; raises ValueError if it is damaged, or names files outside the folder."""
    path = os.path.join(folder, _MANIFEST)
    if (version := resumable.read_json(path, {"format": {int}}, _REMEDY)["format"]) != _FORMAT:
        raise ValueError(
            f"{folder} has format {version}, this version reads {_FORMAT}; prepare the images again"
        )
    manifest = resumable.read_json(path, _KEYS, _REMEDY)
    for file in manifest["files"]:
        try:
            name = resumable.from_json(_FILE, file)["file"]
        except ValueError as error:
            raise ValueError(f"{path} is damaged: {error}. {_REMEDY}") from error
        found = os.path.join(folder, name)
        if not _FILE_NAME.fullmatch(name) or not storage.is_within(found, folder):
            raise ValueError(
                f"{path} names the file {name!r}, which is not one of this folder, or a link out "
                "of it; put the file itself there, or prepare the images again"
            )
    return manifest


def _read_note(plan: Plan, part: int) -> dict[str, Any]:
    """Reads the note of file `part`; raises ValueError if it is damaged."""
    path = _note(plan, part)
    found = resumable.read_json(path, _NOTE, _REMEDY)
    try:
        for key in ("offsets", "sizes"):
            found[key] = np.array(found[key], np.int64)
            if found[key].shape != (found["count"],):
                raise ValueError(f"its {key} are not {found['count']} numbers")
        if found["file"] != plan.file_name(part):
            raise ValueError(f"it is of {found['file']}")
        for why in found["skipped"].values():
            if not isinstance(why, list) or list(map(type, why)) != [str, bool]:
                raise ValueError(f"{why!r:.100} is no reason")
    except (ValueError, TypeError, OverflowError) as error:
        raise ValueError(f"{path} is damaged: {error}. {_REMEDY}") from error
    return found


def _check_index(arrays: Mapping[str, np.ndarray], files: Sequence[Mapping[str, Any]]) -> None:
    """Raises ValueError if records lie beyond their files, or are not as many as there were."""
    counts, ends = (np.array([file[key] for file in files], np.int64) for key in ("count", "bytes"))
    found = np.bincount(arrays["file_index"], minlength=len(files))
    if not np.array_equal(found, counts):
        raise ValueError(f"it has {found.sum()} records, and the manifest {counts.sum()}")
    beyond = arrays["offset"] > ends[arrays["file_index"]] - arrays["size"]
    if (arrays["size"] < 0).any() or beyond.any():
        raise ValueError("a record lies beyond the end of its file")


def _note(plan: Plan, part: int) -> str:
    return plan.path(_PARTS, f"{part:05d}.json")


def _example(ref: sources.FileRef, image_size: int) -> bytes:
    picture = ref.read()
    if image_size:
        windows.check_size(picture.image, image_size)
        left, top, right, bottom = windows.central_box(*picture.image.shape[:2])
        square = picture.image[top:bottom, left:right]
        data = encode_image(degrade.by_area(square, image_size))
    else:
        data = storage.read(ref.path)
    features: dict[str, bytes | int] = {"image": data, "filename": os.fsencode(ref.name)}
    if picture.label != sources.NO_LABEL:
        features["label"] = picture.label
    return records.serialize_example(features)
