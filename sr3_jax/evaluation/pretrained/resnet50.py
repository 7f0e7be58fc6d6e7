"""The accuracy of ResNet-50, by Keras, on images with labels."""

from __future__ import annotations

import contextlib
import itertools
import os
import sys
from collections.abc import Collection, Iterator, Sequence
from types import ModuleType

import jax
import numpy as np
from etils import epath
from jaxtyping import UInt, UInt8

from sr3_jax.data import image_files
from sr3_jax.evaluation.pretrained import common

_SIZE = 224
_NUM_CLASSES = 1000
_BATCH_SIZE = 16


def measure(inputs: common.Inputs, weights: epath.PathLike | None) -> common.Measured:
    """Measures accuracy on each method's images and on the references; see `resnet50`."""
    found = common.Measured()
    for name, images in inputs.rows.items():
        bar = common.bar(f"ResNet-50 of {name}", images)
        found.add(name, **resnet50(bar, inputs.labels, weights=weights))
    found.protocol.append(
        "ResNet-50: keras.applications, on the images as they are, 224x224, in 8 bits."
    )
    return found


def resnet50(
    images: Collection[UInt[np.ndarray, "_h _w 3"]],
    labels: Sequence[int],
    *,
    weights: epath.PathLike | None = None,
) -> dict[str, list[float]]:
    """Returns whether the label of each image is the first, or among the first five classes.

    Table 3 of SR3. Of classes with equal scores, the smaller number comes first.

    Args:
      images: images of 224x224 pixels.
      labels: 0..999, in the order of the sorted WordNet ids (Keras's and TFDS's).
      weights: a `.weights.h5` or `.h5` file of `keras.applications.ResNet50`; None to download
        Keras's own of ImageNet.

    Returns:
      `top_1` and `top_5`: 1.0 or 0.0 for each image.

    Raises:
      ImportError: Keras is not installed.
      FileNotFoundError: there are no such weights.
      OSError: the weights could not be downloaded.
      ValueError: images or labels cannot be used, or the weights are of another network.
    """
    _check_labels(labels, len(images))
    keras = _keras()
    with contextlib.ExitStack() as stack:
        path = None if weights is None else stack.enter_context(common.local_copy(weights))
        stack.enter_context(common.naming_weights("ResNet-50", weights))
        # Scores before the softmax, which makes classes equal that are not.
        network = keras.applications.ResNet50(
            weights="imagenet" if path is None else path, classifier_activation=None
        )
    top_1, top_5 = [], []
    for start, batch in _batches(images):
        rows = min(_BATCH_SIZE, len(labels) - start)
        inputs = keras.applications.resnet50.preprocess_input(batch)
        # If Keras runs on JAX: TPUs and GPUs would compute float32 with fewer bits.
        with jax.default_matmul_precision("float32"):
            scores = np.asarray(network.predict_on_batch(inputs))[:rows]
        bad = np.flatnonzero(~np.isfinite(scores).all(axis=1))
        if len(bad):
            raise ValueError(
                f"ResNet-50's scores of image {start + bad[0]} are not finite: its weights"
                f"{'' if weights is None else f', {weights},'} are damaged"
            )
        of_batch = np.asarray(labels[start : start + rows])
        is_label = np.argsort(-scores, axis=1, kind="stable")[:, :5] == of_batch[:, None]
        top_1 += is_label[:, 0].astype(float).tolist()
        top_5 += is_label.any(axis=1).astype(float).tolist()
    return {"top_1": top_1, "top_5": top_5}


def _keras() -> ModuleType:
    # Keras chooses its backend when it is imported, TensorFlow by default.
    if "keras" not in sys.modules:
        os.environ.setdefault("KERAS_BACKEND", "jax")
    try:
        import keras
    except ImportError as error:
        hint = "pip install 'sr3_jax[eval]'"
        raise ImportError(f"ResNet-50 needs Keras ({error}): {hint}") from error
    return keras


def _check_labels(labels: Sequence[int], num_images: int) -> None:
    if len(labels) != num_images:
        raise ValueError(f"{num_images} images have {len(labels)} labels; each needs one")
    for i, label in enumerate(labels):
        if not 0 <= label < _NUM_CLASSES:
            raise ValueError(
                f"label {label} of image {i} is not in 0..{_NUM_CLASSES - 1}; number classes by "
                "their sorted WordNet ids, as TFDS's imagenet2012 does"
            )


def _batches(
    images: Collection[UInt[np.ndarray, "_h _w 3"]],
) -> Iterator[tuple[int, UInt8[np.ndarray, "_n 224 224 3"]]]:
    """Yields batches with the number of their first image; all of one size, filled up with 0."""
    numbered = enumerate(images)
    size = min(_BATCH_SIZE, len(images))
    while some := list(itertools.islice(numbered, _BATCH_SIZE)):
        batch = np.zeros((size, _SIZE, _SIZE, 3), np.uint8)
        for row, (i, image) in enumerate(some):
            if image.dtype not in (np.uint8, np.uint16) or image.shape != batch.shape[1:]:
                raise ValueError(
                    f"image {i} is {image.dtype} {image.shape}; ResNet-50 is scored on 8 bits "
                    f"[{_SIZE}, {_SIZE}, 3]: resize or crop images to it"
                )
            batch[row] = image_files.to_8_bits(image)
        yield some[0][0], batch
