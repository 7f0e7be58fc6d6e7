"""Reads words on pictures by the network PP-OCRv6 (rapidocr); runs in .venv/ocr.

    python -m launch.limits.ocr SUBJECTS.json FOLDER OUT.json

SUBJECTS.json has for each picture of FOLDER the boxes of its lines of text (`truth`, `lines`).
OUT.json gets what was read in each, in order. The places are given, so that reading alone is
measured.
"""

import json
import os
import pathlib
import sys

import numpy as np
import rapidocr

from launch.comparison import upscale


def main(subjects: pathlib.Path, folder: pathlib.Path, out: pathlib.Path) -> None:
    """Reads the pictures that have lines."""
    threads = {"EngineConfig.onnxruntime.intra_op_num_threads": upscale.num_cores()}
    reader = rapidocr.RapidOCR(params={"Global.log_level": "warning", **threads})
    read = {}
    for subject in json.loads(subjects.read_bytes()):
        if lines := subject["truth"].get("lines"):
            # The package reads pictures as OpenCV does, blue first.
            image = upscale.read(folder / f"{subject['name']}.png")[..., ::-1]
            read[subject["name"]] = [_text(reader, image, line["box"]) for line in lines]
    part = out.with_suffix(".part")
    part.write_text(json.dumps(read))
    os.replace(part, out)


def _text(reader: rapidocr.RapidOCR, image: np.ndarray, box: list[int]) -> str:
    left, top, right, bottom = box
    cut = np.ascontiguousarray(image[top:bottom, left:right])
    found = reader(cut, use_det=False, use_cls=False, use_rec=True)
    return " ".join(found.txts or ())


if __name__ == "__main__":
    main(*map(pathlib.Path, sys.argv[1:]))
