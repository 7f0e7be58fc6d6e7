"""Reading files of torch without torch: nothing in them runs, and damage is named."""

import io
import os
import pathlib
import pickle
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import small_run

from sr3_jax.checkpoints import torch_file

RECORDED = pathlib.Path(__file__).parent / "other_programs/janspiry/sr3/I3_E1_gen.pth"


def rewritten(path, **contents):
    """A copy of a file of torch with other contents, by the end of their names; None removes."""
    made = io.BytesIO()
    with zipfile.ZipFile(RECORDED) as old, zipfile.ZipFile(made, "w") as new:
        for name in old.namelist():
            content = contents.get(name.split("/", 1)[1].replace("/", "_"), old.read(name))
            if content is not None:
                new.writestr(name, content)
    path.write_bytes(made.getvalue())
    return path


@pytest.mark.parametrize("function", [eval, getattr, np.load, torch_file.read])
def test_nothing_but_tensors_can_be_asked_for(function, tmp_path):
    trap = pickle.dumps({"a": function}, protocol=2)
    path = rewritten(tmp_path / "evil.pth", **{"data.pkl": trap})
    with pytest.raises(ValueError, match=f"asks for .*{function.__name__}, which no file"):
        torch_file.read(path)


def test_damaged_and_older_files_are_refused(tmp_path):
    for name, contents, message in (
        ("short", {"data_0": b"\0" * 8}, "reaches beyond its 2 numbers"),
        ("gone", {"data_0": None}, "no whole file"),
        ("pickle", {"data.pkl": b"\x80\x02}q"}, "no whole file"),
        ("order", {"byteorder": b"big"}, "big-endian"),
    ):
        with pytest.raises(ValueError, match=message):
            torch_file.read(rewritten(tmp_path / name, **contents))
    (tmp_path / "cut").write_bytes(RECORDED.read_bytes()[:5000])
    with pytest.raises(ValueError, match="no whole file"):
        torch_file.read(tmp_path / "cut")
    (tmp_path / "old").write_bytes(pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2))
    with pytest.raises(ValueError, match=r"before 1\.6.*torch\.save\(torch\.load"):
        torch_file.read(tmp_path / "old")
    with pytest.raises(FileNotFoundError):
        torch_file.read(tmp_path / "nowhere")


def test_values_that_are_shared_are_read_once(tmp_path):
    """A list of two references to one list, thirty times, stands for 2^30 lists."""
    nested = []
    for _ in range(30):
        nested = [nested, nested]
    path = rewritten(tmp_path / "nested.pth", **{"data.pkl": pickle.dumps(nested, protocol=2)})
    found = torch_file.read(path)
    assert found[0] is found[1] and found[0][0] is found[1][1]


def test_tensors_of_every_kind_are_torchs(tmp_path):
    code = """
        import sys, numpy as np, torch
        base = torch.arange(24.0).reshape(2, 3, 4)
        tensors = {
            "plain": base, "turned": base.permute(2, 0, 1), "part": base[1, :, 1:3],
            "half": base.half(), "narrow": base.bfloat16() / 3, "whole": base.long(),
            "number": torch.tensor(2.5), "none": torch.zeros(0, 3), "no": base > 3,
            "parameter": torch.nn.Parameter(base[0]),
        }
        torch.save(tensors, sys.argv[1])
        np.savez(sys.argv[2], **{name: t.detach().float().numpy() for name, t in tensors.items()})
    """
    file, arrays = tmp_path / "all.pth", tmp_path / "all.npz"
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(line[8:] for line in code.splitlines()), file, arrays],
        env={**os.environ, "PYTHONPATH": str(small_run.ROOT / ".venv" / "cuda")},
        capture_output=True,
        text=True,
    )
    if "No module named 'torch'" in done.stderr:
        pytest.skip("torch is not installed; launch/test.sh does it where it can")
    assert done.returncode == 0, done.stderr
    found, expected = torch_file.read(file), np.load(arrays)
    assert sorted(found) == sorted(expected.files)
    for name in expected.files:
        assert found[name].shape == expected[name].shape
        np.testing.assert_array_equal(found[name].astype(np.float32), expected[name])


def test_a_type_of_numbers_that_is_not_read_is_named(tmp_path):
    kind = pickle.dumps({"a": 1}, protocol=2)[:2] + b"ctorch\nComplexFloatStorage\n."
    path = rewritten(tmp_path / "complex.pth", **{"data.pkl": kind})
    with pytest.raises(ValueError, match="numbers of the type torch.ComplexFloatStorage; those"):
        torch_file.read(path)
