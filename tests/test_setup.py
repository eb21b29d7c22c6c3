"""The files of the set-up agree: pyproject.toml, requirements.lock, environment.yml, Makefile, README, .ci/run."""

import fnmatch
import re
import shutil
import subprocess
import tomllib

import pytest

from plg_utils import files

PROJECT = tomllib.loads((files.ROOT / "pyproject.toml").read_text(encoding="utf-8"))
LOCK = (files.ROOT / "requirements.lock").read_text(encoding="utf-8")
BROWSER_LOCK = (files.ROOT / "requirements-browser.lock").read_text(encoding="utf-8")  # make test-browser
MAKEFILE = (files.ROOT / "Makefile").read_text(encoding="utf-8")
TARGETS = set(re.findall(r"^([a-z-]+):.*## ", MAKEFILE, flags=re.MULTILINE))


def tracked():
    """Paths of the files that git holds or would add."""
    if not shutil.which("git") or not (files.ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    listing = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listing, cwd=files.ROOT, check=True, capture_output=True, text=True).stdout.split("\0")
    return [files.ROOT / name for name in names if name and (files.ROOT / name).is_file()]


def pinned(text):
    """Names and versions of a lock's lines."""
    return dict(re.findall(r"^([a-z0-9][a-z0-9._-]*)==([^\s;\\]+)", text, flags=re.MULTILINE))


def normal(requirement):
    """A requirement's name as locks write it."""
    return re.sub(r"[-_.]+", "-", re.match(r"[\w.-]+", requirement)[0]).lower()


@pytest.mark.parametrize(("lock", "least"), [(LOCK, 50), (BROWSER_LOCK, 2)])
def test_each_locked_package_has_hashes_and_no_address(lock, least):
    entries = re.split(r"^(?=\S)", lock, flags=re.MULTILINE)[1:]
    assert len(entries) >= least
    assert [entry.split()[0] for entry in entries if "--hash=sha256:" not in entry] == []
    assert re.findall(r"\S*://\S*|--\S*index\S*|--find-links|--trusted-host|^#.*", lock, flags=re.MULTILINE) == []


def test_the_browser_is_driven_by_locked_packages():
    wanted = {normal(requirement) for requirement in PROJECT["dependency-groups"]["browser"]}
    assert wanted - pinned(BROWSER_LOCK).keys() == set()
    both = pinned(LOCK).keys() & pinned(BROWSER_LOCK).keys()
    assert {name for name in both if pinned(LOCK)[name] != pinned(BROWSER_LOCK)[name]} == set()


def test_direct_dependencies_are_locked():
    project = PROJECT["project"]
    direct = project["dependencies"] + project["optional-dependencies"]["dev"]
    assert {normal(requirement) for requirement in direct} - pinned(LOCK).keys() == set()
    versions = pinned(LOCK)
    assert (versions["torch"], versions["torchvision"]) == ("2.11.0", "0.26.0")  # the pair that works on CPU and GPU
    assert int(versions["setuptools"].split(".")[0]) < 81  # clip imports pkg_resources


def test_each_direct_dependency_says_who_uses_it():
    text = (files.ROOT / "pyproject.toml").read_text(encoding="utf-8")
    project = text[text.index("dependencies = [") : text.index("[tool.")]
    assert [
        line for line in project.splitlines() if line.startswith('    "') and not re.search(r'",  # \w', line)
    ] == []


def test_commands_of_the_readme_exist():
    text = (files.ROOT / "README.md").read_text(encoding="utf-8")
    code = "\n".join(re.findall(r"^```.*?^```|`[^`\n]+`", text, flags=re.MULTILINE | re.DOTALL))
    assert {"demo", "test"} <= set(re.findall(r"\bmake ([a-z-]+)", code)) <= TARGETS


def test_all_data_of_the_package_is_installed_with_it():
    patterns = PROJECT["tool"]["setuptools"]["package-data"]["plg_utils"]
    package = files.ROOT / "plg_utils"
    names = [path.relative_to(package).as_posix() for path in tracked() if path.is_relative_to(package)]
    data = [name for name in names if not name.endswith(".py")]
    assert [name for name in data if not any(fnmatch.fnmatch(name, pattern) for pattern in patterns)] == []


def test_no_file_holds_a_path_of_one_machine():
    somewhere = re.compile(r"(?<![\w.:/-])/(?:home|root|work|Users)/[\w.-]+")
    found = {}
    for path in tracked():
        try:
            matches = somewhere.findall(path.read_text(encoding="utf-8"))
        except UnicodeDecodeError:
            continue  # weights and pictures
        if matches:
            found[path.name] = matches[:3]
    assert found == {}
