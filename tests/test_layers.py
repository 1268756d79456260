"""Three tests of the house's order: imports, and rules that a machine can check by reading.

The files are whatever stands under `src/errata`; what is to be kept by hand is `ORDER`, the list of
rooms.
"""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Iterator, Mapping
from functools import cache
from itertools import chain
from pathlib import Path

from errata.methods import METHODS

ROOT = Path(__file__).resolve().parent.parent
SRC = ROOT / "src"

ORDER = (
    "errors arguments progress storage words edit config conflicts report presets cluster lm "
    "retrieval patches solvers methods saving hub model cases stream answers probes measures "
    "evaluation consolidation atlas bench analyses images agents unlearning continual transfer "
    "engines serve cli __main__"
).split()
"""Low to high: a room imports from rooms on its left, and from itself."""

FACE = "errata"
"""`errata/__init__.py`, the public face: it imports what it likes; rooms below `bench` do not
import it.
"""

FAMILIES = re.compile(
    r"llama(?![._]cpp)|mistral|mixtral|falcon|gemma|qwen|gpt[-_]?(2|j|neo|oss|bigcode)|neox|pythia|olmo|starcoder|mamba"
    r"|(opt|phi|bloom)\d*(ForCausalLM|Config|Model)",
    re.IGNORECASE,
)
VAGUE = {"util", "utils", "common", "helper", "helpers", "misc"}
MAX_LINES = 300
MAX_WIDTH = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["ruff"][
    "line-length"
]
PRAGMA = re.compile(r"  # (type: ignore|noqa).*")
"""A word to a tool, which may stand further right."""

Imports = Mapping[str, Mapping[str, int]]
"""Module -> what it imports of errata -> the line."""


# what is read


def module_name(path: Path) -> str:
    """`src/errata/patches/__init__.py` -> `errata.patches`."""
    parts = path.relative_to(SRC).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted((SRC / "errata").rglob("*.py"))}


@cache
def parsed(path: Path) -> list[ast.AST]:
    return nodes_of(path.read_text(encoding="utf-8"), str(path))


def nodes_of(text: str, name: str = "") -> list[ast.AST]:
    """All that stands in a file, walked through once."""
    return list(ast.walk(ast.parse(text, name)))


