"""Folders of pictures for studies, and answers of simulated subjects."""

import numpy as np
from PIL import Image

from sr3_jax.study.answers import Answer
from sr3_jax.study.design import REFERENCE


def write_pictures(root, count=12, size=48, methods=("sharp", "blurred")):
    """Writes references, inputs and outputs of methods; returns the folders of the methods."""
    rng = np.random.default_rng(0)
    for i in range(count):
        small = Image.fromarray(rng.integers(0, 256, (size // 4, size // 4, 3), dtype=np.uint8))
        low = small.resize((size // 4, size // 4))
        for k, name in enumerate((REFERENCE, *methods)):
            picture = np.asarray(low.resize((size, size), Image.BICUBIC)).astype(int)
            picture = picture + rng.integers(-20, 21, picture.shape) // (k + 1)
            folder = root / name
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture.clip(0, 255).astype(np.uint8)).save(folder / f"{i:03d}.png")
        (root / "input").mkdir(exist_ok=True)
        low.save(root / "input" / f"{i:03d}.png")
    return {name: str(root / name) for name in methods}


class Subjects:
    """Simulated subjects, whose log odds of taking an output for the photograph are known.

    They are `log_odds` of the method, and normal deviations of the subject and of the picture.
    """

    def __init__(self, study, log_odds, of_subject=0.6, of_image=1.0, side_bias=0.0, seed=0):
        self.study, self.log_odds, self.bias = study, log_odds, side_bias
        self.rng = np.random.default_rng(seed)
        self.of_subject, self.spread = of_subject, of_image
        self.of_image = {name: self.rng.normal(0, of_image) for name in study.images}

    def rate(self, method):
        """The fool rate over all subjects and pictures."""
        x, w = np.polynomial.hermite_e.hermegauss(60)
        spread = np.hypot(self.of_subject, self.spread)
        return float((w / (1 + np.exp(-(self.log_odds[method] + spread * x)))).sum() / w.sum())

    def answer(self, trial, off):
        """Returns the side that a subject of a deviation chooses."""
        if trial.expected:
            return trial.expected
        worth = {REFERENCE: 0.0, **self.log_odds}
        right = worth[trial.right] - worth[trial.left] + self.bias
        deviation = off + self.of_image[trial.image]
        # Subjects and pictures differ in how easily an output passes.
        right += deviation * ((trial.left == REFERENCE) - (trial.right == REFERENCE))
        return "right" if self.rng.random() < 1 / (1 + np.exp(-right)) else "left"

    def answers(self, count):
        """Returns the rows that so many subjects leave."""
        rows = []
        for number in range(count):
            off = self.rng.normal(0, self.of_subject)
            for k, trial in enumerate(self.study.trials(number)):
                side = self.answer(trial, off)
                times = (1000.0, 1000.0, "2026-01-01T00:00:00+00:00")
                rows.append(Answer(f"s{number}", number, k, *trial, side, *times))
        return rows
