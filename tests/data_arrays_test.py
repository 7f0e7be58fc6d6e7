"""Files of arrays: what is read is what was stored, and results come back in the same form."""

import numpy as np
import pytest
import tifffile

from sr3_jax.data import arrays
from sr3_jax.data.image_files import BadImageError

RNG = np.random.default_rng(0)
IMAGE = RNG.normal(size=(6, 5, 13)).astype(np.float32)
PLACE = [  # of GeoTIFF: pixels of 30 m, their corner, UTM 32N
    (33550, "d", 3, (30.0, 30.0, 0.0), True),
    (33922, "d", 6, (0.0, 0.0, 0.0, 500000.0, 5200000.0, 0.0), True),
    (34735, "H", 8, (1, 1, 0, 1, 3072, 0, 1, 32632), True),
]


def _twice(image):
    return image.repeat(2, axis=0).repeat(2, axis=1)


def _npy(path, values):
    np.save(path, values)


def _npz(path, values):
    np.savez(path, bands=values)


def _tiff(path, values):
    photometric = {"photometric": "minisblack", "metadata": None}
    if values.ndim == 3:
        photometric["planarconfig"] = "separate" if values.shape[0] == 13 else "contig"
    tifffile.imwrite(path, values, **photometric)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16, np.float32, np.float64])
@pytest.mark.parametrize("layout", ["last", "first", "one"])
@pytest.mark.parametrize(("suffix", "save"), [(".npy", _npy), (".npz", _npz), (".tif", _tiff)])
def test_an_image_comes_back_in_its_own_form(tmp_path, suffix, save, layout, dtype):
    image = (IMAGE * 20 + 100).astype(dtype)
    stored = {"last": image, "first": np.moveaxis(image, -1, 0), "one": image[..., 0]}[layout]
    expected = image[..., :1] if layout == "one" else image
    save(path := tmp_path / f"a{suffix}", stored)
    file = arrays.open_file(path, channels=expected.shape[2])
    assert file.shape == expected.shape and file.dtype == dtype and len(file) == 1
    read = file.read()
    assert read.dtype == dtype
    np.testing.assert_array_equal(read, expected)
    # Results are floats; integers are rounded and clipped, not wrapped.
    large = _twice(expected).astype(np.float64) + 0.3
    large[0, 0, 0] = 1e9
    file.write(made := tmp_path / "made" / f"a{suffix}", [large])
    back = arrays.open_file(made, channels=expected.shape[2])
    assert back.dtype == dtype and back.shape == (12, 10, expected.shape[2])
    if np.dtype(dtype).kind == "f":
        np.testing.assert_array_equal(back.read(), large.astype(dtype))
    else:
        np.testing.assert_array_equal(back.read()[1:], _twice(expected)[1:])
        assert back.read()[0, 0, 0] == np.iinfo(dtype).max
    if suffix == ".npy" and layout != "last":
        assert np.load(made).ndim == stored.ndim and np.load(made).shape[0] == (
            13 if layout == "first" else 12
        )


def test_several_images_of_one_file(tmp_path):
    stack = np.stack([IMAGE, IMAGE + 1, IMAGE + 2])
    np.save(path := tmp_path / "days.npy", stack)
    file = arrays.open_file(path, 13)
    assert len(file) == 3
    np.testing.assert_array_equal(file.read(2), stack[2])
    file.write(made := tmp_path / "made.npy", [_twice(file.read(i)) for i in range(3)])
    assert np.load(made).shape == (3, 12, 10, 13)


def test_named_arrays_are_channels(tmp_path):
    parts = {"t2m": IMAGE[..., 0], "z": IMAGE[..., 1], "mask": np.ones((2, 2), np.uint8)}
    np.savez(path := tmp_path / "fields.npz", **parts)
    file = arrays.open_file(path, 2, ["z", "t2m"])
    assert file.names == ("z", "t2m")
    np.testing.assert_array_equal(file.read(), IMAGE[..., 1::-1])
    file.write(made := tmp_path / "made.npz", [_twice(file.read())])
    assert set(np.load(made)) == {"z", "t2m"}
    for variables, why in (
        ([], "several arrays, t2m, z, mask"),
        (["q"], "has no q; its arrays are"),
    ):
        with pytest.raises(BadImageError, match=why):
            arrays.open_file(path, 2, variables)
    with pytest.raises(BadImageError, match=r"of one type: z \(6, 5\), mask \(2, 2\)"):
        arrays.open_file(path, 2, ["z", "mask"])


