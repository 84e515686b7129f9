"""Pictures of what detectors and segmenters say: from examples in records, beside the truth."""

from simmim_lite.course import predictions


def record(kind, examples, *, seed=0, model="swinv2_femto", images=None):
    run = None if images is None else {"images": images}
    return {"kind": kind, "status": "done", "spec": {"seed": seed, "model": model}, "run": run, "examples": examples}


def test_scratch_and_the_most_images_of_the_largest_size_and_first_seed_are_picked() -> None:
    made = [record("segment", [], images=n) for n in (64, 16384)] + [record("segment", [])]
    made += [record("segment", [], model="swinv2_atto"), record("segment", [], seed=1, images=99999)]
    found = predictions.pick(made, "segment")
    assert list(found) == ["from<br>scratch", "pretrained<br>on 16,384"]
    assert found["pretrained<br>on 16,384"]["run"]["images"] == 16384
    for draw in (predictions.segmentation, predictions.detection):
        for records in ({}, {"a": record("segment", None)}):
            assert draw(records).layout.annotations[0].text.startswith("No finished")
