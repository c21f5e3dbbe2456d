"""Two runs side by side."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from folders import INPUTS, make_run, record

from editlib import text
from editlib.runs.compare import Comparison, Difference, Number, compare, headline, intervals


@pytest.fixture
def compared(tmp_path: Path) -> Any:
    """Compare the usual run with one that has changes, or two runs with changes each."""

    def both(a: dict[str, Any] | None = None, **b: Any) -> Comparison:
        return compare(make_run(tmp_path, **(a or {})), make_run(tmp_path, **({"seconds": 60.0} | b)))

    return both


def test_runs_of_one_spec_differ_in_nothing_that_was_asked(compared: Any) -> None:
    found = compared()
    assert found.a != found.b and found.same_spec and found.same_analysis
    assert found.parameters == found.inputs == found.environment == found.hardware == ()
    assert [(n.name, n.a, n.b, n.difference) for n in found.numbers] == [("n", 3, 3, 0), ("worst", "inf", "inf", None)]
    assert found.figures == ("figures/ratios.png",)


def test_only_parameters_that_differ_are_listed(compared: Any) -> None:
    parameters = record()["parameters"] | {"n": 4, "rate": 1, "strict": 1, "more": "x"}
    del parameters["label"]
    found = compared({"parameters": record()["parameters"] | {"rate": 1.0}}, spec="a" * 12, parameters=parameters)
    assert not found.same_spec
    assert found.parameters == (
        Difference("label", "a", None),
        Difference("more", None, "x"),
        Difference("n", 3, 4),
        Difference("rate", 1.0, 1),  # equal, but not the same value
        Difference("strict", True, 1),
    )


def test_inputs_environment_and_hardware_are_named_by_their_place(compared: Any) -> None:
    before = record()
    found = compared(
        inputs=INPUTS | {"code": "0" * 64, "data": {}},
        environment=before["environment"] | {"python": "3.12.1", "packages": {"numpy": "2.4.7", "torch": "2.13.0"}},
        hardware=before["hardware"] | {"gpus": ["One", "Two"], "threads": 1},
        git={"commit": None, "dirty": None},
    )
    assert [d.name for d in found.inputs] == ["code", "data.testbed"]
    assert found.environment == (
        Difference("git.commit", "c" * 40, None),
        Difference("git.dirty", False, None),
        Difference("packages.numpy", "2.4.6", "2.4.7"),
        Difference("packages.torch", None, "2.13.0"),
        Difference("python", "3.11.9", "3.12.1"),
    )
    assert found.hardware == (Difference("gpus", "", "One, Two"), Difference("threads", None, 1))


def test_another_analysis_can_be_compared(compared: Any) -> None:
    assert not compared(analysis="other").same_analysis


def test_only_figures_of_both_are_listed(compared: Any) -> None:
    a = {"files": {"figures/a.png": "1", "figures/both.png": "2", "data/both.png": "3"}}
    assert compared(a, files={"figures/b.png": "1", "figures/both.png": "4", "data/both.png": "3"}).figures == (
        "figures/both.png",
        "figures/ratios.png",
    )


@pytest.mark.parametrize(
    ("a", "b", "difference", "ratio"),
    [
        (2, 3, 1.0, 1.5),
        (2.0, 2.0, 0.0, 1.0),
        (0, 3, 3.0, None),
        (-2.0, 1, 3.0, -0.5),
        ("inf", 3, None, None),
        (3, "nan", None, None),
        (3, None, None, None),
        (True, 3, None, None),
        ("rome", "rome", None, None),
    ],
)
def test_differences_and_ratios_are_those_of_finite_numbers(a: Any, b: Any, difference: Any, ratio: Any) -> None:
    number = Number("x", a, b, None, None)
    assert (number.difference, number.ratio) == (difference, ratio)


@pytest.mark.parametrize("names", [("x", "x_low", "x_high"), ("x_ft_l", "x_low_ft_l", "x_high_ft_l"),
                                   ("a_x_b", "a_x_low_b", "a_x_high_b")])  # fmt: skip
def test_an_interval_stands_with_its_number(compared: Any, names: tuple[str, str, str]) -> None:
    value, low, high = names
    found = compared({"metrics": {value: 1, low: 0.5, high: "inf"}}, metrics={value: 2})
    assert found.numbers == (Number(value, 1, 2, (0.5, "inf"), None),)


@pytest.mark.parametrize("metrics", [["x_low", "x_high"], ["x", "x_low"], ["rank", "low_rank", "high_rank"]])
def test_a_number_whose_name_only_looks_like_a_bound_is_a_number(compared: Any, metrics: list[str]) -> None:
    assert intervals(dict.fromkeys(metrics, 1)) == {}
    found = compared({"metrics": dict.fromkeys(metrics, 1)}, metrics={})
    assert [n.name for n in found.numbers] == sorted(metrics)


def test_headline_numbers_have_their_intervals_and_a_text() -> None:
    """Both ways of naming a bound: behind the whole name, and in the middle of it."""
    metrics = {"n": 1200, "x_share": 0.5, "x_share_low": 0.25, "auc_ft": 0.9841, "auc_low_ft": 0.967,
               "auc_high_ft": 1.0, "worst": "inf", "low": 3, "few": 1, "few_low": "nan", "few_high": "nan"}  # fmt: skip
    assert headline(metrics) == [
        {"name": "n", "value": 1200, "text": "1,200"},
        {"name": "x_share", "value": 0.5, "text": "50.0 %"},
        {"name": "x_share_low", "value": 0.25, "text": "0.250"},  # without the other end it is a number of its own
        {"name": "auc_ft", "value": 0.9841, "text": "0.984 [0.967, 1.00]", "low": 0.967, "high": 1.0},
        {"name": "worst", "value": "inf", "text": "inf"},
        {"name": "low", "value": 3, "text": "3"},
        {"name": "few", "value": 1, "text": "1"},  # of cases too few for an interval
    ]


def test_a_comparison_is_frozen_and_json(compared: Any) -> None:
    found = compared(metrics={"n": 6})
    with pytest.raises(dataclasses.FrozenInstanceError):
        found.a = "other"
    told = json.loads(text.to_json(found.record))
    assert told["numbers"][0] == {"name": "n", "a": 3, "b": 6, "a_interval": None, "b_interval": None,
                                  "difference": 3.0, "ratio": 2.0}  # fmt: skip
