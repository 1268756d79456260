"""The house keeps its order: who may import whom, and the rules a machine can check by reading."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from errata.methods import METHODS

SRC = Path(__file__).resolve().parent.parent / "src"
FILES = sorted((SRC / "errata").rglob("*.py"))

ORDER = (
    "errors arguments sharing files locking state spelling inflection parts words edit config conflicts report "
    "presets architecture hooks cache identity cluster encoding chat endings lm subject tail statistics moments "
    "values merging index masks retrieval patches spreading tuning methods generation delegation saving patched "
    "edited_module asking model loading stream cases answers evaluate ability atlas store "
    "bench analyses transfer images agents "
    "serve cli __main__"
).split()
"""Low to high: a room imports from rooms on its left, and from itself."""

FACE = "errata"
"""`errata/__init__.py`, the public face: it imports what it likes; rooms below `bench` do not
import it.
"""

FAMILIES = re.compile(
    r"llama|mistral|mixtral|falcon|gemma|qwen|gpt[-_]?(2|j|neo|oss|bigcode)|neox|pythia|olmo|starcoder|mamba"
    r"|(opt|phi|bloom)\d*(ForCausalLM|Config|Model)",
    re.IGNORECASE,
)
VAGUE = {"util", "utils", "common", "helper", "helpers", "misc"}
MAX_LINES = 300


def module_name(path: Path) -> str:
    """`src/errata/patches/__init__.py` -> `errata.patches`."""
    parts = path.relative_to(SRC).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def room(module: str) -> str:
    """The room a module stands in: `errata.patches.base` -> `patches`; `errata` itself is the face."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else FACE


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def runtime_nodes(node: ast.AST) -> Iterator[ast.AST]:
    """Every node below, without the bodies of `if TYPE_CHECKING`."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and ast.unparse(child.test) in (
            "TYPE_CHECKING",
            "typing.TYPE_CHECKING",
        ):
            for other in child.orelse:
                yield other
                yield from runtime_nodes(other)
            continue
        yield child
        yield from runtime_nodes(child)


def imported_rooms(tree: ast.Module, path: Path) -> Iterator[tuple[int, str]]:
    """(line, room) of everything a file imports from errata; relative imports are resolved."""
    package = module_name(path).split(".")
    if path.name != "__init__.py":
        package = package[:-1]
    for node in runtime_nodes(tree):
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*start, *([node.module] if node.module else [])])
            # `from errata import lm` is the room lm; `from errata import Edit` is the public face.
            modules = [f"errata.{a.name}" if a.name in ORDER else base for a in node.names]
            modules = modules if base == "errata" else [base]
        else:
            continue
        for module in modules:
            if module.split(".")[0] == "errata":
                yield node.lineno, room(module)


def allowed(importer: str, imported: str) -> bool:
    if importer in (FACE, imported):
        return True
    if importer not in ORDER:
        return False
    if imported == FACE:
        return ORDER.index(importer) >= ORDER.index("bench")
    return imported in ORDER and ORDER.index(imported) < ORDER.index(importer)


def documentation(tree: ast.Module) -> set[int]:
    """Ids of constants that stand alone as a statement: docstrings, and texts under an attribute."""
    return {
        id(n.value)
        for n in ast.walk(tree)
        if isinstance(n, ast.Expr) and isinstance(n.value, ast.Constant)
    }


def said_in_code(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """(line, text) of every string that is no documentation and of every identifier."""
    skip = documentation(tree)
    for node in ast.walk(tree):
        line = getattr(node, "lineno", 0)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in skip:
            yield line, node.value
        elif isinstance(node, ast.Name):
            yield line, node.id
        elif isinstance(node, ast.Attribute):
            yield line, node.attr
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield line, node.name
        elif isinstance(node, ast.arg):
            yield line, node.arg
        elif isinstance(node, ast.alias | ast.keyword):
            yield line, (node.name if isinstance(node, ast.alias) else node.arg) or ""


def relative(path: Path) -> str:
    return str(path.relative_to(SRC))


def test_every_room_has_a_place_in_the_order() -> None:
    rooms = {room(module_name(path)) for path in FILES} - {FACE}
    assert rooms <= set(ORDER), (
        f"give {sorted(rooms - set(ORDER))} a place in ORDER (and in the architecture page)"
    )
    assert len(ORDER) == len(set(ORDER))


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_imports_go_from_high_to_low(path: Path) -> None:
    importer = room(module_name(path))
    wrong = [
        f"line {n}: {r}" for n, r in imported_rooms(parse(path), path) if not allowed(importer, r)
    ]
    assert not wrong, f"{relative(path)} ({importer}) imports from its right: {wrong}"


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_only_architecture_names_a_model_family(path: Path) -> None:
    if path == SRC / "errata" / "architecture.py":
        return
    found = [
        f"line {line}: {text[:60]!r}"
        for line, text in said_in_code(parse(path))
        if FAMILIES.search(text)
    ]
    assert not found, f"{relative(path)}: {found}"


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_house_rules(path: Path) -> None:
    """No print outside the command line, no assert, no global, nothing over 300 lines, no empty
    names.
    """
    wrong = []
    for node in ast.walk(parse(path)):
        line = getattr(node, "lineno", 0)
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Name)
            and node.func.id == "print"
        ):
            if room(module_name(path)) not in ("cli", "__main__"):
                wrong.append(f"line {line}: print (use logging)")
        elif isinstance(node, ast.Assert):
            wrong.append(f"line {line}: assert (it vanishes under -O; raise an error)")
        elif isinstance(node, ast.Global):
            wrong.append(f"line {line}: global")
    lines = len(path.read_text(encoding="utf-8").splitlines())
    if lines > MAX_LINES:
        wrong.append(f"{lines} lines; more than {MAX_LINES} want to be two rooms")
    if VAGUE & {*path.relative_to(SRC).parts, path.stem}:
        wrong.append("a name that says nothing")
    assert not wrong, f"{relative(path)}: {wrong}"


def test_the_checks_see_what_they_should() -> None:
    """The readers above, on a file made up to break the rules."""
    text = (
        '"""A llama in a docstring is fine."""\n'
        "from typing import TYPE_CHECKING\n"
        "from errata import lm, Edit\n"
        "from . import base\n"
        "from ..serve.app import app\n"
        "import errata.cli.main\n"
        "if TYPE_CHECKING:\n    from errata.bench import run\n"
        "def f(): from errata.store import ledger\n"
        "kind = 'LlamaForCausalLM'\n"
    )
    tree = ast.parse(text)
    rooms = [r for _, r in imported_rooms(tree, SRC / "errata" / "patches" / "delta.py")]
    assert sorted(rooms) == ["cli", FACE, "lm", "patches", "serve", "store"]
    assert {r for r in rooms if not allowed("patches", r)} == {"cli", FACE, "serve", "store"}
    assert allowed("bench", FACE) and not allowed("unheard_of", "errors")
    assert [text for _, text in said_in_code(tree) if FAMILIES.search(text)] == ["LlamaForCausalLM"]


def test_only_a_methods_own_file_the_registry_and_the_presets_name_a_method() -> None:
    named = [
        f"{path.name}:{node.lineno} {node.value!r}"
        for path in FILES
        if room(module_name(path)) != "methods"
        for node in ast.walk(parse(path))
        if isinstance(node, ast.Constant) and node.value in set(METHODS)
    ]
    assert not named
