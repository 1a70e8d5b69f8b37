"""The market over HTTP: its own paths, and those that another system documents, with the documented requests."""

import io

import numpy as np
import pytest

from support.market import Marketplace
from support.served import app_of, caller
from tutti.core.workload import BadTable, Table
from tutti.domain.ledger import Mint, Order
from tutti.domain.ledger.operations import key_of
from tutti.services.market.tables import read_table
from tutti.wire.tables import decode_table

ROOT = "/api/v1/market"
ADA = {"worker_id": "ada", "gpu_type": "RTX 4090", "compute_capacity": 82600, "stake_amount": 150}
CLIENT = {"client_address": "0xC1ient", "initial_balance": 1000}
JOB = {"client_address": "0xC1ient", "model_type": "linear_regression", "reward": 50}


@pytest.fixture
async def place(tmp_path):
    place = Marketplace(tmp_path)
    await place.open(clients=0)
    yield place
    await place.close()


@pytest.fixture
async def http(place):
    async with caller(app_of(place)) as http:
        yield http


DOCUMENTED = [
    ("POST", "/worker/register", ADA, 201, {"worker_id", "gpu_type", "reputation", "staked"}),
    ("POST", "/worker/register", {**ADA, "worker_id": "bob", "stake_amount": 100}, 201, {"worker_id"}),
    ("POST", "/worker/register", {**ADA, "stake_amount": 99}, 422, {"detail"}),
    ("POST", "/worker/register", {**ADA, "stake_amount": -5}, 422, {"detail"}),
    ("POST", "/worker/register", {**ADA, "stake_amount": 1.5}, 422, {"detail"}),
    ("POST", "/worker/register", {"worker_id": "ada"}, 422, {"detail"}),
    ("GET", "/worker/w0/status", None, 200, {"worker_id", "reputation", "jobs_completed", "staked"}),
    ("GET", "/worker/nobody/status", None, 404, {"detail"}),
    ("GET", "/workers", None, 200, {"items"}),
    (
        "POST",
        "/client/register",
        {"client_address": "0xNew", "initial_balance": 500},
        201,
        {"client_address", "balance"},
    ),
    ("POST", "/client/register", {"client_address": "0xNew", "initial_balance": -1}, 422, {"detail"}),
    ("GET", "/client/0xC1ient/balance", None, 200, {"client_address", "balance"}),
    ("GET", "/client/0xNobody/balance", None, 404, {"detail"}),
    ("GET", "/clients", None, 200, {"items"}),
    ("POST", "/job/submit", JOB, 201, {"job_id", "status"}),
    ("POST", "/job/submit", {**JOB, "model_type": "kmeans"}, 201, {"job_id"}),
    ("POST", "/job/submit", {**JOB, "model_type": "PCA"}, 201, {"job_id"}),
    ("POST", "/job/submit", {**JOB, "model_type": "whatever"}, 422, {"detail"}),
    ("POST", "/job/submit", {**JOB, "reward": -5}, 422, {"detail"}),
    ("POST", "/job/submit", {**JOB, "reward": 0.5}, 422, {"detail"}),
    ("POST", "/job/submit", {**JOB, "reward": 10**6}, 409, {"detail"}),
    ("POST", "/job/submit", {**JOB, "client_address": "0xNobody"}, 404, {"detail"}),
    ("GET", "/job/{job}/status", None, 200, {"job_id", "status", "worker_id", "reward"}),
    ("GET", "/job/none/status", None, 404, {"detail"}),
    ("GET", "/jobs", None, 200, {"items"}),
    ("GET", "/jobs/pending", None, 200, {"items"}),
    ("GET", "/network/stats", None, 200, {"workers", "workers_active", "jobs", "jobs_completed", "success_rate"}),
    ("POST", "/network/coordination/start", None, 200, {"status"}),
    ("POST", "/network/coordination/stop", None, 200, {"status"}),
    ("POST", "/network/coordination/trigger", None, 200, {"status", "assigned"}),
    ("GET", "/health", None, 200, {"status"}),
    ("GET", "/", None, 200, None),
]


