#!/usr/bin/env python3
"""A source that is good but for one defect: the setting `defect`, or the file `defect` beside this one where it must show before there are settings."""
import hashlib, json, os, select, signal, struct, sys, time
from pathlib import Path

EARLY = Path(os.environ.get("BK_PLUGIN_FOLDER", Path(__file__).parent)) / "defect"
DEFECT = EARLY.read_text().strip() if EARLY.exists() else "none"


def frame(kind, body):
    sys.stdout.buffer.write(kind + struct.pack(">I", len(body)) + body)
    sys.stdout.buffer.flush()


def say(what, **fields):
    frame(b"J", json.dumps({"type": what, **fields}).encode())


def hear():
    while True:
        head = sys.stdin.buffer.read(5)
        if len(head) < 5:
            if DEFECT == "cut_is_done":
                return {"type": "finish"}
            if DEFECT == "ignores_the_end":
                time.sleep(3600)
            sys.exit(1)
        body = sys.stdin.buffer.read(struct.unpack(">I", head[1:])[0])
        if head[:1] == b"D":
            return body
        message = json.loads(body)
        if message["type"] == "cancel":
            if DEFECT == "ignores_the_end":
                continue
            sys.exit(1)
        if message["type"] in ("open", "entry", "end", "finish"):
            return message
        if DEFECT == "chokes_on_news":
            raise KeyError(message["type"])


def backup(path):
    if DEFECT == "hang":
        time.sleep(3600)
    if DEFECT == "never_dies":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        time.sleep(3600)
    if DEFECT == "no_snapshot":
        return
    if DEFECT == "floods_standard_error":
        for _ in range(64):
            sys.stderr.write(("x" * 1023 + "\n") * 1024)
    if DEFECT == "declared_error":
        say("error", kind="auth", message="the door is locked", hint="find the key")
        sys.exit(1)
    say("snapshot")
    if DEFECT == "ignores_the_end" and select.select([sys.stdin], [], [], 0.5)[0]:
        time.sleep(3600)
    if DEFECT == "bytes_without_entry":
        frame(b"D", b"x")
    if DEFECT == "giant_frame":
        sys.stdout.buffer.write(b"D" + struct.pack(">I", 1 << 30))
        sys.stdout.buffer.flush()
        time.sleep(3600)
    if DEFECT == "no_json":
        frame(b"J", b"{type: snapshot}")
    for n, file in enumerate(sorted(path.iterdir())):
        body = file.read_bytes()
        name = "../../" + file.name if DEFECT == "path_that_leads_out" else file.name
        stage = "finish" if DEFECT == "stages_out_of_order" and n == 0 else "data"
        unit = str(n % 2) if DEFECT == "unit_in_two_pieces" else file.name
        if DEFECT == "same_path_twice":
            name = "same"
        said = len(body) + (1 if DEFECT == "shorter_than_announced" else 0)
        if DEFECT == "giant_outside_of_large":
            body = body * (20 << 20)
            say("entry", path=name, unit=unit)
        else:
            say("entry", path=name, unit=unit, len=said, stage=stage)
        for at in range(0, len(body), 1 << 20):
            frame(b"D", body[at:at + (1 << 20)])
        if DEFECT == "crash_in_mid_entry" and n == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        if DEFECT == "frame_cut_off" and n == 1:
            sys.stdout.buffer.write(b"J\0\0\1\0{")
            sys.stdout.buffer.flush()
            sys.exit(0)
        total = hashlib.sha256(body + (b"!" if DEFECT == "wrong_sum" else b"")).hexdigest()
        say("end", len=len(body), sum=("md5:" if DEFECT == "unknown_sum" else "sha256:") + total, rows=1)
        if DEFECT == "failed_unit" and n == 1:
            say("failed", message="half of it was locked")


def restore(path):
    path.mkdir(parents=True, exist_ok=True)
    name = None
    while (message := hear()) and (isinstance(message, bytes) or message["type"] != "finish"):
        if isinstance(message, bytes):
            body += message
        elif message["type"] == "entry":
            name, body = message["path"], b""
        else:
            if message["sum"] != "sha256:" + hashlib.sha256(body).hexdigest() and DEFECT != "any_sum_is_good":
                say("error", kind="corrupt", message=f"`{name}` came with another sum")
                sys.exit(1)
            if DEFECT != "writes_nothing":
                (path / name).write_bytes(body)
            if DEFECT != "acknowledges_too_little":
                say("ok", rows=1)


if sys.argv[-1] != "bk-plugin" and DEFECT != "takes_anybody_for_the_host":
    print("bad is a plugin of bk: bk plugins enable bad", file=sys.stderr)
    sys.exit(2)
if DEFECT == "silent_start":
    time.sleep(3600)
if DEFECT == "garbage":
    print("Starting up...", flush=True)
if DEFECT == "ends_at_once":
    sys.exit("I cannot find my library")
say("hello", protocol=[99 if DEFECT == "other_protocol" else 1], name="worse" if DEFECT == "other_name" else "bad", version="1.0.0", roles=["source"])
order = hear()
if not EARLY.exists():
    DEFECT = order["settings"]["defect"]
path = Path(order["settings"]["path"])
done = {}
if order["op"] == "check":
    done = {"health": {"identity": str(path), "describe": f"a bad source in {path}"}}
elif order["op"] == "backup":
    backup(path)
    done = {"facts": {"layout": 1}}
else:
    restore(path)
if DEFECT != "no_done":
    say("done", **done)
if order["op"] == "backup":
    if DEFECT == "exit_1_after_done":
        sys.exit(1)
    if DEFECT == "goes_on_after_done":
        say("log", level="info", message="by the way")
        say("done")
    if DEFECT == "does_not_end":
        sys.stdout.close()
        time.sleep(3600)
