"""SR3: image super-resolution via iterative refinement, in JAX and Flax.

`sr3_jax.SuperResolver` upscales images in Python, `Generator` and `Cascade` draw them from nothing;
`python -m sr3_jax.main` trains, evaluates, upscales and generates files. docs/architecture.md says
what lies where.
"""

import sys

from sr3_jax import late

if sys.argv[:1] == ["-m"] and "sr3_jax." in sys.orig_argv[-len(sys.argv)]:
    # `python -m sr3_jax.main` or a tool, whose imports take seconds in which Ctrl-C may come.
    from sr3_jax import command_line

    command_line.take_interrupts()

__version__ = "0.1.0"

__all__ = ["Cascade", "Generator", "SuperResolver"]

# Late, so that `import sr3_jax.diffusion` needs nothing but jax.
__getattr__ = late.names(
    __name__,
    {
        "Cascade": "inference.cascade",
        "Generator": "inference.generator",
        "SuperResolver": "inference.super_resolver",
    },
)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
