"""Tests of sr3_jax.data.archives: images in tar files, made by Python and by GNU tar."""

import io
import itertools
import os
import pathlib
import random
import re
import shutil
import subprocess
import sys
import tarfile

import numpy as np
import pytest
from PIL import Image

from sr3_jax.config import image_sets, read
from sr3_jax.data import archives, degrade, folders, image_files, sources, storage
from sr3_jax.data.pipeline import Pipeline

from configs import default  # isort: skip

LONG = "long_" * 24 + "name.png"  # over the 100 bytes that a header has for a name
_PROGRAM = shutil.which("tar") or ""
_IS_GNU = _PROGRAM and b"GNU" in subprocess.check_output([_PROGRAM, "--version"])
PACKERS = ["gnu", "pax"] + ["program"] * bool(_IS_GNU)


def _png(seed: int, side: int = 20) -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side + seed, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def _pack(path: pathlib.Path, root: pathlib.Path, names: list[str], packer: str = "gnu") -> str:
    """Packs files under `root` into the tar `path`, in the order given."""
    if packer == "program":
        subprocess.run([_PROGRAM, "-cf", path, "-C", root, "--", *names], check=True)
        return str(path)
    formats = {"gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}
    with tarfile.open(path, "w", format=formats[packer]) as tar:
        for name in names:
            tar.add(root / name, name)
    return str(path)


def _train_tar(path: pathlib.Path, root: pathlib.Path, packer: str = "gnu") -> str:
    """Packs a tar of one tar for each folder under `root`, as ImageNet's is."""
    scratch = path.with_suffix(".parts")
    scratch.mkdir()
    classes = [folder.name for folder in root.iterdir()]
    for name in classes:
        _pack(scratch / f"{name}.tar", root / name, os.listdir(root / name), packer)
    return _pack(path, scratch, [f"{name}.tar" for name in classes], packer)


@pytest.fixture
def images(tmp_path):
    """A folder of nine images of three classes, a note and hidden files."""
    root = tmp_path / "images"
    for seed in range(9):
        folder = root / ("n02", "n01", "n10")[seed % 3]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / (LONG if seed == 4 else f"é{seed}.JPEG")).write_bytes(_png(seed))
    (root / "n01" / "notes.txt").write_text("no image")
    (root / "n01" / "._é1.JPEG").write_text("hidden")
    (root / "n01" / ".folder").mkdir()
    (root / "n01" / ".folder" / "a.png").write_bytes(_png(0))
    return root


def _assert_alike(first: sources.LazySource, second: sources.LazySource) -> None:
    assert [ref.name for ref in first] == [ref.name for ref in second]
    assert list(first.names()) == list(second.names())
    options = degrade.DegradeOptions(16, 4)
    pipelines = [Pipeline(source, options, batch_size=4, seed=3) for source in (first, second)]
    for kind in ("training_batches", "evaluation_batches"):
        streams = (itertools.islice(getattr(made, kind)(), 3) for made in pipelines)
        for a, b in zip(*streams, strict=True):
            for key in a:
                np.testing.assert_array_equal(a[key], b[key], err_msg=key)
            assert a["weight"].any()


@pytest.mark.parametrize("packer", PACKERS)
def test_a_tar_of_tars_is_as_the_folder_of_its_classes(images, tmp_path, packer):
    source = archives.archive(_train_tar(tmp_path / "train.tar", images, packer))
    assert len(source) == 9
    _assert_alike(source, folders.folder(images))
    labels = {ref.name.partition("/")[0]: ref.read().label for ref in source}
    assert labels == {"n01": 0, "n02": 1, "n10": 2}


