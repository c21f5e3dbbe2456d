"""Logistic rules that say how often edits of a severity collapse a model."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.optimize import minimize

from editlib.data.request import EditRequest
from editlib.editing.methods import hparams_for
from editlib.errors import EditlibError
from editlib.measuring import calibration
from editlib.measuring.calibration import Calibration
from editlib.measuring.risk import CHANCES, risk, shipped
from editlib.models.language_model import LanguageModel

REQUEST = EditRequest(prompt="{} is in", subject="Kato", target_new="Rome")


def edits(n: int = 400, *, seed: int = 0) -> pd.DataFrame:
    """Edits whose log-odds of collapse are -1 + 3 log10 spill + log10 reach."""
    rng = np.random.default_rng(seed)
    spill, reach = 10 ** rng.normal(size=n), 10 ** rng.normal(size=n)
    odds = -1 + 3 * np.log10(spill) + np.log10(reach)
    return pd.DataFrame({"spill": spill, "reach": reach, "collapsed": rng.random(n) < 1 / (1 + np.exp(-odds))})


def rule(lm: LanguageModel, table: pd.DataFrame) -> Calibration:
    params = hparams_for(lm, "rome", covariance=False)
    return calibration.fit(lm, "rome", params, table, collapse_ratio=5.0, texts="some")


def test_a_fit_is_the_penalised_maximum_of_the_likelihood(gpt2: LanguageModel) -> None:
    table = edits()
    x = np.column_stack([np.ones(len(table)), np.log10(table[["spill", "reach"]])])
    signs = np.where(table["collapsed"], 1, -1)

    def loss(w: np.ndarray) -> float:
        return float(np.logaddexp(0, -signs * (x @ w)).sum() + (w[1:] ** 2).sum() / 2)

    found = rule(gpt2, table)
    assert found.coefficients == pytest.approx(minimize(loss, np.zeros(3), tol=1e-10).x, abs=1e-3)
    step = 1e-3 * np.eye(3)
    center = np.array(found.coefficients)
    curvature = [
        [
            (loss(center + a + b) - loss(center + a - b) - loss(center - a + b) + loss(center - a - b)) / 4e-6
            for b in step
        ]
        for a in step
    ]
    assert np.array(found.covariance) == pytest.approx(np.linalg.inv(curvature), rel=1e-3, abs=1e-5)


def test_intervals_hold_the_true_chance_about_as_often_as_they_say(gpt2: LanguageModel) -> None:
    asked = pd.DataFrame({"spill": [2.0], "reach": [1.0]})
    truth = 1 / (1 + np.exp(1 - 3 * np.log10(2)))
    found = pd.concat([rule(gpt2, edits(seed=seed)).probability(asked) for seed in range(40)])
    assert 0.88 <= (found["probability_low"].le(truth) & found["probability_high"].ge(truth)).mean() <= 1


def test_groups_that_do_not_overlap_give_a_finite_rule(gpt2: LanguageModel) -> None:
    table = pd.DataFrame({"spill": [0.1, 0.2, 5.0, 9.0], "reach": [0.1] * 4, "collapsed": [False, False, True, True]})
    found = rule(gpt2, table).probability(table)
    assert np.isfinite(found).all(axis=None) and found["probability"].is_monotonic_increasing
    assert (found["probability_low"] < found["probability"]).all() and (found < 1).all(axis=None)


def test_one_kind_of_edit_alone_teaches_nothing(gpt2: LanguageModel) -> None:
    with pytest.raises(EditlibError, match="0 of 400 edits collapse .*some that do and some"):
        rule(gpt2, edits().assign(collapsed=False))


def test_a_rule_is_read_as_it_was_written(gpt2: LanguageModel, tmp_path: Path) -> None:
    made = rule(gpt2, edits())
    calibration.write(tmp_path / "rules.json", [made])
    assert calibration.read(tmp_path / "rules.json") == [made]


@pytest.mark.parametrize("text", ["", "{}", '[{"model": "a"}]'])
def test_another_file_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "rules.json").write_text(text, "utf-8")
    with pytest.raises(EditlibError, match=r"rules\.json cannot be read: .*the analysis screen writes some") as caught:
        calibration.read(tmp_path / "rules.json")
    assert "\n" not in str(caught.value)


def test_risk_has_the_probability_of_the_rule_that_fits(gpt2: LanguageModel) -> None:
    made, params = rule(gpt2, edits()), hparams_for(gpt2, "rome", covariance=False)
    found = risk(gpt2, REQUEST, hparams=params, rules=[made])
    assert found[list(CHANCES)].iloc[0].tolist() == pytest.approx(made.probability(found).iloc[0].tolist())
    for method, options in (("c-rome", {}), ("rome", {"layer": params.layer - 1})):
        other = hparams_for(gpt2, method, covariance=False, **options)
        told = risk(gpt2, REQUEST, method=method, hparams=other, rules=[made])
        assert told[list(CHANCES)].isna().all(axis=None)  # another setting, of which nothing was measured


def test_the_rules_of_the_package_say_where_they_come_from() -> None:
    assert all(found.run and found.collapse_ratio >= 1 and 0 < found.collapsed < found.edits for found in shipped())
