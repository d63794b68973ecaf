"""Imported once, by the process from which all others are forked: they find everything there and start at once."""

import gc
import threading

import joblib
import pandas as pd
import psutil
import requests
import safetensors.torch
import torch._dynamo  # what an optimizer imports at its first step
import torch.distributed
from tqdm.std import tqdm

from deploykit import data, distributed, download, ledger, machine, models, training

__all__ = [
    "data", "distributed", "download", "joblib", "ledger", "machine", "models", "pd", "psutil", "requests",
    "safetensors", "torch", "tqdm", "training",
]  # fmt: skip

tqdm.set_lock(threading.RLock())  # its own one is shared by all processes: one killed with it would stop the others
gc.freeze()  # a collection would touch, and so copy, the memory that the processes share
