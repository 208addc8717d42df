"""The README's examples and those of the docs run, links lead somewhere, and no file names a path of one machine."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# Written so that it does not find itself.
MACHINE_PATH = re.compile(r"(?<![\w.$})/-])/(?:work|root|home|Users)(?![\w-])")


def repository_files() -> list[Path]:
    """Return every file that git tracks, or would if it were added."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a git repository")
    run = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    out = subprocess.run(run, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return [ROOT / name for name in out.split("\0") if (ROOT / name).is_file()]


@pytest.mark.parametrize("name", ["README.md", "docs/data.md", "docs/models.md"])
def test_examples_run(name, tmp_path):
    text = (ROOT / name).read_text(encoding="utf-8")
    examples = re.findall(r"^```python\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    assert examples, f"{name} has no ```python example"
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    for example in examples:
        run = [sys.executable, "-c", example]
        done = subprocess.run(run, cwd=tmp_path, env=env, capture_output=True, text=True)
        assert done.returncode == 0, f"{example}\n{done.stderr}"


def test_links_resolve():
    broken = []
    for path in repository_files():
        if path.suffix != ".md":
            continue
        text = re.sub(r"^```.*?^```", "", path.read_text(encoding="utf-8"), flags=re.M | re.S)
        text = re.sub(r"`[^`\n]*`", "", text)
        links = re.findall(r"\]\(<?([^)\s>]+)", text) + re.findall(r'(?:src|href)="([^"]+)"', text)
        for link in links:
            target = link.partition("#")[0]
            external = re.match(r"[a-z]+:", link) is not None
            if target and not external and not (path.parent / target).exists():
                broken.append(f"{path.relative_to(ROOT)}: {link}")
    assert not broken, "\n".join(broken)


def test_no_file_names_a_path_of_one_machine():
    found = []
    for path in repository_files():
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except UnicodeDecodeError:  # a picture
            continue
        for number, line in enumerate(lines, start=1):
            if MACHINE_PATH.search(line):
                found.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()}")
    assert not found, "\n".join(found)
