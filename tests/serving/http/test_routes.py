"""What each route does, against a plain model that carries its state alone."""

import json
import pathlib
import re
import threading

import numpy as np
import tensorflow as tf

import tbptt
from tbptt.serving.http import handlers
from tbptt.serving.http.app import ROUTES
from tbptt.serving.http.server import Server
from tbptt.serving.sampling import Sampler, Sampling
from tbptt.testing import assert_close, assert_same_bits
from tests.serving.http.conftest import SIZE, VOCABULARY, Client

RNG = np.random.default_rng(4)


class Plain:
    """A model that is called step by step, with its state in our hands."""

    def __init__(self, model):
        self.model, self.state = model, model.initial_state(1)

    def feed(self, ids):
        outputs, self.state = self.model(tf.constant(ids)[:, None], self.state)
        return outputs[:, 0].numpy()


def ids_of(count):
    return RNG.integers(0, SIZE, count).tolist()


def feed(ask, name, ids, **options):
    return ask.ok("POST", f"/sessions/{name}/feed", {"inputs": ids, **options})


def test_fed_chunks_have_the_outputs_of_the_model(ask, model):
    plain = Plain(model)
    assert ask.ok("POST", "/sessions", {"name": "ann"})["steps"] == 0
    steps = 0
    for count in (1, 7, 90, 1):  # 90 are two pieces
        ids = ids_of(count)
        answer = feed(ask, "ann", ids)
        assert_close(np.float32(answer["outputs"]), plain.feed(ids))
        steps += count
        assert answer["steps"] == steps
    ids = ids_of(9)
    assert_close(np.float32(feed(ask, "ann", ids, outputs="last")["outputs"]), plain.feed(ids)[-1:])
    assert feed(ask, "ann", ids, outputs="none") == {"steps": steps + 18}


def test_sessions_are_named_listed_described_and_closed(ask):
    long = ask.ok("POST", "/sessions")["name"]
    assert len(long) >= 20
    assert ask.ok("POST", "/sessions")["name"] != long
    assert ask.ok("POST", "/sessions", {"name": "b é 1"})["name"] == "b é 1"
    found = ask.ok("GET", "/sessions/b%20%C3%A9%201")
    assert {"name": "b é 1", "steps": 0, "marks": [], "writing": False}.items() <= found.items()
    assert [one["name"] for one in ask.ok("GET", "/sessions")["sessions"]][-1] == "b é 1"
    assert ask.ok("DELETE", f"/sessions/{long}") == {"closed": long}
    assert ask("GET", f"/sessions/{long}").status == 404


def test_fork_mark_rollback_and_reset_are_those_of_the_state(ask, server, model):
    """A session that forks and goes back has the bits of one that was left alone."""
    first, second = ids_of(5), ids_of(4)
    for name in ("ann", "left"):
        ask.ok("POST", "/sessions", {"name": name})
        feed(ask, name, first)
    assert ask.ok("POST", "/sessions/ann/mark", {"mark": "here"})["marks"] == ["here"]
    expected = feed(ask, "left", second)
    assert ask.ok("POST", "/sessions/ann/fork", {"name": "bob"})["steps"] == 5
    assert feed(ask, "bob", second) == expected
    assert feed(ask, "ann", second) == expected
    assert ask.ok("POST", "/sessions/ann/rollback", {"mark": "here"})["steps"] == 5
    assert feed(ask, "ann", second) == expected
    assert ask.ok("POST", "/sessions/bob/rollback", {"mark": "here"})["steps"] == 5  # has it too
    assert ask.ok("POST", "/sessions/ann/reset")["steps"] == 0
    assert_close(np.float32(feed(ask, "ann", first)["outputs"]), Plain(model).feed(first))
    streamer = server.service.streamer
    assert not np.array_equal(*(streamer.state(n).hidden for n in ("ann", "left")))


def generate(ask, name, **settings):
    return ask.ok("POST", f"/sessions/{name}/generate", settings)


def events_of(body):
    """Returns the events of a stream as pairs of kind and content."""
    blocks = body.decode().strip().split("\n\n")
    found = [re.fullmatch(r"(?:event: (\w+)\n)?data: (.*)", block).groups() for block in blocks]
    return [(kind, json.loads(content)) for kind, content in found]


