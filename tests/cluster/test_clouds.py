"""The files that start clusters: each against what its own reader says of it, without a cloud."""

from __future__ import annotations

import copy
import importlib.util
import json
import re
import shlex
import socket
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from datainf_ray.cluster.facts import has_labels
from datainf_ray.config import load_config, parse_assignment

ROOT = Path(__file__).parents[2]
AWS, GCP, KUBERAY = "cluster.yaml", "jobs/cluster-gcp.yaml", "jobs/rayjob.yaml"
KINDS = ("head", "gpu-spot", "gpu-on-demand")
ROLE, MARKET = "datainf/role", "ray.io/market-type"

each_cluster = pytest.mark.parametrize("name", [AWS, GCP])
each_kind = pytest.mark.parametrize("kind", KINDS)


def read(name: str) -> dict[str, Any]:
    tree: dict[str, Any] = yaml.safe_load((ROOT / name).read_text())
    return tree


def workers(cluster: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The kinds of nodes of a cluster file but the head's."""
    return {name: kind for name, kind in cluster["available_node_types"].items() if name != cluster["head_node_type"]}


def broken(tree: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    """A copy with another value at a dotted path."""
    tree = copy.deepcopy(tree)
    *parents, last = path.split(".")
    place: Any = tree
    for key in parents:
        place = place[int(key) if isinstance(place, list) else key]
    place[last] = value
    return tree


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever would call a cloud fails here."""

    def refuse(*arguments: object) -> None:
        raise AssertionError(f"a connection: {arguments}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


# Both cluster files, as Ray reads them


def accepted(cluster: dict[str, Any]) -> dict[str, Any]:
    """What Ray makes of a cluster file: with its defaults, and checked against its schema."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    whole: dict[str, Any] = prepare_config(copy.deepcopy(cluster))
    validate_config(whole)
    return whole


@each_cluster
@pytest.mark.usefixtures("offline")
def test_ray_accepts_the_file(name: str) -> None:
    whole = accepted(read(name))
    assert whole["head_setup_commands"][:-1] == whole["worker_setup_commands"] == read(name)["setup_commands"]


@each_cluster
@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("max_worker", 8),
        ("rsync_excludes", []),
        ("available_node_types.gpu-spot.min_worker", 0),
        ("available_node_types.gpu-spot.resources", {"GPU": 0.5}),
        ("available_node_types.gpu-spot.labels", {"spot": True}),
        ("head_node_type", "heads"),
    ],
)
@pytest.mark.usefixtures("offline")
def test_ray_refuses_a_slip(name: str, path: str, value: Any) -> None:
    from jsonschema import ValidationError

    with pytest.raises((ValidationError, ValueError)):
        accepted(broken(read(name), path, value))


@each_cluster
def test_the_head_takes_no_worker(name: str) -> None:
    cluster = read(name)
    head = cluster["available_node_types"][cluster["head_node_type"]]
    assert head["resources"] == {"CPU": 0}
    assert head["max_workers"] == 0
    assert head["labels"] == {ROLE: "head"}
    assert "--num-cpus=0" in cluster["head_start_ray_commands"][-1]


@each_cluster
def test_gpu_nodes_come_when_asked_for_and_say_what_they_are(name: str) -> None:
    from ray._private.label_utils import validate_node_label_syntax

    cluster = read(name)
    kinds = workers(cluster)
    for kind in kinds.values():
        assert kind["resources"]["GPU"] == 1
        assert (kind["min_workers"], kind["max_workers"]) == (0, cluster["max_workers"])
        assert kind["labels"][ROLE] == "worker"
        validate_node_label_syntax(kind["labels"])
    markets = {kind["labels"][MARKET]: kind.get("priority", 0) for kind in kinds.values()}
    assert markets.keys() == {"spot", "on-demand"}
    assert markets["spot"] > markets["on-demand"]


@each_cluster
def test_the_package_is_installed_from_what_is_mounted(name: str) -> None:
    cluster = read(name)
    extra = {"aws": "s3", "gcp": "gcs"}[cluster["provider"]["type"]]
    assert f'pip install -q -c constraints.txt -e ".[{extra}]"' in cluster["setup_commands"][-1]
    checkout = f"/home/{cluster['auth']['ssh_user']}/datainf-ray/"
    mounted = {there.removeprefix(checkout): here for there, here in cluster["file_mounts"].items()}
    assert all(here == f"./{there}" and (ROOT / here).exists() for there, here in mounted.items())
    project = (ROOT / "pyproject.toml").read_text()
    needed = re.findall(r'^(?:readme = |license-files = \[|packages = \[)"([^"]+)"', project, re.M)
    assert len(needed) == 3
    assert mounted.keys() >= {*needed, "pyproject.toml", "constraints.txt", "jobs"}


