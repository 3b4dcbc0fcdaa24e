"""Findings about a machine from the facts that `doctor_probe` gathers: pure functions, facts in, findings out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from semiocity.config import Cluster, Resources
from semiocity.launch.container import OLDEST_PYTHON
from semiocity.launch.findings import Finding, fault, ok, warning

Facts = Mapping[str, Any]
OLDEST_APPTAINER = (1, 1)
SHM_GB_A_RANK = 1.0
SPACE_GB, SPACE_LOW_GB = 1.0, 20.0
INODES, INODES_LOW = 1_000, 50_000
CLOCK_S, CLOCK_LOW_S = 60.0, 2.0


def apptainer(facts: Facts, wanted: str, needed: bool, place: str) -> Finding:
    """The container program."""
    if "apptainer" not in facts:
        if not needed:
            return ok("apptainer", "not there, and no image is named: jobs run in this environment", place)
        return fault(
            "apptainer",
            f"{wanted}: no such command",
            'load it in `setup` ("module load apptainer"), or give the full path as container.apptainer',
            place,
        )
    version = facts.get("apptainer_version", "")
    if version and tuple(map(int, version.split(".")[:2])) < OLDEST_APPTAINER:
        return warning(
            "apptainer", f"version {version} at {facts['apptainer']}", "1.1 or newer is what we know to work", place
        )
    return ok("apptainer", f"version {version or 'unknown'} at {facts['apptainer']}", place)


def fuse(facts: Facts, needed: bool, place: str) -> Finding:
    """Whether an image can be mounted: by a setuid Apptainer, or in a user namespace through FUSE."""
    if not needed or "apptainer" not in facts:
        return ok("mounting", "no image to mount", place)
    if facts.get("apptainer_suid") == "1":
        return ok("mounting", "Apptainer is installed setuid: the kernel mounts images", place)
    if facts.get("uid") == "0":
        return ok("mounting", "as root: the kernel mounts images", place)
    if facts.get("unshare") == "no" or facts.get("user_namespaces") == "0":
        return fault(
            "mounting",
            "user namespaces are closed, and Apptainer is not setuid",
            "ask the site for apptainer-suid, or for user.max_user_namespaces above 0",
            place,
        )
    if facts.get("fuse_device") != "usable":
        state = "closed to you" if facts.get("fuse_device") else "missing"
        return warning(
            "mounting",
            f"/dev/fuse is {state}: Apptainer unpacks the whole image into /tmp at each start",
            "ask the site for /dev/fuse, or `apptainer build --sandbox` the image onto the shared file system",
            place,
        )
    if not {"squashfuse", "squashfuse_ll"} & set(facts["tool"]):
        return ok("mounting", "user namespaces and /dev/fuse; Apptainer's own squashfuse", place)
    return ok("mounting", "user namespaces, /dev/fuse and squashfuse", place)


def pyxis(facts: Facts, place: str) -> list[Finding]:
    """SLURM's plugin Pyxis, by the options that it gives srun, and Enroot, which it runs on nodes."""
    found = []
    match facts.get("pyxis"):
        case "yes":
            found.append(ok("Pyxis", "srun knows --container-image", place))
        case "no":
            todo = 'ask the site whether Pyxis is installed (plugstack.conf); else container.runtime = "apptainer"'
            found.append(fault("Pyxis", "srun knows no --container-image", todo, place))
        case _ if place == "login":
            found.append(fault("Pyxis", "no srun on PATH", "log in to a login node, or load SLURM's module", place))
    if "enroot" in facts:
        found.append(ok("Enroot", f"version {facts.get('enroot_version') or 'unknown'} at {facts['enroot']}", place))
    elif place == "login":
        found.append(ok("Enroot", "not on this machine; nodes need it, `semiocity doctor --node` looks there", place))
    else:
        found.append(fault("Enroot", "enroot: no such command", "tell the site: Pyxis cannot start containers", place))
    closed = facts.get("unshare") == "no" or facts.get("user_namespaces") == "0"
    if place != "login" and facts.get("uid") != "0" and closed:
        said, todo = "user namespaces are closed, and Enroot needs them", "ask for user.max_user_namespaces above 0"
        found.append(fault("mounting", said, todo, place))
    return found


def image_content(label: str, name: str, place: str) -> Finding:
    """What the image says of its contents on the node, against the name that it goes by here."""
    wanted = name.removeprefix("semiocity-").removesuffix(".sif")
    if name.startswith("semiocity-") and not label.startswith(wanted):
        return fault(
            "image",
            f"{name} holds {label[:12] or 'something else'} on the node",
            "an older copy or a stale cache: copy the image anew, under its own name",
            place,
        )
    return ok("image", f"contents {label[:12] or 'without a label'}", place)


