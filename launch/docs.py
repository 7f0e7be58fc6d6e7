"""Makes the documentation as a site: the README, docs/, and a reference of the package.

    python -m launch.docs FOLDER

FOLDER/index.html is the README. FOLDER/sr3_jax.html is the reference, made from the docstrings.
Links to other files of the repository lead to copies of them.
"""

import html
import pathlib
import pkgutil
import posixpath
import re
import shutil
import sys
import types
import typing
from collections.abc import Callable
from typing import Any

typing.GENERATING_DOCUMENTATION = "sr3_jax"  # jaxtyping then prints Float[Array, "b ..."]

import jinja2  # noqa: E402
import pdoc.doc  # noqa: E402
import pdoc.doc_types  # noqa: E402
import pdoc.render  # noqa: E402
import pdoc.render_helpers  # noqa: E402
from flax import linen as nn  # noqa: E402

import sr3_jax  # noqa: E402

_ROOT = pathlib.Path(__file__).parents[1]
_PAGES = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", *sorted(
    path.relative_to(_ROOT).as_posix() for path in (_ROOT / "docs").glob("*.md")
))  # fmt: skip
# The programs; their flags are told by --help.
_NOT_IN_THE_REFERENCE = ("command_line", "commands", "jobs", "main", "tools", "worker_processes")
_FIELDS_OF_EVERY_MODULE = {"parent", "name", "scope", "__init__"}  # Flax's
_TEMPLATES = {
    "page.html.jinja2": """
{% extends "frame.html.jinja2" %}
{% block title %}{{ title }}{% endblock %}
{% block nav %}
<h2><a href="{{ top }}index.html">sr3_jax</a></h2>
<ul>
{% for address, name in pages %}<li><a href="{{ top }}{{ address }}">{{ name }}</a></li>{% endfor %}
<li><a href="{{ top }}sr3_jax.html">Reference</a></li>
</ul>
{% if contents %}<h2>On this page</h2>{{ contents | safe }}{% endif %}
{% endblock %}
{% block content %}<main class="pdoc"><div class="docstring">{{ text | safe }}</div></main>
{% endblock %}
""",
    "module.html.jinja2": """
{% extends "default/module.html.jinja2" %}
{% block nav_title %}
<p><a href="{{ "../" * module.modulename.count(".") }}index.html">All pages</a></p>
{% endblock %}
{% block nav_submodules %}
{% set depth = module.modulename.count(".") + 1 %}
<ul class="memberlist">
{% for name in all_modules
   if name.startswith(module.modulename + ".") and name.count(".") == depth %}
<li><a href="{{ module.name }}/{{ name.split(".")[-1] }}.html">{{ name.split(".")[-1] }}</a></li>
{% endfor %}
</ul>
{% endblock %}
""",
    "custom.css": """
.pdoc .docstring img { max-width: 100%; }
.pdoc .docstring table { display: block; overflow-x: auto; max-width: 100%; }
.pdoc .docstring td code { white-space: normal; overflow-wrap: anywhere; }
.pdoc .docstring pre { overflow-x: auto; font-size: 85%; }
@media (min-width: 770px) { main { width: calc(66rem + var(--sidebar-width)); } }
""",
}


class _AsWritten(str):
    """An annotation that is shown as it stands in the source."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


def _as_written(annotation: Any, names: dict[str, Any], *_: Any) -> Any:
    """Returns an annotation as written; this package's classes by full names, which are linked."""
    if not isinstance(annotation, str):
        return annotation

    def in_full(match: re.Match[str]) -> str:
        module, _, name = match[0].rpartition(".")
        found = names.get(module or name)
        if isinstance(found, types.ModuleType):
            return f"{found.__name__}.{name}"
        is_ours = isinstance(found, type) and found.__module__.startswith("sr3_jax.")
        return f"{found.__module__}.{name}" if is_ours else match[0]

    return _AsWritten(re.sub(r"""(?<!["'.\w])(\w+\.)?[A-Z]\w*""", in_full, annotation))


def _modules() -> dict[str, pdoc.doc.Module]:
    """Returns the modules of the reference, without what says nothing of its own."""
    pdoc.doc.safe_eval_type = pdoc.doc_types.safe_eval_type = _as_written
    for name in sr3_jax.__all__:  # it imports them only where they are asked for
        setattr(sr3_jax, name, getattr(sr3_jax, name))
    found = [module.name for module in pkgutil.walk_packages(sr3_jax.__path__, "sr3_jax.")]
    names = [name for name in found if name.split(".")[1] not in _NOT_IN_THE_REFERENCE]
    modules = {name: pdoc.doc.Module.from_name(name) for name in ("sr3_jax", *names)}
    for module in modules.values():
        for item in module.members.values():
            if not isinstance(item, pdoc.doc.Class):
                continue
            hidden = {
                name
                for name, member in item.members.items()
                # Fields, which their class describes, and what Python's own classes bring.
                if (isinstance(member, pdoc.doc.Variable) and not member.docstring)
                or member.taken_from[0] not in modules
            }
            if issubclass(item.obj, nn.Module):
                hidden |= _FIELDS_OF_EVERY_MODULE
            for name in hidden & set(item.members):
                del item.members[name]
    return modules


def _page(name: str) -> str:
    """Returns where the site has a page: docs/data.md at docs/data.html."""
    return "index.html" if name == "README.md" else name.removesuffix(".md") + ".html"


def _with_links(text: str, page: str, copy: Callable[[str], None]) -> str:
    """Returns a page's HTML with links to pages of the site, and to copies of other files."""
    folder = posixpath.dirname(page)

    def lead(match: re.Match[str]) -> str:
        path, hash_sign, anchor = html.unescape(match[2]).partition("#")
        if not path or ":" in path:  # of this page, or of another site
            return match[0]
        name = posixpath.normpath(posixpath.join(folder, path))
        if name in _PAGES:
            path = posixpath.relpath(_page(name), folder or ".")
        elif (_ROOT / name).is_file():
            copy(name)
        else:  # a folder
            return ""
        return f'{match[1]}="{path}{hash_sign}{anchor}"'

    return re.sub(r'\b(href|src)="([^"]*)"', lead, text)


def make(folder: pathlib.Path) -> None:
    """Writes the site into `folder`."""
    pdoc.render.configure(docformat="google", show_source=False)
    environment = pdoc.render.env
    environment.loader = jinja2.ChoiceLoader([jinja2.DictLoader(_TEMPLATES), environment.loader])

    def write(name: str, text: str) -> None:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")

    def copy(name: str) -> None:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(_ROOT / name, path)

    modules = _modules()
    for name, module in modules.items():
        write(f"{name.replace('.', '/')}.html", pdoc.render.html_module(module, modules))
    write("search.js", pdoc.render.search_index(modules))
    texts = {name: (_ROOT / name).read_text(encoding="utf-8") for name in _PAGES}
    titles = {name: re.search(r"^# (.+)", text, re.M)[1] for name, text in texts.items()}
    for name, text in texts.items():
        made = pdoc.render_helpers.to_html(text)
        page = types.SimpleNamespace(
            title=titles[name],
            top="../" * name.count("/"),
            pages=[(_page(other), title) for other, title in titles.items()],
            contents=made.toc_html,
            text=_with_links(made, name, copy),
        )
        write(_page(name), environment.get_template("page.html.jinja2").render(vars(page)))


if __name__ == "__main__":
    make(pathlib.Path(sys.argv[1]))
