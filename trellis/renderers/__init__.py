"""Cameras and differentiable rasterisers."""