@each_cluster
def test_scratch_space_is_made_before_it_is_used(name: str) -> None:
    cluster = read(name)
    said = "\n".join(cluster["setup_commands"])
    made = re.findall(r"install -d -o \S+ (.+)", said)[0].split()
    starts = cluster["head_start_ray_commands"][-1] + cluster["worker_start_ray_commands"][-1]
    spilled = re.findall(r"--object-spilling-directory=(\S+)", starts)
    cached = re.findall(r"(?:DATAINF_CACHE|HF_HOME)=(\S+)", said)
    assert (len(spilled), len(cached)) == (2, 2)
    assert {*spilled, *cached} == set(made)


@each_cluster
def test_the_commands_are_shell(name: str) -> None:
    """As Ray sends them: in brackets, after commands of its own."""
    from ray.autoscaler._private.command_runner import _with_interactive

    cluster = read(name)
    for key in ("setup", "head_setup", "worker_setup", "head_start_ray", "worker_start_ray"):
        for command in cluster[f"{key}_commands"]:
            sent = shlex.split(_with_interactive(command)[-1])[0]
            assert command in sent
            subprocess.run(["bash", "-n", "-c", sent], check=True)


@each_cluster
def test_ray_start_knows_its_options(name: str) -> None:
    from ray.scripts.scripts import start

    cluster = read(name)
    known = {option for parameter in start.params for option in parameter.opts}
    for command in (cluster["head_start_ray_commands"][-1], cluster["worker_start_ray_commands"][-1]):
        assert set(re.findall(r"--[a-z-]+", command)) <= known
        assert "--metrics-export-port=8080" in command


@pytest.mark.parametrize("name", [AWS, GCP, KUBERAY])
def test_what_is_asked_for_by_label_is_there(name: str) -> None:
    """Every selector of jobs/chat.yaml, and those that a file's comments show, fits one of its kinds of nodes."""
    tree = read(name)
    if name == KUBERAY:
        labels = [group["labels"] for group in tree["spec"]["rayClusterSpec"]["workerGroupSpecs"]]
    else:
        labels = [kind["labels"] for kind in workers(tree).values()]
    asked = load_config(ROOT / "jobs/chat.yaml").cluster
    shown = re.findall(r"^#\s+(?:label|fallback)_selector: (\{.*?\})", (ROOT / name).read_text(), re.MULTILINE)
    assert bool(shown) is (name == AWS)
    for selector in (asked.label_selector, asked.fallback_selector, *map(yaml.safe_load, shown)):
        assert sum(has_labels(there, selector) for there in labels) == 1


# AWS: against EC2's requests, as botocore knows them, and against moto's EC2


def ec2_report(node_config: dict[str, Any]) -> str:
    """What is wrong with a node's configuration as an EC2 request, with what Ray adds to it; "" where it is right."""
    from botocore.session import Session
    from botocore.validate import ParamValidator

    added = {
        "MinCount": 1,
        "MaxCount": 1,
        "KeyName": "ray-autoscaler_us-west-2",
        "SubnetId": "subnet-1",
        "SecurityGroupIds": ["sg-1"],
        "TagSpecifications": [{"ResourceType": "instance", "Tags": [{"Key": "k", "Value": "v"}]}],
    }
    shape = Session().get_service_model("ec2").operation_model("RunInstances").input_shape
    report: str = ParamValidator().validate(node_config | added, shape).generate_report()
    return report


@each_kind
@pytest.mark.usefixtures("offline")
def test_an_aws_node_is_an_ec2_request(kind: str) -> None:
    assert ec2_report(read(AWS)["available_node_types"][kind]["node_config"]) == ""


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("InstanceTyp", "m7i.xlarge"),
        ("InstanceMarketOptions", {"MarketTyp": "spot"}),
        ("InstanceMarketOptions", "spot"),
        ("BlockDeviceMappings.0.Ebs", {"VolumeSizeGb": 100}),
        ("BlockDeviceMappings.0.Ebs.VolumeSize", "100"),
        ("IamInstanceProfile", "datainf-ray"),
    ],
)
@pytest.mark.usefixtures("offline")
def test_a_slip_in_an_aws_node_is_found(path: str, value: Any) -> None:
    node = read(AWS)["available_node_types"]["gpu-spot"]["node_config"]
    assert path.split(".")[0] in ec2_report(broken(node, path, value))


