"""Every finding of the doctor is provoked once: by this machine where it allows that, else by made facts."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from semiocity.config import Cluster, Purged, Resources
from semiocity.errors import UserError
from semiocity.launch import doctor, doctor_host, doctor_node, doctor_probe, doctor_slurm, findings, jobs, submission
from semiocity.launch.findings import Finding

HOST: dict[str, Any] = {
    **doctor_probe.parse(""),
    "apptainer": "/usr/bin/apptainer",
    "apptainer_version": "1.4.5",
    "apptainer_suid": "0",
    "uid": "1000",
    "fuse_device": "usable",
    "unshare": "yes",
    "user_namespaces": "9000",
    "tool": ["squashfuse_ll"],
    "interface": ["lo", "ib0"],
    "infiniband": ["mlx5_0 4: ACTIVE"],
    "memlock": "unlimited",
    "gpu": ["NVIDIA A100, 81920 MiB, 550.54"] * 4,
    "cuda_driver": "12.4",
}


PLAIN = Cluster()
MODULES = (doctor, doctor_host, doctor_node, doctor_slurm)
provoked: set[tuple[str, int]] = set()
"""File and line of every call that made a fault or a warning while these tests ran."""


@pytest.fixture(autouse=True)
def _noting(monkeypatch: pytest.MonkeyPatch) -> None:
    def noted(make: Callable[..., Finding]) -> Callable[..., Finding]:
        def making(*arguments: Any) -> Finding:
            caller = sys._getframe(1)
            provoked.add((Path(caller.f_code.co_filename).name, caller.f_lineno))
            return make(*arguments)

        return making

    for module in MODULES:
        for name in {"fault", "warning"} & vars(module).keys():
            monkeypatch.setattr(module, name, noted(getattr(findings, name)))


def level(found: Finding | list[Finding]) -> list[str]:
    return [f.level for f in (found if isinstance(found, list) else [found])]


# ---------------------------------------------------------------- the machine


def test_the_probe_tells_of_this_machine(tmp_path: Path) -> None:
    """The same script that runs on nodes, in a real shell; what `setup` says is no fact."""
    tool = tmp_path / "apptainer"
    lines = ["#!/bin/sh", "case $1 in", "--version) echo apptainer version 1.2.3-rc.1 ;;"]
    tool.write_text("\n".join([*lines, "buildcfg) echo APPTAINER_SUID_INSTALL=1 ;;", "esac\n"]))
    tool.chmod(0o755)
    facts = doctor_probe.probe("apptainer", [tmp_path, "/no/such"], [f"export PATH={tmp_path}:$PATH", "echo loading"])
    assert (facts["apptainer"], facts["apptainer_version"], facts["apptainer_suid"]) == (str(tool), "1.2.3", "1")
    assert facts["path"] == [str(tmp_path)] and facts["missing"] == ["/no/such"]
    assert facts["host"] and abs(int(facts["time"]) - time.time()) < 60 and "lo" in facts["interface"]
    assert facts["space_kb"][0].endswith(str(tmp_path)) and int(facts["space_kb"][0].split()[0]) > 0
    out = tmp_path / "out dir's"
    subprocess.run(["/bin/sh", "-c", doctor_probe.command("apptainer", [tmp_path], out)], check=True)
    assert doctor_probe.parse(out.read_text())["path"] == [str(tmp_path)]


def test_the_container_program() -> None:
    assert level(doctor_host.apptainer(HOST, "apptainer", True, "n1")) == ["ok"]
    without = {key: value for key, value in HOST.items() if key != "apptainer"}
    missing = doctor_host.apptainer(without, "apptainer", True, "n1")
    assert missing.level == "fault" and "module load apptainer" in missing.todo and missing.place == "n1"
    assert level(doctor_host.apptainer(without, "apptainer", False, "n1")) == ["ok"]
    assert level(doctor_host.apptainer({**HOST, "apptainer_version": "1.0.3"}, "apptainer", True, "n1")) == ["warning"]


@pytest.mark.parametrize(
    ("change", "expected", "words"),
    [
        ({}, "ok", "squashfuse"),
        ({"tool": []}, "ok", "own squashfuse"),
        ({"apptainer_suid": "1", "unshare": "no"}, "ok", "setuid"),
        ({"uid": "0", "fuse_device": "closed"}, "ok", "root"),
        ({"unshare": "no"}, "fault", "user namespaces are closed"),
        ({"user_namespaces": "0"}, "fault", "user namespaces are closed"),
        ({"fuse_device": "closed"}, "warning", "/dev/fuse is closed to you"),
        ({"fuse_device": ""}, "warning", "/dev/fuse is missing"),
    ],
)
def test_whether_images_can_be_mounted(change: dict, expected: str, words: str) -> None:
    found = doctor_host.fuse({**HOST, **change}, True, "n1")
    assert found.level == expected and words in found.found


def test_pyxis_and_enroot(tmp_path: Path) -> None:
    """What the probe sees of a machine with both, with neither, and of nodes that cannot start a container."""
    for name, text in (
        ("enroot", "#!/bin/sh\n[ $1 = version ] && echo 3.4.1\n"),
        ("srun", "#!/bin/sh\necho '      --container-image=[USER@][REGISTRY#]IMAGE[:TAG]|PATH'\n"),
    ):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    there = doctor_probe.probe("apptainer", [], [f"export PATH={tmp_path}:$PATH"])
    assert (there["enroot"], there["enroot_version"], there["pyxis"]) == (str(tmp_path / "enroot"), "3.4.1", "yes")
    assert level(doctor_host.pyxis({**there, "uid": "0"}, "login")) == ["ok", "ok"]
    (tmp_path / "srun").write_text("#!/bin/sh\necho '  --nodes=N'\n")
    without = doctor_probe.probe("apptainer", [], [f"export PATH={tmp_path}:$PATH"])
    plain, _ = doctor_host.pyxis(without, "login")
    assert plain.level == "fault" and "plugstack.conf" in plain.todo
    here = {key: value for key, value in HOST.items() if key != "apptainer"}
    assert level(doctor_host.pyxis(here, "login")) == ["fault", "ok"], "no srun; Enroot is the nodes' affair"
    assert level(doctor_host.pyxis({**here, "pyxis": "yes"}, "n1")) == ["ok", "fault"]
    node = {**here, "enroot": "/usr/bin/enroot", "enroot_version": "3.4.1"}
    assert level(doctor_host.pyxis(node, "n1")) == ["ok"]
    closed = doctor_host.pyxis({**node, "user_namespaces": "0"}, "n1")
    assert level(closed) == ["ok", "fault"] and "user.max_user_namespaces" in closed[1].todo


def test_the_node_has_the_very_image() -> None:
    assert level(doctor_host.image_content("0123456789abcdef", "semiocity-0123456789ab.sif", "n1")) == ["ok"]
    assert level(doctor_host.image_content("ffff456789abcdef", "semiocity-0123456789ab.sif", "n1")) == ["fault"]
    assert level(doctor_host.image_content("", "own.sif", "n1")) == ["ok"]


def test_a_missing_bind(tmp_path: Path) -> None:
    facts = doctor_probe.probe("apptainer", [tmp_path, "/no/scratch"])
    found = doctor_host.binds(facts, [str(tmp_path), "/no/scratch:/scratch:ro"], "n1")
    assert level(found) == ["fault"] and "/no/scratch" in found[0].found
    assert level(doctor_host.binds(facts, [str(tmp_path)], "n1")) == ["ok"]


def test_space_and_inodes() -> None:
    facts = {**HOST, "space_kb": ["500000 /a", "5000000 /b", "50000000 /c"], "inodes": ["10 /a", "2000 /b", "0 /c"]}
    assert level(doctor_host.room(facts, "n1")) == ["fault", "warning", "ok", "fault", "warning"]


def test_a_full_file_system_is_seen(tmp_path: Path) -> None:
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(tmp_path)], capture_output=True)
    if mount.returncode:
        pytest.skip("mounting a small file system needs root")
    try:
        with pytest.raises(OSError):
            (tmp_path / "full").write_bytes(bytes(3_000_000))
        facts = doctor_probe.probe("apptainer", [tmp_path])
        assert "fault" in level(doctor_host.room(facts, "n1"))
        assert "No space left" in doctor_probe.try_folder(tmp_path).get("error", "No space left")
        words = facts["space_kb"][0].split()[0]
        shm = doctor_host.shared_memory({"shm_kb": f"2048 {words}"}, 1, "n1")
        assert shm.level == "fault" and "/dev/shm" in shm.todo
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


def test_shared_memory() -> None:
    assert level(doctor_host.shared_memory({"shm_kb": "64000000 64000000"}, 8, "n1")) == ["ok"]
    assert level(doctor_host.shared_memory({"shm_kb": "64000000 4000000"}, 8, "n1")) == ["warning"]
    assert level(doctor_host.shared_memory({"shm_kb": "65536 100"}, 1, "n1")) == ["fault"]
    assert level(doctor_host.shared_memory({"shm_kb": ""}, 1, "n1")) == ["warning"]


def test_gpus_driver_and_transport() -> None:
    assert level(doctor_host.gpus(HOST, 4, "12.8", "n1")) == ["ok", "ok"]
    assert level(doctor_host.gpus(HOST, 0, None, "n1")) == ["ok"]
    assert level(doctor_host.gpus(HOST, 8, "12.8", "n1")) == ["fault"]
    assert level(doctor_host.gpus(HOST, 4, "13.0", "n1")) == ["ok", "fault"]
    ib = ["n1:1 [0] NCCL INFO NET/IB : Using [0]mlx5_0:1/IB [RO]; OOB ib0:10.0.0.1<0>"]
    sockets = ["NCCL INFO NET/IB : No device found.", "NCCL INFO NET/Socket : Using [0]eth0:10.0.0.1<0>"]
    assert level(doctor_host.transport(ib, HOST, "n1")) == ["ok"]
    assert level(doctor_host.transport(sockets, HOST, "n1")) == ["fault"]
    assert level(doctor_host.transport(sockets, {**HOST, "infiniband": []}, "n1")) == ["ok"]
    assert level(doctor_host.transport(["timeout"], HOST, "n1")) == ["warning"]
    assert doctor_node._torch({"error": "no kernel image"}, "n1").level == "fault"
    assert doctor_node._torch({"works": True, "gpus": 4, "cuda": "12.8"}, "n1").level == "ok"


def test_network_interface_and_locked_memory() -> None:
    asked = Resources(nodes=2)
    assert level(doctor_host.network(HOST, Cluster(network_interface="ib0"), asked, "n1")) == ["ok", "ok"]
    wrong = doctor_host.network(HOST, Cluster(network_interface="ib9"), asked, "n1")[0]
    assert wrong.level == "fault" and "one of ib0, lo" in wrong.todo
    assert level(doctor_host.network({**HOST, "infiniband": []}, Cluster(), asked, "n1")) == ["warning"]
    assert level(doctor_host.network({**HOST, "memlock": "64"}, Cluster(), Resources(), "n1")) == ["ok", "warning"]


def test_the_run_folder(tmp_path: Path) -> None:
    good = doctor_probe.try_folder(tmp_path / "runs")
    assert level(doctor_host.folder(good, "n1")) == ["ok", "ok"]
    assert list((tmp_path / "runs").iterdir()) == []
    (tmp_path / "file").write_text("")
    bad = doctor_probe.try_folder(tmp_path / "file" / "runs")
    assert level(doctor_host.folder(bad, "n1")) == ["fault"]
    assert level(doctor_host.folder({**good, "rename": False}, "n1")) == ["fault", "ok"]
    assert level(doctor_host.folder({**good, "exclusive": False}, "n1")) == ["fault", "ok"]
    assert level(doctor_host.folder({**good, "lock": "Function not implemented"}, "n1")) == ["warning", "ok"]
    assert level(doctor_host.folder({**good, "clock_s": -300.0}, "n1")) == ["ok", "fault"]


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(-0.3, 0.2, "ok"), (-9.0, 40.0, "ok"), (5.0, 6.0, "warning"), (-300.0, -299.0, "fault"), (90.0, 95.0, "fault")],
)
def test_a_wrong_clock_is_only_claimed_when_it_is_certain(low: float, high: float, expected: str) -> None:
    assert doctor_host.clock(low, high, "n1").level == expected


def test_versions_signals_and_the_hub() -> None:
    mine = doctor_probe.versions()
    assert level(doctor_host.versions(mine, mine, False, "n1")) == ["ok"]
    newer = doctor_host.versions({**mine, "python": "3.13"}, {**mine, "submitit": ""}, False, "n1")[0]
    assert newer.level == "ok" and "Python 3.13 here" in newer.found, "with SLURM nothing is pickled"
    assert level(doctor_host.versions({**mine, "python": "3.13"}, mine, True, "n1")) == ["fault"]
    old = doctor_host.versions(mine, {**mine, "python": "3.9"}, False, "n1")
    assert level(old) == ["fault"] and "3.9 in the job, 3.11 or newer" in old[0].found
    other = doctor_host.versions(mine, {**mine, "submitit": "1.4", "cloudpickle": ""}, True, "n1")
    assert level(other) == ["warning", "warning"] and "not there" in other[1].found
    assert level(doctor_host.signals({"SIGUSR2": 0.1}, ["SIGUSR2", "SIGTERM"], "n1")) == ["ok", "fault"]
    assert level(doctor_host.offline({}, "n1")) == ["warning"]
    assert level(doctor_host.offline({"HF_HUB_OFFLINE": "1"}, "n1")) == ["ok"]


def test_what_a_node_said_becomes_findings(tmp_path: Path) -> None:
    """Two lives as a GPU node would report them; the clock is 100 s ahead."""
    cluster = Cluster(executor="slurm", container={"binds": ["/scratch"]})
    work = jobs.Work("doctor", tmp_path, tmp_path, {}, Resources(gpus_per_node=4), image=tmp_path / "x.sif")
    inside = {
        "versions": doctor_probe.versions(),
        "environment": {"HF_HUB_OFFLINE": "1"},
        "folder": doctor_probe.try_folder(tmp_path),
        "shm_kb": "64000000 64000000",
        "unseen": ["/shared/models/sam"],
        "torch": {"works": True, "gpus": 4, "cuda": "12.8"},
        "nccl": ["NET/IB : Using"],
    }
    lives = {0: {**inside, "signals": {"SIGUSR2": 1102.5}}, 1: {**inside, "signals": {"SIGTERM": 1112.0}}}
    times = {"ready SIGUSR2": 1100.0, "seen SIGUSR2": 1000.3, "sent SIGUSR2": 1002.0, "sent SIGTERM": 1011.0}
    found = {f.check: f for f in doctor_node.judge(work, cluster, {**HOST, "host": "gpu7"}, lives, times)}
    assert found["clock"].level == "fault" and "+100 s" in found["clock"].found
    assert found["weights"].level == "fault" and "container.binds" in found["weights"].todo
    assert found["NCCL"].level == found["driver"].level == found["requeue"].level == "ok"
    assert found["NCCL"].place == "gpu7"
    still = doctor_node.judge(work, cluster.model_copy(update={"requeue": False}), HOST, lives, times)
    assert next(f for f in still if f.check == "requeue").level == "warning"


# ---------------------------------------------------------------- SLURM

SLURM: dict[str, Any] = {
    "missing": [],
    "user": "me",
    "groups": ["city"],
    "config": {"SLURM_VERSION": "22.05.8", "MaxArraySize": "1001", "MaxJobCount": "10000", "JobRequeue": "1"},
    "partitions": [
        {"PartitionName": "gpu", "Default": "YES", "State": "UP", "MaxTime": "1-00:00:00", "TotalNodes": "2"},
        {"PartitionName": "old", "State": "DRAIN", "MaxTime": "UNLIMITED"},
        {"PartitionName": "closed", "State": "UP", "AllowAccounts": "a,b", "AllowGroups": "staff", "DenyQos": "low"},
        {"PartitionName": "kicked", "State": "UP", "PreemptMode": "REQUEUE", "GraceTime": "30"},
    ],
    "nodes": [
        {"name": f"g{i}", "partition": "gpu*", "cpus": "64", "memory_mb": "512000", "gres": "gpu:a100:4(S:0-1)",
         "features": "a100,ib", "state": state}
        for i, state in enumerate(["idle", "mixed", "down*"])
    ],
    "limits": [{"account": "city", "partition": "", "qos": "normal,long", "default_qos": "normal", "max_submit": "",
                "max_jobs": "", "qos_max_submit": "200"}],
}  # fmt: skip


def test_slurm_itself() -> None:
    assert level(doctor_slurm.answers(SLURM)) == ["ok"]
    assert level(doctor_slurm.answers({"missing": ["sbatch"]})) == ["fault"]
    down = doctor_slurm.answers({"missing": [], "error": "Unable to contact slurm controller"})
    assert down.level == "fault" and "Unable to contact" in down.found
    assert level(doctor.scheduler({"missing": ["sbatch"]}, Cluster(), Resources())) == ["fault"]


def test_limits_of_submission() -> None:
    config = SLURM["config"]
    assert level(doctor_slurm.array(config, Cluster())) == ["ok"]
    assert doctor_slurm.array(config, Cluster(max_array=4000)).todo == "max_array = 1001"
    assert doctor_slurm.submitted(SLURM, Cluster()).todo.startswith("max_submitted = 200")
    assert level(doctor_slurm.submitted(SLURM, Cluster(max_submitted=200))) == ["ok"]
    assert level(doctor_slurm.submitted(SLURM, Cluster(max_submitted=500))) == ["fault"]
    assert level(doctor_slurm.submitted({**SLURM, "limits": None}, Cluster(max_submitted=20_000))) == ["fault"]


def test_partitions() -> None:
    def found(name: str | None, account: str | None = None, qos: str | None = None) -> list[str]:
        return level(doctor_slurm.partition(SLURM, name, account, qos))

    assert found("gpu") == found(None) == ["ok"]
    assert found("nope") == found("old") == ["fault"]
    assert found("closed", "c", "low") == ["fault"] * 3
    assert level(doctor_slurm.partition({**SLURM, "partitions": []}, None, None, None)) == ["fault"]


def test_accounts() -> None:
    enforced = {**SLURM, "config": {**SLURM["config"], "AccountingStorageEnforce": "associations,limits"}}
    assert level(doctor_slurm.account(enforced, Cluster(account="city", qos="long"))) == ["ok"]
    assert doctor_slurm.account(enforced, Cluster(account="town")).todo == "account: one of city"
    assert doctor_slurm.account(enforced, Cluster(qos="urgent")).todo == "qos: one of long, normal"
    assert level(doctor_slurm.account({**enforced, "limits": []}, Cluster())) == ["fault"]
    assert level(doctor_slurm.account({**enforced, "limits": None}, Cluster())) == ["warning"]
    assert level(doctor_slurm.account({**SLURM, "limits": None}, Cluster())) == ["ok"]


def test_time_requeue_and_preemption() -> None:
    assert doctor_slurm.time_limit(SLURM, "gpu", Resources(timeout_min=2000)).todo.startswith(
        "--set resources.timeout_min=1440"
    )
    assert level(doctor_slurm.time_limit(SLURM, None, Resources(timeout_min=1440))) == ["ok"]
    assert level(doctor_slurm.time_limit(SLURM, "old", Resources(timeout_min=9999))) == ["ok"]
    assert level(doctor_slurm.requeue({"JobRequeue": "0"}, Cluster())) == ["warning"]
    assert level(doctor_slurm.requeue({"JobRequeue": "0"}, Cluster(requeue=False))) == ["ok"]
    kicked = {**SLURM, "config": {**SLURM["config"], "PreemptType": "preempt/partition_prio"}}
    assert level(doctor_slurm.grace(kicked, "kicked", Resources(signal_delay_s=600))) == ["warning"]
    assert level(doctor_slurm.grace(kicked, "kicked", Resources(signal_delay_s=20))) == ["ok"]
    assert level(doctor_slurm.grace(kicked, "gpu", Resources())) == ["ok"]


def test_nodes_have_what_the_job_asks_for() -> None:
    def todo(site: Cluster = PLAIN, **asked: Any) -> str:
        return "; ".join(
            f.todo for f in doctor_slurm.nodes(SLURM, "gpu", Resources(**asked), site) if f.level == "fault"
        )

    assert todo(Cluster(gpu_type="a100", constraint="ib"), gpus_per_node=4, nodes=2, mem_gb=500, cpus_per_rank=64) == ""
    assert todo(gpus_per_node=8) == "the types are a100"
    assert todo(Cluster(gpu_type="h100"), gpus_per_node=1) == "the types are a100"
    assert todo(nodes=3) == "wait for the others"
    assert todo(nodes=4).startswith("fewer resources.nodes")
    assert todo(mem_gb=501) == "--set resources.mem_gb=500"
    assert "cpus_per_rank" in todo(cpus_per_rank=65)
    assert todo(Cluster(constraint="h100")) == "their features: a100, ib"


@pytest.mark.parametrize(
    ("text", "expected"),
    [("UNLIMITED", None), ("1-12:30:00", 2190), ("2-00", 2880), ("12:00:00", 720), ("90:00", 90), ("45", 45)],
)
def test_time_limits_in_slurms_spelling(text: str, expected: int | None) -> None:
    assert doctor_slurm.minutes(text) == expected


@pytest.mark.parametrize(
    ("gres", "kind", "expected"),
    [("(null)", None, 0), ("gpu:2", None, 2), ("gpu:2", "a100", 2), ("gpu:a100:4(S:0-1),nvme:1", "a100", 4),
     ("gpu:a100:4,gpu:t4:2", None, 6), ("gpu:a100:4,gpu:t4:2", "t4", 2), ("gpu", None, 1)],
)  # fmt: skip
def test_gpus_of_a_node(gres: str, kind: str | None, expected: int) -> None:
    assert doctor_slurm.gpus_of(gres, kind) == expected


# ---------------------------------------------------------------- the project


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("jobs", "runs", "data"):
        (tmp_path / name).mkdir()
    return tmp_path


def test_the_image(project: Path) -> None:
    image = project / "x.sif"
    assert level(doctor.readable(image)) == ["fault"]
    image.write_bytes(b"half a download")
    assert "no Apptainer image" in doctor.readable(image).found
    image.write_bytes(b"#!/usr/bin/env run-singularity\n\0SIF_MAGIC\0" + bytes(100))
    assert level(doctor.readable(image)) == ["ok"]
    old = project / "semiocity-0123456789ab.sif"
    old.write_bytes(image.read_bytes())
    (project / "containers").mkdir()
    source = Path(__file__).parents[2] / "containers"
    for name in ("semiocity.def", "versions.args", "requirements.lock"):
        (project / "containers" / name).write_bytes((source / name).read_bytes())
    assert "older or newer" in doctor.readable(old).found


def test_an_image_for_enroot(project: Path) -> None:
    image = project / "x.sqsh"
    missing = doctor.squashfs(image)
    assert missing.level == "fault" and "enroot import" in missing.todo
    image.write_bytes(b"#!/usr/bin/env run-singularity\n\0SIF_MAGIC\0" + bytes(100))
    wrong = doctor.squashfs(image)
    assert "is an Apptainer image" in wrong.found and 'runtime = "apptainer"' in wrong.todo
    image.write_bytes(b"hsqs" + bytes(100))
    assert level(doctor.squashfs(image)) == ["ok"]
    site = Cluster(executor="slurm", container={"runtime": "pyxis", "image": str(image)})
    checks = {f.check for f in doctor.login(site, Resources(), None)}
    assert {"Pyxis", "Enroot", "image"} <= checks and not {"apptainer", "mounting"} & checks


def test_weights_are_whole_or_named_with_their_command(project: Path) -> None:
    (project / "jobs/models.toml").write_text('[sam]\nrepo = "o/sam"\n[blip]\nrepo = "o/blip"\n')
    root = project / "models"
    assert level(doctor.weights(root, [])) == ["ok"]
    assert [(f.level, f.todo) for f in doctor.weights(root, ["sam"])] == [("fault", "`semiocity fetch sam`")]
    (root / "sam").mkdir(parents=True)
    (root / "sam/model.safetensors").write_bytes(bytes(90))
    marker = {"files": {"model.safetensors": {"bytes": 100}}}
    (root / "sam/.semiocity-model.json").write_text(json.dumps(marker))
    assert "has 90 bytes instead of 100" in doctor.weights(root, [])[0].found
    (root / "sam/model.safetensors").write_bytes(bytes(100))
    assert level(doctor.weights(root, ["sam"])) == ["ok"]


def checkpoint(project: Path, run: str, size: int) -> None:
    folder = project / "runs" / run / "checkpoints" / "step-00000010"
    folder.mkdir(parents=True)
    with (folder / "a.safetensors").open("wb") as file:
        file.truncate(size)


def test_checkpoints_against_the_quota(project: Path) -> None:
    checkpoint(project, "one", 3 * 10**9)
    checkpoint(project, "two", 10**9)
    assert level(doctor.quota(Path("runs"), Cluster())) == []
    assert level(doctor.quota(Path("runs"), Cluster(checkpoint_quota_gb=10))) == ["ok"]
    assert level(doctor.quota(Path("runs"), Cluster(checkpoint_quota_gb=4.2))) == ["warning"]
    full = doctor.quota(Path("runs"), Cluster(checkpoint_quota_gb=3.5))[0]
    assert full.level == "fault" and "one 3.0 GB, two 1.0 GB" in full.todo


def test_a_training_that_would_pass_the_quota_is_refused_before_it_queues(project: Path) -> None:
    checkpoint(project, "one", 3 * 10**9)
    checkpoint(project, "two", 10**9)
    work = jobs.Work("train", project / "runs/two", project / "data", {"keep_last": 5}, Resources())
    assert doctor.check_submission(work, Cluster(checkpoint_quota_gb=9)) == []
    with pytest.raises(UserError, match=r"5 \+ 1 of 1\.0 GB beside 3\.0 GB .*--set keep_last=4, or delete"):
        doctor.check_submission(work, Cluster(checkpoint_quota_gb=8.5))


def test_a_refusal_leaves_nothing_behind_and_a_warning_is_said(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    work = doctor_node.work_for(Resources(), None, [], True)

    def refuse(*_: object) -> list[str]:
        raise UserError("space: none")

    monkeypatch.setattr(doctor, "check_submission", refuse)
    with pytest.raises(UserError, match="space: none"):
        submission.submit(work, PLAIN)
    assert not (work.run / "attempts").exists()
    monkeypatch.setattr(doctor, "check_submission", lambda *_: ["notices: nobody hears"])
    assert submission.submit(work, PLAIN)
    assert "warning: notices: nobody hears" in capsys.readouterr().err
    found = doctor_node.judge(work, PLAIN, {}, {0: json.loads((work.run / "node.0.json").read_text())}, {})
    assert findings.healthy(found) and {"versions", "hub", "/dev/shm"} <= {f.check for f in found}


def test_files_on_purged_scratch(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (project / "data/old.tar").write_text("x")
    (project / "data/new.tar").write_text("x")
    before = time.time() - 25 * 86400
    os.utime(project / "data/old.tar", (before, before))
    entry = Purged(path=project, days=30)
    by_root = {f.found.partition(":")[0]: f for f in doctor.purge(entry)}
    warned = next(f for f in by_root.values() if f.level == "warning")
    assert "1 of 2 files in data are older than 23 days" in warned.found and "--touch" in warned.todo
    assert level(doctor.purge(Purged(path=project, days=40))) == ["ok", "ok"]
    assert level(doctor.purge(Purged(path=Path("/somewhere"), days=30))) == ["ok"]
    assert doctor.touch(Cluster(purged=[entry])) == 2
    assert level(doctor.purge(entry)) == ["ok", "ok"]
    assert (project / "data/old.tar").stat().st_mtime == pytest.approx(before, abs=1), "contents are as old as before"


def test_quota_of_lustre() -> None:
    assert level(doctor.lustre("/lustre 100 0 0 - 5 0 0 -")) == ["ok"]
    assert level(doctor.lustre("/lustre 950 900 1000 - 5 0 0 -")) == ["warning"]
    assert level(doctor.lustre("/lustre 950* 900 1000 6d 5 0 0 -")) == ["warning"]


def test_jobs_are_checked_as_before_a_submission(project: Path) -> None:
    (project / "job.toml").write_text('stage = "caption"\ndataset = "data/city"\n[args]\ncaptioner = "labels"\n')
    *_, found = doctor.read_job(project / "job.toml", [])
    assert level(found) == ["fault"] and "data/city" in found[0].found
    (project / "job.toml").write_text("[resources]\nspeed = 3\n")
    with pytest.raises(UserError, match=r"job\.toml: resources: speed: unknown key"):
        doctor.read_job(project / "job.toml", [])


def test_the_report_counts_and_its_status_is_that_of_its_faults() -> None:
    found = [findings.ok("a", "fine"), findings.warning("b", "hm", "do", "n1"), findings.fault("c", "no", "mend", "n1")]
    text = findings.render(found)
    assert (
        text.endswith("1 ok, 1 warnings, 1 faults") and "-> mend" in text and text.index("login:") < text.index("n1:")
    )
    assert not findings.healthy(found) and findings.healthy(found[:2])
    assert json.loads(findings.as_json(found))["healthy"] is False


def test_this_machine_passes(project: Path) -> None:
    from semiocity.cli import main

    assert main(["doctor"]) == 0


def answering(folder: Path, name: str, *lines: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text("\n".join(["#!/bin/sh", *lines, ""]))
    (folder / name).chmod(0o755)


def test_a_soft_limit_that_is_passed(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As quota(1) tells it: a star behind what is above the soft limit."""
    answering(
        project / "bin", "quota", "echo 'Disk quotas for user me (uid 1000):'",
        "echo '  Filesystem  blocks  quota  limit  grace  files  quota  limit  grace'",
        "echo '  /dev/sda1   120*    100    150    6days  12     0      0'",
        "echo '  /dev/sdb1   50      100    150    0      12     0      0'",
    )  # fmt: skip
    monkeypatch.setenv("PATH", f"{project / 'bin'}:{os.environ['PATH']}")
    (found,) = [f for f in doctor.login(PLAIN, Resources(), None) if f.check == "quota"]
    assert found.level == "warning" and "/dev/sda1" in found.found and "make room" in found.todo


