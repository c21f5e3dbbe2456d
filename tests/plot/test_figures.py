"""Figures show every case, and infinite or missing perplexities above all finite ones."""

import math
from collections.abc import Iterator
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from editlib import plot
from editlib.measuring.statistics import Interval


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


def test_files_are_sharp_on_screens_of_two_to_one_and_the_same_each_time(frame: pd.DataFrame, tmp_path: Path) -> None:
    with plt.rc_context():
        plot.theme()
        for name in "ab":
            plot.comparison(frame, collapse_ratio=5.0).savefig(tmp_path / f"{name}.png")
    assert plt.imread(tmp_path / "a.png").shape[1] >= 2 * 800  # the page's column
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


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


def test_denominators_are_drawn_without_their_sign(frame: pd.DataFrame) -> None:
    (axes,) = plot.denominators(frame, collapse_ratio=5.0).axes
    assert sorted(points(axes)[:, 0].round(6)) == [0.01, 0.02, 0.9, 1.0, 1.0, 1.0]


def test_layers_shows_every_effect_and_frames_the_proposed_layer() -> None:
    effects = pd.DataFrame({"last subject token": [0.1, 0.5, 0.2], "further tokens": [0.0, -0.2, math.nan]})
    axes = plot.layers(effects, proposed=1, facts=50).axes[0]
    assert [text.get_text() for text in axes.texts] == ["0.10", "0.50", "0.20", "0.00", "-0.20", ""]
    assert [label.get_text() for label in axes.get_yticklabels()] == list(effects.columns)
    (frame,) = axes.patches
    assert frame.get_bbox().bounds == (0.5, -0.5, 1, 2)  # type: ignore[attr-defined]
    title = axes.get_title(plt.rcParams["axes.titlelocation"])
    assert "Layer 1 " in title and "50 facts" in title


def test_effects_that_are_all_negative_can_be_drawn() -> None:
    axes = plot.layers(pd.DataFrame({"last subject token": [-0.2, -0.001]}), proposed=1, facts=50).axes[0]
    assert [text.get_text() for text in axes.texts] == ["-0.20", "0.00"]


def test_many_layers_are_shown_without_numbers() -> None:
    axes = plot.layers(pd.DataFrame({"last subject token": np.arange(48) / 48}), proposed=47, facts=50).axes[0]
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


def test_by_layer_has_scores_above_and_shares_of_collapses_below() -> None:
    values = {"score": 0.5, "efficacy": 0.75, "generalization": 0.25, "locality": 1.0}
    intervals = {name: Interval(value, value - 0.25, value) for name, value in values.items()}
    scores = pd.DataFrame([{"method": m, "layer": layer, **intervals} for m in ("rome", "c-rome") for layer in (3, 5)])
    counts = [("one token at the start", 3), ("normal", 1)]
    collapses = pd.DataFrame(
        [{"name": m, "layer": layer, "group": group, "sum": hits, "size": 4}
         for m in ("rome", "c-rome") for layer in (3, 5) for group, hits in counts]
    )  # fmt: skip
    panels = plot.by_layer(scores, collapses).axes
    assert [axes.get_title(plt.rcParams["axes.titlelocation"]) for axes in panels[:2]] == ["rome", "c-rome"]
    for top, below in zip(panels[:2], panels[2:], strict=True):
        drawn = {line.get_label(): np.asarray(line.get_ydata()).tolist() for line in top.lines}
        assert drawn == {name: [value] * 2 for name, value in values.items()}
        assert [np.asarray(line.get_ydata()).tolist() for line in below.lines] == [[0.75] * 2, [0.25] * 2]


def test_comparison_has_a_strip_for_each_arm_in_per_cent_and_loses_no_case(frame: pd.DataFrame) -> None:
    figure = plot.comparison(frame, collapse_ratio=5.0)
    (axes,) = figure.axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["rome", "c-rome"]
    heights = sorted(points(axes)[:, 0].round(6))
    assert heights == [0.0, 3.0, 7.0, 1230.0, 12300.0, 12300.0]
    medians = next(line for line in axes.lines if line.get_label() == "median")
    assert medians.get_xdata().tolist() == pytest.approx([3.0, 1230.0])  # type: ignore[union-attr]
    left, right = axes.get_xlim()
    assert left < heights[0] and right > heights[-1]
    assert "one token, first (1)" in [text.get_text() for text in figure.legends[0].get_texts()]


