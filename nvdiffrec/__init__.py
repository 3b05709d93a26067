"""Make an asset agree with photographs: geometry, material, light and cameras fitted by differentiable rendering.

After "Extracting Triangular 3D Models, Materials, and Lighting From Images" (Munkberg et al., CVPR 2022), written anew
for a rasteriser that runs on the CPU.
"""
