"""Opens the reconstruction studio in a browser. Entry point of `make app` and of the Hugging Face Space."""

import sys

import studio.environment  # noqa: F401  (first: it prepares what torch, numba and gradio read at import)

# isort: split
from studio.pages.launch import serve
from trellis.errors import InputError

if __name__ == "__main__":
    try:
        serve()
    except InputError as error:
        sys.exit(f"The studio cannot start. {error}")
