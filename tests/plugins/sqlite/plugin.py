#!/usr/bin/env python3
"""A source of bk: SQLite databases, each by its online backup while others write to it, and put back in one transaction.

A unit is a database, a group the folder that it lies in. Nothing but Python's standard library is needed. The protocol is bk's, version 1."""
import hashlib, json, os, shutil, sqlite3, struct, sys
from pathlib import Path

NAME, VERSION, FRAME, MARK = "sqlite", "1.0.0", 1 << 20, ".bk-unfinished-restore"


class Refused(Exception):
    """kind and message of an error."""


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
            sys.exit(1)
        if message["type"] in ("open", "entry", "end", "finish"):
            return message


def connect(file, mode="ro"):
    return sqlite3.connect(f"file:{str(file).replace('?', '%3f').replace('#', '%23')}?mode={mode}", uri=True, timeout=30)


class Databases:
    def __init__(self, settings):
        self.path, self.suffixes = Path(settings["path"]), tuple(settings["suffixes"])

    def files(self):
        """Every database as (group, unit, file), sorted."""
        for folder, folders, names in os.walk(self.path):
            folders.sort()
            group = os.path.relpath(folder, self.path)
            for name in sorted(names):
                if name.endswith(self.suffixes) and not name.startswith("."):
                    yield group, name, Path(folder) / name

    def check(self):
        if not self.path.is_dir():  # a restore makes it
            return {"health": {"identity": f"{self.path}", "describe": f"{self.path}", "warnings": [f"`{self.path}` is not there"]}}
        found = list(self.files())
        warnings = [] if found else ["there is no database"]
        for _, _, file in found:
            with connect(file) as database:
                database.execute("SELECT count(*) FROM sqlite_schema").fetchone()
        there = self.path.stat()
        identity = f"{there.st_dev}:{there.st_ino}:{self.path}"
        return {"health": {"identity": identity, "describe": f"{len(found)} databases in {self.path}", "warnings": warnings}}

    def backup(self):
        if (self.path / MARK).exists():
            raise Refused("conflict", f"a restore into `{self.path}` is unfinished: {(self.path / MARK).read_text()}")
        if not self.path.is_dir():
            raise Refused("not_found", f"`{self.path}` is not there")
        say("snapshot", consistency="none")
        for group, name, file in list(self.files()):
            copy = Path("copy.db")  # the working folder is empty, and this process' own
            copy.unlink(missing_ok=True)
            try:
                with connect(file) as source, sqlite3.connect(copy) as target:
                    source.backup(target, pages=4096, sleep=0.01)
                target.close()
                source.close()
                tables = rows_of(copy)
            except sqlite3.Error as error:
                say("failed", group=group, unit=name, message=str(error))
                continue
            length, total = copy.stat().st_size, hashlib.sha256()
            say("entry", path=os.path.normpath(os.path.join(group, name)), group=group, unit=name, stage="large", len=length)
            with open(copy, "rb") as body:
                while chunk := body.read(FRAME):
                    total.update(chunk)
                    frame(b"D", chunk)
            say("end", len=length, sum="sha256:" + total.hexdigest(), rows=tables)
        return {"facts": {"layout": 1}}

    def restore(self, ask):
        target = Databases({"path": ask["into_place"] or self.path, "suffixes": self.suffixes})
        if ask["forget_unfinished"]:
            (target.path / MARK).unlink(missing_ok=True)
            return {}
        if ask["existing"] == "refuse" and target.path.is_dir() and any(target.files()):
            raise Refused("conflict", f"there are databases in `{target.path}`")
        renamed, seen = dict(ask["into_group"]), set()
        target.path.mkdir(parents=True, exist_ok=True)
        (target.path / MARK).write_text(ask["archive"])
        while (message := hear())["type"] != "finish":
            group = renamed.get(message["group"], message["group"])
            file = target.path / group / message["unit"]
            seen.add((group, message["unit"]))
            rows = self.one(message, file)
            say("ok", rows=rows)
        if ask["existing"] != "merge":
            whole = {renamed.get(group, group) for group in ask["whole_groups"]}
            for group, name, file in list(target.files()):
                if group in whole and (group, name) not in seen:
                    for part in (file, *(file.with_name(name + end) for end in ("-wal", "-shm", "-journal"))):
                        part.unlink(missing_ok=True)
        (target.path / MARK).unlink()
        return {}

    def one(self, message, file):
        """Received whole, found sound, and only then copied into its place, in one transaction: others may have it open."""
        copy, total = Path("restored.db"), hashlib.sha256()
        with open(copy, "wb") as body:
            while isinstance(part := hear(), bytes):
                total.update(part)
                body.write(part)
        if part["sum"] != "sha256:" + total.hexdigest():
            raise Refused("corrupt", f"`{message['path']}` came with another sum")
        try:
            source = sqlite3.connect(copy)
            if (found := source.execute("PRAGMA integrity_check").fetchone()[0]) != "ok":
                raise Refused("corrupt", f"`{message['path']}`: {found}")
            file.parent.mkdir(parents=True, exist_ok=True)
            with connect(file, "rwc") as target:
                source.backup(target)
            target.close()
            source.close()
        except sqlite3.DatabaseError as error:
            raise Refused("corrupt" if "malformed" in str(error) or "not a database" in str(error) else "unreachable", str(error))
        return rows_of(copy)

    # For the conformance kit.

    def seed(self):
        self.wipe()
        for group, name, rows in (("a", "one.db", 3), ("a", "two.db", 500), ("b", "three.db", 1)):
            (self.path / group).mkdir(parents=True, exist_ok=True)
            with sqlite3.connect(self.path / group / name) as database:
                database.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, text TEXT, bytes BLOB)")
                database.executemany("INSERT INTO t VALUES (?, ?, ?)", [(n, "x" * n, bytes([n % 256]) * n) for n in range(rows)])
            database.close()
        return {}

    def wipe(self):
        shutil.rmtree(self.path, ignore_errors=True)
        self.path.mkdir(parents=True)
        return {}

    def digest(self):
        lines = []
        for group, name, file in self.files():
            database = connect(file)
            dump = "\n".join(database.iterdump())
            database.close()
            lines.append((group, name, hashlib.sha256(dump.encode()).hexdigest()))
        return {"digest": lines}

    def stranger(self, group):
        with sqlite3.connect(self.path / group / "stranger.db") as database:
            database.execute("CREATE TABLE strange (x)")
        database.close()
        return {}


