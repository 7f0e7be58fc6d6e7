"""The report of an evaluation: a page for browsers, and the same for GitHub.

`report.html` is one file, with style, drawings and pictures in it. This module makes the values of
the templates in `templates/`.
"""

from __future__ import annotations

import base64
import types
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath
from jaxtyping import UInt8

from sr3_jax.data import storage
from sr3_jax.data.image_files import to_8_bits, write_image
from sr3_jax.evaluation.report import gallery, histograms, intervals, markdown, tables
from sr3_jax.evaluation.report.tables import Results
from sr3_jax.metrics import registry

_COLOURS = 8
_MARKDOWN_PICTURES = 2 * gallery.NUM_EXTREMES + gallery.NUM_MIDDLE


def write(
    folder: epath.PathLike,
    results: Results,
    *,
    title: str,
    picture: gallery.Picture,
    provenance: Mapping[str, str],
    protocol: Sequence[str],
    paper_table: str = "",
    with_input: bool = True,
    figures: Mapping[str, str] = types.MappingProxyType({}),
    people: Mapping[str, Any] | None = None,
) -> None:
    """Writes `report.html`, `report.md`, and in `report/` the pictures of the latter.

    The last method is the main one: its best and worst images are shown, and it is compared with
    each other method.

    Args:
      folder: local or in a bucket.
      results: results of at least one method.
      title: title of the report.
      picture: returns an image; see `gallery.Picture`. Outputs have their reference's size.
      provenance: what produced the results (`provenance.collect`); values of several lines are
        folded.
      protocol: how they were measured (data, number of images, sizes), one statement each.
      paper_table: "1" to "5", the paper's table of the same task; "" for none.
      with_input: whether there are low resolutions.
      figures: pictures that lie in the folder: their captions by file name.
      people: the section of a human study (`study.report.values`).

    Raises:
      ImportError: jinja2 is not installed.
      ValueError: results or pictures do not fit together.
    """
    tables.check(results)
    templates = environment()
    main = list(results.means)[-1]
    methods = [method for method in results.means if method != "reference"]
    columns = [*(["input"] if with_input else []), *methods, "reference"]
    rows, table_notes = tables.mean_rows(results)
    values = {
        "title": title,
        "main": main,
        "methods": list(results.means),
        "num_images": len(results.names),
        "level": f"{intervals.LEVEL:.0%}",
        "columns": [registry.find(m) for m in tables.metric_names(results)],
        "rows": rows,
        "table_notes": table_notes,
        "differences": tables.differences(results, main),
        "channels": tables.channel_rows(results.means),
        "people": people,
        "figures": [
            {"file": name, "caption": caption, "uri": _uri_of(epath.Path(folder) / name)}
            for name, caption in figures.items()
        ],
        "protocol": list(protocol),
        "paper": tables.paper_rows(paper_table) if paper_table else None,
        "histograms": _histograms(results),
        "colours": {name: i % _COLOURS for i, name in enumerate(results.means)},
        "gallery_columns": columns,
        "most_shown": gallery.MOST_SHOWN,
        "strip_tile": gallery.STRIP_TILE,
        "provenance": dict(provenance),
    }
    scores = tables.scores_of(results, main)
    choices, values["gallery_notes"] = gallery.choose(scores, len(columns)) if scores else ([], [])
    values["gallery"], strips = [], {}
    for i, choice in enumerate(choices):
        images = _images(results.names[choice.index], choice.index, columns, picture)
        row, strip = _row(results, choice, images)
        if i < _MARKDOWN_PICTURES:
            # Numbered, since names of images are not names of files.
            row["file"] = f"report/{i + 1:02d}.png"
            strips[row["file"]] = strip
        values["gallery"].append(row)
    target = epath.Path(folder)
    for name, strip in strips.items():
        write_image(strip, target / name)
    for name in ("report.md", "report.html"):
        text = templates.get_template(f"{name}.j2").render(values)
        storage.write_whole(target / name, text.encode())


def environment() -> Any:
    """Returns the templates of reports; raises ImportError if jinja2 is not installed."""
    try:
        import jinja2
    except ImportError as error:
        raise ImportError("the report needs jinja2: pip install 'jinja2>=3.1'") from error

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("sr3_jax.evaluation.report"),
        autoescape=lambda name: name.endswith(".html.j2"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"md": markdown.safe, "fenced": markdown.fenced}
    return environment


def _histograms(results: Results) -> list[dict[str, Any]]:
    """Returns a panel for each metric of images."""
    metrics = {m for method in results.of_images for m in tables.scores_of(results, method)}
    found = []
    for metric in filter(tables.is_of_images, registry.in_order(metrics)):
        values = {
            method: results.of_images[method][metric]
            for method in results.means
            if metric in results.of_images.get(method, {})
        }
        if panel := histograms.panel(values):
            found.append({"measure": registry.find(metric), "panel": panel})
    return found


def _uri_of(path: epath.Path) -> str:
    return f"data:image/png;base64,{base64.b64encode(storage.read(path)).decode()}"


def _images(
    name: str, index: int, columns: Sequence[str], picture: gallery.Picture
) -> dict[str, UInt8[np.ndarray, "_h _w 3"]]:
    """Returns the pictures of one image in 8 bits.

    Raises:
      ValueError: the size of a method's picture is not that of the reference.
    """
    images = {column: to_8_bits(picture(column, index)) for column in columns}
    wanted = images["reference"].shape
    for column, image in images.items():
        if column != "input" and image.shape != wanted:
            raise ValueError(
                f"{name}: {column!r} is {image.shape}, where the reference is {wanted}"
            )
    return images


def _row(
    results: Results, choice: gallery.Choice, images: Mapping[str, UInt8[np.ndarray, "_h _w 3"]]
) -> tuple[dict[str, Any], UInt8[np.ndarray, "h w 3"]]:
    """Returns the row of an image in the gallery, and its strip for Markdown."""
    reference = images["reference"]
    height, width = reference.shape[:2]
    outputs = [image for column, image in images.items() if column not in ("input", "reference")]
    factor = None
    if "input" in images:
        factor = gallery.factor_between(images["input"].shape, reference.shape)
    patch = gallery.patch_of(reference, outputs, factor)
    patches, cells = [], []
    for column, image in images.items():
        scale = factor if column == "input" else 1
        piece = None if scale is None else gallery.cut(image, patch, scale)
        patches.append(piece)
        numbers = {
            registry.find(m): registry.find(m).write(float(v[choice.index]))
            for m, v in tables.scores_of(results, column).items()
            if tables.is_of_images(m)
        }
        cells.append(
            {
                "column": column,
                "uri": gallery.uri(image),
                "patch_uri": None if piece is None else gallery.uri(piece),
                "size": f"{image.shape[1]}x{image.shape[0]}",
                "numbers": numbers,
            }
        )
    row = {
        "name": results.names[choice.index],
        "index": choice.index,
        "reasons": choice.reasons,
        "group": choice.group,
        "width": width,
        "height": height,
        "is_smaller": max(height, width) > gallery.MOST_SHOWN,
        "patch": patch,
        "cells": cells,
    }
    return row, gallery.strip(list(images.values()), patches)
