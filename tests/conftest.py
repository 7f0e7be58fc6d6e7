"""Settings of all tests: small compile cost, and several devices on one CPU."""

import importlib.metadata
import os
import pathlib
import signal

_ROOT = pathlib.Path(__file__).resolve().parent.parent

# Before jax starts: four CPU devices, so that every sharded program really is split, and compiled
# programs shared between tests and runs.
os.environ["JAX_NUM_CPU_DEVICES"] = "4"
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(_ROOT / ".jax_cache"))
_COMPILER = _ROOT / ".venv" / "tpu_compiler" / "libtpu" / "libtpu.so"  # of launch/test.sh
if _COMPILER.exists():
    os.environ.setdefault("TPU_LIBRARY_PATH", str(_COMPILER))
# Compilation is most of the time of tests, and these flags make it a third. The programs run half
# as fast.
_FLAGS = "--xla_backend_optimization_level=0 --xla_cpu_parallel_codegen_split_count=1"
# XLA ends a process that sets a flag which it does not know: this one is gone from jaxlib 0.12.
if tuple(map(int, importlib.metadata.version("jaxlib").split(".")[:2])) < (0, 12):
    _FLAGS += " --xla_cpu_use_fusion_emitters=false"
os.environ.setdefault("XLA_FLAGS", _FLAGS)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")

# A shell that runs the tests in its background has them ignore Ctrl-C, and all that they start:
# those of Ctrl-C would wait for ever.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Files that take longest, which begin first, so that no process is left alone with one at the end.
_LONGEST = (
    *("processes", "survival", "gpu_day", "upscale_job", "generation", "features", "aot_report"),
    *("generator", "installed", "training_run", "tpu_programs", "parallel_layout", "colab"),
    *("training_step", "diffusion_sampling", "models_unet", "data_training", "baselines"),
)


def pytest_collection_modifyitems(items):
    ranks = {f"{name}_test": rank for rank, name in enumerate(_LONGEST)}
    items.sort(key=lambda item: ranks.get(item.path.stem, len(ranks)))
