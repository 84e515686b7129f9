"""Progress over several trainings as one count of optimiser steps. No torch here."""

from collections.abc import Callable


class Tally:
    """A progress callback `(step, steps)` for one training after another, which reports `(done, all)` to another one.

    What is to come is told by `expect`; a training that nobody expected makes the total larger.
    """

    def __init__(self, report: Callable[[int, int], None]) -> None:
        self.report, self.waiting = report, []
        self.finished, self.current, self.last = 0, 0, 0

    def expect(self, steps: list[int]) -> None:
        """Trainings that are to come, each by its number of steps."""
        self.waiting += [n for n in steps if n]

    def __call__(self, step: int, steps: int) -> None:
        """The training at hand has done `step` of its `steps`."""
        if step <= self.last or steps != self.current:  # another one has begun
            self.finished, self.current = self.finished + self.current, steps
            if steps in self.waiting:
                self.waiting.remove(steps)
        self.last = step
        self.report(self.finished + step, self.finished + self.current + sum(self.waiting))
