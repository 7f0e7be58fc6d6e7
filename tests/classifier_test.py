"""ResNet-50's accuracy, held against Keras's own."""

import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
import small_run
from etils import epath
from PIL import Image

from sr3_jax import jobs
from sr3_jax.config import read
from sr3_jax.evaluation.pretrained import resnet50

ROOT = pathlib.Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def resnet(tmp_path_factory):
    """Images of ImageNet's size, a file of random weights, and Keras's own scores.

    Each two classes have one score, and each image another order of classes.
    """
    os.environ.setdefault("KERAS_BACKEND", "jax")
    import keras

    # One more than a batch, so that the last is nearly empty.
    images = np.random.default_rng(0).integers(0, 256, (17, 7, 7, 3)).astype(np.uint8)
    images = images.repeat(32, axis=1).repeat(32, axis=2)
    network = keras.applications.ResNet50(weights=None, classifier_activation=None)
    head = network.layers[-1]
    kernel, bias = (np.asarray(array) for array in head.get_weights())
    kernel[:, 1::2] = kernel[:, ::2]
    inputs = keras.applications.resnet50.preprocess_input(images.astype(np.float32))
    head.set_weights([kernel, bias])
    scores = network.predict(inputs, batch_size=17, verbose=0)
    head.set_weights([kernel, -scores.mean(axis=0)])
    path = tmp_path_factory.mktemp("resnet") / "random.weights.h5"
    network.save_weights(path)
    return list(images), path, scores - scores.mean(axis=0)


def test_resnet50_is_keras_own_with_an_exact_last_batch(resnet):
    images, path, scores = resnet
    np.testing.assert_array_equal(scores[:, ::2], scores[:, 1::2])
    ranks = np.argsort(np.argsort(-scores, axis=1, kind="stable"), axis=1, kind="stable")
    assert len(set(scores.argmax(axis=1))) > 8
    # Labels of rank 0 to 6 by turns: 4 and 5 have one score, and only one is of the first five.
    wanted = np.arange(len(images)) % 7
    labels = [int(np.flatnonzero(row == rank)[0]) for row, rank in zip(ranks, wanted, strict=True)]
    found = resnet50.resnet50(images, labels, weights=path)
    assert found == {
        "top_1": (wanted == 0).astype(float).tolist(),
        "top_5": (wanted < 5).astype(float).tolist(),
    }


def test_score_knows_classes_by_their_folders(resnet, tmp_path):
    images, path, scores = resnet
    for i, image in enumerate(images[:4]):
        for name in ("reference", "same"):
            (tmp_path / name / f"class_{i}").mkdir(parents=True)
            Image.fromarray(image).save(tmp_path / name / f"class_{i}" / "x.png")
    config = small_run.config()
    config.evaluation.update(feature_metrics=("resnet50",), resnet50_weights=str(path))
    config.evaluation.paper_table = "3"
    workdir = epath.Path(tmp_path / "report")
    jobs.score(read(config), workdir, str(tmp_path / "reference"), {"SAME": str(tmp_path / "same")})
    ranks = np.argsort(np.argsort(-scores[:4], axis=1, kind="stable"), axis=1)
    top_5 = np.mean([row[i] < 5 for i, row in enumerate(ranks)])
    found = json.loads((workdir / "metrics.json").read_text())
    assert found["reference"]["top_5"] == found["SAME"]["top_5"] == top_5
    # The paper's baseline is in the report, not among what was measured.
    assert ".748" in (workdir / "report.html").read_text()


def test_what_resnet50_cannot_use_is_named(resnet, tmp_path):
    images, path, _ = resnet
    with pytest.raises(ValueError, match="17 images have 2 labels"):
        resnet50.resnet50(images, [0, 1], weights=path)
    with pytest.raises(ValueError, match=r"label 1000 of image 1 is not in 0..999"):
        resnet50.resnet50(images[:2], [0, 1000], weights=path)
    with pytest.raises(ValueError, match=r"image 1 is uint8 \(200, 224, 3\); .*\[224, 224, 3\]"):
        resnet50.resnet50([images[0], images[1][:200]], [0, 1], weights=path)
    (tmp_path / "text.h5").write_text("no weights")
    with pytest.raises(ValueError, match="text.h5 holds no weights of ResNet-50"):
        resnet50.resnet50(images[:1], [0], weights=tmp_path / "text.h5")


def test_keras_runs_on_jax_and_tensorflow_stays_out():
    program = """
import sys
from sr3_jax.evaluation.pretrained import resnet50
try:
    resnet50.resnet50([], [], weights="absent.h5")
except FileNotFoundError as error:
    print(error)
import keras
print(keras.backend.backend(), "tensorflow" in sys.modules, "torch" in sys.modules)
"""
    environment = {k: v for k, v in os.environ.items() if k != "KERAS_BACKEND"}
    said = subprocess.run(
        [sys.executable, "-c", program], env=environment, cwd=ROOT, capture_output=True, text=True
    )
    assert said.stdout.splitlines() == [
        "absent.h5 does not exist; give the path of a file",
        "jax False False",
    ], said.stderr
