"""Which fields and types the manifests of `clusters/kuberay` may have."""

from __future__ import annotations

import re
from typing import Any

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
    "Pod": ("v1", POD),
    "NetworkPolicy": ("networking.k8s.io/v1", POLICY),
}


def manifest_faults(manifest: dict[str, Any]) -> list[str]:
    """What is wrong with a manifest, and where."""
    version, shape = KINDS[manifest["kind"]]
    return faults(
        manifest,
        {"apiVersion!": {version}, "kind!": str, "metadata!": {**META}, "spec!": shape},
    )


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
