"""`semiocity doctor`: what could go wrong here, found before a job does; its cheap part runs at each submission."""

from __future__ import annotations

import os
import time
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from semiocity.config import Cluster, Purged, Resources, check
from semiocity.errors import UserError
from semiocity.launch import container, doctor_host, doctor_probe, doctor_slurm, notices
from semiocity.launch.findings import Finding, fault, ok, warning
from semiocity.stages import model_files

if TYPE_CHECKING:
    from semiocity.launch.jobs import Work

FILES_MAX = 200_000
"""Files looked at for their age in one folder; on a metadata server more would be felt."""


def login(cluster: Cluster, asked: Resources, image: Path | None, named: Sequence[str] = ()) -> list[Finding]:
    """Findings on this machine. `named` are models that the job needs, by name."""
    image = image or cluster.container.image
    found: list[Finding] = []
    if cluster.executor == "slurm":
        found += scheduler(doctor_slurm.ask(), cluster, asked)
    else:
        found.append(ok("SLURM", 'executor = "local": jobs run on this machine'))
    facts = doctor_probe.probe(cluster.container.apptainer, places(cluster), cluster.setup)
    if pyxis := image is not None and cluster.container.runtime == "pyxis":
        found += doctor_host.pyxis(facts, "login")
    else:
        found.append(doctor_host.apptainer(facts, cluster.container.apptainer, image is not None, "login"))
    if cluster.executor == "local":
        found.append(doctor_host.fuse(facts, image is not None, "login"))
        found.append(doctor_host.shared_memory(facts, asked.ranks_per_node, "login"))
        found += doctor_host.gpus(facts, asked.gpus_per_node, None, "login")
    if image is not None:
        found.append(squashfs(image) if pyxis else readable(image))
    found += doctor_host.room(facts, "login")
    found += [warning("quota", line, "over the soft limit: make room") for line in doctor_probe.quotas()]
    if line := doctor_probe.lustre_quota(Path.cwd()):
        found.append(lustre(line))
    found += doctor_host.folder(doctor_probe.try_folder(Path("runs").resolve()), "login")
    found += weights(cluster.models.expanduser(), named)
    found += quota(Path("runs"), cluster)
    found += [finding for entry in cluster.purged for finding in purge(entry)]
    found += notices.check(cluster.notify)
    return found


def scheduler(facts: Mapping[str, Any], cluster: Cluster, asked: Resources) -> list[Finding]:
    """Findings from what SLURM's controller said."""
    first = doctor_slurm.answers(facts)
    if first.level == "fault":
        return [first]
    name = asked.partition or cluster.partition
    found = [first, *doctor_slurm.partition(facts, name, cluster.account, cluster.qos)]
    config = facts["config"]
    found += [
        doctor_slurm.account(facts, cluster),
        doctor_slurm.array(config, cluster),
        doctor_slurm.submitted(facts, cluster),
        doctor_slurm.requeue(config, cluster),
    ]
    if all(finding.level != "fault" for finding in found if finding.check == "partition"):
        found += [doctor_slurm.time_limit(facts, name, asked), doctor_slurm.grace(facts, name, asked)]
        found += doctor_slurm.nodes(facts, name, asked, cluster)
    return found


def places(cluster: Cluster) -> list[str]:
    """Folders to look at: the project, weights, what is bound, what is purged, and /tmp."""
    binds = [bind.split(":")[0] for bind in cluster.container.binds]
    models = cluster.models.expanduser()
    named = [str(Path.cwd()), *([str(models.resolve())] if models.is_dir() else []), *binds]
    return list(dict.fromkeys([*named, *(str(entry.path) for entry in cluster.purged), "/tmp"]))


def readable(image: Path) -> Finding:
    """The image is there and its header is that of one; its name says what is in it."""
    try:
        with image.open("rb") as file:
            head = file.read(64)
    except OSError as error:
        return fault("image", f"{image}: {error.strerror}", "build it with `make image`, or mend container.image")
    if b"SIF_MAGIC" not in head:
        return fault("image", f"{image}: is no Apptainer image (SIF)", "copied in part? build it with `make image`")
    try:
        digest = container.recipe_digest(Path("containers"), {})
    except (OSError, UserError):
        return ok("image", f"{image}, {image.stat().st_size / 1e9:.1f} GB")
    wanted = container.image_path(image.parent, digest).name
    if image.resolve().name.startswith("semiocity-") and image.resolve().name != wanted:
        return warning(
            "image", f"{image}: is older or newer than containers/, which would give {wanted}", "`make image`"
        )
    return ok("image", f"{image}, {image.stat().st_size / 1e9:.1f} GB")


