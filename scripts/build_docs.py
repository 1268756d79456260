"""Write the generated parts of docs/: the table in docs/methods.md, from what each method declares.

`python scripts/build_docs.py` writes; with `--check` it writes nothing and exits with 1 if the page
is out of date. Text outside the two markers is left as it is. README's table of results is not made
here; the benchmarks write it.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
BEGIN, END = "<!-- methods: begin (make docs) -->", "<!-- methods: end -->"
PHASES = ("recognition", "association", "mastery")
NEW_PAGE = f"""# Methods

Every method says on its class what it can do; this table is made from that by `make docs`.

{BEGIN}
{END}
"""


def read_methods() -> dict[str, Any]:
    """Name and class of every method that errata itself ships, in the order of `METHODS`."""
    from errata.methods import METHODS, method_class

    return {name: method_class(name) for name in METHODS}


def summary(cls: Any) -> str:
    """The first line of a class's docstring, without its last stop."""
    lines = (cls.__doc__ or "").strip().splitlines()
    return lines[0].rstrip(".") if lines else ""


def table(methods: dict[str, Any]) -> str:
    """One Markdown row a method, phases in the order recognition, association, mastery."""
    needs = {
        "subject": "needs_subject",
        "statistics": "needs_statistics",
        "training": "needs_training",
    }
    head = ("method", "phase", "what it does", "operations", "undo", "needs", "paper")
    rows = [head, tuple("---" for _ in head)]
    for name, cls in sorted(methods.items(), key=lambda item: PHASES.index(item[1].phase)):
        needed = ", ".join(word for word, flag in needs.items() if getattr(cls, flag, False))
        operations = ", ".join(cls.operations)
        names = ", ".join(f"`{each}`" for each in (name, *cls.variants))
        rows.append(
            (names, cls.phase, summary(cls), operations, cls.undo_is, needed or "-", cls.paper)
        )
    return "\n".join(
        "| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows
    )


def put_between_markers(page: str, text: str) -> str:
    """The page with `text` between its markers; the markers go to its end when it has none."""
    if BEGIN not in page or END not in page:
        page = f"{page.rstrip()}\n\n{BEGIN}\n{END}\n"
    before, rest = page.split(BEGIN, 1)
    after = rest.split(END, 1)[1]
    return f"{before}{BEGIN}\n{text}\n{END}{after}"


def main() -> int:
    """Write or check docs/methods.md."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--check", action="store_true", help="write nothing; exit with 1 if out of date"
    )
    options = parser.parse_args()
    path = ROOT / "docs" / "methods.md"
    old = path.read_text(encoding="utf-8") if path.exists() else ""
    new = put_between_markers(old or NEW_PAGE, table(read_methods()))
    if old == new:
        print(f"{path.relative_to(ROOT)} is up to date")
        return 0
    if options.check:
        print(f"{path.relative_to(ROOT)} is out of date: run `make docs`", file=sys.stderr)
        return 1
    path.parent.mkdir(exist_ok=True)
    path.write_text(new, encoding="utf-8")
    print(f"wrote {path.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
