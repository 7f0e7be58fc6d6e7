"""Upscales a picture: `python run.py INPUT.png OUTPUT.png [--seed=0]`.

Where the sampler takes numbers (`dtype` of sampler.json is float32), files are .npy of [height,
width, channels], and maps come by --maps=MAPS.npy.

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
    """Returns `sample(images: [b, h, w, c], seeds: uint32 [b])`, for any b; maps come between."""
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
    return lambda *images_and_seeds: np.asarray(call(*weights, *images_and_seeds))


def _opened(path):
    """Nothing that the sampler cannot keep is dropped."""
    image = Image.open(path)
    if image.mode not in ("RGB", "L") or "transparency" in image.info:
        raise ValueError(f"{path} is of mode {image.mode}; this takes RGB and grey of 8 bits only")
    return ImageOps.exif_transpose(image).convert("RGB")


def _numbers(path):
    """Returns the float32 [height, width, channels] of an .npy file."""
    return np.load(path, allow_pickle=False).astype(np.float32)


def main(arguments=None):
    """Upscales one picture; wrong use ends with one line and status 2."""
    parser = argparse.ArgumentParser(description="Upscales a picture.")
    parser.add_argument("input")
    parser.add_argument("output")
    parser.add_argument("--maps", help="further channels of the size of the result, .npy")
    parser.add_argument("--seed", type=int, default=0, help="of the noise")
    given = parser.parse_args(arguments)
    if not 0 <= given.seed < 2**32:
        parser.error(f"--seed={given.seed} is not in 0 to {2**32 - 1}")
    try:
        about = json.loads((FOLDER / "sampler.json").read_text())
        is_numbers = about["dtype"] == "float32"
        image = _numbers(given.input) if is_numbers else np.asarray(_opened(given.input))
        found, wanted = ("{}x{}".format(*s) for s in (image.shape, about["low_resolution"]))
        if found != wanted:
            raise ValueError(f"{given.input} is {found} (height x width); this takes {wanted} only")
        images = [image[None]]
        if ("maps" in about["channels"]) != bool(given.maps):
            raise ValueError("--maps=FILE is needed" if not given.maps else "it takes no maps")
        if given.maps:
            images.append(_numbers(given.maps)[None])
        made = load(about)(*images, np.array([given.seed], np.uint32))[0]
        if is_numbers:
            np.save(given.output, made)
        else:
            Image.fromarray(made).save(given.output)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
