"""Options that decide how a network is trained; the defaults are the paper's."""

from __future__ import annotations

import dataclasses

from sr3_jax import diffusion
from sr3_jax.config.fields import MAX_STEPS, Section, option


@dataclasses.dataclass(frozen=True)
class Model(Section):
    """The network."""

    architecture: str = option(
        "sr3",
        "`sr3`: the paper's. Others are DDPM's U-Net in the forms of other programs, whose weights "
        "`sr3_jax.tools.import_weights` reads (docs/models.md); there `norm`, `num_heads`, "
        "`scale_shift`, `embedding_scale`, `bottleneck_attention`, `num_classes`, "
        "`learned_variance` and `packed_channels` have no meaning.",
        choices=("sr3", "janspiry_sr3", "janspiry_ddpm", "diffusers", "diffusers_ddpm"),
        may_change=False,
    )
    channels: int = option(64, "Channels of the first level.", at_least=1, may_change=False)
    multipliers: tuple[int, ...] = option(
        (1, 2, 4, 8),
        "Channels of each level, as a multiple of `channels`. The image halves between levels.",
        at_least=1,
        lengths=tuple(range(1, 17)),
        may_change=False,
    )
    num_blocks: int = option(2, "Residual blocks of each level.", at_least=0, may_change=False)
    attention_resolutions: tuple[int, ...] = option(
        (),
        "Sizes of the levels with self-attention, in pixels of their shorter side, such as (16,).",
        at_least=1,
        may_change=False,
    )
    bottleneck_attention: bool = option(
        True,
        "Self-attention between the two halves of the network. False for networks that are "
        "trained on crops smaller than the images they will be used on.",
        may_change=False,
    )
    norm: str = option(
        "group",
        "`group`: group normalisation, whose statistics span the image. `pixel`: statistics of "
        "each pixel alone, so that the result does not depend on the size of a tile.",
        choices=("group", "pixel"),
        may_change=False,
    )
    num_groups: int = option(
        32,
        "Groups of group normalisation where `architecture` is not `sr3`, which has a group for "
        "each 4 channels, at most 32.",
        at_least=1,
        may_change=False,
    )
    num_heads: int = option(1, "Heads of self-attention.", at_least=1, may_change=False)
    dropout: float = option(0.0, "Dropout rate in residual blocks.", at_least=0.0, below=1.0)
    scale_shift: bool = option(
        False,
        "The embedding of the noise level scales and shifts features, instead of being added.",
        may_change=False,
    )
    embedding_scale: float = option(
        5000.0,
        "Factor on sqrt(gamma) before its sinusoidal embedding.",
        above=0.0,
        may_change=False,
    )
    prediction: str = option(
        "eps",
        "What the network predicts and the loss compares, by the table at the head of "
        "sr3_jax/diffusion/parameterization.py; `eps` in the paper. Baselines always predict y_0.",
        choices=tuple(diffusion.PREDICTIONS),
        may_change=False,
    )
    sigma_data: float = option(
        0.0,
        "Preconditioning (sigma_data of Karras et al. 2022). 0: none, as in the paper. Above 0: "
        "the network corrects the linear estimate of what it predicts, under y_0 = x + Gaussian "
        "noise of this standard deviation (images in [-1, 1]). That spares short trainings the "
        "shifts in colour. A good value is the root mean square of y_0 - x.",
        at_least=0.0,
        may_change=False,
    )
    measure_sigma_data: bool = option(
        False,
        "Start a training by measuring that root mean square on training images; config.json "
        "then has it as `sigma_data`.",
    )
    num_classes: int = option(
        0,
        "Number of class labels; 0: unconditional. Labels are the first level of subfolders of a "
        "folder, the inner tars of a tar, or `label` of TFDS.",
        at_least=0,
        may_change=False,
    )
    learned_variance: bool = option(
        False,
        "A network without a source also learns the variance of each reverse step, by Improved "
        "DDPM's hybrid loss, for `ancestral` sampling in few steps (`sampling.variance`).",
        may_change=False,
    )
    dtype: str = option("bfloat16", "Type of the computation.", choices=("float32", "bfloat16"))
    packed_channels: int = option(
        0,
        "Levels of fewer channels keep neighbouring pixels of a row side by side in so many "
        "channels, for TPUs; parameters and results are the same. 1: no packing; 0: 128 on TPUs, "
        "1 elsewhere.",
        at_least=0,
    )
    remat: bool = option(
        False, "Recompute activations in the backward pass: less memory, more time."
    )


