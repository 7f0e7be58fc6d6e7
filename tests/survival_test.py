"""Kills, damaged files and full disks: a run loses time, and nothing else."""

import logging
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from concurrent import futures

import forked_run
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
import small_run
from jax.sharding import NamedSharding, PartitionSpec

from sr3_jax import parallel
from sr3_jax.checkpoints import Checkpointer, CheckpointError, digests

FLAGS = small_run.flags()
COMMAND = [sys.executable, "-m", "sr3_jax.main", *FLAGS]
NUM_KILLS = 4
# A longer run than the other tests', so that kills meet it at work.
NUM_STEPS = 120
LONG = [f"--config.train.num_steps={NUM_STEPS}", "--config.train.sample_every_steps=0"]
LONG += ["--config.parallel.layout=zero1", "--config.checkpoint.every_steps=50"]


def run(workdir, *flags, **options):
    return subprocess.run(
        [*COMMAND, f"--workdir={workdir}", *flags],
        cwd=small_run.ROOT,
        capture_output=True,
        text=True,
        **options,
    )


def steps_in(workdir):
    folder = workdir / "checkpoints"
    names = os.listdir(folder) if folder.exists() else []
    return sorted(int(name) for name in names if name.isdigit())


def start(workdir, *flags):
    return forked_run.start([*FLAGS, f"--workdir={workdir}", *flags], workdir / "stderr.txt")


def wait_for_progress(process, workdir, beyond):
    """Waits for a checkpoint after step `beyond`; fails if the run ends before."""
    deadline = time.monotonic() + 300
    while max(steps_in(workdir), default=0) <= beyond:
        said = (workdir / "stderr.txt").read_text()[-3000:]
        assert process.is_alive() and time.monotonic() < deadline, said
        time.sleep(0.01)


def test_kills_leave_no_trace(tmp_path):
    """After SIGKILLs at random moments, the same command ends as an undisturbed run does."""
    rng = random.Random(0)
    killed = tmp_path / "killed"
    killed.mkdir()
    for kill in range(NUM_KILLS):
        before = max(steps_in(killed), default=0)
        process = start(killed, *LONG, "--config.checkpoint.every_steps=3")
        try:
            if kill % 4 == 3:
                # While the program starts, loads or compiles.
                time.sleep(rng.uniform(0, 6))
            else:
                # From a new checkpoint's appearance on: in steps, validation and writing.
                wait_for_progress(process, killed, before)
                time.sleep(rng.uniform(0, 0.25))
            assert process.is_alive(), (killed / "stderr.txt").read_text()[-3000:]
        finally:
            process.kill()
            process.join()
    assert 0 < max(steps_in(killed)) < NUM_STEPS
    for workdir in (killed, tmp_path / "undisturbed"):
        result = run(workdir, *LONG)
        assert result.returncode == 0, result.stderr[-3000:]
    ours, theirs = (
        small_run.read_checkpoint(w, NUM_STEPS) for w in (killed, tmp_path / "undisturbed")
    )
    small_run.assert_same_arrays(ours, theirs)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_who_asks_for_a_stop_gets_it_in_seconds_and_saved(tmp_path, number, status):
    process = start(tmp_path, *LONG, "--config.profile_steps=3")
    wait_for_progress(process, tmp_path, 0)
    # It has passed step 50: the profiler's trace is there.
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))
    time.sleep(0.5)
    os.kill(process.pid, number)
    process.join(timeout=30)
    assert process.exitcode == status
    last = (tmp_path / "stderr.txt").read_text().strip().splitlines()[-1]
    step = max(steps_in(tmp_path))
    assert last == f"{number.name}: step {step} is saved; the same command goes on from it"
    assert step < NUM_STEPS and step % 50
    if number == signal.SIGINT:
        return  # what is saved is the same
    result = run(tmp_path, "--config.train.num_steps=" + str(step + 2))
    assert result.returncode == 0 and f"resuming at step {step}" in result.stderr
    assert max(steps_in(tmp_path)) == step + 2


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_an_evaluation_that_is_asked_to_stop_does_so_between_network_calls(
    tmp_path, number, status
):
    small_run.write_workdir(tmp_path)
    process = start(tmp_path, "--mode=evaluate", "--config.sampling.num_steps=1000")
    try:
        deadline = time.monotonic() + 300
        while not re.search(r"\d\.[1-9]/", said := (tmp_path / "stderr.txt").read_text()):
            assert process.is_alive() and time.monotonic() < deadline, said[-3000:]
            time.sleep(0.05)
        os.kill(process.pid, number)
        process.join(timeout=30)
        assert process.exitcode == status
    finally:
        process.kill()
        process.join()
    last = (tmp_path / "stderr.txt").read_text().strip().splitlines()[-1]
    assert last == f"{number.name}: the same command does what is missing"
    assert not (tmp_path / "evaluation" / "metrics.json").exists()


