"""The notebooks run from top to bottom, on a CPU, with a smaller network."""

import os
import shutil
import sys

import pytest
import small_run
from etils import epath

nbformat = pytest.importorskip("nbformat", reason="nbclient is not installed (launch/test.sh does)")
nbclient = pytest.importorskip("nbclient", reason="nbclient is not installed (launch/test.sh does)")
pytest.importorskip("ipykernel", reason="ipykernel is not installed (launch/test.sh does)")


def notebook():
    return nbformat.read(small_run.ROOT / "launch" / "colab.ipynb", as_version=4)


def parameters(found):
    (cell,) = [c for c in found.cells if "parameters" in c.metadata.get("tags", ())]
    return cell


def test_the_notebook_is_valid_and_committed_without_results():
    found = notebook()
    nbformat.validate(found)
    assert all(not cell.outputs for cell in found.cells if cell.cell_type == "code")
    assert found.metadata.accelerator == "TPU"


def test_it_trains_shows_and_upscales(tmp_path, monkeypatch):
    code = tmp_path / "sr3_jax"  # as if cloned; what is tested is the working tree
    for name in ("sr3_jax", "configs"):
        skipped = shutil.ignore_patterns("__pycache__")
        shutil.copytree(small_run.ROOT / name, code / name, ignore=skipped)
    shutil.copy(small_run.ROOT / "requirements.txt", code)
    found = notebook()
    cell = parameters(found)
    cell.source = cell.source.replace('REPOSITORY = ""', 'REPOSITORY = "here"')
    flags = " ".join(small_run.flags()[1:])
    cell.source = cell.source.replace('TRAINING_FLAGS = ""', f'TRAINING_FLAGS = "{flags}"')
    assert "here" in cell.source and flags in cell.source
    monkeypatch.setenv("PATH", f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}")
    client = nbclient.NotebookClient(
        found, timeout=900, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    )
    client.execute()
    pictures = [
        output
        for cell in found.cells
        for output in cell.get("outputs", ())
        if "image/png" in output.get("data", {})
    ]
    # Samples, refinement, the input and what became of it.
    assert len(pictures) == 4
    printed = "".join(
        output.get("text", "") for cell in found.cells for output in cell.get("outputs", ())
    )
    assert "| sr3 |" in printed and "1 of 1 images are in" in printed


def test_the_notebook_of_upscaling(tmp_path, monkeypatch):
    """Every section shows or prints something; committed without results."""
    found = nbformat.read(small_run.ROOT / "launch" / "upscale.ipynb", as_version=4)
    nbformat.validate(found)
    assert all(not cell.outputs for cell in found.cells if cell.cell_type == "code")
    small_run.write_workdir(epath.Path(tmp_path))
    monkeypatch.setenv("WORKDIR", str(tmp_path))
    monkeypatch.setenv("SIDE", "12")
    resources = {"metadata": {"path": str(small_run.ROOT)}}
    nbclient.NotebookClient(
        found, timeout=600, kernel_name="python3", resources=resources
    ).execute()
    code = [cell for cell in found.cells if cell.cell_type == "code"]
    assert all(cell.outputs for cell in code[1:])
    shown = [o.data for cell in code for o in cell.outputs if "data" in o]
    assert len([data for data in shown if "image/png" in data or "image/gif" in data]) >= 4


def test_without_a_repository_it_says_so(tmp_path):
    found = notebook()
    found.cells = [parameters(found)]
    client = nbclient.NotebookClient(
        found, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    )
    with pytest.raises(nbclient.exceptions.CellExecutionError, match="REPOSITORY is empty"):
        client.execute()
