"""The files of the package that a notebook computes with: what it imports, what that imports, and the data these name.

Names that are loaded when first used (`el.sweep`, `plot.theme`) are looked up in the stub beside the package, so that a
notebook reaches the one module that holds them. In doubt a file counts: too many cost a run executed again, too few a
result that is not what its spec says.
"""

import ast
import hashlib
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

PACKAGE = Path(__file__).parents[1]
DATA = (".json", ".jsonl", ".yaml")
PRESETS = "presets.json"  # hashed apart: only those for the models of a run enter its spec


def code_hash(notebook: str, package: Path = PACKAGE) -> str:
    """sha256 over the files that a notebook, given as its source, computes with, but presets; by relative path."""
    digest = hashlib.sha256()
    for path in (path for path in files_of(notebook, package) if path.name != PRESETS):
        content = path.read_bytes()
        digest.update(f"{path.relative_to(package).as_posix()} {len(content)}\n".encode() + content)
    return digest.hexdigest()


def files_of(notebook: str, package: Path = PACKAGE) -> list[Path]:
    """Modules and data of the package that a notebook computes with, sorted.

    The data of a module are files whose name or stem it holds as a string; those of a model's folder are the model's.
    """
    reached, strings, known = set[Path](), set[str](), _names(notebook, "")
    waiting = _modules_of(known, package)
    while waiting:
        path = waiting.pop()
        reached.add(path)
        source = path.read_text("utf-8")
        inside = ".".join([package.name, *path.relative_to(package).parts[:-1]])
        strings |= _strings(source)
        new = _names(source, inside) - known
        known |= new
        waiting |= _modules_of(new, package) - reached
    models = {config.parent for config in package.rglob("config.json")}
    data = {path for path in package.rglob("*") if path.suffix in DATA and path.parent not in models}
    return sorted(reached | {path for path in data if {path.name, path.stem} & strings})


@cache
def _names(source: str, inside: str) -> frozenset[str]:
    """The dotted names of what a source in the package `inside` may load, its strings among them."""
    bound, names = dict[str, str](), set(_strings(source))  # dotted names by local name, and all of them
    nodes = _nodes(source)
    for node in nodes:
        if isinstance(node, ast.Import):
            bound |= {
                n.asname or n.name.split(".")[0]: n.name if n.asname else n.name.split(".")[0] for n in node.names
            }
            names |= {n.name for n in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = _base(node, inside)
            bound |= {n.asname or n.name: f"{base}.{n.name}" for n in node.names}
            names |= {f"{base}.{n.name}" for n in node.names}
    chained = {id(node.value) for node in nodes if isinstance(node, ast.Attribute)}
    for node in nodes:
        root, _, rest = ast.unparse(node).partition(".") if isinstance(node, ast.Attribute | ast.Name) else ("", "", "")
        if root in bound:  # a name used whole may stand for all that it has
            names.add(f"{bound[root]}.{rest}" if rest else bound[root] + ".*" * (id(node) not in chained))
    return frozenset(names)


def _base(node: ast.ImportFrom, inside: str) -> str:
    """The module that `from ... import` names, a relative one from the package it stands in."""
    above = inside.split(".")[: len(inside.split(".")) - node.level + 1] if node.level else []
    return ".".join([*above, *filter(None, [node.module])])


def _modules_of(names: Iterable[str], package: Path) -> set[Path]:
    """The modules of dotted names, with the packages on the way but the lazy one at the top."""
    return {path for name in names for path in _modules(name, package)}


def _modules(name: str, package: Path) -> Iterator[Path]:
    """The module that a dotted name lies in, found through stubs, and the packages above it; `*` is all of a stub."""
    first, *words = name.split(".")
    here = package
    if first != package.name:
        return
    for depth, word in enumerate(words):
        stub = _stub(here)
        if word == "*":
            for target in stub.values():
                yield from _modules(target, package)
        elif (here / word).is_dir() and (here / word / "__init__.py").is_file():
            here /= word
            yield here / "__init__.py"
        elif (here / f"{word}.py").is_file():
            yield here / f"{word}.py"
            return
        elif word in stub:
            yield from _modules(".".join([stub[word], *words[depth + 1 :]]), package)
            return
        else:
            return


def _stub(folder: Path) -> dict[str, str]:
    """Where the names of a lazy package lie: dotted names by name; empty for any other package."""
    path = folder / "__init__.pyi"
    if not path.is_file():
        return {}
    parts = list[str]()
    for above in (folder, *folder.parents):
        if not (above / "__init__.py").is_file():
            break
        parts.insert(0, above.name)
    return _imported(path.read_text("utf-8"), ".".join(parts))


@cache
def _imported(source: str, inside: str) -> dict[str, str]:
    """Where the names lie that a source in the package `inside` imports from somewhere."""
    froms = (node for node in _nodes(source) if isinstance(node, ast.ImportFrom))
    return {n.asname or n.name: f"{_base(node, inside)}.{n.name}" for node in froms for n in node.names}


@cache
def _strings(source: str) -> frozenset[str]:
    """The constants of a source, as text."""
    return frozenset(str(node.value) for node in _nodes(source) if isinstance(node, ast.Constant))


@cache
def _nodes(source: str) -> tuple[ast.AST, ...]:
    """Every node of a source but what stands under `if TYPE_CHECKING`, which only type checkers read."""
    nodes, waiting = list[ast.AST](), [ast.parse(source)]  # type: list[ast.AST], list[ast.AST]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            waiting += node.orelse
            continue
        nodes.append(node)
        waiting += ast.iter_child_nodes(node)
    return tuple(nodes)
