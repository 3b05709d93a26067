"""`python -m studio`."""

import studio.environment  # noqa: F401  (first: it prepares what torch and numba read at import)

# isort: split
from studio.cli import main

main()