def squashfs(image: Path) -> Finding:
    """The image is one that Enroot starts from: a squashfs file."""
    try:
        with image.open("rb") as file:
            head = file.read(4)
    except OSError as error:
        todo = "`enroot import`, or `apptainer sif dump` of the file that `make image` made; or mend container.image"
        return fault("image", f"{image}: {error.strerror}", todo)
    if head != b"hsqs":
        what = "an Apptainer image" if head.startswith(b"#!") else "no squashfs file"
        todo = 'Enroot starts from squashfs (docs/sites.md); or container.runtime = "apptainer"'
        return fault("image", f"{image}: is {what}", todo)
    return ok("image", f"{image}, {image.stat().st_size / 1e9:.1f} GB")


def lustre(line: str) -> Finding:
    """`lfs quota -q`: FILESYSTEM KB SOFT HARD GRACE FILES SOFT HARD GRACE; a star marks what is above a soft limit."""
    words = line.split()
    if "*" in line:
        return warning("quota", line, "over the soft limit of Lustre: make room before its grace time ends")
    numbers = [int(word) for word in words[1:] if word.isdigit()]
    if len(numbers) >= 6 and numbers[2] and numbers[0] > 0.9 * numbers[2]:
        used, hard = numbers[0] * 1024 / 1e9, numbers[2] * 1024 / 1e9
        return warning(
            "quota", f"{used:.0f} of {hard:.0f} GB on {words[0]}", "nearly full: `semiocity du`, `semiocity gc`"
        )
    return ok("quota", line)


def weights(root: Path, named: Sequence[str]) -> list[Finding]:
    """Models that were fetched are complete; those that a job needs are there."""
    found = []
    for name in model_files.read_table():
        state, why = model_files.state(root / name)
        if state == "complete":
            found.append(ok("weights", f"{name}: complete"))
        elif state == "incomplete" or name in named:
            found.append(fault("weights", f"{name}: {why}", f"`{model_files.command(name)}`"))
    return found or [ok("weights", "none are needed" if not named else "all there")]


def checkpoints_gb(runs: Path) -> dict[str, float]:
    """Run → GB (10⁹ bytes) of its checkpoints."""
    found = {}
    for folder in runs.glob("*/checkpoints"):
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        found[folder.parent.name] = size / 1e9
    return found


def quota(runs: Path, cluster: Cluster) -> list[Finding]:
    """Checkpoints of all runs against the site's quota."""
    if cluster.checkpoint_quota_gb is None:
        return []
    sizes = checkpoints_gb(runs)
    total, most = sum(sizes.values()), cluster.checkpoint_quota_gb
    said = f"{total:.1f} of {most:g} GB"
    largest = ", ".join(f"{name} {size:.1f} GB" for name, size in sorted(sizes.items(), key=lambda i: -i[1])[:3])
    if total > most:
        return [fault("checkpoints", said, f"delete old ones, or a smaller keep_last; the largest: {largest}")]
    if total > 0.9 * most:
        return [warning("checkpoints", said, f"soon full; the largest: {largest}")]
    return [ok("checkpoints", said)]


def purge(entry: Purged, roots: Sequence[str] = ("data", "runs", "models")) -> list[Finding]:
    """What of ours lies on a purged folder and would be deleted soon. The site goes by access or change, the later."""
    oldest = entry.days - entry.warn_days
    found = []
    for root in map(Path, roots):
        if not root.exists() or not root.resolve().is_relative_to(entry.path.resolve()):
            continue
        ages = [(age_days(path), path) for path in ours(root)]
        old = [(age, path) for age, path in ages if age > oldest]
        if old:
            age, path = max(old, key=lambda item: item[0])
            said = f"{len(old)} of {len(ages)} files in {root} are older than {oldest} days, such as {path} ({age:.0f})"
            todo = "move them, or `semiocity doctor --touch` where the site allows it"
            found.append(warning("purge", said, f"{entry.path} deletes after {entry.days} days: {todo}"))
        else:
            found.append(ok("purge", f"{root}: nothing older than {oldest} of {entry.days} days"))
    return found or [ok("purge", f"nothing of this project lies on {entry.path}")]


