"""Every option there is, with the paper's values where the paper gives one.

Not meant to be run: a runnable config takes `get_config()` and overrides what differs. On the
command line any key can be set: `--config.train.batch_size=64`, `--config.data.path=DIR`.
"""

from ml_collections import config_dict


def get_config() -> config_dict.ConfigDict:
    """Returns the locked default config: unknown keys raise an error that names the nearest."""
    config = config_dict.ConfigDict()
    config.seed = 0  # of initialisation, order of examples, crops, flips, noise, dropout
    # `sr3`; or a baseline, trained and scored alike: `regression`, the same network without y_t and
    # gamma, or `srcnn`. By `--config=configs/NAME.py:regression`.
    config.method = "sr3"
    config.profile_steps = 0  # of each start of a training, after its first ten: trace so many

    config.data = data = config_dict.ConfigDict()
    # `folder`: any tree of images; `folder_pairs`: two, with images of the same names; `tar`: a tar
    # file of images, or of tars of them, as ImageNet's; `tfrecord`: FFHQ's, or what
    # tools.prepare_data wrote; `tfds`: any image data set of TensorFlow Datasets; `photos`: those
    # of scikit-image. See docs/data.md.
    data.source = "folder"
    # Of the training images: a folder, a tar, TFRecord files, or for TFDS NAME:SPLIT.
    data.path = ""
    data.low_path = ""  # of their low resolutions (`folder_pairs`)
    data.tfds_dir = ""  # where TFDS has prepared its data sets; empty: ~/tensorflow_datasets
    # Held-out images. Where empty, `num_eval_images` of `path`, chosen by a hash of their names,
    # are kept out of training.
    data.eval_path = ""
    data.eval_source = ""  # empty: as `source`
    data.eval_low_path = ""
    data.num_eval_images = 16
    data.image_size = 256  # of y_0, in pixels
    # Of the source, in pixels; divides image_size. 0: none; images are made from nothing, as by the
    # model that a cascade begins with.
    data.low_resolution = 64
    # Of pixels: `uint8` or `uint16`; empty: that of the first image. To 16 bits, 8-bit images are
    # scaled exactly; to 8 bits, 16-bit ones are rounded, which is logged.
    data.dtype = ""
    # The value that means white in 16-bit images, as 4095 where they hold 12 bits; brighter values
    # are clipped. 0: 65535.
    data.white_level = 0
    data.crop = "central"  # `central`: the largest central square; `random`: see crop_scale
    data.crop_scale = (0.0, 1.0)  # sides of random squares, as a share of the shorter side
    data.cache_gb = 1.0  # RAM for what was read: pairs, or whole images where crops are random
    data.num_threads = 0  # that read, decode and resize; 0: one a core
    data.max_bad_share = 0.01  # with more damaged images than that a run stops

    config.model = model = config_dict.ConfigDict()
    model.channels = 64
    model.multipliers = (1, 2, 4, 8)  # one level each; the image halves between levels
    model.num_blocks = 2
    model.attention_resolutions = ()  # besides the deepest level: sizes of levels, as (16,)
    model.bottleneck_attention = True  # off: for training on crops smaller than the images to come
    # `group` normalisation, whose statistics are the whole image's; or `pixel`, each pixel's own:
    # for networks without attention, in tiles of any size.
    model.norm = "group"
    model.num_heads = 1
    model.dropout = 0.0
    model.scale_shift = False  # the noise level scales and shifts, instead of being added
    model.embedding_scale = 5000.0  # on sqrt(gamma), before its sinusoids
    # 0: the network gives eps, as in the paper. Over 0: it corrects the linear estimate of eps for
    # y_0 = x + noise of this size (images in [-1, 1]), which spares a short training
    # the shifts in colour.
    model.residual_std = 0.0
    # Of labels, from 0, that the network is told: of folders the first level of subfolders, of
    # tars those within, of TFDS its `label`. 0: it is told none.
    model.num_classes = 0
    model.dtype = "bfloat16"  # of the computation: `bfloat16` or `float32`
    # Levels of fewer channels keep neighbouring pixels of a row side by side in so many, for TPUs:
    # the same parameters and result. 1: none do; 0: 128 on TPUs, 1 elsewhere.
    model.lanes = 0
    model.remat = False  # recompute activations in the backward pass: less memory, more time

    config.diffusion = diffusion = config_dict.ConfigDict()  # the training noise
    diffusion.schedule = "linear"  # `linear`, `quadratic`, `cosine`, `uniform_gamma`
    diffusion.num_steps = 2000  # T
    diffusion.beta_start = 1e-6  # linear and quadratic
    diffusion.beta_end = 1e-2  # linear and quadratic

    config.sampling = sampling = config_dict.ConfigDict()
    # `ancestral`: the paper's; `ddim`; `dpmpp_2m`: DPM-Solver++(2M); `heun`: two network calls a
    # step. What each needs how many steps for: docs/sampling.md.
    sampling.sampler = "ancestral"
    sampling.eta = 0.0  # ddim, dpmpp_2m: 0 is deterministic, 1 draws as much noise as ancestral
    # `respaced`: num_steps evenly spaced times of the training schedule; `karras`: noise-to-signal
    # ratios from sigma_max to sigma_min, evenly spaced in their rho-th root; `log_snr`: in their
    # logarithm; `noise_level`: noise levels from that of sigma_max to 1, evenly spaced; `linear`:
    # beta_start to beta_end.
    sampling.schedule = "respaced"
    sampling.num_steps = 100
    sampling.sigma_min = 0.02  # karras, log_snr: of the last step
    # karras, log_snr, noise_level: sqrt(1 / gamma - 1); 20 is a noise level of 0.05
    sampling.sigma_max = 20.0
    sampling.rho = 7.0  # karras
    sampling.beta_start = 1e-4  # linear
    sampling.beta_end = 0.12  # linear; fewer than 100 steps need more, to end in noise
    sampling.variance = "upper"  # ancestral: 1 - alpha_t, the paper's; or `posterior`
    sampling.clip = True  # the estimate of y_0, to [-1, 1]
    # Move the result to the nearest image whose downsampling is the input; of baselines as well.
    sampling.consistent = False
    # Of networks that know classes: eps = none + guidance * (of the class - none). 1: none; more
    # is more typical and less varied, for two network calls in one.
    sampling.guidance = 1.0
    # Of networks trained with train.source_noise, up to that: noise in the input, to forgive what
    # the stage before made.
    sampling.source_noise = 0.0
    sampling.batch_size = 16
    # Outputs larger than this, in pixels, are refined in overlapping tiles. 0: data.image_size,
    # which a network with attention has learnt; one without takes any, larger being faster. Outputs
    # depend on it (docs/upscaling.md).
    sampling.tile_size = 0

    config.train = train = config_dict.ConfigDict()
    train.num_steps = 1_000_000
    train.batch_size = 256
    train.accumulate_steps = 1  # micro-batches; 1: none
    train.loss = "l1"  # `l1` or `l2`
    train.learning_rate = 1e-4
    train.num_warmup_steps = 10_000  # linear from 0, then constant
    train.num_decay_steps = 0  # linear to 0 over the last steps; 0: constant to the end
    train.adam_b1 = 0.9
    train.adam_b2 = 0.999
    train.clip_norm = 1.0  # of the whole gradient
    train.ema_decay = 0.9999
    train.flip = True
    # Of the low resolution, for stages of a cascade: how often, and its width in its pixels.
    train.blur_probability = 0.0
    train.blur_sigma = (0.4, 0.6)
    # Likewise, and told to the network: greatest standard deviation of noise in the low resolution
    # (conditioning augmentation of Cascaded Diffusion Models). 0: none.
    train.source_noise = 0.0
    train.label_dropout = 0.1  # where there are classes: of labels left out, for guidance
    train.log_every_steps = 100
    train.sample_every_steps = 10_000  # pictures for TensorBoard; 0: never

    config.parallel = parallel = config_dict.ConfigDict()
    # `replicated`: every device holds everything; `zero1`: what is kept between steps (float32
    # parameters, average, optimizer state) is split over groups of up to 32 devices; `fsdp`:
    # parameters also within a step, gathered where they are used.
    parallel.layout = "zero1"
    # Devices that share the height of one image; 0: 1, or where there are fewer images than
    # devices as few as it takes.
    parallel.spatial = 0
    parallel.model = 1  # devices that share the channels of the network

    config.checkpoint = checkpoint = config_dict.ConfigDict()
    checkpoint.every_steps = 5_000
    checkpoint.keep_last = 3
    checkpoint.keep_best = True  # also keep that of the lowest held-out loss

    config.evaluation = evaluation = config_dict.ConfigDict()
    # `latest`; `best`: of the lowest held-out loss, of baselines of the highest held-out PSNR
    evaluation.checkpoint = "latest"
    # Of held-out images, in pixels; 0: data.image_size. Their source is smaller by the same
    # factor as in training.
    evaluation.image_size = 0
    # How inputs are made, both bicubic with anti-aliasing. `pillow`: as in training; `matlab`: as
    # MATLAB's imresize, to compare with benchmarks whose inputs it made (docs/evaluation.md).
    evaluation.downsampling = "pillow"
    # Of PSNR and SSIM: luminance (Y of YCbCr) instead of RGB, and pixels at each side left out.
    evaluation.luminance = False
    evaluation.crop_border = 0
    evaluation.num_images = 0  # of the held-out set; 0: all
    # Of each image, with noise of its own: the mean, the deviation between samples, the best, and
    # the diversity are measured.
    evaluation.num_samples = 1
    # Over 0: inputs are resized to so many pixels before the network, and its images to the
    # references' size, as for Table 3 (56 to 64, and 256 to 224).
    evaluation.network_input = 0
    # Of pretrained networks, whose weights their libraries download or a file holds: `fid` (with
    # the inception score; against `fid_reference`), `lpips`, `resnet50` (top-1 and top-5, of
    # images with labels).
    evaluation.feature_metrics = ()
    # Empty: the held-out images themselves; `train`: the training images; or a folder of images or
    # an .npz file of their statistics (`mu` and `sigma`).
    evaluation.fid_reference = ""
    evaluation.inception_weights = ""  # of FID; empty: torch-fidelity downloads them
    evaluation.lpips_weights = ""  # likewise
    evaluation.resnet50_weights = ""  # empty: Keras downloads them
    evaluation.paper_table = ""  # whose figures the report shows beside: `1` to `5`
    evaluation.num_pictures = 8  # rows of samples.png

    config.tuning = tuning = config_dict.ConfigDict()  # --mode=tune_schedule
    # What is to be best on held-out images: `fid`, `energy` (the energy score of patches of two
    # samples, which needs no weights), `psnr`, `ssim`. Empty: `fid` where
    # evaluation.inception_weights names a file, else `energy`.
    tuning.metric = ""
    tuning.num_images = 64
    tuning.calls = (5, 10, 20, 50)  # of the network for an image: budgets, searched one by one
    tuning.num_trials = 24  # for each budget
    # inference.json gets the fewest calls whose metric is within this share of the best.
    tuning.tolerance = 0.01
    # Over 0: also measure the paper's sampler in so many calls, such as 2000, to compare with.
    tuning.reference_calls = 0
    config.lock()
    return config


