"""Feed-forward reconstruction: photographs of one object in, Gaussians and a textured mesh out."""

import os

# spconv reads its algorithm choice once, at import; the tuned kernels it would pick otherwise differ between cards.
os.environ.setdefault("SPCONV_ALGO", "native")
# Idle OpenMP threads sleep instead of spinning. With a browser, a second request or a second script on the same cores
# the spinning default makes torch and numba three to ten times slower; on an idle machine sleeping costs some 6 %. The
# OpenMP library reads it when it is loaded: a program that imports torch must import this package, or set it, before.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# The threading layer of stock numba that survives calls from several Python threads ("workqueue" aborts the process).
os.environ.setdefault("NUMBA_THREADING_LAYER", "omp")
