"""A probe of frozen features as data: of which run, on how many images. `transfer.py` runs it; no torch here."""

from dataclasses import dataclass, replace

from ..errors import UserError
from .run import AtLeastTwo, Run
from .specs import Count, Spec

#: Part of every key of a probe record: raised whenever the same features would give another score.
ATTENTIVE_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class Probe(Spec):
    """All probes of one run: ridge, kNN, segmentation (where masks are known), and the attentive one."""

    run: Run
    labels: Count  # labelled images to fit on
    test_images: AtLeastTwo  # labelled test images

    @classmethod
    def of(cls, run: Run, labels: int | None = None, test_images: int | None = None) -> "Probe":
        """On as many images as the run's own probes had, unless other numbers are given."""
        labels = run.probe_labels if labels is None else labels
        if not run.probe_labels and labels == 0:
            raise UserError(
                f"run {run.key} has probe_labels 0: say how many labelled images to probe with, labels=3000"
            )
        return cls(run=run, labels=labels, test_images=run.probe_test if test_images is None else test_images)

    @property
    def baseline(self) -> "Probe":
        """The same of the network at random initialisation."""
        return replace(self, run=replace(self.run, steps=0))

    @property
    def sized(self) -> Run:
        """The run, with these numbers of images; a probe sees whole images, whatever the run was trained on."""
        return replace(self.run, probe_labels=self.labels, probe_test=self.test_images, augment="none")

    @property
    def key(self) -> str:
        """The run's key, numbers of images, and the version of the probes."""
        return f"{self.run.key}-probe-l{self.labels}-n{self.test_images}-a{ATTENTIVE_VERSION}"

    @property
    def data(self) -> str:
        return self.run.data

    @property
    def image_size(self) -> int:
        return self.run.image_size

    @property
    def model(self) -> str:
        return self.run.model

    @property
    def precision(self) -> str:
        return self.run.precision

    @property
    def steps(self) -> int:
        """Optimiser steps of the encoder: it is frozen."""
        return 0
