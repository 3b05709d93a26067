"""Gradio building blocks: what a person sees and clicks. The work is done by the rest of `studio`."""
