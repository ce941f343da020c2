"""Grafana dashboards, each a list of panels, and the Prometheus configuration that feeds them.

What a panel asks stands here in PromQL; the JSON around it is the same for all. `install` writes files that Grafana and
Prometheus read as they are.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from affect_rl.files import whole_file
from cluster.watching.names import EXPORTED

DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}
WIDTH, HEIGHT, IN_A_ROW = 12, 8, 2
"""Of a panel, in Grafana's grid of 24 columns."""


@dataclass(frozen=True, slots=True)
class Panel:
    """One plot over time.

    Attributes:
        title: what it shows.
        queries: PromQL by legend, in which ``{{agent}}`` and the like stand for tags; `$run` for the chosen runs.
        unit: one of Grafana's, such as ``s``, ``percentunit``, ``short``.
        says: what to read off it.
    """

    title: str
    queries: Mapping[str, str]
    unit: str = "short"
    says: str = ""


@dataclass(frozen=True, slots=True)
class Dashboard:
    """A page of panels; `name` is that of its file and its address."""

    name: str
    title: str
    panels: Sequence[Panel]


def of(name: str, **tags: str) -> str:
    """The series of a name of `cluster.watching.names` in the chosen runs."""
    chosen = {"run": '=~"$run"', **{tag: f'="{value}"' for tag, value in tags.items()}}
    return f"{EXPORTED}{name}{{{','.join(tag + value for tag, value in chosen.items())}}}"


def rate(name: str) -> str:
    """How much a counter grows in a second."""
    return f"rate({of(name)}[$__rate_interval])"


def per(part: str, whole: str, by: str) -> str:
    """A counter's growth in units of another's, 0 where neither grows; summed over all tags but `by`."""
    return f"sum by ({by}) ({rate(part)}) / clamp_min(sum by ({by}) ({rate(whole)}), 1e-9)"


def vllm(name: str) -> str:
    """A series of vLLM itself in the chosen runs."""
    return of(f"vllm_{name}")


OVERVIEW = Dashboard(
    "overview",
    "AffectRL: overview",
    [
        Panel("Step", {"{{run}}": of("affect_step")}),
        Panel("Score of the answers", {"{{run}}": of("affect_score")}, says="1 is right, 0 is wrong or invalid."),
        Panel("Score that selects the policy", {
            "{{run}} {{part}}": f"{of('affect_dev_score')} or {of('affect_test_score')}",
        }, says="On dev, unless train.select is test_oracle."),
        Panel("KL to the start", {"{{run}}": of("affect_kl_to_start")}),
        Panel("Where a step's time goes", {"{{part}}": of("affect_step_seconds")}, "s",
              "engines_waited: an engine had no step to run, mean over engines. The learner waits during rollout."),
        Panel("Episodes waiting and playing", {
            "waiting": of("affect_pool_waiting_episodes"),
            "playing on {{actor}}": of("affect_engine_playing_episodes"),
        }),
        Panel("Tokens per second", {
            "generated": f"sum({rate('affect_engine_generated_tokens_total')})",
            "learned": of("affect_learner_tokens_per_second"),
        }),
        Panel("Counted since the start", {"{{part}}": of("affect_counted_total")}),
    ],
)  # fmt: skip

AGENTS = Dashboard(
    "agents",
    "AffectRL: agents",
    [
        Panel("Reward", {"{{agent}}": of("affect_agent_reward")}),
        Panel("Score without an agent", {
            "all play": of("affect_score"), "without {{agent}}": of("affect_score_without"),
        }, says="What an agent is worth is the distance to the line of all."),
        Panel("Answers that broke the format", {"{{agent}}": of("affect_agent_invalid_share")}, "percentunit"),
        Panel("Length of an answer, tokens", {"{{agent}}": of("affect_agent_answer_tokens")}),
        Panel("Entropy", {"{{agent}}": of("affect_agent_entropy")}),
        Panel("KL to the start", {"{{agent}}": of("affect_agent_kl_to_start")}),
        Panel("Explained variance of the critic", {"{{agent}}": of("affect_agent_explained_variance")},
              says="1 is perfect, 0 no better than a constant. Empty for algorithms without a critic."),
        Panel("Labels per answer", {"{{run}}": of("affect_labels_per_answer")},
              says="If it grows on open labels, the reward may be hacked."),
        Panel("Evidence that departs from retrieval order", {"{{run}}": of("affect_reordered_share")}, "percentunit"),
        Panel("Tokens of an episode", {
            "generated": of("affect_generated_tokens_per_episode"), "prompts": of("affect_prompt_tokens_per_episode"),
        }),
    ],
)  # fmt: skip

