"""Jobs in groups: batches and sweeps."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from tiny_checkpoint import tiny_views

from studio.batch import is_finished
from studio.compare import row_of, sweep
from studio.events import CamerasFound, Cancelled, Progress, Result
from studio.groups import run_group
from studio.job import make_job
from studio.settings import make_settings
from trellis.errors import InputError


def test_a_sweep_shares_its_stages_and_one_bad_cell_stops_no_other(service, quick, tmp_path):
    cells = sweep(tiny_views(2), ["texture-size=512,768", "latent_seed=5"], quick, tmp_path / "out")
    assert [cell.name for cell in cells] == ["texture_size=512 latent_seed=5", "texture_size=768 latent_seed=5"]
    (tmp_path / "broken.png").write_text("no picture")
    jobs = [cells[0].job, make_job([tmp_path / "broken.png"], quick, tmp_path / "broken"), cells[1].job]
    last = {}
    for index, event in run_group(service, jobs):
        last[index] = event
    assert isinstance(last[1], InputError) and isinstance(last[0], Result) and isinstance(last[2], Result)
    assert set(last[2].cached) == {"prepare", "cameras", "structure", "latent", "decode", "paint", "mesh", "video"}
    row = row_of(cells[1])
    assert row["texture_size"] == "768" and row["psnr"] > 0 and row["triangles"] == last[2].counts["triangles"]


def test_a_cancelled_group_starts_nothing_more(service, quick, tmp_path):
    jobs = [make_job(tiny_views(1), quick, tmp_path / str(number)) for number in range(3)]
    cancelled = threading.Event()
    seen = []
    with pytest.raises(Cancelled):
        for index, event in run_group(service, jobs, cancelled):
            seen.append(index)
            if isinstance(event, Progress):
                cancelled.set()
    assert set(seen) == {0} and list(tmp_path.iterdir()) == []


def test_a_group_that_nobody_follows_any_more_is_cancelled(service, quick, tmp_path):
    group = run_group(service, [make_job(tiny_views(1), quick, tmp_path / "a", until=None)])
    next(group)
    group.close()
    assert not any(thread.name.startswith("job group") for thread in threading.enumerate())


def test_cameras_can_be_asked_for_in_a_group(service, quick, tmp_path):
    jobs = [make_job(tiny_views(count), quick, tmp_path, until="cameras") for count in (1, 2)]
    ended = [event for _, event in run_group(service, jobs) if isinstance(event, CamerasFound)]
    assert [len(found.views) for found in ended] == [1, 2] and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("vary", "sentence"),
    [
        (["latent_steps"], "looks like structure_steps=6,12"),
        (["latent_steps=99"], "from 1 to 50"),
        (["no=1"], "There is no setting 'no'"),
        (["seed=" + ",".join(map(str, range(300)))], "more than 200"),
    ],
)
def test_a_sweep_that_makes_no_sense_is_a_sentence(quick, tmp_path, vary, sentence):
    with pytest.raises(InputError, match=sentence):
        sweep(tiny_views(1), vary, quick, tmp_path)


def test_repeated_values_are_one_cell(quick, tmp_path):
    assert len(sweep(tiny_views(1), ["seed=1,1", "seed=2"], quick, tmp_path)) == 2


def test_a_run_counts_as_finished_for_its_photographs_and_settings_alone(service, quick, tmp_path):
    photo, out = tmp_path / "photo.png", tmp_path / "out"
    tiny_views(1)[0].save(photo)

    def job(path: Path = photo, **changes):
        return make_job([path], make_settings(changes, quick), out)

    assert not is_finished(job())
    service.submit(job()).wait(120)
    assert is_finished(job()) and is_finished(job(seed=3), any_seed=True)
    assert not is_finished(job(seed=3)) and not is_finished(job(latent_steps=5))
    tiny_views(2)[1].save(photo)
    assert not is_finished(job())
    (out / "run.json").write_text("[]")
    assert not is_finished(job())
