"""What holds for any input: formats read as they were written, and laws of the operations on labels.

Hypothesis draws the inputs, the same ones in each run, and shrinks one that breaks a law to the smallest that does.
"""

import contextlib
import tempfile

import numpy as np
import pytest
import reference_metrics
import reference_sepl
import torch
import torch.nn.functional as F
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.configuration import set_hypothesis_home_dir
from hypothesis.extra.numpy import array_shapes, arrays
from PIL import Image
from pycocotools import mask as coco

from plg_utils import augment, class_files, datasets, diagnosis, files, labels, losses, metrics, run_lengths, statistics
from plg_utils.datasets import voc
from plg_utils.generators import sepl
from plg_utils.records import IGNORE, Masks

STORE = tempfile.TemporaryDirectory(prefix="plg-hypothesis-")
set_hypothesis_home_dir(STORE.name)  # else what it remembers lies in the repository
K = 4  # classes, the background included
SIGNS = "aZ09äß漢😀 _-.:,;'\"`/\\|!?*&%#@$<>=+~^()[]{}\t\n\r\0\x7f\u2028\ufeff"  # those that formats mean something by


def law(examples: int):
    """Check a law on so many inputs."""
    return settings(
        max_examples=examples,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture],  # files are written over in one folder
    )


# Inputs

sizes = array_shapes(min_dims=2, max_dims=2, max_side=7)
values = st.sampled_from([*range(K), IGNORE])
rows = st.floats(-2, 2, width=32).filter(lambda number: abs(number) > 1e-3)
seeds = st.integers(0, 2**32 - 1)


@st.composite
def maps(draw, count=2, element=values):
    """`count` label maps of one size, (H, W) uint8 each."""
    size = draw(sizes)
    return [draw(arrays(np.uint8, size, elements=element)) for _ in range(count)]


@st.composite
def dense_masks(draw, most=5):
    """Masks (N, H, W) bool, perhaps none."""
    return draw(arrays(bool, (draw(st.integers(0, most)), *draw(sizes))))


@st.composite
def segments(draw, classes=K):
    """Masks (N, H, W), and for each a class and a score; N of 1 to 6."""
    masks = draw(arrays(bool, (draw(st.integers(1, 6)), *draw(sizes))))
    some = draw(arrays(np.int64, len(masks), elements=st.integers(0, classes - 1)))
    scores = draw(arrays(np.float32, len(masks), elements=st.sampled_from([-0.5, 0.0, 0.25, 0.5, 1.0])))
    return masks, some, scores


# Formats


@law(40)
@given(dense_masks())
def test_run_lengths_are_those_of_coco_and_of_plain_loops(dense):
    masks = Masks.from_dense(dense)
    np.testing.assert_array_equal(masks.dense(), dense)
    assert masks.areas().tolist() == [int(mask.sum()) for mask in dense]
    for mask, rle, runs in zip(dense, masks.rles, masks.runs, strict=True):
        assert coco.decode(rle).astype(bool).tolist() == mask.tolist()
        expected, inside = [0], False
        for pixel in mask.ravel(order="F").tolist():
            if pixel != inside:
                expected.append(0)
                inside = pixel
            expected[-1] += 1
        assert runs.tolist() == expected


@law(200)
@given(st.text("".join(map(chr, range(40, 115))), max_size=8), st.integers(1, 6), st.integers(1, 6))
def test_any_text_is_run_lengths_or_refused(text, height, width):
    """What is not refused, COCO decodes to the same mask."""
    try:
        runs = run_lengths.decode([text])
        run_lengths.check(runs, (height, width))
    except run_lengths.BrokenRunLengths:
        return
    dense = run_lengths.dense(runs, (height, width))
    assert dense.shape == (1, height, width)
    assert coco.decode({"size": [height, width], "counts": text}).astype(bool).tolist() == dense[0].tolist()


