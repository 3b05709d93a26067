"""Real worker processes: progress, cancelling, sudden death, fairness, and memory."""

from __future__ import annotations

import os
import signal
import threading
import time

import pytest
from tiny_checkpoint import tiny_views

from studio.events import Cancelled, JobError, Progress, Queued, Result
from studio.fair_queue import FairQueue
from studio.job import make_job
from studio.service import Service
from studio.settings import make_settings
from trellis.errors import InputError

LIMIT = 120  # seconds, for slow machines


@pytest.fixture
def slow(quick):
    """Settings that keep the worker busy until it is stopped."""
    return make_settings({"structure_steps": 50, "latent_steps": 50, "video_frames": 240, "video_size": 512}, quick)




def follow(ticket, stage: str):
    """Wait for a stage without closing the event stream, which would cancel the job."""
    events = ticket.events()
    for event in events:
        if isinstance(event, Progress) and event.stage == stage:
            return events
    raise AssertionError(f"{stage} was never reached")


def test_a_job_tells_its_progress_and_leaves_its_files(service, quick, tmp_path):
    assert service.defaults.structure.steps == 3  # what the tiny checkpoint recommends
    events = list(service.submit(make_job(tiny_views(2), quick, tmp_path / "out")).events())
    assert isinstance(events[-1], Result) and events[-1].run.is_file()
    stages = list(dict.fromkeys(event.stage for event in events if isinstance(event, Progress)))
    assert stages[0] == "prepare" and stages[-1] == "write" and len(stages) == 10


def test_starting_twice_starts_one_worker(service):
    starts, pid = service.workers[0].starts, service.workers[0].pid
    assert service.start() is service
    assert (service.workers[0].starts, service.workers[0].pid) == (starts, pid)
    assert sum(thread.name == "studio dispatcher" for thread in threading.enumerate()) == 1


def test_bad_views_come_back_sentence_by_sentence(service, quick, tmp_path):
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_text("no picture")
    ticket = service.submit(make_job([tmp_path / "a.png", tmp_path / "b.png"], quick, tmp_path / "out"))
    with pytest.raises(InputError) as caught:
        ticket.wait(LIMIT)
    assert len(caught.value.sentences) == 2 and ticket.state == "failed"


def test_cancelling_frees_the_worker_within_two_seconds_and_the_next_job_runs(service, quick, slow, tmp_path):
    ticket = service.submit(make_job(tiny_views(2), slow, tmp_path / "slow"))
    events = follow(ticket, "structure")
    cancelled = time.monotonic()
    ticket.cancel()
    with pytest.raises(Cancelled):
        list(events)
    assert time.monotonic() - cancelled < 2
    assert ticket.state == "cancelled" and not (tmp_path / "slow").exists()
    pid = service.workers[0].pid
    assert service.submit(make_job(tiny_views(1), quick, tmp_path / "next")).wait(LIMIT).run.is_file()
    assert service.workers[0].pid == pid


def test_a_waiting_job_is_cancelled_at_once(service, slow, tmp_path):
    running = service.submit(make_job(tiny_views(2), slow, tmp_path / "a"))
    events = follow(running, "prepare")
    waiting = service.submit(make_job(tiny_views(2), slow, tmp_path / "b"))
    stream = waiting.events()
    assert next(stream) == Queued(0)
    waiting.cancel()
    with pytest.raises(Cancelled):
        list(stream)
    assert running.state == "running"
    events.close()  # cancels it
    with pytest.raises(Cancelled):
        running.wait(LIMIT)


def test_killing_the_worker_fails_its_job_with_the_reason_and_the_queue_goes_on(service, quick, slow, tmp_path):
    finished = service.submit(make_job(tiny_views(1), quick, tmp_path / "finished"))
    finished.wait(LIMIT)
    victim = service.submit(make_job(tiny_views(2), make_settings({"seed": 7}, slow), tmp_path / "victim"))
    follower = service.submit(make_job(tiny_views(1), quick, tmp_path / "follower"))
    events = follow(victim, "latent")
    pid = service.workers[0].pid
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(JobError, match="was killed in the middle of the job; most often .* memory") as caught:
        list(events)
    assert caught.value.kind == "worker" and victim.state == "failed"
    assert follower.wait(LIMIT).run.is_file() and service.workers[0].pid != pid
    assert finished.result.run.is_file() and finished.wait().mesh.is_file()
    assert list((tmp_path / "victim").iterdir()) == []
    # The same job again goes on from the stages that the dead worker had finished.
    again = service.submit(make_job(tiny_views(2), make_settings({"seed": 7, "latent_steps": 2}, quick), tmp_path))
    assert {"prepare", "cameras"} <= set(again.wait(LIMIT).cached)


def test_memory_returns_to_its_baseline(service, quick, tmp_path):
    worker = service.workers[0]
    resident = []
    for number in range(8):
        settings = make_settings({"latent_seed": 100 + number}, quick)
        service.submit(make_job(tiny_views(3), settings, tmp_path / str(number))).wait(LIMIT)
        time.sleep(0.2)
        resident.append(_rss(worker.pid))
    # One reading wanders with the allocator; a leak lifts them all, five jobs' worth between the two groups.
    assert min(resident[-3:]) < 1.05 * max(resident[1:4]), [round(value / 2**20) for value in resident]


def test_a_hung_worker_is_ended(checkpoint, quick, tmp_path):
    with Service(str(checkpoint), ["cpu"], silence=3) as service:
        ticket = service.submit(make_job(tiny_views(2), quick, tmp_path / "a"))
        follow_stream = follow(ticket, "prepare")
        os.kill(service.workers[0].pid, signal.SIGSTOP)
        with pytest.raises(JobError, match="no sign of life for 3 seconds"):
            list(follow_stream)
    assert service.workers[0].pid is None


def test_a_checkpoint_that_cannot_be_loaded_is_a_sentence(tmp_path):
    (tmp_path / "pipeline.json").write_text("{}")
    with pytest.raises(InputError, match=r"pipeline\.json"):
        Service(str(tmp_path), ["cpu"]).start()


def test_users_are_served_in_turn():
    line: FairQueue[str] = FairQueue(capacity=6, per_user=3)
    for item in ("a1", "a2", "a3"):
        line.put("a", item)
    line.put("b", "b1")
    line.put("c", "c1")
    with pytest.raises(InputError, match="3 of your jobs are waiting"):
        line.put("a", "a4")
    assert [line.ahead(item) for item in ("a1", "b1", "c1", "a2", "a3")] == [0, 1, 2, 3, 4]
    assert line.remove("c1") and not line.remove("c1") and line.ahead("c1") is None
    assert [line.get() for _ in range(4)] == ["a1", "b1", "a2", "a3"]
    assert line.get(timeout=0.01) is None
    for user in "defghi":
        line.put(user, user)
    with pytest.raises(InputError, match="6 jobs are waiting"):
        line.put("j", "j")
    assert len(line.close()) == 6 and line.get() is None
    with pytest.raises(InputError, match="closing"):
        line.put("a", "a")


def test_a_waiting_reader_is_woken():
    line: FairQueue[int] = FairQueue()
    got: list[int | None] = []
    reader = threading.Thread(target=lambda: got.append(line.get(timeout=30)))
    reader.start()
    line.put("a", 1)
    reader.join(timeout=30)
    assert got == [1]


def _rss(pid: int) -> int:
    import psutil

    return psutil.Process(pid).memory_info().rss
