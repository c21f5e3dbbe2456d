"""Numbers of runs that pages quote, of any model, worked out again from the runs' tables by other means."""

import math
import re
from collections.abc import Callable
from functools import cache

import pytest
from books import published
from places import ROOT
from recomputed import belief, butterfly, causes, choices, costs, fall, remedies
from recomputed.counting import Numbers

from editlib.runs.manifest import Manifest

WORKED_OUT = (
    butterfly.pilot, butterfly.single_edits, butterfly.surrogate, butterfly.sequential, butterfly.weight_change,
    butterfly.hardedit, fall.consistent_keys, fall.denominator, fall.first_token, fall.own_text, fall.prefix_at_test,
    fall.key_geometry, fall.why_first_token, causes.anatomy, causes.sink, causes.layers, causes.screen,
    causes.aftermath, causes.twins, choices.methods, choices.strengths, choices.presets, choices.efficacy,
    choices.settings, choices.precision, costs.cluster, costs.performance, remedies.remedies, belief.belief,
)  # fmt: skip
AGAIN: dict[str, Callable[[Manifest], Numbers]] = {each.__name__.replace("_", "-"): each for each in WORKED_OUT}

LEFT_OUT = {  # what no table holds: by analysis, why, and which numbers
    "methods": {
        "seconds of edits timed one by one, beside those of the table": """ft_seconds ft_l_seconds rome_seconds
            c_rome_seconds fc_rome_seconds p_rome_seconds r_rome_seconds memit_seconds emmet_seconds encore_seconds
            alphaedit_seconds d4s_seconds mend_seconds""",
        "causal tracing, of which a figure is kept": "facts_traced traced_layer traced_effects",
    },
    "key-geometry": {"of the keys themselves, of which maps are kept": "auc auc_low auc_high auc_control"},
    "first-token": {
        "of the keys themselves, of which maps are kept": """first_tokens_near_collapse prefixed_near_normal
            distance_first_token_normal_prompts_from_bare_collapse
            distance_first_token_normal_prompts_from_bare_normal""",
        "weighs kinds by how many of each the whole set has": """recall_in_the_set recall_in_the_set_low
            recall_in_the_set_high""",
    },
    "why-first-token": {
        "of the insides of unedited models, which the run's page alone tells, rounded": """key_cosine_first_model
            key_cosine_first_control key_cosine_first_rotary norm_ratio_model norm_ratio_control norm_ratio_rotary""",
    },
    "sink": {"the layer of another text's first massive activation": "source"},
    "layers": {"of the lengths of keys in texts, of which a figure is kept": "long_layers"},
    "aftermath": {
        "of the unedited model, which the tables leave out": """sink_unedited entropy_unedited loss_first_unedited
            loss_later_unedited""",
    },
    "cluster": {"measured once: seconds of the driver and of its processor": "driver_seconds driver_ms_a_part"},
    "performance": {
        "measured once: seconds, operations and memory": """half_seconds_per_edit screen_ms screen_gflop
            screen_peak_gib peak_gib plain_peak_gib""",
        "what was given to both paths": "contexts texts text_tokens longest_text row_tokens live_tokens",
    },
}


NEARLY = {"first-token": fall.precision_in_the_set}  # by a closed form of what the run drew at random


@cache
def worked_out(analysis: str) -> list[tuple[Manifest, Numbers]]:
    """The numbers of each published run of an analysis, whatever model it is about."""
    return [(run, AGAIN[analysis](run)) for run in published(analysis)] or pytest.skip(f"no run of {analysis}")


@pytest.fixture
def quoted(monkeypatch: pytest.MonkeyPatch) -> dict[str, Manifest]:
    """The runs that pages quote, by what pages call them."""
    monkeypatch.syspath_prepend(ROOT / "book/_ext")
    import runs

    return runs.quoted(published(), runs.read_settings(ROOT / "book"))


def asked_for(called: str, run: Manifest) -> set[str]:
    """The numbers of a run that pages quote, those in words among them."""
    text = "".join(path.read_text("utf-8") for path in (ROOT / "book").glob("*.md"))
    start = re.sub("[-/]", "_", called)
    names = set(re.findall(rf"\{{\{{ {start}_(\w+?)(?:\.percent)? \}}\}}", text))
    return {name for name in names if is_number(run.metrics.get(name, ""))}


def is_number(value: float | str) -> bool:
    """Whether a metric is a number, a list of some, some with their range, or says that there is none."""
    return not isinstance(value, str) or bool(re.fullmatch(r"never|none|[\d.]+((, | to | \()[\d.]+)*\)?", value))


def left_out(analysis: str) -> set[str]:
    return {name for names in LEFT_OUT.get(analysis, {}).values() for name in names.split()}


@pytest.mark.parametrize("analysis", AGAIN)
def test_numbers_are_those_of_the_runs_tables(analysis: str) -> None:
    for run, again in worked_out(analysis):
        assert again.keys() <= run.metrics.keys(), again.keys() - run.metrics.keys()
        told = {name: math.nan if run.metrics[name] == "nan" else run.metrics[name] for name in again}
        words = {name for name, value in (again | told).items() if isinstance(value, str)}
        assert {name: again[name] for name in words} == {name: told[name] for name in words}, run.run
        numbers, known = ({name: of[name] for name in again.keys() - words} for of in (again, told))
        assert numbers == pytest.approx(known, rel=1e-9, nan_ok=True), run.run


@pytest.mark.parametrize("analysis", NEARLY)
def test_bounds_are_near_those_of_a_closed_form(analysis: str) -> None:
    for run, _ in worked_out(analysis):
        bounds, near = NEARLY[analysis](run)
        assert bounds == pytest.approx({name: run.metrics[name] for name in bounds}, rel=0, abs=1.001 * near), run.run


def test_every_number_that_pages_quote_is_worked_out_again_or_named_with_a_reason(quoted: dict[str, Manifest]) -> None:
    missing = {}
    for called, run in quoted.items():
        done = worked_out(run.analysis) if run.analysis in AGAIN else []
        again = {name for other, numbers in done if other.run == run.run for name in numbers}
        again |= NEARLY[run.analysis](run)[0].keys() if run.analysis in NEARLY else set()
        missing[called] = asked_for(called, run) - again - left_out(run.analysis)
    assert not {called: sorted(names) for called, names in missing.items() if names}


def test_numbers_left_out_are_quoted_and_not_worked_out(quoted: dict[str, Manifest]) -> None:
    for analysis in LEFT_OUT:
        runs = {called: run for called, run in quoted.items() if run.analysis == analysis}
        assert left_out(analysis) <= set().union(*(asked_for(*each) for each in runs.items())), analysis
        assert not any(left_out(analysis) & again.keys() for _, again in worked_out(analysis)), analysis
