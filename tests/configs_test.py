"""Every config in configs/, by shape evaluation: nothing is allocated."""

import dataclasses
import hashlib
import importlib
import json
import math
import re
import typing

import numpy as np
import pytest
import small_run

from sr3_jax import diffusion, models
from sr3_jax.config import (
    SECTIONS,
    Config,
    Train,
    as_recorded,
    cascades,
    changed,
    changed_keys,
    check_same_network,
    fields,
    locating,
    migration,
    networks,
    optimizers,
    read,
    run_file,
    save,
    schedules,
    to_json,
    with_sampling,
)
from sr3_jax.inference import cascade
from sr3_jax.tools import aot_table, config_page

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
    """Returns a config as its file makes it, to be changed."""
    get_config = importlib.import_module(f"configs.{name}").get_config
    return get_config(variant) if variant else get_config()


@pytest.mark.parametrize("name", NAMES)
def test_a_config_describes_something_that_can_be_built(name):
    config = _config(name)
    model = networks.model(read(config))
    assert models.count_parameters(model, config.data.image_size) > 100_000
    for schedule in (
        schedules.training_schedule(read(config)),
        schedules.sampling_schedule(read(config)),
    ):
        assert np.sqrt(schedule.gamma[-1]) <= diffusion.MAX_TERMINAL_NOISE_LEVEL
    optimizers.optimizer(read(config))
    assert importlib.import_module(f"configs.{name}").__doc__


@pytest.mark.parametrize("sampler", ["ancestral", "ddim", "dpmpp_2m", "heun"])
@pytest.mark.parametrize("schedule", ["respaced", "noise_level", "log_snr", "karras", "linear"])
def test_every_sampler_and_schedule_works_with_its_defaults(sampler, schedule):
    config = _config("default")
    config.sampling.sampler, config.sampling.schedule = sampler, schedule
    made = schedules.sampler(read(config))
    assert made.num_steps == 100
    assert np.sqrt(made.gamma[0]) <= diffusion.MAX_TERMINAL_NOISE_LEVEL
    # From most noise to least.
    assert (np.diff(made.gamma) >= 0).all()


@pytest.mark.parametrize("name", TABLE_A1)
def test_table_a1(name):
    millions, channels, multipliers, blocks, dropout = TABLE_A1[name]
    config = _config(name)
    count = models.count_parameters(networks.model(read(config)), config.data.image_size)
    assert abs(count / 1e6 / millions - 1) < 0.03
    assert config.model.channels == channels
    assert tuple(config.model.multipliers) == multipliers
    assert config.model.num_blocks == blocks
    assert config.model.dropout == dropout
    low, high = (int(part) for part in name.split("_")[1:])
    assert (config.data.low_resolution, config.data.image_size) == (low, high)
    # The paper's training: batch 256, 1M steps, Adam at 1e-4 after 10k steps of warm-up.
    assert (config.train.batch_size, config.train.num_steps) == (256, 1_000_000)
    rate = optimizers.learning_rate(read(config))
    np.testing.assert_allclose(
        [rate(0), rate(4_999), rate(9_999), rate(999_999)], [1e-8, 5e-5, 1e-4, 1e-4], rtol=1e-5
    )


def test_models_that_cascades_begin_with():
    """Improved DDPM reports about 270M parameters; faces use DDPM's network with one more level."""
    by_class, faces = _config("imagenet_64_base"), _config("ffhq_64_base")
    counts = [models.count_parameters(networks.model(read(c)), 64) / 1e6 for c in (by_class, faces)]
    assert counts == pytest.approx([270, 86.5], rel=0.03)
    for config in (by_class, faces):
        assert (config.data.image_size, config.data.low_resolution) == (64, 0)
        assert not networks.model(read(config)).has_source
    c = by_class.model
    assert (c.channels, c.num_blocks, c.num_classes) == (192, 3, 1000)
    assert schedules.training_schedule(read(by_class)).num_steps == 4000
    # Eq. 17 of Improved DDPM, half of the way.
    middle = np.cos((0.5 + 0.008) / 1.008 * np.pi / 2) ** 2 / np.cos(0.008 / 1.008 * np.pi / 2) ** 2
    assert schedules.training_schedule(read(by_class)).gamma[2000] == pytest.approx(
        middle, rel=1e-3
    )
    assert by_class.train.label_dropout == 0.1
    # DDPM: 1e-4 to 0.02 in 1000 steps.
    beta = schedules.training_schedule(read(faces)).beta
    np.testing.assert_allclose(beta[[1, 1000]], [1e-4, 2e-2], rtol=1e-5)


