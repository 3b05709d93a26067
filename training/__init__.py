"""How the embedded mini checkpoint was made: data, one script per network, assembly and evaluation.

Order: `pack` (objects -> one file), `structure_vae`, `image_encoder`, `vggt`, `latent_vae`, `structure_flow`,
`latent_flow`, `assemble`, `evaluate`. Every script takes `--minutes`, resumes from its own checkpoint, and runs at a
tiny size on a CPU (`--tiny`).
"""

import trellis  # noqa: F401  (before torch: it sets what torch reads when it is loaded)
