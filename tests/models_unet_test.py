"""The U-Net: size, types, invariances."""

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest

from sr3_jax import models
from sr3_jax.models import layers

# Compiling is what takes time here: most tests share one small network, and its parameters.
SMALL = dict(channels=8, multipliers=(1, 2), num_blocks=1, attention_levels=(1,))

# Table A.1 of SR3: channels, multipliers, blocks, image size, parameters.
TABLE_A1 = [
    (128, (1, 2, 4, 8, 8), 3, 128, 550e6),
    (128, (1, 2, 4, 4, 8, 8), 3, 256, 625e6),
    (64, (1, 2, 4, 8, 8, 16, 16), 3, 512, 625e6),
    (16, (1, 2, 4, 8, 16, 32, 32, 32), 2, 1024, 150e6),
]


def inputs(batch=2, height=8, width=8):
    keys = jax.random.split(jax.random.key(0), 2)
    x, y_t = (jax.random.normal(key, (batch, height, width, 3)) for key in keys)
    return x, y_t, jnp.linspace(0.2, 0.9, batch)


def random_params(model):
    """Random everywhere: the initialisation's zeros hide most of the network."""
    shapes = jax.eval_shape(model.init, jax.random.key(0), *inputs())["params"]
    leaves, tree = jax.tree.flatten_with_path(shapes)
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        values = rng.normal(size=leaf.shape) / np.sqrt(max(1, np.prod(leaf.shape[:-1])))
        return np.asarray(values + (path[-1].key == "scale"), leaf.dtype)

    return jax.tree.unflatten(tree, [draw(path, leaf) for path, leaf in leaves])


@pytest.fixture(scope="module")
def small():
    """`f(x, y_t, gamma)` of the shared network, compiled once for each shape."""
    model = models.UNet(**SMALL)
    params = random_params(model)
    return jax.jit(lambda *args: model.apply({"params": params}, *args))


def apply(model, params, *args):
    return jax.jit(lambda p, *a: model.apply({"params": p}, *a))(params, *args)


@pytest.mark.parametrize(("channels", "multipliers", "num_blocks", "size", "expected"), TABLE_A1)
def test_sizes_of_the_papers_networks(channels, multipliers, num_blocks, size, expected):
    attention = [i for i in range(len(multipliers)) if size >> i == 16]
    model = models.UNet(channels, multipliers, num_blocks, attention)
    assert models.count_parameters(model, size) == pytest.approx(expected, rel=0.03)


def test_starts_at_zero():
    model = models.UNet(8, (1,), 1)
    out, _ = jax.jit(model.init_with_output)(jax.random.key(0), *inputs())
    np.testing.assert_array_equal(out, 0)


@pytest.mark.parametrize("by_products", [False, True])
def test_bfloat16_keeps_parameters_and_output_in_float32(small, by_products):
    args = inputs()
    narrow = models.UNet(**SMALL, dtype=jnp.bfloat16, by_products=by_products)
    params = random_params(narrow)
    assert {a.dtype for a in jax.tree.leaves(params)} == {jnp.dtype(jnp.float32)}
    out, exact = apply(narrow, params, *args), small(*args)
    assert out.dtype == jnp.float32
    assert np.abs(out - exact).max() > 0
    assert np.sqrt(np.mean((out - exact) ** 2)) < 0.05 * np.std(exact)
    program = jax.jit(narrow.apply).trace({"params": params}, *args)
    has_convolutions = {
        platform: "stablehlo.convolution" in program.lower(lowering_platforms=(platform,)).as_text()
        for platform in ("cpu", "tpu")
    }
    assert has_convolutions == {"cpu": not by_products, "tpu": True}


def test_remat_changes_neither_output_nor_gradient():
    args = inputs()
    config = dict(SMALL, multipliers=(1,), attention_levels=(0,))
    params = random_params(models.UNet(**config))

    def output_and_gradient(model):
        def loss(params):
            out = model.apply({"params": params}, *args)
            return jnp.mean(jnp.abs(out - args[1])), out

        return jax.jit(jax.value_and_grad(loss, has_aux=True))(params)

    plain = output_and_gradient(models.UNet(**config))
    remat = output_and_gradient(models.UNet(**config, remat=True))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5, rtol=1e-4), plain, remat)


