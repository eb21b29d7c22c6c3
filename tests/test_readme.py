"""The README says what the results say, and its links lead somewhere."""

import re

import pytest

from plg_utils import files

README = (files.ROOT / "README.md").read_text(encoding="utf-8")


def test_each_number_of_the_results_table_stands_in_the_summary():
    path = files.ROOT / "results" / "demo" / "summary.json"
    if not path.exists():
        pytest.skip("results/demo has not been published yet")
    measured = {row["name"]: f"{100 * row['miou']:.1f}" for row in files.read_json(path)["rows"]}
    table = README.split("<!-- demo -->")[1].split("<!-- /demo -->")[0]
    told = dict(re.findall(r"^\| ([^|]+?) \|[^|]+\| ([\d.]+) \|$", table, re.MULTILINE))
    assert told == measured


def test_local_links_and_pictures_exist():
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", README):
        assert (files.ROOT / target).exists(), target


def test_the_tree_names_what_there_is():
    for folder in re.findall(r"^  (\w+)/ ", README, re.MULTILINE):
        assert (files.ROOT / "plg_utils" / folder).is_dir(), folder
