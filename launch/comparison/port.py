"""Trains the SR3 port to PyTorch by its own classes, for the row `port` of docs/comparison.md.

    python launch/comparison/port.py PORT PHOTOGRAPHS OUTPUT --minutes=32

PORT is a clone of Image-Super-Resolution-via-Iterative-Refinement, PHOTOGRAPHS a folder of
pictures. Python needs torch, numpy, scipy, tqdm and pillow. OUTPUT gets sr3.json and the port's
checkpoints, which `sr3_jax.tools.import_weights` reads. The port's own loader wants pictures of two
sizes on the disk, so random crops are made here.
"""

from __future__ import annotations

import argparse
import functools
import json
import pathlib
import random
import sys
import time
import types

import numpy as np
import torch
from PIL import Image

SIZE, LOW, BATCH = 64, 16, 4
_CROP_SCALE = (0.37, 0.8)  # of a picture's shorter side, as configs/photos_4x.py


def _options(output: pathlib.Path) -> dict:
    """Returns the options of the port, as its configs have them."""
    schedule = {
        "schedule": "linear",
        "n_timestep": 2000,
        "linear_start": 1e-6,
        "linear_end": 1e-2,
    }
    unet = {
        "in_channel": 6,
        "out_channel": 3,
        "inner_channel": 32,
        "norm_groups": 16,
        "channel_multiplier": [1, 2, 2, 4],
        "attn_res": [],
        "res_blocks": 1,
        "dropout": 0,
    }
    return {
        "name": "sr3_16_64",
        "phase": "train",
        "gpu_ids": None,
        "distributed": False,
        "path": {"resume_state": None, "checkpoint": str(output)},
        "model": {
            "which_model_G": "sr3",
            "finetune_norm": False,
            "unet": unet,
            "beta_schedule": {"train": schedule, "val": schedule},
            "diffusion": {"image_size": SIZE, "channels": 3, "conditional": True},
        },
        "datasets": {"train": {"l_resolution": LOW, "r_resolution": SIZE}},
        "train": {"optimizer": {"type": "adam", "lr": 1e-4}},
    }


@functools.cache
def _opened(path: pathlib.Path) -> Image.Image:
    return Image.open(path).convert("RGB")


def _example(paths: list[pathlib.Path]) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns a random crop and its input, enlarged by bicubic, in [-1, 1]."""
    image = _opened(random.choice(paths))
    side = round(min(image.size) * random.uniform(*_CROP_SCALE))
    left, top = (random.randint(0, length - side) for length in image.size)
    bicubic = Image.Resampling.BICUBIC
    high = image.crop((left, top, left + side, top + side)).resize((SIZE, SIZE), bicubic)
    if random.random() < 0.5:
        high = high.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    enlarged = high.resize((LOW, LOW), bicubic).resize((SIZE, SIZE), bicubic)
    arrays = (np.asarray(image, np.float32).transpose(2, 0, 1) for image in (high, enlarged))
    high, enlarged = (torch.from_numpy(array / 127.5 - 1.0) for array in arrays)
    return high, enlarged


def main(given: argparse.Namespace) -> None:
    """Trains for the given minutes of processor time."""
    sys.path.insert(0, str(given.port))
    sys.modules.setdefault("torchvision", types.ModuleType("torchvision"))  # of loading, not used
    import model as port

    torch.set_num_threads(1)
    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(0)
    known = Image.registered_extensions()
    paths = sorted(p for p in given.photographs.rglob("*") if p.suffix.lower() in known)
    if not paths:
        raise SystemExit(f"{given.photographs} has no pictures")
    given.output.mkdir(parents=True, exist_ok=True)
    options = _options(given.output)
    (given.output / "sr3.json").write_text(json.dumps(options, indent=1))
    trainer = port.create_model(options)
    step, start = 0, time.process_time()
    while (minutes := (time.process_time() - start) / 60) < given.minutes:
        high, enlarged = zip(*(_example(paths) for _ in range(BATCH)), strict=True)
        trainer.feed_data({"HR": torch.stack(high), "SR": torch.stack(enlarged)})
        trainer.optimize_parameters()
        step += 1
        if step % 100 == 0:
            print(f"step {step}, {minutes:.1f} min, loss {trainer.log_dict['l_pix']:.4f}")
    trainer.save_network(0, step)
    print(f"trained {step} steps: {given.output}/I{step}_E0_gen.pth")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("port", "photographs", "output"):
        parser.add_argument(name, type=pathlib.Path)
    parser.add_argument("--minutes", type=float, default=32.0, help="of processor time")
    main(parser.parse_args())
