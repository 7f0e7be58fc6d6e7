"""The upscaling job, on this process's devices and on a Ray cluster of this machine."""

import io
import ipaddress
import json
import os
import pathlib
import signal
import subprocess
import sys

import numpy as np
import psutil
import pytest
import small_run
from etils import epath
from PIL import Image

from sr3_jax.data import sources
from sr3_jax.inference import manifest, upscale_files
from sr3_jax.inference.inputs import UpscaleOptions
from sr3_jax.jobs import ray_engine, upscaling
from sr3_jax.parallel import StoppedError

OPTIONS = UpscaleOptions(steps=2)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """As a training run leaves it."""
    root = epath.Path(tmp_path_factory.mktemp("run"))
    small_run.write_workdir(root)
    return root


@pytest.fixture
def pictures(tmp_path):
    """Nine, of two sizes, in folders, and one that is corrupt."""
    root = epath.Path(tmp_path / "in")
    (root / "sub").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for i in range(9):
        size = (8, 8, 3) if i % 3 else (6, 9, 3)
        path = root / ("sub" if i % 2 else ".") / f"{i}.png"
        Image.fromarray(rng.integers(0, 256, size, dtype=np.uint8)).save(path)
    (root / "bad.png").write_text("text")
    return root


def outputs(folder) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(pathlib.Path(folder).rglob("*.png"))
    }


def rows(folder) -> dict[str, manifest.Record]:
    read = manifest.read(folder)
    assert len({row.input for row in read}) == len(read), "a row twice"
    return {row.input: row for row in read}


def assert_whole(folder, pictures):
    """Every picture has its output and row; the corrupt one its reason; nothing else is there."""
    names = {str(p.relative_to(pictures)) for p in pathlib.Path(pictures).rglob("*.png")}
    assert set(outputs(folder)) == names - {"bad.png"}
    made = rows(folder)
    assert set(made) == names
    assert made["bad.png"].status == "failed" and "not a JPEG" in made["bad.png"].error
    assert {row.status for name, row in made.items() if name != "bad.png"} <= {"written", "found"}
    left = {p.name for p in (folder / ".manifest").iterdir()}
    assert left == {"recipe.json"}
    assert not [p for p in pathlib.Path(folder).rglob("*") if "partial" in p.name]


def test_a_rerun_does_what_is_missing_and_gives_the_same_pictures(workdir, pictures, tmp_path):
    folder = epath.Path(tmp_path / "out")
    assert upscaling.upscale(workdir, pictures, folder, OPTIONS) == 1
    assert_whole(folder, pictures)
    before = outputs(folder)
    assert all(row.seconds > 0 for row in rows(folder).values() if row.status == "written")
    (folder / "0.png").unlink()
    (folder / "sub" / "1.png").unlink()
    times = {name: os.stat(folder / name).st_mtime_ns for name in outputs(folder)}
    assert upscaling.upscale(workdir, pictures, folder, OPTIONS) == 1
    assert_whole(folder, pictures)
    for name, time in times.items():
        assert os.stat(folder / name).st_mtime_ns == time
    after = outputs(folder)
    for name in before:
        a, b = (np.asarray(Image.open(io.BytesIO(made[name])), int) for made in (before, after))
        assert np.abs(a - b).max() <= 1


def test_a_folder_does_not_mix_fingerprints(workdir, pictures, tmp_path):
    folder = epath.Path(tmp_path / "out")
    (pictures / "bad.png").unlink()
    assert upscaling.upscale(workdir, pictures, folder, OPTIONS) == 0
    before = outputs(folder)
    other = UpscaleOptions(steps=2, seed=1)
    with pytest.raises(ValueError, match="seed was 0 and is 1.*--overwrite"):
        upscaling.upscale(workdir, pictures, folder, other)
    with pytest.raises(ValueError, match="sampler was 'ancestral' and is 'ddim'"):
        upscaling.upscale(workdir, pictures, folder, OPTIONS, sampling={"sampler": "ddim"})
    with pytest.raises(ValueError, match="way: variance was 'fixed_small' and is 'fixed_large'"):
        other_variance = {"variance": "fixed_large"}
        upscaling.upscale(workdir, pictures, folder, OPTIONS, sampling=other_variance)
    assert outputs(folder) == before
    assert upscaling.upscale(workdir, pictures, folder, other, overwrite=True) == 0
    after = outputs(folder)
    assert set(after) == set(before) and all(after[name] != before[name] for name in after)
    assert all(row.seed == other.seed_of(name) for name, row in rows(folder).items())
    # So it is for a single picture.
    with pytest.raises(ValueError, match="seed was 1 and is 0.*--overwrite"):
        upscaling.upscale(workdir, pictures / "0.png", folder, OPTIONS)
    assert outputs(folder) == after


