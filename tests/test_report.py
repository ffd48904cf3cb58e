import builtins
import json
import sys

import numpy as np
import pytest
import torch

from audiocodec.training import report
from audiocodec.training.report import Board, NoBoard, draw, open_board, read_metrics


def _line(stage, updates, **more):
    return {"stage": stage, "updates": updates, **more}


def _write(run, lines, tail=""):
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + tail)


@pytest.fixture
def run(tmp_path):
    """A run of three stages, the last line torn."""
    lines = []
    for i, stage in enumerate(("reconstruction", "adversarial", "entropy")):
        for k in range(1, 41):
            hours = i + k / 40
            place = {"updates": 100 * k, "total": 4000 * i + 100 * k, "hours": hours}
            if stage == "entropy":
                lines.append({"stage": stage, **place, "bits": 9 - k / 80, "valid": {"bits": 9.1 - k / 80}})
                continue
            losses = {"loudness": 1 / hours, "commitment": 2.0, **({"critic": 1.9} if i else {})}
            lines.append({"stage": stage, **place, "rate": 6e-4, "waiting": 0.01, "gradient": 2.0, **losses})
            if k % 10 == 0:
                scores = {"mel@4": 0.4, "mel@8": 0.3, "score": 0.35, "perplexity@1": 600.0, "use@1": 0.9, "frames": 99}
                lines.append({"stage": stage, **place, "valid": scores})
    _write(tmp_path, lines, '{"stage": "entropy", "upd')
    return tmp_path


@pytest.fixture
def without(monkeypatch):
    """Make modules of some names fail to import."""
    def hide(*names):
        real = builtins.__import__

        def fake(name, *rest):
            if name.startswith(names):
                raise ImportError(name)
            return real(name, *rest)

        for name in [name for name in sys.modules if name.startswith(names)]:
            monkeypatch.delitem(sys.modules, name)
        monkeypatch.setattr(builtins, "__import__", fake)
    return hide


# RUN/metrics.jsonl


def test_torn_and_foreign_lines_are_left_out(tmp_path):
    _write(tmp_path, [_line("reconstruction", 100, hours=0.1, loudness=1.0)],
           'null\n[]\n{"loudness": 3}\n\n\xff\n{"stage": "reconstruction", "updates": 200, "lou')
    assert read_metrics(tmp_path / "metrics.jsonl") == [_line("reconstruction", 100, hours=0.1, loudness=1.0)]


def test_what_a_resumed_run_repeats_counts_once(tmp_path):
    interrupted = [_line("a", 100, hours=1, x=1), _line("a", 100, hours=1, valid={"score": 1}),
                   _line("a", 200, hours=2, x=2), _line("b", 100, hours=3, x=3), _line("b", 200, hours=4, x=4)]
    repeated = [_line("a", 200, hours=2, x=20), _line("b", 100, hours=3, x=30)]
    _write(tmp_path, interrupted + repeated)
    assert read_metrics(tmp_path / "metrics.jsonl") == [*interrupted[:2], *repeated]


def test_hours_follow_from_the_seconds_of_each_stage(tmp_path):
    _write(tmp_path, [_line("a", 100, seconds=1800), _line("a", 200, seconds=3600), _line("b", 100, seconds=900)])
    assert [line["hours"] for line in read_metrics(tmp_path / "metrics.jsonl")] == [0.5, 1.0, 1.25]


# RUN/report.png


@pytest.mark.filterwarnings("error")
def test_the_report_is_drawn(run):
    image = pytest.importorskip("matplotlib.image")
    assert draw(run) == run / "report.png"
    height, width = image.imread(run / "report.png").shape[:2]
    assert width > height > 500
    assert sorted(path.name for path in run.iterdir()) == ["metrics.jsonl", "report.png"]


def test_panels_hold_what_the_lines_say(run):
    lines, unit = report._timed(read_metrics(run / "metrics.jsonl"))
    panels = report._curves(lines)
    assert unit == "hours"
    assert list(panels) == ["mel", "perplexity", "use", "loudness", "commitment", "critic", "bits", "gradient", "rate",
                            "waiting"]
    assert set(panels["mel"]) == {"4", "8", "mean"}
    assert panels["mel"]["8"]["adversarial"][-1] == (2.0, 0.3)
    assert list(panels["critic"]["training"]) == ["adversarial"]
    assert set(panels["bits"]) == {"training", "validation"}


def test_short_runs_are_told_in_minutes_and_single_points_are_seen(tmp_path):
    figures = pytest.importorskip("matplotlib.figure")
    _write(tmp_path, [_line("reconstruction", 9, hours=0.1, loudness=2), _line("polish", 10, hours=0.2, loudness=1)])
    lines, unit = report._timed(read_metrics(tmp_path / "metrics.jsonl"))
    assert unit == "minutes" and [line["time"] for line in lines] == pytest.approx([6, 12])
    figure = figures.Figure()
    report._draw_panels(figure, report._curves(lines), report._stage_spans(lines), unit)
    axes = figure.axes[0]
    assert axes.get_xlabel() == "minutes"
    assert [line.get_xdata()[0] for line in axes.lines if line.get_marker() == "."] == pytest.approx([6, 12])


