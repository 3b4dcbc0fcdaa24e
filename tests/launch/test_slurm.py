"""What is sent to SLURM, held against golden files. `SEMIOCITY_GOLDEN=write pytest …` writes them anew."""

import os
import re
from dataclasses import replace
from pathlib import Path

import pytest

from semiocity.config import Cluster, Resources, check
from semiocity.errors import UserError
from semiocity.launch import slurm
from semiocity.launch.runs import Attempt

GOLDEN = Path(__file__).parents[1] / "golden"
RUN = Path("/project/runs/demo")

CASES: dict[str, tuple[Cluster, Resources, Path | None, int]] = {
    "caption-array": (
        Cluster(executor="slurm", partition="cpu", setup=["module load apptainer"]),
        Resources(array_parallelism=8, timeout_min=90),
        Path("/images/semiocity.sif"),
        40,
    ),
    "train-8gpu": (
        Cluster(
            executor="slurm",
            partition="gpu",
            account="city",
            network_interface="ib0",
            exclusive=True,
            sbatch={"mail-type": "FAIL"},
        ),
        Resources(
            nodes=2,
            ranks_per_node=8,
            gpus_per_node=8,
            cpus_per_rank=8,
            mem_gb=480,
            timeout_min=1440,
            signal_delay_s=600,
        ),
        Path("/images/semiocity.sif"),
        1,
    ),
    "train-pyxis": (
        Cluster(
            executor="slurm",
            partition="gpu",
            container={"runtime": "pyxis", "binds": ["/scratch", "/sw:/opt/sw:ro"], "python": "/opt/venv/bin/python3"},
        ),
        Resources(nodes=2, ranks_per_node=8, gpus_per_node=8, cpus_per_rank=8, timeout_min=1440),
        Path("/images/semiocity.sqsh"),
        1,
    ),
    "pack-no-image": (Cluster(executor="slurm"), Resources(), None, 3),
}


def launch(name: str) -> slurm.Launch:
    cluster, resources, image, _ = CASES[name]
    return slurm.Launch(
        name, cluster, resources, image, RUN / "code" / "abc", (RUN, Path("/project/data/city")), Path("/project")
    )


@pytest.mark.parametrize("name", CASES)
def test_sbatch_file_is_golden(name: str) -> None:
    text = slurm.sbatch_file(launch(name), Attempt(RUN, 1), CASES[name][3])
    # The interpreter's place is this machine's affair when no image is used.
    text = re.sub(r"^(srun .*?)\S+/python3?(\.\d+)? -u", r"\1PYTHON -u", text, flags=re.MULTILINE)
    path = GOLDEN / f"{name}.sbatch"
    if os.environ.get("SEMIOCITY_GOLDEN") == "write":
        path.write_text(text + "\n")
    assert text + "\n" == path.read_text()


def test_secrets_stay_out_of_the_sbatch_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_verysecret")
    monkeypatch.setenv("WANDB_API_KEY", "wandbsecret")
    for name in CASES:
        assert "secret" not in slurm.sbatch_file(launch(name), Attempt(RUN, 1), 1)


@pytest.mark.parametrize("runtime", ["apptainer", "pyxis", "none"])
@pytest.mark.parametrize(
    ("site", "words"),
    [
        ({"env": {"HF_TOKEN": "abc123"}}, r"container\.env: HF_TOKEN: a secret must not be in a file"),
        (
            {"env": {"HTTPS_PROXY": "http://me:abc123@proxy:3128"}},
            r"container\.env: HTTPS_PROXY: a URL with a password",
        ),
        ({"env": {"HOOK": "https://chat/abc123"}}, r"container\.env\.HOOK: the webhook's URL"),
        ({"env": {"A B": "abc123"}}, r"container\.env: 'A B': not an environment variable"),
        ({"env": {"PYTHONPATH": "/abc123"}}, r"container\.env: PYTHONPATH: the submission decides that"),
        ({"setup": ["export HF_TOKEN='abc123'"]}, "setup: HF_TOKEN: a secret must not be in a file"),
        ({"setup": ["pip config set index https://me:abc123@host/"]}, "setup: a URL with a password"),
        ({"srun": ["--export=ALL,MY_API_KEY=abc123"]}, "srun: MY_API_KEY"),
        ({"sbatch": {"export": "ALL,HF_TOKEN=abc123"}}, "sbatch: HF_TOKEN"),
    ],
)
def test_no_secret_gets_from_the_site_file_into_an_sbatch_file(runtime: str, site: dict, words: str) -> None:
    """Whatever runs the image. The message does not repeat the secret: it may end up in a log."""
    keys = {key: value for key, value in site.items() if key != "env"}
    container = {"runtime": runtime, "env": site.get("env", {})}
    with pytest.raises(UserError, match=words) as error:
        check({**keys, "notify": {"webhook_env": "HOOK"}, "container": container}, Cluster, "cluster.toml")
    assert "abc123" not in str(error.value)


