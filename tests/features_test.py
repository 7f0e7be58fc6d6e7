"""FID, Inception score and LPIPS, held against their libraries."""

import json
import os
import pathlib
import sys

import fsspec
import numpy as np
import pytest
import scipy.ndimage
import small_run
from etils import epath
from PIL import Image

from configs import default
from sr3_jax import jobs
from sr3_jax.config import cascades, read
from sr3_jax.data import image_files
from sr3_jax.evaluation.pretrained import common, inception, lpips, resnet50
from sr3_jax.inference import cascade
from sr3_jax.jobs import generating

ROOT = pathlib.Path(__file__).resolve().parent.parent
_TORCH = ROOT / ".venv" / "cuda"  # of launch/test.sh
_WITHOUT_TORCH = "torch-fidelity is not installed; launch/test.sh does it where it can"


@pytest.fixture(scope="module")
def fidelity():
    # At the end, so that what both have is the environment's.
    sys.path.append(str(_TORCH))
    # Without its compiler, which cannot be loaded where tests before these loaded TensorFlow.
    sys.modules.setdefault("triton", None)
    found = pytest.importorskip("torch_fidelity", reason=_WITHOUT_TORCH)
    import torch

    # Its threads and those of the tests beside these would wait for each other.
    torch.set_num_threads(1)
    yield found
    sys.path.remove(str(_TORCH))


