"""How the pipeline tells how far it is."""

from __future__ import annotations

from collections.abc import Callable

# callback(stage, step, of), with stage one of "prepare", "cameras", "structure", "latent", "decode": step 0 when the
# stage begins, then after each step. What it raises ends the run.
Callback = Callable[[str, int, int], None]


def begin(callback: Callback | None, stage: str, of: int) -> Callable[[int], None]:
    """Tell that a stage begins, and return what tells of its further steps."""
    report = (lambda step: None) if callback is None else (lambda step: callback(stage, step, of))
    report(0)
    return report


def part(callback: Callback | None, index: int, parts: int) -> Callback | None:
    """The callback for one of several equal parts of a stage, whose steps are counted as one row."""

    def report(stage: str, step: int, of: int) -> None:
        if step or not index:
            callback(stage, index * of + step, parts * of)

    return callback and report