def ours(root: Path) -> Iterator[Path]:
    """Files below `root`, at most FILES_MAX."""
    count = 0
    for folder, _, names in os.walk(root):
        for name in names:
            yield Path(folder) / name
            count += 1
            if count >= FILES_MAX:
                return


def age_days(path: Path) -> float:
    status = path.lstat()
    return (time.time() - max(status.st_mtime, status.st_atime)) / 86400


def touch(cluster: Cluster, roots: Sequence[str] = ("data", "runs", "models")) -> int:
    """Renew the access times of our files on purged folders; their contents and change times stay. Returns how many."""
    count = 0
    for entry in cluster.purged:
        for root in map(Path, roots):
            if root.exists() and root.resolve().is_relative_to(entry.path.resolve()):
                for path in ours(root):
                    os.utime(path, ns=(time.time_ns(), path.stat().st_mtime_ns))
                    count += 1
    return count


def read_job(job_file: Path, sets: Sequence[str]) -> tuple[Resources, Path | None, dict[str, Any], list[Finding]]:
    """A job file's resources, image and contents, and what the ordinary checks before a submission say of it."""
    from semiocity.config import apply_set
    from semiocity.launch import jobs

    try:
        data = tomllib.loads(job_file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{job_file}: {error}") from None
    for item in sets:
        apply_set(data, item)
    asked = check(data.get("resources", {}), Resources, f"{job_file}: resources")
    image = Path(data["image"]) if data.get("image") else None
    resolve = {"stage": jobs.stage, "reduce": jobs.reduce, "task": jobs.train}
    for key, function in resolve.items():
        if key in data:
            try:
                work = function(job_file, sets)
            except UserError as error:
                return asked, image, data, [fault("job", str(error), "mend the job file; nothing would be queued")]
            return asked, image, data, [ok("job", f"{job_file}: {work.kind} into {work.run.name}")]
    return asked, image, data, [ok("job", f"{job_file}: resources are well-formed")]


def check_submission(work: Work, cluster: Cluster) -> list[str]:
    """What is looked at by itself before anything is queued: what sbatch does not say and costs no call to SLURM.

    Raises UserError for what would fail; returns warnings to print.
    """
    found = [*notices.check(cluster.notify), *_grows(work, cluster)]
    facts = {**doctor_probe.parse(""), **_free(work.run)}
    found += doctor_host.room(facts, "login")
    if wrong := [finding for finding in found if finding.level == "fault"]:
        raise UserError("\n".join(f"{f.check}: {f.found}; {f.todo}" for f in wrong))
    return [f"{f.check}: {f.found}; {f.todo}" for f in found if f.level == "warning"]


def _free(run: Path) -> dict[str, list[str]]:
    place = next(folder for folder in (run, *run.parents) if folder.exists())
    status = os.statvfs(place)
    free_kb = status.f_bavail * status.f_frsize // 1024
    return {"space_kb": [f"{free_kb} {place}"], "inodes": [f"{status.f_favail} {place}"]}


def _grows(work: Work, cluster: Cluster) -> list[Finding]:
    """A training's checkpoints against the quota: `keep_last` and one being written, once one shows their size."""
    if cluster.checkpoint_quota_gb is None or work.kind != "train":
        return []
    sizes = checkpoints_gb(work.run.parent)
    steps = sorted((work.run / "checkpoints").glob("step-*"))
    keep = int(work.job["keep_last"])
    one = sum(p.stat().st_size for p in steps[-1].rglob("*") if p.is_file()) / 1e9 if steps else 0.0
    others = sum(size for name, size in sizes.items() if name != work.run.name)
    total, most = others + max(one * (keep + 1), sizes.get(work.run.name, 0.0)), cluster.checkpoint_quota_gb
    if total <= most:
        return []
    fitting = int((most - others) / one) - 1 if one else 0
    todo = f"--set keep_last={fitting}, or" if fitting >= 2 else ""
    said = (
        f"{keep} + 1 of {one:.1f} GB beside {others:.1f} GB of other runs are more than checkpoint_quota_gb = {most:g}"
    )
    return [fault("checkpoints", said, f"{todo} delete checkpoints of other runs".strip())]