@pytest.mark.parametrize("name", CASCADES)
def test_cascades_are_of_configs_that_chain(name, tmp_path):
    """The name of a stage's workdir is that of its network's config."""
    stages = []
    for section in cascades.read(_config(name)).stages:
        trained = section.workdir.rpartition("/")[2]
        if name == "cascade_photos_64":
            config = _config("photos_stages", trained)
        else:
            config = _config(trained, "cascade" if stages else "")
        config = with_sampling(read(config), section.sampling)
        # Every stage but the first is trained on blurred sources.
        assert (config.train.blur_probability > 0) == bool(stages)
        stages.append(cascade.Stage(section.workdir, config, 1))
    cascade.check(stages)
    sizes = [stage.image_size for stage in stages]
    assert sizes[-1] == int(name.rpartition("_")[2])
    # More steps at low resolution, fewer at high (section 4.5 of the paper).
    steps = [stage.config.sampling.num_steps for stage in stages]
    assert steps == sorted(steps, reverse=True)
    with pytest.raises(ValueError, match="--config is of a cascade, which is for --mode=generate"):
        read(_config(name))
    with pytest.raises(ValueError, match="no section stage_1"):
        cascades.read(_config("quickstart"))


def test_variants_that_cannot_be():
    for name in ("regression", "srcnn", "cascade"):
        with pytest.raises(ValueError, match=f"variant {name} .* makes images from nothing"):
            _config("ffhq_64_base", name)
    config = _config("ffhq_64_base")
    config.method = "regression"
    with pytest.raises(ValueError, match="low_resolution = 0, but a regression makes its image"):
        networks.model(read(config))
    config = _config("imagenet_64_256", "regression")
    config.model.num_classes = 3
    with pytest.raises(ValueError, match="num_classes = 3, but a regression takes no class"):
        networks.model(read(config))
    config = _config("imagenet_64_256", "regression")
    config.model.prediction, config.train.loss_weight = "v", "sigmoid"
    with pytest.raises(ValueError, match="2 faults: .*prediction = 'v' .*loss_weight = 'sigmoid'"):
        read(config)
    config = _config("imagenet_64_base")
    config.train.blur_probability = 0.5
    config.train.source_noise = 0.1
    with pytest.raises(ValueError, match="2 faults: .*source_noise = 0.1 is .* nothing to blur"):
        read(config)
    assert _config("ffhq_64_256", "cascade").train.blur_probability == 0.5
    measured = _config("cascade_imagenet_256", "fid_50k").evaluation
    assert (measured.feature_metrics, measured.fid_reference) == (("fid",), "train")


@pytest.mark.parametrize("name, other", aot_table.SAME_PROGRAMS.items())
def test_configs_that_share_a_row_differ_in_their_pictures_alone(name, other):
    differ = changed_keys(read(_config(name)), read(_config(other)))
    assert all(key.startswith(("data.", "evaluation.paper_table")) for key in differ)


def test_variants_measure_the_papers_tables():
    arxiv, journal = (_config(name, "table_3") for name in ("imagenet_64_256", "imagenet_56_224"))
    for config in (arxiv, journal):
        assert read(config).evaluation.feature_metrics == ("resnet50",)
        assert read(config).evaluation.paper_table == "3"
        # 1000 images of 224 pixels, made from 56.
        assert config.evaluation.num_images == 1000
        factor = config.data.image_size // config.data.low_resolution
        assert (read(config).evaluation_size, factor) == (224, 4)
    assert (read(arxiv).evaluation.network_input, read(journal).evaluation.network_input) == (64, 0)
    both = _config("imagenet_64_256", "regression,table_2")
    assert read(both).method == "regression"
    assert read(both).evaluation.feature_metrics == ("fid",)
    assert both.evaluation.fid_reference == "train"
    with pytest.raises(ValueError, match="table_2 .* 64 to 256, and this config is 16 to 128"):
        _config("ffhq_16_128", "table_2")
    both.evaluation.feature_metrics = ("fdi",)
    with pytest.raises(ValueError, match="'fdi' is unknown; use one of fid, lpips, resnet50"):
        read(both)


