"""Under torchrun: two steps of segmentation, then the gradients of one step with frozen statistics. FOLDER is the data.

python -m torch.distributed.run --nproc-per-node 2 segment_processes.py FOLDER OUT
"""

import sys
from pathlib import Path

import torch
from ade_folders import ALONE
from torch import nn

from simmim_lite.data.ade20k import open_ade20k
from simmim_lite.training.dense import Dense
from simmim_lite.training.distributed import Team, team
from simmim_lite.training.loop import Loop
from simmim_lite.training.segment import Segmentation


def spec(folder: str) -> Dense:
    return Dense(task="segment", data=f"ade20k:{folder}", steps=2, batch_size=4, channels=8, warmup_steps=0)


def gradients(folder: str, us: Team = ALONE) -> dict:
    """Loss (the mean over processes) and gradients of step 0. Nothing depends on which images share a process: dropout
    is off and batch normalisation uses its running statistics."""
    task = Segmentation(spec(folder), open_ade20k(f"ade20k:{folder}", 32), None, us)
    net = us.wrap(task.model)
    task.model.train()
    for module in task.model.modules():
        if isinstance(module, (nn.Dropout2d, nn.BatchNorm2d)):
            module.eval()
    loss = task.loss(net, 0)
    loss.backward()
    grads = {name: p.grad.clone() for name, p in task.model.named_parameters() if p.grad is not None}
    return {"loss": us.mean(loss.detach().clone()), "grads": grads}


def main(folder: str, out: str) -> None:
    torch.set_num_threads(1)
    with team("cpu") as us:
        found = gradients(folder, us)
        task = Segmentation(spec(folder), open_ade20k(f"ade20k:{folder}", 32), None, us)
        curve, reason = Loop(spec(folder), task, us, folder=None, data_digest="").run()
        parts, why = task.evaluate()
        found |= {"curve": curve, "reason": reason or why, "parts": parts, "model": task.model.state_dict()}
        torch.save(found, Path(out) / f"{us.rank}.pt")


if __name__ == "__main__":
    main(*sys.argv[1:])