def test_remat_has_the_same_parameters():
    shapes = [
        jax.eval_shape(models.UNet(**SMALL, remat=remat).init, jax.random.key(0), *inputs())
        for remat in (False, True)
    ]
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize(("height", "width"), [(2, 2), (4, 10), (14, 6)])
def test_any_size_that_the_stride_divides(height, width):
    model = models.UNet(**SMALL)
    x, y_t, gamma = inputs(1, height, width)
    out, _ = jax.eval_shape(model.init_with_output, jax.random.key(0), x, y_t, gamma)
    assert out.shape == y_t.shape


def test_names_the_sizes_that_would_do():
    model = models.UNet(channels=8, multipliers=(1, 1, 2), num_blocks=1)
    with pytest.raises(ValueError, match="divisible by 4; 4x8 or 8x8 would do"):
        model.init(jax.random.key(0), *inputs(1, 6, 8))


def test_names_a_source_that_was_not_upsampled(monkeypatch):
    # The tests' shape checks would stop this earlier; users do not have them.
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    x, y_t, gamma = inputs()
    with pytest.raises(ValueError, match="upsample x"):
        models.UNet(**SMALL).init(jax.random.key(0), x[:, ::2, ::2], y_t, gamma)


def test_an_image_does_not_depend_on_its_batch(small):
    args = inputs()
    together, alone = small(*args), small(*(a[1:2] for a in args))
    np.testing.assert_allclose(together[1:2], alone, atol=2e-5)


@pytest.mark.parametrize("scale_shift", [False, True])
def test_low_noise_levels_are_told_apart(small, scale_shift):
    x, y_t, gamma = inputs()
    if scale_shift:
        model = models.UNet(**SMALL, scale_shift=True)
        params = random_params(model)
        small = jax.jit(lambda *args: model.apply({"params": params}, *args))
    low, lower = (small(x, y_t, jnp.full_like(gamma, g)) for g in (0.999, 0.9999))
    assert np.sqrt(np.mean((low - lower) ** 2)) > 1e-2 * np.std(low)


def test_both_images_matter(small):
    x, y_t, gamma = inputs()
    out = small(x, y_t, gamma)
    assert not np.allclose(out, small(-x, y_t, gamma), atol=1e-2)
    assert not np.allclose(out, small(x, -y_t, gamma), atol=1e-2)


def test_shifting_a_periodic_texture_by_the_stride_shifts_the_inside_of_the_output():
    # Zero padding breaks the shift near the border only, but group normalisation sees the
    # border too: hence a wide image and a tolerance.
    model = models.UNet(8, (1, 2), 1, bottleneck_attention=False)
    columns = jnp.arange(128)
    x = jnp.broadcast_to(jnp.sin(2 * jnp.pi * columns / 8)[None, None, :, None], (1, 8, 128, 3))
    gamma = jnp.full((1,), 0.5)
    params = random_params(model)
    out, shifted = (
        apply(model, params, image, image, gamma) for image in (x, jnp.roll(x, 4, axis=2))
    )
    inside = slice(48, 80)
    difference = jnp.roll(out, 4, axis=2)[:, :, inside] - shifted[:, :, inside]
    assert np.sqrt(np.mean(difference**2)) < 0.05 * np.std(out)


def test_dropout_acts_where_keys_are_given_and_belongs_to_the_image():
    model = models.UNet(8, (1,), 1, dropout=0.5)
    x, y_t, gamma = inputs()
    params = random_params(model)

    @jax.jit
    def run(x, y_t, gamma, keys):
        return model.apply({"params": params}, x, y_t, gamma, keys)

    keys = jax.random.split(jax.random.key(0), len(x))
    kept, dropped = run(x, y_t, gamma, None), run(x, y_t, gamma, keys)
    assert not np.allclose(kept, dropped, atol=1e-3)
    other_keys = keys.at[0].set(jax.random.key(1))
    others = run(x, y_t, gamma, other_keys)
    assert not np.allclose(others[0], dropped[0], atol=1e-3)
    np.testing.assert_allclose(others[1:], dropped[1:], atol=1e-6)


