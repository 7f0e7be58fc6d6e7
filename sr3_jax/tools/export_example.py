"""Upscales a picture: `python run.py INPUT.png OUTPUT.png [--seed=0]`.

`sr3_jax.tools.export` writes this file beside the sampler. It needs `pip install jax flatbuffers
pillow`, and of jax a version that sampler.json says; nothing else.
"""

import argparse
import hashlib
import json
import pathlib
import sys

import jax
import numpy as np
from jax import export
from PIL import Image, ImageOps

FOLDER = pathlib.Path(__file__).resolve().parent


def load(about):
    """Returns `sample(images: uint8 [b, h, w, 3], seeds: uint32 [b])`, for any b."""
    for name, file in about["files"].items():
        with open(FOLDER / name, "rb") as data:
            is_whole = hashlib.file_digest(data, "sha256").hexdigest() == file["sha256"]
        if not is_whole:
            raise ValueError(f"{FOLDER / name} is damaged, or of another export than sampler.json")
    here, there = export.default_export_platform(), about["platforms"]
    if here not in there:
        raise ValueError(f"the sampler is for {', '.join(there)} and jax here for {here}")
    program = export.deserialize(bytearray((FOLDER / "sampler.stablehlo").read_bytes()))
    with np.load(FOLDER / "params.npz") as stored:
        # numpy knows no bfloat16; it is stored as its bits.
        arrays = [stored[w["name"]].view(jax.numpy.dtype(w["dtype"])) for w in about["weights"]]
    weights, call = jax.device_put(arrays), jax.jit(program.call)
    return lambda images, seeds: np.asarray(call(*weights, images, seeds))


def _opened(path):
    """Nothing that the sampler cannot keep is dropped."""
    image = Image.open(path)
    if image.mode not in ("RGB", "L") or "transparency" in image.info:
        raise ValueError(f"{path} is of mode {image.mode}; this takes RGB and grey of 8 bits only")
    return ImageOps.exif_transpose(image).convert("RGB")


def main(arguments=None):
    """Upscales one picture; wrong use ends with one line and status 2."""
    parser = argparse.ArgumentParser(description="Upscales a picture.")
    parser.add_argument("input")
    parser.add_argument("output")
    parser.add_argument("--seed", type=int, default=0, help="of the noise")
    given = parser.parse_args(arguments)
    if not 0 <= given.seed < 2**32:
        parser.error(f"--seed={given.seed} is not in 0 to {2**32 - 1}")
    try:
        about = json.loads((FOLDER / "sampler.json").read_text())
        image = np.asarray(_opened(given.input))
        found, wanted = ("{}x{}".format(*s) for s in (image.shape, about["low_resolution"]))
        if found != wanted:
            raise ValueError(f"{given.input} is {found} (height x width); this takes {wanted} only")
        made = load(about)(image[None], np.array([given.seed], np.uint32))
        Image.fromarray(made[0]).save(given.output)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
