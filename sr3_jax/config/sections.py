"""The config of a run, with a frozen dataclass for each section.

`docs/config.md` and the help of the commands are made from the fields.
"""

from __future__ import annotations

import dataclasses

from sr3_jax import scaling, sizes
from sr3_jax.config import data_sections, training_sections, use_sections
from sr3_jax.config.fields import Section, option

BASELINES = ("regression", "srcnn")


@dataclasses.dataclass(frozen=True)
class Config(Section):
    """The options of a run."""

    seed: int = option(
        0,
        "Seed of initialisation, order of examples, crops, flips, noise and dropout.",
        at_least=0,
        at_most=2**32 - 1,
    )
    method: str = option(
        "sr3",
        "`sr3`, or a baseline, which is trained and scored alike: `regression`, the same network "
        "without y_t and gamma, or `srcnn`. Chosen by `--config=configs/NAME.py:regression`.",
        choices=("sr3", *BASELINES),
        may_change=False,
    )
    profile_steps: int = option(
        0, "Steps to profile after the first ten of each start of a training.", at_least=0
    )
    data: data_sections.Data = data_sections.Data()
    degradation: data_sections.Degradation = data_sections.Degradation()
    units: data_sections.Units = data_sections.Units()
    model: training_sections.Model = training_sections.Model()
    diffusion: training_sections.Diffusion = training_sections.Diffusion()
    sampling: use_sections.Sampling = use_sections.Sampling()
    train: training_sections.Train = training_sections.Train()
    distillation: training_sections.Distillation = training_sections.Distillation()
    parallel: training_sections.Parallel = training_sections.Parallel()
    checkpoint: training_sections.Checkpoint = training_sections.Checkpoint()
    evaluation: use_sections.Evaluation = use_sections.Evaluation()
    calibration: use_sections.Calibration = use_sections.Calibration()
    tuning: use_sections.Tuning = use_sections.Tuning()

    @property
    def predicts_image(self) -> bool:
        """Whether the method is a baseline, which predicts y_0 in one call, without noise."""
        return self.method in BASELINES

    @property
    def has_source(self) -> bool:
        """Whether the network is conditioned on a low resolution."""
        return self.data.low_resolution != 0

    @property
    def image_sides(self) -> tuple[int, int]:
        """Height and width of y_0."""
        return sizes.sides(self.data.image_size)

    @property
    def low_sides(self) -> tuple[int, int]:
        """Height and width of the source; 0 without one."""
        return sizes.sides(self.data.low_resolution)

    @property
    def crops_at_full_resolution(self) -> bool:
        """Whether windows are cut out of images and never resized."""
        return self.data.crop == "random" and self.data.crop_scale[1] == 0

    @property
    def sizes_text(self) -> str:
        """The sizes of source and y_0 as text: 16 to 64."""
        low, high = (sizes.text(each, short=True) for each in (self.low_sides, self.image_sides))
        return f"{low} to {high}"

    @property
    def factor(self) -> int | float:
        """Ratio of the image size and the low resolution; 1 without a source."""
        if not self.has_source:
            return 1
        high, low = self.image_sides[0], self.low_sides[0]
        return high / low if high % low else high // low

    @property
    def source_channels(self) -> int:
        """Channels of the low resolution."""
        return self.data.source_channels or self.data.channels

    @property
    def conditioning_channels(self) -> int:
        """Channels of the network's x: low resolution, which of it is known, and maps."""
        return self.source_channels * (2 if self.data.missing else 1) + self.data.maps

    @property
    def known_at(self) -> int:
        """First of the network's channels that say which of x is known; 0 if all is."""
        return self.source_channels if self.data.missing else 0

    @property
    def has_levels(self) -> bool:
        """Whether pixels are levels of 8 or 16 bits, as of pictures, and no other numbers."""
        return not self.units.scaling

    @property
    def scalings(self) -> scaling.Scalings | None:
        """The units of numbers that are no levels; None for levels.

        Raises:
          ValueError: a channel has one value alone, or statistics are missing.
        """
        if self.has_levels:
            return None
        if not self.units.is_measured:
            raise ValueError(
                "config.units has no statistics, which a training measures; give those of the "
                "training data (python -m sr3_jax.tools.measure_data)"
            )
        statistics, count = self.units.statistics(), self.source_channels
        parts = [slice(self.data.channels), slice(count)]
        parts += [slice(count, None)] if self.data.maps else []
        return scaling.Scalings(
            *(scaling.make(self.units.scaling, statistics.of(part)) for part in parts)
        )

    @property
    def stride(self) -> int:
        """Pixels of the image for one pixel of the deepest level."""
        return 2 ** (len(self.model.multipliers) - 1)

    @property
    def evaluation_size(self) -> sizes.Size:
        """Size of held-out images, in pixels."""
        return self.evaluation.image_size or self.data.image_size

    @property
    def num_samples(self) -> int:
        """Number of samples of each held-out image; 1 for baselines."""
        return 1 if self.predicts_image else self.evaluation.num_samples

    @property
    def effective_sampling(self) -> use_sections.Sampling:
        """`sampling` with the size of tiles; of a baseline, with one step and unclipped."""
        own = {"num_steps": 1, "clip": False} if self.predicts_image else {}
        return dataclasses.replace(self.sampling, tile_size=self.tile_size, **own)

    @property
    def student_calls(self) -> int:
        """Number of calls that a student samples in, whatever is asked for; 0: any number."""
        return self.distillation.calls or (1 if self.train.loss == "energy" else 0)

    @property
    def knows_no_class(self) -> bool:
        """Whether a class-conditional network also takes the null label."""
        return bool(self.model.num_classes and self.train.label_dropout)

    @property
    def tuning_metric(self) -> str:
        """The metric that `--mode=tune_schedule` optimises."""
        return self.tuning.metric or ("fid" if self.evaluation.inception_weights else "energy")

    @property
    def tile_size(self) -> int:
        """Size of tiles in pixels; without a source, the size of the image."""
        return (self.has_source and self.sampling.tile_size) or max(self.image_sides)


SECTIONS = {
    field.name: field.default
    for field in dataclasses.fields(Config)
    if dataclasses.is_dataclass(field.default)
}