def test_what_was_tuned_is_used_and_said(workdir, pictures, tmp_path):
    tuned = {"sampler": "dpmpp_2m", "schedule": "log_snr", "num_steps": 3}
    (workdir / "inference.json").write_text(json.dumps({"sampling": tuned}))
    try:
        upscaling.upscale(workdir, pictures, epath.Path(tmp_path / "out"), UpscaleOptions())
        fingerprint = json.loads((tmp_path / "out" / ".manifest" / "recipe.json").read_text())
        assert {key: fingerprint[key] for key in tuned} == tuned and fingerprint["network"]
        (workdir / "inference.json").write_text("{}")
        with pytest.raises(ValueError, match=r"inference\.json is not a file of"):
            upscaling.upscale(workdir, pictures, epath.Path(tmp_path / "o"), UpscaleOptions())
    finally:
        (workdir / "inference.json").unlink()


def test_a_signal_stops_it_and_the_same_command_goes_on(workdir, pictures, tmp_path, monkeypatch):
    """A SIGTERM of this process, after the first outputs."""
    folder = epath.Path(tmp_path / "out")
    add, seen = manifest.Manifest.add, []

    def stopping(self, record):
        add(self, record)
        seen.append(record)
        if len(seen) == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(manifest.Manifest, "add", stopping)
    with pytest.raises(StoppedError, match="SIGTERM"):
        upscaling.upscale(workdir, pictures, folder, OPTIONS)
    monkeypatch.undo()
    assert len(outputs(folder)) < 9
    upscaling.upscale(workdir, pictures, folder, OPTIONS)
    assert_whole(folder, pictures)


def test_two_inputs_with_one_output_are_refused(workdir, pictures, tmp_path):
    Image.new("RGB", (4, 4)).save(pictures / "0.jpe", format="JPEG")
    names = [sources.FileRef(n, n) for n in ("a.gif", "a.gif.png")]
    with pytest.raises(ValueError, match=r"a\.gif and a\.gif\.png would both become a\.gif\.png"):
        upscaling._check_outputs(tuple(names), pictures, epath.Path(tmp_path / "out"), OPTIONS)
    with pytest.raises(ValueError, match="would both become a.png.uncertainty.png"):
        names = [sources.FileRef(n, n) for n in ("a.png", "a.png.uncertainty.png")]
        several = UpscaleOptions(num_samples=2)
        upscaling._check_outputs(tuple(names), pictures, epath.Path(tmp_path / "out"), several)
    with pytest.raises(NotADirectoryError, match=r"--output=\S+0\.png takes no files"):
        upscaling.upscale(workdir, pictures, pictures / "0.png")
    with pytest.raises(FileNotFoundError, match="nowhere"):
        upscaling.upscale(workdir, epath.Path(tmp_path / "nowhere"), epath.Path(tmp_path / "out"))


class Killed(upscaling.Work):
    """Work at which an actor dies, or raises, when it comes to an image."""

    def load(self):
        resolver = super().load()
        state = epath.Path(self.output).parent
        fetch = upscale_files._Job.fetch

        def deadly(job, ref):
            if (state / f"raise-{ref.name}").exists():
                raise RuntimeError("unforeseen")
            if (state / f"always-{ref.name}").exists():
                os.kill(os.getpid(), signal.SIGKILL)
            if (state / f"once-{ref.name}").exists():
                (state / f"once-{ref.name}").unlink()
                os.kill(os.getpid(), signal.SIGKILL)
            return fetch(job, ref)

        upscale_files._Job.fetch = deadly
        return resolver


