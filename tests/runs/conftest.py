"""Runs of a throw-away project whose notebook needs no torch."""

from pathlib import Path

import pytest
from folders import make_project

from editlib.runs.execute import execute
from editlib.runs.manifest import Manifest


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_project(tmp_path_factory.mktemp("project {with} braces"))


@pytest.fixture(scope="module")
def done(project: Path) -> Manifest:
    return execute("toy", root=project)


@pytest.fixture
def empty(tmp_path: Path) -> Path:
    """A project nothing was executed in."""
    return make_project(tmp_path / "project")
