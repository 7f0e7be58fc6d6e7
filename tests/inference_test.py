"""SuperResolver and the upscaling of files, with random weights."""

import dataclasses
import functools
import itertools

import jax
import numpy as np
import pytest
import small_run
from etils import epath
from PIL import Image, ImageCms

from sr3_jax import SuperResolver, models
from sr3_jax.config import networks, optimizers, read, schedules
from sr3_jax.data import image_files
from sr3_jax.inference import host_images, programs, refinement, upscale_files
from sr3_jax.inference.inputs import UpscaleOptions, find_inputs
from sr3_jax.training.state import init_state


@pytest.fixture(scope="module")
def resolver():
    config = small_run.config()
    config.sampling.num_steps = 2
    config.sampling.schedule = "respaced"
    model, optimizer = networks.model(read(config)), optimizers.optimizer(read(config))
    params = jax.jit(lambda: init_state(model, optimizer, 0, 16).params)()
    # Away from zero-initialised layers, so that the result depends on the input.
    params = jax.tree.map(
        lambda p: p + 0.1 * jax.random.normal(jax.random.key(p.size), p.shape), params
    )
    return SuperResolver.from_params(config, params)


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (6, 8, 8, 3), dtype=np.uint8)


def _close(a, b):
    """Asserts equality up to one level, since rounding differs between batch sizes."""
    assert a.shape == b.shape and a.dtype == b.dtype == np.uint8
    assert np.abs(a.astype(int) - b.astype(int)).max() <= 1


def test_shape_and_reproducibility(resolver, images):
    first = resolver.upscale(images)
    assert first.shape == (6, 32, 32, 3) and first.dtype == np.uint8
    np.testing.assert_array_equal(first, resolver.upscale(images))
    assert (first != resolver.upscale(images, seed=1)).mean() > 0.5


def test_an_image_does_not_depend_on_its_batch(resolver, images):
    """Six images are a batch of four and one of two; with its seed, each is the same alone."""
    seeds = [11, 12, 13, 14, 15, 16]
    together = resolver.upscale(images, seed=seeds)
    _close(together[::-1], resolver.upscale(images[::-1], seed=seeds[::-1]))
    _close(together[4:5], resolver.upscale(images[4:5], seed=[15]))
    assert (together != resolver.upscale(images, seed=seeds[::-1])).mean() > 0.5


def test_any_size(resolver):
    """Some sizes are not divisible by the network's stride, and some are larger than a tile."""
    for height, width in ((3, 5), (1, 1), (9, 21)):
        image = np.full((1, height, width, 3), 90, np.uint8)
        assert resolver.upscale(image).shape == (1, 4 * height, 4 * width, 3)


def test_less_overlap_takes_fewer_tiles(resolver):
    tiles = {}
    for overlap in (0, 4, 1000):  # at most a quarter of a tile of 32
        config = small_run.config()
        config.sampling.tile_overlap = overlap
        network = SuperResolver.from_params(config, resolver.params)
        tiles[overlap] = network.refiner.grid((16, 24)).starts
    assert tiles[0] == tuple(itertools.product((0, 32), (0, 32, 64)))
    assert tiles[4] == tuple(itertools.product((0, 16, 32), (0, 21, 43, 64)))
    assert tiles[1000] == tuple(itertools.product((0, 16, 32), (0, 21, 43, 64)))


def test_sizes_share_programs_and_steps_do_too(resolver):
    """Similar sizes, 16 bits and other numbers of steps compile nothing."""
    image = lambda h, w: np.random.default_rng(h).integers(0, 256, (h, w, 3), dtype=np.uint8)  # noqa: E731
    for size in ((9, 20), (5, 7)):
        resolver.upscale(image(*size))
    compiled = resolver.refiner.programs.compile_seconds
    resolver.upscale(image(9, 20), steps=7)
    resolver.upscale(image(20, 9).astype(np.uint16), steps=3)
    resolver.upscale(image(8, 5), steps=70)
    assert resolver.refiner.programs.compile_seconds == compiled


def test_an_image_that_is_cut_is_the_same_on_any_number_of_devices(resolver):
    """It is also the same with other numbers of tiles at once."""
    image = np.random.default_rng(1).integers(0, 256, (1, 20, 26, 3), dtype=np.uint8)
    results = []
    for devices, batch_size in ((1, 1), (4, 4), (4, 16)):
        options = dataclasses.replace(resolver._sampling, batch_size=batch_size)
        refiner = refinement.Refiner(
            resolver.refiner.denoiser,
            options,
            factor=4,
            stride=1,
            devices=jax.local_devices()[:devices],
        )
        refiner.set_params(resolver.params)
        keys = jax.random.split(jax.random.key(0), 1)
        (made,) = refiner.refine(image, keys, resolver.make_sampler(2))
        results.append(made())
    assert results[0].shape == (1, 80, 104, 3)
    for other in results[1:]:
        _close(results[0], other)


