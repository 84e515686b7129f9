"""The verb `weights`: what a file of weights is, written in another layout, or scored."""

import argparse
from collections.abc import Callable
from pathlib import Path

from .errors import UserError
from .model.hub import FILES
from .processes import import_torch, waiting
from .studies import scoring


def add(verb: Callable[..., argparse.ArgumentParser]) -> None:
    """Add the verb to the command line; verb(name, call, text) makes the parser of one."""
    weights = verb("weights", None, "show, convert or score weights").add_subparsers(required=True, metavar="ACTION")
    text = "convert weights between layouts"
    convert = weights.add_parser("convert", help=text, description=text)
    convert.add_argument("source", help="official, timm, transformers or simmim-lite: a file, or hf://OWNER/REPO/PATH")
    convert.add_argument("target", help=f"the file to write ({', '.join(FILES)}); for layout hf a folder")
    convert.add_argument("--model", required=True, help="the size, as in swinv2_base")
    text = "simmim (default), timm, official, or hf: a folder that transformers' from_pretrained opens"
    convert.add_argument("--layout", default="simmim", help=text)
    for side, text in (("image", "pixels a side"), ("window", "tokens a side")):
        text += " that the network was trained at, for the config.json of layout hf (192 px, window 12; laptop: 32, 4)"
        convert.add_argument(f"--{side}-size", type=int, help=text)
    convert.set_defaults(call=_weights)
    text = "our validation loss of pretrained checkpoints, lowest first, beside the published order"
    scored = weights.add_parser("score", help=text, description=text)
    scoring.options(scored)
    scored.set_defaults(call=scoring.show)
    text = "what a file of weights is: layout, size, window, target, what is missing or extra, parameters"
    shown = weights.add_parser("show", help=text, description=text)
    shown.add_argument("source", help="a file, a folder with model.safetensors, or hf://OWNER/REPO/PATH")
    shown.set_defaults(call=_weights_show)


def _weights(arguments: argparse.Namespace) -> None:
    import_torch()
    from .model import weights
    from .model.hub import check_target, is_hub
    from .model.simmim import create_model

    source, target, layout = arguments.source, arguments.target, arguments.layout
    sides = {"img_size": arguments.image_size, "window_size": arguments.window_size}
    if layout != "hf" and any(sides.values()):
        raise UserError("--image-size and --window-size go into the config.json of layout hf: leave them out")
    check_target(target, layout, weights.LAYOUTS, source)
    if not is_hub(source) and not Path(source).exists():
        raise UserError(f"{source}: no such file; give the weights to convert")
    with waiting(f"reading {source}"):
        model = create_model(arguments.model, **sides)
        loaded = weights.load_weights(model, source)
    # what the file does not hold is random here: nobody is to take it for trained
    weights.save_weights(model, target, layout=layout, image_size=arguments.image_size, without=loaded.kept)
    alone = ", the backbone alone" if loaded.kept or layout == "timm" else ""
    print(f"written: {target} ({layout}{alone})")


def _weights_show(arguments: argparse.Namespace) -> None:
    import_torch()
    from .model.inspection import lines

    print("\n".join(lines(arguments.source)))
