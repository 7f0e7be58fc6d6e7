"""Upscaling loses nothing of a user's files, whatever the paths and names."""

import functools
import json
import os
import pathlib
import shutil
import subprocess

import numpy as np
import pytest
import small_run
from etils import epath
from PIL import Image

from sr3_jax import jobs
from sr3_jax.config import read, run_file
from sr3_jax.data import locks, resumable
from sr3_jax.inference import inputs, manifest
from sr3_jax.inference.inputs import UpscaleOptions
from sr3_jax.inference.super_resolver import SuperResolver
from sr3_jax.jobs import upscaling

OPTIONS = UpscaleOptions(steps=1)
SIZE = (6, 7, 3)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    root = epath.Path(tmp_path_factory.mktemp("run"))
    small_run.write_workdir(root)
    return root


@pytest.fixture(autouse=True, scope="module")
def load_once():
    """Each network is loaded once for all tests."""
    with pytest.MonkeyPatch.context() as patch:
        load = functools.cache(lambda workdir, _: SuperResolver.from_workdir(workdir))
        patch.setattr(
            upscaling.Work,
            "load",
            lambda work: load(
                (workdir := work.network.workdir), os.stat(f"{workdir}/checkpoints").st_ctime_ns
            ),
        )
        yield


def _save(path, seed=0):
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    Image.fromarray(rng.integers(0, 256, SIZE, dtype=np.uint8)).save(path, "PNG")


@pytest.fixture
def pictures(tmp_path):
    for i in range(3):
        _save(tmp_path / "in" / f"{i}.png", i)
    return epath.Path(tmp_path / "in")


def _contents(folder) -> dict[str, tuple[bytes, int]]:
    return {
        str(path.relative_to(folder)): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in pathlib.Path(folder).rglob("*")
        if path.is_file()
    }


def _sizes(folder) -> set[tuple[int, int]]:
    return {Image.open(path).size for path in pathlib.Path(folder).rglob("*.png")}


@pytest.mark.parametrize("overwrite", [False, True])
def test_an_output_is_never_an_input(workdir, pictures, tmp_path, overwrite):
    """A folder, a file, a link to the folder, a link and a hard link to a file, from outside."""
    link = epath.Path(tmp_path / "link")
    os.symlink(pictures, link)
    linked, hard = (epath.Path(tmp_path / name) for name in ("linked", "hard"))
    for folder in (linked, hard):
        folder.mkdir()
    os.symlink(pictures / "0.png", linked / "0.png")
    os.link(pictures / "1.png", hard / "0.png")
    before = _contents(tmp_path)
    for input_path, output in (
        (pictures, pictures),
        (link, pictures),
        (pictures, link),
        (pictures / "0.png", pictures),
        (link / "0.png", pictures),
        (pictures, linked),
        (pictures, hard),
        (pictures, pictures / "sub" / ".."),
    ):
        (pictures / "sub").mkdir(exist_ok=True)
        with pytest.raises(ValueError, match=r"would be\s+replaced; give another folder, such as"):
            upscaling.upscale(workdir, input_path, output, OPTIONS, overwrite=overwrite)
        assert _contents(tmp_path) == before


def test_outputs_within_the_inputs_never_become_inputs(workdir, pictures):
    before = _contents(pictures)
    first, second = pictures / "up", pictures / "deeper" / "again"
    for output in (first, first, second):
        assert upscaling.upscale(workdir, pictures, output, OPTIONS) == 0
    for output in (first, second):
        assert {row.input for row in manifest.read(output)} == {"0.png", "1.png", "2.png"}
        assert _sizes(output) == {(28, 24)}
    assert before.items() <= _contents(pictures).items()
    # What was made by this program is an input where that is asked for.
    assert len(inputs.find_inputs(first)) == 3
    for path in ("0.png", "1.png", "2.png"):
        (pictures / path).unlink()
    with pytest.raises(ValueError, match="all images in .* are outputs of this program"):
        upscaling.upscale(workdir, pictures, pictures / "third", OPTIONS)