def test_aws_kinds_differ_in_their_market_alone() -> None:
    kinds = read(AWS)["available_node_types"]
    spot, demand = (kinds[kind]["node_config"] for kind in ("gpu-spot", "gpu-on-demand"))
    assert spot == demand | {"InstanceMarketOptions": {"MarketType": "spot"}}


@pytest.mark.cluster
@pytest.mark.usefixtures("bucket")
def test_ray_starts_and_ends_aws_nodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray's own AWS provider, with the server of the `bucket` fixture as EC2 and IAM."""
    import boto3
    from ray.autoscaler._private.aws.node_provider import AWSNodeProvider
    from ray.autoscaler.tags import TAG_RAY_LAUNCH_CONFIG, TAG_RAY_NODE_KIND, TAG_RAY_USER_NODE_TYPE

    monkeypatch.setenv("HOME", str(tmp_path))  # for the key pair
    cluster = read(AWS)
    ec2 = boto3.client("ec2", region_name=cluster["provider"]["region"])
    boto3.client("iam").create_instance_profile(InstanceProfileName="datainf-ray")

    def nodes() -> list[dict[str, Any]]:
        return [node for group in ec2.describe_instances()["Reservations"] for node in group["Instances"]]

    written = {name: kind["resources"] for name, kind in workers(cluster).items()}
    for kind in cluster["available_node_types"].values():
        kind["resources"] = {}  # so that Ray asks EC2 what the machines have
    whole = AWSNodeProvider.fillout_available_node_types_resources(accepted(cluster))
    for name, resources in written.items():
        assert resources.items() <= whole["available_node_types"][name]["resources"].items()

    whole = AWSNodeProvider.bootstrap_config(whole)
    provider = AWSNodeProvider(whole["provider"], whole["cluster_name"])
    for name, kind in whole["available_node_types"].items():
        tags = {TAG_RAY_USER_NODE_TYPE: name, TAG_RAY_NODE_KIND: "worker", TAG_RAY_LAUNCH_CONFIG: "-"}
        provider.create_node_with_resources_and_labels(kind["node_config"], tags, 1, {}, {})
    kinds = {tag["Value"]: node for node in nodes() for tag in node["Tags"] if tag["Key"] == TAG_RAY_USER_NODE_TYPE}
    assert {name: node.get("InstanceLifecycle") for name, node in kinds.items()} == {
        "head": None,
        "gpu-on-demand": None,
        "gpu-spot": "spot",
    }
    assert all(node["IamInstanceProfile"]["Arn"].endswith("/datainf-ray") for node in kinds.values())
    [gpu] = ec2.describe_instance_types(InstanceTypes=[kinds["gpu-spot"]["InstanceType"]])["InstanceTypes"]
    assert gpu["InstanceStorageInfo"]["NvmeSupport"] == "required"  # what the setup commands count on

    provider.terminate_nodes(provider.non_terminated_nodes({}))
    assert provider.non_terminated_nodes({}) == []
    assert {node["State"]["Name"] for node in nodes()} == {"terminated"}  # not stopped


# Google Cloud: against Compute Engine's description of itself where google-api-python-client, which brings it, is
# installed; else what is left are the names of the keys, as they stand in it


GCP_KEYS = {
    "": {"machineType", "guestAccelerators", "disks", "serviceAccounts", "scheduling"},
    "guestAccelerators": {"acceleratorType", "acceleratorCount"},
    "disks": {"boot", "autoDelete", "type", "interface", "initializeParams"},
    "initializeParams": {"diskSizeGb", "sourceImage", "diskType"},
    "serviceAccounts": {"email", "scopes"},
    "scheduling": {"onHostMaintenance", "automaticRestart", "provisioningModel", "instanceTerminationAction"},
}


def unknown(value: Any, place: str = "") -> list[str]:
    """The keys of a node's configuration that are not among those above."""
    if isinstance(value, list):
        return [text for inner in value for text in unknown(inner, place)]
    if not isinstance(value, dict):
        return []
    found = [f"{place}.{key}" for key in value if key not in GCP_KEYS.get(place, ())]
    return found + [text for key, inner in value.items() for text in unknown(inner, key)]