@pytest.mark.parametrize("packer", PACKERS)
@pytest.mark.parametrize("names", [["."], ["n10", "n01", "n02"]])
def test_a_tar_of_folders_is_as_the_folders(images, tmp_path, names, packer):
    source = archives.archive(_pack(tmp_path / "a.tar", images, names, packer))
    _assert_alike(source, folders.folder(images))
    # One image outside, and the folders are no classes.
    (images / "lone.png").write_bytes(_png(50))
    names = names if names == ["."] else ["lone.png", *names]
    source = archives.archive(_pack(tmp_path / "b.tar", images, names, packer))
    assert {ref.label for ref in source} == {sources.NO_LABEL}


@pytest.fixture
def validation(tmp_path):
    """A tar of images named as in ImageNet's validation set, in no order."""
    root = tmp_path / "val"
    root.mkdir()
    numbers = [50000, 1, 3, 29999, 2]
    for seed, number in enumerate(numbers):
        (root / f"ILSVRC2012_val_{number:08d}.JPEG").write_bytes(_png(seed))
    return _pack(tmp_path / "val.tar", root, os.listdir(root))


def test_the_validation_list_is_imagenets():
    labels = archives.imagenet_validation_labels()
    assert np.array_equal(np.bincount(labels), [50] * 1000)
    # As published for the first ones: sea snake, alp, Shetland sheepdog, soup bowl, cradle.
    assert labels[:5].tolist() == [65, 970, 230, 809, 516]


def test_the_validation_list_needs_no_tfds():
    code = """
        import sys
        from sr3_jax.data import archives
        assert archives.imagenet_validation_labels() is not None
        assert not {"tensorflow", "tensorflow_datasets"} & sys.modules.keys()
    """
    root = pathlib.Path(__file__).parents[1]
    code = "\n".join(line.strip() for line in code.splitlines())
    subprocess.run([sys.executable, "-c", code], check=True, cwd=root)


def test_validation_images_come_by_number_with_the_label_of_the_list(validation):
    source = archives.archive(validation)
    numbers = [1, 2, 3, 29999, 50000]
    assert [ref.name for ref in source] == [f"ILSVRC2012_val_{n:08d}.JPEG" for n in numbers]
    labels = archives.imagenet_validation_labels()
    assert [ref.read().label for ref in source] == [labels[n - 1] for n in numbers]
    assert source[0].label == 65


def test_validation_images_without_the_list_have_no_label_and_a_warning(
    validation, monkeypatch, caplog
):
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)  # as if not installed
    with caplog.at_level("WARNING", logger="absl"):
        for _ in range(2):
            source = archives.archive(validation)
            assert {ref.label for ref in source} == {sources.NO_LABEL}
    [record] = caplog.records
    assert "validation_labels.txt" in record.getMessage()


@pytest.mark.parametrize("nested", [False, True])
def test_a_tar_cut_off_anywhere_is_an_error_that_names_it(images, tmp_path, nested):
    if nested:
        path = _train_tar(tmp_path / "whole.tar", images)
    else:
        path = _pack(tmp_path / "whole.tar", images, ["."], "pax")
    data = pathlib.Path(path).read_bytes()
    end_mark = len(data.rstrip(b"\0")) // 512 * 512 + 512
    assert len(archives.archive(path)) == 9
    cut = tmp_path / "cut.tar"
    cuts = {0, 1, 511, end_mark, end_mark + 511, *range(512, end_mark, 512 * 5)}
    for size in sorted(cuts | set(random.Random(0).sample(range(end_mark), 20))):
        cut.write_bytes(data[:size])
        with pytest.raises(ValueError, match=r"cut\.tar .*byte \d+"):
            archives.archive(cut)


def test_a_damaged_header_is_an_error_that_names_its_byte(images, tmp_path):
    path = pathlib.Path(_train_tar(tmp_path / "a.tar", images))
    data = path.read_bytes()
    assert len(archives.archive(path)) == 9
    headers = [at for at in range(0, len(data), 512) if data[at + 257 : at + 262] == b"ustar"]
    assert len(headers) > 12
    for at in headers:
        # A wrong byte, and what a download that left this part out has there.
        for wrong in (bytes([data[at] ^ 1]), bytes(512)):
            path.write_bytes(data[:at] + wrong + data[at + len(wrong) :])
            with pytest.raises(ValueError, match=r"a\.tar .*byte \d+") as caught:
                archives.archive(path)
            # A long name has two blocks before the header of its file.
            assert at - int(re.search(r"at byte (\d+)", str(caught.value))[1]) in (0, 1024)


