"""What deploy/ holds, as far as it can be tried without a container daemon and without helm."""

import json
import re
import shutil
import ssl
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from support.services import missing
from tutti.apps.certificates import check_certificate
from tutti.apps.cli.serving import up
from tutti.apps.cli.settings import settings_of

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"

ELSEWHERE = {"TUTTI_STANDBY", "TUTTI_PUBLIC_URL", "TUTTI_URL", "TUTTI_TOKEN_FILE"}
KNOWN = {str(option.envvar) for option in settings_of(up)} | ELSEWHERE


def program(name: str, package: str) -> str:
    return shutil.which(name) or missing(name, f"not installed: apt-get install {package}")


@pytest.fixture
def rendered(tmp_path: Path) -> dict[str, Any]:
    """compose.yaml as docker-compose understands it, with secrets made by secrets.sh."""
    shutil.copytree(DEPLOY, tmp_path / "deploy")
    subprocess.run([tmp_path / "deploy" / "secrets.sh"], check=True)
    render = [program("docker-compose", "docker-compose"), "-f", "compose.yaml", "--env-file", ".env", "config"]
    done = subprocess.run(
        render, cwd=tmp_path / "deploy", capture_output=True, text=True, env={"PATH": "/usr/bin:/bin"}
    )
    assert done.returncode == 0, done.stderr
    return dict(yaml.safe_load(done.stdout))


def test_compose_renders_with_all_that_it_promises(rendered: dict[str, Any]) -> None:
    services = rendered["services"]
    coordinators = [services[f"coordinator-{number}"] for number in (1, 2, 3)]
    assert {"nginx", "postgres", "redis", "rabbitmq", "s3", "prometheus", "grafana"} <= services.keys()
    assert len({each["environment"]["TUTTI_DATABASE"] for each in coordinators}) == 1
    for each in coordinators:
        used = {name for name in each["environment"] if name.startswith("TUTTI_")}
        assert used <= KNOWN
        assert each["read_only"] is True
        assert each["cap_drop"] == ["ALL"]
    assert {each["environment"]["TUTTI_TRUSTED_PROXIES"] for each in coordinators} == {
        each["subnet"] for each in rendered["networks"]["default"]["ipam"]["config"]
    }
    mounted = [volume for each in services.values() for volume in each.get("volumes", ())]
    files = [v.split(":")[0] for v in map(str, mounted) if v.startswith("/")]
    assert files
    assert all(Path(file).exists() for file in files)


def test_prometheus_scrapes_each_coordinator_of_compose_for_itself(rendered: dict[str, Any]) -> None:
    """Behind a load balancer each scrape would meet another one under one name."""
    config = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text())
    (scrape,) = config["scrape_configs"]
    (port,) = [option.default for option in settings_of(up) if option.name == "port"]
    coordinators = {name for name, each in rendered["services"].items() if (each.get("command") or [""])[0] == "up"}
    assert len(coordinators) == 3
    assert {f"{name}:{port}" for name in coordinators} == {t for s in scrape["static_configs"] for t in s["targets"]}


def test_every_alert_fires_in_the_tests_of_the_rules() -> None:
    rules = yaml.safe_load((DEPLOY / "prometheus" / "alerts.yml").read_text())["groups"]
    tests = yaml.safe_load((DEPLOY / "prometheus" / "alerts.test.yml").read_text())["tests"]
    fired = {case["alertname"] for test in tests for case in test["alert_rule_test"] if case["exp_alerts"]}
    assert {rule["alert"] for group in rules for rule in group["rules"]} == fired


def test_compose_has_no_secret_of_its_own(tmp_path: Path) -> None:
    shutil.copytree(DEPLOY, tmp_path / "deploy")
    render = [program("docker-compose", "docker-compose"), "-f", "compose.yaml", "config"]
    done = subprocess.run(
        render, cwd=tmp_path / "deploy", capture_output=True, text=True, env={"PATH": "/usr/bin:/bin"}
    )
    assert done.returncode != 0
    assert "run deploy/secrets.sh" in done.stderr


