"""LPIPS, by torch-fidelity and its networks."""

from __future__ import annotations

import contextlib
import os
import pathlib
import tempfile
from collections.abc import Collection, Iterator

import numpy as np
from etils import epath
from jaxtyping import UInt

from sr3_jax.data import storage
from sr3_jax.evaluation.pretrained import common

_SMALLEST = 16  # pixels: VGG halves them four times


def measure(inputs: common.Inputs, weights: epath.PathLike | None) -> common.Measured:
    """Measures LPIPS of each method's images; see `lpips`."""
    found = common.Measured()
    for name, images in inputs.methods.items():
        bar = common.bar(f"LPIPS of {name}", images)
        found.add(name, lpips=lpips(bar, inputs.reference, weights=weights))
    found.protocol.append(
        "LPIPS: version 0.1, VGG16, by torch-fidelity, at the images' size, in 8 bits."
    )
    return found


def lpips(
    images: Collection[UInt[np.ndarray, "_h _w 3"]],
    reference: Collection[UInt[np.ndarray, "_h _w 3"]],
    *,
    weights: epath.PathLike | None = None,
) -> list[float]:
    """Computes the perceptual distance of each image to its reference, at their own size.

    Zhang et al., "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric": version
    0.1 on VGG16 (not AlexNet, whose distances are others), by torch-fidelity.

    Args:
      images: images to score.
      reference: reference of each image, of its size.
      weights: folder of the files `weights-vgg16-lpips.pth` and `vgg16-397923af.pth`; None to
        download them.

    Raises:
      ImportError: torch-fidelity is not installed.
      FileNotFoundError: there are no such weights.
      OSError: the weights could not be downloaded.
      ValueError: images and references are no pairs, or a file or an image cannot be used.
    """
    torch, fidelity = common.libraries()
    if len(images) != len(reference):
        raise ValueError(f"{len(images)} images and {len(reference)} references: pairs are needed")
    with _lpips_weights(weights), common.naming_weights("LPIPS", weights):
        network = fidelity.SampleSimilarityLPIPS("lpips-vgg16", sample_similarity_dtype="uint8")
    device = common.device()
    network.to(device)
    distances = []
    pairs = zip(common.checked(images), common.checked(reference), strict=True)
    # One pair at a time, since pairs may have any size.
    for i, pair in enumerate(pairs):
        shapes = [f"{image.shape[1]}x{image.shape[0]}" for image in pair]
        if shapes[0] != shapes[1]:
            raise ValueError(f"image {i} is {shapes[0]}, and its reference {shapes[1]}")
        if min(pair[0].shape[:2]) < _SMALLEST:
            raise ValueError(f"image {i} is {shapes[0]}; LPIPS needs {_SMALLEST} pixels each way")
        both = common.tensor(np.stack(pair), device)
        with common.exact():
            distances.append(network(both[:1], both[1:]).item())
    return distances


@contextlib.contextmanager
def _lpips_weights(folder: epath.PathLike | None) -> Iterator[None]:
    """Lets torch-fidelity, which takes no path of them, find weights among its downloads."""
    if folder is None:
        yield
        return
    torch, fidelity = common.libraries()
    import torchvision

    urls = (
        fidelity.sample_similarity_lpips.URL_VGG16_LPIPS,
        torchvision.models.VGG16_Weights.IMAGENET1K_V1.url,
    )
    kept_in = torch.hub.get_dir()
    with contextlib.ExitStack() as stack:
        home = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory()))
        (home / "checkpoints").mkdir()
        for url in urls:
            name = os.path.basename(url)
            path = os.path.join(os.fspath(folder), name)
            if not storage.exists(path):
                raise FileNotFoundError(f"{path} does not exist; LPIPS needs it: {url}")
            copy = stack.enter_context(common.local_copy(path))
            (home / "checkpoints" / name).symlink_to(os.path.abspath(copy))
        torch.hub.set_dir(str(home))
        try:
            yield
        finally:
            torch.hub.set_dir(kept_in)