def variant(
    config: config_dict.ConfigDict, names: str, learning_rate: float = 1e-5
) -> config_dict.ConfigDict:
    """The config of another method, or with what a table of the paper measures.

    Baselines are trained as the paper does: by the squared error, keeping the checkpoint of the
    highest held-out PSNR.

    Args:
      config: of SR3, which is changed.
      names: empty, or some of `regression` or `srcnn`, `table_2` or `table_3`, and `cascade` (a
        stage after the first, whose sources are blurred), with commas.
      learning_rate: of the regression baseline; the paper's is 1e-5.
    """
    for name in filter(None, names.split(",")):
        if name in ("regression", "srcnn", "cascade") and not config.data.low_resolution:
            raise ValueError(
                f"the variant {name} is of networks with a low resolution, and this config makes "
                "images from nothing"
            )
        if name in ("regression", "srcnn"):
            config.method = name
            config.train.loss = "l2"
            config.train.learning_rate = learning_rate if name == "regression" else 1e-3
            config.evaluation.checkpoint = "best"
        elif name in ("table_2", "table_3"):
            _measure_table(config, name)
        elif name == "cascade":
            config.train.blur_probability = 0.5
        elif name != "sr3":
            raise ValueError(
                f"the config has no variant {name!r}; use --config=FILE:NAME with NAME one of "
                "regression, srcnn, table_2, table_3, cascade, or several with commas"
            )
    return config


