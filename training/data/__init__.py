"""Training data made on the fly: textured meshes, random cameras and lights, voxels and signed distances."""
