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


# The official code


def test_official_equals_the_loop_in_2000_cases():
    """And in 200 at other thresholds."""
    rng = np.random.default_rng(0)
    differ = dict.fromkeys([*sepl.VARIANTS, "imp"], 0)
    outputs = {}
    for number in range(2000):
        label, masks, num_classes = random_case(rng)
        for variant in sepl.VARIANTS:
            expected = reference.official(label, masks, num_classes, variant, count=np.count_nonzero)  # the faster
            merged = sepl.merge(label, masks, num_classes, variant=variant)
            assert merged.dtype == np.uint8
            assert np.array_equal(merged, expected), (number, variant)
            outputs[variant] = merged
            differ[variant] += not np.array_equal(merged, label)
        shuffled = masks[rng.permutation(len(masks))]  # the last variant, the default, stands for all
        assert np.array_equal(sepl.merge(label, shuffled, num_classes), expected), number
        differ["imp"] += not np.array_equal(outputs["max_iou_imp"], outputs["max_iou_imp2"])
    assert min(differ.values()) > 100, f"the cases show too little: {differ}"
    for _ in range(200):
        label, masks, num_classes = random_case(rng)
        inside, covers = rng.choice([0.0, 0.25, 0.5, 0.75]), rng.choice([0.25, 0.5, 0.75, 1.0])
        for variant in sepl.VARIANTS:
            expected = reference.official(label, masks, num_classes, variant, inside, covers)
            merged = sepl.merge(label, masks, num_classes, variant=variant, inside=inside, covers=covers)
            np.testing.assert_array_equal(merged, expected)


@pytest.mark.parametrize("mode", sepl.MODES)
def test_cues_without_foreground_empty_masks_and_254_classes(mode):
    for cue in (row("0000"), row("00v0")):
        kept = cue if mode == "paper" else row("0000")
        np.testing.assert_array_equal(sepl.merge(cue, rows("##..", "...."), 3, mode), kept)
    np.testing.assert_array_equal(sepl.merge(row("0120"), rows("...."), 3, mode), row("0120"))
    cue = row("0" * 8)
    cue[0, 2:5] = 254
    np.testing.assert_array_equal(sepl.merge(cue, rows("..####.."), 255, mode)[0], [0, 0] + [254] * 4 + [0, 0])


@pytest.mark.parametrize("mode", sepl.MODES)
def test_masks_in_any_order_of_memory_are_not_written_to(mode):
    rng = np.random.default_rng(2)
    for _ in range(20):
        label, masks, num_classes = random_case(rng)
        label[label >= num_classes] = IGNORE
        before = label.copy(), masks.copy()
        expected = sepl.merge(label, masks, num_classes, mode)
        merged = sepl.merge(np.asfortranarray(label), Masks.from_dense(masks).dense(), num_classes, mode)
        np.testing.assert_array_equal(merged, expected)
        assert merged.flags.c_contiguous
        np.testing.assert_array_equal(label, before[0])
        np.testing.assert_array_equal(masks, before[1])


# By hand

