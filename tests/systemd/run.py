"""
`make test-systemd`: install axiond on a real systemd, use it as an administrator would, and write down what happened.

    python -m tests.systemd.run ROOT TRANSCRIPT
"""

import json
import platform
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tests.systemd.machine import Failed, Machine, booted, make_root

URL = "http://127.0.0.1:18080"
MANIFEST = "/etc/axiond/axiond.toml"
STATE_TIMEOUT_S = 300
# A start on two cores: fetch 93 MB, convert, import vLLM three times.
START_TIMEOUT_S = 600


def main() -> int:
    root, transcript = Path(sys.argv[1]), Path(sys.argv[2])
    make_root(root)
    transcript.parent.mkdir(parents=True, exist_ok=True)
    with transcript.open("w") as file, booted(root, file) as machine:
        try:
            _scenario(machine)
        except Failed as failure:
            machine.say(f"\nFAILED: {failure}")
            machine.run("journalctl -u axiond --no-pager -n 60 -o cat", codes=(0, 1))
            return 1
        machine.say(f"All {len(STEPS)} steps passed.")
    return 0


def _scenario(machine: Machine) -> None:
    machine.say(f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC, {_cpu()}, {platform.release()}")
    machine.run("systemctl --version | head -1; python3 --version; nproc")
    for number, step in enumerate(STEPS, 1):
        machine.say(f"\n=== {number}. {(step.__doc__ or '').strip()}\n")
        step(machine)


def install(machine: Machine) -> None:
    """make install, twice: the second changes nothing and keeps an edited manifest"""
    machine.run("rm -rf /etc/axiond /var/lib/axiond", is_quiet=True)
    machine.run("make -C /src install", timeout_s=START_TIMEOUT_S)
    machine.run(f"sed -i 's/^listen = .*/listen = \"127.0.0.1:18080\"/' {MANIFEST} && cat {MANIFEST}")
    machine.run("make -C /src install && ls -l /etc/axiond", timeout_s=START_TIMEOUT_S)
    machine.run(f"grep -q 18080 {MANIFEST}", is_quiet=True)
    machine.run("systemd-analyze verify axiond.service")


def start(machine: Machine) -> None:
    """systemctl start axiond: READY comes when a generation is served"""
    machine.run("systemctl start axiond", timeout_s=START_TIMEOUT_S)
    machine.run("systemctl status axiond --no-pager --lines=0")
    machine.run("axiond status")
    ask(machine, "smollm2")


def edit_live(machine: Machine) -> None:
    """a new alias: reload, no engine restarts"""
    before = engine_pids(machine)
    machine.run(
        f'sed \'s/^aliases = .*/aliases = ["default", "assistant"]/\' {MANIFEST} > /root/new.toml && axiond plan /root/new.toml', codes=(2,)
    )
    machine.run(f"cp /root/new.toml {MANIFEST}")
    machine.run("systemctl reload axiond")
    ask(machine, "assistant")
    expect(engine_pids(machine) == before, "the engine was replaced by a live edit")


def edit_engine(machine: Machine) -> None:
    """a changed engine: the reload returns when the new engine serves"""
    before = engine_pids(machine)
    machine.run(f"sed -i '/^\\[models.smollm2\\]/a max_num_seqs = 7' {MANIFEST}")
    machine.run("systemctl reload axiond", timeout_s=START_TIMEOUT_S)
    ask(machine, "smollm2")
    expect(not set(engine_pids(machine)) & set(before), "an old engine process is still there")


def refuse_typo(machine: Machine) -> None:
    """a manifest with a typo: the reload fails with file, line and remedy; the old one serves on"""
    before = engine_pids(machine)
    machine.run(f"cp {MANIFEST} /root/good.toml; sed -i '/^\\[models.smollm2\\]/a quantisation = \"awq\"' {MANIFEST}")
    machine.run("systemctl reload axiond", codes=(1,))
    refusal = machine.run("axiond reload", codes=(1,)).output
    expect('did you mean "quantization"?' in refusal, "the remedy is not shown")
    machine.run("axiond status", codes=(2,))
    ask(machine, "smollm2")
    expect(engine_pids(machine) == before, "the engine did not survive a refused manifest")


def roll_back(machine: Machine) -> None:
    """a manifest that no engine can realise: rolled back with vLLM's own words, the old one serves on"""
    before = engine_pids(machine)
    machine.run(f"sed 's|^max_model_len = .*|max_model_len = 99999999|' /root/good.toml > /root/bad.toml && cp /root/bad.toml {MANIFEST}")
    machine.run("systemctl reload axiond", codes=(1,), timeout_s=START_TIMEOUT_S)
    machine.run("axiond reload", codes=(1,), timeout_s=START_TIMEOUT_S)
    machine.run("axiond status", codes=(2,))
    ask(machine, "smollm2")
    expect(engine_pids(machine) == before, "the engine did not survive a rollback")
    machine.run(f"cp /root/good.toml {MANIFEST} && systemctl reload axiond && axiond status", timeout_s=START_TIMEOUT_S)


def kill_daemon(machine: Machine) -> None:
    """SIGKILL to the daemon: systemd starts it again, and nothing of the old one is left"""
    before = processes(machine)
    machine.run("kill -KILL $(systemctl show -P MainPID axiond)")
    wait_for(machine, "the restart", lambda: machine.run("systemctl show -P NRestarts axiond", is_quiet=True).output.strip() == "1")
    wait_for(machine, "the service", lambda: machine.run("systemctl is-active axiond", codes=(0, 3), is_quiet=True).code == 0)
    expect(not set(processes(machine)) & set(before), "a process of the killed daemon is still there")
    machine.run("systemctl status axiond --no-pager --lines=0; ls /dev/shm")
    ask(machine, "smollm2")


def kill_engine(machine: Machine) -> None:
    """SIGKILL to an engine's processes: the daemon starts it again, and stays itself"""
    daemon = machine.run("systemctl show -P MainPID axiond", is_quiet=True).output
    before = engine_pids(machine)
    machine.run(f"kill -KILL {' '.join(map(str, before))}")
    machine.run("sleep 1; axiond status", codes=(0, 2))
    wait_for(machine, "the engine", lambda: machine.run("axiond status", codes=(0, 2), is_quiet=True).code == 0)
    ask(machine, "smollm2")
    expect(not set(engine_pids(machine)) & set(before), "a killed process is still there")
    expect(machine.run("systemctl show -P MainPID axiond", is_quiet=True).output == daemon, "the daemon was restarted too")


def boot_with_broken_manifest(machine: Machine) -> None:
    """a broken manifest at start: the last good one is served, and the status says so"""
    machine.run(f"systemctl stop axiond && echo '[models.smollm2' > {MANIFEST}")
    machine.run("systemctl start axiond", timeout_s=START_TIMEOUT_S)
    machine.run("axiond status", codes=(2,))
    ask(machine, "smollm2")
    machine.run(f"cp /root/good.toml {MANIFEST} && systemctl reload axiond && axiond status", timeout_s=START_TIMEOUT_S)


def stop(machine: Machine) -> None:
    """systemctl stop: no process, socket or shared memory is left"""
    machine.run("systemctl stop axiond")
    machine.run("systemctl status axiond --no-pager --lines=4", codes=(3,))
    expect(machine.run("systemctl show -P Result axiond", is_quiet=True).output.strip() == "success", "the stop was not clean")
    machine.run("pgrep -u axiond -a", codes=(1,))
    machine.run("ls -A /dev/shm /run/axiond", codes=(0, 2))
    expect(not machine.run("ls -A /dev/shm", is_quiet=True).output, "shared memory is left")


def uninstall(machine: Machine) -> None:
    """make uninstall keeps the manifest and the models"""
    machine.run("cp -a /opt/axiond /opt/axiond.kept", is_quiet=True)
    machine.run("make -C /src uninstall && ls /etc/axiond /var/lib/axiond && ! ls /opt/axiond")
    machine.run("mv /opt/axiond.kept /opt/axiond", is_quiet=True)  # quickens the next run


STEPS: tuple[Callable[[Machine], None], ...] = (
    install, start, edit_live, edit_engine, refuse_typo, roll_back, kill_daemon, kill_engine, boot_with_broken_manifest, stop, uninstall,
)  # fmt: skip


def ask(machine: Machine, model: str) -> None:
    """A real question to the real model."""
    body = {"model": model, "temperature": 0, "max_tokens": 16, "messages": [{"role": "user", "content": "What is the capital of France?"}]}
    answer = machine.run(f"curl -sS --max-time 60 {URL}/v1/chat/completions -H 'Content-Type: application/json' -d '{json.dumps(body)}'")
    expect("Paris" in answer.output, "the model does not know Paris")


def status(machine: Machine) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(machine.run("axiond status --json", codes=(0, 2), is_quiet=True).output)
    return found


def engine_pids(machine: Machine) -> list[int]:
    return [pid for engine in status(machine)["engines"] for pid in engine["pids"]]


def processes(machine: Machine) -> list[int]:
    return [int(pid) for pid in machine.run("pgrep -u axiond", codes=(0, 1), is_quiet=True).output.split()]


def expect(is_so: bool, complaint: str) -> None:
    if not is_so:
        raise Failed(complaint)


def wait_for(machine: Machine, what: str, is_there: Callable[[], bool]) -> None:
    began = time.monotonic()
    while not is_there():
        if time.monotonic() - began > STATE_TIMEOUT_S:
            raise Failed(f"{what} did not come within {STATE_TIMEOUT_S} s")
        time.sleep(0.5)
    machine.say(f"({what} came after {time.monotonic() - began:.1f} s)\n")


def _cpu() -> str:
    names = [line.split(":", 1)[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return f"{len(names)} x {names[0]}" if names else platform.machine()


if __name__ == "__main__":
    sys.exit(main())