def test_secrets_are_made_once_and_for_their_owner_only(tmp_path: Path) -> None:
    for _ in range(2):
        subprocess.run([DEPLOY / "secrets.sh", tmp_path], check=True)
        before = (tmp_path / ".env").read_text(), (tmp_path / "secrets" / "jwt-secret").read_text()
    subprocess.run([DEPLOY / "secrets.sh", tmp_path], check=True)
    assert before == ((tmp_path / ".env").read_text(), (tmp_path / "secrets" / "jwt-secret").read_text())
    assert (tmp_path / "secrets").stat().st_mode & 0o077 == 0
    assert (tmp_path / ".env").stat().st_mode & 0o077 == 0


def test_the_image_is_not_root_and_takes_what_the_package_has() -> None:
    text = (DEPLOY / "Dockerfile").read_text()
    assert re.search(r"^USER 10001:10001$", text, re.MULTILINE)
    torch = re.search(r"torch==[\d.]+", text)
    assert torch
    assert torch[0] in (ROOT / "Makefile").read_text()
    project = (ROOT / "pyproject.toml").read_text()
    extras = re.search(r"'\.\[([\w,]+)\]'", text)
    assert extras
    assert all(f"\n{extra} = [" in project for extra in extras[1].split(","))
    copied = [name for line in re.findall(r"^COPY (?!--)(.*) \S+$", text, re.MULTILINE) for name in line.split()]
    kept = (ROOT / ".dockerignore").read_text()
    assert all((ROOT / name).exists() and f"!{name}\n" in kept for name in copied)


@pytest.mark.parametrize("unit", ["tutti-coordinator.service", "tutti-node.service"])
def test_systemd_finds_no_fault(tmp_path: Path, unit: str) -> None:
    text = (DEPLOY / "systemd" / unit).read_text().replace("/opt/tutti/bin/tutti", sys.executable)
    (tmp_path / unit).write_text(text)
    verify = [program("systemd-analyze", "systemd"), "verify", "--man=no", str(tmp_path / unit)]
    done = subprocess.run(verify, capture_output=True, text=True)
    said = [line for line in done.stderr.splitlines() if unit in line]
    assert said == []
    start = start_of(text)
    assert "LINK" not in start, "everybody on the machine sees the line of a process, and a link lets nodes in"
    handed_over = dict(re.findall(r"^LoadCredential=([^:]+):(/etc/tutti/.*)$", text, re.MULTILINE))
    assert "/etc/tutti" not in start, "root may keep it to itself, and the process is not root's"
    assert set(re.findall(r"\$\{CREDENTIALS_DIRECTORY\}/(\S+)", start)) == handed_over.keys()
    assert all(Path(file).name == name for name, file in handed_over.items())


def start_of(unit: str) -> str:
    (start,) = re.findall(r"^ExecStart=((?:.*\\\n)*.*)$", unit, re.MULTILINE)
    return str(start).replace("\\\n", "")


def test_the_coordinator_of_systemd_starts_with_the_secrets_that_its_unit_tells_how_to_make(tmp_path: Path) -> None:
    """As far as its settings go; `systemd` hands the files over."""
    text = (DEPLOY / "systemd" / "tutti-coordinator.service").read_text()
    (making,) = re.findall(r"^#   (umask .*)$", text, re.MULTILINE)
    subprocess.run(making.replace("/etc/tutti", str(tmp_path)), shell=True, check=True)
    (tmp_path / "coordinator.toml").write_text("port = 9000\n")
    arguments = start_of(text).replace("${CREDENTIALS_DIRECTORY}", str(tmp_path)).split()[2:]
    show = [sys.executable, "-m", "tutti.apps.cli", "config", "show", *arguments, "--json"]
    done = subprocess.run(show, capture_output=True, text=True, cwd=tmp_path, env={"PATH": "/usr/bin:/bin"})
    assert done.returncode == 0, done.stderr
    found = {each["setting"]: each["value"] for each in json.loads(done.stdout)}
    assert (found["port"], found["ledger-key-file"]) == ("9000", str(tmp_path / "ledger-key"))
    assert {file.stat().st_mode & 0o777 for file in tmp_path.glob("*-*")} == {0o600}


