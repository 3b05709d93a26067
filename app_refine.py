"""Opens the Refine page alone, for a finished GLB and photographs of it: `python app_refine.py`."""

import studio.environment  # noqa: F401  (first: it prepares what torch, numba and gradio read at import)

if __name__ == "__main__":  # a worker process imports this file too, and has no use for the page
    from studio.pages.launch import main

    main("Opens the page alone that refines a finished GLB with photographs of it.", refine_only=True)
