"""Imports run one way, in the order in which the README lists what there is."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = sorted(path.parent.name for path in (ROOT / "plasticity").glob("*/__init__.py"))


def listed() -> list[str]:
    """What the README's list says is in `plasticity`, from its top on, then the packages that follow it."""
    text = (ROOT / "README.md").read_text().partition("\n## Where things are\n")[2].partition("\n```\n")[2]
    inside, *after = text.partition("\n```\n")[0].split("\nstrategies/")[0].splitlines(), "strategies", "benchmarks"
    heads = [re.match(r"  ((?:\w+(?:\.py|/)(?:, )?)+) ", line) for line in inside[1:]]
    assert all(heads), inside
    return [*(name for head in heads if head for name in re.findall(r"\w+(?=\.py|/)", head[1])), *after]


def place(name: str) -> str:
    """The entry of the list that a module belongs to."""
    top, _, rest = name.partition(".")
    return rest.partition(".")[0] if top == "plasticity" else top


def imported(path: Path) -> Iterator[str]:
    """Every module that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module is not None, path
            folder = ROOT / node.module.replace(".", "/")
            for alias in node.names:
                is_module = (folder / f"{alias.name}.py").exists() or (folder / alias.name / "__init__.py").exists()
                yield f"{node.module}.{alias.name}" if is_module else node.module


def files(package: str) -> list[Path]:
    """The files of a package, without the library's own `__init__.py`, which is above all of it."""
    return [path for path in sorted((ROOT / package).rglob("*.py")) if path != ROOT / "plasticity/__init__.py"]


def module_of(path: Path) -> str:
    """The qualified name of a file's module."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


def test_the_list_has_everything_once():
    assert sorted(listed()) == sorted(
        {place(module_of(path)) for path in files("plasticity")} | {"strategies", "benchmarks"}
    )


def test_the_library_imports_only_what_stands_above():
    order = {name: number for number, name in enumerate(listed())}
    found = [
        f"{module_of(path)} imports {name}"
        for path in files("plasticity")
        for name in imported(path)
        if name.partition(".")[0] in ("plasticity", "strategies", "benchmarks", "tests")
        and order.get(place(name), len(order)) > order[place(module_of(path))]
    ]
    assert found == []


@pytest.mark.parametrize("package", PACKAGES)
def test_modules_of_a_package_import_each_other_one_way(package):
    paths = {module_of(path): path for path in files(f"plasticity/{package}") if path.name != "__init__.py"}
    left = {name: set(imported(path)) for name, path in paths.items()}
    assert left and not [name for name, needs in left.items() if f"plasticity.{package}" in needs]
    while left:
        first = {name for name, needs in left.items() if not needs & left.keys()}
        assert first, left
        left = {name: needs for name, needs in left.items() if name not in first}


def test_strategies_import_no_benchmarks():
    found = [(module_of(path), name) for path in files("strategies") for name in imported(path)]
    assert [each for each in found if each[1].partition(".")[0] in ("benchmarks", "tests")] == []