@pytest.mark.parametrize(
    ("dtype", "nodata"), [(np.int16, -9999), (np.float32, -9999.0), (np.uint16, 0)]
)
def test_geotiff_keeps_its_place_and_what_is_missing(tmp_path, dtype, nodata):
    image = (IMAGE[..., :4] * 20 + 200).astype(dtype)
    image[1, 2] = nodata
    extra = [*PLACE, (42113, "s", 0, str(nodata), True)]
    path = tmp_path / "scene.tif"
    tifffile.imwrite(
        path,
        image,
        photometric="minisblack",
        planarconfig="contig",
        metadata=None,
        extratags=extra,
        compression="zlib",
    )
    file = arrays.open_file(path)
    read = file.read()
    assert read.dtype == np.float32 and np.isnan(read[1, 2]).all() and np.isnan(read).sum() == 4
    file.write(made := tmp_path / "made.tif", [_twice(read)])
    np.testing.assert_array_equal(arrays.open_file(made).read(), _twice(read))
    with tifffile.TiffFile(made) as of_made:
        tags = of_made.pages.first.tags
        assert tags[33550].value == (15.0, 15.0, 0.0)  # half the size, of the same corner
        assert tags[33922].value == PLACE[1][3] and tags[34735].value == PLACE[2][3]
        assert float(tags[42113].value) == nodata
        assert of_made.pages.first.asarray()[2, 4].tolist() == [nodata] * 4


def test_what_cannot_be_read_or_kept_is_named(tmp_path):
    np.save(path := tmp_path / "a.npy", np.zeros((4, 5, 3), np.uint8))
    with pytest.raises(BadImageError, match=r"shape \(4, 5, 3\) has no axis of 7 channels"):
        arrays.open_file(path, 7)
    with pytest.raises(BadImageError, match="arrays of .npy have no names; leave variables empty"):
        arrays.open_file(path, 3, ["t2m"])
    with pytest.raises(ValueError, match="values are missing, and the file's uint8 has no value"):
        arrays.open_file(path).write(tmp_path / "b.npy", [np.full((8, 10, 3), np.nan)])
    with pytest.raises(ValueError, match="not a whole number of times"):
        arrays.open_file(path).write(tmp_path / "b.npy", [np.zeros((9, 10, 3))])
    assert not (tmp_path / "b.npy").exists()
    np.save(tmp_path / "c.npy", np.zeros((4, 5), np.complex64))
    np.save(tmp_path / "o.npy", np.array([{}], object), allow_pickle=True)
    (tmp_path / "broken.npz").write_bytes(b"PK\3\4 no archive")
    (tmp_path / "broken.tif").write_bytes(b"II*\0 no tags")
    (tmp_path / "broken.npy").write_bytes(path.read_bytes()[:90])
    for name, why in {
        "c.npy": "complex64; save real numbers",
        "o.npy": "no array of NumPy",
        "broken.npz": "no archive of NumPy",
        "broken.tif": "no TIFF",
        "broken.npy": "no array of NumPy",
        "a.png": "no format of arrays; give one of .npy, .npz, .tif",
    }.items():
        with pytest.raises(BadImageError, match=why):
            arrays.open_file(tmp_path / name)
    with pytest.raises(FileNotFoundError):
        arrays.open_file(tmp_path / "none.npy")


