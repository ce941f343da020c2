"""vLLM's own statistics become series that Prometheus can add up."""

from __future__ import annotations

from vllm.v1.metrics.reader import Counter, Gauge, Histogram

from rollout_workers.vllm.statistics import samples


def test_counters_and_histograms_have_the_names_that_prometheus_gives_them() -> None:
    labels = {"model_name": "tiny", "engine": "0"}
    found = samples([
        Gauge("vllm:kv_cache_usage_perc", labels, 0.5),
        Gauge("vllm:cache_config_info", {**labels, "block_size": "32"}, 1.0),
        Counter("vllm:request_success", {**labels, "finished_reason": "stop"}, 3),
        Histogram("vllm:time_to_first_token_seconds", labels, 2, 0.7, {"0.5": 1, "+Inf": 2}),
    ])  # fmt: skip
    assert list(found) == [
        ("vllm_kv_cache_usage_perc", {}, 0.5),
        ("vllm_request_success_total", {"finished_reason": "stop"}, 3),
        ("vllm_time_to_first_token_seconds_sum", {}, 0.7),
        ("vllm_time_to_first_token_seconds_count", {}, 2),
        ("vllm_time_to_first_token_seconds_bucket", {"le": "0.5"}, 1),
        ("vllm_time_to_first_token_seconds_bucket", {"le": "+Inf"}, 2),
    ]
