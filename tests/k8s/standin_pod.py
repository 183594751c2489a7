"""A stand-in for a kubelet's part: a pod in a network namespace of its own, its containers in PID and mount namespaces.

The image is this machine: its system, this Python, and the repository as WORKING_FOLDER, all read-only. As in
a pod: the user and groups of the security context, no capabilities, volumes that outlive a container, a limit of memory
(of the cgroup that /sys shows inside), a clean environment, names of Services by /etc/hosts. Not as in a pod: no limit
of CPUs, no seccomp profile, no limit of a disk's emptyDir, no liveness probe by HTTP (KubeRay's gives up after ten
minutes).
"""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from k8s_manifests import ROOT
from kuberay import Document, quantity

_TOOLS = ("unshare", "nsenter", "ip", "nft", "setpriv", "mount")
_CLONE_NEWNET = 0x40000000
_DEVICES = ("null", "zero", "full", "random", "urandom", "tty")
_V1, _V2 = Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup")
_BACKOFF_S = 10.0
"""From the second start on. A kubelet doubles it each time, up to 300."""
SUBNET = "10.88.0"


def missing() -> str | None:
    """Why there can't be pods on this machine, or None."""
    if os.name != "posix" or os.geteuid() != 0:
        return "namespaces need root"
    if absent := [tool for tool in _TOOLS if shutil.which(tool) is None]:
        return f"not installed: {', '.join(absent)}"
    tried = "ip link add a0 type veth peer name a1 && nft add table inet t && mount -t tmpfs none /mnt"
    done = subprocess.run(
        ["unshare", "--net", "--pid", "--mount", "--fork", "sh", "-c", tried], capture_output=True, text=True
    )
    return None if done.returncode == 0 else f"namespaces aren't permitted here: {done.stderr.strip()[-200:]}"


def shell(*words: str) -> str:
    """Runs a command of this machine; raises RuntimeError with what it said."""
    done = subprocess.run(words, capture_output=True, text=True, timeout=60)
    if done.returncode:
        raise RuntimeError(f"{' '.join(words)}: {done.stderr.strip()}")
    return done.stdout


class Network:
    """A bridge in a namespace of its own, so that nothing of it is seen outside. Its address is the nodes'."""

    def __init__(self, prefix: str) -> None:
        self.prefix, self._last = prefix, 1
        self.namespace = f"{prefix}-net"
        self._members: list[str] = []
        shell("ip", "netns", "add", self.namespace)
        self._inside("ip", "link", "add", "br0", "type", "bridge")
        self._inside("ip", "addr", "add", f"{SUBNET}.1/24", "dev", "br0")
        for device in ("lo", "br0"):
            self._inside("ip", "link", "set", device, "up")

    def join(self, name: str) -> tuple[str, str]:
        """A member with an address of its own on eth0. Returns its namespace and the address."""
        self._last += 1
        number, namespace = self._last, f"{self.prefix}-{self._last}"
        shell("ip", "netns", "add", namespace)
        self._members.append(namespace)
        peer = ("type", "veth", "peer", "name", "eth0", "netns", namespace)
        shell("ip", "link", "add", "name", f"v{number}", "netns", self.namespace, *peer)
        self._inside("ip", "link", "set", f"v{number}", "master", "br0", "up")
        address = f"{SUBNET}.{number}"
        into = ("ip", "-n", namespace)
        shell(*into, "addr", "add", f"{address}/24", "dev", "eth0")
        for device in ("lo", "eth0"):
            shell(*into, "link", "set", device, "up")
        shell(*into, "route", "add", "default", "via", f"{SUBNET}.1")
        return namespace, address

    def cut(self, address: str) -> None:
        """No packet from or to a member any more; nobody is told."""
        self._inside("ip", "link", "set", f"v{address.rpartition('.')[2]}", "down")

    def leave(self, namespace: str) -> None:
        shell("ip", "netns", "delete", namespace)
        self._members.remove(namespace)

    def close(self) -> None:
        for namespace in [*self._members, self.namespace]:
            shell("ip", "netns", "delete", namespace)

    def _inside(self, *words: str) -> None:
        shell("ip", "netns", "exec", self.namespace, *words)


