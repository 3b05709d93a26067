"""Opens the Refine page alone, for a finished GLB and photographs of it: `python app_refine.py`."""

import sys

import studio.environment  # noqa: F401  (first: it prepares what torch, numba and gradio read at import)

if __name__ == "__main__":  # a worker process imports this file too, and has no use for the page
    from studio.events import JobError
    from studio.pages.launch import serve
    from trellis.errors import InputError

    try:
        serve(refine_only=True)
    except (InputError, JobError) as error:
        sys.exit(f"The studio cannot start. {error}")
