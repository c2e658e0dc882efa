"""The gateways in front of the mock, by name: the command, the settings and the route of each."""

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.environments import (
    DATA,
    ensure_environment,
    ensure_nginx,
    ensure_node_packages,
)
from bench.faces import NATIVE, OPENAI, Face
from bench.load import Route
from bench.ollama_wire import MODEL
from bench.peers import clean_environment, free_port
from bench.processes import ServerPeer

KEY = "sk-bench-0123456789abcdef"
MOST_STREAMS = 12_000


@dataclass(frozen=True)
class Proxy:
    """A gateway that is not started yet, and how it is asked. `server` is None for none."""

    server: ServerPeer | None
    route: Route


Make = Callable[[str, int], Proxy]
"""Of the upstream's URL and the core that the server shall keep to."""


def make_direct(upstream: str, core: int) -> Proxy:
    return Proxy(None, Route(upstream, OPENAI, MODEL))


def make_gateway(face: Face) -> Make:
    """Return ours as an operator runs it: SQLite, a key, all on; Ollama is its one provider."""

    def make(upstream: str, core: int) -> Proxy:
        port, data = free_port(), _folder("gateway-")
        environment = clean_environment() | {
            "GATEWAY_DATA_DIR": data.name,
            "GATEWAY_PORT": str(port),
            "GATEWAY_PROVIDERS": "ollama",
            "GATEWAY_MAX_STREAMS": str(MOST_STREAMS),
            "OLLAMA_HOST": upstream,
        }
        gateway = [sys.executable, "-m", "gateway"]
        subprocess.run([*gateway, "db", "upgrade"], env=environment, check=True, stdout=sys.stderr)
        made = subprocess.run(
            [*gateway, "keys", "create", "bench", "--json"],
            env=environment,
            check=True,
            capture_output=True,
        )
        key = json.loads(made.stdout)["key"]
        server = _serve(core, [*gateway, "serve"], environment, port, "/health/ready", data)
        return Proxy(server, Route(server.url, face, f"ollama/{MODEL}", _bearer(key)))

    return make


NGINX_CONFIG = """
daemon off;
worker_processes 1;
worker_rlimit_nofile 20000;
pid {folder}/pid;
error_log {folder}/error.log;
events {{ worker_connections 20000; }}
http {{
  access_log {folder}/access.log;
  client_body_temp_path {folder}/body;
  proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi;
  scgi_temp_path {folder}/scgi;
  keepalive_requests 1000000;
  upstream ollama {{ server {upstream}; keepalive 1024; keepalive_requests 1000000; }}
  server {{
    listen 127.0.0.1:{port} backlog=4096;
    location = /ready {{ return 204; }}
    location / {{
      if ($http_authorization != "Bearer {key}") {{ return 401; }}
      proxy_pass http://ollama;
      proxy_http_version 1.1;
      proxy_set_header Connection "";
      proxy_buffering off;
      proxy_read_timeout 600s;
    }}
  }}
}}
"""


def make_nginx(upstream: str, core: int) -> Proxy:
    port, data = free_port(), _folder("nginx-")
    # Its worker is another user where the master is root.
    Path(data.name).chmod(0o755)
    config = Path(data.name) / "nginx.conf"
    config.write_text(
        NGINX_CONFIG.format(
            folder=data.name, upstream=upstream.removeprefix("http://"), port=port, key=KEY
        )
    )
    command = [str(ensure_nginx()), "-c", str(config), "-e", f"{data.name}/error.log"]
    server = _serve(core, command, clean_environment(), port, "/ready", data)
    return Proxy(server, Route(server.url, OPENAI, MODEL, _bearer(KEY)))


def make_plain(upstream: str, core: int) -> Proxy:
    """Return the proxy that the frameworks alone make, which knows no keys."""
    port = free_port()
    command = [sys.executable, "-m", "bench.plain_proxy", upstream, str(port)]
    server = _serve(core, command, clean_environment(), port, "/ready")
    return Proxy(server, Route(server.url, OPENAI, MODEL))


