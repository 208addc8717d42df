"""The wheel has all of hggraph, kernels only inside it, and works away from the repository."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

pytest.importorskip("build", reason="needs the extra `dev`")

ROOT = Path(__file__).parents[1]
LINKED = ["kernels", "benchmarks"]  # folders at the top that the package reaches through a link


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the sdist from a copy of the repository, and the wheel from the sdist."""
    folder = tmp_path_factory.mktemp("packaging")
    source = folder / "source"
    source.mkdir()
    for name in ["hggraph", "kernels", "tests", "benchmarks", "examples"]:  # what may leak in too
        if (ROOT / name).exists():
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=ignored)
    for name in ["pyproject.toml", "README.md", "LICENSE"]:
        shutil.copy(ROOT / name, source)
    run = [sys.executable, "-m", "build", "--no-isolation", "--outdir", folder / "dist", source]
    done = subprocess.run(run, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = (folder / "dist").glob("*.whl")
    return path


def test_wheel_has_the_package_and_nothing_else(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.partition("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"hggraph"}
    assert sorted(name for name in names if name.endswith(".py")) == sorted(
        [path.relative_to(ROOT).as_posix() for path in (ROOT / "hggraph").rglob("*.py")]
        + [f"hggraph/{path.relative_to(ROOT)}" for top in LINKED for path in (ROOT / top).rglob("*.py")]
    )
    assert "hggraph/kernels/README.md" in names
    assert not [name for name in names if "__pycache__" in name]


def test_every_folder_is_a_package_except_kernels():
    folders = [path.parent for path in (ROOT / "hggraph").rglob("*.py")]
    assert [folder for folder in folders if not (folder / "__init__.py").is_file()] == []
    assert not (ROOT / "kernels" / "__init__.py").exists()
    for top in LINKED:
        assert (ROOT / "hggraph" / top).readlink() == Path("..", top)


IMPORT_AND_REPORT = """
import importlib, importlib.util, json, pkgutil, warnings
warnings.simplefilter("ignore")
import hggraph, hggraph.kernels, hggraph.benchmarks._measure
if importlib.util.find_spec("triton"):
    for module in pkgutil.walk_packages(hggraph.kernels.__path__, "hggraph.kernels."):
        importlib.import_module(module.name)
spec = importlib.util.find_spec("kernels")
found = list(spec.submodule_search_locations) if spec else []
print(json.dumps([hggraph.__file__, hggraph.benchmarks.__file__, list(hggraph.kernels.__path__), found]))
"""


def test_installed_wheel_works_elsewhere(wheel, tmp_path):
    site, elsewhere = tmp_path / "site", tmp_path / "elsewhere"
    elsewhere.mkdir()
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
    subprocess.run([*pip, "--no-deps", "--no-index", "--target", site, wheel], check=True)
    # -S: no .pth file, so that an editable install of hggraph has no say.
    paths = [str(site), *{sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}]
    run = subprocess.run(
        [sys.executable, "-S", "-c", IMPORT_AND_REPORT],
        cwd=elsewhere,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    package, benchmarks, kernels, top_level_kernels = json.loads(run.stdout)  # the last: Hugging Face's or none
    assert Path(package).is_relative_to(site) and Path(benchmarks).is_relative_to(site)
    assert kernels == [str(site / "hggraph" / "kernels")]
    assert not {str(site / "kernels"), str(ROOT / "kernels")} & set(top_level_kernels)
