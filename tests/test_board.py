"""What TensorBoard is told: folders, curves across a kill, columns, pictures."""

import io
import shlex
from dataclasses import replace

import pytest
from conftest import GRID, TINY, Countdown, train_all
from PIL import Image
from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.context import RequestContext
from tensorboard.plugins import base_plugin
from tensorboard.plugins.hparams import api_pb2, backend_context
from tensorboard.plugins.hparams.get_experiment import Handler as Experiment
from tensorboard.plugins.hparams.list_session_groups import Handler as Sessions

from engine.board import Curves, commands, curves_folder, log_images
from engine.cells import Cell, Settings, run_id
from engine.loop import train
from utils import Interrupted

ALONE = Cell("cnn", 4, 0, lr=0.05)


def curve(folder, tag="acc/test") -> list[tuple[int, float]]:
    points = EventAccumulator(str(folder)).Reload().Scalars(tag)
    return [(point.step, pytest.approx(point.value)) for point in points]


def hparams(folder) -> tuple[list[str], list[api_pb2.SessionGroup]]:
    """The columns in TensorBoard's order, the metrics among them, and the lines."""
    runs = EventMultiplexer().AddRunsFromDirectory(str(folder)).Reload()
    provider = MultiplexerDataProvider(runs, str(folder))
    context = backend_context.Context(base_plugin.TBContext(data_provider=provider))
    request = api_pb2.GetExperimentRequest(include_metrics=True)
    found = Experiment(RequestContext(), context, "", request).run()
    names = [info.display_name for info in (*found.hparam_infos, *found.metric_infos)]
    every = [api_pb2.STATUS_UNKNOWN, api_pb2.STATUS_RUNNING, api_pb2.STATUS_SUCCESS]
    request = api_pb2.ListSessionGroupsRequest(
        allowed_statuses=every, slice_size=99, include_metrics=True
    )
    return names, list(Sessions(RequestContext(), context, "", request).run().session_groups)


def test_names_in_a_protocols_folder_say_what_differs(tmp_path):
    short = replace(TINY, dataset="cifar10", epochs=100, t_max=200, batch_size=128)
    student, taught = Cell("cnn", 16, 0), Cell("cnn", 16, 2, "kd", 0.5, 10.0, teacher_seed=0)
    teacher = Cell("resnet18", 64, 1, teaches=True)
    for cell, settings, folder in (
        (student, Settings(), "reference/cnn-s0"),
        (taught, Settings(epochs=6, t_max=6), "e6-tmax6/cnn-kd-a0.5-T10-s2"),
        (teacher, Settings(train_size=500, epochs=6), "n500/resnet18-teacher-s1"),
        (student, short, "reference/cnn-s0"),
    ):
        assert curves_folder(tmp_path, cell, settings) == tmp_path / "runs" / folder


def test_a_longer_run_shows_the_epochs_of_the_shorter_one(tmp_path):
    """Their curves are in a folder of their own."""
    curves = Curves(tmp_path, ALONE, TINY, None, [{"test_acc": 0.5}, {"test_acc": 0.4}])
    curves.write(3, {"test_acc": 0.3})
    folder = curves_folder(tmp_path, ALONE, TINY)
    assert curve(folder) == [(1, 0.5), (2, 0.4), (3, 0.3)]
    assert curve(folder, "acc/best_test") == [(1, 0.5), (2, 0.5), (3, 0.5)]


def test_curves_go_on_after_a_kill_and_are_not_doubled(tmp_path):
    """The state that a killed run goes on from may be epochs behind its curves."""

    def go(done: int, last: int, level: float) -> Curves:
        history = [{"test_acc": 0.9}] * done
        curves = Curves(tmp_path, ALONE, TINY, None, history)
        for epoch in range(done + 1, last + 1):
            curves.write(epoch, {"test_acc": level, "loss": 1.0})
        return curves

    go(0, 4, 0.5)
    go(1, 3, 0.6)
    go(2, 5, 0.7).close(has_row=True)
    folder = curves_folder(tmp_path, ALONE, TINY)
    assert curve(folder) == [(1, 0.5), (2, 0.6), (3, 0.7), (4, 0.7), (5, 0.7)]
    assert curve(folder, "acc/best_test")[-1] == (5, 0.9)
    assert len(hparams(tmp_path / "runs")[1]) == 1  # one line, however many tries


def test_a_run_that_was_stopped_has_its_whole_curve(make_run):
    run = make_run(keeper=Countdown(6))
    with pytest.raises(Interrupted):
        train([ALONE], [ALONE], run)
    folder = curves_folder(run.out_dir, ALONE, TINY)
    assert len(curve(folder)) == 1
    train_all([ALONE], make_run())
    assert [step for step, _ in curve(folder)] == [1, 2]


def test_an_overwritten_run_replaces_its_curves_and_an_older_versions(tmp_path):
    older = tmp_path / "runs" / run_id(ALONE, TINY)
    older.mkdir(parents=True)
    (older / "events.out.tfevents.1.here.2.0").write_bytes(b"")
    for _ in range(2):
        curves = Curves(tmp_path, ALONE, TINY, None, [])
        curves.write(1, {"test_acc": 0.5})
        curves.close(has_row=True)
    assert not list(older.iterdir())
    assert len(list(curves_folder(tmp_path, ALONE, TINY).iterdir())) == 1


def test_hparams_begins_with_what_a_grid_varies(make_run):
    """The tab shows five columns, in TensorBoard's order, and takes them from any one run."""
    own = Cell("cnn", 4, 1, "sp", 0.5, None, 3000.0, lr=0.05, teacher_seed=0)
    run = make_run()
    for cells in ([ALONE, GRID[0]], [own]):
        train_all(cells, run)
    names, lines = hparams(run.out_dir / "runs")
    assert names[:5] == ["alpha", "temperature", "method", "seed", "network"]
    assert names[-2:] == ["test_acc", "best_test_acc"]
    found = {line.name: line for line in lines}
    assert len(found) == 3
    protocol = curves_folder(run.out_dir, own, TINY).parent.name
    hers = found[f"cnnw4-sp-a0.5-b3000-s1, {protocol}"]
    assert (
        hers.hparams["00 alpha"].number_value == 0.5 and hers.hparams["03 seed"].number_value == 1
    )
    assert "01 temperature" not in hers.hparams  # blank, as sp has none
    [last] = [v.value for v in hers.metric_values if v.name.tag == "acc/test"]
    assert (TINY.epochs, pytest.approx(last)) == curve(curves_folder(run.out_dir, own, TINY))[-1]


def test_the_pictures_have_a_folder_of_their_own(tmp_path):
    png = io.BytesIO()
    Image.new("RGB", (1280, 640), "white").save(png, "png")
    for _ in range(2):  # the second replaces the first
        log_images(tmp_path, {"heatmap": png.getvalue()})
    content = EventAccumulator(str(tmp_path / "runs-summary" / "report")).Reload()
    [shown] = content.Images("heatmap")
    assert (shown.width, shown.height) == (700, 350) and not (tmp_path / "runs").exists()
    assert commands(tmp_path) == {"pictures": f"tensorboard --logdir {tmp_path / 'runs-summary'}"}


def test_a_path_with_a_blank_can_be_pasted(tmp_path):
    (tmp_path / "a b" / "runs-summary").mkdir(parents=True)
    [command] = commands(tmp_path / "a b").values()
    assert shlex.split(command)[-1] == str(tmp_path / "a b" / "runs-summary")