@dataclasses.dataclass(frozen=True)
class Diffusion(Section):
    """The noise schedule of training."""

    schedule: str = option(
        "linear",
        "Noise schedule of training. `log_snr`: evenly in log SNR, between the least and the most "
        "noise of `linear`. `warmup10` and `warmup50`: beta rises linearly over the first "
        "10 or 50 % of the steps and stays.",
        choices=(
            "linear",
            "quadratic",
            "cosine",
            "uniform_gamma",
            "log_snr",
            "warmup10",
            "warmup50",
        ),
        may_change=False,
    )
    num_steps: int = option(2000, "T.", at_least=1, at_most=MAX_STEPS, may_change=False)
    beta_start: float = option(
        1e-6, "beta_1, but of `cosine` and `uniform_gamma`.", above=0.0, below=1.0, may_change=False
    )
    beta_end: float = option(
        1e-2, "beta_T, but of `cosine` and `uniform_gamma`.", above=0.0, below=1.0, may_change=False
    )


@dataclasses.dataclass(frozen=True)
class Train(Section):
    """The optimisation."""

    initial_weights: str = option(
        "",
        "The network whose averaged weights training begins with: the workdir of a run, the folder "
        "of a released network, `hf://USER/NAME`, or a name that `sr3 models` lists. `method` and "
        "`config.model` must be the same. Channels of images and maps may differ: those in common "
        "keep their weights in the first and last convolution, and others begin at 0. The "
        "optimizer is a new one. Empty: random weights.",
    )
    frozen: tuple[str, ...] = option(
        (),
        "Parameters that are not trained, by patterns of their paths, such as `down_*` or "
        "`*/norm_0/*`. Empty: all are trained.",
    )
    num_steps: int = option(1_000_000, "Number of training steps.", at_least=1)
    batch_size: int = option(256, "Images of a step, over all devices.", at_least=1)
    accumulate_steps: int = option(
        1,
        "Micro-batches whose gradients are averaged in a step; it divides `batch_size`.",
        at_least=1,
    )
    loss: str = option(
        "l1",
        "Norm of the error of the prediction, of eps in the paper (Eq. 6). `energy`: for networks "
        "that sample in one call, the energy score of two images of each source (docs/"
        "distillation.md), each step seeing every image twice.",
        choices=("l1", "l2", "energy"),
        may_change=False,
    )
    loss_weight: str = option(
        "none",
        "Weighting of the loss by the signal-to-noise ratio, SNR = gamma / (1 - gamma). `none`: 1, "
        "as in the paper. Others do not depend on `model.prediction`. `min_snr`: min(SNR, 5) on "
        "the squared error of y_0 (Hang et al. 2023). `sigmoid`: sigmoid(2 - log SNR) on that of "
        "eps, integrated over log SNR (Kingma and Gao 2023); loss and gradient are then larger, of "
        "eps about ten times, and `clip_norm` should be, too.",
        choices=tuple(diffusion.LOSS_WEIGHTS),
        may_change=False,
    )
    learning_rate: float = option(1e-4, "Learning rate after warm-up.", above=0.0)
    num_warmup_steps: int = option(10_000, "Steps of linear warm-up from 0.", at_least=0)
    num_decay_steps: int = option(
        0, "Last steps, over which the rate falls linearly to 0. 0: it stays constant.", at_least=0
    )
    adam_b1: float = option(0.9, "Adam's beta_1.", at_least=0.0, below=1.0)
    adam_b2: float = option(0.999, "Adam's beta_2.", at_least=0.0, below=1.0)
    clip_norm: float = option(1.0, "Greatest norm of the whole gradient.", above=0.0)
    ema_decay: float = option(
        0.9999, "Decay of the average of parameters.", at_least=0.0, below=1.0
    )
    flip: bool = option(True, "Mirror half of the images.")
    blur_probability: float = option(
        0.0,
        "Share of sources that are blurred, for later networks of a cascade.",
        at_least=0.0,
        at_most=1.0,
    )
    blur_sigma: tuple[float, float] = option(
        (0.4, 0.6),
        "Least and greatest standard deviation of that blur, in pixels of the source.",
        above=0.0,
        lengths=(2,),
        increases=True,
    )
    source_noise: float = option(
        0.0,
        "Greatest standard deviation of noise in the source, which is told to the network "
        "(conditioning augmentation of Cascaded Diffusion Models). 0: none.",
        at_least=0.0,
        below=1.0,
        may_change=False,
    )
    label_dropout: float = option(
        0.1,
        "Share of class labels that are dropped, for guidance.",
        at_least=0.0,
        below=1.0,
        may_change=False,
    )
    log_every_steps: int = option(100, "Steps between lines of the log.", at_least=1)
    sample_every_steps: int = option(
        10_000, "Steps between pictures for TensorBoard. 0: none.", at_least=0
    )


