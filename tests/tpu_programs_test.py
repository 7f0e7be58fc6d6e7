"""Every program of every job, compiled by the TPU's compiler as the job itself asks for it.

The jobs' own code finds out what it needs, with the chips of a topology for its devices. Nothing
is run on them: a program that has compiled gives zeros.
"""

import importlib.util
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_run

from sr3_jax import Generator, SuperResolver, models, parallel
from sr3_jax.config import layouts, networks, read, schedules
from sr3_jax.evaluation import evaluator
from sr3_jax.inference import programs
from sr3_jax.metrics import registry
from sr3_jax.parallel import topology
from sr3_jax.tools import aot_report
from sr3_jax.tools.aot import roofline
from sr3_jax.training import step as training_step

pytestmark = [
    pytest.mark.skipif(
        importlib.util.find_spec("libtpu") is None and "TPU_LIBRARY_PATH" not in os.environ,
        reason="libtpu, the TPU's compiler, is not installed",
    ),
    pytest.mark.parametrize("chips", ["v3:2x2", "v5e:2x2"]),
]

SMALL = {
    "data.image_size": 32,
    "data.low_resolution": 8,
    "model.channels": 16,
    "model.multipliers": (1,),
    "model.dtype": "bfloat16",
    "model.packed_channels": networks.TPU_LANES,
    "sampling.num_steps": 2,
    "sampling.batch_size": 4,
    "sampling.tile_size": 32,
    "train.batch_size": 16,
}


def config(**changes):
    small = small_run.quickstart.get_config()
    small.update_from_flattened_dict(SMALL | {k.replace("__", "."): v for k, v in changes.items()})
    return read(small)


@pytest.fixture
def compiled(chips, monkeypatch):
    """Collects each compiled program as (kind of program, number of devices)."""
    found = []

    def run(self, kept, key, function, arguments, **how):
        jitted = jax.jit(function, **how)
        shapes = jax.eval_shape(lambda *arguments: arguments, *arguments)
        if key not in kept:
            lowered = jitted.lower(*shapes)
            kept[key] = parallel.compile_for(self._devices[0], lowered, aot_report._QUICK_OPTIONS)
            where = jax.tree.leaves(how["out_shardings"])[0]
            kind = "network" if kept is self._networks else key[0]
            found.append((kind, where.mesh.size, kept[key]))
        made = jax.eval_shape(jitted, *shapes)
        return jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), made)

    monkeypatch.setattr(programs.Programs, "_run", run)
    devices = topology.tpu_devices(chips)
    here = jax.local_devices
    monkeypatch.setattr(jax, "local_devices", lambda **how: here(**how) if how else devices)
    # Arrays stay where they are, whatever device they are meant for.
    monkeypatch.setattr(jax, "device_put", lambda arrays, *_: jax.tree.map(jnp.asarray, arrays))
    return found


def network(kind, small):
    shapes = models.parameter_shapes(networks.model(small), small.data.image_size)
    return kind.from_params(small, jax.tree.map(lambda a: np.zeros(a.shape, a.dtype), shapes))


def on_devices(compiled):
    """For each kind of program on how many devices."""
    kinds = {}
    for kind, size, _ in compiled:
        kinds.setdefault(kind, set()).add(size)
    return kinds


def test_upscaling_in_tiles_and_whole_and_its_second_order_sampler(compiled):
    num_devices = len(jax.local_devices())
    resolver = network(SuperResolver, config(sampling__sampler="dpmpp_2m"))
    tiled = resolver.upscale(np.zeros((1, 20, 30, 3), np.uint8))
    assert tiled.shape == (1, 80, 120, 3)
    # Of one small image the chips share the height; of several, the images.
    assert resolver.upscale(np.zeros((1, 8, 8, 3), np.uint8)).shape == (1, 32, 32, 3)
    assert resolver.upscale(np.zeros((8, 8, 8, 3), np.uint8)).shape == (8, 32, 32, 3)
    kinds = on_devices(compiled)
    assert set(kinds) == {"begin", "cut", "network", "add", "step"}
    assert kinds["network"] == {num_devices}
    sent = [roofline.count_collectives(program.as_text()) for _, _, program in compiled]
    # Where the height is shared, rows at its border are sent.
    assert any("collective-permute" in kinds for kinds in sent)


def test_generation_with_guidance_then_a_second_stage_told_of_noise(compiled):
    labels = dict(model__num_classes=3, sampling__guidance=2.0)
    first = config(data__low_resolution=0, model__bottleneck_attention=True, **labels)
    made = network(Generator, first).generate(6, label=1)
    assert made.shape == (6, 32, 32, 3)
    second = config(train__source_noise=0.3, sampling__source_noise=0.1, **labels)
    assert network(SuperResolver, second).upscale(made[:, :8, :8], label=2).shape == made.shape
    kinds = [kind for kind, _, _ in compiled]
    # Six images are a batch of four and one of two, or of each stage one of eight.
    assert "noise" in kinds and kinds.count("network") in (2, 4)


def test_validation_and_evaluation(compiled):
    small = config()
    devices = jax.local_devices()
    layout = layouts.layout(small, devices)
    schedule = schedules.training_schedule(small)
    validate = training_step.make_validation(networks.denoiser(small), schedule, small)
    shapes = training_step.batch_shapes(layout, 16, 32, 8)
    params = jax.tree.map(
        lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=layout.whole),
        models.parameter_shapes(networks.model(small), 32),
    )
    lowered = training_step.jit_validation(validate, layout).lower(params, shapes)
    program = parallel.compile_for(devices[0], lowered, aot_report._QUICK_OPTIONS)
    # Of each device's rows the sums alone are sent.
    assert set(roofline.count_collectives(program.as_text())) == {"all-reduce"}

    # What scores them, on one chip.
    chip = jax.sharding.SingleDeviceSharding(devices[0])

    def levels(size):
        return jax.ShapeDtypeStruct((4, size, size, 3), np.uint8, sharding=chip)

    for lowered in (
        evaluator._resize.lower(levels(8), (32, 32), np.dtype(np.uint8)),
        evaluator._score.lower(
            levels(32), levels(32), levels(8), tuple(registry.of("image")), False, 0
        ),
    ):
        assert lowered.compile().cost_analysis()["flops"] > 0

    # What makes them: several samples of each image, and for the picture of the refinement y_t.
    resolver = network(SuperResolver, small)
    for result in resolver.start(np.zeros((4, 8, 8, 3), np.uint8), num_snapshots=3):
        made, on_the_way = result()
        assert made.shape == (4, 32, 32, 3) and len(on_the_way) == 2
    assert resolver.upscale(np.zeros((8, 8, 8, 3), np.uint8)).shape == (8, 32, 32, 3)
    assert on_devices(compiled)["network"] == {len(devices)}
