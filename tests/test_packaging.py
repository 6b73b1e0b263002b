"""The wheel: what it contains, that it works away from the clone, and what importing it costs."""

import email
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import plasticity

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "plasticity"

# Only these may import Avalanche, which takes seconds.
AVALANCHE_SIDE = {"plugins", "metrics", "loading"}

IMPORT_EACH = """
import importlib, json, sys
files = {name: importlib.import_module(name).__file__ for name in sys.argv[1:]}
print(json.dumps({"files": files, "loaded": sorted({name.partition(".")[0] for name in sys.modules})}))
"""


def source_files() -> set[str]:
    """Every file that belongs to the package, relative to the repository."""
    return {path.relative_to(ROOT).as_posix() for path in (*PACKAGE.rglob("*.py"), PACKAGE / "py.typed")}


def module_names(root: Path) -> list[str]:
    """The qualified name of every module of the package that lies under `root`."""
    paths = (path.relative_to(root).with_suffix("") for path in (root / "plasticity").rglob("*.py"))
    return sorted(".".join(path.parts).removesuffix(".__init__") for path in paths)


def run(*command: str | Path, cwd: Path, path: Path | None = None) -> str:
    """Run a command in `cwd`, with `path` first on Python's search path, and return what it printed."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    if path is not None:
        environment["PYTHONPATH"] = str(path)
    done = subprocess.run([*map(str, command)], cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel built from the working tree."""
    folder = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, ROOT, cwd=folder)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds the installed wheel and nothing else."""
    folder = tmp_path_factory.mktemp("installed")
    run(sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "--target", folder, wheel, cwd=folder)
    return folder


def test_wheel_contains_the_package_and_nothing_else(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    info = {name for name in names if name.startswith(f"avalanche_plasticity-{plasticity.__version__}.dist-info/")}
    assert names - info == source_files()
    assert "plasticity/py.typed" in names


def test_every_folder_of_the_package_is_a_package() -> None:
    folders = {path.parent for path in PACKAGE.rglob("*.py")}
    assert [folder for folder in sorted(folders) if not (folder / "__init__.py").is_file()] == []


def test_wheel_metadata(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        metadata = email.message_from_bytes(archive.read(name))
    assert metadata["Name"] == "avalanche-plasticity"
    assert metadata["Version"] == plasticity.__version__
    assert metadata["Requires-Python"] == ">=3.11"
    assert metadata["License-Expression"] == "MIT"
    needed = {line for line in metadata.get_all("Requires-Dist", []) if "extra ==" not in line}
    assert {line.partition(">")[0].partition("<")[0] for line in needed} == {"avalanche-lib", "numba", "numpy", "torch"}


def test_installed_wheel_imports_away_from_the_clone(installed: Path, tmp_path: Path) -> None:
    names = module_names(installed)
    assert "plasticity" in names
    answer = json.loads(run(sys.executable, "-c", IMPORT_EACH, *names, cwd=tmp_path, path=installed))
    assert [file for file in answer["files"].values() if not Path(file).is_relative_to(installed)] == []
    assert {"strategies", "benchmarks"}.isdisjoint(answer["loaded"])


def test_everything_but_plugins_metrics_and_loading_imports_without_avalanche(tmp_path: Path) -> None:
    pure = [name for name in module_names(ROOT) if AVALANCHE_SIDE.isdisjoint(name.split("."))]
    pure.remove("plasticity.watching.fused_kernels")  # imported once something is summed up
    assert "plasticity" in pure
    answer = json.loads(run(sys.executable, "-c", IMPORT_EACH, *pure, cwd=tmp_path, path=ROOT))
    unwanted = {"avalanche", "torchvision", "sklearn", "scipy", "matplotlib", "rich", "jinja2", "numba"}
    assert unwanted.intersection(answer["loaded"]) == set()
