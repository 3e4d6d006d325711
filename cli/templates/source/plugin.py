#!/usr/bin/env python3
"""A source of bk: each file of a folder is a unit. It speaks version 1 of the plugin protocol (PROTOCOL.md)."""
import hashlib, json, shutil, struct, sys
from pathlib import Path
def frame(kind, body):
    sys.stdout.buffer.write(kind + struct.pack(">I", len(body)) + body)
    sys.stdout.buffer.flush()
def say(what, **fields):
    frame(b"J", json.dumps({"type": what, **fields}).encode())
def hear():  # the next message that is not of a later time, or bytes of the entry that is open
    head = sys.stdin.buffer.read(5)
    body = sys.stdin.buffer.read(struct.unpack(">I", head[1:])[0]) if len(head) == 5 else b'{"type": "cancel"}'
    message = body if head[:1] == b"D" else json.loads(body)
    if isinstance(message, dict) and message["type"] == "cancel":
        sys.exit(1)  # the host wants no more, or is gone
    return message if isinstance(message, bytes) or message["type"] in ("open", "entry", "end", "finish") else hear()
def check(path, ask):
    return {"health": {"identity": str(path), "describe": f"{len(list(path.glob('*')))} files in {path}"}}
def backup(path, ask):
    say("snapshot")
    for file in sorted(path.iterdir()):
        body = file.read_bytes()
        say("entry", path=file.name, unit=file.name, len=len(body))
        for at in range(0, len(body), 1 << 20):
            frame(b"D", body[at:at + (1 << 20)])
        say("end", len=len(body), sum="sha256:" + hashlib.sha256(body).hexdigest(), rows=1)
    return {"facts": {"layout": 1}}
def restore(path, ask):
    path.mkdir(parents=True, exist_ok=True)
    if ask["existing"] == "refuse" and any(path.iterdir()):
        raise ValueError("conflict", f"`{path}` is not empty")
    fresh = path.with_name(path.name + ".bk-new")  # all of it, before anything is replaced
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir()
    while (message := hear()) and (isinstance(message, bytes) or message["type"] != "finish"):
        if isinstance(message, bytes):
            body += message
        elif message["type"] == "entry":
            name, body = message["path"], b""
        else:
            if message["sum"] != "sha256:" + hashlib.sha256(body).hexdigest():
                raise ValueError("corrupt", f"`{name}` came with another sum")
            (fresh / name).write_bytes(body)
            say("ok", rows=1)
    for file in path.iterdir() if ask["existing"] != "merge" and "." in ask["whole_groups"] else []:
        file.unlink()
    for file in fresh.iterdir():
        file.rename(path / file.name)
    fresh.rmdir()
    return {}
if sys.argv[-1] != "bk-plugin":
    sys.exit(print("PLUGIN_NAME is a plugin of bk: bk plugins enable PLUGIN_NAME", file=sys.stderr) or 2)
say("hello", protocol=[1], name="PLUGIN_NAME", version="1.0.0", roles=["source"])
order = hear()
ask = order.get("restore") or {}
try:
    do = {"check": check, "backup": backup, "restore": restore}[order["op"]]
    say("done", **do(Path(ask.get("into_place") or order["settings"]["path"]), ask))
except (OSError, ValueError) as error:
    sys.exit(say("error", kind=error.args[0] if isinstance(error, ValueError) else "unreachable", message=str(error.args[-1])) or 1)
