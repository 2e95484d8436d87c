"""The helper that root runs: what it does, what it refuses, and the way to it, sudo included."""

import errno
import json
import os
import pwd
import shutil
import subprocess
from pathlib import Path

import pytest

from device_agents import fleetcut_set, privilege
from device_agents.checks import run_checks
from device_agents.contract import Condition, RunSpec, StoppingRule
from device_agents.home import Home
from device_agents.sysfs import Root

SYSTEM_PYTHON = "/usr/bin/python3"
NOBODY = 65534


@pytest.fixture
def sys_folder(tree) -> str:
    tree.put(tree.cpufreq)
    cpu = tree.path / "sys/devices/system/cpu"
    (cpu / "cpu0").mkdir()
    (cpu / "cpu0/cpufreq").symlink_to("../cpufreq/policy0")
    return str(tree.path / "sys")


def call(sys_folder: str, *argv: str) -> int:
    return fleetcut_set.main(list(argv), sys_folder=sys_folder)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("scaling_governor", "performance"),
        ("scaling_governor", "schedutil"),
        ("scaling_min_freq", "600000"),
        ("scaling_max_freq", "1000000"),
    ],
)
@pytest.mark.parametrize("policy", ["cpufreq/policy0", "cpu0/cpufreq"])
def test_what_is_allowed_is_written(sys_folder, tree, policy, name, value):
    assert call(sys_folder, "write", f"{sys_folder}/devices/system/cpu/{policy}/{name}", value) == 0
    assert tree.read(f"{tree.policy}/{name}") == value


@pytest.mark.parametrize(
    "path",
    [
        "{sys}/devices/system/cpu/cpufreq/policy0/scaling_setspeed",
        "{sys}/devices/system/cpu/cpufreq/policy0/../policy0/scaling_governor",
        "{sys}/devices/system/cpu/cpufreq/policy0//scaling_governor",
        "{sys}/devices/system/cpu/cpufreq/policy0/scaling_governor\n",
        "{sys}/devices/system/cpu/cpufreq/policy0/scaling_governor/",
        "{sys}/devices/system/cpu/cpufreq/policy٣/scaling_governor",
        "{sys}/devices/system/cpu/cpufreq/policyX/scaling_governor",
        "{sys}/devices/system/cpu/cpu0/online",
        "{sys}/../sys/devices/system/cpu/cpufreq/policy0/scaling_governor",
        "{sys}",
        "{sys}/",
        "devices/system/cpu/cpufreq/policy0/scaling_governor",
        "/etc/passwd",
        "",
    ],
)
def test_no_other_path_is_written(sys_folder, tree, path, capsys):
    before = tree.read(f"{tree.policy}/scaling_governor")
    assert call(sys_folder, "write", path.format(sys=sys_folder), "performance") == 2
    assert "fleetcut-set: this path may not be written" in capsys.readouterr().err
    assert tree.read(f"{tree.policy}/scaling_governor") == before


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("scaling_governor", "performance\nx"),
        ("scaling_governor", "performance "),
        ("scaling_governor", "PERFORMANCE"),
        ("scaling_governor", "../x"),
        ("scaling_governor", "a" * 33),
        ("scaling_governor", ""),
        ("scaling_max_freq", "-1"),
        ("scaling_max_freq", "0"),
        ("scaling_max_freq", "1e6"),
        ("scaling_max_freq", "1000000\n"),
        ("scaling_max_freq", "9" * 10),
        ("scaling_max_freq", "performance"),
        ("scaling_max_freq", "٣"),
    ],
)
def test_no_other_value_is_written(sys_folder, tree, name, value, capsys):
    path = f"{sys_folder}/devices/system/cpu/cpufreq/policy0/{name}"
    before = tree.read(f"{tree.policy}/{name}")
    assert call(sys_folder, "write", path, value) == 2
    assert f"{name} may not be set to" in capsys.readouterr().err
    assert tree.read(f"{tree.policy}/{name}") == before