def test_anatomy_has_three_panels_for_each_model_and_a_line_for_each_layer() -> None:
    rows = [
        {"model": model, "layer": layer, "position": p, "residual_norm": 1 + p, "key_norm": 2, "key_cosine": 0.5}
        for model in ("a", "b")
        for layer in range(3)
        for p in range(4)
    ]
    figure = plot.anatomy(pd.DataFrame(rows), models=["a", "b"])
    assert [axes.get_title() for axes in figure.axes] == [*"aaabbb"]
    assert all(sum(len(line.get_xdata()) == 4 for line in axes.lines) == 3 for axes in figure.axes)  # type: ignore[arg-type]


def test_profile_has_three_panels_for_each_model_and_draws_what_there_is_of_a_layer() -> None:
    names = "residual_norm_ratio key_norm_ratio key_cosine key_cosine_later sink trace_share top_share".split()
    rows = [
        {"model": model, "layer": layer} | dict.fromkeys(names, 0.5 + layer) for model in ("a", "b") for layer in (0, 1)
    ]
    figure = plot.profile(pd.DataFrame(rows), models=["a", "b"])
    assert [axes.get_title() for axes in figure.axes] == [*"aaabbb"]
    drawn = [[line.get_ydata().tolist() for line in axes.lines[:2]] for axes in figure.axes]  # type: ignore[union-attr]
    assert drawn == [[[0.5, 1.5]] * 2] * 6


def test_regimes_has_a_panel_for_lengths_one_for_ratios_and_one_for_each_method() -> None:
    settings, layers = ["with C", "C left out"], [1, 3]
    lengths = pd.Series([2.0, 0.1, 0.2, 3.0])
    ratios = pd.DataFrame({setting: [1.0, 0.01, 0.02, 5.0] for setting in settings})
    rows = [
        {"method": method, "setting": setting, "layer": layer, "mean": layer / 4}
        for method in ("rome", "c-rome")
        for setting in settings
        for layer in layers
    ]
    panels = plot.regimes(lengths, ratios, pd.DataFrame(rows)).axes
    assert [axes.get_ylabel().split(":")[0] for axes in panels[2:]] == ["rome", "c-rome"]
    assert [patch.get_x() for patch in panels[0].patches] == [0.5, 1.5]  # where the key is short
    assert [line.get_ydata().tolist() for line in panels[2].lines] == [[0.25, 0.75]] * 2  # type: ignore[union-attr]


def test_foretold_has_a_panel_for_each_method_and_loses_no_edit(frame: pd.DataFrame) -> None:
    both = pd.concat([frame.assign(method=method, severity=0.5) for method in ("rome", "c-rome")], ignore_index=True)
    panels = plot.foretold(both, bound=1.0, collapse_ratio=5.0).axes
    assert [axes.get_title() for axes in panels] == ["rome", "c-rome"]
    assert [len(points(axes)) for axes in panels] == [len(frame)] * 2


def test_strips_has_a_panel_for_each_measure_of_as_many_decades_and_loses_no_case(frame: pd.DataFrame) -> None:
    measures = {"denominator_consistent": "consistent", "perplexity_ratio": "perplexity"}
    panels = plot.strips(frame, measures).axes
    assert [axes.get_xlabel() for axes in panels] == list(measures.values())
    assert [len(points(axes)) for axes in panels] == [len(frame)] * 2
    spans = [np.ptp(np.log10(axes.get_xlim())) for axes in panels]
    assert spans[0] == pytest.approx(spans[1])


def test_maps_has_a_panel_for_each_map_and_counts_each_group() -> None:
    frame = pd.DataFrame(
        {"panel": ["a", "a", "a", "b"], "group": ["k", "k", "m", "k"], "x": [0, 1, 2, 3], "y": [0, 1, 2, 3]}
    )
    figure = plot.maps(frame)
    assert [axes.get_title(plt.rcParams["axes.titlelocation"]) for axes in figure.axes[:2]] == ["a", "b"]
    assert [len(points(axes)) for axes in figure.axes[:2]] == [3, 1] and not figure.axes[0].lines
    (joined,) = plot.maps(frame.assign(pair=[0, 1, 0, 2])).axes[0].lines[:1]
    assert joined.get_xdata().tolist() == [0, 2]  # type: ignore[union-attr]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["k (2)", "m (1)"]


