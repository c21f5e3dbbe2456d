"""Changes of one weight, of low rank and dense, against products written out."""

import pytest
import torch

from editlib.editing.change import Change, Dense, LowRank

generator = torch.Generator().manual_seed(0)
LEFT, RIGHT, FULL = (torch.randn(*shape, generator=generator) for shape in ((5, 2), (7, 2), (5, 7)))
CHANGES = {"low rank": (LowRank(LEFT, RIGHT), LEFT @ RIGHT.T), "dense": (Dense(FULL), FULL)}


@pytest.mark.parametrize("kind", CHANGES)
def test_a_change_is_its_matrix(kind: str) -> None:
    change, matrix = CHANGES[kind]
    keys = torch.randn(3, 4, 7, generator=generator)
    torch.testing.assert_close(change.dense(), matrix)
    assert change.norm() == pytest.approx(matrix.double().norm().item(), rel=1e-6)
    torch.testing.assert_close(change.output(keys), keys @ matrix.T)
    torch.testing.assert_close(change.scaled(-0.5).dense(), -0.5 * matrix)
    half = change.output(keys.bfloat16())
    assert half.dtype == torch.bfloat16


@pytest.mark.parametrize(("first", "second"), [(a, b) for a in CHANGES for b in CHANGES])
def test_changes_add_and_stay_of_low_rank_where_both_are(first: str, second: str) -> None:
    (one, matrix), (other, more) = CHANGES[first], CHANGES[second]
    both: Change = one + other
    torch.testing.assert_close(both.dense(), matrix + more)
    assert isinstance(both, LowRank) is (first == second == "low rank")