def _with_header(info: tarfile.TarInfo) -> bytes:
    good = tarfile.TarInfo("a.png")
    return good.tobuf() + info.tobuf(tarfile.GNU_FORMAT) + bytes(10240)


@pytest.mark.parametrize("size", [-512, -1024, -1 << 40, 1 << 40])
@pytest.mark.parametrize("kind", [tarfile.REGTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE])
def test_a_header_of_a_senseless_length_is_an_error(tmp_path, size, kind):
    info = tarfile.TarInfo("b.png")
    info.size, info.type = size, kind
    (tmp_path / "a.tar").write_bytes(_with_header(info))
    with pytest.raises(ValueError, match=r"a\.tar is cut off, damaged or .* at byte 512:"):
        archives.archive(tmp_path / "a.tar")


def test_what_is_no_single_uncompressed_tar_is_an_error(images, tmp_path):
    path = pathlib.Path(_pack(tmp_path / "a.tar", images, ["."]))
    data = path.read_bytes()
    for suffix, command in (("gz", "gunzip"), ("bz2", "bunzip2"), ("xz", "unxz")):
        packed = tmp_path / f"b.tar.{suffix}"
        with tarfile.open(packed, f"w:{suffix}") as tar:
            tar.add(images, ".")
        with pytest.raises(ValueError, match=f"compressed.*unpack it with {command}"):
            archives.archive(packed)
        inner = _pack(tmp_path / "outer.tar", tmp_path, [packed.rename(tmp_path / "b.tar").name])
        with pytest.raises(ValueError, match=r"b\.tar in .*outer\.tar is compressed"):
            archives.archive(inner)
    for other in (data + data, data + bytes(2 << 20)):
        path.write_bytes(other)
        with pytest.raises(ValueError, match=r"a\.tar ends at byte \d+, and there are \d+ bytes"):
            archives.archive(path)
    path.write_text("some text that is no tar, but as long as a header" * 20)
    with pytest.raises(ValueError, match=r"a\.tar is .*no tar file at byte 0"):
        archives.archive(path)


def test_a_tar_without_images_says_what_is_in_it(tmp_path):
    for name in ("a.txt", "b.txt", ".c.png"):
        (tmp_path / name).write_text("")
    path = _pack(tmp_path / "a.tar", tmp_path, ["a.txt", "b.txt", ".c.png"])
    with pytest.raises(ValueError, match=r"no image in tar .*3 other files \(2 \.txt, 1 hidden\)"):
        archives.archive(path)


def test_images_that_cannot_be_read_in_one_piece_are_an_error(images, tmp_path):
    path = tmp_path / "a.tar"
    names = os.listdir(images)
    (images / "link.png").symlink_to(LONG)
    with pytest.raises(ValueError, match=r"link\.png, at byte \d+ of .*a\.tar, is a link"):
        archives.archive(_pack(path, images, [*names, "link.png"]))
    os.link(images / "n01" / LONG, images / "second.png")
    with pytest.raises(ValueError, match="second.png.*is a link"):
        archives.archive(_pack(path, images, ["n01", "second.png"]))
    if _IS_GNU:
        with open(images / "holes.png", "wb") as file:
            file.write(_png(1))
            file.truncate(1 << 20)
        subprocess.run([_PROGRAM, "-cSf", path, "-C", images, "holes.png"], check=True)
        with pytest.raises(ValueError, match="holes.png.*has holes"):
            archives.archive(path)


def test_two_images_of_one_name_are_an_error(images, tmp_path):
    path = _pack(tmp_path / "a.tar", images, ["n01", "n02", "n01"])
    with pytest.raises(ValueError, match=r"two images of one name, n01/.*at bytes \d+ and \d+"):
        archives.archive(path)


