"""Files that are whole or absent, names of any kind, and one job for a folder."""

import fcntl
import multiprocessing
import os
import signal
import socket

import fsspec
import pytest

from sr3_jax.data import locks, storage

_spawn = multiprocessing.get_context("spawn")


def _write_often(path, letter, count):
    for _ in range(count):
        with storage.open_whole(path) as file:
            for _ in range(64):
                file.write(letter * 1024)
                file.flush()


def test_two_writers_of_one_file_never_mix(tmp_path):
    path = str(tmp_path / "a")
    writers = [_spawn.Process(target=_write_often, args=(path, c, 40)) for c in (b"a", b"b")]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        if os.path.exists(path):
            content = storage.read(path)
            assert len(content) == 65536 and len(set(content)) == 1
    assert [writer.exitcode for writer in writers] == [0, 0]
    assert os.listdir(tmp_path) == ["a"]


def test_a_link_is_replaced_and_not_followed(tmp_path):
    precious = tmp_path / "precious"
    precious.write_bytes(b"mine")
    (tmp_path / "out").symlink_to(precious)
    storage.write_whole(tmp_path / "out", b"new")
    assert precious.read_bytes() == b"mine"
    assert (tmp_path / "out").read_bytes() == b"new" and not (tmp_path / "out").is_symlink()


def test_what_is_not_finished_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"old")
    with pytest.raises(RuntimeError), storage.open_whole(path) as file:
        file.write(b"half")
        raise RuntimeError
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["a"]


@pytest.mark.parametrize("name", ["ä" * 127 + "x", "a" * 255, os.fsdecode(b"\xff" * 255), "b"])
def test_names_fit_whatever_is_added(tmp_path, name):
    written = set()
    for suffix in ("", ".png", ".uncertainty.png"):
        fitting = storage.fitting_name(f"folder/{name}", suffix)
        assert fitting.endswith(suffix) and len(os.fsencode(fitting.partition("/")[2])) <= 255
        storage.write_whole(tmp_path / fitting, b"x")
        written.add(fitting)
    assert set(storage.find(tmp_path)) == written and len(written) == 3
    other = storage.fitting_name(f"folder/{name[:-1]}y", ".png")
    assert other not in written
    # A name that fits stays what it is.
    assert storage.fitting_name("folder/b", ".png") == "folder/b.png"


def test_names_are_shown_on_one_line():
    name = "a\n\u2028\x85" + os.fsdecode(b"\xff") + "ä.png"
    assert storage.shown(name).isprintable() and storage.shown(name).encode("utf-8")
    assert storage.shown("ä b.png") == "ä b.png"


def test_links_to_folders_are_followed_but_not_in_circles(tmp_path):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "b").touch()
    root = tmp_path / "root"
    (root / "sub").mkdir(parents=True)
    (root / "a").touch()
    (root / "sub" / "up").symlink_to(root)
    (root / "sub" / "there").symlink_to(tmp_path / "other")
    (tmp_path / "other" / "back").symlink_to(root / "sub")
    assert sorted(storage.find(root)) == ["a", "sub/there/b"]
    assert sorted(storage.find(root, {str(tmp_path / "other")})) == ["a"]


def test_versions_of_a_file(tmp_path):
    path = tmp_path / "a"
    assert storage.state(path) is None
    path.write_bytes(b"one")
    first = storage.state(path)
    assert storage.state(path) == first
    os.utime(path, ns=(1, 1))
    assert storage.state(path) != first
    assert storage.is_same_file(path, tmp_path / "." / "a")
    os.link(path, tmp_path / "hard")
    assert storage.is_same_file(path, tmp_path / "hard")
    assert not storage.is_same_file(path, tmp_path / "missing")
    assert storage.is_within(tmp_path / "x" / ".." / "y", tmp_path)
    assert not storage.is_within(f"{tmp_path}x", tmp_path)


@pytest.mark.parametrize("place", ["/proc/foo", "/proc/self/task", "file", "file/a/b"])
def test_a_folder_that_takes_no_files_is_named_with_its_flag(tmp_path, place):
    (tmp_path / "file").touch()
    for name in ("there", "there/a/b"):
        storage.check_writable(tmp_path / name, "--output")
    said = f"^--output={tmp_path / place} takes no files: .*; give another folder$"
    with pytest.raises(OSError, match=said), locks.hold(tmp_path / place, "a", "--output"):
        pass
    assert os.listdir(tmp_path) == ["file"]


def test_a_bucket_that_gives_no_answer_is_named_within_a_time(monkeypatch):
    fsspec.get_filesystem_class("gs").clear_instance_cache()
    with socket.create_server(("127.0.0.1", 0)) as silent, monkeypatch.context() as patch:
        patch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{silent.getsockname()[1]}")
        patch.setenv("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
        patch.setattr(storage, "_ANSWER_SECONDS", 1)
        for ask in (storage.exists, storage.is_folder):
            said = "^gs://images/a cannot be reached: no answer within 1 seconds; .* credentials"
            with pytest.raises(ConnectionError, match=said):
                ask("gs://images/a")
    fsspec.get_filesystem_class("gs").clear_instance_cache()


def _hold(folder, ready):
    with locks.hold(folder, "upscaling"):
        ready.set()
        signal.pause()


@pytest.mark.parametrize("kind", ["kernel", "renewed"])
def test_one_job_holds_a_folder_and_the_dead_block_nobody(tmp_path, monkeypatch, kind):
    if kind == "renewed":
        # A file system without locks, as some networks have; times as short as a test wants.
        monkeypatch.setattr(locks, "_RENEW_SECONDS", 1.0)
        monkeypatch.setattr(locks, "_DEAD_SECONDS", 4.0)
        monkeypatch.setattr(locks, "_SETTLE_SECONDS", 0.2)
        monkeypatch.setattr(fcntl, "flock", _no_locks)
    holder = _spawn.Process(
        target=_hold_somehow, args=(kind, str(tmp_path), ready := _spawn.Event())
    )
    holder.start()
    assert ready.wait(60)
    said = rf"in use by upscaling on host .+, process {holder.pid}, since 20"
    with pytest.raises(locks.HeldError, match=said), locks.hold(tmp_path, "training"):
        pass
    holder.kill()
    holder.join()
    with locks.hold(tmp_path, "training"):
        with pytest.raises(locks.HeldError, match="training"), locks.hold(tmp_path, "scoring"):
            pass
    # The kill may have come while the holder renewed its lock.
    assert all(map(storage.is_partial, os.listdir(tmp_path)))
    with locks.hold(tmp_path, "training"):
        pass


def _no_locks(*_):
    raise OSError(38, "Function not implemented")


def _hold_somehow(kind, folder, ready):
    if kind == "renewed":
        locks._RENEW_SECONDS = 1.0
        locks._SETTLE_SECONDS = 0.2
        fcntl.flock = _no_locks
    _hold(folder, ready)
