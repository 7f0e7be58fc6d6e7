"""Evaluation: scores on held-out images, and pictures of them."""
