"""How often edits of a severity do collapse a model: logistic rules, one a model, method and setting, kept as data."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
from pydantic import TypeAdapter, ValidationError
from scipy.special import expit
from sklearn.linear_model import LogisticRegression

from editlib.errors import EditlibError
from editlib.files import write_json
from editlib.models.language_model import LanguageModel

FEATURES = ("spill", "reach")
LEAST = 1e-9  # of a feature, before its logarithm
Z = 1.96  # standard errors on either side: 95 %
SHIPPED = Path(__file__).parent / "calibrations.json"

Row = tuple[float, float, float]  # the intercept's, then those of `FEATURES`
Rows = tuple[Row, Row, Row]


@dataclass(frozen=True)
class Calibration:
    """Log-odds of collapse, linear in log₁₀ of `FEATURES`, with the errors' `covariance`; and what it was fitted on:
    a model by its fingerprint, a method with all its hyper-parameters, `edits` of which `collapsed` rose to
    `collapse_ratio` times the unedited perplexity of `texts`, in the `run` of that id."""

    model: str
    fingerprint: str
    method: str
    hparams: Mapping[str, Any]
    texts: str
    collapse_ratio: float
    edits: int
    collapsed: int
    coefficients: Row
    covariance: Rows
    run: str | None = None

    def probability(self, table: pd.DataFrame) -> pd.DataFrame:
        """`probability` of collapse for each row of a table of `risk`, with its 95 % interval (`_low`, `_high`): of the
        fit, not of what no fit knows."""
        rows = _design(table)
        odds, error = rows @ np.array(self.coefficients), np.sqrt(np.einsum("ij,jk,ik->i", rows, self.covariance, rows))
        ends = {"": odds, "_low": odds - Z * error, "_high": odds + Z * error}
        return pd.DataFrame({f"probability{end}": expit(values) for end, values in ends.items()}, index=table.index)

    def fits(self, lm: LanguageModel, method: str, params: Any) -> bool:
        """Whether it was fitted on edits of this model by this method with these hyper-parameters."""
        return (self.fingerprint, self.method, dict(self.hparams)) == (lm.fingerprint, method, _plain(params))


def fit(
    lm: LanguageModel, method: str, params: Any, table: pd.DataFrame, *, collapse_ratio: float, texts: str
) -> Calibration:
    """Fit a rule to edits that were made: a table of `risk` with the column `collapsed`.

    Logistic regression with a ridge of 1 on both slopes, which keeps them finite where nothing overlaps; `covariance`
    is the inverse of the penalised likelihood's curvature. Raises `EditlibError` unless some edits collapse the model
    and some do not.
    """
    hit = table["collapsed"].to_numpy(bool)
    if hit.all() or not hit.any():
        raise EditlibError(
            f"{hit.sum()} of {len(hit)} edits collapse {lm.label}; a rule needs some that do and some not"
        )
    rows = _design(table)
    rule = LogisticRegression(tol=1e-8).fit(rows[:, 1:], hit)
    coefficients = np.concatenate([rule.intercept_, rule.coef_[0]])
    chance = expit(rows @ coefficients)
    curvature = (rows.T * (chance * (1 - chance))) @ rows + np.diag([0.0] + [1.0] * len(FEATURES))
    return Calibration(
        model=lm.label, fingerprint=lm.fingerprint, method=method, hparams=_plain(params), texts=texts,
        collapse_ratio=collapse_ratio, edits=len(hit), collapsed=int(hit.sum()),
        coefficients=cast("Row", tuple(coefficients.tolist())),
        covariance=cast("Rows", tuple(map(tuple, np.linalg.inv(curvature).tolist()))),
    )  # fmt: skip


def read(path: str | Path) -> list[Calibration]:
    """Rules from a file that `write` made; raises `EditlibError` for any other."""
    try:
        return TypeAdapter(list[Calibration]).validate_json(Path(path).read_text("utf-8"))
    except (OSError, ValueError, ValidationError) as error:
        reason = error.errors()[0]["msg"] if isinstance(error, ValidationError) else error
        raise EditlibError(f"calibrations {path} cannot be read: {reason}; the analysis screen writes some") from error


def write(path: str | Path, rules: Sequence[Calibration]) -> None:
    """Rules as JSON, a list."""
    write_json(Path(path), [asdict(rule) for rule in rules])


def _design(table: pd.DataFrame) -> np.ndarray:
    """Rows that coefficients are for: 1, then logarithms, so that factors count."""
    return np.column_stack([np.ones(len(table)), np.log10(table[list(FEATURES)].clip(lower=LEAST))])


def _plain(params: Any) -> dict[str, Any]:
    """Hyper-parameters as JSON gives them back."""
    return dict(json.loads(json.dumps(asdict(params))))
