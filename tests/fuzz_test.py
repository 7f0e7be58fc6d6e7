"""Damaged files of every kind that is read: a valid value or a documented error, in little memory.

Small valid files are mutated, by bytes and, where checksums would hide what is behind them, by
their parts. Seeds are fixed, so that what fails once fails always.
"""

import functools
import io
import json
import os
import random
import shutil
import struct
import tarfile
import zlib

import numpy as np
import pytest
import small_run
from mutations import MUTATIONS, NUMBERS, bounds, fuzz, mutated, mutated_arrays, mutated_json  # noqa: F401
from PIL import Image
from tensorflow_datasets.proto import tf_example_generated_pb2

from sr3_jax.config import Config, run_file
from sr3_jax.data import archives, folders, image_files, index_file, prepared, records, resumable
from sr3_jax.evaluation import schedule_search
from sr3_jax.inference import manifest

# Readers of pictures, from bytes.
DECODERS = {
    "with all it carries": image_files.decode_picture,
    "for networks": image_files.decode_rgb,
}
BadImageError = image_files.BadImageError


def pixels(mode: str, height: int = 11, width: int = 14) -> Image.Image:
    rng = np.random.default_rng(0)
    if mode == "I;16":
        return Image.fromarray(rng.integers(0, 1 << 16, (height, width), dtype=np.uint16))
    image = Image.fromarray(rng.integers(0, 256, (height, width, 4), dtype=np.uint8))
    return image.convert(mode)


def encoded(mode: str, kind: str, **options) -> bytes:
    file = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation
    pixels(mode).save(file, kind, exif=exif, **options)
    return file.getvalue()


PICTURES = {
    "jpeg": functools.partial(encoded, "RGB", "JPEG"),
    "jpeg cmyk": functools.partial(encoded, "CMYK", "JPEG", icc_profile=b"none"),
    "png": functools.partial(encoded, "RGBA", "PNG"),
    "png 16": functools.partial(encoded, "I;16", "PNG"),
    "png palette": functools.partial(encoded, "P", "PNG", transparency=3),
    "webp": functools.partial(encoded, "RGBA", "WEBP", lossless=True),
    "bmp": functools.partial(encoded, "RGB", "BMP"),
    "gif": functools.partial(encoded, "P", "GIF"),
    "tiff": functools.partial(encoded, "RGBA", "TIFF"),
    "tiff 16": functools.partial(encoded, "I;16", "TIFF"),
    "tiff lzw": functools.partial(encoded, "RGB", "TIFF", compression="tiff_lzw"),
}


def with_checksums(png: bytes) -> bytes:
    """The chunks of a PNG with checksums that are right, as far as there are whole ones."""
    made, at = bytearray(png), 8
    while at + 12 <= len(made):
        end = at + 8 + int.from_bytes(made[at : at + 4])
        if end + 4 > len(made):
            break
        made[end : end + 4] = zlib.crc32(made[at + 4 : end]).to_bytes(4)
        at = end + 4
    return bytes(made)


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("name", PICTURES)
def test_pictures(name, decoder):
    whole = PICTURES[name]()

    def make(rng):
        data = mutated(whole, rng)
        return with_checksums(data) if name.startswith("png") and rng.random() < 0.7 else data

    def read(data):
        made = DECODERS[decoder](data)
        values = made if isinstance(made, np.ndarray) else made.pixels
        assert values.dtype in (np.uint8, np.uint16) and values.ndim == 3 and values.size

    read(whole)
    fuzz(make, read, BadImageError)


def read_all(source, root) -> None:
    """Every image of a source can be asked for, lies in its place, and is one or is refused."""
    for index in range(len(source)):
        ref = source[index]
        assert os.path.realpath(ref.path).startswith(os.path.realpath(root)), ref.path
        try:
            assert ref.read().image.size
        except BadImageError as error:
            assert str(error)


def make_images(root) -> None:
    for i in range(5):
        (root / "ab"[i % 2]).mkdir(exist_ok=True)
        pixels("RGB").save(root / "ab"[i % 2] / f"{i}.png")


def make_tar(root, path) -> None:
    with tarfile.open(path, "w") as tar:
        tar.add(root, "")


