"""The peer of `tools.bench.server`: the same model in a minimal PyTorch and FastAPI server.

    python tools/bench/server_peer.py 512

A session is an entry of a dictionary, and a request is run alone, as such servers are usually
written. It prints the port that it listens at.
"""

import socket
import sys
from typing import Any

SYMBOLS = 256


def make_app(units: int) -> Any:
    """Makes the application of a model of so many units."""
    import fastapi
    import torch

    torch.set_num_threads(1)  # which is faster for a step of one row
    embedding = torch.nn.Embedding(SYMBOLS, units)
    lstm, readout = torch.nn.LSTM(units, units), torch.nn.Linear(units, SYMBOLS)
    sessions: dict[str, Any] = {}
    app = fastapi.FastAPI()

    @app.post("/sessions")
    def open_session(body: dict) -> dict:
        sessions[body["name"]] = (torch.zeros(1, 1, units), torch.zeros(1, 1, units))
        return {}

    @app.post("/sessions/{name}/feed")
    def feed(name: str, body: dict) -> dict:
        with torch.inference_mode():
            inputs = embedding(torch.tensor(body["inputs"])[:, None])
            outputs, sessions[name] = lstm(inputs, sessions[name])
            if body.get("outputs") == "last":
                outputs = outputs[-1:]
            return {"outputs": readout(outputs[:, 0]).tolist()}

    @app.post("/sessions/{name}/generate")
    def generate(name: str, body: dict) -> dict:
        tokens = [1]
        with torch.inference_mode():
            for _ in range(body["count"]):
                inputs = embedding(torch.tensor([[tokens[-1]]]))
                outputs, sessions[name] = lstm(inputs, sessions[name])
                p = torch.softmax(readout(outputs[0, 0]) / 0.8, dim=0)
                tokens.append(int(torch.multinomial(p, 1)))
        return {"tokens": tokens[1:]}

    return app


def main() -> None:
    """Serves until it is killed."""
    import uvicorn

    application = make_app(int(sys.argv[1]))
    bound = socket.socket()
    bound.bind(("127.0.0.1", 0))
    bound.listen(1024)
    print(bound.getsockname()[1], flush=True)
    config = uvicorn.Config(application, log_level="error", access_log=False)
    uvicorn.Server(config).run(sockets=[bound])


if __name__ == "__main__":
    main()
