"""The command line: `simmim-lite VERB …`. Errors are one line that names the value and the remedy, exit status 2.

Verbs and options are a table; options of a run come from the fields of `Run`, and what a verb does is in `verbs.py`."""

import argparse
import dataclasses
import sys
import typing

from . import verbs
from .data.sources import KINDS
from .errors import Preempted, first_line, nearest, readable, unknown
from .evidence import published
from .lab import monitor
from .processes import first_to_say, forgive_streams, hear_signals, ignore_signals, speaks
from .studies import notebooks
from .training import specs
from .training.run import Run

# An option: its name, its help, and its default, whose type it has; of an option without a default its type, None for
# text, MANY for one that may be given several times; then what else argparse takes. Without dashes: a value by place.
MANY = {"action": "append", "default": []}
DEVICE = ("--device", "auto (default), cpu, cuda or mps", "auto")
RUNS_DIR = ("--runs-dir", "where records are kept (runs)", "runs")
SET = MANY | {"metavar": "NAME=VALUE"}
MODEL = ("--model", "the size, as in swinv2_base", None, {"required": True})
# not `--log`: torchrun takes that for an option of its own
LOG = ("--log-to", "tell tensorboard or wandb too", None, MANY | {"dest": "log", "metavar": "WRITER"})
SPEED = ("--images-per-second", "of training a size on one of your GPUs, as --dry-run and --commands use it", None,
         MANY | {"metavar": "SIZE=NUMBER"})  # fmt: skip
PARAMETER = ("-p --parameter", "a parameter of the notebooks, as papermill takes it", None,
             MANY | {"nargs": 2, "metavar": ("NAME", "VALUE")})  # fmt: skip
ENGINE = (
    ("--engine", "local (default), or ray: tasks on a cluster, which go on when a node is lost", "local"),
    ("--address", "of a running Ray cluster, as in HOST:6379; started on this machine by default"),
)
#: Which runs a study takes.
GRID = (
    ("--data", f"{', '.join(KINDS)} (default: scenes); paper: 'packed:1K + packed:22K'", "scenes"),
    ("--seeds", "how many seeds (gpu: of its whole grid); by default as many as --minutes hold, else the tier's", int),
    ("--first-seed", "the first of them (quick and laptop: 200)", int, {"metavar": "SEED"}),
    ("--minutes", "what it may take (quick: 5): so many seeds as fit, five to eight of quick", float),
    ("--hours", "the same in hours (gpu: 6): the largest of its grids that fits", float),
    ("--models", "sizes in place of the tier's, between commas, as in swinv2_atto,swinv2_pico"),
    ("--images", "numbers of unique images in place of the tier's"),
    ("--lengths", "optimiser steps in place of the tier's"),
    ("--image-size", "pixels a side in place of the tier's", int),
    ("--batch-size", "images a step in place of the tier's; the learning rate goes with it", int),
    ("--workers", "processes; 0, as by default, is one a core", int),
    ("--precision", "auto (default), fp32 or bf16", "auto"),
)
HF = "that the network was trained at, for the config.json of layout hf (192 px, window 12; laptop: 32, 4)"

