"""`Metric`: one number by which images are scored, and how people read it."""

from __future__ import annotations

import dataclasses
import math
import pkgutil
from collections.abc import Mapping
from typing import Any, Literal

Kind = Literal["image", "samples", "field", "ensemble", "trial", "network", "run"]


@dataclasses.dataclass(frozen=True)
class Metric:
    """One number by which images are scored.

    Attributes:
      name: its key in metrics.json, images.json and trials.jsonl.
      title: heading of its column, without the unit.
      of: what it is a number of, which decides when it is measured and how it is called.
        `image`: compute(images [b h w 3], ...) -> [b], of every output.
        `samples`: compute(samples [k b h w 3], ...) -> [b], where an input has several outputs.
        `field`, `ensemble`: the same for numbers of any range, each channel by itself: -> [b c].
        Of an image it is the mean over channels, and NAME[CHANNEL] that of one (`of_channel`).
        `trial`: compute(samples [k b h w 3], ...) -> number, while schedules are tuned.
        `network`: compute(pretrained.common.Inputs, ...) -> pretrained.common.Measured, in a
        process of its own, where `config.evaluation.feature_metrics` has its `option`.
        `run`: not computed from images.
      function: what computes it, as "module:function"; metrics of one option share one.
      needs: names of further arguments, of `reference`, `low_resolution`, `luminance` and `border`;
        for networks of `reference`, `fid_reference` and `labels`, which are among the inputs.
      best: the value that nothing beats: infinite, or a number; None if no direction is better.
      unit: unit of the number.
      digits: how the number is written, a format specification.
      meaning: a sentence for the report.
      option: value of `config.evaluation.feature_metrics` that asks for it.
      weights: key of `config.evaluation` with the file of the network's weights.
      package: what has to be installed besides, as it is imported.
      in_units: whether it has the units of its channel. The mean over channels is then of its
        shares of the standard deviations in the training data.
    """

    name: str
    title: str
    of: Kind = "image"
    function: str = ""
    needs: tuple[str, ...] = ()
    best: float | None = None
    unit: str = ""
    digits: str = ".4g"
    meaning: str = ""
    option: str = ""
    weights: str = ""
    package: str = ""
    in_units: bool = False

    @property
    def heading(self) -> str:
        """The title with the unit."""
        return f"{self.title} ({self.unit})" if self.unit else self.title

    @property
    def is_higher_better(self) -> bool | None:
        """None where neither direction is better."""
        return None if self.best is None or math.isfinite(self.best) else self.best > 0

    @property
    def arrow(self) -> str:
        """Which way is better; empty if none is."""
        if self.best is None:
            return ""
        return {math.inf: "↑", -math.inf: "↓"}.get(self.best, f"→ {self.best:g}")

    def badness(self, value: float) -> float:
        """Orders values: the lower, the better. Raises ValueError if no direction is better."""
        if self.best is None:
            raise ValueError(f"of {self.heading!r}, neither more nor less is better")
        if self.is_higher_better is None:
            return abs(value - self.best)
        return -value if self.is_higher_better else value

    def compute(self, scored: Any, given: Mapping[str, Any]) -> Any:
        """Computes it of images, samples or inputs (see `of`), given what it may need by name."""
        function = pkgutil.resolve_name(self.function)
        return function(scored, **{name: given[name] for name in self.needs})

    def write(self, value: float, *, signed: bool = False) -> str:
        """The number as people read it."""
        return write(value, self.digits, signed=signed)


def write(value: float, digits: str, *, signed: bool = False) -> str:
    """A number as people read it: a true minus, no negative zero, ∞, and nan as it is.

    One that these digits would make 0 has one of its own: a difference that is plain is not 0.
    """
    if math.isinf(value):
        return "−∞" if value < 0 else "+∞" if signed else "∞"
    sign = "+" if signed else ""
    text = format(float(value), f"{sign}z{digits}")
    if value and float(text) == 0:
        text = format(float(value), f"{sign}.1g")
    return text.replace("-", "−")
