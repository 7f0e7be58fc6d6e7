"""Files of arrays as a source of examples."""

import dataclasses

import numpy as np
import pytest

from sr3_jax.data import array_source, source_kinds
from sr3_jax.data.image_files import BadImageError


def _place(path, **options):
    return source_kinds.Place("train", str(path), **options)


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    stacks = {"b/days": rng.normal(size=(3, 8, 9, 2)), "a": rng.normal(size=(8, 9, 2))}
    for name, values in stacks.items():
        path = tmp_path / "data" / f"{name}.npy"
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, values)
    (tmp_path / "data" / "notes.txt").write_text("no array")
    (tmp_path / "data" / "broken.npz").write_bytes(b"PK")
    return tmp_path / "data", stacks


def test_each_image_of_each_file_is_an_example(folder, tmp_path):
    path, stacks = folder
    place = _place(path, channels=2, index=tmp_path / "index.npz")
    assert not list(array_source.faults(place))
    for _ in range(2):  # the second time from the list that was kept
        found = array_source.open_source(place)
        days = [f"b/days.npy[{i}]" for i in range(3)]
        assert [ref.name for ref in found] == ["a.npy", *days, "broken.npz"]
        with pytest.raises(BadImageError, match="no archive of NumPy"):
            found[4].read()
        images = [ref.read().image for ref in found[:4]]
        assert all(image.dtype == np.float32 for image in images)
        np.testing.assert_allclose(images[0], stacks["a"], rtol=1e-6)
        np.testing.assert_allclose(images[1:], stacks["b/days"], rtol=1e-6)
    single = array_source.open_source(_place(path / "b" / "days.npy", channels=2))
    assert len(single) == 3 and single[2].name == "days.npy[2]"
    np.testing.assert_allclose(single[2].read().image, stacks["b/days"][2], rtol=1e-6)


def test_a_folder_of_zarr_is_a_file(tmp_path):
    xarray = pytest.importorskip("xarray", reason="xarray is not installed")
    pytest.importorskip("zarr", reason="zarr is not installed")
    values = np.random.default_rng(0).normal(size=(4, 8, 9))
    for name in ("2020.zarr", "more/2021.zarr"):
        dataset = xarray.Dataset({"t": (("time", "y", "x"), values), "z": ("x", np.arange(9.0))})
        dataset.to_zarr(tmp_path / "data" / name)
    found = array_source.open_source(_place(tmp_path / "data", channels=1, variables=("t",)))
    assert [ref.name for ref in found][3:5] == ["2020.zarr[3]", "more/2021.zarr[0]"]
    np.testing.assert_allclose(found[7].read().image[..., 0], values[3], rtol=1e-6)
    assert len(array_source.open_source(_place(tmp_path / "data" / "2020.zarr", channels=1))) == 4


def test_what_cannot_be_used_is_named(folder, tmp_path):
    path, _ = folder
    for bad, why in ((path / "none", "does not exist"), (path / "notes.txt", "is no file of arr")):
        assert why in next(array_source.faults(_place(bad)))
    with pytest.raises(
        ValueError, match=r"can be used; the first of 3: a.npy: .* no axis of 5 cha"
    ):
        array_source.open_source(_place(path, channels=5))
    found = array_source.open_source(_place(path, channels=2))
    (path / "a.npy").write_bytes(b"no array any more")
    with pytest.raises(BadImageError, match="no array of NumPy"):
        found[0].read()


def test_what_lies_beside_is_found_by_name(folder, tmp_path):
    path, stacks = folder
    (path / "broken.npz").unlink()
    low = {"b/days_LR.npy": stacks["b/days"][:, ::2, ::3], "a_LR.npy": stacks["a"][::2, ::3]}
    maps = {"b/days.npz": np.ones((8, 9, 1)), "a.npz": np.zeros((8, 9, 1))}
    for name, values in low.items():
        (tmp_path / "low" / name).parent.mkdir(parents=True, exist_ok=True)
        np.save(tmp_path / "low" / name, values)
    for name, values in maps.items():
        (tmp_path / "maps" / name).parent.mkdir(parents=True, exist_ok=True)
        np.savez(tmp_path / "maps" / name, values)
    place = _place(
        path,
        channels=2,
        low_channels=2,
        low_path=str(tmp_path / "low"),
        maps=1,
        maps_path=str(tmp_path / "maps"),
        index=tmp_path / "index" / "train.npz",
    )
    assert not list(array_source.faults(place))
    for _ in range(2):
        pictures = [ref.read() for ref in array_source.open_source(place)]
        assert [picture.maps.mean() for picture in pictures] == [0, 1, 1, 1]
        for picture in pictures:
            np.testing.assert_array_equal(picture.low_resolution, picture.image[::2, ::3])
    # One file of one image is for all; another number of images is for none.
    single = dataclasses.replace(place, maps_path=str(tmp_path / "maps" / "a.npz"), index=None)
    assert [ref.read().maps.mean() for ref in array_source.open_source(single)] == [0] * 4
    np.save(tmp_path / "low" / "b" / "days_LR.npy", stacks["b/days"][:2, ::2, ::3])
    with pytest.raises(ValueError, match="days.npy of .* has 3 images, and its file in .* 2"):
        array_source.open_source(dataclasses.replace(place, index=None))
    (tmp_path / "maps" / "a.npz").unlink()
    with pytest.raises(ValueError, match="1 files of .* have none of their name in .*: a.npy"):
        array_source.open_source(dataclasses.replace(place, index=None, low_path=""))