@pytest.fixture(scope="module")
def sets():
    """Smooth pictures of two sizes, and the same with noise."""
    rng = np.random.default_rng(0)
    shapes = [(4, 4 + 2 * (i // 6)) for i in range(12)]
    clean = [np.kron(rng.integers(0, 256, (*s, 3)), np.ones((8, 8, 1))) for s in shapes]
    noise = [rng.normal(size=image.shape) for image in clean]
    return {
        level: [
            (image + level * of_image).clip(0, 255).astype(np.uint8)
            for image, of_image in zip(clean, noise, strict=True)
        ]
        for level in (0, 20, 60)
    }


@pytest.fixture(scope="module")
def inception_file(fidelity, tmp_path_factory):
    """A file of weights that nobody trained, large enough that features are."""
    import torch

    class Untrained(fidelity.FeatureExtractorInceptionV3):
        def load_state_dict(self, _):
            for weight in self.parameters():
                if weight.ndim > 1:
                    torch.nn.init.kaiming_normal_(weight, nonlinearity="relu")
            # So that it is sure of something, each time of something else.
            self.fc.weight.data *= 100

    path = tmp_path_factory.mktemp("inception") / "random.pth"
    torch.save({}, path)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = Untrained("untrained", ["2048"], feature_extractor_weights_path=str(path))
    torch.save(network.state_dict(), path)
    return path


def _write(images, folder):
    folder.mkdir()
    for i, image in enumerate(images):
        Image.fromarray(image).save(folder / f"{i:02d}.png")
    return str(folder)


def test_fid_and_is_are_torch_fidelitys(fidelity, sets, inception_file, tmp_path):
    inception.write_statistics(sets[0], tmp_path / "kept.npz", weights=inception_file)
    ours = inception.fid_and_is(sets[20], tmp_path / "kept.npz", weights=inception_file)
    theirs = fidelity.calculate_metrics(
        input1=_write(sets[20], tmp_path / "noisy"),
        input2=_write(sets[0], tmp_path / "clean"),
        isc=True,
        fid=True,
        feature_extractor_weights_path=str(inception_file),
        cuda=False,
        batch_size=1,  # it takes no batches of several sizes
        cache=False,
        save_cpu_ram=True,
        verbose=False,
    )
    assert theirs["inception_score_mean"] > 1.003
    assert ours["fid"] == pytest.approx(theirs["frechet_inception_distance"], rel=1e-4)
    assert ours["is"] == pytest.approx(theirs["inception_score_mean"], rel=1e-5)
    assert ours["is_std"] == pytest.approx(theirs["inception_score_std"], rel=1e-3)
    assert ours["protocol"]["weights"] == "random.pth"
    assert ours["protocol"]["reference_statistics"] == "kept.npz"
    assert ours["n"] == ours["protocol"]["reference_images"] == 12
    assert ours["warning"].startswith("biased: 12 images and 12 reference images;")

    noisier = inception.fid_and_is(sets[60], sets[0], weights=inception_file)
    assert noisier["fid"] > 1.5 * ours["fid"]


def test_statistics_of_many_batches_are_those_of_all_rows():
    # Far from zero, where sums of squares would cancel.
    rows = 1000 + np.random.default_rng(0).normal(size=(7, 2048)).astype(np.float32)
    moments = inception._Moments()
    for batch in (rows[:1], rows[1:4], rows[4:]):
        moments.add(batch)
    statistics = moments.statistics("none")
    np.testing.assert_allclose(statistics.mu, rows.astype(float).mean(0), rtol=1e-12)
    np.testing.assert_allclose(statistics.sigma, np.cov(rows.astype(float).T), atol=1e-9)


def test_score_and_its_report_have_what_networks_say(fidelity, sets, inception_file, vgg, tmp_path):
    """Also where TensorFlow is loaded; FID is of the training images, whose statistics stay."""
    # The method's images are those of training, in another order: FID is 0, up to rounding.
    squares = {level: [image[:, :32] for image in images] for level, images in sets.items()}
    _write(squares[0], tmp_path / "reference")
    _write(squares[20], tmp_path / "noisy")
    _write(squares[20][::-1], tmp_path / "train")
    config = small_run.config()
    config.data.update(source="folder", path=str(tmp_path / "train"))
    config.data.update(eval_path=str(tmp_path / "reference"))
    config.evaluation.update(
        feature_metrics=("fid", "lpips"),
        fid_reference="train",
        inception_weights=str(inception_file),
        lpips_weights=str(vgg),
    )
    workdir = epath.Path(tmp_path / "report")
    folders = (str(tmp_path / "reference"), {"NOISY": str(tmp_path / "noisy")})
    jobs.score(read(config), workdir, *folders)
    scores = json.loads((workdir / "metrics.json").read_text())
    assert list(scores) == ["reference", "NOISY"]
    assert scores["reference"].keys() == {"fid", "is"}
    assert abs(scores["NOISY"]["fid"]) < 1e-3 * scores["reference"]["fid"]
    each = json.loads((workdir / "images.json").read_text())["scores"]["NOISY"]["lpips"]
    assert each == pytest.approx(lpips.lpips(squares[20], squares[0], weights=vgg))
    assert scores["NOISY"]["lpips"] == pytest.approx(np.mean(each))
    page = (workdir / "report.html").read_text()
    assert "random.pth" in page and "biased: 12 images" in page and "LPIPS" in page
    (kept,) = (workdir / "index").glob("inception_*.npz")
    with np.load(kept) as file:
        assert file["n"] == 12
    before = kept.stat().mtime
    config.evaluation.feature_metrics = ()
    jobs.score(read(config), workdir, *folders)
    assert kept.stat().mtime == before
    assert list(json.loads((workdir / "metrics.json").read_text())) == ["NOISY"]


def test_images_of_a_cascade_are_measured_beside_the_papers(
    fidelity, sets, inception_file, tmp_path
):
    """Those that lie there are those of training, so that FID is 0, and nothing is sampled."""
    squares = [image[:, :32] for image in sets[20]]
    _write(squares, tmp_path / "train")
    config = small_run.config()
    config.data.update(source="folder", path=str(tmp_path / "train"), num_eval_images=0)
    config.data.update(eval_path=str(tmp_path / "train"), image_size=32, low_resolution=0)
    stage = cascade.Stage(str(tmp_path / "workdir"), read(config), 3)
    wanted = default.cascade("unused", default.stage("unused"))
    wanted.evaluation.update(
        feature_metrics=("fid",),
        fid_reference="train",
        inception_weights=str(inception_file),
        paper_tables=("4", "5"),
    )
    output = epath.Path(tmp_path / "out")
    small_run.write_workdir(epath.Path(stage.workdir), config)
    (made_by,) = generating._fingerprints([stage], generating.GenerateOptions(12))
    comment = generating._COMMENT + made_by.digest
    made_by.keep(output / "32")
    for number, image in enumerate(reversed(squares)):
        image_files.write_image(image, output / "32" / f"{number:06d}.png", comment=comment)
    measure = generating.measure_of(cascades.read(wanted), [stage])
    generating.generate([stage], output, generating.GenerateOptions(12), measure)
    scores = json.loads((output / "metrics.json").read_text())["ours"]
    assert scores["n"] == 12 and scores["is"] > 1
    assert abs(scores["fid"]) < 1e-2 < np.trace(np.cov(np.stack(squares).reshape(12, -1).T))
    report = (output / "report.md").read_text()
    # Tables 4 and 5, as printed there.
    for figure in ("| VQ-VAE-2 | 38.1 |", "| SR3 | 11.3 |", "| SR3 trained without blur | 13.1 |"):
        assert figure in report
    assert "random.pth" in report and "step 3, 32 pixels" in report and "50,000 images" in report


def test_unusable_statistics_weights_and_images_are_named(fidelity, sets, inception_file, tmp_path):
    images = sets[0]

    def fid(reference, given=images, weights=inception_file):
        return inception.fid_and_is(given, reference, weights=weights)

    with pytest.raises(FileNotFoundError, match=r"absent.npz do not exist; write_statistics"):
        fid(tmp_path / "absent.npz")
    (tmp_path / "text.npz").write_text("no arrays")
    with pytest.raises(ValueError, match=r"text.npz: no whole .npz file .*write_statistics makes"):
        fid(tmp_path / "text.npz")
    np.savez(tmp_path / "small.npz", mu=np.zeros(2048), sigma=np.eye(64))
    with pytest.raises(ValueError, match=r"`sigma` of shape \(2048, 2048\).*shape \(64, 64\)"):
        fid(tmp_path / "small.npz")
    np.savez(tmp_path / "other.npz", mu=np.zeros(2048), sigma=np.eye(2048), weights="other.pth")
    with pytest.raises(ValueError, match=r"made with the weights other.pth, not random.pth"):
        fid(tmp_path / "other.npz")
    with pytest.raises(FileNotFoundError, match=r"absent.pth does not exist"):
        fid(None, weights=tmp_path / "absent.pth")
    with pytest.raises(ValueError, match=r"text.npz holds no weights of Inception V3"):
        fid(None, weights=tmp_path / "text.npz")
    with pytest.raises(ValueError, match=r"10 splits .* there are 9; give at least 10"):
        fid(None, given=images[:9])
    with pytest.raises(ValueError, match=r"1 reference images have no covariance"):
        fid(images[:1])
    with pytest.raises(ValueError, match=r"image 1 is uint8 \(32, 32\), not uint8 or uint16"):
        fid(None, given=[images[0], images[1][..., 0], *images[2:]])


@pytest.fixture(scope="module")
def vgg(fidelity, tmp_path_factory):
    """A folder with the two files of LPIPS, of random numbers."""
    import torch
    import torchvision

    folder = tmp_path_factory.mktemp("lpips")
    generator = torch.Generator().manual_seed(0)
    with torch.device("meta"):
        shapes = {k: v.shape for k, v in torchvision.models.vgg16().state_dict().items()}
    state = {
        # LPIPS uses no classifier; expanded, it takes no room in the file.
        name: torch.zeros(()).expand(shape)
        if name.startswith("classifier") or len(shape) == 1
        else torch.randn(shape, generator=generator) * (2 / shape[1:].numel()) ** 0.5
        for name, shape in shapes.items()
    }
    torch.save(state, folder / "vgg16-397923af.pth")
    heads = {
        f"lin{i}.model.1.weight": torch.rand((1, n, 1, 1), generator=generator)
        for i, n in enumerate((64, 128, 256, 512, 512))
    }
    torch.save(heads, folder / "weights-vgg16-lpips.pth")
    return folder


def test_lpips_is_torch_fidelitys(fidelity, sets, vgg, tmp_path):
    import torch

    before = torch.hub.get_dir()
    found = lpips.lpips(sets[0] + sets[20] + sets[60], 3 * sets[0], weights=vgg)
    assert torch.hub.get_dir() == before
    none, some, much = found[:12], found[12:24], found[24:]
    assert none == [0.0] * 12
    assert all(0 < a < b for a, b in zip(some, much, strict=True))
    # Blurred or shifted, each the more the farther.
    clean = sets[0][:6]
    for worsen in (
        lambda image, much: scipy.ndimage.gaussian_filter(image, (much, much, 0)),
        lambda image, much: np.roll(image, much, axis=1),
    ):
        worse = [worsen(image, much) for much in (1, 3) for image in clean]
        distances = lpips.lpips(worse, 2 * clean, weights=vgg)
        assert 0 < np.mean(distances[:6]) < np.mean(distances[6:])

    (tmp_path / "checkpoints").symlink_to(vgg)
    torch.hub.set_dir(str(tmp_path))
    try:
        network = fidelity.SampleSimilarityLPIPS("lpips-vgg16")
    finally:
        torch.hub.set_dir(before)
    # In batches of one size.
    for rows in (slice(0, 6), slice(6, 12)):
        noisy, clean = (
            torch.from_numpy(np.stack(sets[level][rows])).permute(0, 3, 1, 2) for level in (20, 0)
        )
        with torch.no_grad():
            theirs = network(noisy, clean).tolist()
        np.testing.assert_allclose(some[rows], theirs, rtol=1e-5)


def test_pairs_and_files_that_lpips_cannot_use_are_named(fidelity, sets, vgg, tmp_path):
    with pytest.raises(ValueError, match="12 images and 11 references"):
        lpips.lpips(sets[0], sets[0][1:], weights=vgg)
    with pytest.raises(ValueError, match="image 5 is 48x32, and its reference 32x32"):
        lpips.lpips(sets[0][1:], sets[0][:-1], weights=vgg)
    small = [image[:8] for image in sets[0]]
    with pytest.raises(ValueError, match="image 0 is 32x8; LPIPS needs 16 pixels"):
        lpips.lpips(small, small, weights=vgg)
    with pytest.raises(FileNotFoundError, match=r"weights-vgg16-lpips.pth does not exist.*http"):
        lpips.lpips(sets[0], sets[0], weights=tmp_path)


def test_weights_may_be_in_a_bucket():
    with fsspec.open("memory://weights/net.weights.h5", "wb") as file:
        file.write(b"numbers")
    with common.local_copy("memory://weights/net.weights.h5") as path:
        # Keras tells formats by the end of the name.
        assert path.endswith("net.weights.h5")
        assert pathlib.Path(path).read_bytes() == b"numbers"
    assert not os.path.exists(path)


def test_what_to_install_is_said(sets, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    for metric in (
        lambda: inception.fid_and_is(sets[0]),
        lambda: inception.write_statistics(sets[0], "kept.npz"),
        lambda: lpips.lpips(sets[0], sets[0]),
    ):
        with pytest.raises(
            ImportError, match=r"need torch-fidelity.*pip install 'sr3_jax\[eval\]'"
        ):
            metric()
    monkeypatch.setitem(sys.modules, "keras", None)
    with pytest.raises(ImportError, match=r"needs Keras.*pip install 'sr3_jax\[eval\]'"):
        resnet50.resnet50([], [])
