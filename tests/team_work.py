"""What each process of `test_classify_team.py` does: train, be killed after a checkpoint and go on, test."""

import json
import sys
from pathlib import Path

from test_finetune import tiny_data, tiny_spec

from simmim_lite.data.sources import as_pictures
from simmim_lite.training.device import one_thread
from simmim_lite.training.distributed import team
from simmim_lite.training.finetune import Classification
from simmim_lite.training.loop import Loop


class Killed(Exception):
    pass


def work(out: Path, cases: dict[str, dict]) -> dict[str, dict]:
    """Losses, weights and score of each case: fields of a spec, and `stop`, the step before which it is killed."""
    found = {}
    with team("cpu") as us, one_thread(us.device):
        for name, fields in cases.items():
            spec = tiny_spec(**{k: v for k, v in fields.items() if k != "stop"})
            for stop in (fields.get("stop"), None):
                data = as_pictures(tiny_data()) if spec.full_size else tiny_data()
                task = Classification(spec, data, None, us)
                loop = Loop(spec, task, us, folder=out / name, data_digest="tiny")

                def advance(net, loop=loop, real=loop.advance, stop=stop):
                    if loop.step == stop:
                        loop.save()
                        raise Killed
                    return real(net)

                loop.advance = advance
                try:
                    curve, _ = loop.run()
                except Killed:
                    continue
                parts, _ = task.evaluate()
                weights = float(sum(p.detach().double().abs().sum() for p in task.model.parameters()))
                found[name] = {"losses": [p["train_loss"] for p in curve], "weights": weights, **parts}
                break
    if us.main:
        (out / "found.json").write_text(json.dumps(found))
    return found


if __name__ == "__main__":
    work(Path(sys.argv[1]), json.loads(sys.argv[2]))
