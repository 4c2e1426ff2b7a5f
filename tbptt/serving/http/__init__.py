"""An HTTP server over a `Streamer`: sessions, JSON, server-sent events, metrics and one page.

`server.Server` runs it, `tools/serve.py` is its command; the extra `serve` installs what it needs.
Each request goes through `connections` (slow and oversized ones), `app` (routes and checks),
`handlers` (one function a route) and `engine` (one thread that runs the model in rounds).
"""
