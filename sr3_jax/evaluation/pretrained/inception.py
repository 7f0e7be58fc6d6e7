"""FID and the Inception score, by torch-fidelity and its network."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Collection, Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
from etils import epath
from jaxtyping import Float, UInt, UInt8

from sr3_jax.data import index_file, storage
from sr3_jax.evaluation.pretrained import common

_BATCH_SIZE = 64
_NUM_FEATURES = 2048
_NUM_SPLITS = 10
_SHUFFLE_SEED = 2020  # as torch-fidelity's command line has it, so that scores are the same
_MOST_BYTES = 1 << 26  # of a file of statistics; those in float64 have 34 million


class Statistics(NamedTuple):
    """Mean and covariance of Inception's features of `n` images (None: unknown).

    `weights` is the name of the file of the network's weights.
    """

    mu: Float[np.ndarray, " 2048"]
    sigma: Float[np.ndarray, "2048 2048"]
    n: int | None
    weights: str


def measure(inputs: common.Inputs, weights: epath.PathLike | None) -> common.Measured:
    """Measures FID and Inception score of each method and of the references; see `fid_and_is`."""
    common.libraries()  # torch first: reading images may load TensorFlow
    found = common.Measured(inputs.rows)
    given = inputs.fid_reference
    with tempfile.TemporaryDirectory() as folder:
        kept = given if isinstance(given, str) else f"{folder}/references.npz"
        if kept is not given or (inputs.make_fid_reference and not storage.exists(kept)):
            images = inputs.reference if given is None else given
            images = inputs.make_fid_reference() if inputs.make_fid_reference else images
            bar = common.bar("statistics of FID's references", images)
            write_statistics(bar, kept, weights=weights)
        for name, images in inputs.rows.items():
            # The FID of the references with themselves is 0, and is not measured.
            target = None if given is None and name == "reference" else kept
            scores = fid_and_is(common.bar(f"FID of {name}", images), target, weights=weights)
            found.means[name] = {key: scores[key] for key in ("fid", "is") if key in scores}
            how = "; ".join(f"{key}: {value}" for key, value in scores["protocol"].items())
            found.protocol.append(f"FID and IS of {name}: {how}.")
            if "warning" in scores:
                found.protocol.append(f"FID and IS of {name} are {scores['warning']}.")
    return found


def fid_and_is(
    images: Collection[UInt[np.ndarray, "_h _w 3"]],
    reference: Iterable[UInt[np.ndarray, "_h _w 3"]] | epath.PathLike | None = None,
    *,
    weights: epath.PathLike | None = None,
) -> dict[str, Any]:
    """Computes the Fréchet Inception distance to a reference, and the Inception score.

    Heusel et al., "GANs Trained by a Two Time-Scale Update Rule"; Salimans et al., "Improved
    Techniques for Training GANs". Sizes may differ; the network resizes each image.

    Args:
      images: images to score. The Inception score, not FID, depends on their order.
      reference: images, or an `.npz` file of their statistics (`write_statistics`) with `mu` and
        `sigma`; None for no FID.
      weights: file of Inception, in torch-fidelity's format; None to download them.

    Returns:
      `n`, `is` and `is_std` (mean and deviation over the splits), `fid` (with a reference),
      `protocol` (settings by name) and, for too few images, `warning`.

    Raises:
      ImportError: torch-fidelity is not installed.
      FileNotFoundError: there are no such weights or statistics.
      OSError: the weights could not be downloaded.
      ValueError: there are too few images, or a file or an image cannot be used.
    """
    torch, fidelity = common.libraries()
    if len(images) < _NUM_SPLITS:
        raise ValueError(
            f"the Inception score is a mean over {_NUM_SPLITS} splits of the images, and there are "
            f"{len(images)}; give at least {_NUM_SPLITS}"
        )
    network, weights_name = _inception(["2048", "logits_unbiased"], weights)
    result: dict[str, Any] = {"n": len(images)}
    protocol = {
        "library": f"torch-fidelity {fidelity.__version__}, torch {torch.__version__}",
        "network": "Inception V3 of 2015-12-05 (inception-v3-compat), float32",
        "weights": weights_name,
        "resizing": "of 8 bits, bilinear to 299x299, as by TensorFlow 1",
        "inception_score": f"{_NUM_SPLITS} splits, images shuffled with seed {_SHUFFLE_SEED}",
    }
    of_reference = None
    # First, so that an unusable file is found before the images are read.
    if isinstance(reference, (str, os.PathLike)):
        of_reference = _read_statistics(reference, weights_name)
        protocol["reference_statistics"] = os.path.basename(os.fspath(reference))
    elif reference is not None:
        of_reference = _statistics(network, weights_name, reference)
    moments, logits = _Moments(), []
    for features, of_classes in _features(network, images):
        moments.add(features)
        logits.append(of_classes)
    score = fidelity.metric_isc.isc_features_to_metric(
        torch.from_numpy(np.concatenate(logits)), _NUM_SPLITS, rng_seed=_SHUFFLE_SEED
    )
    result["is"] = score[fidelity.KEY_METRIC_ISC_MEAN]
    result["is_std"] = score[fidelity.KEY_METRIC_ISC_STD]
    counts = {"images": len(images)}
    if of_reference:
        both = (moments.statistics(weights_name), of_reference)
        both = ({"mu": of.mu, "sigma": of.sigma} for of in both)
        distance = fidelity.metric_fid.fid_statistics_to_metric(*both, verbose=False)
        result["fid"] = distance[fidelity.KEY_METRIC_FID]
        counts["reference_images"] = of_reference.n
    few = [f"{n} {name}" for name, n in counts.items() if n is not None and n < _NUM_FEATURES]
    if few:
        few_of = " and ".join(few).replace("_", " ")
        result["warning"] = f"biased: {few_of}; compare only at equal numbers"
    return result | {"protocol": protocol | counts}


def write_statistics(
    images: Iterable[UInt[np.ndarray, "_h _w 3"]],
    path: epath.PathLike,
    *,
    weights: epath.PathLike | None = None,
) -> None:
    """Writes the statistics of reference images for `fid_and_is`; arguments and errors as there.

    The file is NumPy's `.npz` with `mu` [2048] and `sigma` [2048, 2048] in float64, as other
    programs have it, and `n` and `weights`.
    """
    network, weights_name = _inception(["2048"], weights)
    statistics = _statistics(network, weights_name, images)
    index_file.write_arrays(path, **statistics._asdict())


def _inception(layers: list[str], weights: epath.PathLike | None) -> tuple[Any, str]:
    """Returns the network with outputs `layers`, on the device, and the name of its weights."""
    _, fidelity = common.libraries()
    with contextlib.ExitStack() as stack:
        path = None if weights is None else stack.enter_context(common.local_copy(weights))
        stack.enter_context(common.naming_weights("Inception V3", weights))
        network = fidelity.FeatureExtractorInceptionV3(
            "inception-v3-compat", layers, feature_extractor_weights_path=path
        )
    network.to(common.device())
    url = fidelity.feature_extractor_inceptionv3.URL_INCEPTION_V3
    return network, os.path.basename(url if weights is None else os.fspath(weights))


def _batches(images: Iterable[np.ndarray]) -> Iterator[UInt8[np.ndarray, "_n _h _w 3"]]:
    """Yields batches of images in order; a batch ends where their size changes."""
    batch: list[np.ndarray] = []
    for image in images:
        if batch and (len(batch) == _BATCH_SIZE or image.shape != batch[0].shape):
            yield np.stack(batch)
            batch = []
        batch.append(image)
    if batch:
        yield np.stack(batch)


def _features(
    network: Any, images: Iterable[np.ndarray]
) -> Iterator[tuple[Float[np.ndarray, "_n _c"], ...]]:
    """Yields the outputs of the network's layers for each batch."""
    device = common.device()
    for batch in _batches(common.checked(images)):
        with common.exact():
            yield tuple(layer.cpu().numpy() for layer in network(common.tensor(batch, device)))