def test_an_image_whose_height_devices_share_is_the_same(resolver, images, monkeypatch):
    """Each of four devices has a strip of the image, and receives edges from its neighbours."""
    seen = []
    run = programs.Programs.network

    def spy(self, shape, params, x, y_t, gamma, labels):
        seen.append(y_t.sharding.shard_shape(y_t.shape))
        return run(self, shape, params, x, y_t, gamma, labels)

    monkeypatch.setattr(programs.Programs, "network", spy)
    made = []
    for share in (False, True):
        refiner = refinement.Refiner(
            resolver.refiner.denoiser,
            resolver._sampling,
            factor=4,
            stride=1,
            devices=jax.local_devices(),
            share_heights=share,
        )
        refiner.set_params(resolver.params)
        keys = jax.random.split(jax.random.key(0), 1)
        snapshot, result = refiner.refine(images[:1], keys, resolver.make_sampler(3), [2])
        made.append((snapshot(), result()))
    assert seen == 3 * [(1, 32, 32, 3)] + 3 * [(1, 8, 32, 3)]
    for one, other in zip(*made, strict=True):
        _close(one, other)


def test_16_bits_stay_16_bits(resolver, images):
    """Results are the same up to the rounding to 8 bits."""
    deep = resolver.upscale(images.astype(np.uint16) * 257)
    assert deep.dtype == np.uint16 and len(np.unique(deep)) > 256
    assert np.abs(deep / 257 - resolver.upscale(images)).max() <= 1.0


def test_other_factors(resolver, images):
    """Resizing before or after the network does not shift the image."""
    for factor, size in ((8, 64), (2.5, 20), (1.3, 10)):
        assert resolver.upscale(images[0], factor=factor).shape == (size, size, 3)
    ramp = np.repeat(np.arange(0, 240, 10, dtype=np.uint8)[None, :, None], 24, 0).repeat(3, 2)
    resized = host_images.resized(ramp[None], 1.5, (36, 36))[0].astype(float)
    where = (np.arange(36) + 0.5) / 1.5 - 0.5
    np.testing.assert_allclose(resized[18, 3:-3, 0], 10 * where[3:-3], atol=0.6)
    full, half = resolver.upscale(images[0]), resolver.upscale(images[0], factor=2)
    expected = Image.fromarray(full).resize((16, 16), Image.Resampling.BICUBIC)
    np.testing.assert_allclose(half.astype(int), np.asarray(expected, int), atol=1)
    with pytest.raises(ValueError, match="factor = 0"):
        resolver.upscale(images[0], factor=0.0)


def test_samples_of_one_image_differ(resolver, images):
    samples = resolver.sample_many(images[0], 3)
    assert samples.shape == (3, 32, 32, 3)
    assert (samples[0] != samples[1]).mean() > 0.5
    np.testing.assert_array_equal(samples, resolver.sample_many(images[0], 3))


@pytest.mark.parametrize("sampler", ["ddim", "dpmpp_2m", "heun"])
def test_other_samplers(resolver, images, sampler):
    config = small_run.config()
    config.sampling.sampler, config.sampling.num_steps = sampler, 3
    other = SuperResolver.from_params(config, resolver.params)
    calls = []
    made = other.upscale(images[:1], progress=lambda: calls.append(1))
    assert len(calls) == other.nfe() == (5 if sampler == "heun" else 3)
    assert (made != resolver.upscale(images[:1], steps=3)).mean() > 0.3


def test_progress_counts_every_step(resolver, images):
    calls = []
    resolver.upscale(images, steps=3, progress=lambda: calls.append(1))
    jax.effects_barrier()
    assert len(calls) == resolver.num_refinements(images.shape, 3) == 9


def test_progress_counts_every_tile(resolver, images):
    """So a job on a large picture can be stopped between its tiles."""
    config = small_run.config()
    config.sampling.tile_size, config.sampling.batch_size = 16, 4
    tiled, calls = SuperResolver.from_params(config, resolver.params), []
    tiled.upscale(images[:1], steps=2, progress=lambda: calls.append(1))
    assert len(calls) == tiled.num_refinements(images[:1].shape, 2) > 2


