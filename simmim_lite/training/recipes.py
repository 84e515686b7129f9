"""Full-size recipes of transfers by name, and what the laptop's need beside the fields' defaults (`tuning.py`)."""

_FULL_SIZE = {
    "model": "swinv2_base",
    "statistics": "imagenet",
    "betas": (0.9, 0.999),
    "weight_decay": 0.05,
    "precision": "bf16",
    "test_images": None,
}
#: Random erasing fills in noise, and the cosine begins at step 0, as in the released code; fine-tuning there never
#: enters autocast, a trap (docs/facts.md, 5): here it is bf16.
TUNING_RECIPES = {
    "imagenet-100ep": _FULL_SIZE
    | {"epochs": 100, "warmup_epochs": 20, "lr_per_512": 1.25e-3, "labels": None, "batch_size": 2048}
    | {"image_size": 224, "window_size": 14, "augment": "timm", "layer_decay": 0.75, "clip_grad": 5.0, "drop_path": 0.1}
    | {"label_smoothing": 0.1, "mixup": 0.8, "cutmix": 1.0, "rand_augment": "rand-m9-mstd0.5-inc1"}
    | {"colour_jitter": 0.4, "erasing": 0.25, "interpolation": "bicubic", "test_crop": 0.875, "warmup_prefix": False}
}
_DENSE = _FULL_SIZE | {"window_size": 12, "batch_size": 16, "clip_grad": None, "layer_decay": 1.0, "eval_every": 50}
_MASK_RCNN = (
    _DENSE
    | {"task": "detect", "image_size": 800, "long_side": 1333, "channels": 256, "hidden": 1024, "lr": 1e-4}
    | {"warmup_steps": 500, "warmup_start": 1e-3, "schedule": "step", "drop_path": 0.2}
)
#: Standard recipes by name. Epochs become steps of the training set there is. Drop path is our default for every size.
#: Mask R-CNN itself is torchvision's: where it differs from the papers' (smooth L1 for boxes, 2,000 proposals in
#: training, no random crop in the multi-scale one), so do these.
RECIPES = {
    "mask-rcnn-1x": _MASK_RCNN | {"epochs": 12, "milestones": (8 / 12, 11 / 12), "augment": "flip"},
    "mask-rcnn-3x": _MASK_RCNN
    | {"epochs": 36, "milestones": (27 / 36, 33 / 36), "augment": "scale", "short_sides": tuple(range(480, 801, 32))},
    "upernet-160k": _DENSE
    | {"task": "segment", "image_size": 512, "steps": 160_000, "channels": 512, "augment": "scale+crop+colour"}
    | {"lr": 6e-5, "weight_decay": 0.01, "warmup_steps": 1500, "warmup_start": 1e-6, "schedule": "linear"}
    | {"drop_path": 0.3},
}
#: What a task needs to train in about a minute on a core, on scenes; the rest are the fields' own defaults.
LAPTOP = {"detect": {"channels": 32, "images": 512}, "segment": {"batch_size": 32, "images": 1000}}
#: Learning rates of each start by itself: the best on an unreported seed (100) of swinv2_femto, pretrained on 16,384
#: scenes. Box AP at 2e-3, 4e-3, 8e-3, 1.6e-2: scratch .484 .475 .438 .286; pretrained .499 .503 .510 .439, with layer
#: decay .9 .478 .501 .505 .463, with .75 .466 at 2e-3. mIoU at 2e-3 to .128 by doublings: scratch .383 .557 .608 .660
#: .703 .751 .758; pretrained .445 .556 .626 .680 - .743 .755, with layer decay .9 .439 .556 .629 .685 .727 .746 .746,
#: with .75 .732 .736 at .064 and .128.
TUNED: dict[str, dict[str, dict]] = {
    "detect": {"pretrained": {"lr": 8e-3}, "scratch": {"lr": 2e-3}},
    "segment": {"pretrained": {"lr": 0.128}, "scratch": {"lr": 0.128}},
}
