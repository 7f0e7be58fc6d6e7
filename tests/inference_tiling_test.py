import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sr3_jax.inference import tiling
from sr3_jax.tools.benchmark import upscaling as upscale_benchmark

_KERNEL = jax.random.normal(jax.random.key(0), (5, 5, 6, 3)) / 10


def local_network(x, y_t, gamma):
    """Convolves with a kernel of five pixels; pixels outside the tile count as zero."""
    both = jnp.concatenate([x, y_t], axis=-1)
    dims = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(both, _KERNEL, (1, 1), "SAME", dimension_numbers=dims)


def denoise(network, x, y_t, tile_size, overlap, size=3, stride=4):
    """Returns the blended estimate of an image, with `size` tiles at once."""
    grid = tiling.make_grid(x.shape[1:3], tile_size, overlap, stride)
    assert grid.is_cut and grid.canvas == x.shape[1:3]
    # Values beyond the image must not matter.
    rest = (0, 3 * grid.room - x.size)
    x, y_t = (jnp.pad(a.reshape(-1), rest, constant_values=np.nan) for a in (x, y_t))
    total = jnp.zeros(3 * grid.room)
    sizes = [size] * -(-len(grid.starts) // size)
    for windows in tiling.make_windows(grid, overlap, sizes):
        tiles = tiling.cut(x, windows, 3), tiling.cut(y_t, windows, 3)
        total = tiling.add(total, network(*tiles, jnp.ones(size)), windows)
    height, width = grid.size
    return total[: 3 * height * width].reshape(1, height, width, 3)


@pytest.mark.parametrize("size", [1, 3, 16])
@pytest.mark.parametrize("shape", [(40, 56), (16, 100), (36, 33), (20, 16)])
def test_estimates_that_do_not_depend_on_the_tile_come_back_exactly(shape, size):
    """Weights add up to 1 everywhere, so an estimate that is a function of the pixel is kept."""
    x = jax.random.normal(jax.random.key(1), (1, *shape, 3))
    y_t = jax.random.normal(jax.random.key(2), x.shape)
    made = denoise(lambda x, y_t, gamma: x + 2 * y_t, x, y_t, 16, 4, size)
    np.testing.assert_allclose(made, x + 2 * y_t, atol=1e-5)


def test_every_pixel_is_blended_from_the_tiles_that_hold_it():
    """With one constant for each tile, values change gradually between the constants."""

    def network(x, y_t, gamma):
        return jnp.broadcast_to(jnp.mean(y_t, (1, 2, 3), keepdims=True), y_t.shape)

    ramp = jnp.broadcast_to(jnp.arange(64.0)[None, None, :, None], (1, 16, 64, 3))
    blended = np.asarray(denoise(network, jnp.zeros_like(ramp), ramp, 16, 8))[0, 0, :, 0]
    assert np.all(np.diff(blended) >= -1e-4)
    # Neighbouring tiles differ by 8: unblended, that would be the step between two pixels.
    assert np.diff(blended).max() < 2.0
    assert np.isclose(blended[0], 7.5) and np.isclose(blended[-1], 55.5)


def test_only_the_rims_of_tiles_differ_from_the_whole():
    x = jax.random.normal(jax.random.key(1), (1, 40, 40, 3))
    y_t = jax.random.normal(jax.random.key(2), x.shape)
    whole = local_network(x, y_t, None)
    error = np.abs(np.asarray(whole - denoise(local_network, x, y_t, 16, 8))).max(axis=(0, 3))
    # Tiles begin at 0, 8, 16, 24: a pixel two or more from every tile's edge sees all it needs.
    starts = np.arange(0, 25, 8)
    near = np.zeros(40, bool)
    for start in starts:
        for rim in (start, start + 1, start + 14, start + 15):
            near[rim] |= 2 <= rim < 38
    assert error[~near][:, ~near].max() < 1e-5
    assert error.max() > 1e-3  # the test would see a difference


def test_small_images_are_not_cut():
    for size, tile in (((12, 16), (16, 16)), ((8, 9), (8, 16)), ((1, 3), (4, 4))):
        grid = tiling.make_grid(size, 16, 4, 4)
        assert not grid.is_cut and grid.starts == ((0, 0),)
        assert grid.tile == grid.canvas == tile and grid.room == tile[0] * tile[1]


@pytest.mark.parametrize("tile_size, stride", [(16, 4), (32, 8), (128, 1), (24, 8)])
def test_whatever_sizes_come_the_network_sees_few(tile_size, stride):
    """Few shapes of tiles, and two sizes of arrays for each power of two, little padding."""
    tiles, rooms = set(), set()
    for size in np.random.default_rng(0).integers(1, 40 * tile_size, (3000, 2)).tolist():
        size = tuple(size) if sum(size) % 2 else (size[0], 1 + size[1] % tile_size)
        grid = tiling.make_grid(size, tile_size, tile_size // 4, stride)
        tiles.add(grid.tile)
        assert all(n % stride == 0 and n <= tile_size for n in grid.tile)
        pixels = grid.canvas[0] * grid.canvas[1]
        assert all(a <= b for a, b in zip(size, grid.canvas, strict=True))
        assert pixels <= grid.room < 1.5 * pixels
        if grid.is_cut:
            rooms.add(grid.room)
    assert len(tiles) <= 9
    assert len(rooms) <= 2 * np.log2(max(rooms) / min(rooms)) + 2


def test_tiles_cover_every_image():
    for length in range(17, 200):
        grid = tiling.make_grid((length, 40), 16, 4, 4)
        covered = np.zeros((length, 40), bool)
        for top, left in grid.starts:
            covered[top : top + 16, left : left + 16] = True
            assert top + 16 <= length and left + 16 <= 40
        assert covered.all()


@pytest.mark.parametrize("overlap", [16, -1])
def test_impossible_overlap(overlap):
    with pytest.raises(ValueError, match=f"overlap = {overlap}"):
        tiling.make_grid((40, 40), 16, overlap, 4)


def test_a_seam_would_be_seen():
    """Tiles of random pixels have no seams, unless each is a little brighter than the last."""
    grid = tiling.make_grid((100, 140), 32, 8, 4)
    image = np.random.default_rng(0).integers(40, 60, (1, 100, 140, 3))
    plain = upscale_benchmark.find_seams(image.astype(np.uint8), grid)
    assert 0.97 < plain["at_edges"] < 1.03 and plain["largest_at_edges"] < 1.1
    for number, (top, left) in enumerate(grid.starts):
        image[:, top : top + 32, left : left + 32] += 3 * (number % 2)
    marred = upscale_benchmark.find_seams(image.astype(np.uint8), grid)
    assert marred["largest_at_edges"] > 1.2 > 1.1 > marred["largest_elsewhere"]
    assert marred["at_edges"] > marred["elsewhere"] + 0.02
