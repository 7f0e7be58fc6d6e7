"""The parts that all resumable jobs share: fingerprints, rows, units, and stages in threads."""

import dataclasses
import json
import multiprocessing
import os
import random
import re
import threading
import time

import pytest

from sr3_jax.data import resumable, storage
from sr3_jax.data.resumable import Fingerprint

VALUES = {"network": "abc", "seed": 0, "labels": (1, 2), "stage_1.steps": 5}


def test_what_differs_is_named_with_both_values(tmp_path):
    fingerprint = Fingerprint(VALUES)
    fingerprint.check(tmp_path / "absent")
    fingerprint.keep(tmp_path)
    # A job that was stopped before its first output is no reason to refuse another.
    Fingerprint({**VALUES, "seed": 1}).check(tmp_path)
    (tmp_path / "1.png").touch()
    fingerprint.check(tmp_path)
    assert Fingerprint(dict(reversed(VALUES.items()))).digest == fingerprint.digest
    for key, value in (("network", "abd"), ("seed", 1), ("labels", (2, 1)), ("stage_1.steps", 6)):
        other = Fingerprint({**VALUES, key: value})
        was, now = (re.escape(repr(json.loads(json.dumps(v)))) for v in (VALUES[key], value))
        with pytest.raises(ValueError, match=f"another way: {key} was {was} and is {now}. Give"):
            other.check(tmp_path)
        assert not other.fits(tmp_path) and other.digest != fingerprint.digest
    # One that has more, and one that has less.
    with pytest.raises(ValueError, match="way: eta was None and is 1"):
        Fingerprint({**VALUES, "eta": 1}).check(tmp_path)
    with pytest.raises(ValueError, match="way: seed was 0 and is None"):
        Fingerprint({k: v for k, v in VALUES.items() if k != "seed"}).check(tmp_path)


def test_fingerprints_of_older_versions_are_understood(tmp_path):
    """Which had no value of a later key, and a path where the digest of a network stands."""
    Fingerprint({"workdir": "here", "checkpoint": 3, "seed": 0}).keep(tmp_path)
    now = Fingerprint({"stage_1.network": "abc", "seed": 0, "stage_1.eta": 1.0})
    assert not now.fits(tmp_path)
    now = dataclasses.replace(now, older={"workdir": "here", "checkpoint": 3})
    assert now.differences(resumable.read_fingerprint(tmp_path)) == [
        "stage_1.eta was None and is 1.0"
    ]
    now = dataclasses.replace(now, defaults={"eta": 1.0})
    now.check(tmp_path)
    assert not dataclasses.replace(now, older={"workdir": "here", "checkpoint": 4}).fits(tmp_path)


def test_values_kept_under_older_names_show_todays():
    names = {"variance": {"upper": "large", "lower": "small"}}
    now = Fingerprint({"stage_1.variance": "upper", "format": "upper"}, names=names)
    assert now.differences({"stage_1.variance": "lower", "format": "lower"}) == [
        "format was 'lower' and is 'upper'",
        "stage_1.variance was 'small' and is 'large'",
    ]
    assert not now.differences({"stage_1.variance": "large", "format": "upper"})


@pytest.mark.parametrize("content", [b"", b"[1]", b"\xff", b'{"a": ', b"[" * 10**5])
def test_a_damaged_fingerprint_names_file_and_remedy(tmp_path, content):
    storage.write_whole(tmp_path / resumable.MARK, content)
    with pytest.raises(ValueError, match=r"recipe\.json is damaged: .* Remove it .*--overwrite"):
        Fingerprint(VALUES).check(tmp_path)
    assert not Fingerprint(VALUES).fits(tmp_path)


@dataclasses.dataclass(frozen=True)
class Row:
    name: str
    count: int | None = None
    seconds: float = 0.0
    more: dict[str, int] = dataclasses.field(default_factory=dict)


def test_rows_come_back_as_they_were_and_damaged_ones_are_told(tmp_path):
    path = tmp_path / "rows.jsonl"
    assert resumable.read_rows(path, Row) == ([], [])
    names = [os.fsdecode(b"\xff"), "a\nb", "\u2028\x85", "", "ä"]
    rows = [Row(name, i, i / 3, {"a": i}) for i, name in enumerate(names)]
    resumable.write_rows(path, rows)
    assert resumable.read_rows(path, Row) == (rows, [])
    wrong = [
        '{"name": 3}',
        '{"name": "a", "count": true}',
        '{"name": "a", "count": 1.5}',
        '{"name": "a", "seconds": "1"}',
        '{"name": "a", "more": [1]}',
        "{}",
        "[]",
        "no JSON",
        "[" * 10**5,
    ]
    later = '{"name": "a", "count": null, "seconds": 3, "a later version\'s": 1}'
    path.write_bytes(path.read_bytes() + "\n".join([*wrong, later]).encode())
    found, damaged = resumable.read_rows(path, Row)
    assert found == [*rows, Row("a", None, 3)]
    assert len(damaged) == len(wrong) and all(f"{path} is damaged: " in said for said in damaged)


def _name(unit):
    return f"{unit:03d}"


