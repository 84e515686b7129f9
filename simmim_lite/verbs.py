"""The parser of the command line, and its verbs `transfer`, `laws`, `plan`, `watch`.

What is heavy is imported when called.
"""

import argparse
import contextlib
import dataclasses
import sys
import typing
from collections.abc import Callable

from .errors import UserError, nearest, unknown
from .lab import monitor
from .model.sizes import PAPER
from .processes import first_to_say, import_torch
from .studies import batch, plan_text
from .training import specs
from .training.run import Run, Runtime
from .training.tuning import Dense, FineTune, Probe


class Parser(argparse.ArgumentParser):
    """argparse with one-line errors that name the verb's own --help, the nearest name in place of a wrong one, numbers
    as people write them, `--batch_size` for `--batch-size`, and no guessing at abbreviated options."""

    def __init__(self, *args, **options) -> None:
        super().__init__(*args, allow_abbrev=False, **options)
        self.register("type", int, lambda text: _number(text, int))
        self.register("type", float, lambda text: _number(text, float))

    def error(self, message: str):
        line = f"simmim-lite: {message} (see {self.prog} --help)"
        self.exit(2, f"{line}\n" if first_to_say(line) else None)

    def parse_known_args(self, args=None, namespace=None):
        words = [self._dashed(word) for word in (sys.argv[1:] if args is None else args)]
        found, left = super().parse_known_args(words, namespace)
        if left:  # each parser answers for its own words
            near = nearest(left[0], self._option_string_actions, 0.6) if left[0] != "--" else None
            self.error(f"unknown option {left[0]}: did you mean {near}?" if near else f"unknown: {' '.join(left)}")
        return found, left

    def _dashed(self, word: str) -> str:
        name, equals, value = word.partition("=")
        dashed = name.replace("_", "-") + equals + value
        return dashed if dashed.partition("=")[0] in self._option_string_actions else word

    def _get_value(self, action: argparse.Action, text: str) -> object:
        if not text.strip() and action.option_strings and action.nargs is None:  # a shell variable that is not set
            raise argparse.ArgumentError(action, "is empty: give a value, or leave it out")
        return super()._get_value(action, text)

    def _check_value(self, action: argparse.Action, value: object) -> None:
        if action.choices is not None and value not in action.choices:
            raise argparse.ArgumentError(
                None, str(unknown((action.metavar or action.dest).lower(), value, action.choices))
            )


def _number(text: str, kind: type) -> int | float:
    try:
        return specs.number(text, kind)
    except ValueError:
        wanted = "a whole number, as in 64, 1_000, 1e4 or 200k" if kind is int else "a number, as in 0.5, 1e-3 or 2M"
        raise argparse.ArgumentTypeError(f"'{text}' is not {wanted}") from None


def add(verb: Callable[..., argparse.ArgumentParser]) -> None:
    """Add the verbs to the command line; verb(name, call, text) makes the parser of one."""
    text = "score a run by a transfer task, beside the same network without pretraining (also under torchrun)"
    parser = verb("transfer", _transfer, text)
    parser.add_argument("--task", default="probe", help="probe (default), classify, detect or segment")
    parser.add_argument(
        "--recipe", help="full size: imagenet-100ep (classify), mask-rcnn-1x, mask-rcnn-3x or upernet-160k"
    )
    text = "a checkpoint to start from in place of the run's own weights: a file, or hf://OWNER/REPO/PATH"
    parser.add_argument("--weights", help=text + " (swinv2_small to giant: at 192 px)")
    for option, text in (("--set", "of the training"), ("--scratch-set", "of the baseline from scratch alone")):
        parser.add_argument(
            option, action="append", default=[], metavar="NAME=VALUE", help=f"a field {text}, as in lr=1e-3"
        )
    run_options(parser)
    common(parser)
    text = "execute notebooks, each with every combination of some parameters, here or on a Ray cluster"
    batch.options(verb("papermill", batch.show, text))
    text = "put laws of loss and accuracy on trial: held-out errors, regret, coverage"
    from .evidence import trial

    trial.options(verb("laws", trial.show, text))
    text = "what is running, stopped and finished in a runs folder, while it trains; in place, until Ctrl-C"
    monitor.options(verb("watch", monitor.show, text))
    plan_text.options(verb("plan", plan_text.show, "which size and how long, for so many images and so much compute"))


def common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--runs-dir", default="runs", help="where records are kept (runs)")
    parser.add_argument("--device", default="auto", help="auto (default), cpu, cuda or mps")


def run_options(parser: argparse.ArgumentParser) -> None:
    """An option for every field of Run, of its type; what it takes is in the help, with its default."""
    for field in dataclasses.fields(Run):
        if field.name == "recipe_version":
            continue
        kind, text = specs.base(field.type), f"{specs.said(field.type)} ({field.default})"
        many = {"nargs": len(parts), "metavar": ("B1", "B2")} if (parts := typing.get_args(kind)) else {}
        kind = specs.base(parts[0]) if parts else kind
        name = f"--{field.name.replace('_', '-')}"
        parser.add_argument(name, type=kind, default=argparse.SUPPRESS, help=text, **many)


