"""Pictures of what detectors and segmenters say: from examples in records, beside the truth."""

import numpy as np

from simmim_lite.course import predictions
from simmim_lite.data import scenes
from simmim_lite.data.scenes import class_numbers
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
        runs = np.stack([flat[starts], np.diff(starts, append=len(flat))], 1).ravel().tolist()
        found.append({"file": f"images/validation/scene_{index:05d}.png", "height": 32, "width": 32, "runs": runs})
    return found


def test_segmentation_is_read_back_and_drawn_beside_the_truth() -> None:
    chart = predictions.segmentation({"network": record("segment", segmented([3, 7]))})
    pictures = [trace.source for trace in chart.data]
    assert len(pictures) == 3 * 2 and pictures[2:4] == pictures[4:6] and pictures[0] != pictures[2]


def test_only_sure_boxes_of_a_detector_are_drawn() -> None:
    box = {"boxes": [[4, 4, 20, 20]], "labels": [3], "size": [32, 32], "file": "000000000003.png", "masks": []}

    def detected(score):
        chart = predictions.detection({"network": record("detect", [box | {"scores": [score]}])})
        return chart.data[1].source

    assert detected(0.4) == detected(0.1) != detected(0.9)


def test_scratch_and_the_most_images_of_the_largest_size_and_first_seed_are_picked() -> None:
    made = [record("segment", [], images=n) for n in (64, 16384)] + [record("segment", [])]
    made += [record("segment", [], model="swinv2_atto"), record("segment", [], seed=1, images=99999)]
    found = predictions.pick(made, "segment")
    assert list(found) == ["from<br>scratch", "pretrained<br>on 16,384"]
    assert found["pretrained<br>on 16,384"]["run"]["images"] == 16384
    for draw in (predictions.segmentation, predictions.detection):
        for records in ({}, {"a": record("segment", None)}):
            assert draw(records).layout.annotations[0].text.startswith("No finished")
