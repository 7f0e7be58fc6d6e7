"""Normalisation, resampling, embedding and attention."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from sr3_jax.models import layers, normalization
from sr3_jax.models.width_packing import PackedImage


def packed(image, ends=(), factor=1):
    """The image with its channels split at `ends`, packed by `factor`."""
    return PackedImage(tuple(jnp.split(image, ends, axis=-1))).packed_by(factor)


def of_arrays(layer):
    """`layer` with every image a plain array."""
    return lambda params, image, *args, **options: layer.apply(
        params, packed(image), *args, **options
    ).to_array()


@pytest.mark.parametrize("channels", [4, 32, 48, 256])
def test_group_norm_equals_that_of_flax(channels):
    image = 3 + 2 * jax.random.normal(jax.random.key(0), (2, 5, 6, channels))
    params = {
        "scale": jax.random.normal(jax.random.key(1), (channels,)),
        "bias": jax.random.normal(jax.random.key(2), (channels,)),
    }
    flax = nn.GroupNorm(layers.num_norm_groups(channels))

    def output_and_gradients(norm):
        def total(params, image):
            out = norm({"params": params}, image)
            return jnp.sum(jnp.sin(out)), out

        return jax.value_and_grad(total, argnums=(0, 1), has_aux=True)(params, image)

    ours = output_and_gradients(of_arrays(layers.Norm()))
    theirs = output_and_gradients(flax.apply)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-4), ours, theirs)


@pytest.mark.parametrize("shape", [(3, 3, 5, 8), (7, 4)])
def test_kernels_start_with_the_numbers_of_flax(shape):
    ours, theirs = layers.glorot_uniform, nn.initializers.glorot_uniform()
    key = jax.random.key(3)
    np.testing.assert_allclose(ours(key, shape), theirs(key, shape), atol=1e-6)


@pytest.mark.parametrize("channels", [3, 4, 6, 12, 50, 64, 129, 1024])
def test_groups_divide_the_channels(channels):
    groups = layers.num_norm_groups(channels)
    assert channels % groups == 0 and 1 <= groups <= max(1, min(channels // 4, 32))


def test_bfloat16_images_far_from_zero_normalise_with_float32_statistics():
    # 64 +- 1: where bfloat16 sums of 4096 pixels would be off by far more than the spread.
    noise = jax.random.normal(jax.random.key(0), (2, 64, 64, 32))
    image = (64 + noise).astype(jnp.bfloat16)
    out, _ = layers.Norm(jnp.bfloat16).init_with_output(jax.random.key(0), packed(image))
    out = out.to_array()
    assert out.dtype == jnp.bfloat16
    out = np.asarray(out, np.float64).reshape(2, -1, 8, 4)
    np.testing.assert_allclose(out.mean((1, 3)), 0, atol=2e-3)
    np.testing.assert_allclose(out.std((1, 3)), 1, atol=5e-3)


def test_constant_images_normalise_to_the_bias():
    image = jnp.full((1, 8, 8, 16), 1234.5)
    out, _ = layers.Norm().init_with_output(jax.random.key(0), packed(image))
    out = out.to_array()
    assert np.all(np.isfinite(out))
    assert np.abs(out).max() < 0.1


def test_scale_shift_modulates_the_normalised_image():
    image = jax.random.normal(jax.random.key(0), (2, 4, 4, 8))
    scale, shift = jax.random.normal(jax.random.key(1), (2, 2, 8))
    norm = of_arrays(layers.Norm())
    params = layers.Norm().init(jax.random.key(0), packed(image))
    expected = norm(params, image) * (1 + scale[:, None, None]) + shift[:, None, None]
    modulated = norm(params, image, scale_shift=(scale, shift))
    np.testing.assert_allclose(modulated, expected, atol=1e-5)


@pytest.mark.parametrize("swish", [False, True])
@pytest.mark.parametrize("ends", [(), (10,), (4, 14)])  # groups have 4 channels
def test_shifted_modulated_norm_and_swish_equal_flax_in_all_gradients(swish, ends):
    """The gradient by hand against automatic differentiation of an independent layer, with the
    image in parts whose borders lie inside groups too."""
    channels, num_groups = 24, 6
    keys = jax.random.split(jax.random.key(3), 6)
    image = 3 + 2 * jax.random.normal(keys[0], (2, 5, 6, channels))
    shift, extra, added = jax.random.normal(keys[1], (3, 2, channels))
    params = dict(zip(("scale", "bias"), jax.random.normal(keys[2], (2, channels)), strict=True))
    weight = jax.random.normal(keys[4], image.shape)  # a plain sum hides errors in the means

    def ours(params, image, shift, extra, added):
        norm = layers.Norm(swish=swish)
        return norm.apply({"params": params}, packed(image, ends), shift, (extra, added)).to_array()

    def theirs(params, image, shift, extra, added):
        norm = nn.GroupNorm(num_groups)
        out = norm.apply({"params": params}, image + shift[:, None, None])
        out = out * (1 + extra[:, None, None]) + added[:, None, None]
        return nn.swish(out) if swish else out

    def value_and_gradients(f):
        def total(*args):
            return jnp.sum(weight * jnp.sin(f(*args)))

        return jax.value_and_grad(total, range(5))(params, image, shift, extra, added)

    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=3e-4),
        value_and_gradients(ours),
        value_and_gradients(theirs),
    )


@pytest.mark.parametrize("factor, ends", [(1, ()), (1, (10,)), (4, (8,))])
def test_pixel_norm_equals_flax_rms_norm(factor, ends):
    """With what is added before and after, in parts and packed; and its gradients."""
    channels = 24
    keys = jax.random.split(jax.random.key(5), 4)
    image = 3 + 2 * jax.random.normal(keys[0], (2, 4, 8, channels))
    shift, extra, added, scale, bias = jax.random.normal(keys[1], (5, 2, channels))
    params = {"scale": scale[0], "bias": bias[0]}
    weight = jax.random.normal(keys[2], image.shape)

    def ours(params, image, shift, extra, added):
        norm = layers.Norm(swish=True, statistics="pixel")
        return norm.apply(
            {"params": params}, packed(image, ends, factor), shift, (extra, added)
        ).to_array()

    def theirs(params, image, shift, extra, added):
        norm = nn.RMSNorm(epsilon=1e-6)
        out = norm.apply({"params": {"scale": params["scale"]}}, image + shift[:, None, None])
        out = out + params["bias"]
        return nn.swish(out * (1 + extra[:, None, None]) + added[:, None, None])

    def value_and_gradients(f):
        def total(*args):
            return jnp.sum(weight * jnp.sin(f(*args)))

        return jax.value_and_grad(total, range(5))(params, image, shift, extra, added)

    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=3e-4),
        value_and_gradients(ours),
        value_and_gradients(theirs),
    )


def _normalised_in_float64(image, shift, scale, offset, num_groups, cotangent):
    """Group norm and swish of `image + shift`, and their gradients, by NumPy."""
    image = image.astype(np.float64) + shift[:, None, None]
    groups = image.reshape(len(image), -1, num_groups, image.shape[-1] // num_groups)
    std = np.sqrt(groups.var((1, 3), keepdims=True) + 1e-6)
    unit = (groups - groups.mean((1, 3), keepdims=True)) / std
    out = unit.reshape(image.shape) * scale[:, None, None] + offset[:, None, None]
    gate = 1 / (1 + np.exp(-out))
    d_out = cotangent * gate * (1 + out * (1 - gate))
    d_unit = (d_out * scale[:, None, None]).reshape(groups.shape)
    along = (d_unit * unit).mean((1, 3), keepdims=True) * unit
    d_image = (d_unit - d_unit.mean((1, 3), keepdims=True) - along) / std
    d_image = d_image.reshape(image.shape)
    d_scale = (d_out * unit.reshape(image.shape)).sum((1, 2))
    return out * gate, d_image, d_image.sum((1, 2)), d_scale, d_out.sum((1, 2))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("mean", [0, 1, 1000, 3000])
@pytest.mark.parametrize("factor, ends", [(1, ()), (1, (10,)), (4, ())])
def test_images_far_from_zero_are_normalised_as_in_float64(mean, dtype, factor, ends):
    """A mean of many standard deviations, of which rounding must not take the variance."""
    keys = jax.random.split(jax.random.key(4), 3)
    image = (mean + jax.random.normal(keys[0], (2, 16, 16, 24))).astype(dtype)
    cotangent = jax.random.normal(keys[1], image.shape).astype(dtype)
    per_channel = np.asarray(jax.random.normal(keys[2], (3, 2, 24)))

    @jax.jit
    def value_and_gradients(image, cotangent, *per_channel):
        def norm(image, *per_channel):
            image = packed(image, ends, factor)
            return normalization.group_norm(image, *per_channel, 6, True).to_array()

        out, pull_back = jax.vjp(norm, image, *per_channel)
        return out, *pull_back(cotangent)

    ours = value_and_gradients(image, cotangent, *per_channel)
    rounded, cotangent = (np.asarray(a, np.float64) for a in (image, cotangent))
    theirs = _normalised_in_float64(rounded, *per_channel, 6, cotangent)
    for a, b in zip(ours, theirs, strict=True):
        # At a mean of 3000 float32 keeps pixels to 1e-4 of a standard deviation.
        error = np.abs(np.asarray(a, np.float64) - b).max() / np.abs(b).max()
        assert error < (4e-3 if dtype == jnp.bfloat16 else 1e-6 + 3e-7 * mean)


def test_up_repeats_pixels_and_down_undoes_it():
    image = jax.random.normal(jax.random.key(0), (2, 3, 5, 4))
    up = packed(image).resample("up")
    np.testing.assert_array_equal(up.to_array(), np.repeat(np.repeat(image, 2, 1), 2, 2))
    np.testing.assert_allclose(up.resample("down").to_array(), image, rtol=1e-6)


@pytest.mark.parametrize("resample", ["up", "down"])
def test_a_fresh_resampling_block_projects_the_resampled_image(resample):
    image = jax.random.normal(jax.random.key(0), (2, 4, 6, 8))
    block = layers.ResidualBlock(12, resample)
    # The other branch ends in zeros.
    image = packed(image)
    out, params = block.init_with_output(jax.random.key(1), image, jnp.ones((2, 5)), None)
    params = params["params"]["shortcut"]
    shortcut = image.resample(resample).to_array() @ params["kernel"] + params["bias"]
    np.testing.assert_allclose(out.to_array(), shortcut / np.sqrt(2), atol=1e-5)


@pytest.mark.parametrize("features", [1, 2, 7, 64])
def test_embedding_has_the_size_asked_for(features):
    out = layers.sinusoidal_embedding(jnp.linspace(0, 5000, 9), features)
    assert out.shape == (9, features) and np.all(np.abs(out) <= 1)


def test_attention_does_not_care_where_pixels_are():
    block = layers.AttentionBlock(num_heads=2)
    image = jax.random.normal(jax.random.key(0), (1, 4, 4, 16))
    params = _shaken(block.init(jax.random.key(1), packed(image)))
    order = jax.random.permutation(jax.random.key(2), 16)

    def permute(image):
        return image.reshape(1, 16, 16)[:, order].reshape(image.shape)

    block = of_arrays(block)
    out = block(params, image)
    assert not np.allclose(out, image / np.sqrt(2), atol=1e-2)
    np.testing.assert_allclose(block(params, permute(image)), permute(out), atol=1e-5)


def test_attention_over_one_pixel_is_its_value():
    """XLA for CPUs does not compile such products of bfloat16."""
    image = jax.random.normal(jax.random.key(0), (2, 1, 1, 16))
    params = _shaken(layers.AttentionBlock().init(jax.random.key(1), packed(image)))
    exact, *narrow = (
        jax.jit(of_arrays(layers.AttentionBlock(dtype=dtype)))(params, part)
        for dtype, part in ((jnp.float32, image), (jnp.bfloat16, image[:1]), (jnp.bfloat16, image))
    )
    for one in narrow:
        np.testing.assert_allclose(one, exact[: len(one)], atol=0.05)


def test_attention_names_heads_that_do_not_fit():
    with pytest.raises(ValueError, match="num_heads = 3 does not divide the 16 channels"):
        block = layers.AttentionBlock(num_heads=3)
        block.init(jax.random.key(0), packed(jnp.zeros((1, 2, 2, 16))))


def _shaken(params):
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(7), len(leaves))
    noise = [0.2 * jax.random.normal(k, a.shape) for k, a in zip(keys, leaves, strict=True)]
    return jax.tree.unflatten(tree, [a + n for a, n in zip(leaves, noise, strict=True)])


@pytest.mark.parametrize("scale_shift", [False, True])
def test_what_enters_the_second_norm_has_one_bias(scale_shift):
    """It is the embedding's where that is added, and conv_0's where that scales and shifts."""
    block = layers.ResidualBlock(8, scale_shift=scale_shift)
    params = block.init(jax.random.key(0), packed(jnp.ones((1, 4, 4, 8))), jnp.ones((1, 5)), None)
    assert ("bias" in params["params"]["conv_0"]) == scale_shift


@pytest.mark.parametrize("layer", [layers.Conv3x3, layers.Conv1x1])
def test_kernels_of_parts_are_drawn_as_one(layer):
    image = jnp.ones((1, 4, 4, 32))
    whole = layer(64).init(jax.random.key(0), packed(image))["params"]["kernel"]
    params = layer(64).init(jax.random.key(0), packed(image, (24,)))["params"]
    spread = float(jnp.std(whole))
    for i, channels in enumerate((24, 8)):
        kernel = params[f"kernel_{i}"]
        assert kernel.shape == (*whole.shape[:-2], channels, 64)
        np.testing.assert_allclose(jnp.std(kernel), spread, rtol=0.1)
    assert not np.allclose(params["kernel_0"][..., :8, :], params["kernel_1"])


@pytest.mark.parametrize("resample", ["none", "up", "down"])
def test_an_image_in_parts_is_their_concatenation(resample):
    block = layers.ResidualBlock(16, resample)
    image, embedding = jax.random.normal(jax.random.key(0), (2, 4, 6, 20)), jnp.ones((2, 5))
    params = block.init(jax.random.key(1), packed(image), embedding, None)
    params = jax.tree.map(
        lambda p: p + 0.3 * jax.random.normal(jax.random.key(p.size), p.shape), params
    )

    def in_parts(params, ends):
        """The same kernels, each part's share by itself."""
        params = jax.tree.map(lambda p: p, params)  # a copy
        for layer in {"conv_0", "shortcut"} & params["params"].keys():
            kernel = params["params"][layer].pop("kernel")
            shares = jnp.split(kernel, ends, axis=-2)
            params["params"][layer] |= {f"kernel_{i}": share for i, share in enumerate(shares)}
        return params

    def total(params, image, ends):
        params = in_parts(params, ends) if ends else params
        out = block.apply(params, packed(image, ends), embedding, None).to_array()
        return jnp.sum(jnp.sin(out)), out

    gradient = jax.value_and_grad(total, (0, 1), has_aux=True)
    whole, parts = gradient(params, image, ()), gradient(params, image, (6, 16))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-4), whole, parts)