def test_drop_keeps_the_mean_and_drops_the_share_asked_for():
    image = jnp.ones((4, 64, 64, 8))
    keys = jax.random.split(jax.random.key(0), 4)
    dropped = np.asarray(layers.drop(image, keys, 0.2))
    kept = dropped[dropped != 0]
    np.testing.assert_allclose(kept, 1 / 0.8, rtol=1e-4)
    # Four standard errors of a mean of 131072 draws.
    np.testing.assert_allclose(kept.size / dropped.size, 0.8, atol=4 * 0.4 / dropped.size**0.5)
    assert not np.array_equal(dropped[0], dropped[1])


@pytest.mark.parametrize(
    "options", [{}, {"norm": "pixel", "scale_shift": True}], ids=["group", "pixel"]
)
def test_width_packing_changes_neither_output_nor_gradient_nor_dropout(options):
    """Levels of 8 and 24 channels, packed by different factors; attention; every resampling."""
    settings = dict(
        channels=8, multipliers=(1, 3), num_blocks=1, attention_levels=(0,), dropout=0.3, **options
    )
    plain, packed = models.UNet(**settings), models.UNet(**settings, packed_channels=64)
    args = inputs(height=4, width=32)
    params = random_params(plain)
    keys = jax.random.split(jax.random.key(0), 2)
    weights = jax.random.normal(jax.random.key(1), args[1].shape)

    def run(model):
        def total(params):
            out = model.apply({"params": params}, *args, keys)
            return jnp.sum(weights * out), out

        return jax.jit(jax.value_and_grad(total, has_aux=True))(params)

    (_, expected), expected_gradient = run(plain)
    (_, out), gradient = run(packed)
    np.testing.assert_allclose(out, expected, atol=2e-4)
    for a, b in zip(jax.tree.leaves(gradient), jax.tree.leaves(expected_gradient), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-3 * (1 + np.abs(b).max()))


def test_labels_and_source_noise_change_what_is_said():
    model = models.UNet(channels=8, multipliers=(1,), num_classes=2, source_noise=True)
    inputs = models.example_inputs(model, 8)
    params = model.init(jax.random.key(0), *inputs)["params"]
    assert params["label_embedding"]["embedding"].shape == (3, 32)
    params = jax.tree.map(lambda p: p + 0.1, params)
    x, y_t, gamma, _, label, source_gamma = inputs
    say = lambda label, level: model.apply(  # noqa: E731
        {"params": params}, x, y_t + 1.0, gamma + 0.5, None, label, source_gamma + level
    )
    first = say(label, 1.0)
    assert np.abs(first - say(label + 1, 1.0)).max() > 1e-3
    assert np.abs(first - say(label + 2, 1.0)).max() > 1e-3
    assert np.abs(first - say(label, 0.9)).max() > 1e-3


@pytest.mark.parametrize("norm", ["group", "pixel"])
def test_with_the_statistics_of_pixels_what_lies_far_away_makes_no_difference(norm):
    """So that an image in tiles, whatever their size, is the image as a whole."""
    model = models.UNet(
        channels=8, multipliers=(1, 2), num_blocks=1, bottleneck_attention=False, norm=norm
    )
    params = random_params(model)
    x, y_t, gamma = inputs(batch=1, width=160)
    changed = x.at[:, :, :40].multiply(3.0)
    here, there = (apply(model, params, x, y_t, gamma)[:, :, 120:] for x in (x, changed))
    assert (np.abs(here - there).max() > 1e-3) == (norm == "group")
    if norm == "pixel":
        np.testing.assert_array_equal(here, there)