#: By verb, or by verb and action: what is called, its help, its options.
VERBS = {
    "lab": (notebooks.open_lab, "JupyterLab on your own copies of the notebooks, in my_notebooks/", [
        ("options", "of JupyterLab, after two dashes, as in -- --port=8890", None, {"nargs": "*"}),
    ]),
    "study": (verbs.study, "train what is missing of a study, run its notebooks and write its report", [
        ("name", "data-scale, model-size, schedule, proxy, all four (all), or transfer"),
        ("--tier", "shipped (no training), smoke, quick (default), laptop (15 min a seed), gpu, paper", "quick"),
        *GRID,
        *ENGINE,
        ("--gpus-per-run", "GPUs of one node for each run (1)", int, {"metavar": "G"}),
        ("--commands", "print the torchrun commands of the missing runs, a line a trunk; start nothing", False),
        ("--nodes", "nodes of each run, with --commands (1)", 1, {"metavar": "N"}),
        ("--dry-run", "show what would run and what it costs; start nothing", False),
        ("--gpus", "how many GPUs a dry run is for (1)", 1),
        SPEED,
        ("--assume", "a dry run's speed as a share of a peak, as in 0.4@989", None, {"metavar": "SHARE@TFLOPS"}),
        LOG, PARAMETER, RUNS_DIR, DEVICE,
        ("--no-notebooks", "train and print the claims only", False),
    ]),
    "pretrain": (verbs.pretrain, "train, validate and probe one run (also under torchrun)", [
        Run,
        ("--parallel", "under torchrun: ddp (default), a whole model a process, or fsdp, a part (huge, giant)", "ddp"),
        ("--accumulate", "parts, one after the other, of a process's share of the batch (1): less memory", 1),
        ("--checkpointing", "compute blocks again in the backward pass: less memory, about a third more time", False),
        ("--compile", "torch.compile, block by block", False),
        ("--film", "keep a film of the run, as one PNG", 0, {"metavar": "FRAMES"}),
        LOG, RUNS_DIR, DEVICE,
    ]),
    "manifest": (verbs.manifest, "fill in or check the digest of a data set's manifest", [
        ("action", None, None, {"choices": ("build", "verify")}),
        ("manifest", "a YAML file, or the name of one in data_manifests/"),
        ("folder", "the folder of images, or a pack of it; not needed for scenes", None, {"nargs": "?"}),
        ("--out", "where build writes the filled-in manifest; in place by default"),
    ]),
    "data": (None, "pack a data set into shards, or check a pack", []),
    "data pack": (verbs.pack, "pack pictures into WebDataset shards with an index, for --data packed:OUT", [
        ("source", "imagefolder:DIR, inaturalist:DIR, torchvision:NAME or hf:NAME (or packed:DIR, packed anew)"),
        ("out", "the folder of the pack"),
        ("--short-side", "pixels; larger pictures are shrunk to it (256)", 256),
    ]),
    "data verify": (verbs.verify, "read every byte of a pack, and name what is wrong with it", [
        ("pack", "the folder of the pack"),
        ("--manifest", "a built manifest that it has to agree with: a file, or a name"),
    ]),
    "records": (None, "take in somebody else's runs", []),
    "records import": (verbs.records_import, "take runs from a CSV file into tables, claims, plots and plans", [
        ("file", "a CSV file, a line a run; its columns: see below"),
        ("--scores", "percent or share (of 1), where the numbers leave that open"),
        RUNS_DIR,
    ]),
    "transfer": (verbs.transfer, "score a run by a task, beside the same network from scratch (also under torchrun)", [
        ("--task", "probe (default), classify, detect or segment", "probe"),
        ("--recipe", "full size: imagenet-100ep (classify), mask-rcnn-1x, mask-rcnn-3x or upernet-160k"),
        ("--weights", "a checkpoint in place of the run's own weights: a file, or hf://OWNER/REPO/PATH"),
        ("--set", "a field of the training, as in lr=1e-3", None, SET),
        ("--scratch-set", "a field of the baseline from scratch alone, as in lr=1e-3", None, SET),
        Run, RUNS_DIR, DEVICE,
    ]),
    "papermill": (notebooks.show_batch, "execute notebooks, each with every combination of some parameters", [
        ("notebook", "names in notebooks/, as in 04_data_scale, or files", None, {"nargs": "+"}),
        PARAMETER,
        ("--each", "a parameter that takes each of these values; several of these options are combined", None,
         MANY | {"nargs": 2, "metavar": ("NAME", "V1,V2")}),
        ("--out", "the folder of the executed copies (executed)", "executed"),
        ("--workers", "notebooks at a time; one a core by default", int),
        *ENGINE, DEVICE,
    ]),
    "watch": (monitor.show, "what is running, stopped and finished in a runs folder; in place, until Ctrl-C", [
        ("--runs-dir", "the folder to look at (runs)", "runs"),
        ("--study", "count what is still to do of a study, or of all", None, {"metavar": "NAME"}),
        ("--tier", "of the study (quick)", "quick"),
        *GRID, DEVICE,
    ]),
    "diagnose": (verbs.diagnose, "is a run normal? what its log shows, how sure that is, and what to try next", [
        ("log", "SimMIM's or MAE's text, trainer_state.json, CSV, TensorBoard's, a record; or a folder of one", None,
         {"nargs": "?"}),
        ("--loss", "l1 or mse, of standard deviations; by default MAE's log.txt is taken for mse"),
        ("--weights", "eight pictures of --data as this checkpoint fills them in: a file, or hf://OWNER/REPO/PATH"),
        ("--bands", "which three channels are shown as red, green and blue, counted from 1, as in 4,3,2"),
        ("--out", "of --weights: the PNG, beside it the page (diagnosis.png)", "diagnosis.png"),
        Run, DEVICE,
    ]),
    "plan": (verbs.plan, "which size and how long, for so many images and so much compute", [
        ("--images", "unique images you have", int, {"required": True}),
        ("--budget-flops", "training FLOPs in all, as in 1e20", float),
        ("--budget-gpu-hours", "GPU hours in all; needs a measured speed", float),
        SPEED,
        ("--gpus", "how many GPUs (1)", 1),
        ("--target", "accuracy (default) or loss", "accuracy"),
        ("--runs-dir", "refit on your own runs kept there, in place of the published ones"),
    ]),
    "weights": (None, "show, convert or score weights", []),
    "weights convert": (verbs.convert, "convert weights between layouts", [
        ("source", "official, timm, transformers or simmim-lite: a file, or hf://OWNER/REPO/PATH"),
        ("target", "the file to write (.safetensors, .pth, …); for layout hf a folder"),
        MODEL,
        ("--layout", "simmim (default), timm, official, or hf: a folder that from_pretrained opens", "simmim"),
        ("--image-size", f"pixels a side {HF}", int),
        ("--window-size", f"tokens a side {HF}", int),
    ]),
    "weights score": (verbs.score_weights, "our validation loss of checkpoints, beside the published order", [
        ("source", "checkpoints of one size: files, or names like hf://zdaxie/SimMIM/PATH", None, {"nargs": "+"}),
        MODEL,
        ("--data", "imagefolder:DIR; its validation images are read", None, {"required": True}),
        ("--images", "validation images (1024)", 1024),
        DEVICE,
    ]),
    "weights show": (verbs.show_weights, "what a file of weights is: layout, size, window, target, what is missing", [
        ("source", "a file, a folder with model.safetensors, or hf://OWNER/REPO/PATH"),
    ]),
}  # fmt: skip