ENGINES = Dashboard(
    "engines",
    "AffectRL: engines",
    [
        Panel("Generated tokens per second", {"{{actor}}": rate("affect_engine_generated_tokens_total")}),
        Panel("Share of the time in steps", {"{{actor}}": rate("affect_engine_busy_seconds_total")}, "percentunit"),
        Panel("Share of the time in which episodes wait for retrieval", {
            "{{actor}}": rate("affect_engine_elsewhere_seconds_total"),
        }, "percentunit"),
        Panel("KV cache in use", {"{{actor}}": of("affect_engine_kv_cache_use")}, "percentunit"),
        Panel("Requests", {
            "{{actor}} running": of("affect_engine_running_requests"),
            "{{actor}} waiting": of("affect_engine_waiting_requests"),
        }),
        Panel("Prompt tokens from the prefix cache", {
            "{{actor}}": per("affect_engine_cached_tokens_total", "affect_engine_prompt_tokens_total", "run, actor"),
        }, "percentunit"),
        Panel("Steps per second", {"{{actor}}": rate("affect_engine_steps_total")}),
        Panel("Steps of a rollout, all engines", {"{{run}}": of("affect_rollout_engine_steps")}),
        Panel("Weight version", {
            "published": of("affect_weight_version"), "{{actor}}": of("affect_engine_weight_version"),
        }),
        Panel("Age of what is learned from, weight versions", {
            "mean over tokens": of("affect_token_age_versions"), "oldest token": of("affect_staleness_versions"),
        }),
        Panel("Means over a rollout", {
            "KV cache": of("affect_rollout_kv_cache_use"),
            "prefix cache": of("affect_rollout_cached_share"),
        }, "percentunit"),
        Panel("vLLM: requests", {
            "{{actor}} running": vllm("num_requests_running"), "{{actor}} waiting": vllm("num_requests_waiting"),
        }, says="vLLM's own panels need rollout.vllm_statistics: true."),
        Panel("vLLM: KV cache in use", {"{{actor}}": vllm("kv_cache_usage_perc")}, "percentunit"),
        Panel("vLLM: preemptions per second", {
            "{{actor}}": f"rate({vllm('num_preemptions_total')}[$__rate_interval])",
        }, says="The KV cache was full; raise it, or lower rollout.max_num_seqs."),
        Panel("vLLM: time to the first token, 95 %", {
            "all engines": "histogram_quantile(0.95, sum by (le) "
            f"(rate({vllm('time_to_first_token_seconds_bucket')}[$__rate_interval])))",
        }, "s"),
    ],
)  # fmt: skip

RETRIEVAL = Dashboard(
    "retrieval",
    "AffectRL: retrieval",
    [
        Panel("Searches per second", {"{{run}}": rate("affect_retrieval_searches_total")}),
        Panel("Latency in the service", {
            "mean": per("affect_retrieval_seconds_total", "affect_retrieval_searches_total", "run"),
            "95 % of the latest": of("affect_retrieval_latency_p95_seconds"),
        }, "s"),
        Panel("Latency as episodes see it, mean of a step", {"{{run}}": of("affect_rollout_search_seconds")}, "s"),
        Panel("Queries in a call of the encoder", {
            "{{run}}": per("affect_retrieval_queries_total", "affect_retrieval_batches_total", "run"),
        }),
        Panel("Queries waiting for the encoder", {"{{run}}": of("affect_retrieval_waiting_queries")}),
        Panel("Searches that lack a shard", {
            "now": per("affect_retrieval_degraded_total", "affect_retrieval_searches_total", "run"),
            "of a step": of("affect_rollout_degraded_share"),
            "episodes of a step": of("affect_degraded_episode_share"),
        }, "percentunit"),
        Panel("Seconds of a shard's answer", {
            "{{shard}}": per("affect_shard_seconds_total", "affect_shard_searches_total", "run, shard"),
        }, "s"),
        Panel("Shards that did not answer", {"{{shard}}": rate("affect_shard_failures_total")}),
    ],
)  # fmt: skip

