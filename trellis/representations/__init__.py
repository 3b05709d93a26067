"""Gaussians, meshes and FlexiCubes: data and file formats, no rendering."""
