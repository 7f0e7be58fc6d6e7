"""Every config in configs/, by shape evaluation: nothing is allocated."""

import fnmatch
import importlib

import numpy as np
import pytest
import small_run
from ml_collections import config_dict

from sr3_jax import config_file, data_factory, diffusion, factory, models, sampling_factory
from sr3_jax.inference import cascade
from sr3_jax.tools import aot_table

ALL = sorted(path.stem for path in (small_run.ROOT / "configs").glob("*.py"))
CASCADES = [name for name in ALL if name.startswith("cascade_")]
NAMES = [name for name in ALL if name not in CASCADES]

# Table A.1 of the paper: parameters in millions, channels, multipliers, blocks, dropout.
TABLE_A1 = {
    "ffhq_16_128": (550, 128, (1, 2, 4, 8, 8), 3, 0.2),
    "ffhq_64_256": (625, 128, (1, 2, 4, 4, 8, 8), 3, 0.0),
    "imagenet_64_256": (625, 128, (1, 2, 4, 4, 8, 8), 3, 0.0),
    "ffhq_64_512": (625, 64, (1, 2, 4, 8, 8, 16, 16), 3, 0.0),
    "ffhq_256_1024": (150, 16, (1, 2, 4, 8, 16, 32, 32, 32), 2, 0.0),
}


def _config(name: str, variant: str = ""):
    get_config = importlib.import_module(f"configs.{name}").get_config
    return get_config(variant) if variant else get_config()


@pytest.mark.parametrize("name", NAMES)
def test_a_config_describes_something_that_can_be_built(name):
    config = _config(name)
    model = factory.model(config)
    assert models.count_parameters(model, config.data.image_size) > 100_000
    for schedule in (factory.training_schedule(config), sampling_factory.schedule(config)):
        assert np.sqrt(schedule.gamma[-1]) <= diffusion.MAX_TERMINAL_NOISE_LEVEL
    factory.optimizer(config)
    factory.step_options(config)
    factory.loop_options(config)
    sampling_factory.options(config)
    assert importlib.import_module(f"configs.{name}").__doc__


@pytest.mark.parametrize("sampler", ["ancestral", "ddim", "dpmpp_2m", "heun"])
@pytest.mark.parametrize("schedule", ["respaced", "noise_level", "log_snr", "karras", "linear"])
def test_every_sampler_and_schedule_works_with_its_defaults(sampler, schedule):
    config = _config("default")
    config.sampling.sampler, config.sampling.schedule = sampler, schedule
    made = sampling_factory.sampler(config)
    assert made.num_steps == 100
    assert np.sqrt(made.gamma[0]) <= diffusion.MAX_TERMINAL_NOISE_LEVEL
    # From most noise to least.
    assert (np.diff(made.gamma) >= 0).all()


@pytest.mark.parametrize("name", TABLE_A1)
def test_table_a1(name):
    millions, channels, multipliers, blocks, dropout = TABLE_A1[name]
    config = _config(name)
    count = models.count_parameters(factory.model(config), config.data.image_size)
    assert abs(count / 1e6 / millions - 1) < 0.03
    assert config.model.channels == channels
    assert tuple(config.model.multipliers) == multipliers
    assert config.model.num_blocks == blocks
    assert config.model.dropout == dropout
    low, high = (int(part) for part in name.split("_")[1:])
    assert (config.data.low_resolution, config.data.image_size) == (low, high)
    # The paper's training: batch 256, 1M steps, Adam at 1e-4 after 10k steps of warm-up.
    assert (config.train.batch_size, config.train.num_steps) == (256, 1_000_000)
    rate = factory.learning_rate(config)
    np.testing.assert_allclose(
        [rate(0), rate(4_999), rate(9_999), rate(999_999)], [1e-8, 5e-5, 1e-4, 1e-4], rtol=1e-5
    )


def test_models_that_cascades_begin_with():
    """Improved DDPM says about 270M parameters; DDPM's, with a level more and our resampling."""
    by_class, faces = _config("imagenet_64_base"), _config("ffhq_64_base")
    counts = [models.count_parameters(factory.model(c), 64) / 1e6 for c in (by_class, faces)]
    assert counts == pytest.approx([270, 86.5], rel=0.03)
    for config in (by_class, faces):
        assert (config.data.image_size, config.data.low_resolution) == (64, 0)
        assert not factory.model(config).has_source
    c = by_class.model
    assert (c.channels, c.num_blocks, c.num_classes) == (192, 3, 1000)
    assert factory.training_schedule(by_class).num_steps == 4000
    # Eq. 17 of Improved DDPM, half of the way.
    middle = np.cos((0.5 + 0.008) / 1.008 * np.pi / 2) ** 2 / np.cos(0.008 / 1.008 * np.pi / 2) ** 2
    assert factory.training_schedule(by_class).gamma[2000] == pytest.approx(middle, rel=1e-3)
    assert factory.step_options(by_class)["label_dropout"] == 0.1
    # DDPM: 1e-4 to 0.02 in 1000 steps.
    beta = factory.training_schedule(faces).beta
    np.testing.assert_allclose(beta[[1, 1000]], [1e-4, 2e-2], rtol=1e-5)


