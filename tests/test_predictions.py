"""Pictures of what detectors and segmenters say: from examples in records, beside the truth."""

import numpy as np
import pytest

from simmim_lite.course import predictions
from simmim_lite.data import scenes
from simmim_lite.data.scene_layouts import class_numbers
from simmim_lite.data.sources import SCENE_SPLITS

TEST = SCENE_SPLITS["test"]


def record(kind, examples, *, seed=0, model="swinv2_femto", images=None):
    run = None if images is None else {"images": images}
    return {"kind": kind, "status": "done", "spec": {"seed": seed, "model": model}, "run": run, "examples": examples}


def segmented(indices):
    """Examples that say exactly the truth."""
    drawn = scenes.render(TEST, indices, 32)
    found = []
    for k, index in enumerate(indices):
        flat = (class_numbers(drawn, k) - 1).ravel()
        starts = np.flatnonzero(np.diff(flat.astype(int), prepend=-1))
        lengths = np.diff(starts, append=len(flat))
        runs = np.stack([flat[starts], lengths], 1).ravel().tolist()
        found.append({"file": f"images/validation/scene_{index:05d}.png", "height": 32, "width": 32, "runs": runs})
    return found


def test_run_lengths_come_back_as_the_map():
    drawn = scenes.render(TEST, [4], 32)
    (example,) = segmented([4])
    assert np.array_equal(predictions.decode(example["runs"], 32), class_numbers(drawn, 0) - 1)
    assert predictions.index_of(example) == 4
    assert predictions.index_of({"file": "000000000123.png"}) == 123


def test_the_truth_has_every_object_in_front_of_the_background():
    drawn = scenes.render(TEST, range(50), 32)
    both = np.flatnonzero(drawn.small_labels >= 0)[0]
    classes = class_numbers(drawn, both) - 1
    assert set(np.unique(classes)) == {0, drawn.labels[both] + 1, drawn.small_labels[both] + 1}
    boxes, labels = predictions.truth_boxes(drawn, both)
    assert len(boxes) == 2 and labels == [drawn.labels[both] + 1, drawn.small_labels[both] + 1]
    alone = np.flatnonzero(drawn.small_labels < 0)[0]
    assert len(predictions.truth_boxes(drawn, alone)[0]) == 1


def test_a_perfect_segmentation_looks_like_the_truth():
    chart = predictions.segmentation({"network": record("segment", segmented([3, 7]))})
    pictures = [trace.source for trace in chart.data]
    assert len(pictures) == 3 * 2
    assert pictures[2:4] == pictures[4:6] and pictures[0] != pictures[2]


def test_only_sure_boxes_are_drawn():
    box = {"boxes": [[4, 4, 20, 20]], "labels": [3], "size": [32, 32], "file": "000000000003.png", "masks": []}

    def drawn(score):
        chart = predictions.detection({"network": record("detect", [box | {"scores": [score]}])})
        return chart.data[1].source

    assert drawn(0.4) == drawn(0.1) != drawn(0.9)


def test_pick_takes_scratch_and_the_most_images_of_the_largest_size():
    made = [record("segment", [], images=n) for n in (64, 16384)] + [record("segment", [])]
    made += [record("segment", [], model="swinv2_atto"), record("segment", [], seed=1, images=99999)]
    found = predictions.pick(made, "segment")
    assert list(found) == ["from<br>scratch", "pretrained<br>on 16,384"]
    assert found["pretrained<br>on 16,384"]["run"]["images"] == 16384
    assert predictions.pick(made, "detect") == {}


@pytest.mark.parametrize("draw", [predictions.segmentation, predictions.detection])
def test_without_examples_a_line_says_so(draw):
    assert draw({}).layout.annotations[0].text.startswith("No finished")
    assert draw({"a": record("segment", None)}).layout.annotations[0].text.startswith("No finished")
