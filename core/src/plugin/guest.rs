//! The other side of the protocol: what the author of a plugin in Rust calls. A program whose `main` ends with [`serve_source`] or
//! [`serve_sink`] is a protocol plugin.
//!
//! ```no_run
//! use bk_core::plugin::guest::{self, Backup, Guest, Restore};
//! use bk_core::plugin::message::{Done, Entry, Open};
//! use bk_core::source::Health;
//! use bk_core::Result;
//!
//! struct Greeting;
//!
//! #[async_trait::async_trait]
//! impl Guest for Greeting {
//!     async fn check(&self, _open: &Open) -> Result<Health> {
//!         Ok(Health { identity: "greeting".into(), describe: "a greeting".into(), warnings: Vec::new() })
//!     }
//!     async fn backup(&self, _open: &Open, out: &mut Backup) -> Result<Done> {
//!         out.snapshot().await?;
//!         out.member(guest::entry("greeting.txt"), b"hello\n", 1).await?;
//!         Ok(Done::default())
//!     }
//!     async fn restore(&self, _open: &Open, input: &mut Restore) -> Result<Done> {
//!         while let Some(entry) = input.next().await? {
//!             let body = input.body().await?;
//!             eprintln!("{} has {} bytes", entry.path, body.len());
//!             input.ok(1).await?;
//!         }
//!         Ok(Done::default())
//!     }
//! }
//!
//! # async fn run() {
//! let code = guest::serve_source("greeting", "1.0.0", &Greeting).await;
//! std::process::exit(code);
//! # }
//! ```

use super::frame::{FRAME_MAX_BYTES, Frame, FrameReader, FrameWriter};
use super::message::{
    Acknowledged, BLAKE3, Done, Entry, EntryKind, Failed, Hello, Item, Message, Op, Open,
    PROTOCOLS, Publish, Said, SnapshotSaid, Sums,
};
use super::session::{ARGUMENT, out_of_place};
use crate::context::{Context, SystemClock};
use crate::error::{Error, Result, plugin, unsupported};
use crate::event::Quiet;
use crate::name::ArchiveName;
use crate::sink::{Filter, NoteName, Seal, Sink, SizeHint, Stored, Was};
use crate::source::{Health, Stage};
use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use futures::StreamExt;
use std::os::fd::AsFd;
use std::sync::Arc;
use tokio::net::unix::pipe;
use tokio_util::sync::CancellationToken;

/// A source as a process of its own.
#[async_trait]
pub trait Guest: Send + Sync {
    /// Reads only, takes seconds: could a backup and a restore start now?
    async fn check(&self, open: &Open) -> Result<Health>;

    /// Says `snapshot`, then each member. What it returns goes with the archive.
    async fn backup(&self, open: &Open, out: &mut Backup) -> Result<Done>;

    /// Takes all members, and acknowledges each.
    async fn restore(&self, open: &Open, input: &mut Restore) -> Result<Done>;

    /// For the kit: `test_seed`, `test_wipe`, `test_digest`, `test_stranger`.
    async fn test(&self, _open: &Open) -> Result<Done> {
        Err(unsupported("this plugin cannot be tested by itself"))
    }
}

/// Both directions of the conversation.
struct Wire {
    input: FrameReader<pipe::Receiver>,
    output: FrameWriter<pipe::Sender>,
}

impl Wire {
    async fn say(&mut self, message: &Message) -> Result<()> {
        self.frame(&message.frame()?).await
    }

    async fn frame(&mut self, frame: &Frame) -> Result<()> {
        self.output
            .write(frame)
            .await
            .map_err(|e| plugin(format!("the host reads no more: {e}")).because(e))
    }

    /// The next frame that is not of a later time. `Cancelled`: the host asks to stop, or is gone.
    async fn hear(&mut self) -> Result<Heard> {
        loop {
            match self.input.next().await? {
                None => return Err(Error::cancelled()),
                Some(Frame::Data(bytes)) => return Ok(Heard::Data(bytes)),
                Some(Frame::Message(body)) => match Message::parse(&body)? {
                    Message::Cancel => return Err(Error::cancelled()),
                    Message::Unknown => {}
                    message => return Ok(Heard::Message(message)),
                },
            }
        }
    }
}

enum Heard {
    Message(Message),
    Data(Bytes),
}

