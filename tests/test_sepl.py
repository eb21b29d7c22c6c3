"""SEPL: both modes against plain loops, each quirk of the official code by hand, and what is refused."""

import numpy as np
import pytest
import reference_sepl as reference

from plg_utils import generators
from plg_utils.generators import sepl
from plg_utils.records import IGNORE, Classes, Masks, Sample

CLASSES = Classes(("background", "a", "b"), ((),) * 3, ((0, 0, 0), (1, 0, 0), (2, 0, 0)))


def row(text):
    """A label map of one row of pixels: "0012" and v for void."""
    return np.array([[IGNORE if sign == "v" else int(sign) for sign in text]], dtype=np.uint8)


def rows(*texts):
    """Masks of one row of pixels each: "..##"."""
    return np.array([[[sign == "#" for sign in text]] for text in texts], dtype=bool)


def random_case(rng):
    """A map with some 255 and some values that are no class, and 0 to 7 masks, half of which follow its regions.

    Few classes and coarse maps, so that both rules hold, meet and just fail.
    """
    num_classes = int(rng.integers(2, 7))
    height, width = (int(length) for length in rng.integers(1, 13, 2))
    cells = rng.integers(0, num_classes, (-(-height // 3), -(-width // 3)))
    label = cells.repeat(3, axis=0).repeat(3, axis=1)[:height, :width].astype(np.uint8)
    noise = rng.random(label.shape)
    label[noise < 0.1] = IGNORE
    label[(noise > 0.1) & (noise < 0.15)] = num_classes + rng.integers(0, 3)
    masks = np.zeros((int(rng.integers(0, 8)), height, width), dtype=bool)
    for mask in masks:
        if rng.random() < 0.5:
            mask[:] = (label == rng.integers(0, num_classes)) ^ (rng.random(label.shape) < rng.choice([0.05, 0.2, 0.4]))
        else:
            (top, bottom), (left, right) = np.sort(rng.integers(0, (height + 1, width + 1), (2, 2)), axis=0).T
            mask[top:bottom, left:right] = True
    return label, masks, num_classes


# Against the loops


@pytest.mark.parametrize("mode", sepl.MODES)
def test_a_mode_equals_its_loop(mode):
    rng = np.random.default_rng(0)
    changed, others_differ = 0, 0
    for number in range(1000 if mode == "official" else 400):
        label, masks, num_classes = random_case(rng)
        if mode == "paper":
            label[(label >= num_classes) & (label != IGNORE)] = 0
        before = label.copy(), masks.copy()
        expected = getattr(reference, mode)(label, masks, num_classes)
        merged = sepl.merge(label, masks, num_classes, mode)
        assert merged.dtype == np.uint8 and merged.flags.c_contiguous
        assert np.array_equal(merged, expected), number
        shuffled = Masks.from_dense(masks[rng.permutation(len(masks))]).dense()  # in memory column by column
        assert np.array_equal(sepl.merge(np.asfortranarray(label), shuffled, num_classes, mode), expected), number
        assert np.array_equal(label, before[0]) and np.array_equal(masks, before[1])
        changed += not np.array_equal(merged, label)
        others_differ += mode == "paper" and not np.array_equal(merged, sepl.merge(label, masks, num_classes))
    assert changed > 100 and (others_differ > 100 or mode == "official"), "the cases show too little"


@pytest.mark.parametrize("mode", sepl.MODES)
def test_cues_without_foreground_empty_masks_and_254_classes(mode):
    for cue in (row("0000"), row("00v0")):
        kept = cue if mode == "paper" else row("0000")
        np.testing.assert_array_equal(sepl.merge(cue, rows("##..", "...."), 3, mode), kept)
    np.testing.assert_array_equal(sepl.merge(row("0120"), rows("...."), 3, mode), row("0120"))
    cue = row("0" * 8)
    cue[0, 2:5] = 254
    np.testing.assert_array_equal(sepl.merge(cue, rows("..####.."), 255, mode)[0], [0, 0] + [254] * 4 + [0, 0])


TWENTY = "1" * 20 + "0" * 20
BY_HAND = [  # what it shows, cue, masks, official result, the paper's; None: not told here
    ("half of a mask is not enough", TWENTY, [("#" * 10 + "." * 10) * 2], "0" * 10 + "1" * 10 + "0" * 20, None),
    ("more than half is", TWENTY, ["#" * 10 + "." * 10 + "#" * 9 + "." * 11], "1" * 29 + "0" * 11, None),
    ("0.85 of a region is enough", TWENTY, ["#" * 17 + "..." + "#" * 20], "1" * 40, None),
    ("0.80 is not", TWENTY, ["#" * 16 + "...." + "#" * 20], "0" * 16 + "1111" + "0" * 20, None),
    ("quirk 1: a consumed mask is no cover for a later class", "1112200", ["#####.."], "1112200", "1111100"),
    ("a cue pixel does not stay under a mask of no class", "1100000", [".######"], None, "1000000"),
    ("quirk 2: background under an unselected mask", "1111000000", ["...#######"], "1110000000", None),
    ("quirk 3: class 2 keeps its pixels, by quirk 1", "1122222", ["#######"], "1122222", None),
    ("quirk 3: the lowest class wins; in the paper that of most", "1122200", ["#######"], "1122211", "2222222"),
    ("of equal ones the lower class", "2211", ["####"], None, "1111"),
    ("quirk 4: the higher class is on top, in any order", "1110222", ["...####", "####..."], "1112222", None),
    ("in the paper the better mask: 4/5 and 3/4", "11112220", ["#####...", "....####"], "11112222", "11111222"),
    ("half and half: no rule holds", "11112220", ["####....", "....###.", "...##..."], None, "11112220"),
    ("alike: the lower class is on top", "2220111", ["####...", "...####"], None, "2221111"),
    ("quirk 5: what is no class is background", "1v3702", ["......"], "100002", None),
    ("void stays unless a mask claims it", "11vv000v", ["###.....", "...##...", "......#."], None, "111v000v"),
    ("quirk 6: without masks the cue stays", "012v", [], "0120", "012v"),
]  # fmt: skip


@pytest.mark.parametrize("case", BY_HAND, ids=[case[0] for case in BY_HAND])
def test_by_hand(case):
    _, cue, masks, *results = case
    masks = rows(*masks) if masks else np.zeros((0, 1, len(cue)), dtype=bool)
    for mode, expected in zip(sepl.MODES, results, strict=True):
        if expected is not None:
            np.testing.assert_array_equal(sepl.merge(row(cue), masks, 3, mode), row(expected))


# What is refused


SIX = np.zeros((2, 3), np.uint8)


@pytest.mark.parametrize(
    ("label", "masks", "options", "message"),
    [
        (SIX, np.zeros((1, 3, 2), bool), {}, r"uint8 \(2, 3\), the masks are bool \(1, 3, 2\)"),
        (SIX, np.zeros((1, 2, 3), np.uint8), {}, r"the masks are uint8 \(1, 2, 3\)"),
        (SIX.astype(int), np.zeros((1, 2, 3), bool), {}, r"the cue map is int64 \(2, 3\)"),
        (row("0v37"), rows("...."), {"mode": "paper"}, r"holds \[3, 7\], not classes 0 to 2 or 255"),
        (row("00"), rows(".."), {"mode": "Paper"}, "no mode 'Paper', only official, paper; did you mean 'paper'"),
    ],
)
def test_what_does_not_fit_is_refused(label, masks, options, message):
    with pytest.raises(ValueError, match=message):
        sepl.merge(label, masks, **({"num_classes": 3} | options))


# The generator


def squares_of_two_sizes():
    """Samples whose images differ in size, cue maps by id, and masks by size."""
    cues = {"one": row("1100"), "two": np.array([[2, 2, 0], [0, 0, 0], [IGNORE, 0, 0]], dtype=np.uint8)}
    images = {id: np.stack([cue] * 3, axis=2) for id, cue in cues.items()}
    samples = [Sample(id, lambda image=image: image) for id, image in images.items()]
    masks = {(1, 4): rows("###."), (3, 3): np.array([[[1, 1, 1], [0, 0, 0], [0, 0, 0]]], dtype=bool)}
    return samples, cues, lambda images: [Masks.from_dense(masks[image.shape[:2]]) for image in images]


def test_generate_is_merge_for_each_sample():
    """A sample is read once and keeps its id; images without one are labelled too, if the cue takes them."""
    samples, cues, segment = squares_of_two_sizes()
    reads = []

    def read_image():
        reads.append(1)
        return samples[0].image()

    def cue(items):
        sizes = [len(item.image() if isinstance(item, Sample) else item) for item in items]  # it reads the images too
        return [cues[{1: "one", 3: "two"}[size]] for size in sizes]

    items = [Sample("one", read_image), samples[1].image()]
    one, two = generators.build("sepl", CLASSES, cams=cue, masks=segment, mode="paper")(items)
    np.testing.assert_array_equal(one.label, row("1110"))
    assert (one.confidence == 1).all() and len(reads) == 1
    np.testing.assert_array_equal(two.label, [[2, 2, 2], [0, 0, 0], [IGNORE, 0, 0]])
    np.testing.assert_array_equal(two.confidence, [[1, 1, 1], [1, 1, 1], [0, 1, 1]])
    with pytest.raises(ValueError, match="background is 0, not None"):
        generators.build("sepl", Classes(("a",), (("a",),), ((0, 0, 0),), background=None), cams="nowhere")