def room(module: str) -> str:
    """The room of a module: `errata.patches.base` -> `patches`; `errata` itself is the face."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else FACE


def imported(nodes: list[ast.AST], module: str, package: bool = False) -> dict[str, int]:
    """What a module imports of errata -> the line; wherever the import stands. Relative ones are
    resolved.
    """
    parents = module.split(".") if package else module.split(".")[:-1]
    found: dict[str, int] = {}
    for node in nodes:
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            start = parents[: len(parents) - node.level + 1] if node.level else []
            base = ".".join([*start, *([node.module] if node.module else [])])
            inner = [f"{base}.{alias.name}" for alias in node.names]
            names = [name if name in MODULES else base for name in inner]
        else:
            continue
        found |= {name: node.lineno for name in names if name.split(".")[0] == FACE}
    return found


def all_imports() -> Imports:
    return {
        module: imported(parsed(path), module, path.name == "__init__.py")
        for module, path in MODULES.items()
    }


def strings(nodes: list[ast.AST]) -> Iterator[tuple[int, str]]:
    """(line, text) of every string that is no documentation."""
    alone = {
        id(n.value) for n in nodes if isinstance(n, ast.Expr) and isinstance(n.value, ast.Constant)
    }
    for node in nodes:
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in alone:
            yield node.lineno, node.value


def identifiers(nodes: list[ast.AST]) -> Iterator[tuple[int, str]]:
    """(line, name) of every identifier."""
    for node in nodes:
        line = getattr(node, "lineno", 0)
        if isinstance(node, ast.Name):
            yield line, node.id
        elif isinstance(node, ast.Attribute):
            yield line, node.attr
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield line, node.name
        elif isinstance(node, ast.arg):
            yield line, node.arg
        elif isinstance(node, ast.alias | ast.keyword):
            yield line, (node.name if isinstance(node, ast.alias) else node.arg) or ""


# what is judged


def allowed(importer: str, wanted: str) -> bool:
    """Whether a room may import from another."""
    if importer in (FACE, wanted):
        return True
    if importer not in ORDER:
        return False
    if wanted == FACE:
        return ORDER.index(importer) >= ORDER.index("bench")
    return wanted in ORDER and ORDER.index(wanted) < ORDER.index(importer)


def uphill(imports: Imports) -> list[str]:
    """Imports of a room from its right."""
    return [
        f"{module}:{line} ({room(module)}) imports {wanted}, which is on its right"
        for module, found in imports.items()
        for wanted, line in found.items()
        if not allowed(room(module), room(wanted))
    ]


def circles(imports: Imports) -> Iterator[tuple[str, ...]]:
    """Groups of modules each of which is reached from each, by imports."""
    below = {module: reached(imports, module) for module in imports}
    seen: set[str] = set()
    for module in sorted(imports):
        if module in below[module] and module not in seen:
            circle = tuple(
                sorted(other for other in below[module] if module in below.get(other, ()))
            )
            seen |= set(circle)
            yield circle


def reached(imports: Imports, module: str) -> set[str]:
    """All that a module imports, and what that imports, and so on."""
    found: set[str] = set()
    ahead = [module]
    while ahead:
        new = set(imports.get(ahead.pop(), ())) - found
        found |= new
        ahead += new
    return found


def told(circle: tuple[str, ...], imports: Imports) -> str:
    """A circle, with the lines that make it one."""
    steps = [
        f"{module}:{line} imports {wanted}"
        for module in circle
        for wanted, line in imports[module].items()
        if wanted in circle
    ]
    return "a circle: " + "; ".join(steps)


def own_room(method: str) -> str:
    """Where a method lives: what stands behind its phase in its registered module."""
    return ".".join(METHODS[method].partition(":")[0].split(".")[:4])


@cache
def names_a_family(text: str) -> bool:
    return FAMILIES.search(text) is not None


def misnamed(nodes: list[ast.AST], module: str) -> list[str]:
    """Model families and methods that a module names and should not know."""
    written = list(strings(nodes))
    found = [
        f"{module}:{line} names a model family: {text[:60]!r}"
        for line, text in chain(written, identifiers(nodes))
        if names_a_family(text) and module.rpartition(".")[2] != "architecture"
    ]
    found += [
        f"{module}:{line} names a method: {text!r}"
        for line, text in written
        if text in METHODS and module != "errata.methods" and not module.startswith(own_room(text))
    ]
    return found


def untidy(nodes: list[ast.AST], module: str, text: str) -> list[str]:
    """What a module does against the rules of the house."""
    found = []
    for node in nodes:
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Name)
            and node.func.id == "print"
        ):
            if room(module) not in ("cli", "__main__"):
                found.append(f"{module}:{node.lineno} print (use logging)")
        elif isinstance(node, ast.Assert):
            found.append(f"{module}:{node.lineno} assert (it vanishes under -O; raise an error)")
        elif isinstance(node, ast.Global):
            found.append(f"{module}:{node.lineno} global")
    lines = text.splitlines()
    found += [
        f"{module}:{n} {len(line)} columns"
        for n, line in enumerate(lines, 1)
        if len(PRAGMA.sub("", line)) > MAX_WIDTH
    ]
    if len(lines) > MAX_LINES:
        found.append(f"{module} has {len(lines)} lines; more than {MAX_LINES} want to be two rooms")
    if VAGUE & {*module.split(".")}:
        found.append(f"{module} is a name that says nothing")
    return found


# the tests


def test_imports_go_from_low_to_high_and_in_no_circle() -> None:
    rooms = {room(module) for module in MODULES} - {FACE}
    assert rooms <= set(ORDER), (
        f"give {sorted(rooms - set(ORDER))} a place in ORDER (and in the architecture page)"
    )
    assert len(ORDER) == len(set(ORDER))
    imports = all_imports()
    wrong = [told(circle, imports) for circle in sorted(circles(imports))]
    assert not (wrong := wrong + list(uphill(imports))), "\n".join(wrong)


def test_only_architecture_names_a_model_family_and_only_its_own_room_a_method() -> None:
    wrong = [line for module, path in MODULES.items() for line in misnamed(parsed(path), module)]
    assert not wrong, "\n".join(wrong)


def test_house_rules() -> None:
    """No print outside the command line, no assert, no global, nothing wide or over 300 lines, no
    empty names.
    """
    wrong = [
        line
        for module, path in MODULES.items()
        for line in untidy(parsed(path), module, path.read_text(encoding="utf-8"))
    ]
    assert not wrong, "\n".join(wrong)


def test_the_checks_see_what_they_should() -> None:
    """The readers above, on files made up to break the rules."""
    text = (
        '"""A llama in a docstring is fine, and so is wise."""\n'
        "from typing import TYPE_CHECKING\n"
        "from errata import lm, Edit\n"
        "from . import base\n"
        "from ..serve.app import app\n"
        "import errata.cli.main\n"
        "if TYPE_CHECKING:\n    from errata.bench import run\n"
        "def f(): from errata.store import ledger\n"
        "kind = 'LlamaForCausalLM', 'wise', 'otherwise'\n"
        "def g():\n    global kind\n    assert print()\n" + "#" * (MAX_WIDTH + 1) + "\n" * MAX_LINES
    )
    nodes = nodes_of(text)
    found = imported(nodes, "errata.patches.delta")
    assert found == {
        "errata.lm": 3, FACE: 3, "errata.patches.base": 4, "errata.serve.app": 5,
        "errata.cli.main": 6, "errata.bench.run": 8, "errata.store": 9,
    }  # fmt: skip
    wrong = uphill({"errata.patches.delta": found})
    assert [line.split()[3].rstrip(",") for line in wrong] == [
        FACE, "errata.serve.app", "errata.cli.main", "errata.bench.run", "errata.store"
    ]  # fmt: skip
    assert allowed("bench", FACE) and not allowed("unheard_of", "errors")

    graph = {
        "a": {"b": 1},
        "b": {"c": 2, "d": 3},
        "c": {"a": 4},
        "d": {"e": 5},
        "e": {"e": 6, "f": 7},
        "f": {},
    }
    assert list(circles(graph)) == [("a", "b", "c"), ("e",)]
    assert told(("a", "b", "c"), graph) == "a circle: a:1 imports b; b:2 imports c; c:4 imports a"

    assert [line.rpartition(": ")[2] for line in misnamed(nodes, "errata.lm")] == [
        "'LlamaForCausalLM'",
        "'wise'",
    ]
    counts = {
        f"{own_room('wise')}.config": 1,
        own_room("grace"): 2,
        "errata.lm.architecture": 1,
        "errata.methods": 1,
    }
    assert {module: len(misnamed(nodes, module)) for module in counts} == counts

    said = untidy(nodes, "errata.utils.delta", text)
    assert [line.split()[1] for line in said] == [
        "global",
        "assert",
        "print",
        f"{MAX_WIDTH + 1}",
        "has",
        "is",
    ]
    assert not any("print" in line for line in untidy(nodes, "errata.cli.delta", text))
