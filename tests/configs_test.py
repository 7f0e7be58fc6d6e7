"""Every config in configs/, by shape evaluation: nothing is allocated."""

import importlib

import numpy as np
import pytest
import small_run

from sr3_jax import config_file, data_factory, diffusion, factory, models, sampling_factory
from sr3_jax.tools import aot_table

NAMES = sorted(path.stem for path in (small_run.ROOT / "configs").glob("*.py"))

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


def test_broken_and_missing_configs_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="is not the workdir of a training run"):
        config_file.load(tmp_path / "config.json")
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config\.json is not a config"):
        config_file.load(tmp_path / "config.json")
