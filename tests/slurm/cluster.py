"""A SLURM cluster on this machine, for tests: munged, slurmctld and a slurmd per node, all on loopback, as any user.

Each node is a mount and UTS namespace of its own, so `hostname` differs and n1, n2, ... have addresses; what runs on a node is
what lives in its namespace, and ends with it. Nothing is stopped but processes that were started here.
"""

import os
import random
import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path

import psutil

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "unshare")
# Every node has the loopback's address and a port of its own: with other loopback addresses `srun` hangs within jobs.
CONFIG = """
ClusterName=braid
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort={port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge.sock
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool.%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
MpiDefault=none
SwitchType=switch/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=1,sched_interval=2,requeue_delay=1,batch_sched_delay=0
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
ReturnToService=2
SlurmdParameters=config_overrides
SlurmdTimeout=10
SlurmctldTimeout=5
InactiveLimit=0
MinJobAge=600
FirstJobId={first}
KillWait=20
MessageTimeout=10
JobRequeue=1
UnkillableStepTimeout=60
GresTypes=gpu
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP PriorityTier=1 PreemptMode=REQUEUE OverTimeLimit=0 GraceTime=20
PartitionName=urgent Nodes=ALL Default=NO MaxTime=INFINITE State=UP PriorityTier=10
"""
NODE = (
    "NodeName={name} NodeHostname={name} NodeAddr=127.0.0.1 Port={port} CPUs=8 Boards=1 SocketsPerBoard=1 CoresPerSocket=8 "
    "ThreadsPerCore=1 RealMemory=4000 Gres=gpu:2 State=UNKNOWN\n"
)
IN_NAMESPACE = 'mount --bind "$1/hosts" /etc/hosts && hostname "$2" && exec slurmd -D -N "$2"'


