"""Hosts on one machine: network namespaces with addresses of their own on a bridge (root only)."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from jobs import BIN, RAY, TOKEN, Job, process_file, ray_start

SUBNET = "10.77.13"
GATEWAY = f"{SUBNET}.254"  # this machine itself, as the hosts see it
DEVICE = "eth0"  # every host's network
_TAG = f"r{os.getpid() % 100_000}"  # interface names are at most 15 letters long


def possible() -> bool:
    """Whether this process may make network namespaces."""
    name = f"{_TAG}try"
    with suppress(FileNotFoundError):
        if subprocess.run(["ip", "netns", "add", name], capture_output=True).returncode == 0:
            _ip("netns", "del", name)
            return True
    return False


@contextmanager
def bridge() -> Iterator[None]:
    """What the hosts are plugged into."""
    _ip("link", "add", f"{_TAG}br", "type", "bridge")
    try:
        _ip("addr", "add", f"{GATEWAY}/24", "dev", f"{_TAG}br")
        _ip("link", "set", f"{_TAG}br", "up")
        yield
    finally:
        _ip("link", "del", f"{_TAG}br")


class Host:
    """One host. Killing it ends all its processes at once, as a power cut does.

    Args:
        number: the last figure of its address, 1 to 253.
    """

    def __init__(self, number: int) -> None:
        self.name, self.address = f"{_TAG}h{number}", f"{SUBNET}.{number}"
        outside, inside = f"{_TAG}v{number}", f"{_TAG}e{number}"
        _ip("netns", "add", self.name)
        _ip("link", "add", outside, "type", "veth", "peer", "name", inside)
        _ip("link", "set", inside, "netns", self.name)
        _ip("-n", self.name, "link", "set", inside, "name", DEVICE)
        _ip("link", "set", outside, "master", f"{_TAG}br", "up")
        _ip("-n", self.name, "addr", "add", f"{self.address}/24", "dev", DEVICE)
        for device in (DEVICE, "lo"):
            _ip("-n", self.name, "link", "set", device, "up")
        _ip("-n", self.name, "route", "add", "default", "via", GATEWAY)

    @property
    def inside(self) -> tuple[str, ...]:
        """Words before a command that is to run on the host."""
        return ("ip", "netns", "exec", self.name)

    def pids(self) -> list[int]:
        """Ids of the processes on the host."""
        found = subprocess.run(["ip", "netns", "pids", self.name], capture_output=True, text=True)
        return [int(pid) for pid in found.stdout.split()]

    def runs(self, title: str) -> bool:
        """Whether a process on this host has this text in its title."""
        return any(title in process_file(pid, "cmdline") for pid in self.pids())

    def kill(self) -> None:
        """SIGKILL of every process on the host."""
        for pid in self.pids():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def remove(self) -> None:
        """The host and its network interface are gone."""
        self.kill()
        _ip("netns", "del", self.name)


@contextmanager
def ray_node(host: Host, *arguments: str, folder: Path, env: dict[str, str]) -> Iterator[Job]:
    """`ray start --block` on a host."""
    with ray_start(
        *(*host.inside, RAY, "start", *arguments, "--block", f"--node-ip-address={host.address}"),
        "--object-store-memory=200000000",
        folder=folder,
        env={
            "RAY_USAGE_STATS_ENABLED": "0",
            "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
            # All these hosts have this machine's name, which resolves to none of their addresses.
            "GLOO_SOCKET_IFNAME": DEVICE,
            **TOKEN,
            **env,
        },
    ) as job:
        yield job


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)
