"""Upscaling with a trained network, in Python and of files."""
