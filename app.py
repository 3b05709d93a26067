"""Opens the reconstruction studio in a browser. Entry point of `make app` and of the Hugging Face Space."""

import studio.environment  # noqa: F401  (first: it prepares what torch, numba and gradio read at import)

if __name__ == "__main__":  # a worker process imports this file too, and has no use for the page
    from studio.pages.launch import main

    main("Opens the reconstruction studio in a browser.")
