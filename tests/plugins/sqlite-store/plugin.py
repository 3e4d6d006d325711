#!/usr/bin/env python3
"""A sink of bk: archives in one SQLite file, for a stick or a share that keeps few files. An archive becomes visible in one transaction.

Nothing but Python's standard library is needed. The protocol is bk's, version 1."""
import hashlib, json, os, sqlite3, struct, sys, uuid
from datetime import datetime, timezone

NAME, VERSION, FRAME = "sqlite-store", "1.0.0", 1 << 20
CHUNK = 1 << 20
STALE = 24 * 3600
SCHEMA = """
CREATE TABLE IF NOT EXISTS archive (upload TEXT PRIMARY KEY, name TEXT, version TEXT, bytes INTEGER, sha256 TEXT, sums BLOB, modified TEXT, UNIQUE (name, version));
CREATE TABLE IF NOT EXISTS upload (upload TEXT PRIMARY KEY, began REAL);
CREATE TABLE IF NOT EXISTS chunk (upload TEXT, n INTEGER, body BLOB, PRIMARY KEY (upload, n)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS note (site TEXT, name TEXT, body BLOB, modified TEXT, PRIMARY KEY (site, name));
"""


class Refused(Exception):
    """kind and message of an error: settings, auth, unreachable, not_found, denied, corrupt, no_space, conflict, …"""


def now():
    return datetime.now(timezone.utc)


class Store:
    def __init__(self, settings, site):
        self.site, self.path = site, settings["path"]
        os.makedirs(os.path.dirname(self.path) or ".", exist_ok=True)
        self.database = sqlite3.connect(self.path, timeout=60, isolation_level=None)
        self.database.execute("PRAGMA journal_mode = WAL")
        self.database.execute("PRAGMA synchronous = FULL")
        self.database.executescript(SCHEMA)

    def check(self):
        room = os.statvfs(os.path.dirname(self.path) or ".")
        return {"identity": os.path.abspath(self.path), "describe": f"{self.path}, {room.f_bavail * room.f_frsize >> 20} MiB free"}

    def put(self, chunks, publish):
        upload, run = uuid.uuid4().hex, self.database.execute
        stale = [old for (old,) in run("SELECT upload FROM upload WHERE began < ?", (now().timestamp() - STALE,))]
        for old in stale:  # nobody finishes it any more
            run("DELETE FROM chunk WHERE upload = ?", (old,))
            run("DELETE FROM upload WHERE upload = ?", (old,))
        run("INSERT INTO upload VALUES (?, ?)", (upload, now().timestamp()))
        try:
            held, n = b"", 0
            for chunk in chunks:
                held += chunk
                while len(held) >= CHUNK:
                    run("INSERT INTO chunk VALUES (?, ?, ?)", (upload, n, held[:CHUNK]))
                    held, n = held[CHUNK:], n + 1
            if held:
                run("INSERT INTO chunk VALUES (?, ?, ?)", (upload, n, held))
            asked, name = publish(), None
            run("BEGIN IMMEDIATE")
            for name in asked["names"]:
                if not run("SELECT 1 FROM archive WHERE name = ?", (name,)).fetchone():
                    break
            else:
                raise Refused("conflict", "every name is taken")
            row = (upload, name, upload, asked["bytes"], asked["sha256"], asked["sums"].replace("{name}", name).encode(), now().isoformat())
            run("INSERT INTO archive VALUES (?, ?, ?, ?, ?, ?, ?)", row)
            run("DELETE FROM upload WHERE upload = ?", (upload,))
            run("COMMIT")
            return self.found({"name": name, "version": upload})
        except BaseException:
            if self.database.in_transaction:
                run("ROLLBACK")
            run("DELETE FROM chunk WHERE upload = ? AND upload NOT IN (SELECT upload FROM archive)", (upload,))
            run("DELETE FROM upload WHERE upload = ?", (upload,))
            raise

    COLUMNS = "SELECT name, version, bytes, modified, sha256 FROM archive"

    def stored(self, row):
        return dict(zip(("name", "version", "bytes", "modified", "etag"), row))

    def found(self, which):
        row = self.database.execute(self.COLUMNS + " WHERE name = ? AND version = ?", (which["name"], which["version"])).fetchone()
        if row is None:
            raise Refused("not_found", f"`{which['name']}` is not there")
        return self.stored(row)

    def list(self, prefix):
        for row in self.database.execute(self.COLUMNS + " WHERE substr(name, 1, ?) = ? ORDER BY name, modified", (len(prefix), prefix)):
            yield self.stored(row)

    def get(self, which, start, end):
        upload = self.found(which)["version"]
        for n in range(start // CHUNK, -(-end // CHUNK)):
            row = self.database.execute("SELECT body FROM chunk WHERE upload = ? AND n = ?", (upload, n)).fetchone()
            if row is None:
                raise Refused("corrupt", f"`{which['name']}` lacks its piece {n}")
            yield row[0][max(start - n * CHUNK, 0):max(end - n * CHUNK, 0)]

    def sums(self, which):
        row = self.database.execute("SELECT sums FROM archive WHERE name = ? AND version = ?", (which["name"], which["version"])).fetchone()
        return row and row[0]

    def delete(self, which):
        upload = self.found(which)["version"]
        self.database.execute("BEGIN IMMEDIATE")
        self.database.execute("DELETE FROM archive WHERE upload = ?", (upload,))
        self.database.execute("DELETE FROM chunk WHERE upload = ?", (upload,))
        self.database.execute("COMMIT")

    def note(self, name):
        row = self.database.execute("SELECT body FROM note WHERE site = ? AND name = ?", (self.site, name)).fetchone()
        return row and row[0]

    def set_note(self, name, body, was, etag):
        self.database.execute("BEGIN IMMEDIATE")  # compared and changed in one
        there = self.note(name)
        if was == "absent" and there is not None or was == "same" and (there is None or sha256(there) != etag):
            raise Refused("conflict", f"the note `{name}` is not what it was")
        self.database.execute("INSERT OR REPLACE INTO note VALUES (?, ?, ?, ?)", (self.site, name, body, now().isoformat()))
        self.database.execute("COMMIT")

    def list_notes(self, prefix):
        yield from self.database.execute("SELECT name, modified FROM note WHERE site = ? AND substr(name, 1, ?) = ?", (self.site, len(prefix), prefix))

    def remove_note(self, name):
        self.database.execute("DELETE FROM note WHERE site = ? AND name = ?", (self.site, name))


# The protocol.


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
    except (OSError, sqlite3.Error) as error:
        full = getattr(error, "errno", 0) == 28 or "full" in str(error)
        say("error", kind="no_space" if full else "unreachable", message=str(error))
        sys.exit(1)
