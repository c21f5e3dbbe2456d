"""Build the book by Sphinx alone, at its newest, and record whether that works: Jupyter Book 1 holds Sphinx back.

    .venv/bin/python tools/plain_sphinx.py       # writes _build/plain-sphinx/{html,result.json}

Sphinx, its theme and its extensions are installed into an environment of their own; all else is taken from that of the
project. The configuration is the one that Jupyter Book makes of `_config.yml`, less its own extensions. The exit status
is that of the build; `make sphinx` ignores it.
"""

import json
import platform
import re
import subprocess
import sys
import sysconfig
import venv
from importlib.metadata import version
from pathlib import Path
from pprint import pformat

from jupyter_book.config import get_final_config

ROOT = Path(__file__).parents[1]
BUILD = ROOT / "_build" / "plain-sphinx"
NEWEST = (
    "sphinx", "myst-nb", "sphinx-book-theme", "sphinx-external-toc", "sphinxcontrib-bibtex", "sphinx-copybutton",
    "sphinx-design", "sphinx-togglebutton",
)  # fmt: skip
ITS_OWN = ("jupyter_book", "sphinx_thebe", "sphinx_comments", "sphinx_jupyterbook_latex", "sphinx_multitoc_numbering")
REPORT = (
    "import json, sys; from importlib.metadata import version; print(json.dumps({n: version(n) for n in sys.argv[1:]}))"
)


def configure(folder: Path) -> None:
    """Write `conf.py`."""
    config, _ = get_final_config(
        user_yaml=ROOT / "_config.yml", sourcedir=ROOT / "book", cli_config={"latex_individualpages": False}
    )
    config["extensions"] = [name for name in config["extensions"] if name not in ITS_OWN]
    for name in ("use_jupyterbook_latex", "use_multitoc_numbering", "comments_config", "latex_individualpages"):
        config.pop(name, None)
    config["bibtex_bibfiles"] = [str(ROOT / "book" / name) for name in config["bibtex_bibfiles"]]
    config["html_static_path"] = [str(ROOT / "book" / name) for name in config["html_static_path"]]
    config |= {name: str(ROOT / "book" / config[name]) for name in ("html_logo", "html_favicon")}
    lines = [f"import sys\nsys.path.insert(0, {str(ROOT / 'book/_ext')!r})"]
    folder.mkdir(parents=True, exist_ok=True)
    lines += [f"{name} = {pformat(value)}" for name, value in config.items()]
    (folder / "conf.py").write_text("\n".join(lines) + "\n", "utf-8")


def main() -> int:
    """Install, build, record."""
    environment = BUILD / "venv"
    venv.create(environment, with_pip=True, clear=True)
    python = environment / "bin" / "python"
    pip = [str(python), "-m", "pip", "install", "--quiet", "--upgrade", *NEWEST]
    subprocess.run(pip, check=True)
    behind = environment / f"lib/python{sys.version_info.major}.{sys.version_info.minor}/site-packages/project.pth"
    behind.write_text(sysconfig.get_paths()["purelib"] + "\n", "utf-8")
    configure(BUILD / "conf")
    command = [python, "-m", "sphinx", "-b", "html", "-n", "-E", "-c", BUILD / "conf", ROOT / "book", BUILD / "html"]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, encoding="utf-8")
    said = [re.sub(r"\x1b\[[0-9;]*m", "", line).replace(f"{ROOT}/", "") for line in done.stderr.splitlines()]
    used = subprocess.run([str(python), "-c", REPORT, *NEWEST], check=True, capture_output=True, text=True).stdout
    result = {
        "built": done.returncode == 0,
        "warnings": sum("WARNING" in line for line in said),
        "said": [line for line in said if "WARNING" in line or "rror" in line][:20],
        "python": platform.python_version(),
        "packages": json.loads(used),
        "instead_of": {"sphinx": version("sphinx"), "jupyter-book": version("jupyter-book")},
    }
    (BUILD / "result.json").write_text(json.dumps(result, indent=1) + "\n", "utf-8")
    print(json.dumps(result, indent=1))
    return done.returncode


if __name__ == "__main__":
    sys.exit(main())
