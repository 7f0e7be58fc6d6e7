"""The floors of docs/architecture.md are those of the imports."""

import ast
import pathlib
import re
import subprocess
import sys
import textwrap

import pytest

import sr3_jax
from sr3_jax import checkpoints, jobs
from sr3_jax.jobs import training

ROOT = pathlib.Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "sr3_jax"

FLOORS = {
    "diffusion": 0,
    "image_ops": 0,
    "sizes": 0,
    "scaling": 0,
    "conformal": 0,
    "worker_processes": 0,
    "late": 0,
    "models": 1,
    "metrics": 1,
    "data": 2,
    "parallel": 2,
    "checkpoints": 3,
    "config": 3,
    "released": 3,
    "training": 4,
    "inference": 4,
    "evaluation": 4,
    "study": 4,
    "web": 4,
    "command_line": 5,
    "commands": 5,
    "jobs": 5,
    "main": 5,
    "tools": 5,
}
FILES = sorted(PACKAGE.rglob("*.py"))


def _module(path: pathlib.Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _imports(path: pathlib.Path, *, type_checking: bool = False) -> set[str]:
    """Returns the full names of the modules, or members of modules, that a file imports."""
    found = set()

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            if not type_checking:
                return
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(ast.parse(path.read_text()))
    return found


MODULES = {_module(path) for path in FILES}


def _own(names: set[str]) -> set[str]:
    """Returns the package's modules of imported names (`sr3_jax.models.UNet`: its module)."""
    own = set()
    for name in names:
        while name and name not in MODULES:
            name = name.rpartition(".")[0]
        if name and name != "sr3_jax":
            own.add(name)
    return own


def _place(module: str) -> str:
    return module.split(".")[1]


def test_every_file_has_a_floor():
    places = {_place(_module(path)) for path in FILES if path.parent != PACKAGE}
    places |= {path.stem for path in PACKAGE.glob("*.py")} - {"__init__"}
    assert places == set(FLOORS)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_down(path):
    module = _module(path)
    if module == "sr3_jax":
        return
    here = FLOORS[_place(module)]
    for other in _own(_imports(path, type_checking=True)):
        there = FLOORS[_place(other)]
        near = there == here and (here in (0, 3, 4, 5) or _place(other) == _place(module))
        allowed = there < here or near
        assert allowed, f"{module} (floor {here}) imports {other} (floor {there})"


def test_training_and_evaluation_do_not_know_each_other():
    for path in FILES:
        pair = {"training", "evaluation"}
        place = _place(_module(path)) if path.parent != PACKAGE else None
        if place == "training":
            others = {_place(other) for other in _own(_imports(path))}
            assert not others & {"evaluation", "inference"}, path
        if path.name == "loop.py":
            assert place in pair


def test_no_circles():
    """Imports for types alone count: a circle of names is one, too."""
    graph = {
        _module(path): _own(_imports(path, type_checking=True)) - {_module(path)} for path in FILES
    }
    graph.pop("sr3_jax")  # its one import happens on attribute access
    done: set[str] = set()

    def visit(module: str, trail: tuple[str, ...]) -> None:
        assert module not in trail, " -> ".join([*trail, module])
        if module in done:
            return
        for other in graph.get(module, ()):
            visit(other, (*trail, module))
        done.add(module)

    for module in graph:
        visit(module, ())


def test_tensorflow_in_its_loader_and_its_datasets_in_data():
    for path in FILES:
        roots = {name.split(".")[0] for name in _imports(path, type_checking=True)}
        own = {"tf_pipeline.py", "tf_data_source.py"}
        assert "tensorflow" not in roots or (path.parent.name == "data" and path.name in own), path
        assert "tensorflow_datasets" not in roots or path.parent == PACKAGE / "data", path


def test_diffusion_needs_only_jax():
    allowed = {"__future__", "collections", "dataclasses", "typing", "jax", "numpy", "jaxtyping"}
    for path in (PACKAGE / "diffusion").glob("*.py"):
        roots = {name.split(".")[0] for name in _imports(path)} - {"sr3_jax"}
        assert roots <= allowed, f"{path}: {roots - allowed}"
        assert {_place(m) for m in _own(_imports(path))} <= {"diffusion"}


def test_imports_without_tensorflow():
    """Imports work where TensorFlow is not installed (see main_test, too)."""
    code = """
        import sys

        class Absent:
            def find_spec(self, name, path=None, target=None):
                if name.split(".")[0] in ("tensorflow", "tensorflow_datasets"):
                    raise ModuleNotFoundError(f"No module named {name!r}", name=name)

        sys.meta_path.insert(0, Absent())
        import sr3_jax.diffusion, sr3_jax.models, sr3_jax.parallel, sr3_jax.metrics
        import sr3_jax.training.step, sr3_jax.training.state, sr3_jax.data.pipeline
        import sr3_jax.config.image_sets, sr3_jax.tools.benchmark.__main__
        from sr3_jax import Cascade, Generator, SuperResolver
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True, cwd=ROOT)


def test_upscaling_does_not_wait_for_what_training_needs():
    code = """
        import sys
        from sr3_jax.jobs import upscale

        late = {"orbax.checkpoint", "optax", "scipy.sparse.linalg", "matplotlib", "tensorflow"}
        assert not late & set(sys.modules)
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True, cwd=ROOT)


def test_a_package_says_which_name_it_lacks():
    for package in (sr3_jax, jobs, checkpoints):
        with pytest.raises(AttributeError, match=f"module '{package.__name__}' has no .* 'absent'"):
            getattr(package, "absent")  # noqa: B009
    assert jobs.train is training.train and "train" in vars(jobs)


def test_tests_that_docs_name_are_there():
    named = {
        match
        for path in (ROOT / "docs").glob("*.md")
        for match in re.findall(r"(\w+_test\.py)(?:::(test_\w*))?", path.read_text())
    }
    assert len(named) > 30
    for file, test in sorted(named):
        text = (ROOT / "tests" / file).read_text()
        assert f"def {test}(" in text or not test, f"{file} has no {test}"


def test_files_are_short():
    for path in [*FILES, *(ROOT / "configs").glob("*.py"), *(ROOT / "tests").glob("*.py")]:
        assert len(path.read_text().splitlines()) <= 400, path