def test_what_only_resembles_a_secret_or_is_read_elsewhere_passes() -> None:
    setup = [
        "export HF_TOKEN=$(cat ~/token)",
        'HF_TOKEN="$OTHER" WANDB_API_KEY=`pass wandb`',
        "unset API_KEY; HF_TOKEN=",
    ]
    env = {"TOKENIZERS_PARALLELISM": "false", "HTTPS_PROXY": "http://proxy:3128", "EMPTY": ""}
    cluster = Cluster(setup=setup, srun=["--export=ALL"], sbatch={"export": "ALL,A=1"}, container={"env": env})
    assert slurm.environment(replace(launch("pack-no-image"), cluster=cluster)).items() >= env.items()


def test_no_option_of_the_site_file_overrides_what_is_computed() -> None:
    """Every option that stands in some sbatch file is refused in `[sbatch]`, or added to what was computed."""
    everything = {"partition": "a", "account": "b", "qos": "c", "constraint": "d", "exclusive": True, "requeue": False}
    asked = Resources(gpus_per_node=8, mem_gb=64, array_parallelism=2)
    computed: set[str] = set()
    for gpus in ("gpus-per-node", "gres"):
        for memory in ("mem", "mem-per-cpu", "mem-per-gpu"):
            notify = {"mail": "me@example.org"}
            cluster = Cluster(**everything, gpu_option=gpus, memory_option=memory, notify=notify)
            made = slurm.Launch("x", cluster, asked, None, RUN, (RUN,), RUN.parent, exclude=("n1",))
            for text in (slurm.sbatch_file(made, Attempt(RUN, 1), tasks, after=["7"]) for tasks in (1, 3)):
                computed |= set(re.findall(r"^#SBATCH --([a-z-]+)", text, re.MULTILINE))
    assert len(computed) >= 24, sorted(computed)
    for name in sorted({*computed, "requeue", "error"} - {"exclude", "gres", "mail-type", "exclusive"}):
        for written in {name, name.replace("-", "_")}:
            with pytest.raises(UserError, match=rf"sbatch\.{written}: .* decides that; say it there"):
                check({"sbatch": {written: "x"}}, Cluster, "cluster.toml")
    for data, name in (
        ({"sbatch": {"exclusive": True}}, "exclusive"),
        ({"sbatch": {"exclusive": "user"}, "exclusive": True}, "exclusive"),
        ({"sbatch": {"mail-type": "ALL"}, "notify": {"mail": "me@example.org"}}, "mail-type"),
        ({"sbatch": {"gres": "nvme:1,gpu:a100:8"}}, "gres"),
    ):
        with pytest.raises(UserError, match=rf"sbatch\.{name}: .* decides that"):
            check(data, Cluster, "cluster.toml")
    with pytest.raises(UserError, match=r"sbatch\.exclude: expected a list such as \"n13"):
        check({"sbatch": {"exclude": 13}}, Cluster, "cluster.toml")


def test_nodes_and_resources_of_the_site_file_come_beside_the_runs_own() -> None:
    def options(cluster: Cluster, *avoided: str) -> dict[str, str]:
        made = slurm.Launch("x", cluster, Resources(gpus_per_node=8), None, RUN, (RUN,), RUN.parent, exclude=avoided)
        text = slurm.sbatch_file(made, Attempt(RUN, 1), 1)
        return dict(re.findall(r"^#SBATCH --(exclude|gres|gpus-per-node)=(\S+)$", text, re.MULTILINE))

    site = {"exclude": "n[10-13]", "gres": "nvme:1"}
    assert options(Cluster(sbatch=site), "n3", "n4") == {
        "exclude": "'n[10-13],n3,n4'", "gres": "nvme:1", "gpus-per-node": "8"
    }  # fmt: skip
    assert options(Cluster(sbatch=site, gpu_option="gres"))["gres"] == "gpu:8,nvme:1"
    assert options(Cluster(), "n3") == {"exclude": "n3", "gpus-per-node": "8"}
    whole = Cluster(gpu_option="none", memory_option="none", sbatch={"mem": 0, "gres": "gpu:8", "exclusive": "user"})
    assert options(whole) == {"gres": "gpu:8"}, "where a job asks for none itself, the site may"


def test_gpus_are_hidden_from_cpu_jobs_only() -> None:
    assert slurm.environment(launch("pack-no-image"))["DS_ACCELERATOR"] == "cpu"
    assert "CUDA_VISIBLE_DEVICES" not in slurm.environment(launch("train-8gpu"))