@pytest.mark.parametrize("what", ["file", "file of the same name", "folder", "another file"])
def test_a_link_that_leads_elsewhere_is_not_followed(sys_folder, tree, tmp_path, what, capsys):
    policy = tree.path / tree.policy
    if what == "folder":
        elsewhere = tmp_path / "elsewhere"
        shutil.copytree(policy, elsewhere)
        shutil.rmtree(policy)
        policy.symlink_to(elsewhere)
        victim = elsewhere / "scaling_governor"
    else:
        names = {"file": "shadow", "file of the same name": "scaling_governor"}
        victim = tmp_path / names.get(what, "x")
        if what == "another file":
            victim = policy / "scaling_max_freq"
        victim.write_text("untouched")
        (policy / "scaling_governor").unlink()
        (policy / "scaling_governor").symlink_to(victim)
    before = victim.read_text()
    path = f"{sys_folder}/devices/system/cpu/cpufreq/policy0/scaling_governor"
    assert call(sys_folder, "write", path, "performance") == 2
    assert "leads elsewhere" in capsys.readouterr().err
    assert victim.read_text() == before


def test_a_file_is_never_made(sys_folder, tree, capsys):
    (tree.path / tree.policy / "scaling_governor").unlink()
    path = f"{sys_folder}/devices/system/cpu/cpufreq/policy0/scaling_governor"
    assert call(sys_folder, "write", path, "performance") == 1
    assert "No such file" in capsys.readouterr().err
    assert not Path(path).exists()


def test_a_pipe_in_a_files_place_is_refused(sys_folder, tree, capsys):
    path = tree.path / tree.policy / "scaling_governor"
    path.unlink()
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    assert call(sys_folder, "write", str(path), "performance") == 2
    os.close(reader)
    assert "no plain file" in capsys.readouterr().err


@pytest.mark.parametrize("argv", [[], ["write"], ["write", "a", "b", "c"], ["sh"], ["check", "x"]])
def test_no_other_verb(sys_folder, argv, capsys):
    assert call(sys_folder, *argv) == 2
    assert "usage" in capsys.readouterr().err


@pytest.fixture
def nvpmodel(tmp_path) -> str:
    path = tmp_path / "nvpmodel"
    path.write_text(
        f'#!/bin/sh\necho "$@" > {tmp_path}/asked\nread answer; echo $answer >> {tmp_path}/asked\n'
        'echo "NVPM ERROR: no such mode" >&2\n[ "$2" != 9 ]\n'
    )
    path.chmod(0o755)
    return str(path)


def test_a_power_mode_is_set_by_its_number_and_never_reboots(nvpmodel, tmp_path, capsys):
    assert fleetcut_set.main(["nvpmodel", "2"], nvpmodel=nvpmodel) == 0
    assert (tmp_path / "asked").read_text() == "-m 2\nno\n"
    assert fleetcut_set.main(["nvpmodel", "9"], nvpmodel=nvpmodel) == 1
    assert "NVPM ERROR: no such mode" in capsys.readouterr().err


@pytest.mark.parametrize("number", ["-f", "", "1 2", "0x1", "1000", "2\n", "٣"])
def test_a_power_mode_is_nothing_but_a_number(nvpmodel, tmp_path, number, capsys):
    assert fleetcut_set.main(["nvpmodel", number], nvpmodel=nvpmodel) == 2
    assert "is a number" in capsys.readouterr().err
    assert not (tmp_path / "asked").exists()


@pytest.mark.parametrize("status", [0, 1])
def test_root_sets_a_power_mode_without_the_helper(nvpmodel, tmp_path, monkeypatch, status):
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    run = fleetcut_set.run_nvpmodel
    monkeypatch.setattr(privilege, "run_nvpmodel", lambda number: run(number, nvpmodel))
    if status == 0:
        privilege.set_nvpmodel("2")
        assert (tmp_path / "asked").read_text() == "-m 2\nno\n"
    else:
        with pytest.raises(OSError, match="NVPM ERROR: no such mode"):
            privilege.set_nvpmodel("9")


def test_a_virtual_board_is_written_directly_or_not_at_all(tree, monkeypatch):
    tree.put(tree.cpufreq)
    monkeypatch.setattr(subprocess, "run", lambda *args, **kwargs: pytest.fail("no helper here"))
    name = f"{tree.policy}/scaling_governor"
    privilege.write(tree.root, name, "powersave")
    assert tree.read(name) == "powersave"

    def refused(root, name, text):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Root, "write_text", refused)
    with pytest.raises(PermissionError):
        privilege.write(tree.root, name, "ondemand")


