"""A part that costs workers is taken apart, and made whole again without what costs them, whatever comes when."""

from collections import deque
from collections.abc import Sequence

import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from editlib.cluster.driver import Assignment
from editlib.cluster.progress import Progress
from editlib.cluster.workers import Workers
from editlib.editing.summing import Total
from editlib.errors import EditlibError
from editlib.sweeps.filling import Filling

DEAD = "two workers were lost over this case: its process ended"


class Folder:
    """Parts as they are written; each row says which cases it was made with."""

    def __init__(self) -> None:
        self.written: dict[int, list[tuple[int, str, str]]] = {}

    def write(self, number: int, cases: Sequence[int], rows: pd.DataFrame) -> int:
        assert number not in self.written
        self.written[number] = [*rows.itertuples(index=False, name=None)]
        return len(cases)

    def dead(self, number: int, case: int, reason: str) -> pd.DataFrame:
        return pd.DataFrame({"case": [case] * 2, "method": ["a", "b"], "made": [reason] * 2})


def made(cases: Sequence[int]) -> pd.DataFrame:
    """Two rows a case."""
    rows = [(case, method, repr(tuple(cases))) for case in cases for method in "ab"]
    return pd.DataFrame(rows, columns=["case", "method", "made"])


@given(st.integers(1, 9), st.sets(st.integers(0, 8)), st.integers(0, 40), st.integers(0, 3))
def test_rows_follow_from_the_deadly_cases_alone(count: int, deadly: set[int], turn: int, accidents: int) -> None:
    """Tasks are done in many orders, and good ones are lost too, but never twice in a row."""
    folder = Folder()
    filling = Filling(folder, Progress(2 * count, Workers(), shown=False))
    queue = deque(Assignment((number, tuple(range(count)))) for number in range(2))
    for steps in range(1000):
        if not queue:
            break
        queue.rotate(turn * steps)
        task = queue.popleft()
        number, cases = task.what
        accident = accidents > 0 and not task.losses and task.lives == 2 and steps % 3 == 0
        accidents -= accident
        if accident or deadly & set(cases) and number == 0:
            task.losses.append("its process ended")
            following = [task] if len(task.losses) < task.lives else filling.lost(task.what, task.losses[-1])
        else:
            following = filling.done(task.what, made(cases))
        queue.extendleft(reversed(following))
    good = tuple(case for case in range(count) if case not in deadly)
    expected = [(case, m, DEAD if case in deadly else repr(good)) for case in range(count) for m in "ab"]
    assert folder.written == {0: expected, 1: [*made(range(count)).itertuples(index=False, name=None)]}
    assert filling.told.count == 2 * count


def test_a_part_too_large_for_workers_is_made_in_pieces() -> None:
    folder = Folder()
    filling = Filling(folder, Progress(4, Workers(), shown=False))
    halves = filling.lost((0, (0, 1, 2, 3)), "its process ended")
    assert [task.what for task in halves] == [(0, (0, 1)), (0, (2, 3))]
    assert filling.done(*[halves[0].what, made((0, 1))]) == []
    (whole,) = filling.done(halves[1].what, made((2, 3)))
    assert whole.what == (0, (0, 1, 2, 3)) and whole.lives == 2
    assert filling.lost(whole.what, "its process ended") == []
    assert [row[2] for row in folder.written[0]] == ["(0, 1)"] * 4 + ["(2, 3)"] * 4


@given(st.permutations(range(5)))
def test_sums_are_added_in_the_order_of_their_numbers(order: Sequence[int]) -> None:
    """Floating-point sums tell the order they were made in."""
    parts = [torch.tensor([value], dtype=torch.float64) for value in (1.0, 1e16, -1e16, 1.0, 1e-3)]
    total = Total()
    for number in order:
        assert total.done((number, torch.zeros(1, 1)), {0: parts[number]}) == []
    assert float(total.sums[0]) == (((1.0 + 1e16) - 1e16) + 1.0) + 1e-3
    assert not total.early and parts[0] == 1.0  # what came is left as it was


def test_moments_that_cost_workers_are_told() -> None:
    with pytest.raises(EditlibError, match="second moments: workers were lost over chunk 3 of the corpus: it hung"):
        Total().lost((3, torch.zeros(1, 1)), "it hung")