/// An entry of the unit `./.` in `Stage::Data`: change what is other.
pub fn entry(path: impl Into<String>) -> Entry {
    Entry {
        path: path.into(),
        group: ".".into(),
        unit: ".".into(),
        stage: Stage::Data,
        len: None,
        kind: EntryKind::File,
        link: None,
        mode: 0o600,
        mtime: 0,
    }
}

/// A backup on its way to the host.
pub struct Backup {
    wire: Wire,
    sums: Option<Sums>,
}

impl Backup {
    /// The point in time is fixed: now.
    pub async fn snapshot(&mut self) -> Result<()> {
        self.snapshot_at(SnapshotSaid::default()).await
    }

    /// The point in time is fixed.
    pub async fn snapshot_at(&mut self, said: SnapshotSaid) -> Result<()> {
        self.wire.say(&Message::Snapshot(said)).await
    }

    /// A member whose body is in memory.
    pub async fn member(&mut self, mut entry: Entry, body: &[u8], rows: u64) -> Result<()> {
        entry.len = Some(body.len() as u64);
        self.begin(entry).await?;
        for chunk in body.chunks(FRAME_MAX_BYTES) {
            self.write(Bytes::copy_from_slice(chunk)).await?;
        }
        self.end(rows).await
    }

    /// A member begins; `write` its body, then `end` it.
    pub async fn begin(&mut self, entry: Entry) -> Result<()> {
        self.sums = Some(Sums::of(&[BLAKE3.to_owned()]));
        self.wire.say(&Message::Entry(Box::new(entry))).await
    }

    /// The next bytes of its body.
    pub async fn write(&mut self, bytes: Bytes) -> Result<()> {
        let Some(sums) = &mut self.sums else {
            return Err(plugin("bytes outside of any entry"));
        };
        sums.update(&bytes);
        let mut rest = bytes;
        while !rest.is_empty() {
            let chunk = rest.split_to(rest.len().min(FRAME_MAX_BYTES));
            self.wire.frame(&Frame::Data(chunk)).await?;
        }
        Ok(())
    }

    /// The member is complete, and has so many rows.
    pub async fn end(&mut self, rows: u64) -> Result<()> {
        let Some(sums) = self.sums.take() else {
            return Err(plugin("the end of no entry"));
        };
        self.wire.say(&Message::End(sums.end(rows))).await
    }

    /// A unit cannot be backed up whole.
    pub async fn failed(&mut self, group: &str, unit: &str, why: &str) -> Result<()> {
        let failed = Failed {
            group: Some(group.to_owned()),
            unit: Some(unit.to_owned()),
            message: why.to_owned(),
        };
        self.wire.say(&Message::Failed(failed)).await
    }
}

/// A restore on its way from the host.
pub struct Restore {
    wire: Wire,
    open: Option<(Entry, Sums)>,
}

impl Restore {
    /// The next entry, or nothing when that was all. Its body must be read, and acknowledged, before the next.
    pub async fn next(&mut self) -> Result<Option<Entry>> {
        match self.wire.hear().await? {
            Heard::Message(Message::Entry(entry)) => {
                self.open = Some(((*entry).clone(), Sums::of(&[BLAKE3.to_owned()])));
                Ok(Some(*entry))
            }
            Heard::Message(Message::Finish) => Ok(None),
            Heard::Message(other) => Err(out_of_place(&other)),
            Heard::Data(_) => Err(plugin("bytes outside of any entry")),
        }
    }

    /// The next bytes of the entry's body, or nothing at its end, when they were compared with its sum.
    pub async fn chunk(&mut self) -> Result<Option<Bytes>> {
        let Some((entry, sums)) = &mut self.open else {
            return Ok(None);
        };
        match self.wire.hear().await? {
            Heard::Data(bytes) => {
                sums.update(&bytes);
                Ok(Some(bytes))
            }
            Heard::Message(Message::End(end)) => {
                let path = entry.path.clone();
                match self.open.take() {
                    Some((_, sums)) => sums.compare(&path, &end).map(|()| None),
                    None => Ok(None),
                }
            }
            Heard::Message(other) => Err(out_of_place(&other)),
        }
    }

    /// All of the entry's body, in memory.
    pub async fn body(&mut self) -> Result<Bytes> {
        let mut body = BytesMut::new();
        while let Some(chunk) = self.chunk().await? {
            body.extend_from_slice(&chunk);
        }
        Ok(body.freeze())
    }

    /// The entry is written, with so many rows.
    pub async fn ok(&mut self, rows: u64) -> Result<()> {
        self.wire.say(&Message::Ok(Acknowledged { rows })).await
    }