def main(argv: list[str] | None = None) -> int:
    """Run a command; the exit status: 0, 2 for what the caller can mend, 130 after Ctrl-C, 75 when a scheduler's signal
    stopped it with everything saved (EX_TEMPFAIL: the same command goes on)."""
    forgive_streams()
    hear_signals()
    options = vars(_parser().parse_args(argv))
    _, call, debug = (options.pop(name) for name in ("verb", "call", "debug"))
    try:
        call(**options)
        sys.stdout.flush()
    except BaseException as caught:
        error = readable(caught)
        if debug or error is None:
            raise
        if isinstance(error, Preempted):
            ignore_signals()
        line = f"simmim-lite: {error}"
        if first_to_say(line, not error.everywhere or speaks()):
            print(line, file=sys.stderr)
        return error.status
    lost = sys.stdout.lost
    if lost is None or isinstance(lost, BrokenPipeError):  # who reads our output has had enough of it
        return 0
    print(f"simmim-lite: not all of the output could be written: {first_line(lost)}", file=sys.stderr)
    return 0 if call in (verbs.study, verbs.pretrain, verbs.transfer) and not options.get("commands") else 1


class Parser(argparse.ArgumentParser):
    """argparse with one-line errors that name the verb's own --help, the nearest name in place of a wrong one, numbers
    as people write them, `--batch_size` for `--batch-size`, and no guessing at abbreviated options."""

    def __init__(self, *args, **options) -> None:
        super().__init__(*args, allow_abbrev=False, **options)
        for kind, wanted in ((int, "whole number, as in 64, 1_000, 1e4 or 200k"), (float, "number, as in 0.5 or 2M")):
            self.register("type", kind, lambda text, kind=kind, wanted=wanted: _number(text, kind, wanted))

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
        dashed = name.replace("_", "-")
        return dashed + equals + value if dashed in self._option_string_actions else word

    def _check_value(self, action: argparse.Action, value: object) -> None:
        if action.choices is not None and value not in action.choices:
            wrong = unknown((action.metavar or action.dest).lower(), value, action.choices)
            raise argparse.ArgumentError(None, str(wrong))


def _number(text: str, kind: type, wanted: str) -> int | float:
    try:
        return specs.number(text, kind)
    except ValueError:
        raise argparse.ArgumentTypeError(f"'{text}' is not a {wanted}") from None


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="simmim-lite", description="Learn, see and measure how masked image modelling scales.")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    groups = {"": parser.add_subparsers(dest="verb", required=True, metavar="VERB")}
    for name, (call, text, options) in VERBS.items():
        group, _, own = name.rpartition(" ")
        sub = groups[group].add_parser(own, help=text, description=text)
        if call is None:
            groups[name] = sub.add_subparsers(required=True, metavar="ACTION")
            continue
        sub.add_argument("--debug", action="store_true", default=argparse.SUPPRESS, help=argparse.SUPPRESS)
        sub.set_defaults(call=call)
        for option in options:
            _add(sub, *option) if isinstance(option, tuple) else run_options(sub)
        if call is verbs.records_import:
            sub.epilog = f"{published.help_text()} An example: examples/runs.csv"
    return parser


def _add(parser: argparse.ArgumentParser, names: str, text: str | None, default: object = None, more: object = ()):
    """Add an option of the table to a parser."""
    options = {"help": text}
    if isinstance(default, bool):
        options["action"] = "store_true"
    elif isinstance(default, type):
        options["type"] = default
    elif default is not None:
        options |= {"default": default, "type": type(default)}
    parser.add_argument(*names.split(), **options | dict(more))


def run_options(parser: argparse.ArgumentParser) -> None:
    """An option for every field of Run, of its type; what it takes is in the help, with its default."""
    for field in dataclasses.fields(Run):
        if field.name == "recipe_version":
            continue
        kind, text = specs.base(field.type), f"{specs.said(field.type)} ({field.default})"
        parts = typing.get_args(kind)
        many = {"nargs": "+" if ... in parts else len(parts)} if parts else {}
        kind = specs.base(parts[0]) if parts else kind
        name = f"--{field.name.replace('_', '-')}"
        parser.add_argument(name, type=kind, default=argparse.SUPPRESS, help=text, **many)
