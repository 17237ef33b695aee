import asyncio
import sys
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
from prometheus_client import ProcessCollector
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.parser import text_string_to_metric_families

from app import metrics as metrics_module
from app.batching import Batcher, Monitor, Op
from app.metrics import BATCH_ITEMS, CONTENT_TYPE, DEVICE_S, KL_NATS, QUEUE_S, REQUEST_S, Metrics
from app.tally import Tally


def samples(metrics):
    """Return ``{(name, label values…): value}`` of everything that is rendered, buckets apart."""
    body, content_type = metrics.render()
    assert content_type == CONTENT_TYPE
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(body.decode())
        for sample in family.samples
        if not sample.name.endswith("_bucket")
    }


def test_the_names_and_labels_are_exactly_those_of_the_contract():
    metrics = Metrics()
    metrics.observe_request("/encode", 200, 0.01)
    metrics.queue_wait("encode", 0.001)
    metrics.device("encode", 0.01)
    metrics.batch("encode", 32)
    metrics.queue_items("encode", 5)
    metrics.rejected("queue_full")
    metrics.observe_posterior_kl(np.array([25.0]))
    metrics.set_model_info("mnist", "0" * 16, "cpu", "bf16")
    families = {}
    for family in text_string_to_metric_families(metrics.render()[0].decode()):
        name = family.name + ("_total" if family.type == "counter" else "")
        families[name] = set().union(*(sample.labels for sample in family.samples)) - {"le"}
    assert {name: labels for name, labels in families.items() if not name.startswith("process_")} == {
        "vae_requests_total": {"route", "status"},
        "vae_request_seconds": {"route"},
        "vae_queue_wait_seconds": {"op"},
        "vae_device_seconds": {"op"},
        "vae_batch_items": {"op"},
        "vae_queue_items": {"op"},
        "vae_rejected_total": {"reason"},
        "vae_posterior_kl_nats": set(),
        "vae_model_info": {"name", "digest", "device", "precision"},
    }


@pytest.mark.skipif(sys.platform != "linux", reason="read from /proc")
def test_the_process_tells_its_memory_its_time_and_its_files():
    got = {key[0]: value for key, value in samples(Metrics()).items() if key[0].startswith("process_")}
    assert set(got) == {
        "process_resident_memory_bytes",
        "process_virtual_memory_bytes",
        "process_cpu_seconds_total",
        "process_start_time_seconds",
        "process_open_fds",
        "process_max_fds",
    }
    assert got["process_resident_memory_bytes"] > 1e6
    assert got["process_open_fds"] > 0


def test_a_process_that_is_just_ending_is_added_as_far_as_it_can_be_read(monkeypatch):
    def told(pid, registry):  # of one that ends, a service that is not root may not see the open files
        parts = {"process_cpu_seconds": 10.0 + pid(), "process_start_time_seconds": 100.0 + pid()}
        parts |= {} if pid() == 1 else {"process_open_fds": 7.0}
        return SimpleNamespace(collect=lambda: [GaugeMetricFamily(name, "", value) for name, value in parts.items()])

    monkeypatch.setattr(metrics_module, "ProcessCollector", told)
    got = {part.name: part.samples[0].value for part in metrics_module._of_processes([1, 2, 3])}
    assert got == {"process_cpu_seconds": 36.0, "process_start_time_seconds": 101.0, "process_open_fds": 14.0}


FILES = {
    "stat": f"12 (python) S {'0 ' * 10}300 400 {'0 ' * 6}5000 1000 2\n",
    "limits": "Limit Soft Limit Hard Limit Units\nMax open files 64 128 files\n",
}


@pytest.mark.parametrize(("missing", "told"), [("fd", 2000), ("stat", 1000), ("limits", 1000)])
def test_a_process_that_ends_while_it_is_read_spoils_no_scrape(tmp_path, monkeypatch, missing, told):
    """The files of one that is gone may be empty; its folder of open files may be shut."""
    (tmp_path / "stat").write_text("cpu 1 2 3\nbtime 1000\n")
    for pid in ("11", "12"):
        (tmp_path / pid / "fd").mkdir(parents=True)
        for name, text in FILES.items():
            (tmp_path / pid / name).write_text("" if (pid, name) == ("12", missing) else text)
    if missing == "fd":
        (tmp_path / "12" / "fd").rmdir()
    monkeypatch.setattr(metrics_module, "ProcessCollector", partial(ProcessCollector, proc=str(tmp_path)))
    monkeypatch.setattr(Tally, "processes", lambda _: [11, 12])
    got = {key[0]: value for key, value in samples(Metrics()).items() if key[0].startswith("process_")}
    assert len(got) == 6
    assert got["process_max_fds"] == 64
    assert got["process_virtual_memory_bytes"] == told