    /// The entry was not written.
    pub async fn failed(&mut self, why: &str) -> Result<()> {
        let failed = Failed {
            message: why.to_owned(),
            ..Failed::default()
        };
        self.wire.say(&Message::Failed(failed)).await
    }
}

/// Speaks the protocol for a source. Returns the exit status: 0 done, 1 not, 2 a person started it.
pub async fn serve_source(name: &str, version: &str, guest: &dyn Guest) -> i32 {
    let Some((mut wire, open)) = greet(name, version, "source").await else {
        return 2;
    };
    let done = match open.op {
        Op::Check => guest.check(&open).await.map(|health| Done {
            health: Some(health),
            ..Done::default()
        }),
        Op::Backup => {
            let mut out = Backup { wire, sums: None };
            let done = guest.backup(&open, &mut out).await;
            wire = out.wire;
            done
        }
        Op::Restore => {
            let mut input = Restore { wire, open: None };
            let done = guest.restore(&open, &mut input).await;
            wire = input.wire;
            done
        }
        Op::TestSeed | Op::TestWipe | Op::TestDigest | Op::TestStranger => guest.test(&open).await,
        _ => Err(unsupported("a source cannot do that")),
    };
    answer(wire, done).await
}

/// Speaks the protocol for a sink, which `build` makes from the settings.
pub async fn serve_sink(
    name: &str,
    version: &str,
    build: impl FnOnce(&serde_json::Value) -> Result<Arc<dyn Sink>>,
) -> i32 {
    let Some((mut wire, open)) = greet(name, version, "sink").await else {
        return 2;
    };
    let cx = Context {
        instance: open.instance.as_str().into(),
        site: open.site.as_str().into(),
        cancel: CancellationToken::default(),
        clock: Arc::new(SystemClock),
        progress: Arc::new(Quiet),
    };
    let done = match build(&open.settings) {
        Ok(sink) => of_a_sink(&cx, &mut wire, &open, &*sink).await,
        Err(error) => Err(error),
    };
    answer(wire, done).await
}

async fn greet(name: &str, version: &str, role: &str) -> Option<(Wire, Open)> {
    let started_by_host = std::env::args_os().any(|argument| argument == ARGUMENT);
    if !started_by_host {
        // There is nobody to tell it in frames, and nothing to be done where standard error is closed.
        use std::io::Write;
        let words = format!("{name} is a plugin of bk: bk plugins enable {name}\n");
        let _ = std::io::stderr().write_all(words.as_bytes());
        return None;
    }
    let (input, output) = pipes().ok()?;
    let mut wire = Wire {
        input: FrameReader::new(input),
        output: FrameWriter::new(output),
    };
    let hello = Hello {
        protocol: PROTOCOLS.to_vec(),
        name: name.to_owned(),
        version: version.to_owned(),
        roles: vec![role.to_owned()],
        features: vec![BLAKE3.to_owned()],
    };
    wire.say(&Message::Hello(hello)).await.ok()?;
    match wire.hear().await {
        Ok(Heard::Message(Message::Open(open))) => Some((wire, *open)),
        _ => None,
    }
}

/// Standard input and output, which the host makes pipes.
fn pipes() -> std::io::Result<(pipe::Receiver, pipe::Sender)> {
    let input = std::io::stdin().as_fd().try_clone_to_owned()?;
    let output = std::io::stdout().as_fd().try_clone_to_owned()?;
    Ok((
        pipe::Receiver::from_owned_fd(input)?,
        pipe::Sender::from_owned_fd(output)?,
    ))
}

async fn answer(mut wire: Wire, done: Result<Done>) -> i32 {
    let (last, code) = match done {
        Ok(done) => (Message::Done(Box::new(done)), 0),
        Err(error) => (Message::Error(Said::from(&error)), 1),
    };
    // Where the host is gone, the exit status is all that is left to say.
    match wire.say(&last).await {
        Ok(()) => code,
        Err(_) => 1,
    }
}

