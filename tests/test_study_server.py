"""A study that is served: what it answers, what it refuses, what it tells, what a kill loses."""

import concurrent.futures
import functools
import http.client
import itertools
import json
import re
import signal

import pytest
from starlette.testclient import TestClient
from studies import MODELS, answer, made, served

from raypref.study.server import MOST_BYTES, RateLimit, exposure, study_app
from raypref.study.votes import VoteStore


@pytest.fixture
def study(tmp_path):
    return made(tmp_path, 6, repeats=2, checks=1)


@pytest.fixture
def store(study):
    own = VoteStore(study.folder)
    yield own
    own.close()


@pytest.fixture
def client(study, store):
    app = study_app(study, store, rate=100.0)
    return TestClient(app, base_url=f"http://127.0.0.1/{study.token}/", follow_redirects=False)


def test_a_rater_votes_takes_back_and_resumes(client, study, store):
    begun = client.post("start", json={"rater": "ann"}).json()
    assert begun == {"tasks": [a._asdict() for a in study.order("ann")], "answers": []}
    first, second = (answer(study, "ann", n, c) for n, c in ((0, "left"), (1, "tie")))
    assert client.post("vote", json=first).json() == {"kept": "stored"}
    assert client.post("vote", json=second).status_code == 200
    answers = [{k: vote[k] for k in ("task", "choice", "id")} for vote in (first, second)]
    assert client.post("start", json={"rater": "ann"}).json()["answers"] == answers
    undone = client.post("undo", json={"rater": "ann", "id": second["id"]})
    assert undone.json() == {"answers": answers[:1]}
    assert client.post("undo", json={"rater": "bob", "id": first["id"]}).status_code == 404
    assert [vote.id for vote in store.all()] == [first["id"]]


def test_a_replayed_vote_and_a_second_tab_change_nothing(client, study, store):
    vote = answer(study, "ann", 0, "left")
    for _ in range(3):
        assert client.post("vote", json=vote).status_code == 200
    other = client.post("vote", json=answer(study, "ann", 0, "right"))
    assert other.status_code == 409
    assert other.json()["answers"] == [{"task": vote["task"], "choice": "left", "id": vote["id"]}]
    assert client.post("vote", json={**vote, "choice": "right"}).status_code == 400
    client.post("undo", json={"rater": "ann", "id": vote["id"]})
    assert client.post("vote", json=vote).json() == {"kept": "undone", "answers": []}
    assert store.all() == []


def test_bad_requests_get_a_clear_refusal_and_change_nothing(client, study, store):
    vote = answer(study, "ann", 0)
    image = next(iter(study.items.values())).sides[0].image
    wrong = f"/{'x' * len(study.token)}"
    for path in (
        *("/", "/favicon.ico", wrong, f"{wrong}/", f"{wrong}/images/{image}.webp"),
        f"/{study.token[:-1]}/",
        f"/{study.token}/study.json",
        f"/{study.token}/images/",
        f"/{study.token}/images/%2e%2e%2fstudy.json",
        f"/{study.token}/images/..%5cstudy.json",
        f"/{study.token}/images/../study.json",
        f"/{study.token}/images//etc/passwd",
        f"/{study.token}/images/{image}.webp%00",
        f"/{study.token}/votes.sqlite",
    ):
        given = client.get(f"http://127.0.0.1{path}")
        assert given.status_code == 404, path
        assert "Not found" in given.text and study.token not in given.text
    for what in ("start", "vote", "undo"):
        assert client.post(f"http://127.0.0.1{wrong}/{what}", json=vote).status_code == 404
    assert client.get("vote").status_code == 405
    big = {**vote, "more": "x" * MOST_BYTES}
    assert client.post("vote", json=big).status_code == 413

    def endless():
        yield from itertools.repeat(b"x" * 65536, 1000)

    json_type = {"Content-Type": "application/json"}
    assert client.post("vote", content=endless(), headers=json_type).status_code == 413
    for body in (b"", b"[]", b"\xff", b"{", b"[" * 4000, b'{"rater": NaN}', b"null"):
        given = client.post("vote", content=body, headers=json_type)
        assert given.status_code == 400 and "error" in given.json(), body
    form = client.post("vote", data={"rater": "ann"})
    assert form.status_code == 415, "a form of another site"
    assert client.post("vote", json={**vote, "choice": "b"}).json()["error"].startswith("choice")
    assert client.post("start", json={"rater": "Ann Smith, 12 High St"}).status_code == 400
    assert store.all() == []
    assert client.get(f"http://127.0.0.1/{study.token}").headers["location"] == f"/{study.token}/"


def test_nothing_tells_which_model_is_which(client, study, tmp_path):
    """All that is served is read: page, orders, images, headers, refusals."""
    texts, images = [], {}
    page = client.get("")
    assert page.status_code == 200 and "Which image do you prefer" in page.text
    given = [page, client.get("x"), client.post("vote", json={})]
    for number in range(30):
        begun = client.post("start", json={"rater": f"r{number}"})
        given.append(begun)
        for asked in begun.json()["tasks"]:
            for side in ("left", "right"):
                if (name := asked[side]) not in images:
                    images[name] = client.get(f"images/{name}.webp")
        vote = answer(study, f"r{number}", 0)
        given += [client.post("vote", json=vote), client.post("vote", json=answer(study, "r1", 0))]
    given += images.values()
    assert len(images) == 14
    for each in given:
        texts.append(each.content)
        texts.append(repr(sorted(each.headers.items())).encode())
        assert not {"last-modified", "etag", "server"} & {*each.headers}, "times tell an order"
    said = b"\n".join(texts).lower()
    for secret in (*MODELS, "alpha", "beta", "damaged", '"kind"', '"check"', str(tmp_path)):
        assert secret.lower().encode() not in said, secret
    assert {each.headers["content-type"] for each in images.values()} == {"image/webp"}
    assert all(re.fullmatch("[0-9a-f]{16}", name) for name in images)


def test_every_answer_has_strict_headers(client, study):
    name = next(iter(study.items.values())).sides[0].image
    for given in (client.get(""), client.get("x"), client.get(f"images/{name}.webp")):
        headers = given.headers
        assert headers["cache-control"] == "no-store"
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"
        assert "default-src 'none'" in headers["content-security-policy"]
        assert "frame-ancestors 'none'" in headers["content-security-policy"]
        assert "unsafe" not in headers["content-security-policy"]
        assert "access-control-allow-origin" not in headers


def test_a_rater_who_sends_too_much_waits(study, store, monkeypatch):
    stopped = functools.partial(RateLimit, clock=lambda: 0.0)
    monkeypatch.setattr("raypref.study.server.RateLimit", stopped)
    app = study_app(study, store, rate=1.0)
    client = TestClient(app, base_url=f"http://127.0.0.1/{study.token}/")
    given = [client.post("start", json={"rater": "ann"}) for _ in range(8)]
    assert [each.status_code for each in given] == [200] * 5 + [429] * 3
    assert int(given[-1].headers["retry-after"]) >= 1
    assert client.post("start", json={"rater": "bob"}).status_code == 200, "another rater"
    many = [client.get("").status_code for _ in range(60)]
    assert many == [200] * 41 + [429] * 19, "ten times that of an address, 9 of which are sent"


def test_the_rate_limit_against_a_clock_by_hand():
    seconds = [0.0]
    limit = RateLimit(2.0, lambda: seconds[0])
    assert [limit.wait("a") for _ in range(11)] == [0.0] * 10 + [0.5]
    seconds[0] = 0.25
    assert limit.wait("a") == pytest.approx(0.25), "waiting costs nothing"
    seconds[0] = 0.5
    assert (limit.wait("a"), limit.wait("a"), limit.wait("b")) == (0.0, pytest.approx(0.5), 0.0)
    seconds[0] = 1000.0
    assert [limit.wait("a") for _ in range(11)].count(0.0) == 10, "no more than the burst"


def test_who_can_reach_it_is_said():
    assert exposure("127.0.0.1", 1).startswith("Only this machine")
    assert exposure("::1", 1).startswith("Only this machine")
    for host in ("0.0.0.0", "192.168.1.2", "::", "myhost"):
        assert "Everybody who reaches port 80" in exposure(host, 80)
        assert "Nothing is encrypted" in exposure(host, 80)


def test_a_kill_loses_no_vote_that_was_acknowledged(study):
    """Four raters vote at once; kill -9 in between; the next server has all that was answered."""
    acknowledged: list[str] = []

    def rate(server, rater):
        for number in range(9):
            vote = answer(study, rater, number)
            try:
                status, told = server.post("vote", vote)
            except (OSError, http.client.HTTPException, json.JSONDecodeError):
                return
            if status == 200 and told["kept"] == "stored":
                acknowledged.append(vote["id"])
            if len(acknowledged) == 17:
                server.process.send_signal(signal.SIGKILL)

    with served(study, "--rate=1000") as server:
        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            for rater in ("ann", "bob", "cyd", "dee"):
                pool.submit(rate, server, rater)
        assert server.process.wait() == -signal.SIGKILL
    assert 17 <= len(acknowledged) < 36
    store = VoteStore(study.folder)
    votes = store.all()
    store.close()
    assert {*acknowledged} <= {vote.id for vote in votes}
    assert len(votes) <= len(acknowledged) + 4, "one per rater may be stored and not yet answered"
    assert len({(vote.rater, vote.task) for vote in votes}) == len(votes)