IMP, IMP2 = ("max_iou_imp",), ("max_iou_imp", "max_iou_imp2")
HALF, MORE = "#" * 10 + "." * 10 + "#" * 10 + "." * 10, "#" * 10 + "." * 10 + "#" * 9 + "." * 11
TWENTY = "1" * 20 + "0" * 20
BY_HAND = [  # what it shows, cue, masks, variants of the official code or the paper's rule, result
    ("half of a mask is not enough", TWENTY, [HALF], ("max_iou",), "0" * 40),
    ("more than half is", TWENTY, [MORE], ("max_iou",), MORE.replace("#", "1").replace(".", "0")),
    ("0.85 of a region is enough", TWENTY, ["#" * 17 + "..." + "#" * 20], sepl.VARIANTS[2:], "1" * 40),
    ("0.80 is not", TWENTY, ["#" * 16 + "...." + "#" * 20], sepl.VARIANTS[2:], "0" * 16 + "1111" + "0" * 20),
    ("0.85 is a rule of the last variant", TWENTY, ["#" * 17 + "..." + "#" * 20], ("max_iou",), "0" * 40),
    # The six quirks of the official code, and what the paper's rule does there.
    ("quirk 1: a consumed mask", "1112200", ["#####.."], ("max_iou",), "1111100"),
    ("quirk 1: is no cover for a later class", "1112200", ["#####.."], IMP2, "1112200"),
    ("quirk 1: to the first class it is on offer", "2221100", ["#####.."], IMP, "2222200"),
    ("a cue pixel stays only where no mask is", "1112200", ["#####.."], "paper", "1111100"),
    ("so it does not under a mask of no class", "1100000", [".######"], "paper", "1000000"),
    ("quirk 2: background under an unselected mask", "1111000000", ["...#######"], IMP2, "1110000000"),
    ("quirk 2: nothing is kept", "1111000000", ["...#######"], ("max_iou",), "0000000000"),
    ("quirk 3: all of class 1, most of it class 2", "1122222", ["#######"], IMP, "2222222"),
    ("quirk 3: class 2 keeps its pixels, by quirk 1", "1122222", ["#######"], sepl.VARIANTS[2:], "1122222"),
    ("quirk 3: the lowest class wins", "1122200", ["#######"], sepl.VARIANTS[2:], "1122211"),
    ("the class of most pixels wins", "1122200", ["#######"], "paper", "2222222"),
    ("of equal ones the lower class", "2211", ["####"], "paper", "1111"),
    ("quirk 4: the higher class is on top", "1110222", ["####...", "...####"], sepl.VARIANTS[2:], "1112222"),
    ("quirk 4: in any order", "1110222", ["...####", "####..."], sepl.VARIANTS[2:], "1112222"),
    ("the better mask is on top: 4/5 and 3/4", "11112220", ["#####...", "....####"], "paper", "11111222"),
    ("not so in the official code", "11112220", ["#####...", "....####"], sepl.VARIANTS[2:], "11112222"),
    ("half and half: no rule holds", "11112220", ["####....", "....###.", "...##..."], "paper", "11112220"),
    ("alike: the lower class is on top", "2220111", ["####...", "...####"], "paper", "2221111"),
    ("quirk 5: what is no class is background", "1v3702", ["......"], sepl.VARIANTS[2:], "100002"),
    ("void stays unless a mask claims it", "11vv000v", ["###.....", "...##...", "......#."], "paper", "111v000v"),
    ("quirk 6: without masks the cue stays", "012v", [], IMP2, "0120"),
    ("quirk 6: or nothing does", "012v", [], ("max_iou",), "0000"),
    ("without masks all stays", "012v", [], "paper", "012v"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("cue", "masks", "how", "expected"), [case[1:] for case in BY_HAND], ids=[c[0] for c in BY_HAND]
)
def test_by_hand(cue, masks, how, expected):
    masks = rows(*masks) if masks else np.zeros((0, 1, len(cue)), dtype=bool)
    for options in [{"mode": "paper"}] if how == "paper" else [{"variant": variant} for variant in how]:
        np.testing.assert_array_equal(sepl.merge(row(cue), masks, 3, **options), row(expected))


# The paper's rule


def test_paper_equals_the_loop_over_a_grid_of_thresholds():
    rng = np.random.default_rng(3)
    differs = 0
    for inside in (0.25, 0.5, 0.75):
        for covers in (0.5, 0.7, 0.85, 0.95, 1.0):
            for _ in range(25):
                label, masks, num_classes = random_case(rng)
                label[(label >= num_classes) & (label != IGNORE)] = 0
                expected = reference.paper(label, masks, num_classes, inside, covers)
                options = {"inside": inside, "covers": covers}
                merged = sepl.merge(label, masks, num_classes, "paper", **options)
                assert merged.dtype == np.uint8
                np.testing.assert_array_equal(merged, expected)
                shuffled = sepl.merge(label, masks[rng.permutation(len(masks))], num_classes, "paper", **options)
                np.testing.assert_array_equal(shuffled, expected)
                differs += not np.array_equal(merged, sepl.merge(label, masks, num_classes, **options))
    assert differs > 100, f"the modes differ in {differs} cases only"


# What is refused


SIX = np.zeros((2, 3), np.uint8)


@pytest.mark.parametrize(
    ("label", "masks", "options", "message"),
    [
        (SIX, np.zeros((1, 3, 2), bool), {}, r"has the size \(2, 3\), image and masks have \(3, 2\)"),
        (SIX, np.zeros((2, 3), bool), {}, r"masks are \(N, H, W\) bool, not \(2, 3\) bool"),
        (SIX, np.zeros((1, 2, 3), np.uint8), {}, r"bool, not \(1, 2, 3\) uint8"),
        (SIX.astype(int), np.zeros((1, 2, 3), bool), {}, r"cue map is \(H, W\) uint8, not \(2, 3\) int64"),
        (row("0v37"), rows("...."), {"mode": "paper"}, r"holds the values \[3, 7\], not classes 0 to 2 or 255"),
        (row("00"), rows(".."), {"mode": "Paper"}, "no mode 'Paper', only official, paper; did you mean 'paper'"),
        (row("00"), rows(".."), {"variant": "imp2"}, "no variant 'imp2', only max_iou, max_iou_imp"),
        (row("00"), rows(".."), {"mode": "paper", "variant": "max_iou"}, "no variants"),
        (row("00"), rows(".."), {"inside": 1.0}, "inside=1.0"),
        (row("00"), rows(".."), {"covers": 85}, "covers=85"),
        (row("00"), rows(".."), {"num_classes": 256}, "num_classes is 256"),
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
    for options in ({}, {"variant": "max_iou"}, {"inside": 0.7, "variant": "max_iou_imp"}, {"covers": 1.0}):
        made = generators.build("sepl", CLASSES, cams=cue, masks=segment, **options)(samples)
        for sample, each in zip(samples, made, strict=True):
            dense = segment([sample.image()])[0].dense()
            np.testing.assert_array_equal(each.label, sepl.merge(cues[sample.id], dense, 3, **options))


def test_bad_cue_maps_and_options_are_refused_before_masks_are_made():
    samples, cues, _ = squares_of_two_sizes()

    def segment(images):
        raise AssertionError("masks were made")

    def refused(cue, message, **options):
        with pytest.raises(ValueError, match=message):
            generators.build("sepl", CLASSES, cams=lambda items: cue, masks=segment, **options)(samples)

    refused([cues["one"], cues["two"].T[:2]], r"of two has the size \(2, 3\), image and masks have \(3, 3\)")
    refused([cues["one"] * 9, cues["two"]], r"the cue map of one holds the values \[9\]", mode="paper")
    refused([cues["one"]], "zip")
    refused([], r"covers=2\.0", covers=2.0)
    with pytest.raises(ValueError, match="background is 0, not None"):
        generators.build("sepl", Classes(("a",), (("a",),), ((0, 0, 0),), background=None), cams="nowhere")