def test_a_job_that_does_not_come_or_come_back_or_ends_at_once(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """squeue as it answers then; the same on a real controller is in tests/slurm/test_doctor_jobs.py."""
    monkeypatch.setenv("PATH", f"{project / 'bin'}:{os.environ['PATH']}")
    for name in ("POLL_S", "ASK_S"):
        monkeypatch.setattr(doctor_node, name, 0.001)
    work = doctor_node.work_for(Resources(), None, [], True)
    log = work.run / "attempts/0001/logs/7_0_log.out"
    log.parent.mkdir(parents=True)
    log.write_text("semiocity: begins\n")

    def waiting(restart: int, limit_s: float) -> Finding:
        found = doctor_node._wait(work, "7", lambda: False, limit_s, restart)
        assert found is not None and (found.level, found.check, found.place) == ("fault", "node job", "node")
        return found

    answering(
        project / "bin", "squeue", "case $* in *'-o %r'*) echo Resources ;; *) echo '7|PENDING|Resources' ;; esac"
    )
    assert waiting(0, 0.06).found == "job 7 did not start within 0.001 min"
    assert waiting(0, 0.06).todo == "squeue gives as reason: Resources"
    assert waiting(1, 0.06).found == "job 7 did not come back after it asked to be requeued within 0.001 min"
    answering(project / "bin", "squeue", "exit 0")
    gone = waiting(0, 60)
    assert (gone.found, gone.todo) == ("job 7 ended before it said anything", "see squeue")
    log.write_text("FATAL: no such image\nsrun: error: n1: task 0: Exited with exit code 255\n")
    assert waiting(0, 60).todo == "its log says: FATAL: no such image"


def test_every_finding_was_provoked(request: pytest.FixtureRequest) -> None:
    """The last test here: a new finding needs its case above."""
    mine = [item for item in request.session.items if item.path == request.path]
    if len(mine) < len(set(re.findall(r"^def (test_\w+)", Path(__file__).read_text(), re.MULTILINE))):
        pytest.skip("only some of the tests of this file run")
    wanted = set()
    for module in MODULES:
        path = Path(module.__file__ or "")
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in FINDERS:
                wanted.add((path.name, node.lineno))
    assert len(wanted) > 60
    assert wanted <= provoked, sorted(wanted - provoked)


FINDERS = {"fault", "warning", "say"}
