#!/usr/bin/env python3
"""A sink of bk: archives in a folder. It speaks version 1 of the plugin protocol (PROTOCOL.md); `Store` is what you change."""
import fcntl, hashlib, json, os, struct, sys, uuid
from datetime import datetime, timezone
from pathlib import Path

NAME, VERSION, FRAME = "PLUGIN_NAME", "1.0.0", 1 << 20

class Refused(Exception):
    """kind and message of an error: settings, auth, unreachable, not_found, denied, corrupt, no_space, conflict, …"""

class Store:
    def __init__(self, settings, site):
        self.path = Path(settings["path"])
        self.notes = self.path / ".bk-notes" / site
        self.notes.mkdir(parents=True, exist_ok=True)
        self.lock = open(self.path / ".bk-lock", "w")

    def check(self):
        room = os.statvfs(self.path)
        return {"identity": str(self.path), "describe": f"{self.path}, {room.f_bavail * room.f_frsize >> 20} MiB free"}

    def stored(self, file):
        there = file.stat()
        when = datetime.fromtimestamp(there.st_mtime, timezone.utc).isoformat()
        return {"name": file.name, "version": "", "bytes": there.st_size, "modified": when, "etag": f"{there.st_ino}-{there.st_mtime_ns}"}

    def put(self, chunks, publish):
        """Nothing is visible before the last byte is here and synced; then the first free name is taken, and never one that is in use."""
        part = self.path / f".part-{uuid.uuid4().hex}"
        try:
            with open(part, "xb") as file:
                for chunk in chunks:
                    file.write(chunk)
                file.flush()
                os.fsync(file.fileno())
            asked = publish()
            for name in asked["names"]:
                try:
                    os.link(part, self.path / name)
                    break
                except FileExistsError:
                    continue
            else:
                raise Refused("conflict", "every name is taken")
            self.write(self.path / (name + ".sha256"), asked["sums"].replace("{name}", name).encode())
            return self.stored(self.path / name)
        finally:
            part.unlink(missing_ok=True)

    def write(self, file, body):
        fresh = file.with_name(f".new-{uuid.uuid4().hex}")
        with open(fresh, "xb") as out:
            out.write(body)
            out.flush()
            os.fsync(out.fileno())
        os.replace(fresh, file)

    def list(self, prefix):
        for file in self.path.iterdir():
            if ".tar" in file.name and file.name.startswith(prefix or "") and not file.name.startswith(".") and file.suffix != ".sha256":
                yield self.stored(file)

    def get(self, which, start, end):
        with self.open(which) as file:
            file.seek(start)
            while start < end and (chunk := file.read(min(FRAME, end - start))):
                start += len(chunk)
                yield chunk

    def open(self, which):
        file = self.path / which["name"]
        if not file.exists():
            raise Refused("not_found", f"`{which['name']}` is not there")
        return open(file, "rb")

    def sums(self, which):
        file = self.path / (which["name"] + ".sha256")
        return file.read_bytes() if file.exists() else None

    def delete(self, which):
        self.open(which).close()
        (self.path / (which["name"] + ".sha256")).unlink(missing_ok=True)
        (self.path / which["name"]).unlink()

    def note(self, name):
        file = self.notes / name
        return file.read_bytes() if file.exists() else None

    def set_note(self, name, body, was, etag):
        fcntl.flock(self.lock, fcntl.LOCK_EX)  # compared and changed in one
        now = self.note(name)
        if was == "absent" and now is not None or was == "same" and (now is None or sha256(now) != etag):
            raise Refused("conflict", f"the note `{name}` is not what it was")
        self.write(self.notes / name, body)

    def list_notes(self, prefix):
        for file in self.notes.iterdir():
            if file.name.startswith(prefix) and not file.name.startswith("."):
                yield file.name, self.stored(file)["modified"]

    def remove_note(self, name):
        (self.notes / name).unlink(missing_ok=True)

# From here on: the protocol. There is nothing to change.

def sha256(body):
    return hashlib.sha256(body).hexdigest()

def frame(kind, body):
    sys.stdout.buffer.write(kind + struct.pack(">I", len(body)) + body)
    sys.stdout.buffer.flush()

def say(what, **fields):
    frame(b"J", json.dumps({"type": what, **fields}).encode())

def hear():
    """The next frame: bytes, or a message that is not of a later time."""
    while True:
        head = sys.stdin.buffer.read(5)
        if len(head) < 5:
            sys.exit(1)  # the host is gone
        body = sys.stdin.buffer.read(struct.unpack(">I", head[1:])[0])
        if head[:1] == b"D":
            return body
        message = json.loads(body)
        if message["type"] == "cancel":
            raise KeyboardInterrupt
        if message["type"] in ("open", "end", "publish"):
            return message

def send(chunks):
    total, length = hashlib.sha256(), 0
    for chunk in chunks:
        total.update(chunk)
        length += len(chunk)
        for at in range(0, len(chunk), FRAME):
            frame(b"D", chunk[at:at + FRAME])
    return length, "sha256:" + total.hexdigest()

def body():
    """A text, compared with its sum."""
    text = b""
    while isinstance(part := hear(), bytes):
        text += part
    if part["sum"] != "sha256:" + sha256(text):
        raise Refused("corrupt", "the text came with another sum")
    return text

def put(store):
    asked = []
    def chunks():
        while isinstance(part := hear(), bytes):
            yield part
        asked.append(part)
    return {"stored": store.put(chunks(), lambda: asked[0])}

def text(store, found):
    if found is None:
        return {"found": False}
    send([found])
    return {"found": True, "etag": sha256(found)}

def run(order):
    store, op, which, note = Store(order["settings"], order["site"]), order["op"], order.get("which"), order.get("note")
    if op == "check":
        return {"health": store.check()}
    if op == "put":
        return put(store)
    if op == "list":
        for stored in store.list(order["prefix"]):
            say("item", stored=stored)
    elif op == "get":
        length, total = send(store.get(which, order["from"], order["to"]))
        say("end", len=length, sum=total)
    elif op == "sums":
        return text(store, store.sums(which))
    elif op == "delete":
        store.delete(which)
    elif op == "note_get":
        return text(store, store.note(note["name"]))
    elif op == "note_set":
        store.set_note(note["name"], body(), note["was"], note["etag"])
    elif op == "note_list":
        for name, modified in store.list_notes(order["prefix"]):
            say("item", note=name, modified=modified)
    elif op == "note_remove":
        store.remove_note(note["name"])
    else:
        raise Refused("unsupported", f"a sink cannot do `{op}`")
    return {}

if __name__ == "__main__":
    if sys.argv[-1] != "bk-plugin":
        print(f"{NAME} is a plugin of bk: bk plugins enable {NAME}", file=sys.stderr)
        sys.exit(2)
    say("hello", protocol=[1], name=NAME, version=VERSION, roles=["sink"])
    try:
        say("done", **run(hear()))
    except KeyboardInterrupt:
        sys.exit(1)
    except Refused as error:
        say("error", kind=error.args[0], message=error.args[1])
        sys.exit(1)
    except OSError as error:
        say("error", kind="no_space" if error.errno == 28 else "unreachable", message=str(error))
        sys.exit(1)