@pytest.fixture
def sudo(tmp_path, monkeypatch):
    """sudo(script) stands in for sudo, of a user who is not root and may not write."""

    def make(script: str) -> None:
        path = tmp_path / "bin/sudo"
        path.parent.mkdir()
        path.write_text(f'#!/bin/sh\nprintf "%s\\n" "$*" >> {tmp_path}/sudo-asked\n{script}\n')
        path.chmod(0o755)

    def refused(root, name, text):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(Root, "write_text", refused)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:/usr/bin:/bin")
    return make


GOVERNOR = "sys/devices/system/cpu/cpufreq/policy0/scaling_governor"


def test_what_this_user_may_not_write_the_helper_does(sudo, tmp_path):
    sudo("exit 0")
    privilege.write(Root("/"), GOVERNOR, "performance")
    privilege.set_nvpmodel("2")
    assert (tmp_path / "sudo-asked").read_text().splitlines() == [
        f"-n /usr/local/sbin/fleetcut-set write /{GOVERNOR} performance",
        "-n /usr/local/sbin/fleetcut-set nvpmodel 2",
    ]


def test_what_the_helper_says_is_said(sudo):
    sudo("echo 'sudo: a password is required' >&2; exit 1")
    with pytest.raises(OSError, match="a password is required"):
        privilege.write(Root("/"), GOVERNOR, "performance")
    assert not privilege.helper_works()