def fill_the_disk():
    # Room for small files, not for a checkpoint's arrays (files of 90 kB).
    resource.setrlimit(resource.RLIMIT_FSIZE, (80_000, 80_000))
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)


def test_a_full_disk_is_named_and_leaves_the_checkpoint_before(tmp_path):
    """A limit on the size of files stands for a full disk; a pipe has none, as a terminal."""
    flags, said = [*FLAGS, f"--workdir={tmp_path}"], tmp_path / "said.txt"
    status = forked_run.run([*flags, "--config.train.num_steps=4"], said)
    assert status == 0, said.read_text()[-3000:]
    before = small_run.read_checkpoint(tmp_path, 4)
    os.mkfifo(tmp_path / "pipe")
    with futures.ThreadPoolExecutor() as pool:
        reading = pool.submit((tmp_path / "pipe").read_text)
        status = forked_run.run(flags, tmp_path / "pipe", fill_the_disk)
    assert status == 1, reading.result()[-3000:]
    (error,) = [line for line in reading.result().splitlines() if line.startswith("error: ")]
    assert "could not be written" in error and "The ones before are whole: [2, 4]" in error, error
    assert steps_in(tmp_path) == [2, 4]
    small_run.assert_same_arrays(before, small_run.read_checkpoint(tmp_path, 4))


def small_state(value):
    sharding = NamedSharding(parallel.make_mesh(), PartitionSpec("data"))
    return {
        "ema_params": {
            "kernel": jax.device_put(jax.random.normal(jax.random.key(value), (64, 512)), sharding),
            "bias": jnp.full((3,), float(value)),
        }
    }