LEARNER = Dashboard(
    "learner",
    "AffectRL: learner",
    [
        Panel("Losses", {"{{part}}": of("affect_loss")}),
        Panel("Gradient norm", {"policy": of("affect_grad_norm"), "critic": of("affect_critic_grad_norm")}),
        Panel("Learning rate", {"{{run}}": of("affect_learning_rate")}),
        Panel("Seconds of an update", {
            "prepare": of("affect_learner_prepare_seconds"), "optimise": of("affect_learner_optimise_seconds"),
            "whole": of("affect_step_seconds", part="learning"),
        }, "s"),
        Panel("Tokens per second", {"{{run}}": of("affect_learner_tokens_per_second")}),
        Panel("Tokens of a step", {"{{run}}": of("affect_learner_tokens")}),
        Panel("Tokens whose ratio was clipped", {"{{agent}}": of("affect_agent_clip_share")}, "percentunit"),
        Panel("Importance ratio", {
            "{{agent}} mean": of("affect_agent_ratio"), "{{agent}} largest": of("affect_agent_ratio_max"),
        }),
        Panel("How far an update moved, KL", {"{{agent}}": of("affect_agent_update_kl")}),
        Panel("Engine against learner, log-prob of a token", {
            "mean": of("affect_logprob_gap_mean"), "largest": of("affect_logprob_gap_max"),
        }, says="Another precision, other kernels or older weights; without these about 1e-6."),
        Panel("Correction of that difference", {
            "{{agent}}": of("affect_agent_correction"), "first ratio": of("affect_first_ratio"),
        }),
        Panel("Published weights", {"{{run}}": of("affect_sync_bytes")}, "bytes"),
        Panel("Seconds of new weights", {
            "prepared": of("affect_sync_pack_seconds"), "loaded": of("affect_sync_load_seconds"),
        }, "s", says="Engines stand still while they load."),
    ],
)  # fmt: skip

FAULTS = Dashboard(
    "faults",
    "AffectRL: faults",
    [
        Panel("Engines in service", {"{{actor}}": of("affect_engine_healthy")}),
        Panel("Failures of engines", {
            "{{actor}}": of("affect_engine_faults_total"), "retired": of("affect_pool_retired_total"),
        }),
        Panel("Episodes played again after a loss", {"{{run}}": of("affect_pool_replayed_total")}),
        Panel("Learners lost", {"{{run}}": of("affect_counted_total", part="learners_lost")},
              says="After each, another one went on from the last checkpoint."),
        Panel("Episodes too old, left out, or lost with two engines", {
            "too old": of("affect_counted_total", part="stale"), "left out": of("affect_counted_total", part="dropped"),
            "lost": of("affect_counted_total", part="lost"),
        }),
        Panel("Engines behind the published weights, versions", {
            "{{actor}}": f"max by (run) ({of('affect_weight_version')}) - on (run) group_right () "
            f"{of('affect_engine_weight_version')}",
        }),
        Panel("Shards that did not answer", {
            "{{shard}}": of("affect_shard_failures_total"), "{{shard}} killed": of("affect_shard_restarts_total"),
        }),
        Panel("Searches that lack a shard", {"{{run}}": of("affect_retrieval_degraded_total")}),
        Panel("Seconds lost to waiting", {
            "learner, for episodes": of("affect_step_seconds", part="rollout"),
            "engines": of("affect_step_seconds", part="engines_waited"),
            "episodes, for retrieval": of("affect_step_seconds", part="retrieval"),
        }, "s"),
    ],
)  # fmt: skip