class _Moments:
    """Computes mean and covariance of rows in batches, in float64 and without cancellation.

    Chan et al., "Updating formulae and a pairwise algorithm for computing sample variances".
    """

    def __init__(self) -> None:
        self.n = 0
        self.mean = np.zeros(_NUM_FEATURES)
        self.scatter = np.zeros((_NUM_FEATURES, _NUM_FEATURES))

    def add(self, rows: Float[np.ndarray, "n 2048"]) -> None:
        rows = rows.astype(np.float64)
        mean = rows.mean(axis=0)
        centred, step = rows - mean, mean - self.mean
        weight = self.n * len(rows) / (self.n + len(rows))
        self.scatter += centred.T @ centred + weight * np.outer(step, step)
        self.n += len(rows)
        self.mean += step * len(rows) / self.n

    def statistics(self, weights: str) -> Statistics:
        return Statistics(self.mean, self.scatter / (self.n - 1), self.n, weights)


def _statistics(network: Any, weights: str, images: Iterable[np.ndarray]) -> Statistics:
    moments = _Moments()
    for features, *_ in _features(network, images):
        moments.add(features)
    if moments.n < 2:
        raise ValueError(f"{moments.n} reference images have no covariance; give at least two")
    return moments.statistics(weights)


def _read_statistics(path: epath.PathLike, weights: str) -> Statistics:
    """Reads the statistics of a file; refuses those of other weights than `weights`."""
    if not storage.exists(path):
        raise FileNotFoundError(f"statistics {path} do not exist; write_statistics makes them")
    shapes = {"mu": (_NUM_FEATURES,), "sigma": (_NUM_FEATURES, _NUM_FEATURES)}
    names = (*shapes, "n", "weights")
    try:
        arrays = index_file.read_arrays(storage.read(path), names, _MOST_BYTES)
    except ValueError as error:
        raise ValueError(f"statistics {path}: {error}; write_statistics makes them") from error
    for name, shape in shapes.items():
        found = arrays.get(name)
        if found is None or found.shape != shape or not np.isfinite(found).all():
            what = "none" if found is None else f"one of shape {found.shape}, or not finite"
            raise ValueError(
                f"statistics {path} must be an .npz file with finite `{name}` of shape {shape}, "
                f"and have {what}; write_statistics makes them"
            )
    # Files of other programs do not name them; they are those that torch-fidelity downloads.
    made_with = str(arrays["weights"]) if "weights" in arrays else weights
    if made_with != weights:
        raise ValueError(
            f"statistics {path} were made with the weights {made_with}, not {weights}; features of "
            "two networks cannot be compared"
        )
    n = int(arrays["n"]) if "n" in arrays else None
    return Statistics(arrays["mu"].astype(float), arrays["sigma"].astype(float), n, weights)