def binds(facts: Facts, wanted: Sequence[str], place: str) -> list[Finding]:
    """Folders that container.binds names: Apptainer refuses to start without one."""
    sources = [bind.split(":")[0] for bind in wanted]
    missing = [source for source in sources if source in facts["missing"]]
    if missing:
        return [
            fault("binds", f"{source}: no such folder on this machine", "mend container.binds in the site file", place)
            for source in missing
        ]
    return [ok("binds", ", ".join(sources) if sources else "none asked for", place)]


def room(facts: Facts, place: str) -> list[Finding]:
    """Space and inodes of the folders that we write to."""
    found = []
    for name, least, low, unit in (
        ("space_kb", SPACE_GB, SPACE_LOW_GB, "GB"),
        ("inodes", INODES, INODES_LOW, "inodes"),
    ):
        for line in facts[name]:
            number, _, path = line.partition(" ")
            if not number.isdigit() or (name == "inodes" and number == "0"):
                continue  # file systems without inodes of their own (btrfs) report 0
            value = int(number) * 1024 / 1e9 if name == "space_kb" else int(number)
            check = "space" if name == "space_kb" else "inodes"
            said = f"{path}: {value:,.0f} {unit} free"
            if value < least:
                found.append(
                    fault(check, said, "make room (`semiocity du`, `semiocity gc`), or use another folder", place)
                )
            elif value < low:
                found.append(warning(check, said, "soon full: `semiocity du` says what takes it", place))
            else:
                found.append(ok(check, said, place))
    return found


def shared_memory(facts: Facts, ranks: int, place: str) -> Finding:
    """/dev/shm: NCCL and the workers that read ahead pass data through it."""
    words = (facts.get("shm_kb") or "").split()
    if len(words) != 2:
        return warning(
            "/dev/shm", "not there", "readers with workers need it: data.workers = 0, or ask the site", place
        )
    size, free = (int(word) * 1024 / 1e9 for word in words)
    said = f"{free:.1f} of {size:.1f} GB free"
    if free < 0.064:
        return fault(
            "/dev/shm", said, "full: other jobs' leftovers? `ls -l /dev/shm` on the node, and remove yours", place
        )
    if free < SHM_GB_A_RANK * ranks:
        return warning(
            "/dev/shm", said, f"{ranks} ranks want {SHM_GB_A_RANK * ranks:.0f} GB: lower data.workers", place
        )
    return ok("/dev/shm", said, place)


def gpus(facts: Facts, asked: int, cuda: str | None, place: str) -> list[Finding]:
    """GPUs that the job sees, and the driver against the CUDA that torch was built for."""
    if asked == 0:
        return [ok("GPUs", "none asked for", place)]
    there = facts["gpu"]
    if len(there) < asked:
        return [
            fault(
                "GPUs",
                f"{len(there)} of {asked} are visible",
                "check gpu_option and gpu_type in the site file, and `nvidia-smi` on the node",
                place,
            )
        ]
    found = [ok("GPUs", f"{len(there)} × {there[0]}", place)]
    driver = facts.get("cuda_driver")
    if driver and cuda:
        # Minor versions are compatible within a major one (CUDA's own rule since 11).
        if int(driver.split(".")[0]) < int(cuda.split(".")[0]):
            found.append(
                fault(
                    "driver",
                    f"the driver knows CUDA {driver}, the image's torch was built for {cuda}",
                    "build the image with a torch for the older CUDA, or ask the site for a newer driver",
                    place,
                )
            )
        else:
            found.append(ok("driver", f"knows CUDA {driver}; torch was built for {cuda}", place))
    return found


def network(facts: Facts, cluster: Cluster, asked: Resources, place: str) -> list[Finding]:
    """The interface for the rendezvous, InfiniBand, and locked memory, which InfiniBand needs."""
    found = []
    name = cluster.network_interface
    if name is not None:
        if name in facts["interface"]:
            found.append(ok("interface", name, place))
        else:
            there = ", ".join(sorted(facts["interface"]))
            found.append(fault("interface", f"{name}: none of this name", f"network_interface: one of {there}", place))
    elif asked.nodes > 1:
        found.append(
            warning("interface", "network_interface is not set", "ranks may choose one that joins no nodes", place)
        )
    active = [line for line in facts["infiniband"] if "ACTIVE" in line]
    if active:
        found.append(ok("InfiniBand", f"{len(active)} active ports", place))
        if facts.get("memlock") not in (None, "unlimited"):
            found.append(
                warning(
                    "memlock",
                    f"{facts['memlock']} KB may be locked",
                    "InfiniBand wants unlimited (PropagateResourceLimitsExcept=MEMLOCK): ask the site",
                    place,
                )
            )
    return found