async def test_documented_calls(http):
    """Each of them, as documented, gets a sensible answer."""
    assert (await http.post("/worker/register", json={**ADA, "worker_id": "w0"})).status_code == 201
    assert (await http.post("/client/register", json=CLIENT)).status_code == 201
    job = (await http.post("/job/submit", json=JOB)).json()["job_id"]
    for method, path, body, status, fields in DOCUMENTED:
        answer = await http.request(method, path.format(job=job), json=body)
        assert answer.status_code == status, (method, path, body, answer.text)
        if fields is not None:
            assert fields <= answer.json().keys(), (method, path, body, answer.json())


async def test_the_documented_calls_run_a_job_from_registration_to_payment(place, http):
    """As that system's own demo does it, but that the worker is a node of its own."""
    assert (await http.post("/worker/register", json=ADA)).json()["reputation"] == 100
    await http.post("/client/register", json=CLIENT)
    assert (await http.get("/client/0xC1ient/balance")).json()["balance"] == 1000
    job = (await http.post("/job/submit", json=JOB)).json()
    assert job["status"] == "pending"
    assert [each["job_id"] for each in (await http.get("/jobs/pending")).json()["items"]] == [job["job_id"]]
    await place.hire("ada", 150, tokens=0)
    await place.settled(place.market.job(job["job_id"]))
    done = (await http.get(f"/job/{job['job_id']}/status")).json()
    assert (done["status"], done["worker_id"], done["settled"]) == ("verified", "ada", True)
    answer = await http.get("/worker/ada/status")
    assert answer.status_code == 200, answer.text
    worker = answer.json()
    assert (worker["jobs_completed"], worker["reputation"], worker["connected"]) == (1, 100, True)
    assert worker["gflops"] > 0
    assert worker["claimed"] == 82600
    assert (await http.get("/client/0xC1ient/balance")).json()["balance"] == 950
    stats = (await http.get("/network/stats")).json()
    assert (stats["workers"], stats["workers_active"], stats["jobs_completed"], stats["success_rate"]) == (1, 1, 1, 1.0)
    values = (await http.get(f"{ROOT}/jobs/{job['job_id']}/result")).json()["values"]
    assert values.keys() == {"coefficients", "intercept", "mse"}


async def test_a_table_is_uploaded_and_used(place, http):
    await http.post(ROOT + "/clients", json=CLIENT)
    rng = np.random.default_rng(0)
    x = rng.standard_normal((50, 3))
    rows = np.column_stack([x, x @ [1.0, -2.0, 0.5] + 4])
    text = "a,b,c,target\n" + "\n".join(",".join(map(str, row)) for row in rows)
    table = await http.post(f"{ROOT}/tables?target=target", content=text)
    assert table.status_code == 201
    assert (table.json()["rows"], table.json()["columns"], table.json()["target"]) == (50, 3, True)
    await place.hire("ada")
    wish = {**JOB, "data": table.json()["data"], "options": {"ridge": 1e-6}}
    job = (await http.post(f"{ROOT}/jobs", json=wish)).json()
    await place.settled(place.market.job(job["job_id"]))
    values = (await http.get(f"{ROOT}/jobs/{job['job_id']}/result")).json()["values"]
    assert values["coefficients"] == pytest.approx([1.0, -2.0, 0.5], abs=1e-4)
    assert values["intercept"] == pytest.approx(4.0, abs=1e-4)


async def test_npz_tables(place, http):
    file = io.BytesIO()
    np.savez(file, x=np.arange(12.0).reshape(6, 2), y=np.arange(6))
    answer = await http.post(f"{ROOT}/tables", content=file.getvalue())
    assert answer.status_code == 201
    kept: Table = decode_table(await place.core.blobs.read(answer.json()["data"]))
    assert kept.x.tolist() == np.arange(12.0).reshape(6, 2).tolist()
    assert kept.y is not None


def _npz(**arrays):
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


