"""Two forms of a fully connected CRF over samples of a network: docs/crf.md.

After Krähenbühl and Koltun (2011): Gaussian kernels of place and colour, and mean field, whose
updates are those of all pixels at once. Their kernels reach over the whole picture, by a fast
filter that approximates them. Here they are summed exactly over a square window of `RADIUS` pixels
to each side, beyond which the widest Gaussian that is tried has less than 7 % of its height.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

RADIUS = 7  # of the kernels, in pixels
ITERATIONS = 10  # as in the paper

Picture = Float[Array | np.ndarray, "h w c"]
Samples = Float[Array | np.ndarray, "k h w c"]


@functools.partial(jax.jit, static_argnames=("radius", "iterations"))
def continuous(
    centre: Picture,
    variance: Picture,
    guide: Picture,
    *,
    weight: float,
    place: float,
    colour: float,
    robust: float = np.inf,
    radius: int = RADIUS,
    iterations: int = ITERATIONS,
) -> Float[Array, "h w c"]:
    """Form A: mean field of a CRF whose variables are colours, in [0, 1].

    The energy is the sum over pixels of |x_i - centre_i|^2 / (2 variance_i), plus, over pairs,
    weight k_ij |x_i - x_j|^2 / (2 v), v the mean variance. k_ij is a Gaussian of place (`place`
    pixels wide) and of the guide's colours (`colour`). With `robust` that square is replaced by
    Geman and McClure's u^2 / (1 + (u / robust)^2), which is reweighted in each iteration. Mean
    field is exact in the means of a Gaussian CRF.
    """
    kernels = _kernels(guide, place, colour, radius) * weight / jnp.mean(variance)

    def add(x, sums, other, kernel):
        away = jnp.sum(jnp.square(x - other), -1, keepdims=True)
        pull = kernel / jnp.square(1.0 + away / jnp.square(robust))
        return sums[0] + pull * other, sums[1] + pull

    def update(_, x):
        unary = centre / variance, jnp.broadcast_to(1.0 / variance, x.shape)
        return jnp.divide(*_fold(functools.partial(add, x), unary, x, kernels))

    return jax.lax.fori_loop(0, iterations, update, centre)


@functools.partial(jax.jit, static_argnames=("radius", "iterations"))
def labels(
    drawn: Samples,
    *,
    density: float,
    pair: float,
    potts: float,
    place: float,
    colour: float,
    radius: int = RADIUS,
    iterations: int = ITERATIONS,
) -> Float[Array, "h w c"]:
    """Form B: mean field of a CRF whose label of a pixel is the sample that it is taken from.

    Unary: density |s_a(i) - m(i)|^2 / (2 v), m the samples' mean and v their mean variance. Pairs:
    by place and colour of m, pair k_ij |s_a(i) - s_b(j)|^2 / (2 v), and by place alone, potts g_ij
    where a and b differ. Returned is the mean under the marginals; as weights rise it takes one
    sample at each pixel. The order of samples does not matter.
    """
    mean = jnp.mean(drawn, 0)
    twice = 2.0 * jnp.mean(jnp.square(drawn - mean)) + 1e-6
    kernels = _kernels(mean, place, colour, radius)
    share = jnp.sum(kernels, 0)
    line = jnp.exp(-0.5 * jnp.square(jnp.arange(-radius, radius + 1) / place))
    line = line / line.sum()
    unary = density * jnp.sum(jnp.square(drawn - mean), -1) / twice

    def update(_, q):
        expected = jnp.einsum("khw,khwc->hwc", q, drawn)
        total = _fold(lambda sum_, other, k: sum_ + k * other, 0.0 * expected, expected, kernels)
        # The sum over j and b of k_ij q_j(b) |s_a(i) - s_b(j)|^2, less what is the same for all a.
        apart = share * jnp.square(drawn) - 2.0 * drawn * total
        near = jax.scipy.signal.convolve(q, line[None, :, None], mode="same")
        near = jax.scipy.signal.convolve(near, line[None, None, :], mode="same")
        same = near - jnp.square(line[radius]) * q  # a pixel is no neighbour of its own
        return jax.nn.softmax(-unary - pair * jnp.sum(apart, -1) / twice + potts * same, axis=0)

    q = jax.lax.fori_loop(0, iterations, update, jax.nn.softmax(-unary, axis=0))
    return jnp.einsum("khw,khwc->hwc", q, drawn)


def _kernels(guide, place, colour, radius):
    """Returns the weights of the neighbours, [offset, h, w, 1]; 0 outside and of the pixel itself.

    The Gaussian of place sums to 1.
    """
    square = jnp.sum(jnp.square(_offsets(radius)), -1)
    near = jnp.exp(-0.5 * square / place**2)
    near = jnp.where(square > 0, near / near.sum(), 0.0)[:, None, None, None]
    away = jax.lax.map(lambda at: guide - _shifted(guide, at, radius, jnp.inf), _offsets(radius))
    return near * jnp.exp(-0.5 * jnp.sum(jnp.square(away), -1, keepdims=True) / colour**2)


def _fold(add, start, x, kernels):
    """Folds `add(sums, neighbour's x, its weight)` over offsets; arrays of all would be slower."""
    radius = (int(len(kernels) ** 0.5) - 1) // 2
    step = lambda sums, at: (add(sums, _shifted(x, at[0], radius, 0.0), at[1]), None)  # noqa: E731
    return jax.lax.scan(step, start, (_offsets(radius), kernels))[0]


def _offsets(radius):
    return jnp.stack(jnp.mgrid[-radius : radius + 1, -radius : radius + 1], -1).reshape(-1, 2)


def _shifted(x, offset, radius, outside):
    padded = jnp.pad(x, ((radius,) * 2, (radius,) * 2, (0, 0)), constant_values=outside)
    return jax.lax.dynamic_slice(padded, (*(offset + radius), 0), x.shape)
