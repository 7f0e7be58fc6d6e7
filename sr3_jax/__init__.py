"""SR3: image super-resolution via iterative refinement, in JAX and Flax.

`sr3_jax.SuperResolver` upscales images in Python; `python -m sr3_jax.main` trains, evaluates and
upscales files. docs/architecture.md says what lies where.
"""

__version__ = "0.1.0"

__all__ = ["SuperResolver"]


def __getattr__(name: str) -> object:
    # Late, so that `import sr3_jax.diffusion` needs nothing but jax.
    if name == "SuperResolver":
        from sr3_jax.inference.super_resolver import SuperResolver

        return SuperResolver
    raise AttributeError(f"module 'sr3_jax' has no attribute {name!r}")