def test_a_file_that_was_not_made_here_is_neither_taken_for_an_output_nor_replaced(
    workdir, pictures, tmp_path
):
    output = epath.Path(tmp_path / "out")
    output.mkdir()
    (output / "1.png").write_bytes(b"precious")
    before = _contents(tmp_path)
    for input_path in (pictures, pictures / "1.png"):
        with pytest.raises(ValueError, match=r"1 files in .*1\.png: no row.*--overwrite"):
            upscaling.upscale(workdir, input_path, output, OPTIONS)
        made = _contents(tmp_path)
        assert {
            k: v for k, v in made.items() if ".manifest" not in k and "jsonl" not in k
        } == before
    assert upscaling.upscale(workdir, pictures, output, OPTIONS, overwrite=True) == 0
    assert _sizes(output) == {(28, 24)}
    (tmp_path / "full" / "2.png").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"2\.png: it is a folder"):
        upscaling.upscale(workdir, pictures, epath.Path(tmp_path / "full"), OPTIONS, overwrite=True)
    # One that was damaged or edited since is not what was made here either.
    (output / "2.png").write_bytes(b"")
    with pytest.raises(ValueError, match=r"2\.png: it has 0 bytes, where \d+ were written"):
        upscaling.upscale(workdir, pictures, output, OPTIONS)
    (output / "2.png").unlink()
    assert upscaling.upscale(workdir, pictures, output, OPTIONS) == 0
    whole = (output / "2.png").read_bytes()
    (output / "2.png").write_bytes(whole[:-20] + bytes(20))
    with pytest.raises(ValueError, match=r"2\.png: its content has changed since"):
        upscaling.upscale(workdir, pictures, output, OPTIONS)
    (output / "2.png").write_bytes(whole)  # put back, at another time
    assert upscaling.upscale(workdir, pictures, output, OPTIONS) == 0


def test_what_lies_beside_outputs_is_not_replaced_either(workdir, pictures, tmp_path):
    several = UpscaleOptions(steps=1, num_samples=2, animate=True)
    for name in ("0.png.uncertainty.png", "1.png.refinement.gif", "manifest.jsonl"):
        output = epath.Path(tmp_path / name)
        output.mkdir()
        (output / name).write_text('{"file_name": "0.png"}')
        before = _contents(output)
        with pytest.raises(ValueError, match=rf"1 files in .*{name}: "):
            upscaling.upscale(workdir, pictures, output, several)
        assert _contents(output) == before


def test_a_pipe_among_the_inputs_is_told_and_the_rest_done(workdir, pictures, tmp_path):
    os.mkfifo(pictures / "pipe.png")
    assert upscaling.upscale(workdir, pictures, epath.Path(tmp_path / "out"), OPTIONS) == 1
    rows = {row.input: row for row in manifest.read(tmp_path / "out")}
    assert len(rows) == 4 and "Not a regular file" in rows["pipe.png"].error


def test_an_input_that_has_changed_is_made_anew(workdir, pictures, tmp_path):
    output = epath.Path(tmp_path / "out")
    upscaling.upscale(workdir, pictures, output, OPTIONS)
    before = _contents(output)
    os.utime(pictures / "0.png")  # the same content at another time
    _save(pictures / "1.png", 9)
    assert upscaling.upscale(workdir, pictures, output, OPTIONS) == 0
    after = _contents(output)
    changed = {name for name in before if name.endswith(".png") and after[name] != before[name]}
    assert changed == {"1.png"}
    # One that is broken now fails; what was made of it before stays, and is replaced later.
    good = (pictures / "2.png").read_bytes()
    (pictures / "2.png").write_bytes(b"broken")
    for _ in range(2):
        assert upscaling.upscale(workdir, pictures, output, OPTIONS) == 1
        assert _contents(output)["2.png"] == before["2.png"]
    (pictures / "2.png").write_bytes(good)
    assert upscaling.upscale(workdir, pictures, output, OPTIONS) == 0
    assert {row.status for row in manifest.read(output)} == {"written"}


