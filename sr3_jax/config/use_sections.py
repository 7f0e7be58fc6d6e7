"""Options that decide how a trained network is used and measured."""

from __future__ import annotations

import dataclasses

from sr3_jax import conformal
from sr3_jax.config.fields import MAX_STEPS, Section, Size, option
from sr3_jax.metrics import registry

SAMPLERS = ("ancestral", "ddim", "dpmpp_2m", "heun")


@dataclasses.dataclass(frozen=True)
class Sampling(Section):
    """The sampler and its noise schedule, and the size of batches and tiles."""

    sampler: str = option(
        "ancestral",
        "`ancestral`: the paper's; `ddim`; `dpmpp_2m`: DPM-Solver++(2M); `heun`, with two "
        "network calls a step. docs/sampling.md compares them.",
        choices=SAMPLERS,
    )
    eta: float = option(
        0.0,
        "ddim, dpmpp_2m: 0 is deterministic, 1 draws as much noise as `ancestral`.",
        at_least=0.0,
        at_most=1.0,
    )
    schedule: str = option(
        "respaced",
        "`respaced`: `num_steps` evenly spaced times of the training schedule. `karras`: noise-"
        "to-signal ratios from `sigma_max` to `sigma_min`, evenly spaced in their `rho`-th root; "
        "`log_snr`: in their logarithm. `noise_level`: noise levels from that of `sigma_max` to "
        "1, evenly spaced. `linear`: from `beta_start` to `beta_end`.",
        choices=("respaced", "karras", "log_snr", "noise_level", "linear"),
    )
    num_steps: int = option(100, "Number of refinement steps.", at_least=1, at_most=MAX_STEPS)
    knots: int = option(
        0,
        "The schedule is made with so many steps, and sampling takes `num_steps` of them, evenly "
        "spaced. So a student shares the schedule of its teacher (docs/distillation.md). 0: the "
        "schedule has `num_steps` steps.",
        at_least=0,
        at_most=MAX_STEPS,
    )
    sigma_min: float = option(
        0.02, "karras, log_snr: noise-to-signal ratio of the last step.", above=0.0
    )
    sigma_max: float = option(
        20.0,
        "karras, log_snr, noise_level: the first noise-to-signal ratio, sqrt(1 / gamma - 1). 20 "
        "is a noise level sqrt(gamma) of 0.05.",
        above=0.0,
    )
    rho: float = option(7.0, "karras: the exponent.", above=0.0)
    beta_start: float = option(1e-4, "linear: beta_1.", above=0.0, below=1.0)
    beta_end: float = option(
        0.12,
        "linear: beta_T. Fewer than 100 steps need a larger one, to end in noise.",
        above=0.0,
        below=1.0,
    )
    variance: str = option(
        "fixed_large",
        "ancestral: `fixed_large` is 1 - alpha_t, the paper's; `fixed_small` is that of "
        "q(y_{t-1} | y_0, y_t); `learned` is the network's (`model.learned_variance`).",
        choices=("fixed_large", "fixed_small", "learned"),
    )
    clip: bool = option(True, "Clip the estimate of y_0 to [-1, 1] in each step.")
    consistent: bool = option(
        False,
        "Move the result to the nearest image whose downsampling is the input; that of "
        "baselines, too.",
    )
    guidance: float = option(
        1.0,
        "Classifier-free guidance of class-conditional networks: eps = eps(null) + guidance * "
        "(eps(class) - eps(null)). 1: none. Larger values give more typical and less varied "
        "images, for two network calls a step.",
        at_least=0.0,
    )
    source_noise: float = option(
        0.0,
        "Standard deviation of noise added to the source, for networks trained with "
        "`train.source_noise`; at most that value.",
        at_least=0.0,
    )
    batch_size: int = option(16, "Images refined together.", at_least=1)
    tile_size: int = option(
        0,
        "Larger outputs are refined in overlapping tiles of this size, in pixels. 0: the longer "
        "side of `data.image_size`, the size that a network with attention has learnt. Results "
        "depend on it (docs/upscaling.md).",
        at_least=0,
        at_most=65_536,
    )
    tile_overlap: int = option(
        64,
        "Least overlap of neighbouring tiles, in pixels. It is never more than a quarter of a "
        "tile. A smaller overlap takes less time (docs/upscaling.md).",
        at_least=0,
        at_most=65_536,
    )