def test_an_image_that_is_damaged_keeps_its_row_with_weight_0(images, tmp_path):
    (images / "n01" / "empty.png").write_bytes(b"")
    path = pathlib.Path(_train_tar(tmp_path / "a.tar", images))
    source = archives.archive(path)
    by_name = {ref.name: ref for ref in source}
    broken = by_name["n02/é3.JPEG"]
    data = bytearray(path.read_bytes())
    data[broken.offset + 40 : broken.offset + 600] = bytes(560)
    last = max(source, key=lambda ref: ref.offset)
    path.write_bytes(data[: last.offset + 50])
    bad = {broken.name, last.name, "n01/empty.png"}
    pipeline = Pipeline(source, degrade.DegradeOptions(16, 4), batch_size=10)
    [batch] = pipeline.evaluation_batches()
    np.testing.assert_array_equal(batch["weight"], [ref.name not in bad for ref in source])
    assert set(pipeline.skipped) == bad
    assert f"in the middle of the file at byte {last.offset}" in pipeline.skipped[last.name]
    assert "empty" in pipeline.skipped["n01/empty.png"]
    path.unlink()
    with pytest.raises(image_files.BadImageError, match="no such file"):
        source[-1].read()


def _config(path, eval_path=""):
    config = default.get_config()
    config.data.update(source="tar", path=str(path), eval_path=str(eval_path))
    config.data.update(num_eval_images=2, image_size=16, low_resolution=4)
    return config


def test_by_config(images, validation, tmp_path):
    config = _config(_train_tar(tmp_path / "train.tar", images), validation)
    assert len(image_sets.training_source(read(config))) == 9
    config.evaluation.num_images = 3
    numbers = [int(ref.name[-13:-5]) for ref in image_sets.evaluation_source(read(config))]
    assert numbers == [1, 2, 3]
    for path in (tmp_path / "none.tar", images):
        with pytest.raises(ValueError, match=f"{path.name}.*give"):
            image_sets.training_source(read(_config(path)))


def test_a_list_is_kept_for_a_tar_of_this_size_alone(images, tmp_path, monkeypatch, caplog):
    path, index = tmp_path / "a.tar", tmp_path / "index"
    halves = (image_sets.training_source, image_sets.evaluation_source)

    def refs():
        return [list(half(read(_config(path)), index)) for half in halves]

    _train_tar(path, images)
    first = refs()
    assert [len(half) for half in first] == [7, 2]
    with monkeypatch.context() as patch:
        patch.setattr(archives, "archive", lambda *_: pytest.fail("walked over again"))
        assert refs() == first
    (images / "n01" / "more.png").write_bytes(_png(9, 100))
    _pack(path, images, ["."])
    with caplog.at_level("WARNING", logger="absl"):
        second = refs()
    assert sum(map(len, second)) == 10
    assert any(
        "lists other images than those of tar" in record.getMessage() for record in caplog.records
    )
    assert all(ref.read().image.size for half in second for ref in half)


@pytest.mark.parametrize("nested", [False, True])
def test_contents_are_passed_over(tmp_path, monkeypatch, nested):
    each, count = 5 << 20, 8
    info = tarfile.TarInfo("n01.tar")
    info.size = count * (each + 512) + 1024
    with open(tmp_path / "a.tar", "wb") as file:
        file.write(info.tobuf() if nested else b"")
        for i in range(count):
            image = tarfile.TarInfo(f"{i}.png")
            image.size = each
            file.write(image.tobuf())
            file.seek(each, os.SEEK_CUR)
        file.truncate(file.tell() + (2048 if nested else 1024))
    sizes = []
    read = storage.read
    monkeypatch.setattr(storage, "read", lambda *args: sizes.append(args[2]) or read(*args))
    assert len(archives.archive(tmp_path / "a.tar")) == count
    assert sum(sizes) < 40 * 16 << 10 < each