@pytest.mark.parametrize("name", NAMES)
def test_a_config_survives_json(name, tmp_path):
    config = read(_config(name))
    save(config, tmp_path / "config.json")
    loaded = run_file.load(tmp_path / "config.json")
    assert loaded == config and changed_keys(config, loaded) == {}
    assert networks.model(loaded) == networks.model(config)
    other = changed(config, {"train.batch_size": 7})
    assert changed_keys(loaded, other) == {"train.batch_size": (loaded.train.batch_size, 7)}


def test_a_config_of_an_older_version_is_of_the_same_network(tmp_path):
    """A config.json of the first version, which lacks later keys, is read."""
    later = ["method", "tuning", "model.norm", "model.num_classes"]
    later += ["data.dtype", "data.white_level", "train.source_noise", "train.label_dropout"]
    later += [
        "model.prediction",
        "train.loss_weight",
        "sampling.eta",
        "sampling.guidance",
        "evaluation.crop_border",
    ]
    config = changed(read(_config("quickstart")), {"model.prediction": "eps"})
    content = json.loads(to_json(config))
    for key in later:
        section, _, name = key.rpartition(".")
        del (content[section] if section else content)[name]
    for old, new in migration.KEYS.items():
        section, _, key = old.partition(".")
        content[section][key] = content[section].pop(new.partition(".")[2])
    content["sampling"]["variance"] = "posterior"
    (tmp_path / "config.json").write_text(json.dumps(content))
    older = run_file.load(tmp_path / "config.json")
    assert older == config and config.sampling.variance == "fixed_small"
    for name in ("Upper", "Posterior"):  # near the name of today
        with pytest.raises(
            ValueError, match=r"fixed_small, learned \(nearest: fixed_(large|small)\)"
        ):
            changed(config, {"sampling.variance": name})
    assert migration.migrate_flag("--config.model.lanes=8") == "--config.model.packed_channels=8"
    # Outputs of that version have this fingerprint, and are not made anew.
    assert as_recorded(config, "sampling")["variance"] == "posterior"
    check_same_network(older, changed(config, {"train.batch_size": 3}), "config.json")
    with pytest.raises(ValueError, match="num_classes was 0 and is now 10"):
        check_same_network(older, changed(config, {"model.num_classes": 10}), "config.json")


def test_what_decides_which_network_it_is_may_not_change():
    sections = {f"{name}.": type(section) for name, section in SECTIONS.items()} | {"": Config}
    kept = {
        prefix + name
        for prefix, section in sections.items()
        for name, (_, _, what) in fields.declared(section).items()
        if not what.may_change
    }
    assert {key.partition(".")[0] for key in kept} == {
        *("data", "diffusion", "method", "model", "train", "units")
    }
    assert {key for key in kept if key.startswith(("data.", "train."))} == {
        *("data.image_size", "data.low_resolution", "data.white_level", "data.upsampling"),
        *("data.channels", "data.source_channels", "data.maps", "data.missing"),
        *("train.loss", "train.loss_weight", "train.source_noise", "train.label_dropout"),
    }


def _wrong_values(kind, what):
    """Returns values that a field with this declaration must refuse."""
    if kind == fields.Size:
        pair = dataclasses.replace(what, lengths=(2,))
        of_pair = [value for value in _wrong_values(tuple[int, ...], pair) if value != 3]
        return _wrong_values(int, what) + of_pair
    is_tuple = typing.get_origin(kind) is tuple
    of_item = typing.get_args(kind)[0] if is_tuple else kind
    wrong = {bool: ["yes", 1], int: [1.5, "3", True], float: ["3", True], str: [3, None]}[of_item]
    if of_item is float:
        wrong += [math.nan, math.inf, -math.inf]
    if what.choices:
        wrong.append("no such thing")
    bounds = ((what.at_least, -1), (what.at_most, 1), (what.above, 0), (what.below, 0))
    wrong += [of_item(bound + step) for bound, step in bounds if bound is not None]
    if not is_tuple:
        return wrong + [(value,) for value in wrong[:1]]
    length = (what.lengths or (1,))[0]
    of_tuple = [(value,) * length for value in wrong] + ["1,2", 3, None]
    return of_tuple + ([(of_item(1),) * (max(what.lengths) + 1)] if what.lengths else [])


