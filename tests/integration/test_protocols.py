# Copyright: the openshell.sandbox contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Real clients that need more of the interception than a GET: push, events, WebSocket, HTTP/2, gRPC, Node, uploads."""

from __future__ import annotations

import pytest
from conftest import Origin, inside

pytestmark = pytest.mark.usefixtures("sandbox")


def script(sandbox: str, name: str, text: str, interpreter: str) -> str:
    """Put a program into the sandbox and run it; its output, or what it complained of."""
    folder = "/tmp/it-" + name.replace(".", "-")  # of its own: Python imports what lies beside a program
    wrote = inside(sandbox, "sh", "-c", f"mkdir -p {folder} && cat > {folder}/{name} <<'END-OF-IT'\n{text}\nEND-OF-IT")
    assert wrote.returncode == 0, wrote.stderr
    done = inside(sandbox, "sh", "-c", f"cd {folder} && {interpreter} ./{name}")
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_git_pushes(sandbox: str, origin: Origin) -> None:
    url = f"https://{origin.address}:{origin.services['git']}/pushed.git"
    program = f"""
    set -e
    rm -rf pushed again && git init -q -b main pushed && cd pushed
    head -c 3000000 /dev/urandom > large && git add large
    git -c user.name=it -c user.email=it@example.com commit -qm "pushed from inside"
    git push -q {url} main
    cd .. && git clone -q {url} again && git -C again log --format=%s && cmp pushed/large again/large && echo same
    """
    assert script(sandbox, "push.sh", program, "sh") == "pushed from inside\nsame\n"


def test_events_come_as_they_are_sent(sandbox: str, origin: Origin) -> None:
    program = f"""
import urllib.request
base = "https://{origin.address}:{origin.services["events"]}"
for line in urllib.request.urlopen(base + "/events", timeout=30):
    if line.startswith(b"data: "):
        number = int(line[6:])
        urllib.request.urlopen(f"{{base}}/seen/{{number}}", timeout=30).read()
        print(number, flush=True)
"""
    assert script(sandbox, "events.py", program, "python3").split() == ["0", "1", "2", "3", "4"]


def test_websocket_messages(sandbox: str, origin: Origin) -> None:
    program = f"""
import ssl
from websockets.sync.client import connect
context = ssl.create_default_context()
with connect("wss://{origin.address}:{origin.services["websocket"]}/", ssl=context) as socket:
    for text in ("one", "two" * 100_000):
        socket.send(text)
        assert socket.recv() == "echo: " + text
print("done")
"""
    interpreter = "pip install -q 'websockets>=15' && python3"
    assert script(sandbox, "messages.py", program, interpreter) == "done\n"


def test_curl_speaks_what_the_server_does(sandbox: str, origin: Origin) -> None:
    call = ["-X", "POST", "-H", "content-type: application/grpc", "-H", "te: trailers", "--data-binary", ""]
    for port, extra, version in ((origin.https, [], "1.1"), (origin.services["rpc"], call, "2")):
        url = f"https://{origin.address}:{port}/hello.txt"
        done = inside(sandbox, "curl", "-s", "--http2", *extra, "-o", "/dev/null", "-w", "%{http_version}", url)
        assert done.stdout == version, done.stderr


def test_grpc(sandbox: str, origin: Origin) -> None:
    program = f"""
import grpc
roots = open("/openshell-tls/ca-bundle.pem", "rb").read()
target = "{origin.address}:{origin.services["rpc"]}"
with grpc.secure_channel(target, grpc.ssl_channel_credentials(roots)) as channel:
    print(channel.unary_unary("/it.Calls/Upper")(b"hello", timeout=20).decode())
    print([int(one) for one in channel.unary_stream("/it.Calls/Count")(b"5", timeout=20)])
    print([one.decode() for one in channel.stream_stream("/it.Calls/Both")(iter([b"a", b"b"]), timeout=20)])
    try:
        channel.unary_unary("/it.Calls/Fails")(b"x", timeout=20)
    except grpc.RpcError as error:
        print(error.code().name, error.details())
"""
    said = script(sandbox, "calls.py", program, "pip install -q grpcio && python3")
    assert said.splitlines() == ["HELLO", "[0, 1, 2, 3, 4]", "['got a', 'got b']", "FAILED_PRECONDITION not today"]


def test_node_fetches(sandbox: str, origin: Origin) -> None:
    url = f"https://{origin.address}:{origin.https}/hello.txt"
    program = f"""
import {{ EnvHttpProxyAgent, fetch, setGlobalDispatcher }} from "undici";
setGlobalDispatcher(new EnvHttpProxyAgent());
process.stdout.write(await (await fetch("{url}")).text());
"""
    interpreter = "npm install --silent undici@6 >/dev/null && node"
    assert script(sandbox, "fetch.mjs", program, interpreter) == "hello from outside\n"


def test_aiohttp_fetches(sandbox: str, origin: Origin) -> None:
    program = f"""
import asyncio, aiohttp
async def main():
    async with aiohttp.ClientSession(trust_env=True) as session:
        async with session.get("https://{origin.address}:{origin.https}/hello.txt") as answer:
            print(await answer.text(), end="")
asyncio.run(main())
"""
    assert script(sandbox, "fetch.py", program, "pip install -q aiohttp && python3") == "hello from outside\n"


def test_an_upload_waits_for_leave_and_arrives_whole(sandbox: str, origin: Origin) -> None:
    """curl would wait ten minutes for the server's 100 before it sends anyway."""
    url = f"https://{origin.address}:{origin.services['uploads']}/large"
    program = f"""
    set -e
    head -c 20000000 /dev/urandom > large && sha256sum < large | cut -d' ' -f1
    curl -sS --http1.1 -H 'Expect: 100-continue' --expect100-timeout 600 -T large {url}
    curl -sS --http1.1 -H 'Expect: 100-continue' --expect100-timeout 600 -T - {url} < large
    """
    mine, counted, chunked = script(sandbox, "upload.sh", program, "sh").split()
    assert mine == counted == chunked


def test_answers_without_a_body(sandbox: str, origin: Origin) -> None:
    """Three answers that say how long a body would be, and have none, over one connection; whoever waits for it hangs."""
    url = f"https://{origin.address}:{origin.https}/hello.txt"
    events = f"https://{origin.address}:{origin.services['events']}/seen/0"
    told = "%{http_code} %{num_connects} %{size_download};"
    command = ["curl", "-sS", "-m", "60", "-w", told, "-I", "-o", "/dev/null", url]
    for more in (["-H", "If-Modified-Since: Fri, 01 Jan 2100 00:00:00 GMT", url], [url]):
        command += ["--next", "-sS", "-m", "60", "-w", told, "-o", "/dev/null", *more]
    done = inside(sandbox, *command)
    assert done.stdout == "200 1 0;304 0 0;200 0 19;", done.stderr
    assert inside(sandbox, "curl", "-sS", "-m", "60", "-w", told, events).stdout == "204 1 0;"