class Caller:
    """Calls from a namespace: one thread that lives there."""

    def __init__(self, namespace: str) -> None:
        def enter() -> None:
            with Path(f"/run/netns/{namespace}").open() as place:
                if ctypes.CDLL(None, use_errno=True).setns(place.fileno(), _CLONE_NEWNET):
                    raise OSError(ctypes.get_errno(), "setns")

        self._thread = ThreadPoolExecutor(1, initializer=enter)

    def get(self, url: str, token: str = "", timeout: float = 2.0) -> tuple[int, bytes]:
        """Status and body; 0 where nobody answers."""

        def ask() -> tuple[int, bytes]:
            headers = {"Authorization": f"Bearer {token}"} if token else {}
            try:
                opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
                with opener.open(urllib.request.Request(url, headers=headers), timeout=timeout) as answer:
                    return answer.status, answer.read()
            except urllib.error.HTTPError as error:
                return error.code, error.read()
            except (OSError, ValueError) as error:
                return 0, str(error).encode()

        return self._thread.submit(ask).result()

    def reaches(self, address: str, port: int) -> bool:
        """Whether a packet gets there and back, be it a refusal."""

        def connect() -> bool:
            try:
                socket.create_connection((address, port), timeout=3).close()
            except ConnectionRefusedError:
                return True
            except OSError:
                return False
            return True

        return self._thread.submit(connect).result()

    def close(self) -> None:
        self._thread.shutdown()


