"""Settings of a coordinator by option, environment and file; what it refuses to start with."""

import json
import logging
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from tutti.adapters import addresses
from tutti.apps.bootstrap import AUDITED, check_data_folder, data_folder, share_of_audits
from tutti.apps.certificates import check_certificate
from tutti.apps.cli.app import run
from tutti.apps.cli.exits import Exit
from tutti.apps.cli.logs import JsonLines, last_line
from tutti.apps.secrets import read_jwt_secret
from tutti.core.errors import StorageError, UserError

STANDBY = [
    "--standby",
    "--database",
    "postgresql://me:Xq9-very@db/tutti",
    "--blobs",
    "s3://models?endpoint=http://127.0.0.1:9000",
]


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("TUTTI_PORT", "TUTTI_HOST", "TUTTI_DATABASE", "TUTTI_ALLOW_MODULES", "TUTTI_CONFIG"):
        monkeypatch.delenv(name, raising=False)


def shown(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, tuple[str, str]]:
    assert run(["config", "show", "--json", *arguments]) == Exit.OK
    return {each["setting"]: (each["value"], each["origin"]) for each in json.loads(capsys.readouterr().out)}


def test_each_value_has_its_origin(monkeypatch, capsys) -> None:
    Path("c.toml").write_text('port = 9000\nmax_nodes = 5\nheartbeat = 3\nallow-module = ["a.*", "b"]\nauth = true\n')
    monkeypatch.setenv("TUTTI_MAX_NODES", "6")
    monkeypatch.setenv("TUTTI_PORT", "9001")
    found = shown(capsys, "--config", "c.toml", "--port", "9002")
    assert found["port"] == ("9002", "command line")
    assert found["max-nodes"] == ("6", "environment TUTTI_MAX_NODES")
    assert found["heartbeat"] == ("3.0", "c.toml")
    assert found["allow-module"] == ("a.* b", "c.toml")
    assert found["auth"] == ("true", "c.toml")
    assert found["host"] == ("127.0.0.1", "default")


def test_passwords_are_not_shown(monkeypatch, capsys) -> None:
    monkeypatch.setenv("TUTTI_DATABASE", "postgresql://ada:Xq9-very@db:5432/tutti")
    assert shown(capsys)["database"] == ("postgresql://ada:***@db:5432/tutti", "environment TUTTI_DATABASE")
    monkeypatch.setenv("TUTTI_DATABASE", "postgresql://h/db?user=me&password=hunter2hunter2&sslmode=require")
    assert shown(capsys)["database"][0] == "postgresql://h/db?user=me&password=***&sslmode=require"


@pytest.mark.parametrize(
    ("address", "what"),
    [
        ("redis://:pa/s?s#w@rd@h:6379/0", "redis://:***@h:6379/0"),
        ("amqp://me:pw@host/v?coordinator=clinic", "amqp://me:***@host/v?coordinator=clinic"),
        ("amqp://me@host/v", "amqp://me@host/v"),
        ("postgresql://h/db?sslpassword=a&Password=b@c#d", "postgresql://h/db?sslpassword=***&Password=***#d"),
        ("s3://models?endpoint=https://a:b@host", "s3://models?endpoint=https://a:***@host"),
        ("10.0.0.1", "10.0.0.1"),
    ],
)
def test_an_address_is_shown_without_passwords(address: str, what: str) -> None:
    assert addresses.shown(address) == what


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("porrt = 1", "there is no setting 'porrt'; choose from: allow-module"),
        ('port = "many"', "c.toml: port: 'many' is not a valid integer"),
        ("port = 70000", "c.toml: port: 70000 is not in the range 0<=x<=65535"),
        ("port = true", "c.toml: port: expected integer range, came True"),
        ("auth = 1", "c.toml: auth: expected true or false, came 1"),
        ('allow-module = "a"', "c.toml: allow-module: expected a list, came 'a'"),
        ("[port]\nx = 1", "c.toml: port: expected integer range, came {'x': 1}"),
        ("port = ", "cannot read the settings file c.toml"),
        ('tls-cert = "nowhere.pem"', "c.toml: tls-cert: File 'nowhere.pem' does not exist"),
    ],
)
@pytest.mark.parametrize("command", [["config", "show"], ["up"]])
def test_a_malformed_file_is_refused_by_name(capsys, command: list[str], text: str, said: str) -> None:
    Path("c.toml").write_text(text)
    assert run([*command, "--config", "c.toml"]) == Exit.USAGE
    assert said in capsys.readouterr().err
    assert not Path("tutti-data").exists()


