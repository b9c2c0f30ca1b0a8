"""The files of `clusters/`: fields and types, what fits where, users and privileges."""

from __future__ import annotations

import copy
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from kuberay_fields import manifest_faults
from ray.autoscaler._private.util import prepare_config, validate_config

from raypref.core.config import Resources, load, results_of
from raypref.core.ledger import in_folder
from raypref.curate.graph import Curation
from raypref.engine.worker import shared_worker
from raypref.run.config import RunConfig

ROOT = Path(__file__).resolve().parents[1]
CLUSTERS = ROOT / "clusters"
RECIPES = sorted((CLUSTERS / "recipes").glob("*.toml"))
MANIFESTS = sorted((CLUSTERS / "kuberay").glob("*.yaml"))
RAY_UP = sorted((CLUSTERS / "ray-up").glob("*.yaml"))
SLURM = CLUSTERS / "slurm" / "raypref.sbatch"
TEXTS = [p for p in (*CLUSTERS.rglob("*"), ROOT / ".dockerignore") if p.is_file()]


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


def test_the_pod_for_files_is_locked_as_well() -> None:
    spec = read(CLUSTERS / "kuberay" / "files.yaml")["spec"]
    run = read(CLUSTERS / "kuberay" / "rayjob.yaml")["spec"]["submitterPodTemplate"]["spec"]
    for field in ("securityContext", "automountServiceAccountToken", "restartPolicy"):
        assert spec[field] == run[field]
    assert spec["containers"][0]["securityContext"] == run["containers"][0]["securityContext"]


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
    twins = Curation(config, place=in_folder("/run")).twin_stages()
    return {
        "scores": shared_worker([config.pickscore.resources]),
        "twins": shared_worker([stage.resources for stage in twins]),
        "cache": shared_worker([config.cache.resources]),
        "images": shared_worker([config.evaluate.resources]),
        **{name: config.train[name].resources for name in ("stage1", "stage2", "sft")},
        **{f"rewards.{name}": each.resources for name, each in config.rewards.items()},
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
    "8xh100.toml": [[(24, 8)]],
    "8xh100-sd35m.toml": [[(24, 8)]],
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


@pytest.mark.parametrize(
    ("name", "preset"),
    [("4x24gb.toml", "sd15"), ("8xh100.toml", "sd15"), ("8xh100-sd35m.toml", "sd35m")],
)
def test_a_recipe_changes_no_result(name: str, preset: str) -> None:
    given = ["source.path=/photos", "evaluate.prompts=/prompts.txt", "saliency.weights=/u2net.pth"]
    assert results_of({"run": recipe(name)}) == results_of({"run": load(RunConfig, preset, given)})


def test_what_does_not_fit_is_seen() -> None:
    config = recipe("4x24gb.toml", "train.stage2.resources.workers=5")
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


def test_the_commands_of_the_slurm_script_fit_their_allocations() -> None:
    text = SLURM.read_text()
    command = re.search(r"^RUN=\((.*?)\)$", text, re.S | re.M)
    other = re.search(r"^# +sbatch --.*? # with recipes/(\S+) below$", text, re.S | re.M)
    assert command is not None and other is not None
    asks = dict(re.findall(r"^#SBATCH --([\w-]+)=(\d+)$", text, re.M))
    instead = asks | dict(re.findall(r"--([\w-]+)=(\d+)", other[0]))
    for config, given in ((asked(shlex.split(command[1])), asks), (recipe(other[1]), instead)):
        node = (float(given["cpus-per-task"]), int(given["gpus-per-node"]))
        assert does_not_fit(config, [node] * int(given["nodes"])) == {}


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


def test_the_line_for_a_laptop_fits_the_image(tmp_path: Path) -> None:
    """Its build file is there, its paths are mounted, its command is one that the image has."""
    text = (ROOT / "docs/running.md").read_text().replace("\\\n", " ")
    build = shlex.split(re.search(r"^docker build .*$", text, re.M)[0])
    assert (ROOT / build[build.index("-f") + 1]).is_file()
    arguments = [rest.partition("=")[0] for name, rest in instructions() if name == "ARG"]
    assert build[build.index("--build-arg") + 1].partition("=")[0] in arguments
    words = shlex.split(re.search(r"docker run .*$", text, re.M)[0])
    at = words.index(build[build.index("-t") + 1])
    mounts = {words[i + 1].split(":")[1] for i in range(at) if words[i] == "-v"}
    program, command, preset, *given = words[at + 1 :]
    assert (program, command) == ("raypref", "run")
    config = load(RunConfig, preset, given)
    assert {config.source.path, config.storage} == mounts


@pytest.mark.parametrize(
    ("linter", "path"), [("hadolint", CLUSTERS / "Dockerfile"), ("shellcheck", SLURM)]
)
def test_a_linter_is_content(linter: str, path: Path) -> None:
    command = Path(sys.executable).with_name(linter)  # comes with the dev dependencies
    done = subprocess.run([command, path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