def test_every_value_that_the_chart_uses_exists_and_every_setting_too() -> None:
    chart = DEPLOY / "helm" / "tutti"
    values = yaml.safe_load((chart / "values.yaml").read_text())
    templates = "\n".join(file.read_text() for file in sorted((chart / "templates").iterdir()))
    assert set(re.findall(r"\.Values\.(\w+)", templates)) == values.keys()
    assert set(re.findall(r"TUTTI_\w+", re.sub(r"#.*", "", templates))) <= KNOWN
    assert yaml.safe_load((chart / "Chart.yaml").read_text())["apiVersion"] == "v2"
    for document in re.sub(r"\{\{.*?\}\}", "x", templates.replace("\n---\n", "\n")).split("\napiVersion:"):
        assert yaml.safe_load("apiVersion:" + document.removeprefix("apiVersion:"))["kind"]


def test_the_chart_spreads_its_replicas_and_lets_one_at_a_time_go() -> None:
    """Rendered here by leaving the templates' words out: helm is not there."""
    text = (DEPLOY / "helm" / "tutti" / "templates" / "statefulset.yaml").read_text()
    replicas, budget = yaml.safe_load_all(re.sub(r"\{\{.*?\}\}", "x", text))
    pods = replicas["spec"]["template"]
    (spread,) = pods["spec"]["topologySpreadConstraints"]
    assert spread["topologyKey"] == "kubernetes.io/hostname"
    for selector in (spread["labelSelector"], budget["spec"]["selector"], replicas["spec"]["selector"]):
        assert selector["matchLabels"] == pods["metadata"]["labels"]
    assert (budget["kind"], budget["spec"]["maxUnavailable"]) == ("PodDisruptionBudget", 1)


def test_helm_renders_the_chart() -> None:
    """With the values that the notes ask for; where there is no helm, the test above is all that is tried."""
    if (helm := shutil.which("helm")) is None:
        pytest.skip("helm is not installed here: no registry that our machines reach has it")
    chart = DEPLOY / "helm" / "tutti"
    required = re.findall(
        r'required "[^"]*" \.Values\.(\w+)', "".join(f.read_text() for f in chart.glob("templates/*"))
    )
    given = [f"--set={name}=x" for name in required]
    done = subprocess.run([helm, "template", "tutti", str(chart), *given], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert {each["kind"] for each in yaml.safe_load_all(done.stdout) if each} >= {"Service"}


def test_grafana_is_given_a_sound_dashboard_and_where_it_lies() -> None:
    assert json.loads((DEPLOY / "grafana" / "tutti.json").read_text())["panels"]
    for file in (DEPLOY / "grafana" / "provisioning").rglob("*.yaml"):
        assert yaml.safe_load(file.read_text())["apiVersion"] == 1


def test_the_tls_guide_makes_certificates_that_work(tmp_path: Path) -> None:
    guide = (ROOT / "docs" / "operations.md").read_text().split("## TLS")[1]
    commands = re.findall(r"^\$ (.*)$", guide, re.MULTILINE)
    assert len(commands) == 4
    for command in commands:
        subprocess.run(command, shell=True, cwd=tmp_path, check=True, capture_output=True)
    check_certificate(tmp_path / "server.pem")
    server, client = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.create_default_context(cafile=tmp_path / "ca.pem")
    server.load_cert_chain(tmp_path / "server.pem", tmp_path / "server.key")
    shake_hands(server, client, "127.0.0.1")
    with pytest.raises(ssl.SSLCertVerificationError):
        shake_hands(server, client, "127.0.0.2")


def shake_hands(server: ssl.SSLContext, client: ssl.SSLContext, name: str) -> None:
    """A handshake in memory."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    here = client.wrap_bio(to_client, to_server, server_hostname=name)
    there = server.wrap_bio(to_server, to_client, server_side=True)
    open_ends = [here, there]
    while open_ends:
        for end in list(open_ends):
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                continue
            open_ends.remove(end)
