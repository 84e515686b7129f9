"""Several processes on one run, as torchrun starts them, for tests: torch is imported once, each team is forked off."""

import multiprocessing
import os
import socket
import traceback

from child_processes import PATIENCE

context = multiprocessing.get_context("forkserver")
context.set_forkserver_preload(["torch", "torch.distributed.fsdp", "simmim_lite.training.pretrain"])


def run_team(size: int, work, *arguments, seconds: float = PATIENCE) -> list:
    """What work(*arguments) returns in each of `size` processes, by their numbers; a failure raises its traceback."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    queue = context.Queue()
    processes = [
        context.Process(target=_member, args=(rank, size, port, queue, work, arguments)) for rank in range(size)
    ]
    for process in processes:
        process.start()
    try:
        said = {}
        while len(said) < size and all(fine for fine, _ in said.values()):
            rank, outcome = queue.get(timeout=seconds)
            said[rank] = outcome
    finally:
        if not all(fine for fine, _ in said.values()):
            for process in processes:
                process.kill()
        for process in processes:
            process.join(timeout=60)
            process.kill()
    for rank, (fine, result) in sorted(said.items()):
        assert fine, f"process {rank} of {size}:\n{result}"
    return [said[rank][1] for rank in range(size)]


def _member(rank: int, size: int, port: int, queue, work, arguments) -> None:
    import torch

    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    try:
        queue.put((rank, (True, work(*arguments))))
    except BaseException:
        queue.put((rank, (False, traceback.format_exc())))
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