def test_what_a_killed_job_made_is_known_and_what_it_was_to_replace_too(
    workdir, pictures, tmp_path, monkeypatch
):
    """A kill is here an exception at which no row is written."""
    output = epath.Path(tmp_path / "out")
    upscaling.upscale(workdir, pictures, output, OPTIONS)
    before = _contents(output)

    class KilledError(BaseException):
        pass

    def killed(*_):
        raise KilledError

    other = UpscaleOptions(steps=1, seed=1)
    with monkeypatch.context() as patch, pytest.raises(KilledError):
        patch.setattr(manifest.Manifest, "add", killed)
        patch.setattr(manifest.Manifest, "flush", lambda self: None)
        patch.setattr(resumable, "THREADS", 1)
        upscaling.upscale(workdir, pictures / "0.png", output, other, overwrite=True)
    (output / f".{'0' * 16}.partial").write_bytes(b"half")
    assert _contents(output)["0.png"] != before["0.png"]
    # 1.png and 2.png are of the other seed, so that they are not outputs of this fingerprint.
    with pytest.raises(ValueError, match="2 files"):
        upscaling.upscale(workdir, pictures, output, other)
    assert {row.input: row.status for row in manifest.read(output)} == {"0.png": "found"}
    assert upscaling.upscale(workdir, pictures, output, other, overwrite=True) == 0
    assert {row.status for row in manifest.read(output)} == {"written"}
    assert {p.name for p in (output / ".manifest").iterdir()} == {"recipe.json"}
    assert not [name for name in _contents(output) if "partial" in name or "lock" in name]


def test_a_moved_workdir_is_the_same_network_and_one_trained_anew_is_not(
    workdir, pictures, tmp_path
):
    output = epath.Path(tmp_path / "out")
    upscaling.upscale(workdir, pictures, output, OPTIONS)
    moved = epath.Path(tmp_path / "moved")
    shutil.copytree(workdir, moved)
    before = _contents(output)
    assert upscaling.upscale(moved, pictures, output, OPTIONS) == 0
    assert {k: v for k, v in _contents(output).items() if k.endswith("png")} == {
        k: v for k, v in before.items() if k.endswith("png")
    }
    # Folders of older versions have path and step instead.
    fingerprint = json.loads((output / resumable.MARK).read_text())
    older = {**fingerprint, "workdir": str(workdir), "checkpoint": 3}
    del older["network"]
    (output / resumable.MARK).write_text(json.dumps(older))
    assert upscaling.upscale(workdir, pictures, output, OPTIONS) == 0
    assert json.loads((output / resumable.MARK).read_text()) == fingerprint
    (moved / "checkpoints").rmtree()
    small_run.write_workdir(moved, noise=0.1)
    with pytest.raises(ValueError, match="network was '.*' and is '.*--overwrite"):
        upscaling.upscale(moved, pictures, output, OPTIONS)


def test_a_damaged_checkpoint_is_passed_over(workdir, pictures, tmp_path, caplog):
    moved, output = (epath.Path(tmp_path / name) for name in ("moved", "out"))
    shutil.copytree(workdir, moved)
    upscaling.upscale(moved, pictures, output, OPTIONS)
    newest = pathlib.Path(moved / "checkpoints" / "4")
    shutil.copytree(moved / "checkpoints" / "3", newest)
    largest = max((p for p in newest.rglob("*") if p.is_file()), key=os.path.getsize)
    content = np.frombuffer(largest.read_bytes(), np.uint8).copy()
    content[::64] ^= 1  # so often that it hits the averaged weights
    largest.write_bytes(content.tobytes())
    # By the same weights, so that all outputs are there already.
    assert upscaling.upscale(moved, pictures, output, OPTIONS) == 0
    assert "checkpoints/4 is damaged" in caplog.text


NAMES = (
    os.fsdecode(b"bad\xff.png"),
    "line\nbreak.png",
    "u\u2028\x85\x0b\x1cn.png",
    "a" * 251 + ".png",
    "é" * 125 + "b.png",
    "x" * 250 + ".jpeg",
    "~root/[1]*.png",
)