def test_smoothing_keeps_constants_and_passes_over_gaps():
    points = [(k / 10, 5.0) for k in range(200)]
    points[50] = (5.0, float("nan"))
    hours, values = zip(*report._smooth(points))
    assert values == pytest.approx(200 * [5.0]) and hours == pytest.approx(np.arange(200) / 10)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("value", [0.5, 0, float("nan"), float("inf")])
def test_short_and_broken_runs_are_drawn_too(tmp_path, value):
    pytest.importorskip("matplotlib")
    _write(tmp_path, [_line("reconstruction", 100, loudness=value, gradient=value, strange="word", other=None)])
    assert draw(tmp_path) == tmp_path / "report.png"


@pytest.mark.filterwarnings("error")
def test_nothing_to_draw(tmp_path):
    pytest.importorskip("matplotlib")
    assert draw(tmp_path) is None
    _write(tmp_path, [])
    assert draw(tmp_path) is None


def test_trouble_becomes_a_warning(tmp_path):
    pytest.importorskip("matplotlib")
    _write(tmp_path, [_line("reconstruction", 100, loudness=1.0)])
    (tmp_path / "report.png").mkdir()
    with pytest.warns(UserWarning, match="report.png was not drawn"):
        assert draw(tmp_path) is None


def test_without_matplotlib_a_hint_is_given_once(run, without, recwarn):
    without("matplotlib")
    report._hint.cache_clear()
    assert draw(run) is None and draw(run) is None
    assert [str(warning.message) for warning in recwarn] == [
        'report.png needs matplotlib: pip install "nac-audiocodec[train]"']


# TensorBoard


def _events(run):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    return accumulator.EventAccumulator(str(run / "tensorboard"), {"scalars": 0, "images": 0, "audio": 0}).Reload()


def test_a_resumed_board_draws_nothing_twice(tmp_path):
    pytest.importorskip("tensorboard")
    board = open_board(tmp_path)
    for step in (100, 200, 300, 400):
        board.scalars({"stage": "reconstruction", "loudness": step / 100, "mel@8": 1.0}, step)
    board.close()
    board = open_board(tmp_path, 200)                    # the last checkpoint
    board.scalars({"loudness": 30.0}, 300)
    board.close()
    events = _events(tmp_path)
    assert [(event.step, event.value) for event in events.Scalars("loudness")] == [(100, 1), (200, 2), (300, 30)]
    assert events.Tags()["scalars"] == ["loudness", "mel/8"]


def test_examples_and_codebooks_are_logged(tmp_path):
    pytest.importorskip("tensorboard")
    board = open_board(tmp_path)
    clips = torch.sin(torch.arange(4800) * 0.3).repeat(2, 1)
    for step in (100, 200):
        board.examples(clips, {4: clips * 0.5, 8: clips * 0.9}, step, 24_000)
        board.codebooks(np.array([0.5, 1.0]), np.array([30.0, 60.0]), step)
    board.close()
    events = _events(tmp_path)
    assert events.Scalars("codebooks/least_perplexity")[0].value == 30
    assert [event.value for event in events.Scalars("perplexity_of_book/02")] == [60, 60]
    assert [event.step for event in events.Audio("clip_2/reference")] == [100]
    assert [event.step for event in events.Audio("clip_1/08_books")] == [100, 200]
    image = events.Images("spectrograms_1/reference_8_4")[0]
    assert (image.width, image.height) == (4800 // 256 + 1, 3 * 257)


def test_a_sine_is_bright_at_its_frequency_alone():
    image = report._spectrogram(torch.sin(2 * torch.pi * 64 / 512 * torch.arange(4800))).sum(0)
    middle = image[:, 10]
    assert int(middle.argmax()) == 256 - 64 and middle.max() > 2.2 and middle[:100].max() < 0.1


def test_without_tensorboard_nothing_happens(tmp_path, without):
    without("tensorboard", "torch.utils.tensorboard")
    board = open_board(tmp_path, 100)
    assert isinstance(board, NoBoard) and not list(tmp_path.iterdir())
    board.scalars({"loudness": 1.0}, 100)
    board.codebooks(np.ones(2), np.ones(2), 100)
    board.examples(torch.zeros(1, 800), {4: torch.zeros(1, 800)}, 100, 24_000)
    board.close()


def test_both_boards_have_the_same_methods():
    assert {name for name in vars(Board) if name[0] != "_"} == {name for name in vars(NoBoard) if name[0] != "_"}