def missing() -> str | None:
    """Why there can be no cluster here, or None."""
    absent = [name for name in PROGRAMS if shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/sbin") is None]
    if absent:
        packages = "slurmctld slurmd slurm-client munge"
        return f"no SLURM here ({', '.join(absent)}); apt-get install --no-install-recommends {packages}"
    if subprocess.run(["unshare", *_namespaces(), "true"], capture_output=True, check=False).returncode:
        return "no SLURM here: this user may not make mount and UTS namespaces (unshare)"
    return None


class Cluster:
    """As a context it is up. `environment` is that of a person on its login node; nodes: their names."""

    def __init__(self, folder: Path, nodes: int = 2):
        self.folder = folder
        self.nodes = [f"n{k + 1}" for k in range(nodes)]
        self.environment = os.environ | {"SLURM_CONF": str(folder / "slurm.conf"), "PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin"}
        self._daemons: dict[str, subprocess.Popen] = {}

    def __enter__(self) -> "Cluster":
        self._configure()
        try:
            munge = {"key-file": "munge.key", "socket": "munge.sock", "pid-file": "munged.pid", "log-file": "munged.log"}
            paths = [f"--{name}={self.folder / file}" for name, file in (munge | {"seed-file": "munged.seed"}).items()]
            self._start("munged", "munged", "--foreground", *paths)
            wait_until((self.folder / "munge.sock").exists, 20, "munged")
            self._start("slurmctld", "slurmctld", "-D")
            for name in self.nodes:
                self.start_node(name)
            wait_until(lambda: self.states() == dict.fromkeys(self.nodes, "idle"), 60, "all nodes are idle")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for name in self.nodes:
            self.kill_node(name)
        for process in reversed(self._daemons.values()):
            process.terminate()
        for process in self._daemons.values():
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._daemons.clear()

    def run(self, *words: str, cwd: Path | None = None, timeout: float = 30) -> str:
        """What a command prints on the login node."""
        done = subprocess.run(words, cwd=cwd, env=self.environment, capture_output=True, text=True, timeout=timeout, check=False)
        assert done.returncode == 0, f"{' '.join(words)} ended with {done.returncode}: {done.stderr}{done.stdout}"
        return done.stdout

    def states(self) -> dict[str, str]:
        """Of every node."""
        done = subprocess.run(
            ["sinfo", "-h", "-N", "-p", "main", "-o", "%N %T"], env=self.environment, capture_output=True, text=True, check=False
        )
        return dict(re.findall(r"^(\S+) (\S+)$", done.stdout, re.MULTILINE))

    def job(self, job: str) -> dict[str, str]:
        """What `scontrol show job` says, field by field."""
        return dict(re.findall(r"(\S+?)=(\S*)", self.run("scontrol", "show", "job", "-o", job)))

    def wait_for(self, job: str, *states: str, timeout: float = 240) -> dict[str, str]:
        """Until the job is in one of the states. Returns its fields."""
        wait_until(lambda: self.job(job)["JobState"] in states, timeout, f"job {job} is {' or '.join(states)}: {self.job(job)}")
        return self.job(job)

    def start_now(self, job: str, restarts: int = 1, timeout: float = 180) -> None:
        """A requeued job is held back for two minutes: move its start up, until it has started again so often.

        Not before its former start has ended on all nodes: SLURM would take that end for one of the new start's.
        """

        def begun() -> bool:
            fields = self.job(job)
            soon = (datetime.now() + timedelta(seconds=5)).isoformat()
            steps = [process for name in self.nodes for process in self.ranks(name, f"slurmstepd: [{job}.")]
            if fields["JobState"] == "PENDING" and soon < fields["StartTime"] < "Unknown" and not steps:
                # it may have begun since
                subprocess.run(["scontrol", "update", f"jobid={job}", "StartTime=now"], env=self.environment, check=False)
            return fields["JobState"] in ("RUNNING", "COMPLETED") and int(fields["Restarts"]) == restarts

        wait_until(begun, timeout, lambda: f"job {job} runs again: {self.job(job)}")

    def clear(self) -> None:
        """End what is in the queue, and bring nodes back."""
        for name in self.nodes:
            if name not in self._daemons:
                self.start_node(name)
        self.run("scancel", "--me", "--full", "--signal=KILL")

        def empty() -> bool:
            self.run("scancel", "--me")
            return not self.run("squeue", "-h")

        wait_until(empty, 60, lambda: f"an empty queue: {self.run('squeue')}")
        wait_until(lambda: self.states() == dict.fromkeys(self.nodes, "idle"), 60, lambda: f"all nodes are idle: {self.states()}")

    def start_node(self, name: str) -> None:
        self._start(name, "unshare", *_namespaces(), "bash", "-c", IN_NAMESPACE, "_", str(self.folder), name)

    def processes(self, name: str) -> list[psutil.Process]:
        """All that lives on a node."""
        daemon = self._daemons.get(name)
        space = None if daemon is None else _namespace(daemon.pid)
        if space is None or space == _namespace(os.getpid()):
            return [] if daemon is None else [psutil.Process(daemon.pid)]
        return [process for process in psutil.process_iter() if _namespace(process.pid) == space]

    def kill_node(self, name: str) -> None:
        """As a power cut does."""
        for process in self.processes(name):
            try:
                process.send_signal(signal.SIGKILL)
            except psutil.NoSuchProcess:
                continue
        daemon = self._daemons.pop(name, None)
        if daemon is not None:
            daemon.wait(20)

    def ranks(self, name: str, word: str) -> list[psutil.Process]:
        """Processes on a node whose command line has the word."""
        return [process for process in self.processes(name) if word in " ".join(_command(process))]

    def _start(self, name: str, *command: str) -> None:
        with (self.folder / f"{name}.output").open("ab") as output:
            self._daemons[name] = subprocess.Popen(
                command, env=self.environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
            )

    def _configure(self) -> None:
        folder, user = self.folder, psutil.Process().username()
        for place in (folder, folder / "state"):
            place.mkdir(parents=True, exist_ok=True)
            # munged refuses a socket that others cannot reach
            place.chmod(0o755)
        ports = iter(free_ports(1 + len(self.nodes)))
        # a run's port follows from its job: clusters side by side have other jobs
        text = CONFIG.format(folder=folder, user=user, port=next(ports), first=random.randrange(1000, 60000))
        partitions = text.index("PartitionName")
        nodes = "".join(NODE.format(name=name, port=next(ports)) for name in self.nodes)
        (folder / "slurm.conf").write_text(text[:partitions] + nodes + text[partitions:])
        # GPUs that are /dev/null: SLURM counts them, and sets CUDA_VISIBLE_DEVICES
        for gpu in range(2):
            (folder / f"nvidia{gpu}").symlink_to("/dev/null")
        (folder / "gres.conf").write_text(f"Name=gpu File={folder}/nvidia[0-1]\n")
        hosts = Path("/etc/hosts").read_text() + "".join(f"127.0.0.1 {name}\n" for name in self.nodes)
        (folder / "hosts").write_text(hosts)
        key = folder / "munge.key"
        key.touch(mode=0o600)
        key.write_bytes(os.urandom(128))


def wait_until(true: Callable[[], bool], seconds: float, what: str | Callable[[], str]) -> None:
    end = time.monotonic() + seconds
    while not true():
        if time.monotonic() > end:
            raise AssertionError(f"not within {seconds:.0f} s: {what if isinstance(what, str) else what()}")
        time.sleep(0.1)


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def _namespaces() -> list[str]:
    ours = ["--mount", "--uts"]
    return ours if os.geteuid() == 0 else ["--user", "--map-current-user", "--keep-caps", *ours]


def _namespace(pid: int) -> str | None:
    try:
        return os.readlink(f"/proc/{pid}/ns/uts")
    except OSError:
        return None


def _command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []
