"""Package metadata: version ranges here, the exact tested set in requirements.txt."""

import pathlib
import re

import setuptools

_ROOT = pathlib.Path(__file__).parent
_VERSION = re.search(
    r'__version__ = "(.+)"', (_ROOT / "sr3_jax" / "__init__.py").read_text(encoding="utf-8")
).group(1)

_TENSORFLOW = [
    "tensorflow-cpu>=2.20; platform_system == 'Linux' and platform_machine == 'x86_64'"
    " and python_version < '3.14'",
    "tensorflow>=2.20; (platform_system != 'Linux' or platform_machine != 'x86_64')"
    " and python_version < '3.14'",
]

# What training writes for TensorBoard, and data sets of TFDS. TFDS brings pyarrow: 165 MB.
_TRAIN = [
    # TFDS 4.9.10 needs it to prepare a data set, and does not say so.
    "importlib_resources>=6.0",
    "tensorboard>=2.20",
    "tensorflow-datasets>=4.9.8",  # reads without TensorFlow
]

_TEST = ["beartype>=0.21", "pytest>=8.0", "pytest-xdist>=3.6"]

# Pages for a browser.
_WEB = [
    "choix>=0.4",  # scores of Bradley and Terry
    "pandas>=2.2",
    "pyarrow>=18",
    "starlette>=1.0,<2",
    "uvicorn>=0.40",
]

# Files of arrays: NetCDF, Zarr, HDF5, NIfTI and DICOM.
_ARRAYS = [
    "h5netcdf>=1.6",
    "h5py>=3.13; python_version < '3.14'",
    "h5py>=3.15; python_version >= '3.14'",  # the first with wheels for it
    "nibabel>=5.3",
    "pydicom>=3.0",
    "xarray>=2025.1",
    "zarr>=3.0",
]

setuptools.setup(
    name="sr3_jax",
    version=_VERSION,
    description="SR3, image super-resolution via iterative refinement, in JAX and Flax",
    long_description=(_ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11,<3.15",
    entry_points={"console_scripts": ["sr3 = sr3_jax.main:command"]},
    # Benchmarks compare with what only a clone has.
    packages=[
        *setuptools.find_packages(
            include=["sr3_jax", "sr3_jax.*"], exclude=["sr3_jax.tools.benchmark"]
        ),
        "sr3_jax.configs",
    ],
    package_dir={"sr3_jax.configs": "configs"},
    package_data={
        "sr3_jax.evaluation.report": ["templates/*"],
        "sr3_jax.released": ["*/*"],
        "sr3_jax.web": ["pages/*", "pages/*/*"],
    },
    install_requires=[
        "absl-py>=2.1",
        "etils[epath]>=1.12",
        "flatbuffers>=24.3",  # of jax.export, which does not say so
        "flax>=0.12,<0.14",
        "gcsfs>=2025.3",  # for gs:// paths of images
        "google-crc32c>=1.5",
        "grain>=0.2.14",
        "jax>=0.10,<0.13",
        "jinja2>=3.1",
        "jaxtyping>=0.3",
        "matplotlib>=3.9",
        "ml_collections>=1.0",
        "numpy>=2.0",
        "optax>=0.2.6",
        "optuna>=5.0",  # proposes inference schedules
        "orbax-checkpoint>=0.11.30",
        "pillow>=11.3",  # the first with AVIF
        "pillow-heif>=1.1",  # HEIC
        "pyvips>=3.0,<4",  # TIFF, WebP, and 16-bit pictures, which Pillow cannot do
        "pyvips-binary>=8.16",
        "safetensors>=0.6",
        "scikit-image>=0.25",
        "scipy>=1.15",
        "tifffile>=2025.1",
        "tqdm>=4.66",
    ],
    extras_require={
        "tpu": ["jax[tpu]"],
        # By the driver that `nvidia-smi` shows: 525 or newer, and 580 or newer (docs/gpu.md).
        "cuda12": ["jax[cuda12]"],
        "cuda13": ["jax[cuda13]"],
        # TFDS needs TensorFlow to prepare a data set, not to read it. The CPU build is a third of
        # the size and cannot take an accelerator's memory away from JAX. Python 3.14 has none.
        "tfds": [*_TRAIN, *_TENSORFLOW],
        "train": _TRAIN,
        # FID, Inception score and LPIPS bring torch: several GB.
        "eval": ["keras>=3", "torch-fidelity>=0.4,<0.5", "torchvision"],
        "hub": ["huggingface_hub>=1.0"],  # hf:// addresses
        "arrays": _ARRAYS,
        "web": _WEB,
        # --engine=ray. Options that a job needs change in 2.64.
        "ray": ["ray>=2.60,<2.64"],
        "test": [*_TEST, *_TRAIN],  # enough for the quick tests (launch/test.sh)
        "dev": [
            *_TEST,
            *_TRAIN,
            *_ARRAYS,
            *_WEB,
            "gcp-storage-emulator>=2024.8",
            "huggingface_hub>=1.0",
            "pdoc>=16.0",  # launch/docs.sh
            "rasterio>=1.4",  # writes GeoTIFF for tests
            "ray>=2.60,<2.64",
            "ruff>=0.14",
            "scoringrules>=0.8",  # its CRPS, for tests
            *_TENSORFLOW,
        ],
    },
)
