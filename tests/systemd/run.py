"""
`make test-systemd`: install axiond on a real systemd, use it as an administrator would, and write down what happened.

    python -m tests.systemd.run ROOT TRANSCRIPT
"""

import json
import platform
import socket
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tests.systemd.machine import Failed, Machine, booted, make_root

MANIFEST = "/etc/axiond/axiond.toml"
STATE_TIMEOUT_S = 300
# A start on two cores: fetch 93 MB, convert, import vLLM three times.
START_TIMEOUT_S = 600
ANSWERS_AGAIN_WITHIN_S = 2


def _free_port() -> int:
    """The container shares this machine's network, for pip."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


PORT = _free_port()


def main() -> int:
    root, transcript = Path(sys.argv[1]), Path(sys.argv[2])
    make_root(root)
    transcript.parent.mkdir(parents=True, exist_ok=True)
    with transcript.open("w") as file, booted(root, file) as machine:
        try:
            _scenario(machine)
        except Failed as failure:
            machine.say(f"\nFAILED: {failure}")
            machine.run("journalctl -b -u axiond --no-pager -n 60 -o cat", codes=(0, 1))
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
    machine.run(
        f"sed -i 's/^listen = .*/listen = \"127.0.0.1:{PORT}\"\\nlog_level = \"debug\"/' {MANIFEST} && grep -v '^ *#' {MANIFEST} | grep ."
    )
    machine.run("make -C /src install && ls -l /etc/axiond", timeout_s=START_TIMEOUT_S)
    machine.run(f"grep -q {PORT} {MANIFEST}", is_quiet=True)
    machine.run("axiond --version; /opt/axiond/bin/python -m pip list 2>/dev/null | grep -E '^(vllm|torch|uvloop|aiohttp)'")
    machine.run("systemd-analyze verify axiond.service; systemd-analyze security axiond.service --no-pager | tail -n 1")


def start(machine: Machine) -> None:
    """systemctl start axiond: READY comes when a generation is served"""
    machine.run("systemctl start axiond", timeout_s=START_TIMEOUT_S)
    machine.run("systemctl status axiond --no-pager --lines=0 | cut -c1-140")
    machine.run("axiond status")
    ask(machine, "smollm2")


def meet_no_wall(machine: Machine) -> None:
    """the confinement forbids nothing that vLLM wants: no such line in what the engine printed"""
    machine.run("journalctl -b -u axiond -o cat | grep -c engine.printed")
    machine.run("journalctl -b -u axiond -o cat | grep -iE 'not permitted|permission denied|read-only file'", codes=(1,))


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
    wait_for(machine, "the end of the old engine", lambda: not set(processes(machine)) & set(before))


def refuse_typo(machine: Machine) -> None:
    """a manifest with a typo: the reload fails with file, line and remedy; the old one serves on"""
    before = engine_pids(machine)
    machine.run(f"cp {MANIFEST} /root/good.toml; sed -i '/^\\[models.smollm2\\]/a quantisation = \"awq\"' {MANIFEST}")
    machine.run("systemctl reload axiond", codes=(1,))
    machine.run("systemctl status axiond --no-pager --lines=4 | tail -n 4 | cut -c1-200")
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
    """SIGKILL to the daemon, twice: systemd starts it again, which adopts the engine; whoever asks meanwhile waits for the answer"""
    for restarts in (1, 2):
        before, usual_s = engine_pids(machine), ask(machine, "smollm2")
        machine.run("kill -KILL $(systemctl show -P MainPID axiond)")
        expect_soon(machine, ask(machine, "smollm2") - usual_s)
        expect(machine.run("systemctl show -P NRestarts axiond", is_quiet=True).output.strip() == str(restarts), "systemd did nothing")
        expect(engine_pids(machine) == before, "the engine was not adopted")
    machine.run("axiond status")
    machine.run("systemctl status axiond --no-pager --lines=0 | cut -c1-140; ls /dev/shm")


def restart(machine: Machine) -> None:
    """systemctl restart axiond: the engine stays, and is adopted with its age"""
    before = status(machine)["engines"]
    machine.run("systemctl restart axiond")
    ask(machine, "smollm2")
    after = status(machine)["engines"]
    expect([engine["pids"] for engine in after] == [engine["pids"] for engine in before], "the engine was not adopted")
    expect([engine["since"] for engine in after] == [engine["since"] for engine in before], "the engine has lost its age")
    machine.run("axiond status")


def restart_changed(machine: Machine) -> None:
    """a restart with a changed engine: the old one serves on until the new one is ready"""
    before, usual_s = engine_pids(machine), ask(machine, "smollm2")
    machine.run(f"cp {MANIFEST} /root/unchanged.toml; sed -i 's/^max_num_seqs = .*/max_num_seqs = 6/' {MANIFEST}")
    machine.run("systemctl kill --kill-whom=main --signal=KILL axiond")
    expect_soon(machine, ask(machine, "smollm2") - usual_s)
    wait_for(machine, "the end of the old engine", lambda: not set(processes(machine)) & set(before))
    ask(machine, "smollm2")
    machine.run(f"cp /root/unchanged.toml {MANIFEST} && systemctl reload axiond", timeout_s=START_TIMEOUT_S)
    wait_for(machine, "the end of the other engine", lambda: len(status(machine)["engines"]) == 1)


def kill_engine(machine: Machine) -> None:
    """SIGKILL to an engine's API server: its other processes go too, and the daemon starts it again"""
    daemon = machine.run("systemctl show -P MainPID axiond", is_quiet=True).output
    before = engine_pids(machine)
    machine.run(f"kill -KILL {before[1]}")  # behind its host
    wait_for(machine, "the end of its processes", lambda: not set(processes(machine)) & set(before))
    machine.run("axiond status", codes=(2,))
    wait_for(machine, "the engine", lambda: machine.run("axiond status", codes=(0, 2), is_quiet=True).code == 0)
    ask(machine, "smollm2")
    expect(machine.run("systemctl show -P MainPID axiond", is_quiet=True).output == daemon, "the daemon was restarted too")


