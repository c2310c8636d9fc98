"Two gloo processes that leave what they found in files."
import torch
import torch.multiprocessing as mp

from hclab.lab.launch import free_port


def on_two_ranks(work, folder) -> list[dict]:
    "What `work(rank, port, folder)` of a test module stored as `<rank>.pt`, by rank."
    mp.start_processes(work, (free_port(), folder), nprocs=2, start_method="spawn")
    return [torch.load(folder/f"{r}.pt", weights_only=True) for r in (0, 1)]
