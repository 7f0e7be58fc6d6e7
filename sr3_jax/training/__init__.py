"""Training: state, step, loop and checkpoints. `state` and `step` need no TensorFlow."""
