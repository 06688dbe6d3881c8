"""What Prometheus reads."""

from __future__ import annotations

import shutil
import subprocess
import urllib.request

import pytest

from tests.serve.running import Running, running


def metrics(world: Running) -> str:
    with urllib.request.urlopen(f"http://{world.address}/metrics") as reply:
        assert reply.headers["Content-Type"].startswith("text/plain; version=0.0.4")
        return str(reply.read().decode())


def predict(world: Running) -> None:
    urllib.request.urlopen(f"http://{world.address}/predict/identity_fp32", b"[1, 2]").close()


def test_counters_have_tritons_names_and_grow_with_requests() -> None:
    with running() as world:
        predict(world)
        predict(world)
        lines = metrics(world).splitlines()
    labels = '{model="identity_fp32",version="1"}'
    for name in ("request_success", "count", "exec_count"):
        assert f"nv_inference_{name}{labels} 2" in lines
    assert f"nv_inference_request_duration_us{labels} 10000" in lines
    assert f"nv_inference_pending_request_count{labels} 0" in lines
    assert 'nv_inference_request_failure{model="identity_fp32",version="1",reason="REJECTED"} 0' in lines
    assert 'torchpar_inference_request_seconds_bucket{model="identity_fp32",version="1",le="0.005"} 2' in lines
    assert f"torchpar_inference_unbatched{labels} 0" in lines
    assert f"torchpar_inference_batch_rows_sum{labels} 2" in lines
    assert 'torchpar_http_answers_total{code="200"} 2' in lines


@pytest.mark.subprocess
@pytest.mark.skipif(not shutil.which("promtool"), reason="needs promtool, of Debian's prometheus")
def test_prometheus_own_checker_reads_them() -> None:
    """promtool objects to Triton's counters for want of _total, which is theirs; it must not object to more."""
    with running() as world:
        predict(world)
        text = metrics(world)
    checked = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True, text=True, timeout=300)
    complaints = [line for line in checked.stderr.splitlines() if not line.startswith("nv_inference_")]
    assert complaints == [] and checked.returncode in (0, 3)