@pytest.fixture(scope="module")
def two_checkpoints(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two") / "checkpoints"
    checkpointer = Checkpointer(folder)
    for step in (1, 2):
        checkpointer.save(step, small_state(step), {"validation_loss": 1.0 / step})
    checkpointer.close()
    return folder


def files_of(folder):
    return sorted(p.relative_to(folder) for p in (folder / "2").rglob("*") if p.is_file())


@pytest.mark.parametrize("damage", ["truncated", "missing", "empty"])
def test_a_damaged_newest_checkpoint_gives_way_to_the_one_before(
    two_checkpoints, tmp_path, damage, caplog
):
    """Whichever file is damaged, a whole checkpoint is restored, and a warning is logged."""
    fell_back = []
    for i, name in enumerate(files_of(two_checkpoints)):
        folder = tmp_path / str(i)
        shutil.copytree(two_checkpoints, folder)
        size = (folder / name).stat().st_size
        if damage == "missing":
            (folder / name).unlink()
        else:
            os.truncate(folder / name, size // 2 if damage == "truncated" else 0)
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            checkpointer = Checkpointer(folder, read_only=True)
            step, state = checkpointer.restore(small_state(0))
            part_step, part = checkpointer.restore_part(small_state(0))
            checkpointer.close()
        for found, tree in ((step, state), (part_step, part)):
            assert_leaves_equal(tree, small_state(found))
        if step == 1:
            fell_back.append(name)
            assert f"{folder / '2'} is damaged" in caplog.text
    assert len(fell_back) >= 2


def test_a_flipped_byte_never_restores_other_numbers(two_checkpoints, tmp_path, caplog):
    """Flips a bit in three places of each file; the checkpoint read is whole, or the previous."""
    folder, rng, fell_back = tmp_path / "checkpoints", random.Random(0), {}
    shutil.copytree(two_checkpoints, folder)
    for name in files_of(folder):
        whole = (folder / name).read_bytes()
        for place in rng.sample(range(len(whole)), min(3, len(whole))):
            damaged = bytearray(whole)
            damaged[place] ^= 1 << rng.randrange(8)
            (folder / name).write_bytes(damaged)
            caplog.clear()
            with caplog.at_level(logging.WARNING):
                checkpointer = Checkpointer(folder, read_only=True)
                step, state = checkpointer.restore(small_state(0))
                # Step 2 has the lower loss; step 1 is the best if step 2 is hidden.
                assert checkpointer.find("best") == checkpointer.steps[-1]
                checkpointer.close()
            assert_leaves_equal(state, small_state(step))
            if step == 1:
                fell_back[name] = caplog.text
                assert f"{folder / '2'} is damaged" in caplog.text
        (folder / name).write_bytes(whole)
    # Only the digest reveals a change of the kernel's numbers.
    largest = max(files_of(folder), key=lambda name: (folder / name).stat().st_size)
    assert "ema_params/kernel: not the numbers that were written" in fell_back[largest]


def test_digests_are_of_the_numbers_and_their_places_alone(two_checkpoints, tmp_path):
    expected = digests.of(small_state(1))
    for layout in (parallel.Layout(parallel.make_mesh(model=2)), None):
        state = small_state(1)
        shardings = layout.kept(state) if layout else jax.devices()[2]
        assert digests.of(jax.device_put(state, shardings)) == expected
    assert digests.of(jax.tree.map(np.asarray, small_state(1))) == expected
    kernel = small_state(1)["ema_params"]["kernel"]
    for changed in (
        kernel.at[3, 5].multiply(-1),
        kernel.at[1, 2].set(kernel[2, 1]).at[2, 1].set(kernel[1, 2]),
        kernel[::-1],
        kernel.T.reshape(kernel.shape),
    ):
        digest = digests.of({"ema_params": {"kernel": changed}})
        assert digest["ema_params/kernel"] != expected["ema_params/kernel"]

    def of_weights(folder, step):
        checkpointer = Checkpointer(folder, read_only=True)
        digest = checkpointer.digest(small_state(0), step)
        checkpointer.close()
        return digest

    # A moved checkpoint has the same digest, also without the file, as older versions wrote it.
    moved = tmp_path / "moved"
    shutil.copytree(two_checkpoints, moved)
    shutil.rmtree(moved / "1" / digests.FOLDER)
    assert of_weights(moved, 1) == of_weights(two_checkpoints, 1) != of_weights(moved, 2)


def test_numbers_that_are_not_finite_are_neither_written_nor_read(two_checkpoints, tmp_path):
    folder = tmp_path / "checkpoints"
    shutil.copytree(two_checkpoints, folder)
    state = small_state(3)
    state["ema_params"]["bias"] = jnp.asarray([0.0, jnp.nan, 1.0])
    checkpointer = Checkpointer(folder)
    with pytest.raises(CheckpointError, match="step 3: ema_params/bias has .* not fin"):
        checkpointer.save(3, state, {})
    # A loss that is not finite, with finite weights, is no damage.
    checkpointer.save(3, small_state(3), {"validation_loss": float("nan")})
    checkpointer.close()
    checkpointer = Checkpointer(folder)
    assert checkpointer.steps == [1, 2, 3] and checkpointer.restore(small_state(0))[0] == 3
    checkpointer.close()
    shutil.rmtree(folder / "3")
    # As older versions would have written it.
    with ocp.StandardCheckpointer() as writer:
        writer.save(folder / "2" / "default", state, force=True)
    shutil.rmtree(folder / "2" / digests.FOLDER)
    checkpointer = Checkpointer(folder, read_only=True)
    with pytest.raises(CheckpointError, match="ema_params/bias has .* not finite"):
        checkpointer.restore_part(small_state(0))
    checkpointer.close()


def assert_leaves_equal(a, b):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(x, y)


def data_files(folder):
    """Returns the files that hold the arrays."""
    return [name for name in files_of(folder) if "d" in name.parts]


def test_a_run_that_fell_back_writes_the_damaged_step_again(two_checkpoints, tmp_path):
    folder = tmp_path / "checkpoints"
    shutil.copytree(two_checkpoints, folder)
    for name in data_files(folder):
        os.truncate(folder / name, 10)
    checkpointer = Checkpointer(folder, keep_last=1, keep_best=False)
    assert checkpointer.restore(small_state(0))[0] == 1
    checkpointer.save(2, small_state(5), {})
    checkpointer.close()
    checkpointer = Checkpointer(folder, read_only=True)
    step, state = checkpointer.restore(small_state(0))
    assert step == 2
    assert_leaves_equal(state, small_state(5))
    checkpointer.close()


def test_where_every_checkpoint_is_damaged_each_is_named(two_checkpoints, tmp_path):
    folder = tmp_path / "checkpoints"
    shutil.copytree(two_checkpoints, folder)
    for step in ("1", "2"):
        for path in (folder / step).rglob("*"):
            if path.is_file() and "d" in path.parts:
                path.unlink()
    checkpointer = Checkpointer(folder, read_only=True)
    with pytest.raises(CheckpointError, match=r"can be read: 2: .*; 1: "):
        checkpointer.restore(small_state(0))
    with pytest.raises(CheckpointError, match=r"can be read: 1: "):
        checkpointer.restore(small_state(0), 1)
    checkpointer.close()


@pytest.mark.parametrize("name", ["replicated", "zero1", "fsdp"])
@pytest.mark.parametrize("devices", [1, 2, 4])
def test_a_checkpoint_restores_under_any_layout_and_number_of_devices(
    two_checkpoints, name, devices
):
    layout = parallel.Layout(parallel.make_mesh(jax.devices()[:devices]), name)
    expected = small_state(2)
    like = jax.tree.map(
        lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s),
        expected,
        layout.kept(expected),
    )
    checkpointer = Checkpointer(two_checkpoints, read_only=True)
    step, state = checkpointer.restore(like)
    checkpointer.close()
    assert step == 2
    assert_leaves_equal(state, expected)
    kernel = state["ema_params"]["kernel"]
    assert len(kernel.sharding.device_set) == devices
    assert kernel.sharding.is_fully_replicated == (devices == 1 or name == "replicated")
