"""What the repository tells every page: its address, its version, when it was last changed.

The address is `repository: url` of _config.yml, or what GitHub's workflows set. With it, run pages link to their source
and offer to open their notebook in Colab or JupyterLab.
"""

from __future__ import annotations

import os
import subprocess
from html import escape
from importlib.metadata import version
from typing import Any

from sphinx.application import Sphinx
from sphinx.config import Config

LAUNCH = {
    "notebook_interface": "jupyterlab",
    "binderhub_url": "https://mybinder.org",
    "colab_url": "https://colab.research.google.com",
}


def address(config: Config) -> str:
    """The repository's address without a slash at its end; empty if unknown."""
    server, name = (os.environ.get(key, "") for key in ("GITHUB_SERVER_URL", "GITHUB_REPOSITORY"))
    known = config.html_theme_options.get("repository_url") or (f"{server}/{name}" if server and name else "")
    return str(known).rstrip("/")


def add_address(app: Sphinx, config: Config) -> None:
    """Tell the theme, whose buttons need an address."""
    if url := address(config):
        branch = config.html_theme_options.get("repository_branch") or os.environ.get("GITHUB_REF_NAME") or "main"
        told = {"repository_url": url, "repository_branch": branch, "path_to_docs": "book", "launch_buttons": LAUNCH}
        config.html_theme_options.update(told)


def add_version(app: Sphinx, config: Config) -> None:
    """Say at the foot of every page which version it is of, and of which day its last commit is, where git knows."""
    asked = ["git", "-C", str(app.srcdir), "log", "-1", "--format=%cs"]
    try:
        day = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        day = ""
    said = f"Version {version('editlib')}" + f", last changed {day}" * bool(day) + "."
    config.html_theme_options["extra_footer"] = f"<p>{escape(said)}</p>"


def drop_launch(app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: object) -> None:
    """A local run's notebook is in no repository, so nothing there could open it."""
    if "/local-" in page:
        context["header_buttons"] = [b for b in context["header_buttons"] if b.get("label") != "launch-buttons"]


def setup(app: Sphinx) -> dict[str, Any]:
    app.connect("config-inited", add_address)
    app.connect("config-inited", add_version)
    app.connect("html-page-context", drop_launch, priority=900)
    return {"version": "1", "parallel_read_safe": True}