def test_what_is_observed_is_rendered():
    metrics = Metrics()
    for status in (200, 200, 422):
        metrics.observe_request("/encode", status, 0.25)
    metrics.queue_wait("decode", 0.5)
    metrics.device("decode", 0.125)
    metrics.batch("decode", 7)
    metrics.queue_items("decode", 9)
    metrics.rejected("queue_full")
    metrics.observe_posterior_kl(np.array([20, 30], dtype=np.float32))
    got = samples(metrics)
    assert got["vae_requests_total", "/encode", "200"] == 2
    assert got["vae_requests_total", "/encode", "422"] == 1
    assert got["vae_request_seconds_sum", "/encode"] == 0.75
    assert got["vae_queue_wait_seconds_sum", "decode"] == 0.5
    assert got["vae_device_seconds_sum", "decode"] == 0.125
    assert got["vae_batch_items_sum", "decode"] == 7
    assert got["vae_queue_items", "decode"] == 9
    assert got["vae_rejected_total", "queue_full"] == 1
    assert got[("vae_posterior_kl_nats_count",)] == 2
    assert got[("vae_posterior_kl_nats_sum",)] == 50


def test_both_names_of_a_route_share_a_series():
    metrics = Metrics()
    metrics.observe_request("/encode", 200, 0.1)
    metrics.observe_request("/v1/encode", 200, 0.1)
    assert samples(metrics)["vae_requests_total", "/encode", "200"] == 2


def test_no_request_can_add_a_series():
    metrics = Metrics()
    metrics.observe_request("/nowhere", 999, 0.1)
    metrics.queue_wait("nothing", 1)
    metrics.rejected("no reason")
    before = set(samples(metrics))
    for i in range(100):
        metrics.observe_request(f"/nowhere/{i}", 1000 + i, 0.1)
        metrics.queue_wait(f"op{i}", 1)
        metrics.rejected(f"reason {i}\n\"'")
    after = samples(metrics)
    assert set(after) == before
    assert after["vae_requests_total", "unmatched", "other"] == 101


def test_new_weights_replace_the_old_ones_series():
    metrics = Metrics()
    metrics.set_model_info("mnist", "aaaa", "cpu", "fp32")
    metrics.set_model_info("mnist", "bbbb", "cpu", "bf16")
    infos = {key: value for key, value in samples(metrics).items() if key[0] == "vae_model_info"}
    assert infos == {("vae_model_info", "cpu", "bbbb", "mnist", "bf16"): 1}  # labels in the order of their names


def test_two_services_in_one_process_count_apart():
    one, other = Metrics(), Metrics()
    one.rejected("queue_full")
    assert samples(one)["vae_rejected_total", "queue_full"] == 1
    assert ("vae_rejected_total", "queue_full") not in samples(other)


@pytest.mark.parametrize("buckets", [REQUEST_S, QUEUE_S, DEVICE_S, BATCH_ITEMS, KL_NATS])
def test_buckets_rise(buckets):
    assert list(buckets) == sorted(set(buckets))


def test_the_metrics_are_a_monitor_whose_gauges_return_to_zero():
    metrics = Metrics()
    monitor: Monitor = metrics

    async def scenario():
        batcher = Batcher(8, 1000, monitor=monitor)
        batcher.start()
        op = Op("encode", lambda x: (x,))
        await asyncio.gather(*(batcher.submit(op, np.arange(20.0)) for _ in range(10)))
        await batcher.close()

    asyncio.run(scenario())
    got = samples(metrics)
    assert got["vae_batch_items_sum", "encode"] == 200
    assert got["vae_queue_wait_seconds_count", "encode"] == 10
    assert got["vae_queue_items", "encode"] == 0