def misfits(value: Any, schema: dict[str, Any], schemas: dict[str, Any], where: str = "") -> list[str]:
    """What in a value is not as a schema of a discovery document says."""
    schema = schemas[schema["$ref"]] if "$ref" in schema else schema
    kinds = {"object": dict, "array": list, "boolean": bool, "integer": int, "string": (str, int)}  # int64 is a string
    if not isinstance(value, kinds[schema["type"]]):
        return [f"{where}: {value!r} is no {schema['type']}"]
    if isinstance(value, list):
        return [text for inner in value for text in misfits(inner, schema["items"], schemas, where)]
    if not isinstance(value, dict):
        return [f"{where}: {value}"] if value not in schema.get("enum", [value]) else []
    known = schema.get("properties", {})
    found = [f"{where}.{key}" for key in value if key not in known]
    for key in value.keys() & known:
        found += misfits(value[key], known[key], schemas, f"{where}.{key}")
    return found


@pytest.fixture(scope="module")
def compute_engine() -> dict[str, Any]:
    """The schemas of Compute Engine's requests, by name."""
    package = importlib.util.find_spec("googleapiclient")
    for place in (package.submodule_search_locations or ()) if package is not None else ():
        file = Path(place) / "discovery_cache" / "documents" / "compute.v1.json"
        if file.is_file():
            schemas: dict[str, Any] = json.loads(file.read_text())["schemas"]
            return schemas
    pytest.skip("google-api-python-client is not installed")


@each_kind
def test_a_gcp_node_has_the_keys_of_an_instance(kind: str) -> None:
    node = read(GCP)["available_node_types"][kind]["node_config"]
    assert unknown(node) == []
    assert unknown(node | {"guestAccelerator": []}) == [".guestAccelerator"]
    assert unknown(broken(node, "disks.0.bot", True)) == ["disks.bot"]


@each_kind
def test_a_gcp_node_is_an_instance(kind: str, compute_engine: dict[str, Any]) -> None:
    node = read(GCP)["available_node_types"][kind]["node_config"]
    instance = {"$ref": "Instance"}
    assert misfits(node, instance, compute_engine) == []
    for path, value in (("disks.0.bot", True), ("disks.0.type", "PERSISTANT"), ("scheduling", [{"preemptible": True}])):
        assert len(misfits(broken(node, path, value), instance, compute_engine)) == 1


def test_places_and_names_agree_in_gcp_nodes() -> None:
    cluster = read(GCP)
    provider = cluster["provider"]
    assert provider["availability_zone"].startswith(provider["region"] + "-")
    for kind in workers(cluster).values():
        node = kind["node_config"]
        ssd = node["disks"][1]["initializeParams"]["diskType"]
        assert ssd.split("/")[:2] == ["zones", provider["availability_zone"]]
        assert f"@{provider['project_id']}." in node["serviceAccounts"][0]["email"]
        assert node["scheduling"]["onHostMaintenance"] == "TERMINATE"  # with a GPU there is no other choice
        assert (node["scheduling"].get("provisioningModel") == "SPOT") is (kind["labels"][MARKET] == "spot")


# KubeRay: pods against Kubernetes' schemas, groups as Ray's autoscaler reads them, the rest by its names of keys


GROUP_KEYS = {"labels", "rayStartParams", "template"}
RAYJOB_KEYS = {
    "entrypoint", "runtimeEnvYAML", "backoffLimit", "shutdownAfterJobFinishes", "ttlSecondsAfterFinished",
    "rayClusterSpec",
}  # fmt: skip


@pytest.fixture
def rayjob() -> dict[str, Any]:
    return read(KUBERAY)


@pytest.fixture
def raycluster(rayjob: dict[str, Any]) -> dict[str, Any]:
    spec: dict[str, Any] = rayjob["spec"]["rayClusterSpec"]
    return spec


def groups(raycluster: dict[str, Any]) -> list[dict[str, Any]]:
    return [raycluster["headGroupSpec"], *raycluster["workerGroupSpecs"]]


