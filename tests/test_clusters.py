"""The files people apply: fields and types, what fits where, privileges, the Slurm script."""

from __future__ import annotations

import copy
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

from raypref.config import Resources, load, results_of
from raypref.curate.curate import Curation
from raypref.pipeline import RunConfig
from raypref.streaming import shared_worker

ROOT = Path(__file__).resolve().parents[1]
CLUSTERS = ROOT / "clusters"
RECIPES = sorted((CLUSTERS / "recipes").glob("*.toml"))
MANIFESTS = sorted((CLUSTERS / "kuberay").glob("*.yaml"))
RAY_UP = sorted((CLUSTERS / "ray-up").glob("*.yaml"))
SLURM = CLUSTERS / "slurm" / "raypref.sbatch"
TEXTS = [p for p in (*CLUSTERS.rglob("*"), ROOT / ".dockerignore") if p.is_file()]

# What a file may say, level by level: facts of KubeRay's CRDs (ray-operator/config/crd/bases) and
# of Kubernetes' core/v1 and networking/v1, as far as our files use them; what is not named is
# refused. A name with "!" must be there, "*" stands for any name, a set lists the values.
QUANTITY = re.compile(r"\d+(\.\d+)?(m|Ki|Mi|Gi|Ti)?")
STRINGS = {"*": str}
AMOUNTS = {"requests": {"*": QUANTITY}, "limits": {"*": QUANTITY}}
SECRET_KEY = {"secretKeyRef": {"name!": str, "key!": str}}
META = {"name": str, "namespace": str, "labels": STRINGS, "annotations": STRINGS}
LOCKED = {
    "allowPrivilegeEscalation": bool,
    "readOnlyRootFilesystem": bool,
    "capabilities": {"drop": [str]},
}
MOUNT = {"name!": str, "mountPath!": str, "subPath": str, "readOnly": bool}
CONTAINER = {
    "name!": str,
    "image!": str,
    "command": [str],
    "args": [str],
    "securityContext": LOCKED,
    "ports": [{"name": str, "containerPort!": int}],
    "env": [{"name!": str, "value": str, "valueFrom": SECRET_KEY}],
    "envFrom": [{"secretRef": {"name!": str}}],
    "volumeMounts": [MOUNT],
    "resources": AMOUNTS,
}
POD = {
    "automountServiceAccountToken": bool,
    "serviceAccountName": str,
    "restartPolicy": {"Always", "OnFailure", "Never"},
    "securityContext": {
        "runAsNonRoot": bool,
        "runAsUser": int,
        "runAsGroup": int,
        "fsGroup": int,
        "fsGroupChangePolicy": {"OnRootMismatch", "Always"},
        "seccompProfile": {"type!": {"RuntimeDefault", "Unconfined", "Localhost"}},
    },
    "nodeSelector": STRINGS,
    "tolerations": [{"key": str, "operator": {"Exists", "Equal"}, "value": str, "effect": str}],
    "initContainers": [CONTAINER],
    "containers!": [CONTAINER],
    "volumes": [
        {
            "name!": str,
            "emptyDir": {"sizeLimit": QUANTITY, "medium": str},
            "persistentVolumeClaim": {"claimName!": str},
        }
    ],
}
TEMPLATE = {"metadata": META, "spec!": POD}
CLUSTER = {
    "rayVersion": str,
    "authOptions": {"mode": {"disabled", "token"}, "secretName": str},
    "enableInTreeAutoscaling": bool,
    "autoscalerOptions": {
        "idleTimeoutSeconds": int,
        "upscalingMode": {"Default", "Aggressive", "Conservative"},
        "securityContext": LOCKED,
        "volumeMounts": [MOUNT],
        "resources": AMOUNTS,
    },
    "gcsFaultToleranceOptions": {
        "redisAddress": str,
        "redisPassword": {"value": str, "valueFrom": SECRET_KEY},
        "externalStorageNamespace": str,
    },
    "headGroupSpec!": {
        "serviceType": {"ClusterIP", "NodePort", "LoadBalancer"},
        "enableIngress": bool,
        "rayStartParams": STRINGS,
        "template!": TEMPLATE,
    },
    "workerGroupSpecs": [
        {
            "groupName!": str,
            "replicas": int,
            "minReplicas!": int,
            "maxReplicas!": int,
            "rayStartParams": STRINGS,
            "template!": TEMPLATE,
        }
    ],
}
JOB = {
    "entrypoint": str,
    "backoffLimit": int,
    "activeDeadlineSeconds": int,
    "shutdownAfterJobFinishes": bool,
    "ttlSecondsAfterFinished": int,
    "submissionMode": {"K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"},
    "submitterConfig": {"backoffLimit": int},
    "submitterPodTemplate": TEMPLATE,
    "rayClusterSpec": CLUSTER,
}
CLAIM = {
    "accessModes": [{"ReadWriteMany"}],
    "storageClassName": str,
    "resources": {"requests": {"storage!": QUANTITY}},
}
LABELS = {"matchLabels": STRINGS}
POLICY = {
    "podSelector!": LABELS,
    "policyTypes": [{"Ingress", "Egress"}],
    "ingress": [
        {
            "from": [{"podSelector": LABELS, "namespaceSelector": LABELS}],
            "ports": [{"protocol": {"TCP", "UDP"}, "port": int}],
        }
    ],
}
KINDS = {
    "RayCluster": ("ray.io/v1", CLUSTER),
    "RayJob": ("ray.io/v1", JOB),
    "PersistentVolumeClaim": ("v1", CLAIM),
    "NetworkPolicy": ("networking.k8s.io/v1", POLICY),
}


