"""Generation: labels, guidance, noise in sources, and a training on real digits."""

import jax.numpy as jnp
import numpy as np
import pytest
import small_run
from etils import epath

from sr3_jax import diffusion, jobs, models
from sr3_jax.config import Sampling, read
from sr3_jax.evaluation import neighbours
from sr3_jax.inference import cascade, generator, super_resolver
from sr3_jax.jobs import generating

GAUSSIANS = {0: -0.4, 1: 0.3, 2: -0.1}  # the mean of each class; the last is of none
STD = 0.15


class Gaussian(small_run.Network):
    """The exact eps of images whose pixels are normal about the mean of their class."""

    has_source = False
    num_classes = 2

    def __call__(self, x, y_t, gamma, label):
        assert x is None
        mean = diffusion.process.per_example(jnp.array([*GAUSSIANS.values()])[label], y_t)
        gamma = diffusion.process.per_example(gamma, y_t)
        variance = gamma * STD**2 + 1 - gamma
        return jnp.sqrt(1 - gamma) / variance * (y_t - jnp.sqrt(gamma) * mean)


def _network(kind, denoiser, knows_no_class=False, **options):
    options = dict(num_steps=60, clip=False, batch_size=64, tile_size=8) | options
    return kind(
        denoiser,
        {},
        lambda steps: diffusion.heun(diffusion.karras(steps, 0.005, 80.0)),
        Sampling(**options),
        factor=1,
        stride=1,
        knows_no_class=knows_no_class,
    )


def _signed(images):
    return images.astype(np.float64) / 127.5 - 1


@pytest.mark.parametrize("guidance", [1.0, 0.0, 2.0])
def test_guidance_moves_classes_away_from_what_all_have_in_common(guidance):
    """Guided samples of normal images are normal with a shifted mean."""
    denoiser = models.Denoiser(Gaussian(), guidance=guidance)
    network = _network(generator.Generator, denoiser, knows_no_class=True)
    labels = np.arange(64) % 2
    images = _signed(network.generate(64, label=labels))
    for label in (0, 1):
        expected = GAUSSIANS[2] + guidance * (GAUSSIANS[label] - GAUSSIANS[2])
        found = images[labels == label]
        # 6144 numbers, and levels 1/128 apart.
        assert found.mean() == pytest.approx(expected, abs=0.008)
        assert found.std() == pytest.approx(STD, rel=0.04)
    unlabelled = _signed(network.generate(32))
    assert unlabelled.mean() == pytest.approx(GAUSSIANS[2], abs=0.012)


def test_labels_that_a_network_does_not_know_are_named():
    known = _network(generator.Generator, models.Denoiser(Gaussian()))
    with pytest.raises(ValueError, match="label = 2; the network knows 0 to 1"):
        known.generate(2, label=[1, 2])
    with pytest.raises(ValueError, match="no label, but the network was trained with one"):
        known.generate(2)
    with pytest.raises(ValueError, match="num_images = 0"):
        known.generate(0, label=1)


def test_a_source_gets_as_much_noise_as_the_network_is_told():
    class Echo(small_run.Network):
        """Red and green of x, and in blue the gamma that was told."""

        source_noise = True

        def __call__(self, x, y_t, gamma, source_gamma):
            told = jnp.broadcast_to(diffusion.process.per_example(source_gamma, x), x.shape)
            return jnp.concatenate([x[..., :2], told[..., 2:]], axis=-1)

    denoiser = models.Denoiser(Echo(), diffusion.PREDICTIONS["y_0"], source_noise=0.3)
    network = _network(super_resolver.SuperResolver, denoiser, num_steps=3)
    level = 191
    images = np.full((16, 8, 8, 3), level, np.uint8)
    made = _signed(network.upscale(images, seed=1))
    expected = np.sqrt(1 - 0.3**2) * _signed(np.array(level))
    assert made[..., :2].mean() == pytest.approx(expected, abs=0.02)
    assert made[..., :2].std() == pytest.approx(0.3, rel=0.05)
    np.testing.assert_allclose(made[..., 2], 1 - 0.3**2, atol=0.005)
    assert (made != _signed(network.upscale(images, seed=2))).mean() > 0.5