WARM = Dashboard(
    "warm-start",
    "AffectRL: warm start",
    [
        Panel("Loss, all agents", {"{{run}}": of("affect_sft_loss")}),
        Panel("Loss of a token", {"{{agent}}": of("affect_sft_agent_loss")}),
        Panel("Answer tokens that the policy would have chosen", {
            "{{agent}}": of("affect_sft_agent_accuracy"),
        }, "percentunit"),
        Panel("Learning rate", {"{{run}}": of("affect_sft_learning_rate")}),
        Panel("Gradient norm", {"{{run}}": of("affect_sft_grad_norm")}),
        Panel("Balance of the experts", {"{{run}}": of("affect_sft_balance")}, says="1: they share the work evenly."),
    ],
)  # fmt: skip

DASHBOARDS = (OVERVIEW, WARM, AGENTS, ENGINES, RETRIEVAL, LEARNER, FAULTS)


def grafana(dashboard: Dashboard) -> dict[str, Any]:
    """The dashboard as Grafana's JSON."""
    return {
        "uid": f"affect-{dashboard.name}",
        "title": dashboard.title,
        "tags": ["affect-rl"],
        "schemaVersion": 39,
        "editable": True,
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "links": [{
            "type": "dashboards", "title": "AffectRL", "tags": ["affect-rl"], "asDropdown": False, "icon": "",
            "tooltip": "", "targetBlank": False, "includeVars": True, "keepTime": True,
        }],
        "templating": {"list": [
            {"name": "datasource", "type": "datasource", "query": "prometheus", "hide": 2},
            {
                "name": "run", "type": "query", "label": "Run", "datasource": DATASOURCE, "multi": True,
                "includeAll": True, "allValue": ".*", "current": {"text": ["All"], "value": ["$__all"]}, "refresh": 2,
                "query": f"label_values({{__name__=~'{EXPORTED}affect_(step|sft_loss)'}}, run)",
            },
        ]},
        "panels": [_panel(number, panel) for number, panel in enumerate(dashboard.panels)],
    }  # fmt: skip


def _panel(number: int, panel: Panel) -> dict[str, Any]:
    row, column = divmod(number, IN_A_ROW)
    return {
        "id": number + 1,
        "type": "timeseries",
        "title": panel.title,
        "description": panel.says,
        "datasource": DATASOURCE,
        "gridPos": {"x": column * WIDTH, "y": row * HEIGHT, "w": WIDTH, "h": HEIGHT},
        "fieldConfig": {"defaults": {"unit": panel.unit}, "overrides": []},
        "options": {
            "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True, "calcs": []},
            "tooltip": {"mode": "multi", "sort": "desc"},
        },
        "targets": [
            {"refId": chr(ord("A") + place), "datasource": DATASOURCE, "expr": expr, "legendFormat": legend}
            for place, (legend, expr) in enumerate(panel.queries.items())
        ],
    }


def prometheus_config(ray_dir: str = "/tmp/ray") -> dict[str, Any]:
    """A configuration for a Prometheus on the head node: Ray keeps the list of its nodes' metrics ports in a file."""
    found_in = f"{ray_dir}/session_latest/prom_metrics_service_discovery.json"
    return {
        "global": {"scrape_interval": "10s", "evaluation_interval": "10s"},
        "scrape_configs": [{"job_name": "ray", "file_sd_configs": [{"files": [found_in]}]}],
    }


def install(directory: Path, ray_dir: str = "/tmp/ray") -> list[Path]:
    """Write ``affect-<name>.json`` for every dashboard, and ``prometheus.yml``; returns their paths."""
    directory.mkdir(parents=True, exist_ok=True)
    texts = {f"affect-{page.name}.json": json.dumps(grafana(page), indent=1) + "\n" for page in DASHBOARDS}
    texts["prometheus.yml"] = yaml.safe_dump(prometheus_config(ray_dir), sort_keys=False)
    for name, text in texts.items():
        with whole_file(directory / name) as partial:
            partial.write_text(text)
    return [directory / name for name in texts]