def stage(workdir: str, **sampling: object) -> config_dict.ConfigDict:
    """A stage of a cascade: where its network was trained, and how it samples here.

    Args:
      workdir: of the training run.
      **sampling: keys of `sampling` in place of the run's; each can also be set on the command
        line, as --config.stage_1.sampling.num_steps=50.
    """
    config = config_dict.ConfigDict()
    config.workdir = workdir
    config.checkpoint = ""  # `latest`, `best` or a step; empty: as the run's config says
    config.sampling = {
        key: config_dict.placeholder(type(value)) for key, value in get_config().sampling.items()
    }
    config.sampling.update(sampling)
    return config


def cascade(output: str, *stages: config_dict.ConfigDict) -> config_dict.ConfigDict:
    """The config of a cascade, for --mode=generate: its stages in their order.

    Args:
      output: folder of the images, if --output names none.
      *stages: see `stage`.
    """
    config = config_dict.ConfigDict({"output": output})
    for number, section in enumerate(stages, 1):
        config[f"stage_{number}"] = section
    config.evaluation = evaluation = config_dict.ConfigDict()
    # Of the last stage's images: `fid`, with the Inception score.
    evaluation.feature_metrics = ()
    # `train`: the last stage's training images; or a folder, or an .npz file of statistics.
    evaluation.fid_reference = ""
    evaluation.inception_weights = ""  # empty: torch-fidelity downloads them
    evaluation.paper_tables = ()  # whose figures stand beside: `4`, `5`
    config.lock()
    return config


def _measure_table(config: config_dict.ConfigDict, name: str) -> None:
    """What Table 2 and Table 3 of the paper measure."""
    sizes = (config.data.low_resolution, config.data.image_size)
    wanted = {"table_2": [(64, 256)], "table_3": [(64, 256), (56, 224)]}[name]
    if sizes not in wanted:
        raise ValueError(
            f"{name} of the paper is of networks {' or '.join(f'{a} to {b}' for a, b in wanted)}, "
            f"and this config is {sizes[0]} to {sizes[1]}; use a config of ImageNet"
        )
    c = config.evaluation
    if name == "table_2":
        c.paper_table, c.feature_metrics, c.fid_reference = "2", ("fid",), "train"
    else:
        c.paper_table, c.feature_metrics = "3", ("resnet50",)
        c.image_size, c.num_images = 224, 1000
        c.network_input = 64 if sizes == (64, 256) else 0  # arXiv's protocol; the journal's
