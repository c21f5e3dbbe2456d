"""The command line in tests: no signs of life, however busy the machine is."""

import pytest

from editlib.cli import output


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output, "FIRST", 3600.0)
