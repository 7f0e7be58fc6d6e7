"""The CRF of docs/crf.md: its mean field against sums and linear algebra, and its experiment."""

import json
import sys

import numpy as np
import pytest
from PIL import Image
from skimage import data

from launch.crf import __main__ as experiment
from launch.crf import forms

_RADIUS = 2
_KERNEL = {"place": 1.2, "colour": 0.4, "radius": _RADIUS}


@pytest.fixture
def drawn():
    return np.random.default_rng(0).random((5, 6, 7, 3), np.float32)


def _dense_kernels(guide, colour=_KERNEL["colour"]):
    """All pairs of pixels, [n, n], by loops: zero beyond the window."""
    height, width = guide.shape[:2]
    at = [(y, x) for y in range(height) for x in range(width)]
    reach = np.arange(-_RADIUS, _RADIUS + 1)
    total = np.exp(-(reach[:, None] ** 2 + reach**2) / (2 * _KERNEL["place"] ** 2)).sum()
    kernels = np.zeros((len(at), len(at)))
    for i, (y, x) in enumerate(at):
        for j, (v, u) in enumerate(at):
            if i != j and max(abs(y - v), abs(x - u)) <= _RADIUS:
                near = np.exp(-((y - v) ** 2 + (x - u) ** 2) / (2 * _KERNEL["place"] ** 2)) / total
                unlike = np.sum((guide[y, x] - guide[v, u]) ** 2)
                kernels[i, j] = near * np.exp(-unlike / (2 * colour**2))
    return kernels


def test_the_continuous_form_finds_the_mean_of_a_gaussian_field(drawn):
    """Against linear algebra: the mean field's means are those of the field itself."""
    centre, variance, guide = drawn[0], 0.01 + drawn[1], drawn[2]
    pairs = 2.0 / variance.mean() * _dense_kernels(guide)
    laplacian = np.diag(pairs.sum(1)) - pairs
    found = forms.continuous(centre, variance, guide, weight=2.0, iterations=400, **_KERNEL)
    for channel in range(3):
        unary = 1 / variance[..., channel].ravel()
        exact = np.linalg.solve(np.diag(unary) + laplacian, unary * centre[..., channel].ravel())
        np.testing.assert_allclose(found[..., channel].ravel(), exact, atol=1e-4)


def test_labels_are_a_fixed_point_of_the_updates_with_dense_sums(drawn):
    mean = drawn.mean(0)
    twice = 2 * np.square(drawn - mean).mean() + 1e-6
    flat = drawn.reshape(5, -1, 3)
    coloured, plain = _dense_kernels(mean), _dense_kernels(mean, colour=1e6)
    unary = 0.7 * np.square(flat - mean.reshape(-1, 3)).sum(-1) / twice
    # Cost of each pair of labels at each pair of pixels, [a, b, i, j].
    apart = np.square(flat[:, None, :, None] - flat[None, :, None, :]).sum(-1) / twice
    q = np.exp(-unary) / np.exp(-unary).sum(0)
    for _ in range(6):
        energy = unary + 0.5 * np.einsum("ij,abij,bj->ai", coloured, apart, q)
        energy += 1.5 * np.einsum("ij,aj->ai", plain, 1 - q)
        q = np.exp(energy.min(0) - energy)
        q /= q.sum(0)
    weights = {"density": 0.7, "pair": 0.5, "potts": 1.5}
    found = forms.labels(drawn, iterations=6, **weights, **_KERNEL)
    expected = np.einsum("ki,kic->ic", q, flat).reshape(mean.shape)
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_updates_come_to_rest(drawn):
    weights = {"density": 0.5, "pair": 0.2, "potts": 0.5}
    for step in (
        lambda n: forms.labels(drawn, **weights, **_KERNEL, iterations=n),
        lambda n: forms.continuous(
            drawn[0],
            drawn.var(0),
            drawn[1],
            weight=1.0,
            robust=0.3,
            **_KERNEL,
            iterations=n,
        ),
    ):
        assert np.abs(step(300) - step(301)).max() < 1e-5 < np.abs(step(1) - step(300)).max()


def test_without_pairs_the_unary_alone_decides(drawn):
    left = forms.continuous(drawn[0], drawn.var(0), drawn[1], weight=0.0, **_KERNEL)
    np.testing.assert_allclose(left, drawn[0], atol=1e-6)
    nothing = {"density": 0.0, "pair": 0.0, "potts": 0.0}
    np.testing.assert_allclose(forms.labels(drawn, **nothing, **_KERNEL), drawn.mean(0), atol=1e-6)
    # A strong unary takes the sample that is nearest to the mean at each pixel.
    nearest = np.square(drawn - drawn.mean(0)).sum(-1).argmin(0)
    taken = np.take_along_axis(drawn, nearest[None, ..., None], 0)[0]
    sure = forms.labels(drawn, **nothing | {"density": 1e6}, **_KERNEL)
    np.testing.assert_allclose(sure, taken, atol=1e-3)


def test_one_sample_stays_and_the_order_of_samples_does_not_matter(drawn):
    weights = {"density": 1.0, "pair": 2.0, "potts": 3.0, **_KERNEL}
    np.testing.assert_allclose(forms.labels(drawn[:1], **weights), drawn[0], atol=1e-6)
    first, turned = forms.labels(drawn, **weights), forms.labels(drawn[::-1], **weights)
    np.testing.assert_allclose(first, turned, atol=1e-5)
    assert np.abs(first - drawn.mean(0)).max() > 0.05  # so that the order could matter


def test_robust_pairs_smooth_noise_and_keep_an_edge():
    rng = np.random.default_rng(0)
    clean = np.repeat(np.repeat([[0.2] * 8 + [0.8] * 8], 16, 0)[..., None], 3, -1)
    noisy = (clean + 0.02 * rng.normal(size=clean.shape)).astype(np.float32)
    flat, variance = np.zeros_like(noisy), np.full_like(noisy, 0.02)
    given = {"weight": 3.0, "place": 1.5, "colour": 1.0}  # a flat guide tells no colours
    error = {
        robust: np.abs(forms.continuous(noisy, variance, flat, robust=robust, **given) - clean)
        for robust in (0.1, np.inf)
    }
    assert error[0.1].mean() < 0.6 * np.abs(noisy - clean).mean()
    assert error[0.1].max() < 0.1 < 0.15 < error[np.inf].max()


def test_the_experiment_runs_and_a_blend_lies_on_the_line(tmp_path, monkeypatch):
    for number, image in enumerate((data.astronaut(), data.coffee())):
        Image.fromarray(image[:160, :160]).save(tmp_path / f"{number}.png")
    work = tmp_path / "work"
    flags = [str(tmp_path), str(tmp_path), f"--workdir={work}", "--tiny"]
    monkeypatch.setattr(sys, "argv", ["crf", *flags])
    experiment.main()
    settings = json.loads((work / "settings.json").read_text())
    tables = (work / "table.md").read_text().split("\n\n")
    rows = [line.split(" | ") for line in tables[1].splitlines()]
    titles, sample = (
        next(row for row in rows if row[0] == n) for n in ("| method", "| one sample")
    )
    assert {row[0][2:] for row in rows} > {*settings, "mean", "one sample"}
    assert sample[titles.index("PSNR, less blend")].startswith(("0.000 ", "-0.000 "))
    assert Image.open(work / "pictures.jpg").size[1] > 4 * 192
