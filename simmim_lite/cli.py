"""The command line: `simmim-lite VERB …`. Errors are one line that names the value and the remedy, exit status 2."""

import argparse
import contextlib
import os
import sys
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING

from . import data_verbs, verbs, weights_verbs
from .errors import Everywhere, UserError, check_writable
from .processes import first_to_say, import_torch
from .studies import costs
from .verbs import Parser, common, engine_options, log_option, run_of, run_options, runtime_of, runtime_options

if TYPE_CHECKING:
    from .studies.parameters import StudyOptions


def main(argv: list[str] | None = None) -> int:
    """Run a command; the exit status: 0, 2 for what the caller can mend, 130 after Ctrl-C, 75 when SIGTERM or SIGUSR1
    stopped it with everything saved (EX_TEMPFAIL: the same command goes on)."""
    arguments = _parser().parse_args(argv)
    try:
        arguments.call(arguments)
        sys.stdout.flush()
        return 0
    except UserError as error:
        if arguments.debug:
            raise
        line = f"simmim-lite: {error}"
        if first_to_say(line, not error.everywhere or _speaks()):
            print(line, file=sys.stderr)
        return error.status
    except KeyboardInterrupt:
        print("simmim-lite: interrupted; finished runs are kept, run the same command to go on", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output has left
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _speaks() -> bool:
    from .training.distributed import speaks

    return speaks()


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="simmim-lite", description="Learn, see and measure how masked image modelling scales.")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    known = parser.add_subparsers(dest="verb", required=True, metavar="VERB")

    def verb(name: str, call, text: str) -> argparse.ArgumentParser:
        sub = known.add_parser(name, help=text, description=text)
        sub.add_argument("--debug", action="store_true", default=argparse.SUPPRESS, help=argparse.SUPPRESS)
        sub.set_defaults(call=call)
        return sub

    study = verb("study", _study, "train what is missing of a study, run its notebooks and write its report")
    study.add_argument("name", help="data-scale, model-size, schedule, proxy, all four (all), or transfer")
    study.add_argument(
        "--tier", default="quick",
        help="shipped (trains nothing), smoke, quick (default: minutes), laptop (a quarter of an hour a seed) or paper",
    )  # fmt: skip
    study.add_argument(
        "--data", default="scenes",
        help="scenes (default), imagefolder:, inaturalist: or packed:DIR, torchvision: or hf:NAME; paper: '1K + 22K'",
    )  # fmt: skip
    study.add_argument(
        "--seeds", type=int, help="how many seeds; by default so many as --minutes hold, else the tier's"
    )
    study.add_argument("--first-seed", type=int, metavar="SEED", help="the first of them (quick and laptop: 200)")
    study.add_argument("--minutes", type=float, help="what tier quick may take (5): five seeds at least, eight at most")
    study.add_argument("--workers", type=int, help="processes; 0, as by default, is one a core")
    engine_options(study)
    study.add_argument("--precision", default="auto", help="auto (default), fp32 or bf16")
    study.add_argument("--dry-run", action="store_true", help="show what would run and what it costs; start nothing")
    costs.options(study)
    log_option(study)
    study.add_argument("--no-notebooks", action="store_true", help="train and print the claims only")
    study.add_argument(
        "-p", "--parameter", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"),
        help="a parameter of the notebooks, as papermill takes it",
    )  # fmt: skip
    common(study)

    pretrain = verb("pretrain", _pretrain, "train, validate and probe one run (also under torchrun)")
    run_options(pretrain)
    runtime_options(pretrain)
    pretrain.add_argument("--film", type=int, default=0, metavar="FRAMES", help="keep a film of the run, as one PNG")
    log_option(pretrain)
    common(pretrain)

    data_verbs.add(verb)

    verbs.add(verb)

    gallery = verb("gallery", _gallery, "draw the pictures of the studies from the shipped records")
    gallery.add_argument("--out", help="the folder to write to")

    site = verb("site", _site, "build the site: notebooks, gallery, API and the mask lab as pages that need no network")
    site.add_argument("--out", default="_site", help="the folder to write to (_site)")

    weights_verbs.add(verb)

    return parser


def _study(arguments: argparse.Namespace) -> None:
    from .studies import parameters
    from .studies.seeding import choose
    from .training.specs import value

    name, on = value("study", parameters.Study, arguments.name), costs.asked(arguments)
    known = [f.name for f in fields(parameters.StudyOptions)]
    options = {name: getattr(arguments, name) for name in known if hasattr(arguments, name)}
    gpus = options.pop("gpus_per_run") if arguments.commands else None  # of a command, whoever starts it
    how = parameters.StudyOptions(**options)
    start = not (arguments.commands or arguments.dry_run)
    parameters.images_of(how.data)  # a source that is not there is no cost table, and no line to run
    if arguments.nodes != 1 and not arguments.commands:
        raise UserError("--nodes is about the lines that --commands prints: add --commands, or leave it out")
    _notebook_parameters(arguments, how)  # a wrong parameter fails before anything is measured or trained
    counts = {"first_seed": arguments.first_seed, "minutes": arguments.minutes}
    chosen, said = choose(name, how, measure=start, **counts)  # before anything is seen
    how = replace(how, seeds=chosen)
    if said and not arguments.commands:
        print(said, flush=True)
    planned, reason = _notebook_parameters(arguments, how)
    if not start:
        check_writable(how.runs_dir, "choose another --runs-dir")
    if arguments.commands:
        from .studies.commands import lines

        print("\n".join(lines(name, how, gpus_per_run=1 if gpus is None else gpus, nodes=arguments.nodes)))
        return
    if arguments.dry_run:
        from .studies.collecting import dry_run

        print(dry_run(name, tier=how.tier, data=how.data, seeds=how.seeds, runs_dir=how.runs_dir, on=on))
        return
    said, failed = (_shipped(name), []) if how.tier == "shipped" else _train(name, how)
    if not planned:
        print(f"without notebooks: {reason or '--no-notebooks'}; the report is made of them")
        return
    from .studies import notebooks, report

    runs = Path(how.runs_dir)
    where = {name: getattr(how, name) for name in ("workers", "engine", "address", "device")}
    executed, failures = notebooks.execute(planned, runs / "notebooks", **where)
    if executed:
        print(f"executed notebooks: {runs / 'notebooks'}")
    print(f"report: {report.write(runs / 'notebooks', runs / 'report', said, failed)}")
    notebooks.raise_first(failures)


