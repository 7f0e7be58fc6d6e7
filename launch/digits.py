"""Scikit-learn's digits as files, and whether generated ones are what was asked for.

    python -m launch.digits write FOLDER
    python -m launch.digits judge FOLDER GENERATED

FOLDER: where `write` leaves `train` and `test`, each with a folder for every digit; real scans of
handwriting (E. Alpaydin and C. Kaynak, "Optical Recognition of Handwritten Digits", UCI 1998; CC BY
4.0), 8x8 pixels of 17 levels. GENERATED: what --mode=generate wrote.
"""

import csv
import pathlib
import sys

import numpy as np
from PIL import Image
from sklearn import datasets, svm

_NUM_TRAIN = 1500  # of 1797, in the data's order


def write(folder: pathlib.Path) -> None:
    """Writes the digits as PNGs, `train/3/0003.png` and so on."""
    digits = datasets.load_digits()
    for number, (pixels, digit) in enumerate(zip(digits.images, digits.target, strict=True)):
        half = "train" if number < _NUM_TRAIN else "test"
        path = folder / half / str(digit) / f"{number:04d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.rint(pixels * 255 / 16).astype(np.uint8)).save(path)


def judge(folder: pathlib.Path, generated: pathlib.Path) -> float:
    """Trains a classifier on the real digits of `train`; returns its share of agreement.

    Prints how often it is right about the real digits of `test`, and how often the generated
    ones are to it what was asked for.
    """
    classifier = svm.SVC(gamma=8.0, C=10.0).fit(*_real(folder / "train"))
    right = classifier.score(*_real(folder / "test"))
    with open(generated / "labels.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    images = np.stack([_pixels(generated / "8" / row["image"]) for row in rows])
    wanted = np.array([int(row["label"]) for row in rows])
    found = classifier.predict(images)
    print(f"a classifier trained on real digits is right about {right:.1%} of held-out real ones")
    print(f"{(found == wanted).mean():.1%} of {len(rows)} generated digits are to it as asked for:")
    for digit in sorted({*wanted.tolist()}):
        own = found[wanted == digit]
        others = sorted({*own.tolist()} - {digit}, key=lambda other: -(own == other).sum())
        said = ", ".join(f"{(own == other).sum()} as {other}" for other in others)
        print(f"  {digit}: {(own == digit).mean():6.1%}{'; ' + said if said else ''}")
    return float((found == wanted).mean())


def _real(folder: pathlib.Path) -> tuple[np.ndarray, np.ndarray]:
    paths = sorted(folder.glob("*/*.png"))
    if not paths:
        raise SystemExit(f"error: no digits in {folder}; write them first")
    return np.stack([_pixels(path) for path in paths]), np.array(
        [int(p.parent.name) for p in paths]
    )


def _pixels(path: pathlib.Path) -> np.ndarray:
    """The pixels as a vector of length up to 1, grey."""
    grey = np.asarray(Image.open(path).convert("RGB"), np.float64).mean(axis=2)
    return grey.reshape(-1) / 255 / 8


if __name__ == "__main__":
    if sys.argv[1:2] == ["write"] and len(sys.argv) == 3:
        write(pathlib.Path(sys.argv[2]))
    elif sys.argv[1:2] == ["judge"] and len(sys.argv) == 4:
        judge(*map(pathlib.Path, sys.argv[2:]))
    else:
        raise SystemExit(__doc__)