def test_drawn_tokens_are_those_of_a_sampler(ask, model):
    ids, settings = ids_of(6), dict(temperature=0.7, top_k=5, top_p=0.9, repetition_penalty=1.2)
    ask.ok("POST", "/sessions", {"name": "ann"})
    answer = generate(ask, "ann", inputs=ids, count=30, seed=5, **settings)
    plain = Plain(model)
    plain.feed(ids[:-1])
    seen = np.zeros([1, SIZE], bool)
    seen[0, ids] = True
    sampler = Sampler(model, most=30, jit_compile=False)
    tokens, _ = sampler(
        np.array(ids[-1:]), plain.state, 30, [[0, 5]], Sampling(**settings), seen=seen
    )
    assert answer["tokens"] == tokens[:, 0].tolist()
    assert answer["text"] == VOCABULARY.decode(tokens[:, 0])
    told = {"reason": "count", "steps": 36, "seed": 5, "begun": 30}
    assert told.items() <= answer.items()


def test_a_stream_has_the_tokens_of_an_answer(ask):
    ask.ok("POST", "/sessions", {"name": "ann"})
    feed(ask, "ann", [3])
    ask.ok("POST", "/sessions/ann/fork", {"name": "bob"})
    answer = generate(ask, "ann", count=20, seed=2)
    streamed = ask("POST", "/sessions/bob/generate", dict(count=20, seed=2, stream=True))
    assert streamed.headers["content-type"] == "text/event-stream"
    *events, (kind, end) = events_of(streamed.body)
    assert [content["token"] for _, content in events] == answer["tokens"]
    assert "".join(content["text"] for _, content in events) == answer["text"]
    assert kind == "end"
    assert end == {name: answer[name] for name in ("reason", "steps", "seed", "begun")}
    assert feed(ask, "ann", [1]) == feed(ask, "bob", [1])  # and the same state


def test_tokens_in_two_requests_are_those_of_one(ask):
    for name in ("ann", "bob"):
        ask.ok("POST", "/sessions", {"name": name})
        feed(ask, name, [3, 1])
    whole = generate(ask, "ann", count=25, seed=9)["tokens"]
    first = generate(ask, "bob", count=11, seed=9)
    second = generate(ask, "bob", count=14, seed=first["seed"], begun=first["begun"])
    assert first["tokens"] + second["tokens"] == whole


def test_a_stop_token_ends(ask):
    ask.ok("POST", "/sessions", {"name": "ann"})
    answer = generate(ask, "ann", text="abc", count=100, seed=1, stop=["."])
    assert generate(ask, "ann", text="", count=1)["steps"] == answer["steps"] + 2  # "": a new line
    assert answer["reason"] == "stop"
    assert answer["text"].index(".") == len(answer["text"]) - 1
    assert answer["steps"] == 3 + len(answer["tokens"])


def test_a_seed_draws_the_same_whatever_else_runs(server, ask):
    """To the bit, while seven other sessions are fed and draw with other settings."""
    ask.ok("POST", "/sessions", {"name": "ann"})
    feed(ask, "ann", ids_of(20))
    ask.ok("POST", "/sessions/ann/mark", {"mark": "here"})
    alone = generate(ask, "ann", count=60, seed=4), server.service.streamer.state("ann")
    for k in range(7):
        ask.ok("POST", "/sessions", {"name": f"other{k}"})
    done = threading.Event()

    def disturb(number):
        client = Client(server)
        while not done.is_set():
            feed(client, f"other{number}", [number] * (number + 1), outputs="none")
            generate(client, f"other{number}", count=2 + number, temperature=0.5 + number)
        client.close()

    threads = [threading.Thread(target=disturb, args=[k]) for k in range(7)]
    for thread in threads:
        thread.start()
    for _ in range(4):
        ask.ok("POST", "/sessions/ann/rollback", {"mark": "here"})
        assert generate(ask, "ann", count=60, seed=4) == alone[0]
        assert_same_bits(server.service.streamer.state("ann"), alone[1])
    done.set()
    for thread in threads:
        thread.join()
    rounds = server.service.metrics.rounds.text("r")
    alone_rounds, all_rounds = (
        int(re.search(rf'le="{bound}"}} (\d+)', rounds)[1]) for bound in ("1", r"\+Inf")
    )
    assert alone_rounds < all_rounds - 10  # others were in the same rounds


