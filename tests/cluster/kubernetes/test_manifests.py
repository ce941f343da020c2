"""The manifests against KubeRay's schemas, and against what the jobs that they start ask for."""

from __future__ import annotations

import copy
import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from jsonschema import Draft202012Validator

from affect_rl.config.actors import Stage, actors_of
from affect_rl.config.load import Config, load_config
from cluster.runtime.capacity import Capacity, Node, shortages

Json = dict[str, Any]

REPOSITORY = Path(__file__).resolve().parents[3]
MANIFESTS = REPOSITORY / "cluster" / "kubernetes"
IN_THE_IMAGE = "/opt/affect-rl/"
UNITS = {"Mi": 2**20, "Gi": 2**30}


def manifest(name: str) -> Json:
    return yaml.safe_load((MANIFESTS / f"{name}.yaml").read_text())


def ray_cluster(name: str) -> Json:
    """The specification of the Ray cluster, whether it comes with a job or not."""
    spec = manifest(name)["spec"]
    return spec.get("rayClusterSpec", spec)


def pods(name: str) -> Iterator[Json]:
    """The specifications of all pods, the submitter's included."""
    spec, cluster = manifest(name)["spec"], ray_cluster(name)
    yield cluster["headGroupSpec"]["template"]["spec"]
    for group in cluster["workerGroupSpecs"]:
        yield group["template"]["spec"]
    if "submitterPodTemplate" in spec:
        yield spec["submitterPodTemplate"]["spec"]


def containers(pod: Json) -> list[Json]:
    return pod["containers"] + pod.get("initContainers", [])


def ray_groups(name: str) -> list[tuple[Json, Json, Json]]:
    """``rayStartParams``, pod and Ray's container of the head and of each group of workers."""
    cluster = ray_cluster(name)
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    pods = [group["template"]["spec"] for group in groups]
    return [(group["rayStartParams"], pod, pod["containers"][0]) for group, pod in zip(groups, pods, strict=True)]


def number(quantity: str) -> int:
    return int(quantity[:-2]) * UNITS[quantity[-2:]] if quantity[-2:] in UNITS else int(quantity)


# -- the schemas ---------------------------------------------------------------------------------

KINDS = {"RayJob": "rayjobs", "RayCluster": "rayclusters"}


@pytest.fixture(scope="session")
def schemas() -> dict[str, Json]:
    """The schema of each kind, of the version that clusters store."""
    directory = REPOSITORY.parent / "shared" / "kuberay"
    if not directory.is_dir():
        pytest.skip("no ../shared/kuberay beside the repository")
    found = {}
    for kind, plural in KINDS.items():
        definition = yaml.load((directory / f"ray.io_{plural}.yaml").read_text(), yaml.CSafeLoader)
        (version,) = (v for v in definition["spec"]["versions"] if v["storage"])
        found[kind] = strict(version["schema"]["openAPIV3Schema"])
        found[kind]["properties"]["apiVersion"]["const"] = f"{definition['spec']['group']}/{version['name']}"
    return found


def strict(schema: Json) -> Json:
    """A structural schema of Kubernetes as a JSON schema that refuses unknown fields, as `kubectl apply` does.

    Rules in CEL (``x-kubernetes-validations``) are left out.
    """
    result = {}
    for key, value in schema.items():
        if key == "properties":
            result[key] = {name: strict(field) for name, field in value.items()}
        elif key in ("items", "additionalProperties") and isinstance(value, dict):
            result[key] = strict(value)
        elif key in ("type", "enum", "pattern", "minimum", "maximum", "required", "anyOf"):
            result[key] = value
    if "properties" in schema and not schema.get("x-kubernetes-preserve-unknown-fields"):
        result.setdefault("additionalProperties", False)
    if schema.get("nullable"):
        result["type"] = [schema["type"], "null"]
    return result


def problems(document: Json, schema: Json) -> list[str]:
    return [f"{error.json_path}: {error.message}" for error in Draft202012Validator(schema).iter_errors(document)]


JOBS = ["cpu", "gpu"]
NAMES = [f"{job}-{kind}" for job in JOBS for kind in ("job", "cluster")]


