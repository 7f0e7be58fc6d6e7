"""Programs for looking at sr3_jax: one runnable module each."""