def faults(value: Any, shape: Any, at: str = "") -> list[str]:
    """What a shape does not allow in a value, and where."""
    if isinstance(shape, list) and isinstance(value, list):
        return [fault for i, v in enumerate(value) for fault in faults(v, shape[0], f"{at}[{i}]")]
    if isinstance(shape, dict) and isinstance(value, dict):
        names = {name.rstrip("!"): inner for name, inner in shape.items()}
        absent = [f"{at}: no {n[:-1]}" for n in shape if n.endswith("!") and n[:-1] not in value]
        unknown = [f"{at}: {n}?" for n in value if n not in names and "*" not in names]
        inside = ((n, v, names.get(n, names.get("*"))) for n, v in value.items())
        return absent + unknown + [f for n, v, s in inside if s for f in faults(v, s, f"{at}.{n}")]
    if isinstance(shape, re.Pattern):
        right = isinstance(value, str) and shape.fullmatch(value) is not None
    else:
        right = value in shape if isinstance(shape, set) else type(value) is shape
    return [] if right else [f"{at}: {value!r} is not {shape}"]


def read(path: Path) -> dict[str, Any]:
    return yaml.safe_load(path.read_text())


def whole(path: Path) -> dict[str, Any]:
    """A manifest; a patch as applied to the cluster it is for."""
    manifest = read(path)
    if "kind" not in manifest:
        patched = read(path.with_name("raycluster.yaml"))
        patched["spec"] |= manifest["spec"]
        return patched
    return manifest


def manifest_faults(manifest: dict[str, Any]) -> list[str]:
    version, shape = KINDS[manifest["kind"]]
    return faults(
        manifest,
        {"apiVersion!": {version}, "kind!": str, "metadata!": {**META}, "spec!": shape},
    )


def clusters() -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
    """Name, whole spec and cluster's spec of every manifest that makes a Ray cluster."""
    for path in MANIFESTS:
        spec = whole(path)["spec"]
        cluster = spec.get("rayClusterSpec", spec)
        if "headGroupSpec" in cluster:
            yield path.name, spec, cluster


