"""SR3: image super-resolution via iterative refinement, in JAX and Flax.

`sr3_jax.SuperResolver` upscales images in Python, `Generator` and `Cascade` draw them from nothing;
`python -m sr3_jax.main` trains, evaluates, upscales and generates files. docs/architecture.md says
what lies where.
"""

import sys

if sys.argv[:1] == ["-m"] and "sr3_jax." in sys.orig_argv[-len(sys.argv)]:
    # `python -m sr3_jax.main` or a tool, whose imports take seconds in which Ctrl-C may come.
    from sr3_jax import command_line

    command_line.take_interrupts()

__version__ = "0.1.0"

_PLACES = {"Cascade": "cascade", "Generator": "generator", "SuperResolver": "super_resolver"}

__all__ = ["Cascade", "Generator", "SuperResolver"]


def __getattr__(name: str) -> object:
    # Late, so that `import sr3_jax.diffusion` needs nothing but jax.
    if name in _PLACES:
        import importlib

        return getattr(importlib.import_module(f"sr3_jax.inference.{_PLACES[name]}"), name)
    raise AttributeError(f"module 'sr3_jax' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