def test_pairs_has_a_panel_for_each_measure_and_loses_no_case(frame: pd.DataFrame) -> None:
    twice = pd.concat(
        {
            ("worst", "a"): frame["perplexity_mean"],
            ("worst", "b"): frame["perplexity_ratio"],
            ("kind", ""): frame["kind"],
        },
        axis=1,
    )
    (axes,) = plot.pairs(twice, {"worst": "Perplexity"}, models=("a", "b"), collapse_ratio=5.0).axes
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("a", "b")
    assert {tuple(point) for point in points(axes).round(2)} == {
        (400, 400),
        (3, 1),
        (3.1, 1.03),
        (40, 13.3),
        (3.2, 1.07),
    }


def test_doses_fills_the_length_a_model_was_trained_to() -> None:
    rows = [
        {"model": model, "length": length, "scaled": length < 300}
        for model in ("a", "b")
        for length in (1.0, 200.0, 300.0)
    ]
    columns = {f"{name}{end}": 0.5 for name in ("collapsed", "ratio") for end in ("", "_low", "_high")}
    table = pd.DataFrame(rows).assign(**columns)
    share, ratio = plot.doses(table, learned={"a": 200.0, "b": 1.0}, cases=24).axes
    assert "24 edits" in share.get_ylabel()
    marks = {line.get_label(): list(line.get_xdata()) for line in share.lines}  # type: ignore[arg-type]
    assert marks["a, as trained"] == [200.0] and marks["b, as trained"] == [1.0]
    assert marks["a"] == [1.0, 200.0] and marks["a, row of position 1"] == [300.0]
    assert ratio.get_yscale() == share.get_xscale() == "log"