def _train(name: str, how: "StudyOptions") -> tuple[list, list[dict]]:
    """Train what is missing, and print what came of it; the claims, and the records of failed runs."""
    from .studies.engine import study

    result = study(name, **vars(how))
    _say(result.claims)
    failed = [record for record in result.records if record["status"] == "failed"]
    print(
        f"{len(result.records)} runs, {result.trained} trained now, {len(failed)} failed; "
        f"{result.core_seconds:.0f} core-seconds in {result.wall_seconds:.0f} s"
    )
    return result.claims, failed


def _shipped(name: str) -> list:
    from .evidence import shipped
    from .evidence.claims import claims
    from .studies.grids import TRANSFER, claims_of

    wanted = claims_of(name)
    for of in [shipped.TRANSFER] if name == TRANSFER else shipped.names():
        records = shipped.records(of)
        print(f"shipped records {of}: {len(records)}")
        _say([claim for claim in claims(records) if claim.id in wanted])
    return []  # the notebooks show them beside the reader's own


def _say(claims: list) -> None:
    for claim in claims:
        print(claim)
    sys.stdout.flush()


def _notebook_parameters(arguments: argparse.Namespace, how: "StudyOptions") -> tuple[list, str]:
    """The notebooks of a study with their parameters, checked; or none, and why there are none."""
    from .studies import notebooks, parameters
    from .studies.grids import STUDIES

    if arguments.no_notebooks:
        return [], ""
    if missing := notebooks.not_installed():
        return [], f"not installed: {missing}; {notebooks.HOW_TO_GET}, and run the same command again"
    studies = STUDIES if arguments.name == "all" else (arguments.name,)
    wanted = [notebooks.NOTEBOOKS[study] for study in studies]
    try:
        paths = [notebooks.find(name) for name in wanted]
    except UserError as error:
        return [], str(error)
    given = {"tier": how.tier, "data": how.data, "runs_dir": how.runs_dir}
    given |= {"seeds": list(how.seeds) if isinstance(how.seeds, tuple) else how.seeds or 0}
    given |= {"workers": how.workers or 0}
    if (how.device, how.precision) != ("auto", "auto"):  # notebooks train on auto: let them train nothing
        given["tier"] = "shipped"
    texts = dict(arguments.parameter)
    return [notebooks.Copy(path, given | parameters.from_text(path, texts), path.stem) for path in paths], ""


def _gallery(arguments: argparse.Namespace) -> None:
    from .studies.gallery import make_gallery

    out = arguments.out or "gallery"
    check_writable(out)
    for path in make_gallery(out):
        print(path)
    from .lab.headless import picture

    print(picture(Path(out) / "lab.png"))


def _site(arguments: argparse.Namespace) -> None:
    from .lab import explorer_data, explorer_page, mask_lab
    from .studies.site import IN_A_FRAME, build

    check_writable(arguments.out)
    explorer, lab = explorer_page.fragment(explorer_data.data()), mask_lab.MaskLab()
    print(build(arguments.out, lambda path: lab.write_html(path, "The mask lab", before=IN_A_FRAME), explorer))


def _pretrain(arguments: argparse.Namespace) -> None:
    import_torch()
    from .data.store import progress
    from .training.device import pick_device
    from .training.film import film_path
    from .training.pretrain import pretrain
    from .training.run import record_path

    run, runtime = run_of(arguments), runtime_of(arguments)
    pick_device(arguments.device)
    with progress(run.steps, run.key, "step") if _speaks() else contextlib.nullcontext() as advance:
        done = [0]

        def report(step: int, _: int) -> None:  # only in the process that speaks
            advance(step - done[0])
            done[0] = step

        options = {"runs_dir": arguments.runs_dir, "device": arguments.device, "film": arguments.film}
        record = pretrain(run, progress=report, runtime=runtime, log=arguments.log, **options)
    if record["status"] == "failed":
        raise Everywhere(f"{run.key} failed: {record['reason']} (its record is {record_path(arguments.runs_dir, run)})")
    if not _speaks():
        return
    final = record["final"]
    print(f"validation loss {final['val_loss']:.4f} +- {final['val_loss_se']:.4f} (standard error over images)")
    for name, score in record["transfer"].items():
        print(f"{name:8s} {score['metric']} {score['score']:.4f} [{score['low']:.4f}, {score['high']:.4f}]")
    film = film_path(arguments.runs_dir, run)
    if arguments.film:
        print(
            f"film: {film}"
            if film.exists()
            else "film: none, the run was finished before; delete its record to film it"
        )
    print(f"record: {record_path(arguments.runs_dir, run)}")