@pytest.fixture(scope="module")
def cluster():
    """One for all tests of this file, of two actors at most, as the engine starts it."""
    path = os.pathsep.join([str(small_run.ROOT), str(small_run.ROOT / "tests")])
    variables = {"PYTHONPATH": path, "JAX_NUM_CPU_DEVICES": "1"}
    with ray_engine.cluster(None, num_cpus=2, runtime_env={"env_vars": variables}) as ray:
        yield ray


def test_a_cluster_of_this_machine_is_closed_to_others(cluster):
    processes = [psutil.Process(), *psutil.Process().children(recursive=True)]
    listening = {
        (process.name(), socket.laddr.ip.removeprefix("::ffff:"))
        for process in processes
        for socket in process.net_connections("inet")
        if socket.status == psutil.CONN_LISTEN
    }
    assert {"gcs_server", "raylet"} <= {name for name, _ in listening}
    assert all(ipaddress.ip_address(address).is_loopback for _, address in listening), listening
    # Another process of this machine, which has no token.
    address = cluster.get_runtime_context().gcs_address
    said = subprocess.run(
        [sys.executable, "-c", f"import ray; ray.init({address!r}); print('inside')"],
        env={k: v for k, v in os.environ.items() if not k.startswith("RAY_AUTH")}
        | {"RAY_AUTH_MODE": "disabled"},
        capture_output=True,
        text=True,
    )
    assert said.returncode and "inside" not in said.stdout and "auth" in said.stderr.lower()


def _by_ray(monkeypatch, work, workdir, pictures, folder) -> int:
    monkeypatch.setattr(upscaling, "Work", work)
    monkeypatch.setattr(ray_engine, "_CHUNK", 4)
    # Half of the cluster for an actor, so that there are two.
    monkeypatch.setattr(ray_engine, "_resources", lambda ray: ({"num_cpus": 1}, 2))
    return upscaling.upscale(workdir, pictures, folder, OPTIONS, engine="ray")


def test_ray_gives_the_pictures_of_one_process(cluster, workdir, pictures, tmp_path, monkeypatch):
    """Also with an actor that is killed in the middle, an image at which actors die, one at which
    something unforeseen is raised, and a corrupt one; then the rest by a rerun.
    """
    here, there = (epath.Path(tmp_path / name) for name in ("here", "there"))
    upscaling.upscale(workdir, pictures, here, OPTIONS)
    for name in ("once-2.png", "always-4.png", "raise-6.png"):
        (tmp_path / name).touch()
    assert _by_ray(monkeypatch, Killed, workdir, pictures, there) == 3
    assert not (tmp_path / "once-2.png").exists(), "no actor was killed"
    made = rows(there)
    assert len(made) == 10
    assert made["4.png"].status == "failed" and "workers died at it" in made["4.png"].error
    assert made["6.png"].status == "failed" and "unforeseen" in made["6.png"].error
    assert set(outputs(here)) - set(outputs(there)) == {"4.png", "6.png"}
    for name in ("always-4.png", "raise-6.png"):
        (tmp_path / name).unlink()
    assert _by_ray(monkeypatch, Killed, workdir, pictures, there) == 1
    assert_whole(there, pictures)
    for name in outputs(here):
        a, b = (np.asarray(Image.open(folder / name), int) for folder in (here, there))
        assert np.abs(a - b).max() <= 1


class Broken(upscaling.Work):
    """Work whose network cannot be loaded."""

    def load(self):
        raise OSError("no such bucket")


def test_a_network_that_cannot_be_loaded_ends_the_job(
    cluster, workdir, pictures, tmp_path, monkeypatch
):
    with pytest.raises(ray_engine.ActorError, match="OSError: no such bucket"):
        _by_ray(monkeypatch, Broken, workdir, pictures, epath.Path(tmp_path / "out"))