@pytest.mark.parametrize("name", ["", *SECTIONS])
def test_every_field_refuses_what_is_out_of_its_range(name):
    """Messages name key, value and range; values within the range are accepted."""
    section = type(SECTIONS[name]) if name else Config
    for field, (kind, default, what) in fields.declared(section).items():
        key = f"config.{name}.{field}" if name else f"config.{field}"
        bad = _wrong_values(kind, what)
        assert len(bad) >= 2, key
        for value in bad:
            tree = {name: {field: value}} if name else {field: value}
            with pytest.raises(ValueError, match="^" + re.escape(f"{key} = ")) as error:
                read(tree)
            assert repr(value)[:20] in str(error.value)
        assert read({name: {field: default}} if name else {field: default}) == Config()
        for choice in filter(None, what.choices):
            assert what.nearest(str(choice).upper()) == choice, key
        assert what.meaning.endswith(".") and (what.range() or _is_free(kind)), key


def _is_free(kind):
    """Returns whether any value of a type is one: texts, and numbers of the user's data."""
    return kind in (str, bool, tuple[str, ...], tuple[float, ...])


def test_the_page_of_options_is_of_this_code():
    """Run `python -m sr3_jax.tools.config_page > docs/config.md` after a change of options."""
    assert (small_run.ROOT / "docs" / "config.md").read_text() == config_page.page()


def test_all_faults_are_told_at_once():
    config = _config("quickstart")
    config.train.update(loss="l3", batch_size=-1, num_warmup_steps=3000)
    config.model.dropout = math.nan
    with pytest.raises(ValueError) as error:
        read(config)
    message = str(error.value)
    assert "4 faults" in message and "'l3' is unknown; use one of l1, l2" in message
    assert "config.train.batch_size = -1; it must be at least 1 (nearest: 1)" in message
    assert "do not fit into num_steps = 2000" in message
    assert "config.model.dropout = nan; it must be at least 0 and below 1" in message
    both = read({"evaluation": {"feature_metrics": ("fid,lpips",)}}).evaluation
    assert both.feature_metrics == ("fid", "lpips")
    with pytest.raises(ValueError, match="config.train.los is no key of the config; did you mean"):
        read({"train": {"los": "l1"}})
    with pytest.raises(ValueError, match="Train: accumulate_steps = 0; it must be at least 1"):
        Train(accumulate_steps=0)


def test_broken_and_missing_configs_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="is not the workdir of a training run"):
        run_file.load(tmp_path / "config.json")
    (tmp_path / "config.json").write_text("{")
    for given, said in (
        (tmp_path, rf"is a folder; for .* run give \S+of_run\.py:{tmp_path}, else a file"),
        (tmp_path / "config.json", rf"is a run's; for .* \S+of_run\.py:{tmp_path}, else a file"),
        (tmp_path.parent, "is a folder; give a file, or the name"),
        ("QUICKSTART.py", r"does not exist; did you mean quickstart\? Give a file"),
    ):
        with pytest.raises(FileNotFoundError, match=f"^--config={given} {said}"):
            locating.locate(given)
    with pytest.raises(ValueError, match=r"config\.json is not a config"):
        run_file.load(tmp_path / "config.json")


def test_fingerprints_of_outputs_are_those_of_the_first_version():
    """As 0.1.0 wrote them for configs/quickstart.py, so that its evaluations go on."""
    config = changed(read(_config("quickstart")), {"model.prediction": "eps"})
    recorded = {key: as_recorded(config, key) for key in ("model", "diffusion", "sampling")}
    assert recorded["model"]["residual_std"] == 0.1 and recorded["model"]["lanes"] == 0
    assert recorded["sampling"]["variance"] == "posterior"
    text = json.dumps(recorded, sort_keys=True)
    assert hashlib.sha256(text.encode()).hexdigest() == (
        "483618f3f5fe2066fee086615ab90058f990f619a27ba095836566f906d76377"
    )
    assert "v" in as_recorded(changed(config, {"model.prediction": "v"}), "model").values()
