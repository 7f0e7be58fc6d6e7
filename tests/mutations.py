"""Mutations of files, and what a reader may do with them; for `fuzz_test`."""

import io
import json
import random
import resource
import signal
from collections.abc import Callable

import numpy as np
import pytest
from absl import logging

MUTATIONS = 400  # of each file
_ROOM = 1 << 30  # bytes that a reader may take beyond what the process has
_MOST_SECONDS = 20  # for one mutation, which takes some milliseconds
NUMBERS = (0, 1, -1, 255, 2**31 - 1, -(2**31), 2**32 - 1, 2**62, 2**63 - 1, -(2**63))


@pytest.fixture(autouse=True)
def bounds():
    """Ends what takes gigabytes with MemoryError and what hangs with TimeoutError."""
    logging.set_verbosity(logging.FATAL)
    before = resource.getrlimit(resource.RLIMIT_AS)
    with open("/proc/self/statm") as file:
        size = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + _ROOM, before[1]))

    def too_long(*_):
        raise TimeoutError

    handler = signal.signal(signal.SIGALRM, too_long)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, handler)
    resource.setrlimit(resource.RLIMIT_AS, before)
    logging.set_verbosity(logging.WARNING)


def mutated(data: bytes, rng: random.Random) -> bytes:
    """One to three random changes."""
    made = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 3))):
        i, j = sorted(rng.randrange(len(made) + 1) for _ in "ij")
        j = min(j, i + rng.choice((1, 4, 64, len(made))))
        part = made[i:j]
        match rng.randrange(7):
            case 0 if i < len(made):
                made[i] ^= 1 << rng.randrange(8)
            case 1:
                del made[i:]
            case 2:
                del made[i:j]
            case 3:
                made[i:i] = rng.randbytes(rng.choice((1, 4, 100)))
            case 4:
                made[i:i] = part
            case 5:
                made[i:j] = bytes([rng.choice((0, 255))]) * len(part)
            case _:
                k = rng.randrange(len(made) + 1)
                made[i:j], made[k : k + len(part)] = made[k : k + len(part)], part
    return bytes(made)


def mutated_json(tree, rng: random.Random):
    """The same with one value, anywhere in it, that is another one, or away."""
    tree = json.loads(json.dumps(tree))
    places = []

    def visit(node):
        for key in list(node) if isinstance(node, dict) else range(len(node)):
            places.append((node, key))
            if isinstance(node[key], dict | list):
                visit(node[key])

    visit(tree)
    node, key = rng.choice(places)
    if rng.random() < 0.2:
        del node[key]
    else:
        others = (None, True, -1, 0, 10**30, 0.5, float("nan"), "", "../x", "/x", [], {}, [[1]])
        node[key] = rng.choice(others)
    return tree


def mutated_arrays(arrays: dict, rng: random.Random) -> bytes:
    """An .npz file, whole, of arrays of which one is not as it was."""
    arrays = dict(arrays)
    key = rng.choice(list(arrays))
    array = np.array(arrays[key])
    match rng.randrange(6):
        case 0:
            del arrays[key]
        case 1:
            arrays[key] = array.astype(rng.choice((np.float64, np.uint16, np.bool_, "U3")))
        case 2:
            arrays[key] = rng.choice((array[:-1], array[None], np.resize(array, len(array) + 3)))
        case _:
            least, most = np.iinfo(array.dtype).min, np.iinfo(array.dtype).max
            value = rng.choice((*NUMBERS, ord("/"), ord(".")))
            array[rng.randrange(len(array)) :][: rng.choice((1, 2, 9))] = min(
                max(value, least), most
            )
            arrays[key] = array
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


def fuzz(
    make: Callable[[random.Random], bytes], read: Callable[[bytes], object], *allowed: type
) -> None:
    """Reads mutation after mutation; `read` asserts that what it returns is valid."""
    outcomes = set()
    for seed in range(MUTATIONS):
        data = make(random.Random(seed))
        signal.alarm(_MOST_SECONDS)
        try:
            read(data)
            outcomes.add("read")
        except allowed as error:
            assert str(error), f"seed {seed}"
            outcomes.add("refused")
        except Exception as error:
            raise AssertionError(f"seed {seed}: {type(error).__name__}: {error}") from error
        signal.alarm(0)
    # Both happen, or the mutations are of no use.
    assert "refused" in outcomes