def test_no_image_is_sampled_twice(images):
    """Some batches are smaller than the number of devices, or not divisible by it."""
    sizes = []

    class Recorder(small_run.Network):
        def __call__(self, x, y_t, gamma):
            sizes.append(len(x))
            return y_t

    config = small_run.config()
    config.sampling.batch_size = 5
    resolver = SuperResolver(
        models.Denoiser(Recorder()),
        {},
        functools.partial(schedules.sampler, read(config)),
        read(config).effective_sampling,
        factor=4,
        stride=1,
    )
    assert jax.device_count() == 4
    for count, expected, batches in ((1, 1, 1), (3, 4, 1), (5, 8, 1), (6, 8, 1)):
        assert len(resolver.upscale(images[:count], steps=2)) == count
        assert sizes[-1] == expected
        assert resolver.num_refinements(images[:count].shape, 2) == 2 * batches


def test_refinement_ends_in_the_image(resolver, images):
    result = resolver.sample(images[:2], num_snapshots=3)
    assert result.refinement.shape == (3, 2, 32, 32, 3)
    np.testing.assert_array_equal(result.refinement[-1], result.images)
    assert result.seconds > 0
    # Jobs that watch see each while the batch is refined: before the generator goes on.
    seen = []
    begun = resolver.start(images[:1], num_snapshots=3, watch=seen.append)
    fetch = next(begun)
    assert len(seen) == 2
    np.testing.assert_array_equal(np.stack([*seen, fetch()[0]]), result.refinement[:, :1])


def test_wrong_images_are_named(resolver, images):
    for wrong in (images[0, 0], images.astype(np.float32), images[..., :1], images[:0]):
        with pytest.raises((ValueError, TypeError), match="(?s)images|image"):
            resolver.upscale(wrong)
    with pytest.raises(ValueError, match="steps = 0"):
        resolver.upscale(images, steps=0)
    with pytest.raises(ValueError, match="config.sampling: cannot take 2001 steps"):
        resolver.upscale(images, steps=2001)
    with pytest.raises(ValueError, match="2 seeds for 6 images"):
        resolver.upscale(images, seed=[1, 2])