@law(30)
@given(maps(1, st.integers(0, 255)), st.lists(st.tuples(*[st.integers(0, 255)] * 3), max_size=256))
def test_label_maps_are_read_as_written(tmp_path, label, colours):
    (label,) = label
    files.write_label(tmp_path / "a.png", label, colours)
    np.testing.assert_array_equal(files.read_label(tmp_path / "a.png"), label)
    assert files.image_size(tmp_path / "a.png") == label.shape
    palette = files.voc_palette().copy()
    palette[: len(colours)] = np.array(colours, np.uint8).reshape(-1, 3)
    with Image.open(tmp_path / "a.png") as image:
        np.testing.assert_array_equal(np.asarray(image.convert("RGB")), palette[label])


@law(30)
@given(st.data())
def test_masks_are_read_as_written(tmp_path, data):
    dense = data.draw(dense_masks())
    score = st.one_of(st.just(float("nan")), st.floats(-(2.0**99), 2.0**99, width=32))
    iou, stable = (data.draw(arrays(np.float32, len(dense), elements=score)) for _ in range(2))
    written = Masks.from_dense(dense, iou, stable)
    files.write_masks(tmp_path / "a.json", written)
    read = files.read_masks(tmp_path / "a.json", dense.shape[1:])
    assert read.rles == written.rles
    np.testing.assert_array_equal(read.dense(), dense)
    for name in ("predicted_iou", "stability"):
        np.testing.assert_array_equal(getattr(read, name), getattr(written, name))


plain = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False), st.text(SIGNS)
    ),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(SIGNS), inner, max_size=3)),
    max_leaves=8,
)


@law(50)
@given(plain)
def test_tables_are_read_as_written(tmp_path, content):
    files.write_json(tmp_path / "a.json", content)
    assert files.read_json(tmp_path / "a.json") == content
    before = (tmp_path / "a.json").read_bytes()
    files.write_json(tmp_path / "a.json", files.read_json(tmp_path / "a.json"))
    assert (tmp_path / "a.json").read_bytes() == before


@law(60)
@given(st.text(SIGNS, max_size=30))
def test_any_text_is_a_file_or_refused_by_name(tmp_path, text):
    """Class files, tables and lists: an answer, or a ValueError that names the file."""
    path = tmp_path / "a.file"
    path.write_text(text, encoding="utf-8")
    for read in (class_files.read, files.read_json, files.read_lines, files.read_masks, voc._read_list):
        try:
            read(path)
        except ValueError as error:
            assert "a.file" in str(error)


words = st.text("aZ09äß漢😀_-.:'\"!*&#[]{}", min_size=1, max_size=8)


@law(40)
@given(st.lists(st.tuples(words, st.lists(words, max_size=3)), min_size=1, max_size=5, unique_by=lambda row: row[0]))
def test_class_files_are_read_as_written(tmp_path, rows):
    content = {"classes": [{"name": name, "words": words or [name]} for name, words in rows]}
    (tmp_path / "a.yaml").write_text(yaml.safe_dump(content, allow_unicode=True), encoding="utf-8")
    classes = class_files.read(tmp_path / "a.yaml")
    assert classes.names == tuple(name for name, _ in rows)
    assert classes.words == tuple(tuple(words or [name]) for name, words in rows)
    class_files.write(tmp_path / "b.yaml", classes)
    assert class_files.sha256(class_files.read(tmp_path / "b.yaml")) == class_files.sha256(classes)


@law(100)
@given(st.text(SIGNS, max_size=12))
def test_an_id_is_refused_or_names_a_file_in_its_folder(tmp_path, stem):
    with contextlib.suppress(ValueError):
        path = tmp_path / "stage" / f"{files.check_stem(stem)}.json"
        files.write_json(path, 1)
        assert path.resolve().parent == tmp_path / "stage"
        assert path.name in [each.name for each in path.parent.iterdir()]


# Which images


@law(50)
@given(st.integers(0, 40), st.data())
def test_a_draw_keeps_the_order_and_a_small_one_is_part_of_a_large_one(pool, data):
    few, more = sorted(data.draw(st.tuples(*[st.integers(0, pool)] * 2)))
    seed = data.draw(seeds)
    items = list(range(100, 100 + pool))
    small, rest = datasets.draw(items, few, seed)
    assert (len(small), sorted(small + rest)) == (few, items)
    assert small == sorted(small) and rest == sorted(rest)  # noqa: PT018
    assert set(small) <= set(datasets.draw(items, more, seed)[0])