def hang_daemon(machine: Machine) -> None:
    """a daemon that hangs (SIGSTOP): the watchdog ends it after 30 s, and the next one adopts the engine"""
    before = engine_pids(machine)
    machine.run("kill -STOP $(systemctl show -P MainPID axiond)")
    restarts = machine.run("systemctl show -P NRestarts axiond", is_quiet=True).output
    wait_for(machine, "the restart", lambda: machine.run("systemctl show -P NRestarts axiond", is_quiet=True).output != restarts)
    machine.run("journalctl -b -u axiond --no-pager -o cat | grep -i watchdog | tail -n 2")
    wait_for(machine, "the service", lambda: machine.run("systemctl is-active axiond", codes=(0, 3), is_quiet=True).code == 0)
    ask(machine, "smollm2")
    expect(engine_pids(machine) == before, "the engine was not adopted")


def put_manifest(machine: Machine) -> None:
    """PUT /admin/v1/manifest: the confined daemon may replace its manifest, once for each etag"""
    admin = "curl -sS --unix-socket /run/axiond/admin.sock"
    url = "http://axiond/admin/v1/manifest"
    machine.run(f"{admin} -D /root/headers -o /root/now.toml {url} && cmp /root/now.toml {MANIFEST} && grep -i ^etag: /root/headers")
    machine.run("sed 's/^aliases = .*/aliases = [\"put\"]/' /root/now.toml > /root/put.toml")
    etag = "$(sed -n 's/^etag: //Ip' /root/headers | tr -d '\\r')"
    put = f"{admin} -w '\\n%{{http_code}}\\n' -X PUT --data-binary @/root/put.toml -H \"If-Match: {etag}\" '{url}?wait=1'"
    expect(machine.run(put).output.endswith("200\n"), "the manifest was not replaced")
    expect(machine.run(put).output.endswith("412\n"), "a lost race was not noticed")
    machine.run(f"ls -l {MANIFEST}")
    ask(machine, "put")


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
    machine.run(f"curl -sS http://127.0.0.1:{PORT}/v1/models", codes=(7,))
    expect(machine.run("systemctl show -P Result axiond", is_quiet=True).output.strip() == "success", "the stop was not clean")
    machine.run("pgrep -u axiond -a", codes=(1,))
    machine.run("ls -A /dev/shm /run/axiond", codes=(0, 2))
    expect(not machine.run("ls -A /dev/shm", is_quiet=True).output, "shared memory is left")


def uninstall(machine: Machine) -> None:
    """make uninstall keeps the manifest and the models"""
    machine.run("cp -al /opt/axiond /opt/axiond.kept", is_quiet=True)
    machine.run("make -C /src uninstall && ls /etc/axiond /var/lib/axiond && ! ls /opt/axiond")
    machine.run("mv /opt/axiond.kept /opt/axiond", is_quiet=True)  # quickens the next run


STEPS: tuple[Callable[[Machine], None], ...] = (
    install, start, meet_no_wall, edit_live, edit_engine, refuse_typo, roll_back, kill_daemon, restart, restart_changed,
    kill_engine, hang_daemon, put_manifest, boot_with_broken_manifest, stop, uninstall,
)  # fmt: skip


def expect_soon(machine: Machine, later_s: float) -> None:
    """An answer that came so much later than usual came soon enough; what other processes took from the daemon does not count."""
    robbed_s = int(machine.run("cat /proc/$(systemctl show -P MainPID axiond)/schedstat", is_quiet=True).output.split()[1]) / 1e9
    machine.say(f"(the answer came {later_s:.2f} s later than usual; for {robbed_s:.2f} s of them other processes had the cores)\n")
    expect(later_s - robbed_s < ANSWERS_AGAIN_WITHIN_S, "the daemon was away for too long")


def ask(machine: Machine, model: str) -> float:
    """A real question to the real model, and the seconds it took; a connection that is refused or cut is a failure."""
    url = f"http://127.0.0.1:{PORT}/v1/chat/completions -H 'Content-Type: application/json'"
    body = {"model": model, "temperature": 0, "max_tokens": 8, "messages": [{"role": "user", "content": "What is the capital of France?"}]}
    began = time.monotonic()
    answer = machine.run(f"curl -sS --max-time 60 {url} -d '{json.dumps(body)}'")
    took_s = time.monotonic() - began
    expect("Paris" in answer.output, "the model does not know Paris")
    return took_s


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