def make_litellm(name: str) -> Make:
    """Return LiteLLM's proxy as its documentation wants it in production, without a database."""

    def make(upstream: str, core: int) -> Proxy:
        port, data = free_port(), _folder("litellm-")
        settings = {
            "model_list": [
                _litellm_model("ollama_chat", upstream),
                _litellm_model("openai", f"{upstream}/v1", api_key="none"),
            ],
            "general_settings": {"master_key": KEY},
            "litellm_settings": {"set_verbose": False, "request_timeout": 600},
        }
        config = Path(data.name) / "config.yaml"
        # JSON is YAML, too.
        config.write_text(json.dumps(settings))
        environment = clean_environment() | {
            "LITELLM_MODE": "PRODUCTION",
            "LITELLM_LOG": "ERROR",
            "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        }
        program = str(ensure_environment("litellm") / "litellm")
        options = ["--config", str(config), "--host", "127.0.0.1", "--num_workers", "1"]
        command = [program, *options, "--port", str(port), "--telemetry", "False"]
        server = _serve(core, command, environment, port, "/health/liveliness", data)
        return Proxy(server, Route(server.url, OPENAI, name, _bearer(KEY)))

    return make


def _litellm_model(provider: str, url: str, **more: str) -> dict[str, object]:
    parameters = {"model": f"{provider}/{MODEL}", "api_base": url, **more}
    return {"model_name": provider, "litellm_params": parameters}


def make_portkey(upstream: str, core: int) -> Proxy:
    port = free_port()
    package = ensure_node_packages("portkey") / "@portkey-ai" / "gateway"
    start = package / "build" / "start-server.js"
    environment = clean_environment() | {"NODE_ENV": "production"}
    command = ["node", str(start), f"--port={port}", "--headless"]
    server = _serve(core, command, environment, port, "/")
    headers = _bearer(KEY) | {
        "x-portkey-provider": "ollama",
        "x-portkey-custom-host": upstream,
    }
    return Proxy(server, Route(server.url, OPENAI, MODEL, headers))


def make_smg(upstream: str, core: int) -> Proxy:
    """Return the model gateway of the SGLang project, which is written in Rust."""
    port, data = free_port(), _folder("smg-")
    command = [
        str(ensure_environment("smg") / "smg"),
        "launch",
        "--host=127.0.0.1",
        f"--port={port}",
        f"--prometheus-port={free_port()}",
        "--backend=openai",
        f"--worker-urls={upstream}",
        f"--api-key={KEY}",
        f"--max-concurrent-requests={MOST_STREAMS}",
    ]
    server = _serve(core, command, clean_environment(), port, "/readiness", data)
    return Proxy(server, Route(server.url, OPENAI, MODEL, _bearer(KEY)))


def make_mlflow(upstream: str, core: int) -> Proxy:
    """Return MLflow's gateway, which knows no keys."""
    port, data = free_port(), _folder("mlflow-")
    ollama = {"openai_api_key": "none", "openai_api_base": f"{upstream}/v1"}
    model = {"provider": "openai", "name": MODEL, "config": ollama}
    endpoint = {"name": MODEL, "endpoint_type": "llm/v1/chat", "model": model}
    config = Path(data.name) / "config.yaml"
    config.write_text(json.dumps({"endpoints": [endpoint]}))
    program = ensure_environment("mlflow") / "mlflow"
    options = [f"--config-path={config}", "--host=127.0.0.1", f"--port={port}", "--workers=1"]
    # It looks for its other programs by name.
    environment = clean_environment()
    environment["PATH"] = f"{program.parent}:{environment['PATH']}"
    command = [str(program), "gateway", "start", *options]
    server = _serve(core, command, environment, port, "/health", data)
    return Proxy(server, Route(server.url, OPENAI, MODEL))


def make_lm_proxy(upstream: str, core: int) -> Proxy:
    port, data = free_port(), _folder("lm-proxy-")
    ollama = {"api_type": "openai", "api_base": f"{upstream}/v1", "api_key": "none"}
    settings = {
        "host": "127.0.0.1",
        "port": port,
        "connections": {"ollama": ollama},
        "routing": {"*": "ollama.*"},
        "groups": {"default": {"api_keys": [KEY]}},
    }
    config = Path(data.name) / "config.json"
    config.write_text(json.dumps(settings))
    command = [str(ensure_environment("lm-proxy") / "lm-proxy"), "--config", str(config)]
    server = _serve(core, command, clean_environment(), port, "/openapi.json", data)
    return Proxy(server, Route(server.url, OPENAI, MODEL, _bearer(KEY)))


PROXIES: Mapping[str, Make] = {
    "direct": make_direct,
    "gateway": make_gateway(OPENAI),
    "native": make_gateway(NATIVE),
    "nginx": make_nginx,
    "starlette": make_plain,
    "litellm-ollama": make_litellm("ollama_chat"),
    "litellm-openai": make_litellm("openai"),
    "portkey": make_portkey,
    "smg": make_smg,
    "lm-proxy": make_lm_proxy,
    "mlflow": make_mlflow,
}
TITLES = {
    "direct": "direct, no gateway",
    "gateway": "ours, OpenAI face",
    "native": "ours, native face",
    "nginx": "nginx",
    "starlette": "Starlette and aiohttp",
    "litellm-ollama": "LiteLLM, `ollama_chat/`",
    "litellm-openai": "LiteLLM, `openai/`",
    "portkey": "Portkey",
    "smg": "smg",
    "lm-proxy": "LM-Proxy",
    "mlflow": "MLflow AI Gateway",
}


def _serve(
    core: int,
    command: Sequence[str],
    environment: Mapping[str, str],
    port: int,
    ready: str,
    data: tempfile.TemporaryDirectory[str] | None = None,
) -> ServerPeer:
    return ServerPeer(
        ["taskset", "--cpu-list", str(core), *command],
        environment,
        url=f"http://127.0.0.1:{port}",
        ready=ready,
        model=MODEL,
        data=data,
    )


def _bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def _folder(prefix: str) -> tempfile.TemporaryDirectory[str]:
    DATA.mkdir(parents=True, exist_ok=True)
    return tempfile.TemporaryDirectory(prefix=prefix, dir=DATA)