def test_a_network_that_was_trained_obeys_its_classes(tmp_path):
    """Trains half a minute on real digits; a classifier of real digits judges the samples."""
    pytest.importorskip("sklearn", reason="scikit-learn is not installed; launch/test.sh does it")
    from configs import digits_8
    from launch import digits

    digits.write(tmp_path / "images")
    config = digits_8.get_config()
    changes = {
        "data.path": str(tmp_path / "images" / "train"),
        "data.eval_path": str(tmp_path / "images" / "test"),
        "model.channels": 16,
        "model.num_blocks": 1,
        "model.dropout": 0.0,
        "sampling.num_steps": 20,
        "sampling.batch_size": 64,
        "train.batch_size": 32,
        "train.num_steps": 300,
        "train.num_warmup_steps": 30,
        "train.num_decay_steps": 240,
        "train.ema_decay": 0.99,
        "train.sample_every_steps": 300,
        "evaluation.num_images": 40,
    }
    config.update_from_flattened_dict(changes)
    workdir = epath.Path(tmp_path / "run")
    few = config.copy_and_resolve_references()
    few.model.num_classes = 9
    with pytest.raises(ValueError, match=r"image 9/\d+.png is of class 9, and .* knows 0 to 8"):
        jobs.train(read(few), epath.Path(tmp_path / "few"))
    jobs.train(read(config), workdir)
    # Training ends with a look at what was learnt.
    assert {path.name for path in (workdir / "evaluation").iterdir()} == {
        *("8", "grid.png", "labels.csv", "neighbours.png")
    }
    output = epath.Path(tmp_path / "generated")
    generating.generate([cascade.open_stage(workdir)], output, generating.GenerateOptions(200))
    assert digits.judge(tmp_path / "images", output) >= 0.9
    # Asked for one class, all are of it to the classifier, too: guided ones yet more so.
    sevens = epath.Path(tmp_path / "sevens")
    guided = cascade.open_stage(workdir, guidance=2.0)
    generating.generate([guided], sevens, generating.GenerateOptions(40, labels=(7,)))
    assert digits.judge(tmp_path / "images", sevens) >= 0.9


def test_copies_are_found():
    rng = np.random.default_rng(0)
    training, held_out = rng.integers(0, 256, (2, 40, 64, 64, 3), dtype=np.uint8)
    copies = training[[3, 17]][:, :, ::-1]
    noisy = np.clip(copies + rng.normal(0, 2, copies.shape), 0, 255).astype(np.uint8)
    images = np.concatenate([noisy, held_out[:2]])
    batches = [training[:30], training[30:]]
    found = neighbours.compare(images, batches, held_out[2:], mirror=True)
    np.testing.assert_array_equal(found.nearest[:2, 0], copies)
    assert (found.distance[:2, 0] < 3).all() and (found.distance[2:, 0] > 20).all()
    assert (np.diff(found.distance, axis=1) >= 0).all()
    assert found.held_out_distance.min() > 20 and found.num_shown == 40
    # By hand, at 32 pixels.
    small = [i.reshape(32, 2, 32, 2, 3).mean((1, 3)) for i in (images[2], found.nearest[2, 0])]
    rounded = [np.rint(image) for image in small]
    expected = np.sqrt(np.mean((rounded[0] - rounded[1]) ** 2))
    assert found.distance[2, 0] == pytest.approx(expected, rel=1e-3)
    assert "copies would be near 0" in str(found) and found.picture().shape[2] == 3
    straight = neighbours.compare(images, batches, held_out[2:])
    assert straight.distance[:2, 0].min() > 20
