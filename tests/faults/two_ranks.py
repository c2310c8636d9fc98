"Two gloo processes that leave what they found in files."
import socket

import torch
import torch.multiprocessing as mp


def on_two_ranks(work, folder) -> list[dict]:
    "What `work(rank, port, folder)` of a test module stored as `<rank>.pt`, by rank."
    with socket.socket() as s: s.bind(("127.0.0.1", 0)); port = s.getsockname()[1]
    mp.start_processes(work, (port, folder), nprocs=2, start_method="spawn")
    return [torch.load(folder/f"{r}.pt", weights_only=True) for r in (0, 1)]
