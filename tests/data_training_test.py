"""Every source trains a small network for a few steps, by config."""

import io
import pathlib
import tarfile

import numpy as np
import pytest
import small_run
import tensorflow_datasets as tfds
from etils import epath
from PIL import Image

from sr3_jax import jobs
from sr3_jax.config import read
from sr3_jax.data import degrade, folders, image_files, photos, prepared, records

_SHARED = pathlib.Path(__file__).parents[2] / "shared" / "data"


def _photographs(root: pathlib.Path, count: int = 10) -> pathlib.Path:
    """Copies shared photographs if they are there, or else scikit-image's."""
    root.mkdir(parents=True)
    for path in sorted(_SHARED.glob("bsds500/train/*.jpg"))[:count]:
        (root / path.name).symlink_to(path)
    if not any(root.iterdir()):
        pictures = [ref.read().image for ref in photos.photos("train")]
        for i in range(count):
            picture = pictures[i % len(pictures)][: 200 + i, : 300 - i]
            Image.fromarray(picture).save(root / f"{i}.jpg")
    return root


def _folder(root):
    return dict(source="folder", path=str(_photographs(root / "images")))


def _twelve_bits(root):
    for i, ref in enumerate(folders.folder(_photographs(root / "photographs"))):
        values = ref.read().image[:160, :160, :1].astype(np.uint16)
        values = values * 16 + np.arange(160, dtype=np.uint16)[:, None, None] % 16
        image_files.write_image(values.repeat(3, 2), epath.Path(root / "images" / f"{i}.png"))
    return dict(source="folder", path=str(root / "images"), white_level=4095)


def _folder_pairs(root):
    for ref in folders.folder(_photographs(root / "photographs")):
        image = ref.read().image[:160, :160]
        low = degrade.to_levels(degrade.resize_bicubic(image, 40), np.uint8)
        for name, made in (("high", image), ("low", low)):
            (root / name).mkdir(exist_ok=True)
            Image.fromarray(made).save(root / name / f"{pathlib.Path(ref.name).stem}.png")
    return dict(source="folder_pairs", path=str(root / "high"), low_path=str(root / "low"))


def _prepared(root):
    source = folders.folder(_photographs(root / "images"))
    plan = prepared.Plan(source, str(root / "prepared"), 32, 3)
    for part in prepared.begin(plan):
        prepared.write_file(plan, part)
    prepared.finish(plan)
    return dict(source="tfrecord", path=str(root / "prepared"))


def _ffhq(root):
    """Returns FFHQ's own records if they are there, or else faces in the same form."""
    if (_SHARED / "ffhq_sample").exists():
        return dict(source="tfrecord", path=str(_SHARED / "ffhq_sample" / "tfrecords"))
    from skimage import data

    for level in (4, 5):
        contents = []
        for x in (150, 160, 170, 180):
            face = degrade.by_area(data.astronaut()[20:220, x : x + 200], 2**level)
            examples = tfds.proto.tf_example_generated_pb2.Example()
            features = examples.features.feature
            features["shape"].int64_list.value.extend([3, 2**level, 2**level])
            features["data"].bytes_list.value.append(face.transpose(2, 0, 1).tobytes())
            contents.append(records.write_record(examples.SerializeToString()))
        (root / f"ffhq-r{level:02d}.tfrecords").write_bytes(b"".join(contents))
    return dict(source="tfrecord", path=str(root))


def _tfds(root):
    manual = root / "manual"
    manual.mkdir()
    with tarfile.open(manual / "data64x64.tar", "w") as archive:
        for i, ref in enumerate(folders.folder(_photographs(root / "images"))):
            data = io.BytesIO()
            Image.fromarray(degrade.by_area(ref.read().image[:150, :150], 64)).save(data, "PNG")
            member = tarfile.TarInfo(f"{i:05d}.png")
            member.size = len(data.getvalue())
            data.seek(0)
            archive.addfile(member, data)
    builder = tfds.builder("celeb_a_hq/64", data_dir=str(root / "data"))
    download = tfds.download.DownloadConfig(manual_dir=str(manual))
    builder.download_and_prepare(download_config=download)
    return dict(source="tfds", path="celeb_a_hq/64:train", tfds_dir=str(root / "data"))


@pytest.mark.parametrize("make", [_folder, _twelve_bits, _folder_pairs, _prepared, _ffhq, _tfds])
def test_a_source_trains(make, tmp_path):
    config = small_run.config()
    config.data.update(make(tmp_path), num_eval_images=2)
    config.train.update(num_steps=2, num_decay_steps=0, sample_every_steps=0)
    config.evaluation.image_size = 16
    config.sampling.num_steps = 1
    workdir = epath.Path(tmp_path / "run")
    jobs.train(read(config), workdir)
    state = small_run.read_checkpoint(workdir, 2)
    assert all(np.isfinite(leaf).all() for leaf in state["params"]["conv_in"].values())
    assert (workdir / "evaluation" / "samples.png").exists()
    for name in ("input", "reference", "sr3"):
        image = image_files.read_rgb(str(workdir / "evaluation" / "images" / name / "000000.png"))
        assert image.dtype == (np.uint16 if make is _twelve_bits else np.uint8)