@pytest.mark.parametrize("suffix", [".nc", ".zarr"])
def test_variables_are_channels_and_times_are_images(tmp_path, suffix):
    """Written by xarray itself, packed in 16 bits as ERA5 is, with missing values."""
    xarray = pytest.importorskip("xarray", reason="xarray is not installed")
    pytest.importorskip("zarr" if suffix == ".zarr" else "h5netcdf", reason="not installed")
    rng = np.random.default_rng(1)
    t2m = rng.normal(280, 9, (3, 6, 8)).astype(np.float32)
    t2m[1, 2, 3] = np.nan
    dims = ("time", "latitude", "longitude")
    rain = np.abs(rng.normal(size=t2m.shape)).astype(np.float32)
    dataset = xarray.Dataset(
        {
            "t2m": (dims, t2m, {"units": "K"}),
            "tp": (dims, rain, {"units": "m"}),
        },
        {
            "time": ("time", [0, 6, 12], {"units": "hours since 2020-01-01"}),
            "latitude": ("latitude", np.linspace(50, 45, 6), {"units": "degrees_north"}),
            "longitude": ("longitude", np.linspace(5, 12, 8)),
        },
        {"title": "a test"},
    )
    packed = {"dtype": "int16", "scale_factor": 0.01, "add_offset": 270.0, "_FillValue": -32768}
    path, made = tmp_path / f"era{suffix}", tmp_path / f"made{suffix}"
    if suffix == ".nc":
        dataset.to_netcdf(path, encoding={"t2m": packed}, engine="h5netcdf")
    else:
        dataset.to_zarr(path, encoding={"t2m": packed})
    file = arrays.open_file(path)
    assert file.names == ("t2m", "tp") and file.units == ("K", "m")
    assert file.shape == (6, 8, 2) and len(file) == 3
    read = file.read(1)
    np.testing.assert_allclose(read[..., 0], t2m[1], atol=0.006)
    assert np.isnan(read).sum() == 1 and np.isnan(read[2, 3, 0])
    assert arrays.open_file(path, 1, ["tp"]).read(2).shape == (6, 8, 1)
    file.write(made, [_twice(file.read(i)) for i in range(3)])
    back = arrays.open_file(made)
    np.testing.assert_array_equal(back.read(1), _twice(read))
    opened = (xarray.open_zarr if suffix == ".zarr" else xarray.open_dataset)(made)
    assert opened.title == "a test" and opened.t2m.encoding["dtype"] == np.int16
    assert str(opened.time.values[1]).startswith("2020-01-01T06")
    # Cells of half the size on the same ground.
    np.testing.assert_allclose(opened.latitude[:3], [50.25, 49.75, 49.25])
    np.testing.assert_allclose(
        opened.latitude.values.reshape(-1, 2).mean(1), np.linspace(50, 45, 6)
    )
    np.testing.assert_allclose(
        opened.longitude.values.reshape(-1, 2).mean(1), np.linspace(5, 12, 8)
    )
    assert opened.latitude.units == "degrees_north"
    with pytest.raises(BadImageError, match="it has no msl; its variables are t2m, tp"):
        arrays.open_file(path, 1, ["msl"])
    with pytest.raises(BadImageError, match="name the channels by variables"):
        arrays.open_file(path, 1)


def test_data_sets_of_hdf5_are_channels(tmp_path):
    h5py = pytest.importorskip("h5py", reason="h5py is not installed")
    stack = np.stack([IMAGE[..., :2], IMAGE[..., 2:4]])
    stack[1, 2, 3, 0] = -99
    path, made = tmp_path / "a.h5", tmp_path / "b.h5"
    with h5py.File(path, "w") as file:
        for i, name in enumerate(("flow/u", "flow/v")):
            of = file.create_dataset(name, data=stack[..., i], compression="gzip")
            of.attrs["units"], of.attrs["_FillValue"] = "m/s", np.float32(-99)
        file.create_dataset("time", data=[0.0, 1.0])
        file.attrs["title"] = "a test"
    file = arrays.open_file(path, 2, ["flow/u", "flow/v"])
    assert len(file) == 2 and file.shape == (6, 5, 2) and file.units == ("m/s", "m/s")
    read = file.read(1)
    assert np.isnan(read[2, 3, 0]) and np.isnan(read).sum() == 1
    np.testing.assert_array_equal(file.read(0), stack[0])
    file.write(made, [_twice(file.read(i)) for i in range(2)])
    back = arrays.open_file(made, 2, ["flow/u", "flow/v"])
    np.testing.assert_array_equal(back.read(1), _twice(read))
    with h5py.File(made) as opened:
        assert opened["flow/u"][1, 4, 6] == -99 and opened["flow/v"].attrs["units"] == "m/s"
        assert opened["flow/u"].compression == "gzip" and opened.attrs["title"] == "a test"
    with pytest.raises(BadImageError, match="it has flow/u, flow/v, time; name the channels"):
        arrays.open_file(path, 2)
    with h5py.File(path := tmp_path / "c.h5", "w") as file:
        file["image"] = np.moveaxis(IMAGE, -1, 0)
    file = arrays.open_file(path, 13)
    np.testing.assert_array_equal(file.read(), IMAGE)
    file.write(made, [_twice(IMAGE)])
    with h5py.File(made) as opened:
        assert opened["image"].shape == (13, 12, 10)


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("slope", [None, 0.5])
def test_slices_of_a_volume_keep_their_place_in_the_body(tmp_path, suffix, slope):
    nibabel = pytest.importorskip("nibabel", reason="nibabel is not installed")
    volume = np.random.default_rng(2).integers(-500, 900, (6, 5, 3)).astype(np.int16)
    affine = np.array([[-0.9, 0.1, 0, 40], [0.1, 1.1, 0, -30], [0, 0, 2.5, 7], [0, 0, 0, 1.0]])
    image = nibabel.Nifti1Image(volume, affine)
    if slope:
        image.header.set_slope_inter(slope, 0)
    nibabel.save(image, path := tmp_path / f"scan{suffix}")
    file = arrays.open_file(path)
    assert len(file) == 3 and file.shape == (6, 5, 1)
    assert file.dtype == (np.float32 if slope else np.int16)
    np.testing.assert_allclose(file.read(1)[..., 0], volume[:, :, 1] * (slope or 1))
    file.write(made := tmp_path / f"made{suffix}", [_twice(file.read(i)) for i in range(3)])
    back = nibabel.load(made)
    assert back.shape == (12, 10, 3) and back.get_data_dtype() == np.int16
    np.testing.assert_allclose(back.get_fdata()[..., 2], _twice(file.read(2))[..., 0])
    # Two finer voxels together are centred where the one was, and half as large.
    for i, j, k in ((0, 0, 0), (4, 3, 2)):
        finer = [back.affine @ (2 * i + a, 2 * j + b, k, 1) for a in (0, 1) for b in (0, 1)]
        np.testing.assert_allclose(np.mean(finer, axis=0), affine @ (i, j, k, 1), atol=1e-4)
    zooms = np.array(image.header.get_zooms()) / (2, 2, 1)
    np.testing.assert_allclose(back.header.get_zooms(), zooms, rtol=1e-5)


def test_dicom_keeps_its_units_and_place(tmp_path):
    pydicom = pytest.importorskip("pydicom", reason="pydicom is not installed")
    raw = np.random.default_rng(3).integers(0, 3000, (6, 5)).astype(np.uint16)
    data = pydicom.dataset.Dataset()
    data.SOPClassUID, data.SOPInstanceUID = pydicom.uid.CTImageStorage, pydicom.uid.generate_uid()
    data.file_meta = pydicom.dataset.FileMetaDataset()
    data.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID
    data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID
    data.PatientName, data.Modality = "Nobody", "CT"
    data.Rows, data.Columns = raw.shape
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 12, 11, 0
    data.RescaleSlope, data.RescaleIntercept, data.RescaleType = "1", "-1024", "HU"
    data.PixelSpacing, data.ImagePositionPatient = ["0.8", "0.6"], ["10", "20", "30"]
    data.ImageOrientationPatient = ["1", "0", "0", "0", "1", "0"]
    data.PixelData = raw.tobytes()
    data.save_as(path := tmp_path / "slice.dcm", enforce_file_format=True)
    file = arrays.open_file(path)
    assert file.units == ("HU",) and file.shape == (6, 5, 1) and file.dtype == np.float32
    np.testing.assert_array_equal(file.read()[..., 0], raw - 1024.0)
    large = _twice(file.read())
    large[0, 0, 0] = 1e5
    file.write(made := tmp_path / "made.dcm", [large])
    back = pydicom.dcmread(made)
    np.testing.assert_array_equal(back.pixel_array[1:], _twice(raw)[1:])
    assert back.pixel_array[0, 0] == 4095  # the most that 12 bits hold
    assert list(back.PixelSpacing) == [0.4, 0.3] and back.PatientName == "Nobody"
    # The first pixel's centre moves by a quarter of the former pixel, 0.6 mm wide, 0.8 mm high.
    np.testing.assert_allclose(np.array(back.ImagePositionPatient, float), [9.85, 19.8, 30])
    assert back.SOPInstanceUID != data.SOPInstanceUID and back.ImageType[0] == "DERIVED"