@pytest.mark.parametrize("kind", ["folder", "tar"])
@pytest.mark.parametrize("by_parts", [False, True])
def test_lists_of_images(kind, by_parts, tmp_path):
    root, path = tmp_path / "images", tmp_path / "train.npz"
    root.mkdir()
    make_images(root)
    opened = functools.partial(folders.Folder, str(root))
    list_images = lambda: folders.folder(root).to_arrays()  # noqa: E731
    if kind == "tar":
        make_tar(root, tmp_path / "images.tar")
        root = tmp_path / "images.tar"
        opened = functools.partial(archives.Archive, root)
        list_images = lambda: archives.archive(root).to_arrays()  # noqa: E731
    arrays = index_file.load_or_make(path, "these", list_images)
    whole = path.read_bytes()
    with_digest = index_file.read_arrays(whole)

    def make(rng):
        return mutated_arrays(with_digest, rng) if by_parts else mutated(whole, rng)

    def read(data):
        path.write_bytes(data)
        try:
            read_all(opened(index_file.load_or_make(path, "these", list_images, opened)), root)
        except ValueError as error:
            assert str(path) in str(error) and "remove it" in str(error)
            raise

    assert len(opened(arrays)) == 5
    fuzz(make, read, ValueError)


@pytest.mark.parametrize("what", ["manifest.json", "index.npz", "parts"])
@pytest.mark.parametrize("by_parts", [False, True])
def test_prepared_folders(what, by_parts, tmp_path):
    (tmp_path / "images").mkdir()
    make_images(tmp_path / "images")
    plan = prepared.Plan(folders.folder(tmp_path / "images"), str(tmp_path / "out"), 8, 3)
    for part in prepared.begin(plan):
        prepared.write_file(plan, part)
    if what == "parts":
        path = tmp_path / "out" / "parts" / "00001.json"
        shutil.copytree(tmp_path / "out", tmp_path / "begun")
    else:
        prepared.finish(plan)
        path = tmp_path / "out" / what
    whole = path.read_bytes()
    # What the manifest could be made to point at.
    (tmp_path / "x").write_bytes((tmp_path / "out" / plan.file_name(0)).read_bytes())

    def make(rng):
        if not by_parts:
            return mutated(whole, rng)
        if what == "index.npz":
            return mutated_arrays(index_file.read_arrays(whole), rng)
        return json.dumps(mutated_json(json.loads(whole), rng)).encode()

    def read(data):
        if what == "parts":
            shutil.rmtree(tmp_path / "out")
            shutil.copytree(tmp_path / "begun", tmp_path / "out")
        path.write_bytes(data)
        if what == "parts":
            assert prepared.begin(plan) == []
            prepared.finish(plan)
        read_all(prepared.open_prepared(tmp_path / "out", 8), tmp_path / "out")
        list(prepared.damaged_files(tmp_path / "out"))

    fuzz(make, read, ValueError)


def framed(content: bytes, length: int | None = None) -> bytes:
    """A record whose checksums are right, be its length or not."""
    record = records.write_record(content)
    if length is None:
        return record
    of_length = struct.pack("<Q", length % 2**64)
    return of_length + records.write_record(of_length)[12 + 8 :][:4] + record[12:]


@pytest.mark.parametrize("by_parts", [False, True])
@pytest.mark.parametrize("kind", ["encoded", "raw"])
def test_records(kind, by_parts, tmp_path):
    path = tmp_path / "images.tfrecord"
    features = {"image": PICTURES["png"](), "label": 3, "filename": b"a"}
    if kind == "raw":
        example = tf_example_generated_pb2.Example()
        example.features.feature["shape"].int64_list.value.extend((3, 4, 5))
        example.features.feature["data"].bytes_list.value.append(bytes(range(60)))
        content = example.SerializeToString()
    else:
        content = records.serialize_example(features)
    whole = b"".join(records.write_record(content) for _ in range(3))

    def make(rng):
        if not by_parts:
            return mutated(whole, rng)
        parts = [framed(content), framed(mutated(content, rng)), framed(content)]
        if rng.random() < 0.5:
            parts[rng.randrange(3)] = framed(content, rng.choice(NUMBERS))
        return b"".join(parts)

    def read(data):
        path.write_bytes(data)
        found = records.tfrecords([str(path)])
        assert all(ref.offset <= len(data) for ref in found)
        for ref in found:
            # Of the first that is refused the reason is enough.
            assert ref.read().image.size

    path.write_bytes(whole)
    assert len(records.tfrecords([str(path)])) == 3
    fuzz(make, read, ValueError)


