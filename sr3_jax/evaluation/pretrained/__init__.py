"""Metrics of pretrained networks: FID, Inception score, LPIPS, ResNet-50."""