def _make_what_is_missing(folder, begun):
    """A job of 60 units, each written in many pieces."""
    resumable.remove_partials(folder)
    missing = [unit for unit in range(60) if _name(unit) not in resumable.existing(folder)]
    begun.set()

    def write(unit):
        with storage.open_whole(folder / _name(unit)) as file:
            for _ in range(200):
                file.write(bytes([unit]) * 100)
                file.flush()

    for _ in resumable.in_threads(write, missing, ahead=8):
        pass


def test_a_job_that_is_killed_again_and_again_ends_as_one_that_was_not(tmp_path):
    """SIGKILL at random moments; what was whole stays, and nothing else is left."""
    rng, spawn, kept = random.Random(0), multiprocessing.get_context("spawn"), {}
    for kill in range(5):
        begun = spawn.Event()
        job = spawn.Process(target=_make_what_is_missing, args=(tmp_path, begun))
        job.start()
        assert begun.wait(60)
        while kill < 4 and job.is_alive() and len(resumable.existing(tmp_path)) < 10 * (kill + 1):
            time.sleep(0.001)
        if kill < 4:
            time.sleep(rng.uniform(0, 0.02))
            job.kill()
        job.join()
        for name in resumable.existing(tmp_path):
            if not storage.is_partial(name):
                assert (tmp_path / name).read_bytes() == bytes([int(name)]) * 20_000
        times = {name: os.stat(tmp_path / name).st_mtime_ns for name in os.listdir(tmp_path)}
        assert kept.items() <= times.items()
        kept = {name: time for name, time in times.items() if not storage.is_partial(name)}
    assert job.exitcode == 0
    assert sorted(os.listdir(tmp_path)) == [_name(unit) for unit in range(60)]


def _threads():
    return [thread for thread in threading.enumerate() if "ThreadPool" in thread.name]


def test_results_come_in_order_and_no_more_than_asked_for_wait():
    taken, made = [], []

    def items():
        for i in range(50):
            taken.append(i)
            yield i

    def double(i):
        time.sleep(random.Random(i).uniform(0, 0.01))
        made.append(i)
        return 2 * i

    for i, result in enumerate(resumable.in_threads(double, items(), ahead=7)):
        assert result == 2 * i and i in made
        assert len(taken) <= i + 7 + 1
    assert i == 49 and sorted(made) == taken
    assert made != taken  # in threads
    assert not _threads()


def test_what_is_read_ahead_is_bounded_in_bytes(monkeypatch):
    monkeypatch.setattr(resumable, "MOST_BYTES", 100)
    sizes, begun = [10, 60, 50, 500, 90, 10, 10, 10], []
    for i, _ in enumerate(
        resumable.in_threads(begun.append, range(8), ahead=8, num_bytes=sizes.__getitem__)
    ):
        # Those that were submitted and not yet taken; one alone may be larger.
        under_way = sizes[i : len(begun)]
        assert sum(under_way) <= 100 or len(under_way) == 1
    assert i == 7


def test_a_stage_that_writes_gives_back_what_is_done_while_others_are_computed():
    """Though more could wait: where the job is killed, what was reported is known."""
    reported = []

    def computed():
        for i in range(200):
            yield i
            time.sleep(0.001)
        assert len(reported) > 100

    for i in resumable.in_threads(lambda i: i, computed(), ahead=1000, eager=True):
        reported.append(i)
    assert reported == list(range(200))


@pytest.mark.parametrize("stage", ["read", "compute", "write", "taken"])
def test_an_error_at_any_stage_ends_all_of_them_and_nothing_under_way_is_lost(stage):
    read, begun, written = [], [], []

    def fail(at, i):
        if stage == at and i == 20:
            raise OSError(f"{at} {i}")

    def reading(i):
        read.append(i)
        fail("read", i)
        return i

    def compute(inputs):
        for i in inputs:
            fail("compute", i)
            yield i

    def write(i):
        begun.append(i)
        time.sleep(0.002)
        fail("write", i)
        written.append(i)
        return i

    computed = compute(resumable.in_threads(reading, range(1000), ahead=5))
    taken = []
    with pytest.raises(OSError, match=f"{stage} 20"):
        for i in resumable.in_threads(write, computed, ahead=5, eager=True):
            taken.append(i)
            fail("taken", i)
    assert taken == list(range(len(taken))) and len(taken) <= 21
    del computed
    deadline = time.monotonic() + 30
    while _threads() and time.monotonic() < deadline:
        time.sleep(0.001)
    assert not _threads()
    assert len(read) < 50
    # A file that was begun was written whole, but for the one that failed.
    assert set(begun) - set(written) == ({20} if stage == "write" else set())


def test_devices_have_the_next_batch_before_the_one_before_is_fetched():
    events = []

    def begun():
        for i in range(3):
            events.append(f"begin {i}")
            yield lambda i=i: events.append(f"fetch {i}") or i

    assert list(resumable.one_behind(begun())) == [0, 1, 2]
    assert events == ["begin 0", "begin 1", "fetch 0", "begin 2", "fetch 1", "fetch 2"]
    assert not list(resumable.one_behind([]))