@pytest.fixture
def folder(tmp_path, images):
    """Five good pictures of several formats and depths, and three bad ones."""
    root = tmp_path / "in"
    (root / "sub").mkdir(parents=True)
    Image.fromarray(images[0]).save(root / "a.png")
    Image.fromarray(images[1]).save(root / "b.JPG")
    Image.fromarray(images[2]).save(root / "sub" / "a.png")
    Image.fromarray(images[3]).save(root / "c.bmp")
    Image.fromarray(images[4][:5]).save(root / "d.tiff")
    (root / "bad.png").write_text("text")
    (root / "empty.jpg").write_bytes(b"")
    data = (root / "a.png").read_bytes()
    (root / "cut.png").write_bytes(data[: len(data) // 2])
    return root


def _upscale(resolver, source, output, **options):
    """Returns the records by input."""
    inputs = find_inputs(source)
    records = list(upscale_files.upscale_files(resolver, inputs, output, UpscaleOptions(**options)))
    assert len(records) == len(inputs)
    return {record.input: record for record in records}


def test_a_folder_keeps_names_and_reports_what_failed(resolver, folder, tmp_path):
    output = epath.Path(tmp_path / "out")
    done = []
    inputs = find_inputs(folder)
    records = list(upscale_files.upscale_files(resolver, inputs, output, progress=done.append))
    good = {"a.png", "b.JPG", "c.bmp", "d.tiff", "sub/a.png"}
    written = {str(p.relative_to(output)) for p in (tmp_path / "out").rglob("*") if p.is_file()}
    assert written == good
    assert {r.input for r in records if r.status == "written"} == good
    failed = {r.input: r.error for r in records if r.status == "failed"}
    assert set(failed) == {"bad.png", "empty.jpg", "cut.png"}
    assert "0 bytes" in failed["empty.jpg"]
    assert len(records) == 8
    (record,) = (r for r in records if r.input == "a.png")
    means = [np.asarray(Image.open(root / "a.png")).mean((0, 1)) for root in (output, folder)]
    assert abs(record.colour_shift) == pytest.approx(np.abs(means[0] - means[1]).max(), abs=2e-3)
    assert np.isclose(sum(done), 8)
    for name in good:
        before, after = Image.open(folder / name), Image.open(output / name)
        assert (after.width, after.height) == (4 * before.width, 4 * before.height)
        assert after.format == before.format


def test_a_picture_is_the_same_alone_and_in_a_folder(resolver, folder, tmp_path):
    for name, source in (("many", folder), ("one", folder / "a.png")):
        _upscale(resolver, source, tmp_path / name, seed=5)
    many, one = (np.asarray(Image.open(tmp_path / n / "a.png")) for n in ("many", "one"))
    _close(many, one)
    _upscale(resolver, folder / "a.png", tmp_path / "two", seed=6)
    assert (np.asarray(Image.open(tmp_path / "two" / "a.png")) != one).mean() > 0.5


def test_outputs_are_whole_or_absent(resolver, folder, tmp_path):
    """A picture that cannot be written fails alone, and leaves no half file."""
    output = tmp_path / "out"
    (output / "c.bmp").mkdir(parents=True)
    records = _upscale(resolver, folder, output)
    assert "cannot write" in records["c.bmp"].error
    assert sum(r.status == "written" for r in records.values()) == 4


def test_what_a_picture_carries_comes_out_again(resolver, images, tmp_path):
    """Alpha, profile, EXIF without its turn, grey and 16 bits; noise is of the upright picture."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "Maker"
    alpha = np.zeros((8, 6), np.uint8)
    alpha[:, 3:] = 255
    turned = Image.fromarray(np.dstack([images[0, :, :6], alpha]))
    source = tmp_path / "in"
    source.mkdir()
    turned.save(source / "turned.png", exif=exif, icc_profile=profile)
    Image.fromarray(images[1, ..., 0]).save(source / "grey.png")
    deep = image_files.Picture(images[2].astype(np.uint16) * 256 + 7)
    image_files.write_picture(deep, epath.Path(source / "deep.tif"))
    records = _upscale(resolver, source, tmp_path / "out")
    assert all(r.status == "written" for r in records.values())
    with Image.open(tmp_path / "out" / "turned.png") as file:
        assert file.size == (32, 24) and file.mode == "RGBA"
        assert file.info["icc_profile"] == profile
        assert file.getexif()[0x010F] == "Maker" and 0x0112 not in file.getexif()
        made = np.asarray(file)
    # Turned clockwise, the transparent left half is above.
    assert made[:8, :, 3].max() == 0 and made[-8:, :, 3].min() == 255
    with Image.open(tmp_path / "out" / "grey.png") as file:
        assert file.mode == "L"
    read = image_files.read_picture(str(tmp_path / "out" / "deep.tif"))
    assert read.pixels.dtype == np.uint16 and len(np.unique(read.pixels)) > 300


def test_several_samples_and_the_way_there(resolver, images, tmp_path):
    """Writes the mean of the samples, their deviation, and a GIF that ends in the first."""
    Image.fromarray(images[0]).save(tmp_path / "a.png")
    records = _upscale(
        resolver, tmp_path / "a.png", tmp_path / "out", num_samples=3, steps=6, animate=True
    )
    seed = records["a.png"].seed
    seeds = [seed, seed + (1 << 24), seed + (2 << 24)]
    samples = resolver.upscale(np.repeat(images[:1], 3, 0), 6, [s % 2**32 for s in seeds])
    with Image.open(tmp_path / "out" / "a.png") as file:
        np.testing.assert_allclose(np.asarray(file), samples.mean(0), atol=1.01)
    with Image.open(tmp_path / "out" / "a.png.refinement.gif") as file:
        assert file.n_frames == 7
        file.seek(6)
        last = np.asarray(file.convert("RGB"), float)
    assert np.abs(last - samples[0]).mean() < 12  # 256 colours
    with Image.open(tmp_path / "out" / "a.png.uncertainty.png") as file:
        drawn = np.asarray(file.convert("L"), float)[:32]
    expected = (samples / 255).std(0, ddof=1).mean(-1)
    assert np.corrcoef(drawn.ravel(), expected.ravel())[0, 1] > 0.9


def test_a_single_file(resolver, folder, tmp_path):
    path = resolver.upscale_file(folder / "b.JPG", tmp_path / "out", factor=2.5)
    with Image.open(path) as file:
        assert file.size == (20, 20)
    with pytest.raises(ValueError, match=r"bad\.png: not a"):
        resolver.upscale_file(folder / "bad.png", tmp_path / "out")
    with pytest.raises(ValueError, match="is a folder"):
        resolver.upscale_file(folder, tmp_path / "out")


def test_wrong_paths_are_named(resolver, folder, tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        find_inputs(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"config\.json does not exist"):
        SuperResolver.from_workdir(tmp_path)
