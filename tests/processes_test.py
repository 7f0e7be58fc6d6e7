"""Several processes on this machine train as one does, stop together, and none waits for the dead.

The real training command, as two processes of four CPU devices each that talk over loopback.
"""

import os
import pathlib
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
import zlib

import numpy as np
import pytest
import small_run
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from sr3_jax import parallel

NUM_IMAGES, NUM_STEPS = 16, 8
OBSERVED = str(pathlib.Path(__file__).with_name("observed_main.py"))


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Sixteen photographs' worth of noise: two batches of eight make an epoch; one is damaged."""
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for i in range(NUM_IMAGES + 4):
        pixels = rng.integers(0, 256, (20, 24, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
    # One that is trained on: those of the least hashes are held out.
    damaged = max(folder.iterdir(), key=lambda path: zlib.crc32(path.name.encode()))
    damaged.write_bytes(b"no image")
    return folder


class Job:
    """The training command as so many processes; ends them all when it ends."""

    def __init__(
        self,
        folder,
        images,
        *,
        mode="train",
        processes=2,
        devices=4,
        homes=None,
        workdir=None,
        told_second=(),
        **overrides,
    ):
        """`folder` is for what the processes say, and the workdir unless another is given."""
        self.workdir = pathlib.Path(folder)
        workdir = workdir or folder
        self.notes = self.workdir / "notes"
        self.notes.mkdir(parents=True, exist_ok=True)
        values = {
            "data.source": "folder",
            "data.path": images,
            "data.num_eval_images": 4,
            "data.crop": "central",
            "evaluation.image_size": 16,
            "data.max_bad_share": 0.1,
            "parallel.layout": "zero1",
        } | overrides
        flags = [
            f"--mode={mode}",
            *(flag.replace("=configs", f"={small_run.ROOT}/configs") for flag in small_run.flags()),
            *(f"--config.{k}={v}" for k, v in values.items()),
        ]
        with socket.socket() as free:
            free.bind(("localhost", 0))
            port = free.getsockname()[1]
        self.processes = []
        for i in range(processes):
            several = [
                f"--coordinator=localhost:{port}",
                f"--num_processes={processes}",
                f"--process_index={i}",
            ]
            self.processes.append(
                subprocess.Popen(
                    [sys.executable, OBSERVED, str(self.notes), *flags, f"--workdir={workdir}"]
                    + (several if processes > 1 else [])
                    + list(told_second if i == 1 else ()),
                    cwd=homes[i] if homes else small_run.ROOT,
                    env=os.environ
                    | {"JAX_NUM_CPU_DEVICES": str(devices)}
                    | ({"HOME": str(homes[i])} if homes else {}),
                    stdout=subprocess.PIPE,
                    stderr=(self.workdir / f"stderr-{i}.txt").open("w"),
                    text=True,
                )
            )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for process in self.processes:
            process.kill()
            process.wait()

    def stderr(self, i):
        return (self.workdir / f"stderr-{i}.txt").read_text()

    def wait_for_checkpoint(self, step):
        deadline = time.monotonic() + 300
        while not (self.workdir / "checkpoints" / str(step)).exists():
            running = all(process.poll() is None for process in self.processes)
            assert running and time.monotonic() < deadline, self.stderr(0) + self.stderr(1)
            time.sleep(0.01)

    def statuses(self, seconds=300):
        deadline = time.monotonic() + seconds
        return [p.wait(timeout=max(deadline - time.monotonic(), 0.1)) for p in self.processes]


@pytest.fixture(scope="module")
def two(images, tmp_path_factory):
    """The workdir of two processes, and what they printed."""
    with Job(tmp_path_factory.mktemp("two"), images) as job:
        assert job.statuses() == [0, 0], job.stderr(0) + job.stderr(1)
        return job.workdir, [process.stdout.read() for process in job.processes]


@pytest.fixture(scope="module")
def one(images, tmp_path_factory):
    """The workdir of one process of eight devices."""
    with Job(tmp_path_factory.mktemp("one"), images, processes=1, devices=8) as job:
        assert job.statuses() == [0], job.stderr(0)
        return job.workdir, [job.processes[0].stdout.read()]


def losses(workdir) -> dict[str, list[float]]:
    (file,) = workdir.glob("events.out.tfevents.*")
    events = EventAccumulator(str(file), size_guidance={"scalars": 0})
    events.Reload()
    tags = ("loss", "gradient_norm", "validation_loss", "images_damaged")
    return {tag: [e.value for e in events.Scalars(tag)] for tag in tags}


def test_two_processes_learn_what_one_learns(one, two):
    ours, theirs = losses(two[0]), losses(one[0])
    for tag in theirs:
        assert len(theirs[tag]) == 4
        np.testing.assert_allclose(ours[tag], theirs[tag], rtol=1e-4, err_msg=tag)
    assert ours["images_damaged"] == [1, 1, 1, 1]  # whichever process met it in which epoch
    ours, theirs = (small_run.read_checkpoint(workdir, 8) for workdir in (two[0], one[0]))
    small_run.assert_same_arrays(ours, theirs, atol=3e-4)


def test_too_many_damaged_images_end_all_processes_with_their_names(images, tmp_path):
    """Each process meets some of them only, and one of them perhaps none."""
    with Job(tmp_path, images, **{"data.max_bad_share": 0}) as job:
        assert job.statuses() == [2, 2], job.stderr(0) + job.stderr(1)
        for i in range(2):
            assert "1 of 16 images are damaged, more than the 0.00%" in job.stderr(i)


def test_each_example_is_read_exactly_once_an_epoch(two):
    notes = [np.loadtxt(path, dtype=int) for path in sorted((two[0] / "notes").iterdir())]
    assert len(notes) == 2 and {rows.shape[1] for rows in notes} == {4}
    for epoch in range(NUM_STEPS * 8 // NUM_IMAGES):
        seen = np.concatenate([rows[2 * epoch : 2 * epoch + 2].ravel() for rows in notes])
        assert sorted(seen) == list(range(NUM_IMAGES))


def test_process_0_alone_writes_and_scores_all_images(one, two):
    workdir, printed = two
    assert "| sr3 |" in printed[0] and "| sr3 |" not in printed[1]
    assert len(list(workdir.glob("events.out.tfevents.*"))) == 1

    def table(text):
        """Each method's row, by the names of the columns."""
        names, *rows = [
            [cell.strip() for cell in line.split("|")[1:-1]]
            for line in text.splitlines()
            if line.startswith("| ")
        ]
        return [dict(zip(names, row, strict=True)) for row in rows]

    ours, theirs = table(printed[0]), table(one[1][0])
    assert [row["method"] for row in ours] == [row["method"] for row in theirs]
    assert len(ours) == 2 and all(row["n"] == "4" for row in (*ours, *theirs))
    compared = set(ours[0]) - {"method", "n", "seconds per image"}
    assert {"PSNR (dB)", "SSIM", "consistency"} <= compared
    for name in compared:
        # Rounded to what is printed; weights differ by rounding.
        pairs = [(row[name], other[name]) for row, other in zip(ours, theirs, strict=True)]
        np.testing.assert_allclose(*np.array(pairs, float).T, rtol=2e-3, atol=2e-2, err_msg=name)
    # Each process leaves the images that it made.
    made = [sorted((w / "evaluation" / "images" / "sr3").iterdir()) for w in (workdir, one[0])]
    assert [path.name for path in made[0]] == [path.name for path in made[1]]
    assert len(made[0]) == 4
    ours, theirs = (
        np.asarray(Image.open(w / "evaluation" / "samples.png"), int) for w in (workdir, one[0])
    )
    assert ours.shape == theirs.shape and np.abs(ours - theirs).mean() < 0.5


def test_where_one_is_killed_the_other_ends_and_the_job_resumes(images, two, tmp_path):
    """As an operator would have it: no hang, no manual repair, nothing lost but time.

    The first one, by which the others find each other; the next tests are about the second.
    """
    endless = {"train.num_steps": 100_000, "checkpoint.keep_last": 1000}
    with Job(tmp_path, images, **endless) as job:
        job.wait_for_checkpoint(4)
        job.processes[0].send_signal(signal.SIGKILL)
        begin = time.monotonic()
        status = job.processes[1].wait(timeout=120)
        assert status not in (0, 1, 2) and time.monotonic() - begin < 120
        message = job.stderr(1)
        assert "cannot go on" in message or "another task died" in message, message[-3000:]
    for path in (tmp_path / "checkpoints").iterdir():
        if path.name.isdigit() and int(path.name) > 4:
            # As if killed right after step 4; the folders are Orbax's.
            subprocess.run(["rm", "-r", str(path)], check=True)
    with Job(tmp_path, images) as job:
        assert job.statuses() == [0, 0], job.stderr(0) + job.stderr(1)
        assert "resuming at step 4" in job.stderr(0)
    ours, theirs = (small_run.read_checkpoint(workdir, 8) for workdir in (tmp_path, two[0]))
    small_run.assert_same_arrays(ours, theirs)


def test_another_config_of_one_process_is_noticed(images, tmp_path):
    with Job(tmp_path, images, told_second=["--config.train.learning_rate=1e-5"]) as job:
        assert job.statuses() == [2, 2]
        assert "process 1 of 2 has another config than process 0; give all" in job.stderr(0)


def test_other_images_on_another_host_are_noticed(images, tmp_path):
    """Each host has images of its own, under the same names."""
    homes = [tmp_path / "a", tmp_path / "b"]
    for home in homes:
        shutil.copytree(images, home / "images")
    for path in (homes[1] / "images").glob("*1*.png"):
        Image.effect_noise((24, 20), 50).convert("RGB").save(path)
    with Job(tmp_path / "run", "~/images", homes=homes) as job:
        assert job.statuses() == [2, 2]
        for i in (0, 1):
            (error,) = [x for x in job.stderr(i).splitlines() if x.startswith("error: ")]
            assert "process 1 of 2 reads another image than process 0 as " in error


@pytest.mark.parametrize("place", ["another", "not to be written", "checkpoints"])
def test_a_workdir_that_not_all_can_write_is_noticed(images, tmp_path, place):
    """Before anything is trained: the second process has another folder of that name, or none."""
    homes, workdir = [tmp_path / "a", tmp_path / "b"], "~/run"
    for home in homes:
        home.mkdir()
    nowhere = "/proc/self/task"  # where nobody can write, not even root
    if place == "not to be written":
        (homes[1] / "run").symlink_to(nowhere)
    if place == "checkpoints":  # of one workdir for both, on a disk of each host's own
        workdir = tmp_path / "run"
        workdir.mkdir()
        (workdir / "checkpoints").symlink_to("/proc/self/cwd/disk")
        (homes[0] / "disk").mkdir()
        (homes[1] / "disk").symlink_to(nowhere)
    with Job(tmp_path / "notes", images, homes=homes, workdir=workdir) as job:
        assert set(job.statuses()) <= {1, 2}
        (first,), (second,) = (
            [line for line in job.stderr(i).splitlines() if line.startswith("error: ")]
            for i in (0, 1)
        )
    if place == "another":
        assert "process 1 of 2 has another folder as" in first
    else:
        assert "process 1 of 2 cannot write into" in first and "No such file" in second
    assert not list(tmp_path.rglob("events.out.*")) + list(tmp_path.rglob("*.partial"))


def test_where_one_cannot_write_any_more_it_ends_and_what_was_saved_is_whole(images, tmp_path):
    """A full disk of one host: its files grow no more. The other ends as where it is killed."""
    endless = {"train.num_steps": 100_000, "checkpoint.keep_last": 1000}
    with Job(tmp_path, images, **endless) as job:
        job.wait_for_checkpoint(2)
        full = (80_000, 80_000)  # as in tests/survival_test.py
        resource.prlimit(job.processes[1].pid, resource.RLIMIT_FSIZE, full)
        # Not within the ten minutes that Orbax would wait for it.
        assert job.processes[1].wait(timeout=60) == 1
        assert "Failed writing" in job.stderr(1)
    steps = [p.name for p in (tmp_path / "checkpoints").iterdir() if p.name.isdigit()]
    assert "2" in steps
    for step in steps:
        small_run.read_checkpoint(tmp_path, int(step))


def test_where_one_stalls_the_other_ends(images, tmp_path):
    """A host that does nothing more, and whose connections stay open."""
    with Job(tmp_path, images, **{"train.num_steps": 100_000}) as job:
        job.wait_for_checkpoint(2)
        job.processes[1].send_signal(signal.SIGSTOP)
        # docs/architecture.md: within two minutes, and not as if it were done, or for good.
        assert job.processes[0].wait(timeout=120) not in (0, 1, 2)


def test_a_sigterm_to_one_stops_both_after_the_same_step(images, tmp_path):
    with Job(tmp_path, images, **{"train.num_steps": 100_000}) as job:
        job.wait_for_checkpoint(2)
        job.processes[1].send_signal(signal.SIGTERM)
        assert job.statuses(60) == [75, 75], job.stderr(0) + job.stderr(1)
        said = [[line for line in job.stderr(i).splitlines() if "is saved" in line] for i in (0, 1)]
    assert said[0] == said[1] and len(said[0]) == 1
    step = int(said[0][0].split("step ")[1].split()[0])
    assert (tmp_path / "checkpoints" / str(step)).exists()


def test_a_sigterm_to_one_of_an_evaluation_ends_that_one_at_once(images, tmp_path):
    """The images of this set are all of the first; the second waits for them, and ends as well."""
    small_run.write_workdir(tmp_path)
    endless = {"sampling.num_steps": 1000, "evaluation.num_samples": 100}
    with Job(tmp_path, images, mode="evaluate", **endless) as job:
        deadline = time.monotonic() + 300
        while not re.search(r" ([1-9]\.\d|0\.[1-9])/4 images", job.stderr(0)):
            running = all(process.poll() is None for process in job.processes)
            assert running and time.monotonic() < deadline, job.stderr(0) + job.stderr(1)
            time.sleep(0.05)
        job.processes[0].send_signal(signal.SIGTERM)
        assert job.processes[0].wait(timeout=60) == 75, job.stderr(0)
        assert "SIGTERM: the same command does what is missing" in job.stderr(0)

        assert job.processes[1].wait(timeout=120) not in (0, 1, 2), job.stderr(1)


def test_half_of_the_flags_and_impossible_ones_are_named():
    with pytest.raises(ValueError, match="--num_processes and --process_index missing: give all"):
        parallel.join("localhost:1")
    with pytest.raises(ValueError, match=r"--process_index=2 is not in \[0, 2\)"):
        parallel.join("localhost:1", 2, 2)


def test_a_cluster_that_does_not_answer_is_named_and_can_be_left_out(monkeypatch):
    """Slurm's variables with a number that is none, as a job script may leave behind."""
    for name in ("SLURM_STEP_NODELIST", "SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID"):
        monkeypatch.setenv(name, "0" if name != "SLURM_NTASKS" else "2")
    monkeypatch.setenv("SLURM_JOB_ID", "none")
    with pytest.raises(ValueError, match="others cannot be found .*--num_processes=1 to run on"):
        parallel.join()
    parallel.join(num_processes=1)
