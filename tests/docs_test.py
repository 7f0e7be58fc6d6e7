"""The pages and the reference: what they mention exists, and every link leads somewhere."""

import ast
import dataclasses
import functools
import html
import os
import pathlib
import re
import shlex
import subprocess
import sys

import pytest
import small_run
from absl import flags

import sr3_jax
from sr3_jax import commands
from sr3_jax import config as configs
from sr3_jax.commands import shared
from sr3_jax.config import locating

_ROOT = small_run.ROOT
_PAGES = {
    path.relative_to(_ROOT).as_posix(): path.read_text(encoding="utf-8")
    for path in (*_ROOT.glob("*.md"), *sorted((_ROOT / "docs").glob("*.md")))
}
_SOURCES = [
    *sorted((_ROOT / "sr3_jax").rglob("*.py")),
    *sorted((_ROOT / "configs").rglob("*.py")),
    *(path for path in sorted((_ROOT / "launch").iterdir()) if path.is_file()),
]
# Other packages, of which docstrings speak without importing them where they stand.
_PACKAGES = (
    "absl",
    "diffusers",
    "jax",
    "json",
    "keras",
    "np",
    "orbax",
    "pillow_heif",
    "ray",
    "skimage",
    "torch",
)
# Written by a job or found on another machine, and so not in the repository.
_ELSEWHERE = ("configs/NAME.py", "tests/FILE", "docs/images/")


_TREES = {
    ".".join(path.relative_to(_ROOT).with_suffix("").parts).removesuffix(".__init__"): ast.parse(
        path.read_text(encoding="utf-8")
    )
    for path in sorted((_ROOT / "sr3_jax").rglob("*.py"))
}


def _code(page: str) -> list[str]:
    """Returns the commands and the inline code of a page, continued lines joined."""
    fenced = r"(?ms)^```\w*\n(.*?)^```"
    blocks = re.findall(fenced, page)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    return lines + re.findall(r"(?<!`)`([^`]+)`(?!`)", re.sub(fenced, "", page))


def _words(line: str) -> list[str]:
    try:
        return shlex.split(line, comments=True)
    except ValueError:  # no command: an apostrophe
        return line.split()


