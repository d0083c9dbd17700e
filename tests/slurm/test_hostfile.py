"""Without SLURM: `braid-supervise --run` over `deepspeed --hostfile`, whose ranks a local sshd starts on two addresses."""

import getpass
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from llm.data import Manifest
from llm.testing import free_port
from tests.checkout import ROOT
from tests.slurm.cluster import free_ports, wait_until
from tests.slurm.runs import assert_same_weights, lines, undisturbed
from tests.train.conftest import MODEL, TRAIN

pytestmark = [pytest.mark.multirank, pytest.mark.slow, pytest.mark.timeout(600)]
SSHD = """
Port {port}
ListenAddress 127.0.0.1
ListenAddress 127.0.0.2
HostKey {folder}/host
AuthorizedKeysFile {folder}/user.pub
PidFile none
StrictModes no
UsePAM no
PasswordAuthentication no
PermitRootLogin prohibit-password
AcceptEnv *
"""
STEPS = 600


@pytest.fixture
def sshd(tmp_path: Path) -> Iterator[dict[str, str]]:
    """What leads pdsh's ssh to a server of this test's."""
    server = shutil.which("sshd", path=f"{os.environ['PATH']}:/usr/sbin")
    if server is None or shutil.which("pdsh") is None:
        pytest.skip("no sshd and pdsh here; apt-get install --no-install-recommends openssh-server pdsh")
    # a path that every user may read: sshd looks at keys as the user who logs in
    folder, (port,) = tmp_path, free_ports(1)
    for name in ("host", "user"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / name], check=True, timeout=30)
    (folder / "sshd_config").write_text(SSHD.format(port=port, folder=folder))
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)
    process = subprocess.Popen([server, "-D", "-f", folder / "sshd_config", "-E", folder / "sshd.log"])
    options = "-o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR -o IdentitiesOnly=yes -o BatchMode=yes"
    try:
        yield {"PDSH_SSH_ARGS_APPEND": f"{options} -i {folder}/user -p {port} -l {getpass.getuser()}"}
    finally:
        for each in [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]:
            each.kill()
        process.wait(20)


def test_a_run_on_the_hosts_of_a_hostfile(sshd: dict[str, str], manifest: Manifest, tmp_path: Path) -> None:
    own = [f"train.steps={STEPS}", "train.checkpoint_every=20", "train.log_every=5", "train.precision=fp32"]
    words = [*MODEL, *TRAIN, *own, f"data.manifest={manifest.root}", f"runs={tmp_path}/runs"]
    (tmp_path / "hosts").write_text("127.0.0.1 slots=1\n127.0.0.2 slots=1\n")
    run = tmp_path / "runs" / "run"
    quoted = [f"'{word}'" if "[" in word else word for word in [*words, "name=run"]]
    command = [sys.executable, str(ROOT / "launch" / "supervise.py"), "--run", str(run), "--pause=0.1", "--"]
    command += [str(Path(sys.executable).with_name("deepspeed")), "--hostfile", str(tmp_path / "hosts"), "--no_ssh_check"]
    command += ["--master_addr", "127.0.0.1", "--master_port", str(free_port()), str(ROOT / "launch" / "pretrain.py"), *quoted]
    # what DeepSpeed hands to other hosts
    (tmp_path / ".deepspeed_env").write_text("OMP_NUM_THREADS=1\nDS_ACCELERATOR=cpu\n")
    environment = os.environ | sshd | {"DS_ACCELERATOR": "cpu"}

    def supervised(output: str) -> subprocess.Popen:
        with (tmp_path / output).open("w") as file:
            return subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=file, stderr=file)

    def reach(step: int, supervisor: subprocess.Popen, output: str) -> None:
        def there() -> bool:
            assert supervisor.poll() is None, (tmp_path / output).read_text()
            return any(record["step"] >= step for record in lines(run / "metrics.jsonl")[-1:])

        wait_until(there, 200, lambda: (tmp_path / output).read_text())

    first = supervised("first")
    try:
        reach(30, first, "first")
        # no process below the supervisor
        rank = json.loads((run / "heartbeat" / "rank-1.json").read_text())["pid"]
        assert rank not in {process.pid for process in psutil.Process(first.pid).children(recursive=True)}
        os.kill(rank, signal.SIGKILL)
        wait_until(lambda: len(lines(run / "starts.jsonl")) == 1, 150, lambda: (tmp_path / "first").read_text())
        reach(120, first, "first")
        first.send_signal(signal.SIGTERM)
        assert first.wait(120) == 75, (tmp_path / "first").read_text()
    finally:
        first.kill()
    crashed, stopped = lines(run / "starts.jsonl")
    assert (crashed["verdict"], stopped["status"], stopped["verdict"]) == ("again", 75, "later")
    assert not (run / "stop").exists()
    second = supervised("second")
    assert second.wait(200) == 0, (tmp_path / "second").read_text()
    assert_same_weights(run, undisturbed(tmp_path / "alone", words[:-1], 2), STEPS)