@pytest.mark.parametrize(
    ("content", "target", "said"),
    [
        (b"", "", "column names"),
        (b"a,b\n", "", "column names"),
        (b"a,b\n1,2\n3,x\n", "", "line 3, column 'b': expected a number, came 'x'"),
        (b"a,b\n1,2\n3\n", "", "line 3 has 1 cells, expected 2"),
        (b"a,b\n1,2\n", "c", "no column 'c'"),
        (b"a,b\n1,nan\n", "", "not finite"),
        (b"a,b\n1,1e300\n", "", "1e100"),
        (b"\xff\xfe\n1", "", "neither an NPZ file nor UTF-8"),
        (b"a,b,a\n1,2,3\n", "", "two columns have the name 'a'"),
        (b"PK\x03\x04nonsense", "", "NPZ"),
        (_npz(z=np.ones(3)), "", "array 'x'"),
        (_npz(x=np.ones(3)), "", "shape"),
        (_npz(x=np.ones((3, 2)), y=np.ones(4)), "", "target for each"),
        (_npz(x=np.array([["a", "b"]])), "", "NPZ"),
        (_npz(x=np.array([[{}, 1]], dtype=object)), "", "NPZ"),
    ],
)
def test_malformed_tables_are_refused_with_the_reason(content, target, said):
    with pytest.raises(BadTable) as refused:
        read_table(content, target)
    assert said in str(refused.value)


async def test_a_refused_table_is_a_problem_document(http):
    answer = await http.post(f"{ROOT}/tables", content=b"a,b\n1,x\n")
    assert (answer.status_code, answer.headers["content-type"]) == (422, "application/problem+json")
    assert "line 2, column 'b'" in answer.json()["detail"]


IMPOSSIBLE = [
    ({"options": {"ridge": -1}}, 422, "ridge"),
    ({"options": {"depth": 3}}, 422, "depth"),
    ({"model_type": "kmeans", "options": {"clusters": 5000}}, 422, "clusters"),
    ({"model_type": "pca", "options": {"components": 9}}, 422, "components"),
    ({"data": "0" * 64}, 404, "no blob"),
    ({"data": "../etc/passwd"}, 422, "data"),
    ({"replicas": 0}, 422, "replicas"),
    ({"replicas": 9, "reward": 8}, 422, "replicas"),
    ({"seconds": 0}, 422, "seconds"),
    ({"rewardd": 5}, 422, "there are: "),
]


async def test_jobs_that_cannot_be_are_refused_and_cost_nothing(http):
    await http.post(ROOT + "/clients", json=CLIENT)
    for wish, status, said in IMPOSSIBLE:
        answer = await http.post(f"{ROOT}/jobs", json={**JOB, **wish})
        assert answer.status_code == status, (wish, answer.text)
        assert said in answer.json()["detail"], wish
    assert (await http.get(ROOT + "/clients/0xC1ient")).json()["balance"] == 1000


async def test_the_same_key_is_the_same_job(http):
    await http.post(ROOT + "/clients", json=CLIENT)
    headers = {"idempotency-key": "k1"}
    first, again = [(await http.post(f"{ROOT}/jobs", json=JOB, headers=headers)).json() for _ in range(2)]
    assert first["job_id"] == again["job_id"]
    assert (await http.get(ROOT)).json()["jobs"] == 1
    other = await http.post(f"{ROOT}/jobs", json={**JOB, "reward": 51}, headers=headers)
    assert other.status_code == 409


async def test_registering_again_makes_no_further_tokens(place, http):
    for _ in range(2):
        await http.post(ROOT + "/clients", json=CLIENT)
        await http.post(ROOT + "/workers", json=ADA)
    assert (await place.balanced()).minted == 1150
    more = await http.post(ROOT + "/clients", json={**CLIENT, "initial_balance": 2000})
    assert more.status_code == 409


async def test_stake_can_be_taken_back_unless_it_is_at_risk(place, http):
    await place.hire("ada", 150)
    headers = {"idempotency-key": "u1"}
    answer = await http.post(f"{ROOT}/workers/ada/unstake", json={"amount": 50}, headers=headers)
    assert (answer.status_code, answer.json()["staked"]) == (200, 100)
    answer = await http.post(f"{ROOT}/workers/ada/unstake", json={"amount": 101}, headers={"idempotency-key": "u2"})
    assert answer.status_code == 409
    assert "at most 100" in answer.json()["detail"]
    assert (await http.post(f"{ROOT}/workers/ada/unstake", json={"amount": 1})).status_code == 422  # no key


async def test_what_has_not_unbonded_is_not_withdrawn(place, http):
    await place.hire("ada", 150)
    path = f"{ROOT}/workers/ada/withdraw"
    answer = await http.post(path, headers={"idempotency-key": "w1"})
    assert answer.status_code == 409
    assert "unstake first" in answer.json()["detail"]
    assert (await http.post(f"{ROOT}/workers/nobody/withdraw", headers={"idempotency-key": "w1"})).status_code == 404


@pytest.mark.parametrize("key", ["market/kmeans-1a2b3c4d/end/0", "reward/job/1", "a" * 181, "ö".encode()])
async def test_nobody_takes_the_key_of_a_payment_to_come(place, http, key):
    await place.hire("ada", 150)
    for path, body in (("unstake", {"amount": 1}), ("withdraw", None)):
        answer = await http.post(f"{ROOT}/workers/ada/{path}", json=body, headers={"idempotency-key": key})
        assert answer.status_code == 422, path
    answer = await http.post("/api/v1/ledger/accounts/node:ada/claim", headers={"idempotency-key": key})
    assert answer.status_code == 422
    for path in ("mint", "accounts/node:ada/transfer"):
        wish = {"to": "node:ada", "amount": 1, "key": key if isinstance(key, str) else "ö"}
        assert (await http.post(f"/api/v1/ledger/{path}", json=wish)).status_code == 422
    assert (await place.worker_holds("ada")).staked == 150


async def test_a_refused_order_leaves_the_known_stake_as_it_is(place, http):
    await place.hire("ada", 150)
    await http.post("/api/v1/ledger/mint", json={"to": "somebody", "amount": 1, "key": "taken"})
    answer = await http.post(f"{ROOT}/workers/ada/unstake", json={"amount": 50}, headers={"idempotency-key": "taken"})
    assert answer.status_code == 409
    assert (await http.get(f"{ROOT}/workers/ada")).json()["staked"] == 150


@pytest.mark.parametrize(
    ("path", "change", "said"),
    [
        ("workers", {"worker_id": ""}, "worker_id: expected a name of letters, digits and ._-"),
        ("workers", {"worker_id": "a b"}, "64 characters at most, came 'a b'"),
        ("workers", {"stake_amount": -5}, "stake_amount: expected `int` >= 1, came '-5'"),
        ("clients", {"client_address": "x\n"}, "client_address: expected a name of letters, digits and ._@-"),
        (
            "clients",
            {"initial_balance": 2000},
            "was given its first balance before: more is made by",
        ),
        ("jobs", {"data": "zz"}, "data: expected the digest of an uploaded table, 64 hex digits, came 'zz'"),
        ("jobs", {"reward": 0}, "reward: expected `int` >= 1, came '0'"),
    ],
)
async def test_what_cannot_be_is_refused_in_words(http, path, change, said):
    good = {"workers": ADA, "clients": CLIENT, "jobs": JOB}
    await http.post(f"{ROOT}/clients", json=CLIENT)
    answer = await http.post(f"{ROOT}/{path}", json={**good[path], **change})
    assert answer.status_code in (409, 422)
    assert said in answer.json()["detail"]


async def test_a_key_is_its_persons_own(place, http):
    """Whoever has used it before: each has a name space of its own, and so has the coordinator."""
    await place.hire("ada", 150)
    for key in ("mine", key_of("somebody else", "mine")):
        await place.ledger.post(Order(key, Mint(to="somebody", amount=1)))
    answer = await http.post(f"{ROOT}/workers/ada/unstake", json={"amount": 50}, headers={"idempotency-key": "mine"})
    assert (answer.status_code, answer.json()["staked"]) == (200, 100)


async def test_results_are_there_once_they_are_verified(http):
    await http.post(ROOT + "/clients", json=CLIENT)
    job = (await http.post(f"{ROOT}/jobs", json=JOB)).json()["job_id"]
    assert (await http.get(f"{ROOT}/jobs/{job}/result")).status_code == 404
    assert (await http.post(f"{ROOT}/jobs/{job}/dispute", json={})).status_code == 409


@pytest.mark.parametrize("to", ["0x123", f"0X{'7a' * 20}", f"0x{'7a' * 19}7g"])
async def test_no_tokens_go_to_a_mistyped_address(http, to):
    await http.post("/api/v1/ledger/mint", json={"to": "somebody", "amount": 1, "key": "some"})
    moved = await http.post("/api/v1/ledger/accounts/somebody/transfer", json={"to": to, "amount": 1, "key": "moved"})
    made = await http.post("/api/v1/ledger/mint", json={"to": to, "amount": 1, "key": "made"})
    for answer in (moved, made):
        assert (answer.status_code, "40 hex digits" in answer.json()["detail"]) == (422, True)
