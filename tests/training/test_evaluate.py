"""The evaluation that anyone can run, on a checkpoint of random weights."""

from __future__ import annotations

import csv

import pytest
from PIL import Image
from tiny_checkpoint import write_tiny_checkpoint

from training import evaluate


def test_medians_tables_and_contact_sheets_for_several_numbers_of_views(tmp_path, capsys):
    checkpoint = write_tiny_checkpoint(tmp_path / "tiny")
    evaluate.main([
        "--split", "examples", "--checkpoint", str(checkpoint), "--out", str(tmp_path), "--views", "1", "2",
        "--limit", "2",
    ])  # fmt: skip
    printed = capsys.readouterr().out
    assert "2 objects, medians" in printed
    rows = {}
    for views in (1, 2):
        with (tmp_path / f"table-{views}.csv").open() as file:
            rows[views] = list(csv.DictReader(file))
        assert len(rows[views]) == 2
        sheet = Image.open(tmp_path / f"contact-{views}.jpg")
        assert sheet.size == (evaluate.TILE * (views + 9), evaluate.TILE * 2)
    assert "relative rotation" in rows[2][0] and "relative rotation" not in rows[1][0]
    for name in ("Chamfer", "unseen SSIM of GLB", "IoU 64"):
        values = sorted(float(row[name]) for row in rows[2])
        (line,) = (line for line in printed.splitlines() if line.startswith(f"  {name} "))
        assert float(line.split()[-1]) == pytest.approx(sum(values) / 2, abs=6e-4)


def test_the_held_out_objects_are_all_there_and_named():
    readme = (evaluate.SPLITS / "README.md").read_text()
    for split, count in (("validation", 64), ("examples", 9)):
        names = evaluate.ObjectLibrary(evaluate.SPLITS / f"{split}.safetensors").names
        assert len(names) == count and all(name in readme for name in names)