@dataclasses.dataclass(frozen=True)
class Distillation(Section):
    """Training of a student, whose calls replace several of its teacher; `sr3 distill` sets it."""

    calls: int = option(
        0,
        "Number of sampling steps of a student, each one call of the network; it takes no other. "
        "0: no student.",
        at_least=0,
        at_most=MAX_STEPS,
    )
    teacher_calls: int = option(
        0,
        "Calls of the teacher that one call of the network learns to replace, at the "
        "`sampling.num_steps` of its own. 0: no distillation, a training as in the paper.",
        at_least=0,
        at_most=MAX_STEPS,
    )
    teacher: str = option(
        "", "The teacher, a network of the same `model`, given as `train.initial_weights` is."
    )
    teacher_sampler: str = option(
        "ddim",
        "The teacher's sampler, between two calls of the student. Its eta is `sampling.eta`.",
        choices=("ddim", "dpmpp_2m"),
    )
    teacher_guidance: float = option(
        1.0, "The teacher's guidance, which the student then has without it.", at_least=0.0
    )
    truth: float = option(
        0.0,
        "Share of the student's last calls that begin at the noise from which the teacher would "
        "make a training image, and should end at that image (SinSR). 0: none.",
        at_least=0.0,
        at_most=1.0,
    )


@dataclasses.dataclass(frozen=True)
class Parallel(Section):
    """The layout of training on devices."""

    layout: str = option(
        "zero1",
        "`replicated`: every device holds everything. `zero1`: what is kept between steps "
        "(float32 parameters, average, optimizer state) is split over groups of up to 32 "
        "devices. `fsdp`: parameters are split within a step, too, and gathered where they are "
        "used.",
        choices=("replicated", "zero1", "fsdp"),
    )
    spatial: int = option(
        0,
        "Devices that share the height of one image. 0: 1, or as few as it takes where there are "
        "fewer images than devices; up to 4 on TPU v2 and v3 where a core has fewer than 8 images.",
        at_least=0,
    )
    model: int = option(1, "Devices that share the channels of the network.", at_least=1)


@dataclasses.dataclass(frozen=True)
class Checkpoint(Section):
    """The interval of checkpoints, and which of them are kept."""

    every_steps: int = option(5_000, "Steps between checkpoints.", at_least=1)
    keep_last: int = option(3, "Number of the newest checkpoints that are kept.", at_least=1)
    keep_best: bool = option(True, "Also keep the checkpoint of the lowest held-out loss.")
