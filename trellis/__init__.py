"""Feed-forward reconstruction: photographs of one object in, Gaussians and a textured mesh out."""

import os

# spconv reads its algorithm choice once, at import; the tuned kernels it would pick otherwise differ between cards.
os.environ.setdefault("SPCONV_ALGO", "native")