@dataclasses.dataclass(frozen=True)
class Evaluation(Section):
    """The metrics of held-out images, and their protocol."""

    checkpoint: str = option(
        "latest",
        "`latest`, or `best`: that of the lowest held-out loss; of baselines, of the highest "
        "held-out PSNR.",
        choices=("latest", "best"),
    )
    image_size: Size = option(
        0,
        "Size of held-out images, in pixels, of any shape. 0: `data.image_size`. Their source is "
        "smaller by the factor of training.",
        at_least=0,
        at_most=65_536,
    )
    downsampling: str = option(
        "pillow",
        "How inputs are made, bicubic with anti-aliasing. `pillow`: as in training. `matlab`: as "
        "MATLAB's imresize, to compare with benchmarks that used it (docs/evaluation.md).",
        choices=("pillow", "matlab"),
    )
    luminance: bool = option(False, "PSNR and SSIM of luminance (Y of YCbCr) instead of RGB.")
    crop_border: int = option(0, "Pixels at each side that PSNR and SSIM leave out.", at_least=0)
    num_images: int = option(0, "Number of held-out images to use. 0: all.", at_least=0)
    num_samples: int = option(
        1,
        "Samples of each image. Of several, the mean, the deviation, the best, the energy score "
        "and the diversity are measured.",
        at_least=1,
    )
    network_input: int = option(
        0,
        "Above 0: inputs are resized to this size before the network, and its images to the size "
        "of the references, as for Table 3 (56 to 64, and 256 to 224).",
        at_least=0,
    )
    feature_metrics: tuple[str, ...] = option(
        (),
        "Metrics of pretrained networks. `fid`: with the Inception score, against "
        "`fid_reference`. `lpips`. `resnet50`: top-1 and top-5 accuracy of images with labels.",
        choices=registry.options(),
    )
    fid_reference: str = option(
        "",
        "Empty: the held-out images. `train`: the training images. Else a folder of images, or "
        "an .npz file of their statistics (`mu` and `sigma`).",
    )
    inception_weights: str = option(
        "", "File of FID's weights. Empty: torch-fidelity downloads them."
    )
    lpips_weights: str = option(
        "", "File of LPIPS's weights. Empty: torch-fidelity downloads them."
    )
    resnet50_weights: str = option("", "File of ResNet-50's weights. Empty: Keras downloads them.")
    paper_table: str = option(
        "",
        "Table of the paper whose figures the report shows beside ours.",
        choices=("", "1", "2", "3", "4", "5"),
    )
    num_pictures: int = option(8, "Rows of samples.png.", at_least=0)

    @property
    def weights(self) -> dict[str, str | None]:
        """File of the weights of each choice of `feature_metrics`; None to download them."""
        of_networks = registry.of("network")
        return {metric.option: getattr(self, metric.weights) or None for metric in of_networks}


@dataclasses.dataclass(frozen=True)
class Calibration(Section):
    """The intervals that `--mode=calibrate` makes of held-out images."""

    num_images: int = option(
        400,
        "Number of held-out images, drawn by `config.seed`. 0: all. A quarter shapes the "
        "intervals, half sets their width, and a quarter shows what they hold.",
        at_least=0,
    )
    num_samples: int = option(
        8, "Samples of each image, in calibration and in upscaling alike.", at_least=2
    )
    shape: str = option(
        "equal",
        "`equal`: the same share of pixels is held wherever samples differ much or little. "
        "`shortest`: intervals are shortest in the mean, and hold less where samples differ much.",
        choices=conformal.SHAPES,
    )


@dataclasses.dataclass(frozen=True)
class Tuning(Section):
    """The search for sampling schedules of `--mode=tune_schedule`."""

    metric: str = option(
        "",
        "What is optimised on held-out images. `energy`: the energy score of patches of two "
        "samples, which needs no weights. Empty: `fid` where `evaluation.inception_weights` "
        "names a file, else `energy`.",
        choices=("", *registry.tunable()),
    )
    num_images: int = option(64, "Number of held-out images.", at_least=1)
    calls: tuple[int, ...] = option(
        (5, 10, 20, 50),
        "Budgets of network calls for an image, searched one by one.",
        at_least=1,
        at_most=MAX_STEPS,
    )
    num_trials: int = option(24, "Trials for each budget.", at_least=1)
    tolerance: float = option(
        0.01,
        "inference.json gets the fewest calls whose metric is within this share of the best.",
        at_least=0.0,
    )
    reference_calls: int = option(
        0,
        "Above 0: also measure the paper's sampler in so many calls, such as 2000.",
        at_least=0,
        at_most=MAX_STEPS,
    )
