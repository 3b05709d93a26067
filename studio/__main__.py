"""`python -m studio`."""

import studio.environment  # noqa: F401  (first: it prepares what torch and numba read at import)

# isort: split
from studio.cli import main

if __name__ == "__main__":  # a worker process imports this file too
    main()