def test_without_sudo_it_is_the_first_refusal_that_counts(sudo, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(PermissionError, match="Permission denied"):
        privilege.write(Root("/"), GOVERNOR, "performance")


def test_check_says_how_a_virtual_board_is_mended(tree, tmp_path, monkeypatch):
    tree.put(tree.cpufreq)
    monkeypatch.setattr(Root, "writable", lambda root, relative: False)
    (found,) = [c for c in run_checks(Home(tmp_path), tree.root) if c.name == "cpufreq"]
    assert found.ok
    assert "sudo" not in found.next_step


def test_the_verb_prints_the_helper_byte_by_byte(agent):
    done = subprocess.run(agent.argv("helper"), capture_output=True, timeout=60, check=True)
    assert done.stdout == Path(fleetcut_set.__file__).read_bytes()
    assert done.stdout.startswith(b"#!/usr/bin/python3 -IS\n")


def skip_without_a_system() -> None:
    if os.geteuid() != 0:
        pytest.skip("root missing: users and mounts of a namespace")
    for program in ("sudo", "unshare", "setpriv", "useradd", SYSTEM_PYTHON):
        if shutil.which(program) is None:
            pytest.skip(f"{program} missing: tests/install-system-packages.sh")
    if subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode != 0:
        pytest.skip("mount namespaces are not allowed here")
    pwd.getpwuid(NOBODY)


# /etc, /sys and /usr/local of their own: nothing here is seen outside.
NAMESPACE = r"""set -e
mount -t tmpfs none /mnt; mkdir /mnt/etc; cp -a /etc/. /mnt/etc; mount --bind /mnt/etc /etc
mkdir /mnt/sbin; mount --bind /mnt/sbin /usr/local/sbin
mount -t tmpfs -o mode=755 none /sys/devices/system/cpu
cp -r @BOARD@/sys/devices/system/cpu/. /sys/devices/system/cpu
useradd -M -d /mnt/home tester
mkdir /mnt/home /mnt/out; cp -r @PUSHED@/. /mnt/home; chown -R tester /mnt/home /mnt/out
cp @AGENT@ /mnt/agent.pyz; chmod 755 /mnt /mnt/agent.pyz
as_tester() { setpriv --reuid tester --regid tester --init-groups --reset-env "$@"; }
agent() { as_tester @PYTHON@ /mnt/agent.pyz --home /mnt/home "$@"; }
agent check > @OUT@/before || true
@PYTHON@ -c 'import json
for check in json.load(open("@OUT@/before"))["checks"]:
    if check["name"] == "cpufreq":
        print(check["next_step"].split("type on the board: ")[1].split("; then log in")[0])
' > @OUT@/commands
sh -e @OUT@/commands
visudo -c > @OUT@/visudo
agent check > @OUT@/after || true
agent start s > @OUT@/started
agent attach s > @OUT@/journal
cat /mnt/out/seen > @OUT@/seen
cat /sys/devices/system/cpu/cpufreq/policy0/scaling_governor > @OUT@/governor
touch /mnt/out/gate; as_tester mkfifo /mnt/out/arrived /mnt/out/go
agent start killed > @OUT@/started
read arrived < /mnt/out/arrived
cat /sys/devices/system/cpu/cpufreq/policy0/scaling_governor > @OUT@/held
@PYTHON@ -c 'import json, os, select
worker = json.load(open("/mnt/home/sessions/killed/worker.lock"))["pid"]
stats = [open("/proc/%s/stat" % n).read() for n in os.listdir("/proc") if n.isdigit()]
children = [int(s.split()[0]) for s in stats if s.rsplit(")")[1].split()[1] == str(worker)]
(watchdog,) = [pid for pid in children if os.getsid(pid) == pid]
ended = os.pidfd_open(watchdog)
os.kill(worker, 9)
assert select.select([ended], [], [], 60)[0]
'
cat /sys/devices/system/cpu/cpufreq/policy0/scaling_governor > @OUT@/after-kill
status() { if "$@" 2>> @OUT@/refusals; then echo 0; else echo $?; fi; }
{
    status as_tester sudo -n /usr/local/sbin/fleetcut-set write /etc/passwd x
    status as_tester sudo -n /usr/local/sbin/fleetcut-set write \
        /sys/devices/system/cpu/cpufreq/policy0/scaling_governor 'a b'
    status as_tester sudo -n /bin/true
    status setpriv --reuid nobody --regid nogroup --clear-groups \
        sudo -n /usr/local/sbin/fleetcut-set check
} > @OUT@/statuses
stat -c '%a %U %G' /usr/local/sbin/fleetcut-set /etc/sudoers.d/fleetcut > @OUT@/modes
"""


def test_a_user_without_rights_sets_clocks_after_the_printed_commands(
    agent, stub, tree, tmp_path, records_of
):
    skip_without_a_system()
    tree.put(tree.cpufreq)
    on_bench = f"""
open('/mnt/out/seen', 'w').write(open('/{GOVERNOR}').read())
if os.path.exists('/mnt/out/gate'):
    print('here', file=open('/mnt/out/arrived', 'w'), flush=True)
    open('/mnt/out/go').read()
"""
    model = agent.push(stub(on_bench, python=SYSTEM_PYTHON))
    rule = StoppingRule(warmup_min=2, warmup_max=10, samples_min=5, samples_max=20)
    condition = Condition(governor="performance")
    for session in ("s", "killed"):
        run = RunSpec(session, "b", model, "executable", "fp32", 1, condition, rule)
        agent.write_specs(session, [run])
    out = tmp_path / "out"
    out.mkdir()
    script = NAMESPACE
    for name, value in (
        ("BOARD", tree.path),
        ("PUSHED", agent.home),
        ("AGENT", agent.pyz),
        ("OUT", out),
        ("PYTHON", SYSTEM_PYTHON),
    ):
        script = script.replace(f"@{name}@", str(value))
    done = subprocess.run(
        ["unshare", "-m", "--propagation", "private", "sh", "-c", script],
        capture_output=True,
        text=True,
        timeout=200,
    )
    said = {path.name: path.read_text() for path in out.iterdir()}
    assert done.returncode == 0, (done.stderr, said)

    def cpufreq(name: str) -> dict:
        (found,) = [c for c in json.loads(said[name])["checks"] if c["name"] == "cpufreq"]
        return found

    assert cpufreq("before")["fact"] == "1 policies, readable and not writable"
    after = cpufreq("after")
    assert after["fact"] == "1 policies, readable, and writable by /usr/local/sbin/fleetcut-set"
    assert after["next_step"] == "nothing to do"
    (record,) = records_of([json.loads(line) for line in said["journal"].splitlines()])
    assert record.error is None, (record.error, said)
    assert said["seen"].strip() == "performance"
    assert said["governor"].strip() == "ondemand"
    assert said["held"].strip() == "performance"
    assert said["after-kill"].strip() == "ondemand"
    assert said["statuses"].split() == ["2", "2", "1", "1"], said["refusals"]
    assert "this path may not be written: '/etc/passwd'" in said["refusals"]
    assert said["modes"].splitlines() == ["755 root root", "440 root root"]
