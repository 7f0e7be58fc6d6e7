"""Metrics of images and samples: `registry` names them, the other modules compute them."""