def pods(spec: dict[str, Any], cluster: dict[str, Any]) -> dict[str, dict[str, Any]]:
    groups = {group["groupName"]: group["template"] for group in cluster["workerGroupSpecs"]}
    templates = {"head": cluster["headGroupSpec"]["template"], **groups}
    if "submitterPodTemplate" in spec:
        templates["submitter"] = spec["submitterPodTemplate"]
    return {name: template["spec"] for name, template in templates.items()}


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.name)
def test_a_manifest_has_the_fields_of_its_kind(path: Path) -> None:
    assert manifest_faults(whole(path)) == []


@pytest.mark.parametrize(
    ("where", "value", "fault"),
    [
        ("backoffLimits", 3, "backoffLimits?"),
        ("backoffLimit", "3", "'3' is not"),
        ("rayClusterSpec.workerGroupSpecs.0.maxReplica", 3, "maxReplica?"),
        ("rayClusterSpec.headGroupSpec.rayStartParams.num-cpus", 0, "0 is not"),
        ("rayClusterSpec.headGroupSpec.template.spec.containers.0.resources.limits.cpu", 2, "2 is"),
        ("rayClusterSpec.headGroupSpec.template.spec.securityContext.runAsNonRoot", "yes", "'yes'"),
    ],
)
def test_a_mistake_in_a_manifest_is_seen(where: str, value: Any, fault: str) -> None:
    manifest = copy.deepcopy(read(CLUSTERS / "kuberay" / "rayjob.yaml"))
    *parents, last = where.split(".")
    inner = manifest["spec"]
    for name in parents:
        inner = inner[int(name) if name.isdigit() else name]
    inner[last] = value
    assert any(fault in found for found in manifest_faults(manifest))


@pytest.mark.parametrize(("name", "spec", "cluster"), clusters())
def test_pods_run_as_nobody_in_particular(name: str, spec: Any, cluster: Any) -> None:
    locked = {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert cluster["autoscalerOptions"]["securityContext"] == locked
    for role, pod in pods(spec, cluster).items():
        user = pod["securityContext"]
        assert user["runAsNonRoot"] and user["runAsUser"] == 1000
        assert user["seccompProfile"]["type"] == "RuntimeDefault"
        # The head's token is what the autoscaler asks for pods with.
        assert role == "head" or pod["automountServiceAccountToken"] is False
        volumes = {volume["name"] for volume in pod["volumes"]}
        for container in (*pod.get("initContainers", ()), *pod["containers"]):
            assert container["securityContext"] == locked
            mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
            assert "/tmp" in mounts and set(mounts.values()) <= volumes
            assert container["resources"]["limits"].keys() >= {"cpu", "memory"}


@pytest.mark.parametrize(("name", "spec", "cluster"), clusters())
def test_the_head_does_no_work_and_is_not_exposed(name: str, spec: Any, cluster: Any) -> None:
    head = cluster["headGroupSpec"]
    assert head["rayStartParams"]["num-cpus"] == head["rayStartParams"]["num-gpus"] == "0"
    assert head["serviceType"] == "ClusterIP" and head["enableIngress"] is False
    assert cluster["authOptions"]["mode"] == "token"
    # Autoscaler v2 replaces pods; KubeRay refuses pods that restart themselves beside it.
    assert all(pod["restartPolicy"] == "Never" for pod in pods(spec, cluster).values())
    for group in cluster["workerGroupSpecs"]:
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]


def test_versions_agree() -> None:
    pinned = dict(
        line.split("==") for line in (ROOT / "constraints.txt").read_text().split() if "==" in line
    )
    assert {cluster["rayVersion"] for _, _, cluster in clusters()} == {pinned["ray"]}