@law(50)
@given(st.integers(1, 500), st.integers(1, 500), st.integers(1, 20_000))
def test_a_part_of_the_images_is_rounded_up(part, whole, pool):
    text = f"{part}/{whole}"
    if part > whole or part * pool < whole:
        with pytest.raises(ValueError, match=text):
            datasets.count(text, pool)
    else:
        assert datasets.count(text, pool) == -(-part * pool // whole)


# Labels


@law(25)
@given(st.data())
def test_pool_is_the_mean_of_the_upsampled_features(data):
    masks = data.draw(dense_masks())
    size = masks.shape[1:]
    grid = data.draw(st.tuples(*[st.integers(1, 5)] * 2))
    features = torch.from_numpy(data.draw(arrays(np.float32, (2, *grid), elements=rows)))
    pooled = labels.pool(features, masks, size)
    large = F.interpolate(features[None].double(), size=size, mode="bilinear")[0]
    inside = torch.from_numpy(masks).double()
    means = torch.einsum("dyx,nyx->nd", large, inside) / inside.sum(dim=(1, 2)).clamp(min=1)[:, None]
    torch.testing.assert_close(pooled.double(), means, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(labels.pool(2 * features, masks, size), 2 * pooled)  # it is linear
    constant = labels.pool(torch.full((1, *grid), 3.0), masks, size)
    torch.testing.assert_close(constant[:, 0], 3.0 * torch.from_numpy(masks.any(axis=(1, 2))), atol=1e-5, rtol=0)


@law(40)
@given(st.data())
def test_assign_gives_known_classes_and_a_higher_threshold_only_takes_away(data):
    count, texts = data.draw(st.integers(0, 6)), data.draw(st.integers(1, 5))
    vectors = [torch.from_numpy(data.draw(arrays(np.float32, (number, 3), elements=rows))) for number in (count, texts)]
    owner = [
        data.draw(st.integers(1, 3)),
        *data.draw(st.lists(st.integers(0, 3), min_size=texts - 1, max_size=texts - 1)),
    ]
    rule = data.draw(st.sampled_from(["cosine", "softmax"]))
    low, high = sorted(data.draw(st.tuples(*[st.floats(-1, 1)] * 2)))
    found, scores = labels.assign(*vectors, owner=owner, threshold=low, rule=rule)
    assert set(found.tolist()) <= {0, *owner}
    assert ((scores >= -1e-6 if rule == "softmax" else scores >= -1 - 1e-6) & (scores <= 2 + 1e-6)).all()
    assert (scores[found > 0] <= 1 + 1e-6).all()
    stricter, _ = labels.assign(*vectors, owner=owner, threshold=high, rule=rule)
    assert ((stricter == found) | (stricter == 0)).all()
    order = data.draw(st.permutations(range(count)))
    turned, _ = labels.assign(vectors[0][order], vectors[1], owner=owner, threshold=low, rule=rule)
    assert turned.tolist() == found[order].tolist()
    longer, _ = labels.assign(4 * vectors[0], vectors[1] / 8, owner=owner, threshold=low, rule=rule)
    assert longer.tolist() == found.tolist()  # only directions count; 4 and 8 change no digit


@law(40)
@given(segments(), st.sampled_from(["score", "small_on_top", "predicted_iou", "vote"]), st.data())
def test_the_order_of_the_masks_does_not_matter_when_painting(drawn, overlap, data):
    masks, classes, scores = drawn
    background = data.draw(st.sampled_from([0, None]))
    order = data.draw(st.permutations(range(len(masks))))
    iou = data.draw(arrays(np.float32, len(masks), elements=st.sampled_from([0.5, 0.75, 1.0])))
    one, other = (
        labels.paint(masks[k], classes[k], scores[k], background=background, overlap=overlap, predicted_iou=iou[k])
        for k in (list(range(len(masks))), order)
    )
    np.testing.assert_array_equal(one.label, other.label)
    np.testing.assert_array_equal(one.confidence, other.confidence)
    covered = masks.any(axis=0)
    assert ((one.label == IGNORE) == ~covered).all()
    assert (one.confidence[~covered] == 0).all()
    assert ((one.confidence >= 0) & (one.confidence <= 1)).all()
    for y, x in zip(*np.nonzero(covered), strict=True):  # a class that some mask there has; the background only alone
        there = set(classes[masks[:, y, x]].tolist())
        assert one.label[y, x] in ((there - {background}) or there)


@law(40)
@given(segments(), maps(1, st.integers(0, K - 1)), st.sampled_from(sepl.VARIANTS))
def test_sepl_is_what_its_rules_say_step_by_step(drawn, label, variant):
    masks, (label,) = drawn[0], label
    height, width = (min(pair) for pair in zip(masks.shape[1:], label.shape, strict=True))
    masks, label = masks[:, :height, :width], np.ascontiguousarray(label[:height, :width])
    merged = sepl.merge(label, masks, K, "official", variant=variant)
    np.testing.assert_array_equal(merged, reference_sepl.official(label, masks, K, variant))
    assert set(np.unique(merged)) <= {0, *np.unique(label).tolist()}  # no class comes out of nothing
    np.testing.assert_array_equal(sepl.merge(label, masks, K, "paper"), reference_sepl.paper(label, masks, K))
    turned = sepl.merge(label, masks[::-1], K, "official", variant=variant)
    np.testing.assert_array_equal(turned, merged)


# Scores


@law(50)
@given(maps(4))
def test_counts_add_up_and_leave_void_out(drawn):
    truth, label, *others = drawn
    one, other = metrics.confusion(truth, label, K), metrics.confusion(*others, K)
    assert one.sum() == (truth != IGNORE).sum()
    assert (one[:, -1] == [((truth == k) & (label == IGNORE)).sum() for k in range(K)]).all()
    together = metrics.confusion(*(np.concatenate(pair) for pair in ((truth, others[0]), (label, others[1]))), K)
    np.testing.assert_array_equal(together, one + other)
    by_hand = np.zeros((K, K + 1), int)
    for true, given_ in zip(truth.ravel().tolist(), label.ravel().tolist(), strict=True):
        if true != IGNORE:
            by_hand[true, K if given_ == IGNORE else given_] += 1
    np.testing.assert_array_equal(one, by_hand)


@law(50)
@given(maps(), st.permutations(range(K)), st.sampled_from(["background", "miss"]))
def test_scores_are_fractions_and_do_not_know_the_order_of_the_classes(drawn, order, uncovered):
    truth, label = drawn
    found = metrics.scores(metrics.confusion(truth, label, K), uncovered=uncovered)
    known = found.iou[~np.isnan(found.iou)]
    assert ((known >= 0) & (known <= 1)).all()
    assert set(np.flatnonzero(~np.isnan(found.iou)).tolist()) == set(np.unique(truth[truth != IGNORE]).tolist())
    covered = np.where(label == IGNORE, 0, label) if uncovered == "background" else label
    for index in np.flatnonzero(~np.isnan(found.iou)):
        true, given_ = truth == index, (covered == index) & (truth != IGNORE)
        assert found.iou[index] == pytest.approx((true & given_).sum() / (true | given_).sum())
    precision, recall = metrics.precision_recall(metrics.confusion(truth, label, K), uncovered=uncovered, background=0)
    assert (np.nan_to_num(found.iou) <= np.nan_to_num(np.minimum(precision, recall), nan=0) + 1e-12).all()
    renamed = np.arange(256)
    renamed[:K] = order
    turned = [renamed[values].astype(np.uint8) for values in (truth, label)]
    again = metrics.scores(metrics.confusion(*turned, K), uncovered=uncovered, background=order[0])
    np.testing.assert_allclose(again.iou[order], found.iou)
    np.testing.assert_equal(again.coverage, found.coverage)
    perfect = metrics.scores(metrics.confusion(truth, truth, K))
    assert np.isnan(perfect.mean_iou) or perfect.mean_iou == 1


@law(40)
@given(maps(), st.sampled_from([0, 2, None]), st.integers(0, 3))
def test_each_pixel_with_truth_is_right_or_wrong_in_one_way(drawn, background, band):
    truth, label = drawn
    counts = diagnosis.error_types(truth, label, K, background=background, band=band)
    assert counts.tolist() == reference_metrics.error_types(truth, label, K, background, band)
    matrix = metrics.confusion(truth, label, K)
    np.testing.assert_array_equal(counts.sum(axis=1), matrix.sum(axis=1))  # complete, and each pixel once
    hit, _, _ = metrics.margins(matrix, "background", background)
    np.testing.assert_array_equal(counts[:, diagnosis.OUTCOMES.index("right")], hit)


@law(40)
@given(arrays(np.float64, st.integers(0, 20), elements=st.floats(0, 1)), st.integers(1, 9), st.data())
def test_calibration_counts_each_pixel_once(confidence, bins, data):
    correct = data.draw(arrays(bool, confidence.shape))
    counts = diagnosis.calibration(confidence, correct, bins)
    np.testing.assert_allclose(counts.sum(axis=0), [len(confidence), correct.sum(), confidence.sum()], atol=1e-9)
    if len(confidence):
        found = diagnosis.reliability(counts)
        assert 0 <= found.ece <= 1
        assert found.coverage[-1] == 1
        assert found.kept_accuracy[-1] == pytest.approx(correct.mean())


@law(20)
@given(st.data())
def test_intervals_over_images(data):
    images = data.draw(st.integers(2, 5))
    pairs = [data.draw(maps(3, st.integers(0, K - 1))) for _ in range(images)]
    one, other = (np.stack([metrics.confusion(pair[0], pair[k], K) for pair in pairs]) for k in (1, 2))
    seed = data.draw(st.integers(0, 99))
    wide, narrow = (statistics.bootstrap(one, resamples=100, level=level, seed=seed) for level in (0.99, 0.5))
    assert 0 <= wide.low <= narrow.low <= narrow.high <= wide.high <= 1
    assert wide.value == narrow.value == pytest.approx(metrics.scores(one.sum(axis=0)).mean_iou)
    there, back = (statistics.bootstrap(*pair, resamples=100, seed=seed) for pair in ((one, other), (other, one)))
    np.testing.assert_allclose([there.value, there.low, there.high], [-back.value, -back.high, -back.low], atol=1e-12)
    same = statistics.bootstrap(np.repeat(one[:1], images, axis=0), resamples=20, seed=seed)
    assert same.low == pytest.approx(same.value)
    assert same.high == pytest.approx(same.value)


# Views


@law(50)
@given(st.integers(8, 64), seeds)
def test_a_cutmix_box_lies_in_the_view_and_has_the_area_asked_for(size, seed):
    left, top, right, bottom = augment.cutmix_box(size, np.random.default_rng(seed))
    assert 0 <= left <= right <= size
    assert 0 <= top <= bottom <= size
    assert (right - left) * (bottom - top) <= 0.4 * size**2


@law(25)
@given(st.data())
def test_cutmix_pastes_the_box_and_nothing_else(data):
    count, (height, width) = data.draw(st.integers(1, 3)), data.draw(sizes)
    shape = (count, height, width) if data.draw(st.booleans()) else (count, 2, height, width)
    maps = torch.arange(np.prod(shape)).reshape(shape)
    edges = [
        sorted(data.draw(st.tuples(*[st.integers(0, side)] * 2))) for _ in range(count) for side in (width, height)
    ]
    boxes = torch.tensor([[x[0], y[0], x[1], y[1]] for x, y in zip(edges[::2], edges[1::2], strict=True)])
    mixed = losses.cutmix(maps, -1 - maps, boxes)
    for one, before, (left, top, right, bottom) in zip(mixed, maps, boxes.tolist(), strict=True):
        pasted = torch.zeros(height, width, dtype=torch.bool)
        pasted[top:bottom, left:right] = True
        assert torch.equal(one, torch.where(pasted, -1 - before, before))
    assert torch.equal(losses.cutmix(mixed, maps, boxes), maps)  # pasted back
