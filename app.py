"""Opens the reconstruction studio in a browser. Entry point of `make app` and of the Hugging Face Space."""

import sys

import studio.environment  # noqa: F401  (first: it prepares what torch, numba and gradio read at import)

if __name__ == "__main__":  # a worker process imports this file too, and has no use for the page
    from studio.events import JobError
    from studio.pages.launch import serve
    from trellis.errors import InputError

    try:
        serve()
    except (InputError, JobError) as error:
        sys.exit(f"The studio cannot start. {error}")