def test_findings_crosses_what_does_not_hold() -> None:
    rows = [("as here", "one", "2 of 2", True), ("without C", "one", "0 of 2", False)]
    table = pd.DataFrame(rows, columns=["choice", "finding", "shown", "holds"])
    (axes,) = plot.findings(table, title="two").axes
    assert [text.get_text() for text in axes.texts] == ["2 of 2", "✗ 0 of 2"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["as here", "without C"]


def test_thresholds_has_a_row_for_each_group_with_its_edits_and_the_share_that_collapses() -> None:
    table = pd.DataFrame({"panel": "left", "line": ["a", "a", "b", "b"], "ratio": [2.0, 1000.0, 5.0, math.inf]})
    (axes,) = plot.thresholds(table, collapse_ratio=5.0, published=(14.5, 30.1), emphasised="b").axes
    assert [list(line.get_xdata()) for line in axes.lines[:2]] == [[2.0, 1000.0], [5.0, 10_000.0]]  # type: ignore[arg-type]
    assert [text.get_text() for text in axes.texts[:2]] == ["50.0 %", "100 %"]
    assert [label.get_fontweight() for label in axes.get_yticklabels()] == ["normal", "bold"]


@pytest.fixture
def steps() -> pd.DataFrame:
    """Two orders of three steps each, for two groups and methods; one sequence ends in nan."""
    rows = [
        (group, method, repeat, step, 1.0 + step * (1 + repeat))
        for group in ("normal cases", "hard cases")
        for method in ("rome", "another")
        for repeat in range(2)
        for step in range(3)
    ]
    frame = pd.DataFrame(rows, columns=["group", "method", "repeat", "step", "perplexity_ratio"])
    frame.loc[frame.index[-1], "perplexity_ratio"] = math.nan
    return frame


def test_sequences_has_a_panel_for_each_group_with_medians_in_bands(steps: pd.DataFrame) -> None:
    figure = plot.sequences(steps, collapse_ratio=5.0)
    normal, hard, *detail = figure.axes
    assert [axes.get_title() for axes in (normal, hard)] == ["normal cases", "hard cases"]
    assert [axes.get_ylim()[1] for axes in detail] == [3.0, 3.0] and {axes.get_yscale() for axes in detail} == {
        "linear"
    }
    assert list(normal.lines[0].get_ydata()) == [1.0, 2.5, 4.0]
    low, high = (bound(normal.collections[0].get_paths()[0].vertices[:, 1]) for bound in (min, max))
    assert (low, high) == (1.0, 5.0)
    assert hard.collections[1].get_paths()[0].vertices[:, 1].max() > 5 and hard.texts[0].get_text() == "inf or nan"


def test_single_edits_has_a_panel_for_each_set_and_model_and_one_rim(frame: pd.DataFrame) -> None:
    arms = [frame.assign(set=name, model=model) for name in ("as asked", "second") for model in ("a", "b", "c")]
    figure = plot.single_edits(pd.concat(arms, ignore_index=True), collapse_ratio=5.0)
    assert [axes.get_title() for axes in figure.axes] == [f"{s}, {m}" for s in ("as asked", "second") for m in "abc"]
    assert all(len(points(axes)) == len(frame) for axes in figure.axes)
    rim = points(figure.axes[0])[:, 0].max()
    assert all(points(axes)[:, 0].max() == rim < axes.get_xlim()[1] for axes in figure.axes)


def test_weight_changes_are_shown_on_one_scale_without_sign() -> None:
    changes = {"small": np.full((4, 6), -0.5), "large": np.arange(2400.0).reshape(2, 1200)}
    small, large, _ = plot.weight_changes(changes).axes
    shown = [axes.images[0] for axes in (small, large)]
    assert shown[0].get_clim() == shown[1].get_clim() == (0.5 / 3, 2399.0)
    assert shown[0].get_array().max() == 0.5
    assert shown[1].get_array().shape == (2, 600)  # blocks of two, each by its largest
    assert shown[1].get_array()[0, :2].tolist() == [1, 3]


def test_changes_of_nothing_can_be_drawn() -> None:
    (image,) = plot.weight_changes({"none": np.zeros((3, 3))}).axes[0].images
    assert image.get_clim() == (1 / 3, 1)


def test_spectra_marks_changes_and_draws_weights_as_lines() -> None:
    frame = pd.DataFrame(
        {"matrix": ["W", "W", "Δ"], "rank": [1, 2, 1], "value": [3.0, 1.0, 9.0], "change": [False, False, True]}
    )
    weight, change = plot.spectra(frame).axes[0].lines
    assert weight.get_marker() == "None" and list(weight.get_ydata()) == [3.0, 1.0]
    assert change.get_marker() == "*" and change.get_linestyle() == "None" and list(change.get_ydata()) == [9.0]


def test_changes_has_a_panel_for_each_method_and_loses_no_case(frame: pd.DataFrame) -> None:
    figure = plot.changes(frame.assign(method=frame["arm"], relative_change=0.1), collapse_ratio=5.0)
    assert [axes.get_title() for axes in figure.axes] == ["rome", "c-rome"]
    assert [len(points(axes)) for axes in figure.axes] == [3, 3]


def test_calibration_shows_the_mean_share_in_each_bin_of_the_agents_belief() -> None:
    frame = pd.DataFrame({"line": "bare", "agent": [0.0, 0.02, 0.95], "model": [0.1, 0.3, 0.5]})
    (axes,) = plot.calibration(frame).axes
    (drawn,) = (line for line in axes.lines if line.get_linestyle() != ":")
    assert np.asarray(drawn.get_xydata()).round(6).tolist() == [[0.01, 0.2], [0.95, 0.5]]


def test_beliefs_has_a_panel_for_each_quantity_and_a_mark_for_each_question() -> None:
    titles, kinds = {"right": "Right", "distance": "Distance"}, ("request", "dependent", "unrelated", "other subject")
    cells = pd.Series({"unedited": Interval(0.25, 0.0, 0.5), "rome": Interval(1.0, 0.75, 1.0)})
    panels = plot.beliefs({(what, kind): cells for what in titles for kind in kinds}, titles).axes
    assert [axes.get_title(plt.rcParams["axes.titlelocation"]) for axes in panels] == ["Right", "Distance"]
    for axes in panels:
        assert [list(line.get_xdata()) for line in axes.lines if line.get_label() in kinds] == [[0.25, 1.0]] * 4  # type: ignore[arg-type]
        assert [len(c.get_segments()) for c in axes.collections] == [2] * 4  # type: ignore[attr-defined]