@pytest.mark.parametrize("suffix", [".nc", ".zarr", ".h5", ".nii", ".nii.gz", ".dcm"])
def test_damaged_files_of_libraries_are_named(tmp_path, suffix):
    needed = arrays.FORMATS[suffix].package
    pytest.importorskip(needed, reason=f"{needed} is not installed")
    path = tmp_path / f"broken{suffix}"
    if suffix == ".zarr":
        path.mkdir()
    else:
        path.write_bytes(b"\x89HDF\r\n not more")
    with pytest.raises(BadImageError, match="^no "):
        arrays.open_file(path)
    with pytest.raises(FileNotFoundError):
        arrays.open_file(tmp_path / f"none{suffix}")


def test_a_geotiff_of_rasterio_keeps_its_place(tmp_path):
    rasterio = pytest.importorskip("rasterio", reason="rasterio is not installed")
    path, made = tmp_path / "scene.tif", tmp_path / "made.tif"
    values = (IMAGE * 50).astype(np.float32)
    values[2, 1] = -9999
    form = dict(driver="GTiff", width=5, height=6, count=13, dtype="float32", nodata=-9999)
    form |= dict(crs="EPSG:32632", compress="deflate", tiled=True, blockxsize=16, blockysize=16)
    form["transform"] = rasterio.transform.from_origin(500000, 5200000, 30, 20)
    with rasterio.open(path, "w", **form) as file:
        file.write(np.moveaxis(values, -1, 0))
    file = arrays.open_file(path)
    assert file.shape == (6, 5, 13) and np.isnan(file.read()[2, 1]).all()
    np.testing.assert_array_equal(file.read()[3], values[3])
    file.write(made, [_twice(file.read())])
    with rasterio.open(made) as opened, rasterio.open(path) as before:
        assert opened.crs == before.crs and opened.nodata == -9999 and opened.count == 13
        assert opened.bounds == before.bounds and opened.res == (15, 10)
        assert (opened.read(masked=True).mask.sum(axis=(1, 2)) == 4).all()


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".nc", ".zarr", ".h5", ".tif"])
def test_a_result_may_have_the_first_channels_alone(tmp_path, suffix):
    """A network may be given more channels than it predicts."""
    names, path = ("a", "b", "c"), tmp_path / f"x{suffix}"
    values = np.random.default_rng(0).normal(size=(6, 8, 3)).astype(np.float32)
    of_names = {name: values[..., i] for i, name in enumerate(names)}
    if suffix in (".nc", ".zarr"):
        xarray = pytest.importorskip("xarray", reason="xarray is not installed")
        dataset = xarray.Dataset({name: (("y", "x"), of) for name, of in of_names.items()})
        how = {"engine": "h5netcdf"} if suffix == ".nc" else {}
        (dataset.to_netcdf if suffix == ".nc" else dataset.to_zarr)(path, **how)
    elif suffix == ".h5":
        h5py = pytest.importorskip("h5py", reason="h5py is not installed")
        with h5py.File(path, "w") as file:
            file.update(of_names)
    elif suffix == ".tif":
        tifffile.imwrite(path, np.moveaxis(values, -1, 0), photometric="minisblack")
    elif suffix == ".npz":
        np.savez(path, **of_names)
    else:
        np.save(path, values)
    variables = names if arrays.FORMATS[suffix].has_names else ()
    large = values[..., :2].repeat(2, axis=0).repeat(2, axis=1)
    arrays.open_file(path, 3, variables).write(tmp_path / f"made{suffix}", [large])
    made = arrays.open_file(tmp_path / f"made{suffix}", 2, variables[:2])
    np.testing.assert_array_equal(made.read(0), large)
