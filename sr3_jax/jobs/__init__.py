"""The jobs behind `main`: they put training, evaluation and inference together."""

from sr3_jax.jobs.calibrating import calibrate
from sr3_jax.jobs.distilling import distill
from sr3_jax.jobs.evaluating import evaluate, score
from sr3_jax.jobs.training import train
from sr3_jax.jobs.tuning import tune_schedule
from sr3_jax.jobs.upscaling import upscale

__all__ = ["calibrate", "distill", "evaluate", "score", "train", "tune_schedule", "upscale"]
