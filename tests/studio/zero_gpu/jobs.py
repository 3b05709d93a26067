"""Jobs on a service as it is in a ZeroGPU Space: `main(CHECKPOINT, FOLDER)` prints what came, as JSON.

test_zero_gpu.py runs it in a process of its own, for one that is to be forked must not have run what other tests have.
"""

from __future__ import annotations

import studio.environment  # noqa: F401  (first: it prepares what torch and numba read at import)

# isort: split
import json
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import gradio as gr
import spaces
from studio_settings import QUICK, QUICK_REFINEMENT
from tiny_checkpoint import tiny_views

from studio.events import Cancelled, JobError, Progress, Result
from studio.groups import run_group
from studio.job import Job, make_job
from studio.pages.follow import Followed
from studio.refine_job import make_refine_job
from studio.service import Service, Ticket
from studio.settings import make_settings
from trellis.errors import InputError


class Sweep(Followed):
    """As the page follows a comparison."""

    def _take(self, event: Any) -> None:
        pass


def follow(ticket: Ticket, stage: str) -> Any:
    """Wait for a stage to run; the events that are still to come. Dropping them cancels the job."""
    events = ticket.events()
    for event in events:
        if isinstance(event, Progress) and event.stage == stage and not event.cached and event.step:
            return events
    raise AssertionError(f"{stage} was never reached")


def failure(ticket: Ticket) -> dict[str, Any]:
    try:
        ticket.wait(120)
    except (InputError, JobError) as error:
        return {"type": type(error).__name__, "sentence": str(error), "sentences": getattr(error, "sentences", [])}
    raise AssertionError("it did not fail")


def tell(checkpoint: str, folder: Path) -> dict[str, Any]:
    told: dict[str, Any] = {"own pid": os.getpid()}
    with Service(checkpoint, ["cpu"], gpu_seconds=100) as service:
        worker = service.workers[0]
        quick = make_settings(QUICK, service.defaults)
        slow = make_settings({"structure_steps": 50, "latent_steps": 50, "seed": 9}, quick)

        def job(name: str, settings: Any = quick, **more: Any) -> Job:
            return make_job(tiny_views(2), settings, folder / name, **more)

        spaces.VISITOR.set("ada")
        ticket = service.submit(job("whole"))
        spaces.VISITOR.set("ben")  # a later request is none of that job's business
        events, pids = [], set()
        for event in ticket.events():
            events.append((time.monotonic(), event))
            pids.add(worker.pid)
        stages = [event.stage for _, event in events if isinstance(event, Progress)]
        told["whole"] = {
            "stages": list(dict.fromkeys(stages)), "ended": isinstance(events[-1][1], Result),
            "files": sorted(path.name for path in (folder / "whole").iterdir()),
            "pids": sorted(pids - {None}), "spread": events[-1][0] - events[0][0],
            "first progress": next(t for t, event in events if isinstance(event, Progress)) - events[0][0],
        }  # fmt: skip

        ticket = service.submit(job("stopped", slow, use_cache=False))
        events, before = follow(ticket, "latent"), time.monotonic()
        running = worker.pid
        ticket.cancel()
        try:
            list(events)
        except Cancelled:
            told["stopped"] = {"seconds": time.monotonic() - before, "left": (folder / "stopped").exists()}
        ticket = service.submit(job("next", until="cameras"))
        told["next"] = {"views": len(ticket.wait(120).views), "cached": ticket.result.cached}
        ticket = service.submit(job("cached", use_cache=False))
        events = follow(ticket, "structure")
        told["next"]["same process"] = worker.pid == running
        events.close()  # cancels it

        ticket = service.submit(job("killed", slow))
        events = follow(ticket, "latent")
        os.kill(worker.pid, signal.SIGKILL)
        told["killed"] = {**failure(ticket), "left": [str(path) for path in (folder / "killed").glob("*")]}
        ticket = service.submit(job("killed", slow))
        told["after"] = {"run": ticket.wait(120).run.is_file(), "cached": ticket.result.cached}

        (folder / "broken.png").write_text("no picture")
        told["refused"] = failure(service.submit(make_job([folder / "broken.png"] * 2, quick, folder / "refused")))

        refined = service.submit(make_refine_job(folder / "whole", QUICK_REFINEMENT, folder / "refined")).wait(120)
        told["refined"] = refined.mesh.is_file()

        spaces.refusal = gr.Error("You have exceeded your quota (100s requested vs. 30s left). Try again in 1:00:00. ",
                                  title="ZeroGPU quota exceeded")  # fmt: skip
        told["quota"] = failure(service.submit(job("quota")))
        spaces.refusal = None
        told["paid again"] = service.submit(job("paid")).wait(120).run.is_file()

        spaces.VISITOR.set("cyd")
        asked = Sweep(run_group(service, [job("group")]), threading.Event())
        spaces.VISITOR.set("dan")
        told["group"] = asked.wait(120) and asked.error is None
    told["calls"] = spaces.calls
    return told


def main(checkpoint: str, folder: str) -> None:
    print(json.dumps(tell(checkpoint, Path(folder))))