async fn of_a_sink(cx: &Context, wire: &mut Wire, open: &Open, sink: &dyn Sink) -> Result<Done> {
    let which = || {
        open.which
            .as_ref()
            .ok_or_else(|| plugin("`which` is missing"))
    };
    let note = || {
        let asked = open
            .note
            .as_ref()
            .ok_or_else(|| plugin("`note` is missing"))?;
        Ok::<_, Error>(NoteName {
            site: open.site.clone(),
            name: asked.name.clone(),
        })
    };
    match open.op {
        Op::Check => Ok(Done {
            health: Some(sink.check(cx).await?),
            ..Done::default()
        }),
        Op::Put => put(cx, wire, open, sink).await,
        Op::List => {
            let filter = Filter {
                prefix: open.prefix.clone(),
                ..Filter::default()
            };
            for stored in sink.list(cx, &filter).await? {
                let item = Item {
                    stored: Some(stored),
                    ..Item::default()
                };
                wire.say(&Message::Item(item)).await?;
            }
            Ok(Done::default())
        }
        Op::Get => {
            let mut stream = sink.read(cx, which()?, open.from..open.to).await?;
            let mut sums = Sums::of(&[BLAKE3.to_owned()]);
            while let Some(chunk) = stream.next().await {
                let mut rest = chunk?;
                sums.update(&rest);
                while !rest.is_empty() {
                    let part = rest.split_to(rest.len().min(FRAME_MAX_BYTES));
                    wire.frame(&Frame::Data(part)).await?;
                }
            }
            wire.say(&Message::End(sums.end(0))).await?;
            Ok(Done::default())
        }
        Op::Sums => match sink.sums(cx, which()?).await? {
            Some(text) => found(wire, text.into(), String::new()).await,
            None => Ok(Done::default()),
        },
        Op::Delete => sink.delete(cx, which()?).await.map(|()| Done::default()),
        Op::NoteGet => match sink.note(cx, &note()?).await? {
            Some(note) => found(wire, note.body, note.etag).await,
            None => Ok(Done::default()),
        },
        Op::NoteSet => {
            let body = body(wire).await?;
            let asked = open.note.as_ref();
            let was = match asked.map(|asked| asked.was.as_str()) {
                Some("absent") => Was::Absent,
                Some("same") => Was::Same(asked.map(|a| a.etag.clone()).unwrap_or_default()),
                _ => Was::Any,
            };
            let set = sink.set_note(cx, &note()?, body, was).await;
            set.map(|()| Done::default())
        }
        Op::NoteList => {
            for seen in sink.notes(cx, &open.site, &open.prefix).await? {
                let item = Item {
                    note: Some(seen.name.name),
                    modified: Some(seen.modified),
                    ..Item::default()
                };
                wire.say(&Message::Item(item)).await?;
            }
            Ok(Done::default())
        }
        Op::NoteRemove => {
            let removed = sink.remove_note(cx, &note()?).await;
            removed.map(|()| Done::default())
        }
        _ => Err(unsupported("a sink cannot do that")),
    }
}

async fn found(wire: &mut Wire, text: Bytes, etag: String) -> Result<Done> {
    wire.frame(&Frame::Data(text)).await?;
    Ok(Done {
        found: true,
        etag,
        ..Done::default()
    })
}

async fn body(wire: &mut Wire) -> Result<Bytes> {
    let mut body = BytesMut::new();
    let mut sums = Sums::of(&[BLAKE3.to_owned()]);
    loop {
        match wire.hear().await? {
            Heard::Data(bytes) => {
                sums.update(&bytes);
                body.extend_from_slice(&bytes);
            }
            Heard::Message(Message::End(end)) => {
                sums.compare("the text", &end)?;
                return Ok(body.freeze());
            }
            Heard::Message(other) => return Err(out_of_place(&other)),
        }
    }
}

async fn put(cx: &Context, wire: &mut Wire, open: &Open, sink: &dyn Sink) -> Result<Done> {
    let asked = open.archive.as_ref();
    let name = ArchiveName::from(asked.ok_or_else(|| plugin("`archive` is missing"))?);
    let mut upload = sink.create(cx, &name, SizeHint::default()).await?;
    let publish: Result<Publish> = async {
        loop {
            match wire.hear().await? {
                Heard::Data(bytes) => upload.write(bytes).await?,
                Heard::Message(Message::Publish(publish)) => return Ok(*publish),
                Heard::Message(other) => return Err(out_of_place(&other)),
            }
        }
    }
    .await;
    let publish = match publish {
        Ok(publish) => publish,
        Err(error) => {
            upload.abort().await?;
            return Err(error);
        }
    };
    let seal = Seal {
        sha256: publish.sha256,
        bytes: publish.bytes,
        id: publish.id,
        site: publish.site,
        complete: publish.complete,
    };
    let stored: Stored = upload.publish(&name, &seal).await?;
    Ok(Done {
        stored: Some(stored),
        ..Done::default()
    })
}
