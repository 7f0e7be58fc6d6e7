"""The figures that the SR3 paper prints, and how it measured them.

Tables 1 to 5 of "Image Super-Resolution via Iterative Refinement" (Saharia, Ho, Chan, Salimans,
Fleet, Norouzi; arXiv 2104.07636; IEEE TPAMI 45(4), 2023).
"""

from __future__ import annotations

import dataclasses
import re

LINK = "https://arxiv.org/abs/2104.07636"
NAME = "arXiv 2104.07636"

_NATURAL_IMAGES = (
    "Data: ImageNet 1K; trained on its training split, evaluated on its validation split.",
    "Images: those with a shorter side under the target dropped; the largest central crop, resized "
    "by area.",
)
_CLASS_CONDITIONAL = (
    "Task: class-conditional generation, 256x256, ImageNet. A cascade: a class-conditional model "
    "makes 64x64, SR3 takes it to 256x256.",
    "FID over 50,000 images.",
)


# The human study of section 4.3: how often an output was preferred to the photograph. 50 subjects
# saw 50 images each, for 3 seconds.
FOOL_RATES = {
    "faces, 16x16 to 128x128": {
        "FSRGAN": 0.085,
        "PULSE": 0.337,
        "Regression": 0.153,
        "SR3": 0.474,
    },
    "natural images, 64x64 to 256x256": {"Regression": 0.134, "SR3": 0.390},
}


@dataclasses.dataclass(frozen=True)
class Table:
    """One of the paper's tables.

    Attributes:
      task: what was upscaled to what.
      rows: figures by method and metric, with the digits as printed; consistency is times 1e5.
      protocol: how the paper measured, one statement each.
    """

    task: str
    rows: dict[str, dict[str, str]]
    protocol: tuple[str, ...]


def table(number: str) -> Table:
    """Returns one of the paper's tables, "1" to "5".

    Raises:
      ValueError: the number is another one.
    """
    if number not in _TABLES:
        raise ValueError(f"no table {number!r} of the paper is known; take one of {[*_TABLES]}")
    return _TABLES[number]


def _rows(text: str) -> dict[str, dict[str, str]]:
    """Reads a table with two spaces or more between its columns."""
    lines = [re.split(r"\s{2,}", line.strip()) for line in text.strip().splitlines()]
    (_, *metrics), *rows = lines
    return {method: dict(zip(metrics, printed, strict=False)) for method, *printed in rows}


_TABLES = {
    "1": Table(
        "faces, 16x16 to 128x128",
        _rows("""
            method      psnr   ssim  consistency
            PULSE       16.88  .44   161.1
            FSRGAN      23.01  .62   33.8
            Regression  23.96  .69   2.71
            SR3         23.04  .65   2.68
        """),
        ("Data: trained on FFHQ, evaluated on CelebA-HQ.", "Sizes: 16x16 to 128x128."),
    ),
    "2": Table(
        "natural images, 64x64 to 256x256",
        _rows("""
            method      fid   is     psnr  ssim
            Reference   1.9   240.8
            Regression  15.2  121.1  27.9  .801
            SR3         5.2   180.1  26.4  .762
        """),
        (*_NATURAL_IMAGES, "Sizes: 64x64 to 256x256."),
    ),
    "3": Table(
        "natural images upscaled four times, classified by a ResNet-50",
        _rows("""
            method      top_1  top_5
            Baseline    .748   .920
            DRCN        .523   .758
            PsyCo       .546   .776
            ENet-E      .551   .786
            FSRCNN      .563   .804
            RCAN        .607   .833
            DRLN        .655   .879
            Regression  .617   .827
            SR3         .683   .880
        """),
        (
            "Data: the first 1,000 images of ImageNet's validation split.",
            "Sizes in the arXiv edition: 56x56 crops, bicubic to 64x64, model 64x64 to 256x256, "
            "resized to 224x224. In the journal's: a model 56x56 to 224x224.",
        ),
    ),
    "4": Table(
        "class-conditional images, 256x256",
        _rows("""
            method                  fid
            VQ-VAE-2                38.1
            BigGAN, truncation 1.0  7.4
            BigGAN, truncation 1.5  11.8
            SR3                     11.3
        """),
        _CLASS_CONDITIONAL,
    ),
    "5": Table(
        "class-conditional images, 256x256: what changes the result",
        _rows("""
            method                    fid
            SR3 trained without blur  13.1
            SR3 trained with blur     11.3
            SR3, loss L2              11.8
            SR3, loss L1              11.3
        """),
        _CLASS_CONDITIONAL,
    ),
}
