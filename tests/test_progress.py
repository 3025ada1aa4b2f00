"""What a log says of a run that takes long."""

from engine import progress
from engine.progress import Progress


def test_a_log_has_a_line_an_epoch_and_none_too_soon(monkeypatch, capsys):
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    run = Progress("45 cells", epochs=10, steps=5, first=2, lead=True)
    for done, seconds in [(3, 20), (4, 40), (5, 69), (6, 80)]:
        now[0] = seconds
        run.epoch(done, [1.5, 1.25], [0.5, 0.4])
    lines = capsys.readouterr().err.splitlines()
    figures = "loss 1.250 to 1.500, test accuracy 0.400 to 0.500"
    assert lines == [
        f"45 cells: epoch 4 of 10, {figures}, 00:40 gone, 02:00 left",
        f"45 cells: epoch 6 of 10, {figures}, 01:20 gone, 01:20 left",
    ]


def test_other_ranks_are_silent(monkeypatch, capsys):
    monkeypatch.setattr(progress, "QUIET_SECONDS", 0)
    run = Progress("45 cells", epochs=2, steps=5, first=0, lead=False)
    run.epoch(1, [1.0], [0.5])
    assert capsys.readouterr().err == ""
