"""A small evaluation of real images, with all that is awkward in it, for the report's tests."""

import dataclasses
import math

import numpy as np
import skimage.data
from PIL import Image

from sr3_jax.evaluation import evaluator
from sr3_jax.evaluation.report import page

METHODS = ("bicubic", "my|<b>net</b>_of_*stars*", "sr3")
NAME = "<script>alert(1)</script>|`a`_[b](c)_" + "long" * 20 + ".png"
TITLE = "Photographs & <i>paintings</i>, 4x"
CONFIG = '{\n  "a": "``` </pre><script>",\n\n  "b": 1\n}'


@dataclasses.dataclass
class Example:
    results: page.Results
    pictures: list[dict[str, np.ndarray]]

    def picture(self, kind, i):
        return self.pictures[i][kind]


def make() -> Example:
    """Twelve crops in two shapes; one image is equal to its reference, one number is nan."""
    rng = np.random.default_rng(0)
    photographs = [skimage.data.astronaut(), skimage.data.coffee(), skimage.data.chelsea()]
    pictures, of_images = [], {method: {} for method in METHODS}
    for i in range(12):
        height, width = (64, 64) if i % 2 else (96, 72)
        top, left = 40 + 12 * i, 60 + 9 * i
        reference = photographs[i % 3][top : top + height, left : left + width]
        whole = Image.fromarray(reference)
        low = whole.resize((width // 4, height // 4), Image.Resampling.BICUBIC)
        blurred = low.resize(whole.size, Image.Resampling.BICUBIC)
        noise = rng.normal(0, 3 + i, reference.shape)
        outputs = {
            METHODS[0]: np.array(blurred),
            METHODS[1]: np.array(Image.blend(blurred, whole, 0.5)),
            METHODS[2]: (reference + noise).clip(0, 255).astype(np.uint8),
        }
        if i == 5:
            outputs["sr3"] = reference
        for method, output in outputs.items():
            scores = evaluator.score(output[None], reference[None], np.array(low)[None])
            scores["lpips"] = [math.nan if i == 7 and method == "sr3" else float(i) / 20]
            scores["unheard_of"] = [float(rng.normal())]
            for metric, values in scores.items():
                of_images[method].setdefault(metric, []).extend(values)
        pictures.append({"input": np.array(low), "reference": reference, **outputs})
    means = {
        method: {metric: float(np.mean(values)) for metric, values in by_metric.items()}
        | {"fid": 30.0 + len(method), "n": 12, "seconds_per_image": 0.25}
        for method, by_metric in of_images.items()
    }
    means["bicubic"]["unheard_of"] = 5.0  # as if pooled otherwise
    # The lowest PSNR is the first shown.
    names = [NAME if i == 11 else f"test/{i}.png" for i in range(12)]
    return Example(page.Results(means, names, of_images), pictures)


def write(folder, example: Example, **changes) -> None:
    options = {
        "title": TITLE,
        "picture": example.picture,
        "provenance": {"commit": "0123456789" * 4, "who": "<me> | you", "config": CONFIG},
        "protocol": [
            "12 crops of <three> photographs.",
            "Sizes: 64x64 and 72x96 | from a quarter.",
        ],
        "paper_table": "1",
    }
    results = changes.pop("results", example.results)
    page.write(folder, results, **(options | changes))