def test_any_name_is_upscaled_and_listed_like_any_other(workdir, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for i, name in enumerate(NAMES):
        _save(tmp_path / "in [1]" / name, i)
    broken = "bro\nken.png"
    (tmp_path / "in [1]" / broken).write_bytes(b"text")
    (tmp_path / "in [1]" / "layers.psd").write_bytes(b"8BPS")  # a format that is not read
    several = UpscaleOptions(steps=1, num_samples=2, animate=True)
    for _ in range(2):
        # Relative, so that a name that begins with ~ is tried.
        assert upscaling.upscale(workdir, epath.Path("in [1]"), epath.Path("o*"), several) == 2
        rows = {row.input: row for row in manifest.read("o*")}
        assert set(rows) == {*NAMES, broken, "layers.psd"}
        for name in NAMES:
            assert rows[name].status == "written"
            for made in several.output_names(name):
                assert os.path.getsize(tmp_path / "o*" / made)
    said = capsys.readouterr().out
    assert "failed: layers.psd: files of this format (.psd) are not read" in said
    assert "7 of 9 images" in said and "7 of 8 outputs are there already" in said
    assert "failed: bro\\nken.png: " in said and all(
        line.isprintable() for line in said.split("\n")
    )


def test_two_jobs_of_one_folder(workdir, pictures, tmp_path):
    """Each kind of job holds the folder that it writes, and touches nothing where it is held."""
    config, output = run_file.load(workdir / "config.json"), epath.Path(tmp_path / "out")
    before = _contents(workdir)
    for folder, job in (
        (output, lambda: upscaling.upscale(workdir, pictures, output, OPTIONS)),
        (workdir, lambda: jobs.train(read(config), workdir)),
        (workdir / "evaluation", lambda: jobs.evaluate(read(config), workdir)),
        (workdir / "tuning", lambda: jobs.tune_schedule(read(config), workdir, None)),
        (output, lambda: jobs.score(None, output, str(pictures), {"a": str(pictures)})),
    ):
        with locks.hold(folder, "something else"):
            with pytest.raises(locks.HeldError, match=f"something else .*process {os.getpid()}"):
                job()
            assert os.listdir(folder).count(locks.NAME) == 1
        assert _contents(workdir) == before and not output.exists()
    assert upscaling.upscale(workdir, pictures, output, OPTIONS) == 0


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 64 KiB, of which a file takes all but five pages."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(disk)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("a disk cannot be mounted here: that takes root")
    (disk / "filler").write_bytes(bytes(11 * 4096))
    yield epath.Path(disk)
    subprocess.run(["umount", str(disk)], check=True)


def test_a_full_or_read_only_disk_ends_the_job_and_a_rerun_goes_on(
    workdir, pictures, small_disk, monkeypatch
):
    output = small_disk / "out"
    with pytest.raises(OSError, match="No space left on device"):
        upscaling.upscale(workdir, pictures, output, OPTIONS)
    made = len(list(output.glob("*.png")))
    assert made < 3 and not [name for name in _contents(output) if "partial" in name]
    (small_disk / "filler").unlink()
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with monkeypatch.context() as patch, pytest.raises(OSError, match="Read-only file system"):
        patch.setattr(upscaling.Work, "load", None)  # before the network is loaded
        upscaling.upscale(workdir, pictures, output, OPTIONS)
    subprocess.run(["mount", "-o", "remount,rw", str(small_disk)], check=True)
    assert upscaling.upscale(workdir, pictures, output, OPTIONS) == 0
    assert len(list(output.glob("*.png"))) == 3


def test_a_damaged_fingerprint_and_damaged_rows_are_named(workdir, pictures, tmp_path):
    output = epath.Path(tmp_path / "out")
    upscaling.upscale(workdir, pictures, output, OPTIONS)
    whole = (output / "manifest.jsonl").read_bytes()
    (output / "manifest.jsonl").write_bytes(whole[:40] + b"\xff" + whole[41:])
    assert len(manifest.read(output)) == 2
    with pytest.raises(ValueError, match=r"manifest\.jsonl.*is damaged: 1 of its 3 rows"):
        upscaling.upscale(workdir, pictures, output, OPTIONS)
    (output / resumable.MARK).write_bytes(b"[1")
    with pytest.raises(ValueError, match=r"recipe\.json.*is damaged.*Remove it"):
        upscaling.upscale(workdir, pictures, output, OPTIONS)
    assert upscaling.upscale(workdir, pictures, output, OPTIONS, overwrite=True) == 0
    assert {row.status for row in manifest.read(output)} == {"written"}
