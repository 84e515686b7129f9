"""Verbs of the command line that train nothing: `laws` and `plan`. What is heavy is imported when they are called."""

import argparse
from collections.abc import Callable

from .evidence import trial_text
from .studies import plan_text


def add(verb: Callable[..., argparse.ArgumentParser]) -> None:
    """Add the verbs to the command line; verb(name, call, text) makes the parser of one."""
    text = "put laws of loss and accuracy on trial: held-out errors, regret, coverage"
    trial_text.options(verb("laws", trial_text.show, text))
    plan_text.options(verb("plan", plan_text.show, "which size and how long, for so many images and so much compute"))