def rows_of(file):
    """Rows of all tables: what a restore must count again."""
    database = sqlite3.connect(file)
    names = [name for (name,) in database.execute("SELECT name FROM sqlite_schema WHERE type = 'table' AND rootpage > 0")]
    rows = sum(database.execute('SELECT count(*) FROM "%s"' % name.replace('"', '""')).fetchone()[0] for name in names)
    database.close()
    return rows


def run(order):
    databases, op = Databases(order["settings"]), order["op"]
    if op == "restore":
        return databases.restore(order["restore"])
    if op == "test_stranger":
        return databases.stranger(order["group"])
    known = {"check": databases.check, "backup": databases.backup, "test_seed": databases.seed, "test_wipe": databases.wipe, "test_digest": databases.digest}
    if op not in known:
        raise Refused("unsupported", f"a source cannot do `{op}`")
    return known[op]()


if __name__ == "__main__":
    if sys.argv[-1] != "bk-plugin":
        print(f"{NAME} is a plugin of bk: bk plugins enable {NAME}", file=sys.stderr)
        sys.exit(2)
    say("hello", protocol=[1], name=NAME, version=VERSION, roles=["source"])
    try:
        say("done", **run(hear()))
    except Refused as error:
        say("error", kind=error.args[0], message=error.args[1])
        sys.exit(1)
    except (OSError, sqlite3.Error) as error:
        say("error", kind="no_space" if getattr(error, "errno", 0) == 28 else "unreachable", message=str(error))
        sys.exit(1)