def test_nothing_secret_is_in_a_file() -> None:
    literal = re.compile(
        r"AKIA[0-9A-Z]{16}|PRIVATE KEY|kind: Secret"
        r"|\w*(?:SECRET|TOKEN|PASSWORD|ACCESS_KEY)\w*[=:]\s*[\"']?[\w/+]{12,}"
    )
    for path in TEXTS:
        assert not literal.search(path.read_text()), path
    for _, spec, cluster in clusters():
        for pod in pods(spec, cluster).values():
            for container in pod["containers"]:
                for variable in container.get("env", ()):
                    secret = re.search("SECRET|TOKEN|PASSWORD|KEY", variable["name"])
                    assert not (secret and "value" in variable)


@pytest.mark.parametrize(
    "path",
    [*(p for p in MANIFESTS if p.stem != "network-policy"), *RAY_UP, SLURM],
    ids=lambda path: f"{path.parent.name}/{path.name}",
)
def test_the_lines_a_user_changes_are_marked(path: Path) -> None:
    assert 0 < path.read_text().count("# CHANGE") <= 3


# What fits where


def recipe(name: str, *overrides: str) -> RunConfig:
    needed = ("source.path=/photos", "evaluate.prompts=/prompts.txt", "saliency.weights=/u2net.pth")
    given = needed[:1] if name.startswith("cpu") else needed
    return load(RunConfig, str(CLUSTERS / "recipes" / name), [*given, *overrides])


def pools(config: RunConfig) -> dict[str, Resources]:
    """The workers that each step starts at once."""
    twins = Curation(config, folder="/run").twin_stages()
    return {
        "scores": shared_worker([config.pickscore.resources]),
        "twins": shared_worker([stage.resources for stage in twins]),
        "cache": shared_worker([config.cache.resources]),
        "images": shared_worker([config.evaluate.resources]),
        "stage1": config.stage1.resources,
        "stage2": config.stage2.resources,
    }


