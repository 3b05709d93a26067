"""How long the stages took on this machine before, and so how long they will probably take.

One line of JSON per stage that ran, in a file that all processes append to. A stage's time is taken as proportional to
its work (steps, views, frames), with the median rate of the latest runs with the same networks on the same device.
"""

from __future__ import annotations

import json
import logging
import os
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from statistics import median

from studio.cache import file_lock
from studio.settings import ReconstructSettings

logger = logging.getLogger(__name__)

FILE_VARIABLE = "RECONSTUDIO_HISTORY"
_LATEST = 9  # runs that count
_MAX_BYTES = 1_000_000  # a few thousand jobs; then the older half goes


def default_file() -> Path:
    """Where the history is kept unless told otherwise."""
    chosen = os.environ.get(FILE_VARIABLE)
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(chosen) if chosen else base / "reconstudio" / "history.jsonl"


def work(settings: ReconstructSettings, views: int) -> dict[str, float]:
    """How much there is to do in each stage, in units that its time grows with."""
    return {
        "prepare": views,
        "cameras": views,
        "structure": settings.structure.steps * settings.structure_candidates,
        "latent": settings.latent.steps,
        "decode": 1,
        "paint": views if settings.texture_source == "photographs" else 0,
        "mesh": 1,
        "bake": 1,
        "video": settings.video_frames * settings.video_size**2 / 512**2,
        "report": views + 1,
        "write": 1,
    }


class History:
    """Measured times. Neither a missing nor a damaged nor an unwritable file is an error."""

    def __init__(self, file: Path | None = None) -> None:
        self._file = default_file() if file is None else file
        self._rates: dict[tuple[str, str], list[float]] = defaultdict(list)  # (engine, stage): seconds per unit
        self._read()

    def record(self, engine: str, settings: ReconstructSettings, views: int, seconds: Mapping[str, float]) -> None:
        """Remember the stages that ran. `engine`: a hash of networks and device."""
        units = work(settings, views)
        lines = []
        for stage, spent in seconds.items():
            if not units[stage]:  # no video was asked for
                continue
            rate = spent / units[stage]
            self._rates[engine, stage].append(rate)
            lines.append(json.dumps({"engine": engine, "stage": stage, "rate": round(rate, 6)}))
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            with file_lock(self._file.with_suffix(".lock")), self._file.open("a+", encoding="utf-8") as stream:
                stream.write("".join(line + "\n" for line in lines))
                if stream.tell() > _MAX_BYTES:
                    stream.seek(0)
                    kept = stream.readlines()
                    stream.truncate(0)
                    stream.writelines(kept[len(kept) // 2 :])
        except OSError as error:
            logger.warning("The times of this run are not remembered: %s", error)

    def expected(self, engine: str, settings: ReconstructSettings, views: int) -> dict[str, float] | None:
        """Seconds per stage, or None if some stage has never run here with these networks."""
        seconds = {}
        for stage, units in work(settings, views).items():
            if not units:
                seconds[stage] = 0.0
                continue
            rates = self._rates.get((engine, stage), [])[-_LATEST:]
            if not rates:
                return None
            seconds[stage] = units * median(rates)
        return seconds

    def _read(self) -> None:
        try:
            lines = self._file.read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError:
            return
        for line in lines:
            try:
                entry = json.loads(line)
                self._rates[str(entry["engine"]), str(entry["stage"])].append(float(entry["rate"]))
            except (ValueError, TypeError, KeyError):
                continue  # torn or foreign
