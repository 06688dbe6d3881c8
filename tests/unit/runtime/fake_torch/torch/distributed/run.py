"""torchrun: its parser, in two spellings, and its agent."""

import argparse
import os
from typing import Any

from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.rendezvous import c10d_rendezvous_backend

OLD = os.environ.get("FAKE_TORCH") == "1.13"
FLAGS = ("nnodes", "nproc-per-node", "rdzv-backend", "rdzv-endpoint", "rdzv-conf", "rdzv-id", "max-restarts",
         "monitor-interval")  # fmt: skip


def spellings(name: str) -> tuple[str, ...]:
    old = "--" + name.replace("-", "_")
    return (old,) if OLD else ("--" + name, old)


def get_args_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser()
    for name in FLAGS:
        parser.add_argument(*dict.fromkeys(spellings(name)))
    parser.add_argument(*spellings("no-python"), action="store_true")
    if not OLD:
        parser.add_argument("--local-addr")
    parser.add_argument("training_script")
    parser.add_argument("training_script_args", nargs=argparse.REMAINDER)
    return parser


def run(args: Any) -> None:
    if os.environ.get("SHOW_FLAGS"):
        print({name: value for name, value in sorted(vars(args).items()) if value is not None}, flush=True)
    assert args.no_python
    c10d_rendezvous_backend.TCPStore("localhost", 0, is_master=True)
    command = [args.training_script, *args.training_script_args]
    close = True
    try:
        LocalElasticAgent(int(args.nproc_per_node), command, int(args.max_restarts)).run()
    except SignalException:
        close = False
        raise
    finally:
        if close:
            with open("rendezvous-closed", "w", encoding="ascii"):
                pass