def room(need: Resources, cpus: float, gpus: int) -> int:
    """How many such workers a node has room for."""
    on_cpus = int(cpus // need.num_cpus)
    return min(on_cpus, gpus * int(1 / need.num_gpus)) if need.num_gpus else on_cpus


Nodes = list[tuple[float, int]]  # cores and GPUs


def does_not_fit(config: RunConfig, nodes: Nodes) -> dict[str, Resources]:
    return {
        step: need
        for step, need in pools(config).items()
        if sum(room(need, *node) for node in nodes) < need.workers
    }


HARDWARE: dict[str, list[Nodes]] = {
    "4x24gb.toml": [[(2, 1)] * 4, [(8, 4)]],
    "8xh100.toml": [[(16, 8)]],
    "cpu.toml": [[(8, 0)] * 2],
}


def test_every_recipe_has_its_hardware() -> None:
    assert [path.name for path in RECIPES] == sorted(HARDWARE)


@pytest.mark.parametrize("name", HARDWARE)
def test_a_recipe_fits_its_hardware_and_uses_it(name: str) -> None:
    config = recipe(name)
    for nodes in HARDWARE[name]:
        assert does_not_fit(config, nodes) == {}
    gpus = sum(gpus for _, gpus in HARDWARE[name][0])
    for step, need in pools(config).items():
        assert need.workers * need.num_gpus == gpus, f"{step} leaves GPUs idle"


@pytest.mark.parametrize(("name", "preset"), [("4x24gb.toml", "sd15"), ("8xh100.toml", "sd15")])
def test_a_recipe_changes_no_result(name: str, preset: str) -> None:
    given = ["source.path=/photos", "evaluate.prompts=/prompts.txt", "saliency.weights=/u2net.pth"]
    assert results_of({"run": recipe(name)}) == results_of({"run": load(RunConfig, preset, given)})


def test_what_does_not_fit_is_seen() -> None:
    config = recipe("4x24gb.toml", "stage2.resources.workers=5")
    assert set(does_not_fit(config, [(8, 4)])) == {"stage2"}


def asked(words: list[str]) -> RunConfig:
    """The settings of a command as it stands in a file."""
    path = next(word for word in words if word.endswith(".toml"))
    overrides = [word for word in words if "=" in word]
    return load(RunConfig, str(CLUSTERS / "recipes" / Path(path).name), overrides)


@pytest.mark.parametrize(
    ("name", "spec", "cluster"), [made for made in clusters() if "entrypoint" in made[1]]
)
def test_the_command_of_a_rayjob_fits_its_cluster(name: str, spec: Any, cluster: Any) -> None:
    python, script, *words = shlex.split(spec["entrypoint"])
    assert python == "python" and (ROOT / Path(script).relative_to("/opt/raypref")).is_file()
    nodes: Nodes = []
    for group in cluster["workerGroupSpecs"]:
        limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
        node = (float(limits["cpu"]), int(limits.get("nvidia.com/gpu", 0)))
        nodes += [node] * group["maxReplicas"]
    assert does_not_fit(asked(words), nodes) == {}


@pytest.mark.parametrize("path", RAY_UP, ids=lambda path: path.name)
def test_a_launcher_file_is_valid_for_ray_and_fits(path: Path) -> None:
    config = read(path)
    validate_config(prepare_config(copy.deepcopy(config)))
    types = config["available_node_types"]
    assert types["head"]["resources"] == {"CPU": 0}, "no work runs on the head"
    for name, hardware in {"gpu_4x24gb": "4x24gb.toml", "gpu_8xh100": "8xh100.toml"}.items():
        node = (types[name]["resources"]["CPU"], types[name]["resources"]["GPU"])
        assert does_not_fit(recipe(hardware), [node]) == {}
    assert sum(kind.get("max_workers", 0) for kind in types.values()) == config["max_workers"]
    head_start = " ".join(config["head_start_ray_commands"])
    assert "--dashboard-host=127.0.0.1" in head_start
    assert "--env RAY_AUTH_MODE=token" in config["docker"]["run_options"]


# The image


def instructions() -> list[tuple[str, str]]:
    lines = (CLUSTERS / "Dockerfile").read_text().replace("\\\n", " ").splitlines()
    words = (line.split(maxsplit=1) for line in lines if line and not line.startswith("#"))
    return [(name, rest) for name, rest in words]


def test_the_image_holds_to_the_rules() -> None:
    steps = instructions()
    bases = [rest for name, rest in steps if name == "FROM"]
    assert all(re.fullmatch(r"python:3\.11\.\d+-slim-\w+", base) for base in bases)
    assert "ADD" not in {name for name, _ in steps}
    assert [rest for name, rest in steps if name == "USER"][-1] == "1000:1000"
    for _, command in (step for step in steps if step[0] == "RUN"):
        if "apt-get install" in command:
            assert "--no-install-recommends" in command
            assert "rm -rf /var/lib/apt/lists/*" in command
        assert not re.search(r"\bsudo\b|curl .*\| *(ba)?sh|chmod 777", command)
        assert (
            "pip install" not in command
            or "-c constraints.txt" in command
            or "--no-deps" in command
        )


def test_what_the_image_copies_is_what_docker_is_given() -> None:
    ignore = (ROOT / ".dockerignore").read_text().split("\n")
    given = {line[1:] for line in ignore if line.startswith("!")}
    copied = {
        source for name, rest in instructions() if name == "COPY" for source in rest.split()[:-1]
    }
    assert "*" in ignore and copied == given
    assert all((ROOT / source).exists() for source in copied)


@pytest.mark.parametrize(
    ("linter", "path"), [("hadolint", CLUSTERS / "Dockerfile"), ("shellcheck", SLURM)]
)
def test_a_linter_is_content(linter: str, path: Path) -> None:
    beside = str(Path(sys.executable).parent)
    found = shutil.which(linter, path=f"{beside}{os.pathsep}{os.environ['PATH']}")
    if found is None:
        pytest.skip(f"no {linter} here")
    done = subprocess.run([found, path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


# The Slurm script, with stand-ins for Slurm and Ray

STAND_INS = {
    # Drops its own options and is then the command.
    "srun": 'while [[ $1 == --* ]]; do shift; done; exec "$@"',
    "scontrol": '[[ $1 == show ]] && printf "n1\\nn2\\n" || echo "$@" > "$NOTES/requeued"',
    "ray": """
        [[ $1 == start ]] || exit 0
        echo "$BASHPID $RAY_AUTH_TOKEN $*" >> "$NOTES/nodes"
        exec sleep 600""",
    "python": """
        until [[ $(wc -l < "$NOTES/nodes") == 2 ]]; do sleep 0.02; done
        echo "$RAY_ADDRESS $*" > "$NOTES/driver"
        [[ $STATUS ]] && exit "$STATUS"
        exec sleep 600""",
}


class Allocation:
    """The script in a made-up allocation of two nodes."""

    def __init__(self, folder: Path, *, status: str, restarts: int = 0) -> None:
        self.notes = folder / "notes"
        self.notes.mkdir()
        bin_folder = folder / ".venv" / "bin"
        bin_folder.mkdir(parents=True)
        for name, body in STAND_INS.items():
            (bin_folder / name).write_text(f"#!/usr/bin/env bash\n{body}\n")
            (bin_folder / name).chmod(0o755)
        own = {
            "PROJECT": str(folder),
            "NOTES": str(self.notes),
            "STATUS": status,
            "SLURM_JOB_ID": str(10**9 + os.getpid()),
            "SLURM_JOB_NODELIST": "n[1-2]",
            "SLURM_CPUS_PER_TASK": "8",
            "SLURM_GPUS_PER_NODE": "1",
            "SLURM_RESTART_COUNT": str(restarts),
        }
        self.process = subprocess.Popen(
            ["bash", SLURM], env=os.environ | own, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )

    def note(self, name: str) -> str:
        """What a stand-in wrote, once it has."""
        limit = time.monotonic() + 20
        while not (path := self.notes / name).exists() or not path.read_text():
            assert time.monotonic() < limit, f"no {name}"
            time.sleep(0.02)
        return path.read_text()

    def end(self) -> int:
        """The exit status; by then nothing that was started may be left."""
        output, _ = self.process.communicate(timeout=20)
        for line in self.note("nodes").splitlines():
            assert not Path(f"/proc/{line.split()[0]}").exists(), f"left behind: {line}"
        assert self.token() not in output.decode()
        return self.process.returncode

    def token(self) -> str:
        return self.note("nodes").split()[1]


def test_slurm_starts_a_head_and_workers_and_hands_on_the_exit_status(tmp_path: Path) -> None:
    job = Allocation(tmp_path, status="2")
    assert job.end() == 2
    head, worker = sorted(job.note("nodes").splitlines(), key=lambda line: "--address" in line)
    address, _, *words = job.note("driver").split()
    assert "--head" in head and f"--address={address}" in worker
    assert re.fullmatch(r"[0-9a-f]{64}", job.token())
    assert job.token() == worker.split()[1] and job.token() not in " ".join(head.split()[2:])
    assert does_not_fit(asked(words), [(8, 1)] * 4) == {}


@pytest.mark.parametrize(
    ("sign", "restarts", "status", "requeued"),
    [
        (signal.SIGUSR1, 0, 0, True),  # time is nearly up
        (signal.SIGUSR1, 20, 1, False),  # too often
        (signal.SIGTERM, 0, 143, False),  # scancel, or preemption: Slurm queues it again itself
    ],
)
def test_slurm_ends_its_run_on_a_signal(
    tmp_path: Path, sign: signal.Signals, restarts: int, status: int, requeued: bool
) -> None:
    job = Allocation(tmp_path, status="", restarts=restarts)
    job.note("driver")
    job.process.send_signal(sign)
    assert job.end() == status
    assert (job.notes / "requeued").exists() is requeued