def transport(lines: Sequence[str], facts: Facts, place: str) -> Finding:
    """What NCCL said it uses, from its log."""
    text = "\n".join(lines)
    fast = any("ACTIVE" in line for line in facts["infiniband"])
    if "NET/IB" in text and "NET/IB : No device found" not in text:
        return ok("NCCL", "NET/IB", place)
    if "NET/Socket" in text:
        if fast:
            return fault(
                "NCCL",
                "NET/Socket although InfiniBand is there",
                "the image needs libibverbs1, ibverbs-providers and librdmacm1; look at NCCL_IB_DISABLE",
                place,
            )
        return ok("NCCL", "NET/Socket; there is no InfiniBand here", place)
    return warning("NCCL", "said nothing of its transport", "run with NCCL_DEBUG=INFO and look at the log", place)


def folder(facts: Facts, place: str) -> list[Finding]:
    """Whether the run folder can be written, and files there behave."""
    if "error" in facts:
        return [
            fault(
                "run folder", str(facts["error"]), "the run folder must be writable for you, here and on nodes", place
            )
        ]
    found = []
    for key, what in (("exclusive", "exclusive creation"), ("rename", "rename over a file")):
        if not facts.get(key):
            found.append(
                fault(
                    "run folder", f"{facts['folder']}: {what} does not work", "use another file system for runs", place
                )
            )
    if facts.get("lock") is not True:
        found.append(
            warning(
                "locks",
                f"{facts['folder']}: {facts.get('lock')}",
                "we need none (leases use exclusive creation); libraries that lock may hang: mount with -o flock",
                place,
            )
        )
    if not found:
        found.append(ok("run folder", f"{facts['folder']}: writable; locks and renames work", place))
    off = float(facts.get("clock_s", 0))
    return [*found, _clock("file clock", off, off, place)]


def clock(at_least_s: float, at_most_s: float, place: str) -> Finding:
    """A node's clock against the login node's, known to lie between two differences (node minus login)."""
    return _clock("clock", at_least_s, at_most_s, place)


def _clock(check: str, low: float, high: float, place: str) -> Finding:
    # What is certain: zero when the interval holds zero, else its nearer end.
    off = max(low, 0.0) + min(high, 0.0)
    whose = "the file system's" if check == "file clock" else "the node's"
    if abs(off) > CLOCK_S:
        return fault(check, f"{whose} is {off:+.0f} s off", "leases and logs go by it: ask the site to run NTP", place)
    if abs(off) > CLOCK_LOW_S:
        return warning(check, f"{whose} is {off:+.1f} s off", "harmless so far; ask the site to run NTP", place)
    return ok(check, f"within {max(abs(off), min(abs(low), abs(high))):.1f} s", place)


def versions(login: Mapping[str, str], node: Mapping[str, str], pickled: bool, place: str) -> list[Finding]:
    """The job's Python is new enough. With SLURM it need not be the login node's: tasks are three plain words.

    `pickled`: tasks go through submitit's pickles (the local executor) into an image, which both sides must read alike.
    """
    python = node.get("python", "")
    if tuple(int(part) for part in python.split(".") if part.isdigit()) < OLDEST_PYTHON:
        oldest = ".".join(map(str, OLDEST_PYTHON))
        said = f"python: {python or 'none'} in the job, {oldest} or newer is needed"
        return [
            fault("versions", said, "container.python in the site file, or build the image with `make image`", place)
        ]
    found = []
    for name in ("python", "submitit", "cloudpickle") if pickled else ():
        if login.get(name) == node.get(name):
            continue
        say = fault if name == "python" else warning
        there = node.get(name) or "not there"
        found.append(
            say(
                "versions",
                f"{name}: {login.get(name) or 'none'} here, {there} in the job, which reads what is pickled here",
                "install the same: `make env` here with the image's Python, or build the image again",
                place,
            )
        )
    there = ", ".join(f"{name} {version}" for name, version in node.items() if version)
    other = f"; Python {login['python']} here, which is no matter" if login.get("python") != python else ""
    return found or [ok("versions", there + other, place)]


def offline(environment: Mapping[str, str], place: str) -> Finding:
    """Jobs must not wait for a hub that they cannot reach."""
    if environment.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        return ok("hub", "offline, as it should be", place)
    return warning(
        "hub", "HF_HUB_OFFLINE is not set in jobs", 'container.env overrides it: HF_HUB_OFFLINE = "1"', place
    )


def signals(seen: Mapping[str, float], wanted: Sequence[str], place: str) -> list[Finding]:
    """Which signals reached the process in the job, and after how long."""
    found = []
    for name in wanted:
        if name in seen:
            found.append(ok("signals", f"{name} reached the process after {seen[name]:.1f} s", place))
        else:
            found.append(
                fault(
                    "signals",
                    f"{name} did not reach the process",
                    "jobs cannot save before they end: a wrapper without `exec` around container.apptainer eats it",
                    place,
                )
            )
    return found
