"""Several processes on one run, as torchrun starts them, for tests: torch is imported once, and they are forked off."""

import multiprocessing
import os
import socket

context = multiprocessing.get_context("forkserver")
context.set_forkserver_preload(["torch", "torch.distributed.fsdp", "simmim_lite.training.pretrain"])


def run_ranks(size: int, work, *arguments) -> list:
    """What work(*arguments) returns in each of `size` processes, by rank; a failure raises its traceback."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with context.Pool(size) as pool:
        jobs = [(rank, size, port, work, arguments) for rank in range(size)]
        done = dict(pool.imap_unordered(_member, jobs))
    return [done[rank] for rank in range(size)]


def _member(job: tuple) -> tuple[int, object]:
    import torch

    rank, size, port, work, arguments = job
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    try:
        return rank, work(*arguments)
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
