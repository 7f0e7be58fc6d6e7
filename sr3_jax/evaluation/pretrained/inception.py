"""FID and the Inception score, by torch-fidelity and the network that it downloads."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
from etils import epath
from jaxtyping import Float, UInt, UInt8

from sr3_jax.data import index_file, storage
from sr3_jax.evaluation.pretrained import common

_BATCH_SIZE = 64
_NUM_FEATURES = 2048
_NUM_SPLITS = 10
# Of torch-fidelity's command line, so that the scores are the same.
_SHUFFLE_SEED = 2020
_MOST_BYTES = 1 << 26  # of a file's statistics; in float64 they have 34 million


class Statistics(NamedTuple):
    """Of Inception's features of a set of images.

    Attributes:
      mu: their mean.
      sigma: their covariance.
      n: number of images; None where a file does not say.
      weights: name of the file of the network's weights.
    """

    mu: Float[np.ndarray, " 2048"]
    sigma: Float[np.ndarray, "2048 2048"]
    n: int | None
    weights: str


def measure(inputs: common.Inputs, weights: epath.PathLike | None) -> common.Measured:
    """FID and Inception score of each method's images and of the references; see `fid_and_is`."""
    common.libraries()  # torch comes first: images may be read by what loads TensorFlow
    found = common.Measured(inputs.rows)
    given = inputs.fid_reference
    with tempfile.TemporaryDirectory() as folder:
        kept = given if isinstance(given, str) else f"{folder}/references.npz"
        if kept is not given or (inputs.make_fid_reference and not storage.exists(kept)):
            # Once, for all methods.
            images = inputs.reference if given is None else given
            images = inputs.make_fid_reference() if inputs.make_fid_reference else images
            with common.bar("statistics of FID's references") as bar:
                write_statistics(images, kept, weights=weights, progress=bar.update)
        for name, images in inputs.rows.items():
            # Of the references with themselves it is 0.
            target = None if given is None and name == "reference" else kept
            with common.bar(f"FID of {name}", len(images)) as bar:
                scores = fid_and_is(images, target, weights=weights, progress=bar.update)
            found.means[name] = {key: scores[key] for key in ("fid", "is") if key in scores}
            how = "; ".join(f"{key}: {value}" for key, value in scores["protocol"].items())
            found.protocol.append(f"FID and IS of {name}: {how}.")
            if "warning" in scores:
                found.protocol.append(f"FID and IS of {name} are {scores['warning']}.")
    return found


def fid_and_is(
    images: common.Images,
    reference: Iterable[UInt[np.ndarray, "_h _w 3"]] | epath.PathLike | None = None,
    *,
    weights: epath.PathLike | None = None,
    progress: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Fréchet Inception distance to a reference, and the Inception score.

    Heusel et al., "GANs Trained by a Two Time-Scale Update Rule"; Salimans et al., "Improved
    Techniques for Training GANs". Sizes may differ; the network resizes each image.

    Args:
      images: what is scored. The Inception score, not FID, depends on their order.
      reference: images, or a file of their statistics (`write_statistics`; others' `.npz` files
        with `mu` and `sigma` will do); None for no FID.
      weights: of Inception, in torch-fidelity's format; None to download them.
      progress: called after each image, those of the reference too.

    Returns:
      `n`, `is` and `is_std` (mean and deviation over the splits), `fid` (with a reference),
      `protocol` (what was done, by name) and, where there are too few images, `warning`.

    Raises:
      ImportError: torch-fidelity is not installed.
      FileNotFoundError: no such weights or statistics.
      OSError: the weights could not be downloaded.
      ValueError: too few images, or a file or image that cannot be used.
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
    # First, since it is here that an unusable file is found.
    if isinstance(reference, (str, os.PathLike)):
        of_reference = _read_statistics(reference, weights_name)
        protocol["reference_statistics"] = os.path.basename(os.fspath(reference))
    elif reference is not None:
        of_reference = _statistics(network, weights_name, reference, progress)
    moments, logits = _Moments(), []
    for features, of_classes in _features(network, images, progress):
        moments.add(features)
        logits.append(of_classes)
    score = fidelity.metric_isc.isc_features_to_metric(
        torch.from_numpy(np.concatenate(logits)), _NUM_SPLITS, rng_seed=_SHUFFLE_SEED
    )
    result["is"] = score[fidelity.KEY_METRIC_ISC_MEAN]
    result["is_std"] = score[fidelity.KEY_METRIC_ISC_STD]
    counts = {"images": len(images)}
    if of_reference:
        result["fid"] = _distance(moments.statistics(weights_name), of_reference)
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
    progress: Callable[[], None] = lambda: None,
) -> None:
    """Keeps what FID needs of reference images, for `fid_and_is`: whole or not at all.

    The file is NumPy's `.npz` with `mu` [2048] and `sigma` [2048, 2048] as others use it, in
    float64, and `n` and `weights`.

    Args:
      images: at least two.
      path: of the file.
      weights: see `fid_and_is`.
      progress: called after each image.

    Raises:
      ImportError: see `fid_and_is`.
      OSError: see there.
      ValueError: see there.
    """
    network, weights_name = _inception(["2048"], weights)
    statistics = _statistics(network, weights_name, images, progress)
    index_file.write_arrays(path, **statistics._asdict())


def _inception(layers: list[str], weights: epath.PathLike | None) -> tuple[Any, str]:
    """The network with outputs `layers`, on the device; and its weights' name."""
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
    """In order; a batch ends where the size of images changes."""
    batch: list[np.ndarray] = []
    for image in images:
        if batch and (len(batch) == _BATCH_SIZE or image.shape != batch[0].shape):
            yield np.stack(batch)
            batch = []
        batch.append(image)
    if batch:
        yield np.stack(batch)


def _features(
    network: Any, images: Iterable[np.ndarray], progress: Callable[[], None]
) -> Iterator[tuple[Float[np.ndarray, "_n _c"], ...]]:
    """For each batch what the network's layers give."""
    device = common.device()
    for batch in _batches(common.checked(images)):
        with common.exact():
            features = tuple(layer.cpu().numpy() for layer in network(common.tensor(batch, device)))
        yield features
        for _ in batch:
            progress()


class _Moments:
    """Mean and covariance of rows that come in batches, in float64 and without cancellation.

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


def _statistics(
    network: Any, weights: str, images: Iterable[np.ndarray], progress: Callable[[], None]
) -> Statistics:
    moments = _Moments()
    for features, *_ in _features(network, images, progress):
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
    # Other programs' files do not say; they are of the weights that torch-fidelity downloads.
    made_with = str(arrays["weights"]) if "weights" in arrays else weights
    if made_with != weights:
        raise ValueError(
            f"statistics {path} were made with the weights {made_with}, not {weights}; features of "
            "two networks cannot be compared"
        )
    n = int(arrays["n"]) if "n" in arrays else None
    return Statistics(arrays["mu"].astype(float), arrays["sigma"].astype(float), n, weights)


def _distance(one: Statistics, other: Statistics) -> float:
    _, fidelity = common.libraries()
    statistics = ({"mu": of.mu, "sigma": of.sigma} for of in (one, other))
    result = fidelity.metric_fid.fid_statistics_to_metric(*statistics, verbose=False)
    return result[fidelity.KEY_METRIC_FID]
