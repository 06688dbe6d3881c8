"""Words what the engine tells of a model as Triton's JSON: its configuration and its statistics."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torchpar.serve.engine.metadata import ModelMetadata
from torchpar.serve.engine.statistics import Statistics
from torchpar.serve.tensors import TensorSpec, byte_size

# What a configuration says that one request may bring where nothing else bounds it: clients cut their data by it. So
# many bytes fit a body; how many rows are computed together is another number, which moves.
REQUEST_ROWS, REQUEST_BYTES = 1024, 1 << 25


def model_config(model: ModelMetadata) -> dict[str, Any]:
    """Makes a model's configuration, as Triton's clients read it."""
    rows = 1 if model.rowwise else 0  # Triton's dims leave the rows out where it batches

    def tensors(specs: Sequence[TensorSpec]) -> list[dict[str, Any]]:
        return [
            {
                "name": spec.name,
                "data_type": f"TYPE_{'STRING' if spec.datatype == 'BYTES' else spec.datatype}",
                "dims": list(spec.shape[rows:]),
            }
            for spec in specs
        ]

    config: dict[str, Any] = {
        "name": model.name,
        "platform": model.platform,
        "backend": "python" if model.platform == "python" else "pytorch",
        "version_policy": {"all": {}},
        "max_batch_size": (model.most or rows_of_a_request(model.inputs)) if model.rowwise else 0,
        "input": tensors(model.inputs),
        "output": tensors(model.outputs),
        "instance_group": [{"name": model.name, "kind": model.kind, "count": model.instances, "gpus": []}],
    }
    if model.rowwise:
        config["dynamic_batching"] = {"max_queue_delay_microseconds": 0, "preferred_batch_size": []}
    return config


def rows_of_a_request(specs: Sequence[TensorSpec]) -> int:
    """Returns the most rows of one request, by the bytes of their inputs; sizes that a request chooses count as 1."""
    row = sum(byte_size(spec.datatype, [max(size, 1) for size in spec.shape[1:]]) or 4 for spec in specs)
    return max(1, min(REQUEST_ROWS, REQUEST_BYTES // max(row, 1)))


def model_statistics(name: str, version: str, statistics: Statistics) -> dict[str, Any]:
    """Makes the statistics extension's object for one version of a model."""

    def duration(count: int, ns: int) -> dict[str, int]:
        return {"count": count, "ns": ns}

    return {
        "name": name,
        "version": version,
        "last_inference": int(statistics.last * 1000),
        "inference_count": statistics.rows,
        "execution_count": statistics.batches,
        "inference_stats": {
            "success": duration(*statistics.success),
            "fail": duration(sum(statistics.failed.values()), statistics.failed_ns),
            "queue": duration(*statistics.queue),
            "compute_input": duration(*statistics.input),
            "compute_infer": duration(*statistics.infer),
            "compute_output": duration(*statistics.output),
            "cache_hit": duration(0, 0),
            "cache_miss": duration(0, 0),
        },
        "batch_stats": [
            {
                "batch_size": rows,
                "compute_input": duration(sums[0], sums[1]),
                "compute_infer": duration(sums[0], sums[2]),
                "compute_output": duration(sums[0], sums[3]),
            }
            for rows, sums in sorted(statistics.by_rows.items())
        ],
    }