@pytest.mark.parametrize("name", CASCADES)
def test_cascades_are_of_configs_that_chain(name, tmp_path):
    """Of networks that their stages' workdirs are called after."""
    stages = []
    for section in sampling_factory.stages(_config(name)):
        trained = section.workdir.rpartition("/")[2]
        if name == "cascade_photos_64":
            config = _config("photos_stages", trained)
        else:
            config = _config(trained, "cascade" if stages else "")
        config = sampling_factory.changed(config, section.sampling)
        sampling_factory.options(config)
        # Every stage but the first forgives blurred input.
        assert (config.train.blur_probability > 0) == bool(stages)
        stages.append(cascade.Stage(section.workdir, config, 1))
    cascade.check(stages)
    sizes = [stage.image_size for stage in stages]
    assert sizes[-1] == int(name.rpartition("_")[2])
    # More steps at low resolution, fewer at high (section 4.5 of the paper).
    steps = [stage.config.sampling.num_steps for stage in stages]
    assert steps == sorted(steps, reverse=True)
    with pytest.raises(ValueError, match="no section stage_1"):
        sampling_factory.stages(_config("quickstart"))


def test_variants_that_cannot_be():
    for name in ("regression", "srcnn", "cascade"):
        with pytest.raises(ValueError, match=f"variant {name} .* makes images from nothing"):
            _config("ffhq_64_base", name)
    config = _config("ffhq_64_base")
    config.method = "regression"
    with pytest.raises(ValueError, match="low_resolution = 0, but a regression makes its image"):
        factory.model(config)
    config = _config("imagenet_64_256", "regression")
    config.model.num_classes = 3
    with pytest.raises(ValueError, match="num_classes = 3, but a regression is not told"):
        factory.model(config)
    config = _config("imagenet_64_base")
    config.train.blur_probability = 0.5
    with pytest.raises(ValueError, match="there is nothing to blur"):
        factory.step_options(config)
    config.train.source_noise = 0.1
    with pytest.raises(ValueError, match="source_noise = 0.1 is for networks .* with a source"):
        factory.model(config)
    assert _config("ffhq_64_256", "cascade").train.blur_probability == 0.5
    measured = _config("cascade_imagenet_256", "fid_50k").evaluation
    assert (measured.feature_metrics, measured.fid_reference) == (("fid",), "train")


@pytest.mark.parametrize("name, other", aot_table.SAME_PROGRAMS.items())
def test_configs_that_share_a_row_differ_in_their_pictures_alone(name, other):
    changed = config_file.changed_keys(_config(name), _config(other))
    assert all(key.startswith(("data.", "evaluation.paper_table")) for key in changed)


def test_variants_measure_the_papers_tables():
    arxiv, journal = (_config(name, "table_3") for name in ("imagenet_64_256", "imagenet_56_224"))
    for config in (arxiv, journal):
        assert factory.feature_options(config)["metrics"] == ("resnet50",)
        assert factory.paper_table(config) == "3"
        # 1000 images of 224 pixels, made from 56.
        assert config.evaluation.num_images == 1000
        factor = config.data.image_size // config.data.low_resolution
        assert (data_factory.evaluation_size(config), factor) == (224, 4)
    assert (factory.network_input(arxiv), factory.network_input(journal)) == (64, 0)
    both = _config("imagenet_64_256", "regression,table_2")
    assert factory.method(both) == "regression"
    assert factory.feature_options(both)["metrics"] == ("fid",)
    assert both.evaluation.fid_reference == "train"
    with pytest.raises(ValueError, match="table_2 .* 64 to 256, and this config is 16 to 128"):
        _config("ffhq_16_128", "table_2")
    both.evaluation.feature_metrics = ("fdi",)
    with pytest.raises(ValueError, match="'fdi' is unknown; use one of fid, lpips, resnet50"):
        factory.feature_options(both)


@pytest.mark.parametrize("name", NAMES)
def test_a_config_survives_json(name, tmp_path):
    config = _config(name)
    config_file.save(config, tmp_path / "config.json")
    loaded = config_file.load(tmp_path / "config.json")
    assert config_file.changed_keys(config, loaded) == {}
    assert factory.model(loaded) == factory.model(config)
    config.train.batch_size = 7
    assert config_file.changed_keys(loaded, config) == {
        "train.batch_size": (loaded.train.batch_size, 7)
    }


# Keys that may not change of the oldest configs that can still be read.
OLDEST = """data.image_size data.low_resolution model.channels model.multipliers model.num_blocks
model.attention_resolutions model.bottleneck_attention model.num_heads model.scale_shift
model.embedding_scale model.residual_std diffusion.schedule diffusion.num_steps
diffusion.beta_start diffusion.beta_end train.loss"""


def test_older_configs_are_of_the_same_network():
    config = _config("quickstart")
    older = config.copy_and_resolve_references()
    with older.unlocked():
        for key in config_file.WHERE_MISSING:
            *section, name = key.split(".")
            del (older[section[0]] if section else older)[name]
    config_file.check_same_network(older, config, "config.json")
    config_file.check_same_network(config, older, "config.json")
    with config.unlocked():
        config.model.num_classes = 10
    with pytest.raises(ValueError, match="num_classes was 0 and is now 10"):
        config_file.check_same_network(older, config, "config.json")


def test_of_every_key_it_is_known_whether_it_may_change():
    """One that is new needs its value for older configs, in config_file.WHERE_MISSING."""
    everything = config_file.changed_keys(config_dict.ConfigDict(), _config("default"))
    known = {*OLDEST.split(), *config_file.WHERE_MISSING}
    for key in everything:
        may = any(fnmatch.fnmatchcase(key, pattern) for pattern in config_file.MAY_CHANGE)
        assert may != (key in known), key


def test_broken_and_missing_configs_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="is not the workdir of a training run"):
        config_file.load(tmp_path / "config.json")
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config\.json is not a config"):
        config_file.load(tmp_path / "config.json")
