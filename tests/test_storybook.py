"""The embedded world: what its scenes promise."""

import hashlib

import numpy as np
import pytest

from miniatures import scenes
from plg_utils import datasets
from plg_utils.datasets import storybook
from plg_utils.records import TruthHidden

SCENES = [storybook.draw(seed) for seed in range(40)]
# Of the label maps and captions of these scenes. The world is frozen: a change means publishing every result anew.
WORLD = "f4d44e6452eeaf0f5504da64a588839368fd8d4d84a40bf4d20c09199d58f2f8"


def test_the_world_is_frozen():
    """So what its maps and captions promise of each other needs no test."""
    digest = hashlib.sha256()
    for scene in SCENES:
        digest.update(scene.label.tobytes() + scene.caption.encode())
    assert digest.hexdigest() == WORLD


def test_the_same_seed_gives_the_same_bytes():
    again, other = storybook.draw(3), storybook.draw(4)
    np.testing.assert_equal(vars(again), vars(SCENES[3]))
    assert (again.image != other.image).any()


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("storybook")


def test_labelled_draws_are_nested_and_show_each_class_twice(root):
    drawn = {n: [s.id for s in storybook.load(root=root, labelled=n, seed=1).labelled] for n in (12, 24, 48)}
    assert set(drawn[12]) < set(drawn[24]) < set(drawn[48]) and len(drawn[48]) == 48
    other = [s.id for s in storybook.load(root=root, labelled=12, seed=2).labelled]
    assert set(other) != set(drawn[12])
    shown = {f"labelled_{seed:03d}": scene.objects for seed, scene in enumerate(SCENES)}  # of most of the pool
    shown |= {f"labelled_{seed:03d}": storybook.draw(seed).objects for seed in range(len(SCENES), 48)}
    for ids in (drawn[12], other):
        assert all(sum(name in shown[i] for i in ids) >= 2 for name in storybook.NAMES)


def test_splits_are_disjoint_and_unseen_by_the_miniatures():
    seeds = [seed for first, count in storybook.SPLITS.values() for seed in range(first, first + count)]
    assert len(seeds) == len(set(seeds)) == 48 + 300 + 200 + 200
    assert max(seeds) < scenes.HELD_OUT < scenes.TRAIN


def test_scenes_are_drawn_when_asked_for_and_truth_stays_closed(root):
    data = storybook.load(root=root, limit=2)
    assert not list(root.rglob("*.png"))  # only pool.json, to know whom to label
    sample = data.unlabelled[0]
    np.testing.assert_array_equal(sample.image(), storybook.draw(1000).image)
    with pytest.raises(TruthHidden):
        sample.truth()
    labelled = data.labelled[0]
    np.testing.assert_array_equal(labelled.truth(), storybook.draw(int(labelled.id.split("_")[1])).label)
    with pytest.raises(ValueError, match="pool of 48"):
        storybook.load(root=root, labelled=49)


def test_training_scenes_are_kept_and_read_again(tmp_path, monkeypatch):
    monkeypatch.setattr(scenes, "CHUNK", 3)
    drawn = scenes.load(4, first=50, folder=tmp_path)
    assert len(drawn) == 4 and drawn.image.shape == (4, 128, 128, 3)
    np.testing.assert_array_equal(drawn.image[3], storybook.draw(53).image)
    assert drawn.captions[3] == storybook.draw(53).caption
    monkeypatch.setattr(storybook, "draw", None)  # what is there is not drawn again
    np.testing.assert_array_equal(scenes.load(4, first=50, folder=tmp_path).parts, drawn.parts)


def test_other_words_for_the_same_classes(tmp_path, monkeypatch):
    own = datasets.load("storybook", limit=0)
    text = storybook.CLASS_FILE.read_text(encoding="utf-8")
    path = tmp_path / "words.yaml"
    path.write_text(text.replace("[a boat]", "[a boat, a ship]"), encoding="utf-8")
    changed = datasets.load("storybook", limit=0, classes=path, tags_of=("labelled",))
    boat = own.classes.names.index("boat")
    assert changed.classes.words[boat] == ("a boat", "a ship") and changed.classes.names == own.classes.names
    assert changed.labelled[0].tags() and own.classes.words[boat] == ("a boat",)

    path.write_text(text.replace("name: boat", "name: ship"), encoding="utf-8")
    with pytest.raises(ValueError, match=r"words.yaml has other classes than storybook: boat, ship; .* in this order"):
        datasets.load("storybook", limit=0, classes=path)
    with pytest.raises(FileNotFoundError, match="nowhere.yaml"):
        datasets.load("storybook", limit=0, classes="results/nowhere.yaml")
    monkeypatch.chdir(tmp_path)  # a relative path is meant from the repository's top, wherever a notebook runs
    bare = datasets.load("storybook", limit=0, classes="results/ablation_words/bare.yaml").classes
    assert bare.names == own.classes.names and bare.templates != own.classes.templates