def test_a_malformed_variable_is_refused(monkeypatch, capsys) -> None:
    monkeypatch.setenv("TUTTI_PORT", "tcp://10.0.0.1:8000")
    assert run(["up"]) == Exit.USAGE
    assert "'tcp://10.0.0.1:8000' is not a valid integer" in capsys.readouterr().err


@pytest.mark.parametrize("url", ["postgresql://postgres:postgres@db/tutti", "postgresql://a:ChangeMe@10.0.0.7/tutti"])
def test_a_password_that_everybody_knows_is_for_this_machine_only(capsys, url: str) -> None:
    assert run(["up", "--database", url]) == Exit.USAGE
    said = capsys.readouterr().err
    assert "one that everybody knows" in said
    assert url not in said
    assert run(["up", "--broker", "amqp://guest:guest@broker/"]) == Exit.USAGE
    assert run(["config", "show", "--broker", "amqp://guest:guest@127.0.0.1/"]) == Exit.OK


@pytest.mark.parametrize(
    "arguments",
    [
        ["--database", "postgresql://h/db?user=postgres&password=postgres"],
        ["--database", "postgresql://me:%70ostgres@h/db"],
        ["--database", "postgresql://me:postgres@127.0.0.1:5432,db.example:5432/db"],
        ["--database", "postgresql://me:postgres@/db?host=db.example"],
        ["--database", "postgresql://ada@h/db"],  # with PGPASSWORD
        ["--broker", "amqp://rabbit.example/"],
        ["--broker", "amqp://me@rabbit.example/"],
        ["--broker", "amqp://me:gu%65st@rabbit.example/"],
        [*STANDBY, "--redis", "redis://:Xq9-very@h/0?password=changeme"],
        [*STANDBY, "--redis", "redis://h/0"],
        ["--blobs", "s3://models?endpoint=https://store.example"],
    ],
)
@pytest.mark.parametrize("command", [["config", "show"], ["up"]])
def test_no_door_that_everybody_can_open_however_it_is_written(monkeypatch, capsys, command, arguments) -> None:
    """What an installer sets, as the drivers of databases, brokers and buckets find it."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "models")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "minioadmin")
    monkeypatch.setenv("PGPASSWORD", "postgres")
    assert run([*command, *arguments]) == Exit.USAGE
    assert re.search("that everybody knows|has no password", capsys.readouterr().err)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--database", "postgresql:///db?host=/var/run/postgresql&password=postgres"],
        ["--database", "postgresql://me:Xq9-very@h1:5432,h2:5432/db"],
        ["--broker", "amqp://127.0.0.1/"],
        [*STANDBY, "--redis", "redis://h/0?password=Xq9-very"],
        ["--blobs", "s3://models?endpoint=http://127.0.0.1:9000"],
    ],
)
def test_other_doors_are_taken(monkeypatch, arguments: list[str]) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "models")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "minioadmin")
    assert run(["config", "show", *arguments]) == Exit.OK


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--heartbeat", "nan"], "nan is not in the range 0.1<=x<=3600"),
        (["--keep-days", "nan"], "nan is not in the range x>=0"),
        (["--keep-days", "inf"], "inf is not in the range x>=0"),
        (["--database", "mysql://h/db"], "expected an address such as postgresql://"),
        (["--database", "postgresql://[h/db"], "expected an address such as postgresql://"),
        (["--broker", "http://h"], "expected an address such as amqps://"),
        (["--broker", "amqp://127.0.0.1/?coordinater=x"], "expected a broker's address such as amqps://"),
        (["--blobs", "/tmp/x"], "expected a bucket such as s3://"),
        (["--blobs", "s3://models?endpoint=http://127.0.0.1"], "Missing AccessKeyId"),
        (["--trusted-proxy", "10.1.0.1/16"], "expected an address or a network such as 10.1.0.0/16"),
        (["--host", "300.1.1.1"], "cannot listen on '300.1.1.1'"),
    ],
)
@pytest.mark.parametrize("command", [["config", "show"], ["up"]])
def test_what_a_coordinator_cannot_start_with_is_refused_beforehand(
    monkeypatch, capsys, command, arguments, said
) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID", raising=False)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "a key without a name")
    assert run([*command, *arguments]) == Exit.USAGE
    assert said in capsys.readouterr().err
    assert not Path("tutti-data").exists()


@pytest.mark.parametrize("command", [["config", "show"], ["up"]])
def test_a_misspelt_variable_is_refused(monkeypatch, capsys, command: list[str]) -> None:
    monkeypatch.setenv("TUTTI_TEST_REDIS", "somebody else's")
    monkeypatch.setenv("TUTTI_PRT", "9000")
    assert run(command) == Exit.USAGE
    assert "there is no setting TUTTI_PRT: is TUTTI_PORT meant?" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["REDIS", "BLOBS", "BROKER", "DATABASE"])
def test_an_address_that_is_called_as_in_other_programs_is_refused(monkeypatch, capsys, name: str) -> None:
    monkeypatch.setenv(f"TUTTI_{name}_URL", "redis://127.0.0.1:6379/0")
    assert run(["config", "show"]) == Exit.USAGE
    assert f"there is no setting TUTTI_{name}_URL: is TUTTI_{name} meant?" in capsys.readouterr().err


def test_a_variable_that_has_no_use_is_refused_as_its_option_is(monkeypatch, capsys) -> None:
    monkeypatch.setenv("TUTTI_REDIS", "redis://127.0.0.1:6379/0")
    assert run(["config", "show"]) == Exit.USAGE
    assert "--redis is for coordinators that stand in for each other" in capsys.readouterr().err


@pytest.mark.parametrize("place", ["file/data", "/proc/data", "/dev/null"])
def test_a_data_directory_that_cannot_be_one_is_refused_in_the_words_of_the_start(capsys, place: str) -> None:
    Path("file").touch()
    with pytest.raises(StorageError) as refused:
        data_folder(Path(place))
    for command in (["config", "show"], ["up"]):
        assert run([*command, "--data-dir", place]) == Exit.STORAGE
        assert capsys.readouterr().err == f"tutti: {refused.value}\n"


def test_looking_at_a_data_directory_leaves_nothing_behind(tmp_path: Path) -> None:
    check_data_folder(tmp_path / "a" / "b")
    (tmp_path / "there").mkdir(0o750)
    check_data_folder(tmp_path / "there")
    assert [each.name for each in tmp_path.iterdir()] == ["there"]
    assert (tmp_path / "there").stat().st_mode & 0o777 == 0o750


@pytest.mark.parametrize("secret", ["", "changeme", "secret" * 3, "0" * 64])
def test_a_secret_that_can_be_guessed_is_refused(capsys, secret: str) -> None:
    Path("s").write_text(secret)
    for option in ("--jwt-secret-file", "--operator-token-file", "--ledger-key-file"):
        assert run(["up", option, "s"]) == Exit.USAGE
        assert "openssl rand -hex 32" in capsys.readouterr().err


def test_a_secret_is_the_same_with_and_without_a_line_end(tmp_path: Path) -> None:
    for name, end in (("a", ""), ("b", "\n")):
        (tmp_path / name).write_text("0123456789abcdef" * 2 + end)
    assert read_jwt_secret(tmp_path / "a") == read_jwt_secret(tmp_path / "b")


NOW = datetime(2030, 1, 1, tzinfo=UTC)


def certificate(file: Path, start: datetime, end: datetime) -> Path:
    key, name = ec.generate_private_key(ec.SECP256R1()), x509.Name([])
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    builder = builder.serial_number(1).not_valid_before(start).not_valid_after(end)
    file.write_bytes(builder.sign(key, hashes.SHA256()).public_bytes(encoding=_pem()))
    return file


def _pem():
    from cryptography.hazmat.primitives.serialization import Encoding

    return Encoding.PEM


def test_an_expired_certificate_is_refused_and_one_that_soon_will_be_is_named(tmp_path: Path, caplog) -> None:
    day = timedelta(days=1)
    with pytest.raises(UserError, match="expired on 2029-12-31 00:00 UTC: renew it"):
        check_certificate(certificate(tmp_path / "old.pem", NOW - 9 * day, NOW - day), NOW)
    with pytest.raises(UserError, match="valid from 2030-01-02 00:00 UTC only"):
        check_certificate(certificate(tmp_path / "new.pem", NOW + day, NOW + 9 * day), NOW)
    check_certificate(certificate(tmp_path / "good.pem", NOW - day, NOW + 90 * day), NOW)
    assert not caplog.records
    check_certificate(certificate(tmp_path / "soon.pem", NOW - day, NOW + day), NOW)
    assert "expires on 2030-01-02" in caplog.text


@pytest.mark.parametrize("command", [["config", "show"], ["up"]])
def test_a_certificate_without_its_key_is_refused(tmp_path: Path, capsys, command) -> None:
    day = timedelta(days=1)
    file = certificate(tmp_path / "bare.pem", datetime.now(UTC) - day, datetime.now(UTC) + 90 * day)
    assert run([*command, "--tls-cert", str(file)]) == Exit.USAGE
    assert "does not hold a certificate chain and its private key" in capsys.readouterr().err


def test_a_coordinator_does_not_start_with_an_expired_certificate(tmp_path: Path, capsys) -> None:
    start = datetime(2020, 1, 1, tzinfo=UTC)
    file = certificate(tmp_path / "old.pem", start, start + timedelta(days=1))
    assert run(["up", "--tls-cert", str(file)]) == Exit.USAGE
    assert "expired on 2020-01-02" in capsys.readouterr().err


def line_of(message: str, *arguments: object, **more: object) -> dict[str, object]:
    record = logging.LogRecord("tutti.x", logging.INFO, "f", 1, message, arguments, None)
    return dict(json.loads(JsonLines().format(record)))


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--data-dir", "/dev/null"], Exit.STORAGE, "cannot use the data directory /dev/null: File exists"),
        (["--host", "300.1.1.1"], Exit.USAGE, "--host: cannot listen on '300.1.1.1'"),
        (["--tls-key", "c.toml"], Exit.USAGE, "--tls-key needs --tls-cert"),
        (["--port", "70000"], Exit.USAGE, "Invalid value for '--port': 70000"),
    ],
)
def test_why_a_program_ends_is_a_line_of_its_log(monkeypatch, capsys, arguments, code, message) -> None:
    Path("c.toml").write_text('log-format = "json"\n')
    assert run(["up", *arguments, "--config", "c.toml"]) == code
    (said,) = capsys.readouterr().err.splitlines()
    line = json.loads(said)
    assert line["message"].startswith(message)
    assert line.keys() == line_of("m").keys()
    assert (line["level"], line["logger"]) == ("ERROR", "tutti")
    monkeypatch.setenv("TUTTI_LOG_FORMAT", "json")
    assert run(["join", "hello", "--data", "digits"]) == Exit.USAGE
    assert "join link" in json.loads(capsys.readouterr().err)["message"]
    assert run(["join", "hello", "--data", "digits", "--log-format", "text"]) == Exit.USAGE
    assert capsys.readouterr().err.startswith("tutti: ")


def test_a_mistake_of_ours_ends_a_log_with_how_it_came_to_it() -> None:
    try:
        raise ZeroDivisionError("so")
    except ZeroDivisionError as error:
        line = json.loads(last_line("ours, 100%", error))
    assert line["message"] == "ours, 100%"
    assert line["error"].startswith("Traceback")
    assert line["error"].endswith("ZeroDivisionError: so")


def test_json_lines_have_the_ids_that_a_message_is_about() -> None:
    line = line_of("job %s round %d node %s: refused: %s", "digits-1", 3, "ada", "job evil round 9")
    assert (line["job"], line["round"], line["node"]) == ("digits-1", 3, "ada")
    assert line["message"] == "job digits-1 round 3 node ada: refused: job evil round 9"
    assert (line["level"], line["logger"]) == ("INFO", "tutti.x")
    assert datetime.fromisoformat(str(line["time"])).tzinfo is not None
    assert line_of("100%% of %s, node %s", "it", "bob")["node"] == "bob"
    assert "node" not in line_of("%s: no node here", "job x node y")
    assert "\n" not in JsonLines().format(logging.LogRecord("a", 20, "f", 1, "two\nlines", (), None))


def test_audits_that_were_asked_for_and_cannot_be_are_an_error(caplog) -> None:
    assert [share_of_audits(asked, able=True) for asked in (None, 0.0, 1.0)] == [AUDITED, 0.0, 1.0]
    with pytest.raises(UserError, match=r"expected wasmtime for --audited 1, it is not installed.*\.\[audit\]"):
        share_of_audits(1.0, able=False)
    assert (share_of_audits(0.0, able=False), caplog.messages) == (0.0, [])
    assert share_of_audits(None, able=False) == 0.0
    assert "no browser's update is computed again: wasmtime is missing" in caplog.text
