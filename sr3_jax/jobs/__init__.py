"""The jobs behind `main`: they put training, evaluation and inference together."""

from sr3_jax import late

__getattr__ = late.names(
    __name__,
    {
        "calibrate": "calibrating",
        "distill": "distilling",
        "evaluate": "evaluating",
        "score": "evaluating",
        "train": "training",
        "tune_schedule": "tuning",
        "upscale": "upscaling",
    },
)
