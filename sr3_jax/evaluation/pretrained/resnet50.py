"""Whether ResNet-50, by Keras, still recognizes what is in an image."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from types import ModuleType

import jax
import numpy as np
from etils import epath
from jaxtyping import Bool, Float, Int, UInt8

from sr3_jax.data import image_files
from sr3_jax.evaluation.pretrained import common

_SIZE = 224
_NUM_CLASSES = 1000
_BATCH_SIZE = 16


def measure(inputs: common.Inputs, weights: epath.PathLike | None) -> common.Measured:
    """Top-1 and top-5 accuracy on each method's images and on the references; see `resnet50`."""
    found = common.Measured()
    for name, images in inputs.rows.items():
        with common.bar(f"ResNet-50 of {name}", len(images)) as bar:
            accuracy = resnet50(images, inputs.labels, weights=weights, progress=bar.update)
        found.add(name, **accuracy)
    found.protocol.append(
        "ResNet-50: keras.applications, on the images as they are, 224x224, in 8 bits."
    )
    return found


def resnet50(
    images: common.Images,
    labels: Sequence[int],
    *,
    weights: epath.PathLike | None = None,
    progress: Callable[[], None] = lambda: None,
) -> dict[str, list[float]]:
    """Whether each image's label is the first, or among the first five, of ImageNet's classes.

    Table 3 of SR3. Of classes with one score, the smaller number comes first.

    Args:
      images: 8-bit, 224x224.
      labels: 0..999, in the order of the sorted WordNet ids (Keras's and TFDS's).
      weights: a `.weights.h5` or `.h5` file of `keras.applications.ResNet50`; None for Keras's
        own of ImageNet, which it downloads.
      progress: called after each image.

    Returns:
      `top_1` and `top_5`: 1.0 or 0.0 for each image.

    Raises:
      ImportError: Keras is not installed.
      FileNotFoundError: no such weights.
      OSError: the weights could not be downloaded.
      ValueError: images or labels that cannot be used, or weights of another network.
    """
    _check_labels(labels, len(images))
    keras = _keras()
    with contextlib.ExitStack() as stack:
        path = None if weights is None else stack.enter_context(common.local_copy(weights))
        stack.enter_context(common.naming_weights("ResNet-50", weights))
        # Scores before the softmax, which would make classes equal that are not.
        network = keras.applications.ResNet50(
            weights="imagenet" if path is None else path, classifier_activation=None
        )
    top_1, top_5 = [], []
    for start, batch in _batches(images):
        rows = min(_BATCH_SIZE, len(images) - start)
        inputs = keras.applications.resnet50.preprocess_input(batch)
        # Where Keras runs on JAX: on TPUs and GPUs float32 would have fewer bits.
        with jax.default_matmul_precision("float32"):
            scores = np.asarray(network.predict_on_batch(inputs))[:rows]
        bad = np.flatnonzero(~np.isfinite(scores).all(axis=1))
        if len(bad):
            raise ValueError(
                f"ResNet-50's scores of image {start + bad[0]} are not finite: its weights"
                f"{'' if weights is None else f', {weights},'} are damaged"
            )
        of_batch = np.asarray(labels[start : start + rows])
        top_1 += _within(1, scores, of_batch).astype(float).tolist()
        top_5 += _within(5, scores, of_batch).astype(float).tolist()
        for _ in range(rows):
            progress()
    return {"top_1": top_1, "top_5": top_5}


def _keras() -> ModuleType:
    # It takes its backend as it is imported; unasked, that is TensorFlow.
    if "keras" not in sys.modules:
        os.environ.setdefault("KERAS_BACKEND", "jax")
    try:
        import keras
    except ImportError as error:
        raise ImportError(f"ResNet-50 needs Keras ({error}): pip install -e '.[eval]'") from error
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
    images: common.Images,
) -> Iterator[tuple[int, UInt8[np.ndarray, "_n 224 224 3"]]]:
    """Each batch and its first image's number; all of one size, so that one program does."""
    for start in range(0, len(images), _BATCH_SIZE):
        batch = np.zeros((min(_BATCH_SIZE, len(images)), _SIZE, _SIZE, 3), np.uint8)
        for i in range(start, min(start + _BATCH_SIZE, len(images))):
            image = images[i]
            if image.dtype not in (np.uint8, np.uint16) or image.shape != batch.shape[1:]:
                raise ValueError(
                    f"image {i} is {image.dtype} {image.shape}; ResNet-50 is scored on 8 bits "
                    f"[{_SIZE}, {_SIZE}, 3]: resize or crop images to it"
                )
            batch[i - start] = image_files.to_8_bits(image)
        yield start, batch


def _within(
    count: int, scores: Float[np.ndarray, "n c"], labels: Int[np.ndarray, " n"]
) -> Bool[np.ndarray, " n"]:
    first = np.argsort(-scores, axis=1, kind="stable")[:, :count]
    return (first == labels[:, None]).any(axis=1)