def check_pod(template: dict[str, Any]) -> None:
    validate = pytest.importorskip("kubernetes_validate").validate
    validate({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod"}} | template, "1.33", strict=True)


def test_it_has_the_keys_of_a_rayjob(rayjob: dict[str, Any], raycluster: dict[str, Any]) -> None:
    assert (rayjob["apiVersion"], rayjob["kind"]) == ("ray.io/v1", "RayJob")
    assert rayjob["spec"].keys() == RAYJOB_KEYS
    assert raycluster.keys() == {
        "rayVersion",
        "enableInTreeAutoscaling",
        "autoscalerOptions",
        "headGroupSpec",
        "workerGroupSpecs",
    }
    assert raycluster["autoscalerOptions"].keys() == {"version", "idleTimeoutSeconds"}
    assert raycluster["headGroupSpec"].keys() == GROUP_KEYS
    for group in raycluster["workerGroupSpecs"]:
        assert group.keys() == GROUP_KEYS | {"groupName", "replicas", "minReplicas", "maxReplicas"}


@pytest.mark.usefixtures("offline")
def test_pods_are_pods(raycluster: dict[str, Any]) -> None:
    for group in groups(raycluster):
        check_pod(group["template"])


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("spec.restartPolicies", "Never"),
        ("spec.tolerations.0.operators", "Exists"),
        ("spec.containers.0.resources.limits", ["nvidia.com/gpu"]),
        ("spec.containers.0.ports.0.containerPort", "8080"),
        ("spec.volumes.0.emptyDirs", {}),
    ],
)
@pytest.mark.usefixtures("offline")
def test_a_slip_in_a_pod_is_found(raycluster: dict[str, Any], path: str, value: Any) -> None:
    error = pytest.importorskip("kubernetes_validate").ValidationError
    with pytest.raises(error):
        check_pod(broken(raycluster["workerGroupSpecs"][0]["template"], path, value))


@pytest.mark.usefixtures("offline")
def test_rays_autoscaler_reads_the_groups(raycluster: dict[str, Any]) -> None:
    from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr

    assert raycluster["enableInTreeAutoscaling"] is True
    assert raycluster["autoscalerOptions"]["version"] == "v2"
    derived = _derive_autoscaling_config_from_ray_cr(
        {"metadata": {"name": "datainf-ray", "namespace": "default"}, "spec": raycluster}
    )
    assert derived["available_node_types"][derived["head_node_type"]]["resources"]["CPU"] == 0
    ours = workers(read(AWS))
    assert workers(derived).keys() == ours.keys()
    for name, kind in workers(derived).items():
        assert kind["labels"] == ours[name]["labels"]
        assert kind["resources"]["GPU"] == 1
        assert (kind["min_workers"], kind["max_workers"]) == (0, 8)


def test_scratch_space_is_mounted_in_every_pod(raycluster: dict[str, Any]) -> None:
    for group in groups(raycluster):
        pod = group["template"]["spec"]
        [container] = pod["containers"]
        assert pod["restartPolicy"] == "Never"  # what Ray's autoscaler wants, to take pods away
        assert [volume["name"] for volume in pod["volumes"] if "emptyDir" in volume] == ["scratch"]
        assert container["volumeMounts"] == [{"name": "scratch", "mountPath": "/scratch"}]
        places = {variable["name"]: variable["value"] for variable in container["env"]}
        assert places.keys() == {"DATAINF_CACHE", "HF_HOME"}
        for folder in (group["rayStartParams"]["object-spilling-directory"], *places.values()):
            assert folder.startswith("/scratch/")


def test_pods_have_the_ray_of_the_constraints(raycluster: dict[str, Any]) -> None:
    version = raycluster["rayVersion"]
    assert f"\nray=={version}\n" in (ROOT / "constraints.txt").read_text()
    assert f"FROM rayproject/ray:{version}-py312-gpu\n" in (ROOT / KUBERAY).read_text()


def test_the_rayjob_is_a_run(rayjob: dict[str, Any]) -> None:
    from ray.runtime_env import RuntimeEnv

    RuntimeEnv(**yaml.safe_load(rayjob["spec"]["runtimeEnvYAML"]))
    python, script, config, *rest = shlex.split(rayjob["spec"]["entrypoint"])
    assert (python, set(rest[::2])) == ("python", {"--set"})
    assert (ROOT / script).is_file()
    run = load_config(ROOT / config, **dict(map(parse_assignment, rest[1::2])))
    assert run.cluster.gpus_per_worker == 1