@pytest.mark.parametrize("name", NAMES)
def test_it_has_the_form_that_kuberay_wants(name: str, schemas: dict[str, Json]) -> None:
    document = manifest(name)
    assert problems(document, schemas[document["kind"]]) == []


WRONG: dict[str, tuple[tuple[str | int, ...], str, object]] = {
    "a misspelt field of the job": (("spec",), "backOffLimit", 3),
    "a misspelt field of the Ray cluster": (("spec", "rayClusterSpec"), "enableInTreeAutoscalling", True),
    "a misspelt field of a pod": (
        ("spec", "rayClusterSpec", "workerGroupSpecs", 0, "template", "spec", "containers", 0),
        "volumeMount",
        [],
    ),
    "a number that is to be text": (("spec", "rayClusterSpec", "headGroupSpec", "rayStartParams"), "num-cpus", 0),
    "a version that the autoscaler does not have": (("spec", "rayClusterSpec", "autoscalerOptions"), "version", "v3"),
    "another version of the interface": ((), "apiVersion", "ray.io/v1alpha1"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_mistake_is_found(wrong: str, schemas: dict[str, Json]) -> None:
    path, field, value = WRONG[wrong]
    place = document = copy.deepcopy(manifest("gpu-job"))
    for step in path:
        place = place[step]
    place[field] = value
    (problem,) = problems(document, schemas["RayJob"])
    assert field in problem


def test_the_claim_has_the_form_of_a_claim(schemas: dict[str, Json]) -> None:
    """Pods may bring claims of their own, so the schema of a Ray cluster holds that of a claim."""
    pod = schemas["RayCluster"]["properties"]["spec"]["properties"]["headGroupSpec"]["properties"]["template"]
    volume = pod["properties"]["spec"]["properties"]["volumes"]["items"]
    claim = volume["properties"]["ephemeral"]["properties"]["volumeClaimTemplate"]["properties"]["spec"]
    assert problems(manifest("storage")["spec"], claim) == []


# -- what the jobs ask for -----------------------------------------------------------------------


def entrypoint(job: str) -> list[str]:
    return shlex.split(manifest(f"{job}-job")["spec"]["entrypoint"])


def configuration(job: str, *more: str) -> Config:
    """What the entrypoint's command trains with, and with `more` settings."""
    _, _, _, file, *settings = entrypoint(job)
    return load_config(REPOSITORY / file.removeprefix(IN_THE_IMAGE), [*settings, *more])


@pytest.mark.parametrize("job", JOBS)
def test_the_entrypoint_goes_on_with_a_configuration_of_the_image(job: str) -> None:
    program, command, resume, file, *_ = entrypoint(job)
    assert (program, command, resume) == ("affect-rl", "run", "--resume") and file.startswith(IN_THE_IMAGE)
    assert f"WORKDIR {IN_THE_IMAGE.rstrip('/')}\n" in (MANIFESTS / f"Dockerfile.{job}").read_text()
    configuration(job)


@pytest.mark.parametrize("job", JOBS)
def test_files_of_a_run_lie_where_all_pods_see_them(job: str) -> None:
    config = configuration(job)
    for path in (config.runs_dir, config.data.dir):
        assert path.startswith("/shared/")
    claim = manifest("storage")
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    for _, pod, container in ray_groups(f"{job}-job"):
        (mount,) = (m for m in container["volumeMounts"] if m["mountPath"] == "/shared")
        (volume,) = (v for v in pod["volumes"] if v["name"] == mount["name"])
        assert volume["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]


def workers(job: str) -> list[Node]:
    """The nodes that are there before the job starts, as Ray counts them; the head offers no CPU."""
    nodes = []
    for group in ray_cluster(f"{job}-job")["workerGroupSpecs"]:
        limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
        cpus = int(group["rayStartParams"].get("num-cpus", limits["cpu"]))
        nodes += group["minReplicas"] * [Node(cpus, int(limits.get("nvidia.com/gpu", 0)))]
    return nodes


def lacking(config: Config, nodes: list[Node]) -> list[str]:
    """What the stages of a job would lack on these nodes."""
    cluster = Capacity("the cluster", tuple(nodes))
    return [line for stage in get_args(Stage) for line in shortages(stage, actors_of(config, stage), cluster)]


@pytest.mark.parametrize("job", JOBS)
def test_the_job_fits_on_workers_that_are_there_from_the_start(job: str) -> None:
    assert lacking(configuration(job), workers(job)) == []
    cluster = ray_cluster(f"{job}-job")
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    for group in cluster["workerGroupSpecs"]:
        assert group["minReplicas"] <= group["replicas"] < group["maxReplicas"]


def test_a_job_that_has_grown_does_not_fit() -> None:
    problems = lacking(configuration("gpu", "rollout.workers=3"), workers("gpu"))
    assert any(problem.startswith("train needs 7 GPUs") for problem in problems)


@pytest.mark.parametrize("job", JOBS)
def test_a_cluster_that_stays_is_the_one_that_comes_with_the_job(job: str) -> None:
    assert ray_cluster(f"{job}-cluster") == ray_cluster(f"{job}-job")


@pytest.mark.parametrize("name", NAMES)
def test_versions_are_those_of_the_project(name: str) -> None:
    lock = (REPOSITORY / "requirements-cpu.lock").read_text()
    assert f"ray=={ray_cluster(name)['rayVersion']}\n" in lock
    version = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["version"]
    job = name.split("-")[0]
    image = f"registry.example/affect-rl:{version}-{job}"
    assert {container["image"] for pod in pods(name) for container in containers(pod)} == {image}
    assert f"-t {image} ." in (MANIFESTS / f"Dockerfile.{job}").read_text()


# -- safety --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_pods_fit_kubernetes_restricted_standard(name: str) -> None:
    every = [container["securityContext"] for pod in pods(name) for container in containers(pod)]
    every.append(ray_cluster(name)["autoscalerOptions"]["securityContext"])
    for context in every:
        assert context == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    for pod in pods(name):
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert not {"hostNetwork", "hostPID", "hostIPC"} & pod.keys()
        assert not any("hostPath" in volume for volume in pod.get("volumes", []))


@pytest.mark.parametrize("job", JOBS)
def test_the_image_runs_as_the_user_of_the_pods(job: str) -> None:
    users = re.findall(r"^USER (.*)$", (MANIFESTS / f"Dockerfile.{job}").read_text(), re.MULTILINE)
    for pod in pods(f"{job}-job"):
        context = pod["securityContext"]
        assert users[-1] == f"{context['runAsUser']}:{context['runAsGroup']}"


@pytest.mark.parametrize("name", NAMES)
def test_ray_asks_for_a_token(name: str) -> None:
    assert ray_cluster(name)["authOptions"]["mode"] == "token"


@pytest.mark.parametrize("name", NAMES)
def test_the_object_store_fits_into_shared_memory_and_that_into_the_pod(name: str) -> None:
    for params, pod, container in ray_groups(name):
        (mount,) = (m for m in container["volumeMounts"] if m["mountPath"] == "/dev/shm")
        (volume,) = (v for v in pod["volumes"] if v["name"] == mount["name"])
        assert volume["emptyDir"]["medium"] == "Memory"
        shared = number(volume["emptyDir"]["sizeLimit"])
        assert int(params["object-store-memory"]) <= shared / 2
        assert shared <= number(container["resources"]["limits"]["memory"]) / 2


# -- stopping ------------------------------------------------------------------------------------


@pytest.mark.parametrize("job", JOBS)
def test_a_stopped_driver_has_time_for_a_checkpoint(job: str) -> None:
    """Whether the job is stopped, by a client of either kind, or its pod is."""
    _, pod, head = ray_groups(f"{job}-job")[0]
    (wait,) = (variable["value"] for variable in head["env"] if variable["name"] == "RAY_JOB_STOP_WAIT_TIME_S")
    assert int(wait) < pod["terminationGracePeriodSeconds"]
    assert manifest(f"runtime-env-{job}")["env_vars"]["RAY_JOB_STOP_WAIT_TIME_S"] == wait