def engine_options(parser: argparse.ArgumentParser) -> None:
    """Who does the work: this machine or a Ray cluster."""
    text = "local (default), processes of this machine, or ray, tasks on a cluster, which go on when a node is lost"
    parser.add_argument("--engine", default="local", help=text)
    parser.add_argument(
        "--address", help="of a running Ray cluster, as in HOST:6379; started on this machine by default"
    )
    parser.add_argument("--gpus-per-run", type=int, metavar="G", help="GPUs of one node for each run (1)")
    text = "print the torchrun commands of the missing runs, a line a trunk, for any scheduler; start nothing"
    parser.add_argument("--commands", action="store_true", help=text)
    parser.add_argument("--nodes", type=int, default=1, metavar="N", help="nodes of each run, with --commands (1)")


def runtime_options(parser: argparse.ArgumentParser) -> None:
    """How a run is executed; these change no number but by rounding, and no key."""
    text = "under torchrun: ddp (default), a whole model in each process, or fsdp, a part of it (huge and giant)"
    parser.add_argument("--parallel", default="ddp", help=text)
    text = "go through a process's share of the batch in K parts, one after the other (1): less memory"
    parser.add_argument("--accumulate", type=int, default=1, metavar="K", help=text)
    text = "compute blocks again in the backward pass: less memory, about a third more time"
    parser.add_argument("--checkpointing", action="store_true", help=text)
    parser.add_argument("--compile", action="store_true", help="torch.compile, block by block")


def log_option(parser: argparse.ArgumentParser) -> None:
    """Who else is told of a run while it trains. Not `--log`: torchrun takes that for an option of its own."""
    text = "tell tensorboard or wandb too while it trains; may be given twice"
    parser.add_argument("--log-to", dest="log", action="append", default=[], metavar="WRITER", help=text)


def runtime_of(arguments: argparse.Namespace) -> Runtime:
    return Runtime(**{field.name: getattr(arguments, field.name) for field in dataclasses.fields(Runtime)})


def run_of(arguments: argparse.Namespace, **defaults: object) -> Run:
    """The run of the options that were given; defaults: of fields that were not, in place of Run's own."""
    names = {f.name for f in dataclasses.fields(Run)}
    return Run(**{**defaults, **{name: value for name, value in vars(arguments).items() if name in names}})


def _network(arguments: argparse.Namespace) -> Run:
    """A run that says which network is transferred, and on which data; its own weights are used if no file is given.

    The paper's networks come from a file at the paper's input, where no other is given (FACTS 3).
    """
    if arguments.weights and getattr(arguments, "model", None) in PAPER:
        return run_of(arguments, image_size=192, window_size=12, mask_patch=32, statistics="imagenet")
    return run_of(arguments)


def fields_of(texts: list[str], kind: type) -> dict[str, object]:
    """NAME=VALUE texts as fields of a spec, each read as its type; names that there are not are left to the spec."""
    hints, found = {f.name: f.type for f in dataclasses.fields(kind)}, {}
    for text in texts:
        name, equals, value = text.partition("=")
        name = name.strip().replace("-", "_")
        if not equals or not name:
            raise UserError(f"'{text}' sets no field: write NAME=VALUE, as in lr=1e-3")
        found[name] = specs.read(name, hints.get(name, str), value)
    return found


def _transfer(arguments: argparse.Namespace) -> None:
    import_torch()
    from .data.store import progress
    from .training.parallel import speaks
    from .training.run import transfer_path
    from .training.transfer import scores, transfer

    kind = {"probe": Probe, "classify": FineTune}.get(arguments.task, Dense)
    options = fields_of(arguments.set, kind)
    if arguments.scratch_set:
        options["scratch"] = fields_of(arguments.scratch_set, kind)
    with contextlib.ExitStack() as stack:
        bar = {}

        def report(done: int, steps: int) -> None:
            if not bar:  # how much there is to do is known when the first steps are done
                title = f"{arguments.task}, pretrained and from scratch"
                bar.update(advance=stack.enter_context(progress(steps, title, "step")), done=0)
            bar["advance"](done - bar["done"])
            bar["done"] = done

        result = transfer(
            _network(arguments),
            arguments.task,
            runs_dir=arguments.runs_dir,
            device=arguments.device,
            weights=arguments.weights,
            recipe=arguments.recipe,
            progress=report,
            **options,
        )
    if not speaks():
        return
    trained, baseline = scores(result["trained"]), scores(result["baseline"])
    for name, lift in result["lift"].items():
        print(f"{name:9s} pretrained {trained[name]:.4f}   without {baseline[name]:.4f}   lift {lift:+.4f}")
    for which in ("trained", "baseline"):
        if result[which]["status"] == "failed":
            raise UserError(f"the {which} network's {arguments.task} failed: {result[which]['reason']}")
        print(f"record: {transfer_path(arguments.runs_dir, result[which]['key'])}")
