"""Writes into ARCHITECTURE.md, from the code: the rooms, what each is and imports, as a table and as a diagram."""

import ast
import re
import tomllib
from pathlib import Path

import grimp

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "ARCHITECTURE.md"
MADE = re.compile(r"(?<=<!-- made by make architecture -->\n).*?(?=<!-- to here -->)", re.DOTALL)


def rooms() -> dict[str, list[str]]:
    """The modules of each room by the room's name, highest first, as the import contract in pyproject.toml has them."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["importlinter"]["contracts"]
    layers = next(contract["layers"] for contract in contracts if contract["type"] == "layers")
    named: dict[str, list[str]] = {}
    for layer in layers:
        if " : " in layer:  # parts of a package that lie together
            parts = layer.split(" : ")
            named[f"{parts[0].split('.')[0]}: {', '.join(part.split('.')[1] for part in parts)}"] = parts
        else:
            named |= {part: [part] for part in layer.split(" | ")}
    return named


def imports(named: dict[str, list[str]]) -> dict[str, list[str]]:
    """The rooms that each room imports, directly, also inside functions but not for types alone."""
    graph = grimp.build_graph("editlib", exclude_type_checking_imports=True, cache_dir=None)
    of: dict[str, str] = {}
    for name, parts in named.items():
        for part in parts:
            of |= dict.fromkeys({f"editlib.{part}", *graph.find_descendants(f"editlib.{part}")}, name)
    used: dict[str, set[str]] = {name: set() for name in named}
    for module, name in of.items():
        used[name] |= {of[target] for target in graph.find_modules_directly_imported_by(module) if target in of}
    return {name: [other for other in named if other in used[name] and other != name] for name in named}


def purpose(part: str) -> str:
    """The first sentence of a room's docstring, up to a semicolon."""
    path = ROOT / "editlib" / part.replace(".", "/")
    source = (path / "__init__.py" if path.is_dir() else path.with_suffix(".py")).read_text("utf-8")
    return re.split(r"(?<=\.)\s|;", ast.get_docstring(ast.parse(source)) or "")[0].rstrip(".")


def drawn(used: dict[str, list[str]]) -> str:
    """The table, and the diagram without arrows that others imply."""
    reached: dict[str, set[str]] = {}
    for name in reversed(used):
        reached[name] = set(used[name]).union(*(reached[other] for other in used[name]))
    lines = ["| Room | What it is | Imports |", "|---|---|---|"]
    for name, parts in rooms().items():
        described = purpose(parts[0] if len(parts) == 1 else parts[0].split(".")[0])
        lines.append(f"| `{name}` | {described} | {', '.join(dict.fromkeys(n.split(':')[0] for n in used[name]))} |")
    lines += ["", "```mermaid", "flowchart TD"]
    key = {name: f"r{number}" for number, name in enumerate(used)}
    lines += [f'    {key[name]}["{name}"]' for name in used]
    for name, others in used.items():
        implied = set().union(*(reached[other] for other in others))
        lines += [f"    {key[name]} --> {key[other]}" for other in others if other not in implied]
    return "\n".join([*lines, "```", ""])


def current(page: str) -> str:
    """The page with what is made from the code as the code is now."""
    return MADE.sub(lambda _: drawn(imports(rooms())), page)


if __name__ == "__main__":
    PAGE.write_text(current(PAGE.read_text("utf-8")), "utf-8")