def _anchors(page: str) -> set[str]:
    """Returns the anchors that GitHub makes of a page's headings."""
    headings = re.findall(r"(?m)^#+ (.+)$", re.sub(r"(?ms)^```.*?^```", "", page))
    plain = [re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings]
    return {heading.replace(" ", "-") for heading in plain}


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    pytest.importorskip("pdoc", reason="pdoc is not installed (requirements.txt has it)")
    folder = tmp_path_factory.mktemp("site")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    made = subprocess.run(
        [sys.executable, "-m", "launch.docs", folder],
        cwd=_ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert made.returncode == 0 and "Warning" not in made.stderr, made.stderr
    return folder


def test_every_link_of_the_site_leads_somewhere(site):
    pages = {path: path.read_text(encoding="utf-8") for path in site.rglob("*.html")}
    assert {f"{name.removesuffix('.md')}.html" for name in _PAGES} - {"README.html"} <= {
        path.relative_to(site).as_posix() for path in pages
    }
    anchors = {path: set(re.findall(r'\bid="([^"]+)"', text)) for path, text in pages.items()}
    broken = []
    for path, text in pages.items():
        text = re.sub(r"(?s)<script.*?</script>", "", text)
        for target in map(html.unescape, re.findall(r'\b(?:href|src)="([^"]*)"', text)):
            file, _, anchor = target.partition("#")
            to = pathlib.Path(os.path.normpath(path.parent / file)) if file else path
            if re.match("[a-z]+:", target):
                continue
            if not to.is_file() or (anchor and to in anchors and anchor not in anchors[to]):
                broken.append(f"{path.relative_to(site)}: {target}")
    assert not broken, "\n".join(broken)


def test_the_reference_shows_annotations_as_they_are_written(site):
    sampling = (site / "sr3_jax/diffusion/sampling.html").read_text(encoding="utf-8")
    signature = re.search(r'(?s)<section id="sample">(.*?)headerlink', sampling)[1]
    shown = html.unescape(re.sub("<[^>]+>", "", signature))
    assert "keys: Key[Array, ' b']" in shown and "denoise: Denoise" in shown
    assert 'href="../diffusion.html#Sampler"' in signature


def _docstrings(tree: ast.Module):
    """Yields each docstring of a module, with the names of the arguments that it may speak of."""
    arguments = {}
    for node in ast.walk(tree):
        names = arguments.get(node, {"self", "section"})  # as in `section.key`
        if isinstance(node, ast.FunctionDef):
            names = names | {
                found.arg for found in ast.walk(node.args) if isinstance(found, ast.arg)
            }
        elif isinstance(node, ast.ClassDef):
            names = names | _members(node)
        for child in ast.iter_child_nodes(node):
            arguments[child] = names
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            if text := ast.get_docstring(node):
                yield text, names


def _members(node: ast.AST) -> set[str]:
    """Returns the names that a class or a statement defines, and those that are set on self."""
    found = {item.name for item in ast.walk(node) if isinstance(item, ast.FunctionDef)}
    for item in ast.walk(node):
        if isinstance(item, ast.Name | ast.Attribute) and isinstance(item.ctx, ast.Store):
            found.add(item.id if isinstance(item, ast.Name) else item.attr)
    return found


@functools.cache
def _names(module: str) -> dict[str, ast.AST | str | None]:
    """Returns what a module defines: its classes, imports as full names, None for the rest."""
    found = {}
    for node in ast.walk(_TREES[module]):
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                found[alias.asname or alias.name] = f"{node.module}.{alias.name}"
        elif isinstance(node, ast.Import):
            for alias in node.names:
                found[alias.asname or alias.name.split(".")[0]] = alias.name
    for node in _TREES[module].body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            found[node.name] = node
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            found |= dict.fromkeys(_members(node))
    return found


def _resolves(name: str) -> bool:
    """Returns whether a full name, from sr3_jax on, is of a module, or of something within one."""
    parts = name.split(".")
    depth = max((n for n in range(len(parts) + 1) if ".".join(parts[:n]) in _TREES), default=0)
    module, rest = ".".join(parts[:depth]), parts[depth:]
    if not depth:
        return parts[0] != "sr3_jax"  # another package's
    if not rest:
        return True
    if rest[0] == "__version__" or (module == "sr3_jax" and rest[0] in sr3_jax.__all__):
        return True
    if rest[0] not in _names(module):
        return False
    found = _names(module)[rest[0]]
    if isinstance(found, str):
        return _resolves(".".join([found, *rest[1:]]))
    if isinstance(found, ast.ClassDef) and rest[1:]:
        return rest[1] in _members(found) or bool(found.bases)
    return True


def _is_option(name: str) -> bool:
    """Returns whether a name such as `train.batch_size` is a section or an option of a config."""
    section = configs.Config
    for key in name.removeprefix("config.").split("."):
        if key not in {field.name for field in dataclasses.fields(section)}:
            return False
        section = configs.SECTIONS.get(key, section)
    return True


def test_names_in_docstrings_exist():
    """`a.b` is an object, an option, or an attribute of an argument."""
    broken = []
    for module, tree in _TREES.items():
        for text, arguments in _docstrings(tree):
            for name in re.findall(r"(?<![`\w])`([A-Za-z_]\w*(?:\.\w+)+)(?:\(.*?\))?`(?!`)", text):
                first = name.split(".")[0]
                # Modules and classes go by their own name, wherever they are.
                holders = [module, *(other for other in _TREES if f"{other}.{first}" in _TREES or (
                    isinstance(_names(other).get(first), ast.ClassDef)))]  # fmt: skip
                is_file = re.search(r"\.(gif|h5|html|jpg|json|jsonl|md|npz|png|tif|txt)$", name)
                if first in arguments or is_file or _is_option(name):
                    continue
                if first == "sr3_jax":
                    found = _resolves(name)
                elif any(_resolves(f"{holder}.{first}") for holder in holders):
                    found = any(_resolves(f"{holder}.{name}") for holder in holders)
                else:
                    found = first in _PACKAGES
                if not found:
                    broken.append(f"{module}: {name}")
    assert not broken, "\n".join(broken)


@pytest.mark.parametrize("name", _PAGES)
def test_relative_links_of_pages_lead_somewhere(name):
    broken = []
    for target in re.findall(r"\]\(([^()\s]+)\)", _PAGES[name]):
        path, _, anchor = target.partition("#")
        if re.match("[a-z]+:", target):
            continue
        to = os.path.normpath(os.path.join(os.path.dirname(name), path)) if path else name
        if not (_ROOT / to).exists() or (anchor and anchor not in _anchors(_PAGES[to])):
            broken.append(target)
    assert not broken, "\n".join(broken)


@pytest.mark.parametrize("name", _PAGES)
def test_what_a_page_mentions_exists(name):
    """Checks programs, commands, flags, configs, options, extras, files and tests."""
    page, missing = _PAGES[name], []
    for module in re.findall(r"python -m ((?:sr3_jax|launch)[\w.]*\w)", page):
        path = _ROOT / module.replace(".", "/")
        if not (path.with_suffix(".py").is_file() or (path / "__main__.py").is_file()):
            missing.append(f"python -m {module}")
    for file in re.findall(r"(?<![\w/.])(?:configs|docs|launch|sr3_jax|tests)/[\w/.]+\.\w+", page):
        if not (_ROOT / file).exists() and not file.startswith(_ELSEWHERE):
            missing.append(file)
    for file, test in re.findall(r"(\w+_test\.py)(?:::(\w+))?", page):
        path = _ROOT / "tests" / file
        if not path.is_file() or (test and f"def {test}(" not in path.read_text(encoding="utf-8")):
            missing.append(f"{file}::{test}")
    for line in _code(page):
        missing += _missing_of_command(_words(line))
    extras = re.findall(r"pip install [^`\n]*?'(?:\.|sr3_jax)\[([\w,]+)\]'", page)
    setup = (_ROOT / "setup.py").read_text(encoding="utf-8")
    missing += [name for name in ",".join(extras).split(",") if name and f'"{name}": ' not in setup]
    sections = "|".join(configs.SECTIONS)
    for key in re.findall(rf"`((?:config\.)?(?:{sections})\.\w+)[=`]", page):
        if not (
            _is_option(key) or _resolves(f"sr3_jax.{key}") or key.endswith((".KEY", ".py", ".json"))
        ):
            missing.append(key)
    assert not missing, "\n".join(missing)


def _missing_of_command(words: list[str]) -> list[str]:
    missing = []
    known = None
    if "sr3" in map(os.path.basename, words[:3]):
        first = [os.path.basename(word) for word in words].index("sr3") + 1
        command = words[first : first + 1]
        if command == ["study"]:  # of two words; `new|serve|report` stands for all
            command = ["study_" + word for word in (words[first + 1 :] or ["new"])[0].split("|")]
        if command and command[0] in commands.NAMES:
            known = flags.FlagValues()
            commands.module(command[0]).define_flags(known)
            shared.define_processes(known)
        elif command and re.fullmatch("[a-z_]+", command[0]):
            missing.append(f"sr3 {command[0]}")
    for word in words:
        flag, _, value = word.strip("[]").removeprefix("--").partition("=")
        if not word.strip("[]").startswith("--"):
            continue
        if flag == "config" and not re.fullmatch(r"(configs/)?[A-Z]*(\.py)?(:\w+)?", value):
            missing += _missing_of_config(value)
        elif flag.startswith("config."):
            key = re.sub(r"^stage_\d\.", "", flag.removeprefix("config."))
            is_placeholder = re.search("[A-Z*]", key) or key.endswith(".")
            if not (is_placeholder or _is_option(key) or key == "workdir"):
                missing.append(word)
        elif known is not None and flag not in known and flag not in ("help", "verbosity"):
            missing.append(f"{word} of {words[:2]}")
    return missing


def _missing_of_config(value: str) -> list[str]:
    name, _, variant = value.partition(":")
    try:
        module = locating.load(name)
        module.get_config(*([variant] if variant else []))
    except (FileNotFoundError, TypeError, ValueError) as error:
        return [f"--config={value}: {error}"]
    return []


@pytest.mark.parametrize("name", _PAGES)
def test_programs_in_pages_import_what_exists(name):
    for block in re.findall(r"(?ms)^```python\n(.*?)^```", _PAGES[name]):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom):
                for alias in node.names:
                    assert _resolves(f"{node.module}.{alias.name}")


def test_pages_and_headings_that_the_code_mentions_exist():
    missing = []
    for path in _SOURCES:
        if path.suffix in (".py", ".sh", ".yaml", ".ipynb", ".flags"):
            for page in re.findall(r"docs/\w+\.md", path.read_text(encoding="utf-8")):
                if page not in _PAGES:
                    missing.append(f"{path.relative_to(_ROOT)}: {page}")
    assert not missing, "\n".join(missing)


def test_the_repository_has_one_address():
    found = set()
    for path in (*(_ROOT / name for name in _PAGES), *_SOURCES, _ROOT / "CITATION.cff"):
        if path.suffix not in (".jpg", ".png"):
            found |= set(
                re.findall(r"https?://[\w.-]+/[\w.-]+/sr3_jax\b", path.read_text(encoding="utf-8"))
            )
    assert len(found) <= 1