def test_metrics_count_what_happens(ask):
    ask.ok("POST", "/sessions", {"name": "ann"})

    def read():
        text = ask("GET", "/metrics").body.decode()
        assert all(re.fullmatch(r"# (HELP|TYPE) .*|\w+({.*})? [0-9.e+-]+", x) for x in
                   text.strip().split("\n")), text  # fmt: skip
        return {m[1]: float(m[2]) for m in re.finditer(r"^(\w+(?:{.*})?) (\S+)$", text, re.M)}

    before = read()
    generate(ask, "ann", inputs=[1, 2], count=8)
    assert ask("POST", "/sessions/ann/feed", {"inputs": [-1]}).status == 400
    after = read()
    gone_up = {name: after[name] - before.get(name, 0) for name in after}
    assert gone_up["tbptt_steps_total"] == 10
    assert gone_up["tbptt_tokens_total"] == 8
    bad = 'tbptt_requests_total{method="POST",route="/sessions/{name}/feed",status="400"}'
    assert gone_up[bad] == 1
    assert gone_up['tbptt_request_seconds_count{route="/sessions/{name}/generate"}'] == 1
    assert gone_up["tbptt_traces"] == 0
    assert after["tbptt_sessions"] == 1


def test_health_model_and_page_say_what_there_is(ask):
    assert ask.ok("GET", "/health") == {"status": "ok"}
    about = ask.ok("GET", "/model")
    assert about["vocabulary"] == {"kind": "characters", "sha256": VOCABULARY.sha256}
    assert about["state"]["hidden"] == {"dtype": "float32", "shape": [6]}
    assert about["limits"]["steps"] == 100
    page = ask("GET", "/")
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert policy.count("sha256-") == 2
    assert not re.search(rb"https?://|style=|\son\w+=", page.body)


def test_outputs_of_any_structure_are_json():
    """bfloat16 as numbers, named tuples as objects, and what is not finite as null."""
    outputs = tbptt.types.WindowLoss(
        np.float32([[0.1, np.nan]]), {"a": (tf.constant([1.5], tf.bfloat16).numpy(),)}, None
    )._replace(penalty=np.array([[1, 2]])[:, ::-1])
    found = json.loads(handlers.as_json(handlers._plain(outputs)).body)
    assert found == {"loss": [[0.1, None]], "metrics": {"a": [[1.5]]}, "penalty": [[2.0, 1.0]]}


def test_every_route_has_a_test():
    text = pathlib.Path(__file__).read_text(encoding="utf-8")
    for route in ROUTES:
        assert route.rpartition("/")[2].strip("{}") in text


def test_a_model_of_features():
    """No vocabulary: features in, outputs out, and no tokens."""
    seeds = tbptt.split_seed(tbptt.make_seed(0), 2)
    model = tbptt.SequenceModel(
        tbptt.LSTM(3, 4, seed=seeds[0]), 2, tbptt.losses.squared_error, seed=seeds[1]
    )
    server = Server(model, port=0, batch_rows=2, jit_compile=False)
    server.start()
    ask = Client(server)
    ask.ok("POST", "/sessions", {"name": "ann"})
    for wrong, message in (
        ([[1.0, 2.0]], r"The model cannot take these inputs: float32 of shape \[N, 2\]\."),
        ([[1, 2, 3]], r"The model cannot take these inputs: int32|int64 of shape"),
    ):
        answer = ask("POST", "/sessions/ann/feed", {"inputs": wrong})
        assert answer.status == 400
        assert re.search(message, answer.json["error"]), answer.json
    inputs = RNG.normal(size=[5, 3]).astype(np.float32)
    found = ask.ok("POST", "/sessions/ann/feed", {"inputs": inputs.tolist()})
    outputs, _ = model(tf.constant(inputs)[:, None], model.initial_state(1))
    assert_close(np.float32(found["outputs"]), outputs[:, 0])
    for wrong, message in (
        ({"inputs": [[1.0, 2.0]]}, "float32"), ({"inputs": [[1e39, 0.0, 0.0]]}, "finite"),
        ({"inputs": [[1.0, 2.0, "a"]]}, "numbers only"), ({"inputs": [[1.0], [1.0, 2.0]]}, "same"),
        ({"inputs": {"a": [[1.0]]}}, "cannot take|inputs of session"), ({"text": "a"}, "no vocab"),
    ):  # fmt: skip
        answer = ask("POST", "/sessions/ann/feed", wrong)
        assert (answer.status, bool(re.search(message, answer.json["error"]))) == (400, True), wrong
    answer = ask("POST", "/sessions/ann/generate", {})
    assert (answer.status, "not a language model" in answer.json["error"]) == (400, True)
    assert ask.ok("GET", "/sessions/ann")["steps"] == 5
    ask.close()
    server.stop()
