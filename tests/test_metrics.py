"""Scores: by hand, and against plain loops."""

import ast

import numpy as np
import pytest
import reference_training

from plg_utils import files, metrics
from plg_utils.records import IGNORE


def test_confusion_and_scores_equal_the_plain_loops():
    rng = np.random.default_rng(0)
    for num_classes in (1, 2, 3, 6):
        for shape in ((1, 1), (4, 5), (2, 3, 3)):
            for void, uncovered_part in ((0, 0), (0.3, 0), (0, 0.3), (0.3, 0.5)):
                # one class fewer than there are: the last is absent in the truth, but may be predicted
                truth = rng.integers(0, max(1, num_classes - 1), shape).astype(np.uint8)
                label = rng.integers(0, num_classes, shape).astype(np.uint8)
                truth[rng.random(shape) < void] = IGNORE
                label[rng.random(shape) < uncovered_part] = IGNORE
                matrix = metrics.confusion(truth, label, num_classes)
                assert matrix.dtype == np.int64
                assert matrix.tolist() == reference_training.confusion(truth, label, num_classes)
                for background in (0, num_classes - 1):
                    for uncovered, stands_for in (("background", background), ("miss", IGNORE)):
                        got = metrics.scores(matrix, uncovered=uncovered, background=background)
                        iou, mean, coverage = reference_training.iou(truth, label, num_classes, stands_for)
                        np.testing.assert_allclose(got.iou, iou, rtol=1e-12)
                        np.testing.assert_allclose([got.mean_iou, got.coverage], [mean, coverage], rtol=1e-12)


def test_a_set_counted_by_hand():
    truth = np.array([[0, 0, 1, 1], [1, 255, 0, 0]], np.uint8)
    label = np.array([[0, 1, 1, 255], [1, 0, 255, 2]], np.uint8)
    matrix = metrics.confusion(truth, label, 3)
    assert matrix.tolist() == [[1, 1, 1, 1], [0, 2, 0, 1], [0, 0, 0, 0]]
    default = metrics.scores(matrix)  # the two uncovered pixels become background: one hit, one false alarm
    assert default.iou[:2].tolist() == [2 / 5, 2 / 4]
    assert np.isnan(default.iou[2])  # predicted once, but nowhere true: it does not count
    assert default.mean_iou == pytest.approx((2 / 5 + 2 / 4) / 2)
    missed = metrics.scores(matrix, uncovered="miss")
    assert missed.iou[:2].tolist() == [1 / 4, 2 / 4]
    assert default.coverage == missed.coverage == 5 / 7
    assert metrics.scores(matrix, background=None).iou[0] == 1 / 4  # no background class: uncovered is a miss
    assert default.confusion.tolist() == matrix.tolist()


def code_of(path):
    """All code of a Python file or a notebook."""
    if path.suffix == ".py":
        return path.read_text(encoding="utf-8")
    cells = files.read_json(path)["cells"]
    lines = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code").splitlines()
    return "\n".join(line for line in lines if not line.lstrip().startswith(("%", "!")))


def test_every_caller_says_which_class_is_the_background():
    for path in [*(files.ROOT / "plg_utils").rglob("*.py"), *(files.ROOT / "notebooks").rglob("*.ipynb")]:
        for node in ast.walk(ast.parse(code_of(path))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "metrics.scores":
                given = {keyword.arg for keyword in node.keywords}
                assert {"background", "uncovered"} & given, f"{path.name}: {ast.unparse(node)}"


def test_nothing_to_score_is_nan():
    got = metrics.scores(metrics.confusion(np.full((2, 2), 255), np.zeros((2, 2), int), 2))
    assert np.isnan([got.mean_iou, got.coverage, *got.iou]).all()


@pytest.mark.parametrize(
    ("truth", "label", "message"),
    [
        (np.zeros((2, 2), int), np.zeros((2, 3), int), r"truth has shape \(2, 2\) and label \(2, 3\)"),
        (np.zeros((2, 2)), np.zeros((2, 2), int), "truth holds float64"),
        (np.full((2, 2), 3), np.zeros((2, 2), int), "truth holds the value 3; right are 0..2"),
        (np.zeros((2, 2), int), np.full((2, 2), -1), "label holds the value -1"),
        (np.zeros((2, 2), int), np.full((2, 2), 511), "label holds the value 511"),  # 255 if cut to a byte
        (np.full((2, 2), IGNORE), np.full((2, 2), 7), "label holds the value 7"),  # where the truth is void, too
    ],
)
def test_wrong_input_is_refused(truth, label, message):
    with pytest.raises((TypeError, ValueError), match=message):
        metrics.confusion(truth, label, 3)


def test_a_wide_type_counts_as_a_byte_does():
    rng = np.random.default_rng(2)
    truth, label = rng.choice([0, 1, 254, IGNORE], (2, 9, 9))
    for kind in (np.uint8, np.uint16, np.int32, np.int64):
        matrix = metrics.confusion(truth.astype(kind), label.astype(kind), 255)
        assert matrix.tolist() == reference_training.confusion(truth, label, 255)
    assert metrics.confusion(np.zeros((0, 3), np.uint8), np.zeros((0, 3), np.uint8), 2).tolist() == [[0] * 3] * 2


def test_precision_and_recall_counted_by_hand():
    matrix = np.array([[6, 1, 0, 1], [2, 3, 0, 0], [0, 0, 0, 0]])  # two classes that occur, one that is never given
    precision, recall = metrics.precision_recall(matrix, background=0)
    np.testing.assert_allclose(precision, [7 / 9, 3 / 4, np.nan])  # the uncovered pixel is a given background
    np.testing.assert_allclose(recall, [7 / 8, 3 / 5, np.nan])
    precision, recall = metrics.precision_recall(matrix, uncovered="miss", background=0)
    np.testing.assert_allclose(precision, [6 / 8, 3 / 4, np.nan])
    np.testing.assert_allclose(recall, [6 / 8, 3 / 5, np.nan])
    np.testing.assert_allclose(metrics.precision_recall(matrix, background=None)[0], precision)