class Pod:
    """One pod of a node. `step` is called again and again, as a kubelet looks at it.

    Args:
        objects: what the pod's volumes and environment may name: `("Secret", NAME)`, `("ConfigMap", NAME)` → key →
            text; `("PersistentVolumeClaim", NAME)` → folder.
    """

    def __init__(
        self,
        network: Network,
        document: Document,
        node: str,
        folder: Path,
        objects: dict[tuple[str, str], Any],
    ) -> None:
        self.document, self.node, self.folder = document, node, folder
        self.name: str = document["metadata"]["name"]
        self.labels: dict[str, str] = document["metadata"].get("labels", {})
        self._network, self._objects = network, objects
        self._spec: Document = document["spec"]
        folder.mkdir(parents=True)
        self.log = folder / "log"
        self.namespace, self.address = network.join(self.name)
        self.hosts = folder / "hosts"
        self.exits: list[int] = []
        """Of its container, one a run; -9: killed."""
        self.ready = self.deleted = self.lost = self.gone = False
        self._queue = [*self._spec.get("initContainers", [])]
        self._process: subprocess.Popen[bytes] | None = None
        self._main = self._killed = False
        self._again_at = self._asked_at = self._kill_at = self._started_at = self._lives_at = 0.0
        self._probing: subprocess.Popen[bytes] | None = None
        self._failures = 0
        self._mounted: list[Path] = []
        self._cgroups: list[Path] = []
        self._volumes = {one["name"]: self._volume(one) for one in self._spec.get("volumes", [])}

    @property
    def running(self) -> bool:
        """Whether its container, not one that comes before, is up."""
        return self._main and self._process is not None and self._process.poll() is None

    @property
    def ended(self) -> bool:
        """Whether it has ended and isn't started again."""
        return self.gone or (bool(self.exits) and self._spec.get("restartPolicy", "Always") == "Never")

    def pid(self) -> int | None:
        """This machine's id of the container's process 1."""
        if self._process is None or self._process.poll() is not None:
            return None
        parent = self._process.pid
        try:
            children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
        except OSError:
            return None
        return int(children[0]) if children else None

    def step(self, caller: Caller) -> None:
        """What is due now: a container's start, its next start, its readiness, the kill at the end of its grace."""
        now = time.monotonic()
        if self.gone or self.lost:
            return
        if self._process is not None and (code := self._process.poll()) is not None:
            self._process = None
            if self._main:
                self.exits.append(-9 if self._killed or code in (137, -9) else code)
                self.ready = False
                self._again_at = now + (0 if len(self.exits) == 1 else _BACKOFF_S)
            elif code == 0:
                self._queue.pop(0)
            else:
                self._again_at = now + _BACKOFF_S
            self._killed = False
        if self.deleted:
            if self._process is None:
                self._leave()
            elif now > self._kill_at:
                self.kill()
        elif self._process is None and not self.ended and now >= self._again_at:
            self._main = not self._queue
            self._start(self._queue[0] if self._queue else self._spec["containers"][0])
            self._asked_at = self._started_at = now
            self._failures = 0
        elif self.running:
            self._live(now)
            self._probe(caller, now)

    def delete(self) -> None:
        """As `kubectl delete pod`: SIGTERM to process 1, SIGKILL when the grace is over."""
        self.deleted, self.ready = True, False
        self._kill_at = time.monotonic() + self._spec.get("terminationGracePeriodSeconds", 30)
        if pid := self.pid():
            os.kill(pid, signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL to process 1: the kernel ends all others of the container."""
        if pid := self.pid():
            self._killed = True  # unshare of util-linux 2.38 can't pass it on, and ends with 1
            os.kill(pid, signal.SIGKILL)

    def lose(self) -> None:
        """Gone without a word: no packet says so."""
        self._network.cut(self.address)
        self.lost, self.ready = True, False
        self.kill()
        if self._process is not None:
            self._process.wait()

    def evict(self) -> None:
        """Forget a pod that is lost."""
        self._leave()

    def text(self) -> str:
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def _leave(self) -> None:
        for place in reversed(self._mounted):
            subprocess.run(["umount", "--lazy", str(place)], capture_output=True)
        for group in reversed(self._cgroups):
            _remove_cgroup(group)
        self._network.leave(self.namespace)
        self.gone = True

    def close(self) -> None:
        if not self.gone:
            self.deleted = True
            self.kill()
            if self._process is not None:
                self._process.wait()
            self._leave()

    def _live(self, now: float) -> None:
        """A liveness probe that is a command: run beside the container's process 1, as that one's user."""
        probe = self._spec["containers"][0].get("livenessProbe", {})
        if "exec" not in probe:
            return
        if self._probing is not None:
            code = self._probing.poll()
            if code is None and now - self._lives_at > probe["timeoutSeconds"]:
                self._probing.kill()
            if code is not None:
                self._probing = None
                self._failures = self._failures + 1 if code else 0
                if self._failures >= probe["failureThreshold"]:
                    self.kill()
        elif (
            now - self._lives_at > probe["periodSeconds"]
            and now - self._started_at > probe["initialDelaySeconds"]
        ):
            pid, context = self.pid(), self._spec["securityContext"]
            if pid is None:
                return
            entries = Path(f"/proc/{pid}/environ").read_text().split("\0")
            environment = dict(one.split("=", 1) for one in entries if "=" in one)
            spaces = ["--mount", "--pid", "--net", "--root", "--wd"]
            who = [f"--reuid={context['runAsUser']}", f"--regid={context['runAsGroup']}", "--clear-groups"]
            inside = ["nsenter", f"--target={pid}", *spaces, "setpriv", *who]
            self._lives_at = now
            with self.log.open("ab") as log:
                self._probing = subprocess.Popen(
                    [*inside, "--", *probe["exec"]["command"]],
                    env=environment,
                    stdout=log,
                    stderr=subprocess.DEVNULL,
                )

    def _probe(self, caller: Caller, now: float) -> None:
        probe = self._spec["containers"][0].get("readinessProbe")
        if probe is None:
            self.ready = True
            return
        wait = probe["periodSeconds"] if self.ready else min(1.0, probe["periodSeconds"])
        if now - self._asked_at < wait:
            return
        self._asked_at = now
        where = probe["httpGet"]
        self.ready = caller.get(f"http://{self.address}:{where['port']}{where['path']}", timeout=2)[0] == 200

    def _volume(self, volume: Document) -> Path:
        """A folder of this machine that containers get."""
        group = self._spec.get("securityContext", {}).get("fsGroup", 0)
        if claim := volume.get("persistentVolumeClaim"):
            return Path(self._objects["PersistentVolumeClaim", claim["claimName"]])
        place = self.folder / "volumes" / volume["name"]
        place.mkdir(parents=True)
        if config := volume.get("configMap"):
            for key, text in self._objects["ConfigMap", config["name"]].items():
                (place / key).write_text(text)
        elif volume["emptyDir"].get("medium") == "Memory":
            size = int(quantity(volume["emptyDir"]["sizeLimit"]))
            shell("mount", "-t", "tmpfs", "-o", f"size={size},nosuid,nodev", self.name, str(place))
            self._mounted.append(place)
        os.chown(place, 0, group)
        place.chmod(0o2777 if "emptyDir" in volume else 0o755)
        return place

    def _start(self, container: Document) -> None:
        root = self.folder / "root"
        root.mkdir(exist_ok=True)
        context = self._spec.get("securityContext", {}) | container.get("securityContext", {})
        lines = ["set -eu", "ulimit -n $(ulimit -Hn)", *_root_file_system(root)]
        lines += [*self._mounts(root, container), *self._limit(root, container)]
        lines += [f"mount -o remount,ro {root}", f"cd {root}"]
        who = f"--reuid={context['runAsUser']} --regid={context['runAsGroup']} --groups={context['fsGroup']}"
        drop = "--no-new-privs --inh-caps=-all --bounding-set=-all --pdeathsig KILL"
        where = container.get("workingDir", "/")
        lines.append(f'exec chroot {root} /usr/bin/env --chdir={where} /usr/bin/setpriv {who} {drop} -- "$@"')
        file = self.folder / f"{container['name']}.sh"
        file.write_text("\n".join(lines) + "\n")
        environment = self._environment(container)
        command = [_expanded(one, environment) for one in [*container["command"], *container.get("args", [])]]
        spaces = ["--pid", "--mount", "--ipc", "--uts", "--fork", "--kill-child=SIGKILL"]
        # It ends with the kubelet's thread, however that ends.
        into = ["setpriv", "--pdeathsig", "KILL", "nsenter", f"--net=/run/netns/{self.namespace}"]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [*into, "unshare", *spaces, "bash", str(file), *command],
                env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip

    def _mounts(self, root: Path, container: Document) -> list[str]:
        own = self.folder / "etc"
        own.mkdir(exist_ok=True)
        texts = {
            "passwd": "root:x:0:0::/:/bin/sh\nconvmlp:x:1000:1000::/tmp:/bin/bash",
            "group": "root:x:0:\nconvmlp:x:1000:",
            "resolv.conf": "options timeout:1 attempts:1",
            "hostname": self.name,
        }
        for name, text in texts.items():
            (own / name).write_text(f"{text}\n")
        lines = [f"cp {own}/* {root}/etc/", f"touch {root}/etc/hosts", f"hostname {self.name}"]
        lines.append(f"mount --bind {self.hosts} {root}/etc/hosts")
        for mount in container.get("volumeMounts", []):
            place = f"{root}{mount['mountPath']}"
            lines += [f"mkdir -p {place}", f"mount --bind {self._volumes[mount['name']]} {place}"]
            if mount.get("readOnly"):
                lines.append(f"mount -o remount,bind,ro {place}")
        return lines

    def _limit(self, root: Path, container: Document) -> list[str]:
        """A cgroup of the container's memory, which is all that its /sys/fs/cgroup shows."""
        size = container.get("resources", {}).get("limits", {}).get("memory")
        v2 = (_V2 / "cgroup.controllers").exists()
        parent = (_V2 if v2 else _V1) / self._network.prefix
        group = parent / f"{self.name}-{container['name']}"
        if size is None or not parent.exists():
            return []
        if not group.exists():
            group.mkdir()
            self._cgroups.append(group)
        (group / ("memory.max" if v2 else "memory.limit_in_bytes")).write_text(str(int(quantity(size))))
        seen = f"{root}/sys/fs/cgroup" if v2 else f"{root}/sys/fs/cgroup/memory"
        shown = [] if v2 else [f"mount -t tmpfs cgroup {root}/sys/fs/cgroup", f"mkdir {seen}"]
        join = f"echo 0 > {group}/cgroup.procs"  # 0: who writes it
        return [join, *shown, f"mount --bind {group} {seen}", f"mount -o remount,bind,ro {seen}"]

    def _environment(self, container: Document) -> dict[str, str]:
        environment = {
            "PATH": f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin",
            "PYTHONPATH": "/opt/convmlp:/opt/convmlp/platform",
            "PYTHONUNBUFFERED": "1",
            # Of a machine with less time for each process than a node has.
            "OMP_NUM_THREADS": "1",
        }
        metadata = self.document["metadata"]
        for entry in container.get("env", []):
            if "value" in entry:
                environment[entry["name"]] = _expanded(entry["value"], environment)
            elif path := entry["valueFrom"].get("fieldRef", {}).get("fieldPath"):
                label = re.fullmatch(r"metadata\.labels\['(.*)'\]", path)
                environment[entry["name"]] = (
                    self.labels[label[1]] if label else str(metadata[path.partition(".")[2]])
                )
            else:
                reference = entry["valueFrom"]["secretKeyRef"]
                secret = self._objects.get(("Secret", reference["name"]), {})
                if reference["key"] in secret:
                    environment[entry["name"]] = secret[reference["key"]]
                elif not reference.get("optional"):
                    raise KeyError(f"CreateContainerConfigError: secret {reference['name']}")
        return environment


def memory_cgroup(prefix: str) -> Path | None:
    """A cgroup for the memory of all pods; None where none can be made."""
    try:
        if (_V2 / "cgroup.controllers").exists():
            (_V2 / "cgroup.subtree_control").write_text("+memory")
            (group := _V2 / prefix).mkdir()
            (group / "cgroup.subtree_control").write_text("+memory")
        else:
            (group := _V1 / prefix).mkdir()
    except OSError:
        return None
    return group


def _remove_cgroup(group: Path) -> None:
    """Once the last process of it is gone."""
    deadline = time.monotonic() + 5
    while group.exists() and time.monotonic() < deadline:
        try:
            group.rmdir()
        except OSError:
            time.sleep(0.05)


def _root_file_system(root: Path) -> list[str]:
    """Lines of shell that make a container's root of this machine's system, Python, and the repository."""
    lines = ["mount --make-rprivate /", f"mount -t tmpfs -o mode=755,size=16m image {root}"]
    for name in ("bin", "sbin", "lib", "lib64"):
        if (link := Path(f"/{name}")).is_symlink():
            lines.append(f"ln -s {link.readlink()} {root}/{name}")
    shown = [
        Path("/usr"),
        Path("/etc/ssl"),
        Path("/etc/alternatives"),
        *(Path(f"/{n}") for n in ("bin", "sbin", "lib", "lib64")),
    ]
    shown += [Path(sys.prefix), Path(sys.base_prefix)]
    for place in dict.fromkeys(one for one in shown if one.is_dir() and not one.is_symlink()):
        if place.parts[:2] != ("/", "usr") or place == Path("/usr"):
            lines += _read_only(place, f"{root}{place}")
    lines.append(f"cp /etc/ld.so.cache /etc/nsswitch.conf {root}/etc/")
    lines += _read_only(ROOT, f"{root}/opt/convmlp")
    lines += [f"mkdir -p {root}/proc {root}/sys {root}/dev {root}/tmp {root}/run", f"chmod 1777 {root}/tmp"]
    lines += [f"mount -t proc proc {root}/proc", f"mount -t sysfs -o ro sys {root}/sys"]
    lines += [f"mount -t tmpfs -o mode=755,size=1m dev {root}/dev", f"mkdir {root}/dev/shm {root}/dev/pts"]
    lines += [f"touch {root}/dev/{name} && mount --bind /dev/{name} {root}/dev/{name}" for name in _DEVICES]
    lines += [f"ln -s /proc/self/fd {root}/dev/fd"]
    lines += [
        f"ln -s /proc/self/fd/{n} {root}/dev/{name}" for n, name in enumerate(("stdin", "stdout", "stderr"))
    ]
    return lines


def _read_only(place: Path, where: str) -> list[str]:
    return [f"mkdir -p {where}", f"mount --bind {place} {where}", f"mount -o remount,bind,ro {where}"]


def _expanded(text: str, environment: dict[str, str]) -> str:
    """`$(NAME)` of a container's command and environment."""
    return re.sub(r"\$\((\w+)\)", lambda found: environment.get(found[1], found[0]), text)


def wait_for(happened: Callable[[], Any], what: str, timeout: float) -> float:
    """Seconds until `happened` is true; raises AssertionError where that takes longer than `timeout`."""
    begun = time.monotonic()
    while not happened():
        assert time.monotonic() - begun < timeout, f"{what}: not within {timeout:.0f} s"
        time.sleep(0.2)
    return time.monotonic() - begun
