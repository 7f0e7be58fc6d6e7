"""The 3x3 convolution's own gradient against that of XLA's convolution."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax import lax

from sr3_jax import parallel
from sr3_jax.models import convolution, layers
from sr3_jax.models.width_packing import PackedImage

# Channels on both sides of where the gradient changes its form.
SHAPES = [
    ((2, 8, 8), 128, 128),
    ((1, 5, 7), 128, 160),
    ((3, 1, 6), 129, 128),
    ((2, 6, 1), 128, 128),
    ((2, 9, 4), 6, 128),
    ((2, 4, 9), 128, 3),
]


def plain(image, kernel):
    return lax.conv_general_dilated(
        image, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def arrays(size, c, d, dtype=jnp.float32):
    keys = jax.random.split(jax.random.key(0), 3)
    image = jax.random.normal(keys[0], (*size, c), dtype)
    kernel = jax.random.normal(keys[1], (3, 3, c, d), dtype) / float(np.sqrt(9 * c))
    cotangent = jax.random.normal(keys[2], (*size, d), dtype)
    return image, kernel, cotangent


def pull_back(convolve):
    def gradients(image, kernel, cotangent):
        out, transpose = jax.vjp(convolve, image, kernel)
        return out, *transpose(cotangent.astype(out.dtype))

    return gradients


def assert_close(actual, expected, tolerance):
    for a, e in zip(actual, expected, strict=True):
        assert a.shape == e.shape and a.dtype == e.dtype
        a, e = np.asarray(a, np.float64), np.asarray(e, np.float64)
        np.testing.assert_allclose(a, e, atol=tolerance * np.abs(e).max(), rtol=0)


@pytest.mark.parametrize(("size", "c", "d"), SHAPES)
@pytest.mark.parametrize("jit", [False, True])
def test_gradients_equal_those_of_the_plain_convolution(size, c, d, jit):
    inputs = arrays(size, c, d)
    ours = pull_back(convolution.convolve)
    ours = jax.jit(ours) if jit else ours
    assert_close(ours(*inputs), pull_back(plain)(*inputs), 2e-6)


KERNELS = {
    "3x3": ((3, 3), ((1, 1), (1, 1))),
    "without rows around": ((3, 3), ((0, 0), (1, 1))),
    "of even pixels": ((2, 2), ((1, 0), (1, 0))),
    "of odd rows": ((2, 2), ((0, 1), (1, 0))),
    "1x1": ((1, 1), ((0, 0), (0, 0))),
}


@pytest.mark.parametrize("by_products", [False, True])
@pytest.mark.parametrize(("channels", "kind"), [*((32, k) for k in KERNELS), (128, "3x3")])
def test_bfloat16_is_as_close_to_float32_as_the_plain_convolution(channels, kind, by_products):
    window, padding = KERNELS[kind]
    keys = jax.random.split(jax.random.key(0), 3)
    image = jax.random.normal(keys[0], (4, 9, 12, channels), jnp.bfloat16)
    kernel = jax.random.normal(keys[1], (*window, channels, 48), jnp.bfloat16) / channels**0.5

    def other(image, kernel):
        return lax.conv_general_dilated(
            image, kernel, (1, 1), padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    def own(image, kernel):
        return convolution.convolve(image, kernel, padding, by_products)

    out = jax.eval_shape(other, image, kernel)
    inputs = image, kernel, jax.random.normal(keys[2], out.shape, jnp.bfloat16)
    exact = pull_back(other)(*(a.astype(jnp.float32) for a in inputs))
    assert_close(pull_back(own)(*(a.astype(jnp.float32) for a in inputs)), exact, 2e-6)
    ours = jax.jit(pull_back(own))
    assert all(a.dtype == jnp.bfloat16 for a in ours(*inputs))
    assert_close([a.astype(jnp.float32) for a in ours(*inputs)], exact, 0.01)
    if by_products:
        assert "stablehlo.convolution" not in ours.lower(*inputs).as_text()


def test_under_vmap_scan_and_remat():
    image, kernel, cotangent = arrays((2, 5, 6), 128, 128)
    images = jnp.stack([image, 2 * image])
    cotangents = jnp.stack([cotangent, -cotangent])
    expected = jax.vmap(pull_back(plain), (0, None, 0))(images, kernel, cotangents)
    remat = pull_back(jax.checkpoint(convolution.convolve))

    def step(_, inputs):
        return None, remat(inputs[0], kernel, inputs[1])

    mapped = jax.vmap(pull_back(convolution.convolve), (0, None, 0))(images, kernel, cotangents)
    _, scanned = jax.lax.scan(step, None, (images, cotangents))
    assert_close(mapped, expected, 2e-6)
    assert_close(scanned, expected, 2e-6)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("size", [1, 3])
def test_devices_share_the_batch_without_gathering_it(dtype, size):
    mesh = parallel.make_mesh()
    image, kernel, cotangent = arrays((2 * mesh.size, 6, 5), 128, 128, dtype)
    inputs = image, kernel[:size, :size], cotangent

    def convolve(image, kernel):
        around = (size // 2, size // 2)
        return convolution.convolve(image, kernel, (around, around), True)

    split, whole = parallel.split_batch(mesh), parallel.replicated(mesh)
    placed = jax.device_put(inputs, (split, whole, split))
    program = jax.jit(pull_back(convolve)).lower(*placed).compile()
    tolerance = 2e-6 if dtype == jnp.float32 else 0.01
    assert_close(program(*placed), pull_back(plain)(*inputs), tolerance)
    assert "all-gather" not in program.as_text()


@pytest.mark.parametrize("platform", ["tpu", "cuda"])
def test_accelerators_get_the_plain_convolution(platform):
    inputs = arrays((2, 8, 8), 128, 128)
    lower = jax.jit(pull_back(convolution.convolve)).trace(*inputs).lower
    text = lower(lowering_platforms=(platform,)).as_text()
    assert text.count("stablehlo.convolution") == 3
    assert "concatenate" not in text


def of_doubled(image, kernel):
    return plain(jnp.repeat(jnp.repeat(image, 2, axis=1), 2, axis=2), kernel)


@pytest.mark.parametrize(("size", "c", "d"), SHAPES)
def test_convolving_a_doubled_image_with_fewer_products(size, c, d):
    image, kernel, _ = arrays(size, c, d)
    cotangent = jax.random.normal(jax.random.key(1), (size[0], 2 * size[1], 2 * size[2], d))
    ours = jax.jit(pull_back(convolution.convolve_doubled))
    expected = pull_back(of_doubled)(image, kernel, cotangent)
    assert_close(ours(image, kernel, cotangent), expected, 3e-6)


def test_the_pixels_of_a_doubled_image_take_four_ninths_of_the_products_on_cpus():
    image, kernel, _ = arrays((1, 32, 32), 16, 16)
    doubled, usual = (
        jax.jit(one).trace(image, kernel).lower
        for one in (convolution.convolve_doubled, of_doubled)
    )
    products = lambda lower, **where: lower(**where).cost_analysis()["flops"]  # noqa: E731
    assert products(doubled) == pytest.approx(4 / 9 * products(usual), rel=0.05)
    for platform in ("tpu", "cuda"):
        assert products(doubled, lowering_platforms=(platform,)) == products(usual)


@pytest.mark.parametrize("ends", [(), (4,), (1, 3)])
def test_layers_are_those_of_flax_whatever_parts_the_image_comes_in(ends):
    image = jax.random.normal(jax.random.key(0), (2, 5, 7, 6))
    parts = PackedImage(tuple(jnp.split(image, ends, axis=-1)))
    for ours, theirs in (
        (layers.Conv3x3(8), nn.Conv(8, (3, 3))),
        (layers.Conv1x1(8), nn.Dense(8)),
    ):
        params = theirs.init(jax.random.key(1), image)
        params = jax.tree.map(lambda p: p + 0.1, params)  # biases that are not zero
        expected = theirs.apply(params, image)
        if ends:
            shares = jnp.split(params["params"].pop("kernel"), ends, axis=-2)
            params["params"] |= {f"kernel_{i}": share for i, share in enumerate(shares)}
        shapes = jax.tree.map(jnp.shape, ours.init(jax.random.key(1), parts))
        assert shapes == jax.tree.map(jnp.shape, params)
        np.testing.assert_allclose(ours.apply(params, parts).to_array(), expected, atol=1e-5)
