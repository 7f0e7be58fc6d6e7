"""NIfTI (nibabel), whose slices are images, and DICOM (pydicom) of one frame."""

from __future__ import annotations

import gzip
import io
import os
from collections.abc import Sequence

import numpy as np

from sr3_jax.data import storage
from sr3_jax.data.arrays import base
from sr3_jax.data.image_files import BadImageError, decoder_errors


class NiftiFile(base.ArrayFile):
    """A volume `[x, y, z]` or `[x, y, z, t]`: every slice along z, and of every t, is an image."""

    def __init__(
        self, path: str | os.PathLike[str], channels: int | None, variables: Sequence[str]
    ) -> None:
        """Reads the header; see `arrays.open_file`."""
        import nibabel

        content = storage.read(path)
        self._is_packed = str(path).lower().endswith(".gz")
        with decoder_errors("no NIfTI"):
            if self._is_packed:
                content = gzip.decompress(content)
            self._image = nibabel.Nifti1Image.from_bytes(content)
        shape = (*self._image.shape, 1, 1)[: max(4, len(self._image.shape))]
        if len(shape) != 4:
            raise BadImageError(f"a volume of shape {self._image.shape}; give [x, y, z] or with t")
        self._volume = shape
        of = self._image.dataobj
        self._slope, self._offset = float(of.slope), float(of.inter)
        self._is_raw = self._slope == 1 and self._offset == 0
        stored = self._image.get_data_dtype()
        self._set((*shape[:2], 1), stored if self._is_raw else np.dtype(np.float32))

    def __len__(self) -> int:
        return self._volume[2] * self._volume[3]

    def read(self, index: int = 0) -> base.Values:
        z, t = np.unravel_index(index, self._volume[2:])
        image = np.asanyarray(self._image.dataobj).reshape(self._volume)[:, :, z, t]
        return image.astype(self.dtype)[..., None]

    def _write(self, path: base.Path, images: Sequence[base.Values], factor: int | float) -> None:
        import nibabel

        # Numbers as stored: nibabel does not divide by a slope that is given.
        stored = self._image.get_data_dtype()
        made = np.stack(
            [
                base.as_stored((image[..., 0] - self._offset) / self._slope, stored, None)
                for image in images
            ]
        )
        made = np.moveaxis(made.reshape(*self._volume[2:], *made.shape[1:]), (0, 1), (2, 3))
        made = made.reshape(*made.shape[:2], *self._image.shape[2:])
        # The first voxel of a finer grid is centred nearer to the corner of the volume.
        step = np.diag([1 / factor, 1 / factor, 1, 1])
        step[:2, 3] = 0.5 / factor - 0.5
        header = self._image.header.copy()
        header.set_data_shape(made.shape)
        volume = nibabel.Nifti1Image(made, self._image.affine @ step, header)
        volume.set_data_dtype(self._image.get_data_dtype())
        if not self._is_raw:
            volume.header.set_slope_inter(self._slope, self._offset)
        content = volume.to_bytes()
        if self._is_packed or str(path).lower().endswith(".gz"):
            content = gzip.compress(content, 6, mtime=0)
        storage.write_whole(path, content)


class DicomFile(base.ArrayFile):
    """One frame of DICOM. Values are rescaled (CT: Hounsfield units), results stored likewise."""

    def __init__(
        self, path: str | os.PathLike[str], channels: int | None, variables: Sequence[str]
    ) -> None:
        """Reads the tags; see `arrays.open_file`."""
        import pydicom

        content = storage.read(path)
        with decoder_errors("no image of DICOM"):
            self._data = pydicom.dcmread(io.BytesIO(content))
            frames = int(getattr(self._data, "NumberOfFrames", 1))
            size = int(self._data.Rows), int(self._data.Columns)
            samples = int(self._data.SamplesPerPixel)
            self._slope = float(getattr(self._data, "RescaleSlope", 1.0))
            self._offset = float(getattr(self._data, "RescaleIntercept", 0.0))
            signed = bool(self._data.PixelRepresentation)
            self._stored = np.dtype(f"{'i' if signed else 'u'}{self._data.BitsAllocated // 8}")
            self._bits = int(self._data.BitsStored) - signed
        if frames != 1:
            raise BadImageError(f"it has {frames} frames; save each as a file of its own")
        is_raw = self._slope == 1 and self._offset == 0
        self._set((*size, samples), self._stored if is_raw else np.dtype(np.float32))
        self.units = (str(getattr(self._data, "RescaleType", "")),) * samples

    def __len__(self) -> int:
        return 1

    def read(self, index: int = 0) -> base.Values:
        with decoder_errors():
            raw = self._data.pixel_array
        raw = raw.reshape(self.shape)
        if self.dtype == self._stored:
            return raw
        return (raw * self._slope + self._offset).astype(np.float32)

    def _write(self, path: base.Path, images: Sequence[base.Values], factor: int | float) -> None:
        import pydicom

        (image,) = images
        raw = base.as_stored((image - self._offset) / self._slope, self._stored, None)
        least = -(2**self._bits) if self._stored.kind == "i" else 0
        raw = raw.clip(least, 2**self._bits - 1)
        made = pydicom.dcmread(io.BytesIO(_bytes(self._data)))
        made.Rows, made.Columns = raw.shape[:2]
        for name in ("PixelSpacing", "ImagerPixelSpacing"):
            if name in made:
                spacing = [float(n) for n in made[name].value]
                setattr(made, name, [n / factor for n in spacing])
        if {"ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"} <= set(dir(made)):
            # The first pixel of a finer grid is centred nearer to the corner of the image.
            along = np.array(made.ImageOrientationPatient, float).reshape(2, 3)
            rows, columns = (float(n) * (1 - factor) / 2 for n in made.PixelSpacing)
            place = (
                np.array(made.ImagePositionPatient, float) + columns * along[0] + rows * along[1]
            )
            made.ImagePositionPatient = [f"{n:.10g}" for n in place]
        for name in ("SmallestImagePixelValue", "LargestImagePixelValue"):
            if name in made:
                del made[name]
        made.SOPInstanceUID = pydicom.uid.generate_uid()
        made.file_meta.MediaStorageSOPInstanceUID = made.SOPInstanceUID
        made.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
        made.ImageType = ["DERIVED", *list(made.get("ImageType", ["", "PRIMARY"]))[1:]]
        if self.shape[2] > 1:
            made.PlanarConfiguration = 0
        data = np.ascontiguousarray(raw).tobytes()
        made.PixelData = data + b"\0" * (len(data) % 2)
        made["PixelData"].VR = "OW" if self._stored.itemsize > 1 else "OB"
        storage.write_whole(path, _bytes(made))


def _bytes(data: object) -> bytes:
    file = io.BytesIO()
    data.save_as(file)
    return file.getvalue()