@pytest.mark.parametrize("by_parts", [False, True])
def test_tars(by_parts, tmp_path):
    (tmp_path / "images").mkdir()
    make_images(tmp_path / "images")
    path = tmp_path / "images.tar"
    make_tar(tmp_path / "images", path)
    whole = path.read_bytes()

    def make(rng):
        if not by_parts:
            return mutated(whole, rng)
        made = bytearray(whole)
        # A field of a header, under a checksum that is right.
        headers = [at for at in range(0, len(made), 512) if made[at + 257 : at + 262] == b"ustar"]
        at = rng.choice(headers)
        field, end = rng.choice(((0, 100), (124, 136), (124, 136), (156, 157), (257, 265)))
        made[at + field : at + end] = rng.choice(
            (
                mutated(bytes(made[at + field : at + end]), rng)[: end - field],
                b"\x80" + rng.choice(NUMBERS).to_bytes(20, signed=True)[-(end - field) + 1 :],
                b"\xff" * (end - field),
                rng.choice((b"L", b"K", b"x", b"g", b"S", b"1", b"2", b"5")),
            )
        ).ljust(end - field, b"\0")[: end - field]
        made[at + 148 : at + 156] = b" " * 8
        made[at + 148 : at + 156] = b"%06o\0 " % sum(made[at : at + 512])
        return bytes(made)

    def read(data):
        path.write_bytes(data)
        read_all(archives.archive(path), path)

    path.write_bytes(whole)
    assert len(archives.archive(path)) == len(list((tmp_path / "images").rglob("*.*")))
    read(whole)
    fuzz(make, read, ValueError)


def test_configs_and_tuned_sampling(tmp_path):
    small = small_run.config()
    tuned = {"sampling": {"sampler": "ddim", "num_steps": 3, "eta": 0.5, "schedule": "karras"}}
    whole = {"config.json": json.loads(small.to_json()), "inference.json": tuned}
    for name, tree in whole.items():
        (tmp_path / name).write_text(json.dumps(tree))
    assert run_file.tuned(tmp_path, run_file.load(tmp_path / "config.json"))
    for name, tree in whole.items():
        path, text = tmp_path / name, json.dumps(tree)

        def make(rng, tree=tree, text=text):
            if rng.random() < 0.5:
                return json.dumps(mutated_json(tree, rng)).encode()
            return mutated(text.encode(), rng)

        def read(data, path=path, name=name):
            path.write_bytes(data)
            try:
                loaded = run_file.load(tmp_path / "config.json")
                assert isinstance(loaded, Config)
                if name == "inference.json":
                    run_file.tuned(tmp_path, loaded)
            except ValueError as error:
                assert str(path) in str(error) and "or remove " in str(error)
                raise

        for data in (b"", b"3", b"[]", b"\xff", b"[" * 10**5, b'{"data": 3}', b'{"sampling": 3}'):
            with pytest.raises(ValueError, match="or remove "):
                read(data)
        fuzz(make, read, ValueError)
        path.write_text(text)


def test_trials(tmp_path):
    path = tmp_path / "trials.jsonl"
    fingerprint = resumable.Fingerprint({"metric": "energy"})
    trials = schedule_search.Trials(path, fingerprint)
    for calls in (2, 3):
        trials.add(schedule_search.Trial(calls, {"eta": 0.5}, "done", "", {"energy": 1.0}, 2.0))
    whole = path.read_bytes()

    def read(data):
        path.write_bytes(data)
        for row in schedule_search.Trials(path, fingerprint).rows:
            assert isinstance(row.calls, int) and isinstance(row.sampling, dict)

    fuzz(functools.partial(mutated, whole), read, ValueError)


def test_manifests_and_fingerprints(tmp_path):
    """Damaged rows are left out; a damaged fingerprint is an error that names it."""
    fingerprint = resumable.Fingerprint({"checkpoint": 3, "seed": 0, "sampler": "ddim"})
    fingerprint.keep(tmp_path)
    rows = "".join(
        json.dumps({"input": f"{i}.png", "output": f"{i}.png", "status": "written"}) + "\n"
        for i in range(4)
    )
    (of_fingerprint,) = (path for path in tmp_path.rglob("*.json"))
    whole = of_fingerprint.read_bytes()

    def read_rows(data):
        (tmp_path / manifest.NAME).write_bytes(data)
        for row in manifest.read(tmp_path):
            assert isinstance(row.input, str) and isinstance(row.status, str)

    def read_fingerprint(data):
        of_fingerprint.write_bytes(data)
        try:
            before = resumable.read_fingerprint(tmp_path)
            assert all(isinstance(found, str) for found in fingerprint.differences(before))
        except ValueError as error:
            assert str(of_fingerprint) in str(error)
            raise

    for seed in range(MUTATIONS):
        read_rows(mutated(rows.encode(), random.Random(seed)))
    fuzz(functools.partial(mutated, whole), read_fingerprint, ValueError)
