"""Figures show every case, and infinite or missing perplexities above all finite ones."""

import math
from collections.abc import Iterator

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from editlib import plot


@pytest.fixture(autouse=True)
def closed() -> Iterator[None]:
    plt.switch_backend("agg")
    yield
    plt.close("all")


@pytest.fixture
def frame() -> pd.DataFrame:
    """Six edits of every kind, one infinite and one that could not be measured."""
    return pd.DataFrame(
        {
            "case_id": range(6),
            "kind": [*plot.KINDS, *plot.KINDS],
            "arm": ["rome"] * 3 + ["c-rome"] * 3,
            "perplexity_mean": [math.inf, 3.0, 3.1, 40.0, math.nan, 3.2],
            "perplexity_ratio": [math.inf, 1.0, 1.03, 13.3, math.nan, 1.07],
            "denominator": [0.01, 1.0, -1.1, 0.02, 1.0, 0.9],
            "denominator_consistent": [1.0, 1.0, 1.1, 1.0, 1.0, 1.0],
        }
    )


def points(axes: plt.Axes) -> np.ndarray:
    return np.concatenate([np.asarray(c.get_offsets()) for c in axes.collections])


def test_finite_values_are_drawn_where_they_are() -> None:
    heights, edge = plot.drawable(pd.Series([1.0, 200.0]))
    assert heights.tolist() == [1.0, 200.0] and edge is None


@pytest.mark.parametrize("bad", [math.inf, math.nan])
def test_what_is_not_finite_is_drawn_above_everything_finite(bad: float) -> None:
    heights, edge = plot.drawable(pd.Series([1.0, bad, 200.0]))
    assert edge is not None and edge > 200 and heights.tolist() == [1.0, edge, 200.0]


def test_a_table_with_nothing_finite_can_be_drawn() -> None:
    heights, edge = plot.drawable(pd.Series([math.inf, math.nan]))
    assert edge is not None and set(heights) == {edge}


def test_scatter_shows_every_case_and_both_levels(frame: pd.DataFrame) -> None:
    figure = plot.scatter(frame, unedited=3.0, collapse_ratio=5.0, title="six edits")
    (axes,) = figure.axes
    assert len(points(axes)) == len(frame)
    assert {line.get_ydata()[0] for line in axes.lines} >= {3.0, 15.0}  # type: ignore[index]
    assert axes.get_yscale() == "log"
    assert "inf or nan" in {text.get_text() for text in axes.texts}


def test_scatter_legend_counts_each_kind(frame: pd.DataFrame) -> None:
    figure = plot.scatter(frame, unedited=3.0, collapse_ratio=5.0, title="six edits")
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [f"{kind} (2)" for kind in plot.KINDS]


def test_comparison_has_a_strip_for_each_arm_and_loses_no_case(frame: pd.DataFrame) -> None:
    (axes,) = plot.comparison(frame, collapse_ratio=5.0).axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["rome", "c-rome"]
    assert len(points(axes)) == len(frame)


def test_denominators_are_drawn_without_their_sign(frame: pd.DataFrame) -> None:
    (axes,) = plot.denominators(frame, collapse_ratio=5.0).axes
    assert sorted(points(axes)[:, 0].round(6)) == [0.01, 0.02, 0.9, 1.0, 1.0, 1.0]


def test_layers_shows_every_effect_and_frames_the_proposed_layer() -> None:
    effects = pd.DataFrame({"last subject token": [0.1, 0.5, 0.2], "further tokens": [0.0, -0.2, math.nan]})
    axes = plot.layers(effects, proposed=1).axes[0]
    assert [text.get_text() for text in axes.texts] == ["0.10", "0.50", "0.20", "0.00", "-0.20", ""]
    assert [label.get_text() for label in axes.get_yticklabels()] == list(effects.columns)
    (frame,) = axes.patches
    assert frame.get_bbox().bounds == (0.5, -0.5, 1, 2)  # type: ignore[attr-defined]
    assert "layer 1" in axes.get_title(plt.rcParams["axes.titlelocation"])


def test_effects_that_are_all_negative_can_be_drawn() -> None:
    axes = plot.layers(pd.DataFrame({"last subject token": [-0.2, -0.001]}), proposed=1).axes[0]
    assert [text.get_text() for text in axes.texts] == ["-0.20", "0.00"]


def test_many_layers_are_shown_without_numbers() -> None:
    axes = plot.layers(pd.DataFrame({"last subject token": np.arange(48) / 48}), proposed=47).axes[0]
    assert not axes.texts and axes.images[0].get_array().shape == (1, 48)  # type: ignore[union-attr]


def test_scores_has_a_panel_for_each_protocol_and_a_mark_for_each_mean() -> None:
    rows = [
        {"method": method, "protocol": protocol, "score": score, "mean": 0.5, "low": 0.25, "high": 1.0}
        for method in ("ft", "rome")
        for protocol in ("es", "em_tf")
        for score in plot.SCORE_MARKS
    ]
    panels = plot.scores(pd.DataFrame(rows), wanted=0.9).axes
    assert [axes.get_title(plt.rcParams["axes.titlelocation"]) for axes in panels] == ["es", "em_tf"]
    for axes in panels:
        marks = [line for line in axes.lines if len(line.get_xdata()) == 2 and line.get_linestyle() == "None"]  # type: ignore[arg-type]
        assert [list(line.get_xdata()) for line in marks] == [[0.5, 0.5]] * 3  # type: ignore[arg-type]
        assert [len(c.get_segments()) for c in axes.collections] == [2, 2, 2]  # type: ignore[attr-defined]


def test_rises_has_a_strip_for_each_method_in_per_cent_and_loses_no_case(frame: pd.DataFrame) -> None:
    (axes,) = plot.rises(frame.rename(columns={"arm": "method"}), collapse_ratio=5.0).axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["rome", "c-rome"]
    heights = sorted(points(axes)[:, 0].round(6))
    assert heights == [0.0, 3.0, 7.0, 1230.0, 12300.0, 12300.0]
    assert axes.lines[0].get_xdata().tolist() == pytest.approx([3.0, 1230.0])  # type: ignore[union-attr]  # the medians


def test_anatomy_has_two_panels_for_each_model_and_a_line_for_each_layer() -> None:
    rows = [
        {"model": model, "layer": layer, "position": p, "residual_norm": 1 + p, "key_cosine": 0.5}
        for model in ("a", "b")
        for layer in range(3)
        for p in range(4)
    ]
    figure = plot.anatomy(pd.DataFrame(rows), models=["a", "b"])
    assert [axes.get_title() for axes in figure.axes] == ["a", "a", "b", "b"]
    assert all(sum(len(line.get_xdata()) == 4 for line in axes.lines) == 3 for axes in figure.axes)  # type: ignore[arg-type]
