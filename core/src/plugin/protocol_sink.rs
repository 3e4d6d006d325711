//! A protocol plugin seen as a sink: one process for each call, and one for each archive on its way.

use super::frame::{FRAME_MAX_BYTES, Frame};
use super::message::{Done, Item, Message, NoteAsk, Op, Publish};
use super::protocol_source::Remote;
use super::session::{Came, Session, out_of_place};
use crate::context::Context;
use crate::error::{Error, Result, plugin};
use crate::name::ArchiveName;
use crate::sink::{
    Abilities, ByteStream, Filter, Health, Note, NoteName, NoteSeen, Seal, Sink, SizeHint, Stored,
    Upload, Was, looks_like_an_archive,
};
use async_trait::async_trait;
use bytes::Bytes;
use std::ops::Range;

/// Names that are tried at publish; after so many the sink is asked for something impossible.
const NAMES_TRIED: usize = 100;
/// The longest list.
const ITEMS_MAX: usize = 1_000_000;
/// The longest sum file or note.
const TEXT_MAX_BYTES: usize = 1 << 20;

/// A sink that is a process.
pub struct ProtocolSink(pub Remote);

impl ProtocolSink {
    fn named(&self, error: Error) -> Error {
        error.within(format!("plugin `{}`", self.0.manifest.name))
    }

    /// A call whose answer is a text.
    async fn text(
        &self,
        cx: &Context,
        op: Op,
        more: impl FnOnce(&mut super::message::Open),
    ) -> Result<Option<(Bytes, Done)>> {
        let mut session = self.0.open(cx, op, more).await?;
        match text(&mut session).await {
            Ok(found) => Ok(found),
            Err(error) => Err(session.fail(error).await),
        }
    }

    async fn items(&self, cx: &Context, op: Op, prefix: &str) -> Result<Vec<Item>> {
        let mut session = self
            .0
            .open(cx, op, |open| prefix.clone_into(&mut open.prefix))
            .await?;
        match items(&mut session).await {
            Ok(items) => Ok(items),
            Err(error) => Err(session.fail(error).await),
        }
    }
}

async fn text(session: &mut Session) -> Result<Option<(Bytes, Done)>> {
    let mut text = Vec::new();
    loop {
        match session.next().await? {
            Came::Data(bytes) => {
                text.extend_from_slice(&bytes);
                if text.len() > TEXT_MAX_BYTES {
                    return Err(plugin("it sent a text of more than 1 MiB"));
                }
            }
            Came::Message(Message::Done(done)) => {
                session.finish().await?;
                return Ok(done.found.then(|| (text.into(), *done)));
            }
            Came::Message(other) => return Err(out_of_place(&other)),
        }
    }
}

async fn items(session: &mut Session) -> Result<Vec<Item>> {
    let mut items = Vec::new();
    loop {
        match session.message().await? {
            Message::Item(_) if items.len() >= ITEMS_MAX => {
                return Err(plugin(format!("its list has more than {ITEMS_MAX} items")));
            }
            Message::Item(item) => items.push(item),
            Message::Done(_) => {
                session.finish().await?;
                return Ok(items);
            }
            other => return Err(out_of_place(&other)),
        }
    }
}

#[async_trait]
impl Sink for ProtocolSink {
    fn abilities(&self) -> Abilities {
        let has = |name: &str| self.0.spec.abilities.iter().any(|known| known == name);
        Abilities {
            versions: has("versions"),
            ranges: has("ranges"),
            rename: has("rename"),
            exclusive_create: has("exclusive_create"),
            ..Abilities::default()
        }
    }

    async fn check(&self, cx: &Context) -> Result<Health> {
        self.0.check(cx).await
    }

    async fn create(
        &self,
        cx: &Context,
        name: &ArchiveName,
        _hint: SizeHint,
    ) -> Result<Box<dyn Upload>> {
        let session = self
            .0
            .open(cx, Op::Put, |open| open.archive = Some(name.into()))
            .await?;
        Ok(Box::new(RemoteUpload { session }))
    }

    async fn list(&self, cx: &Context, filter: &Filter) -> Result<Vec<Stored>> {
        let items = self.items(cx, Op::List, &filter.prefix).await?;
        let stored = items.into_iter().map(|item| {
            item.stored
                .ok_or_else(|| self.named(plugin("an item of its list has no `stored`")))
        });
        let stored: Vec<Stored> = stored.collect::<Result<_>>()?;
        let file = |stored: &Stored| {
            let name = stored
                .name
                .rsplit('/')
                .next()
                .unwrap_or_default()
                .to_owned();
            looks_like_an_archive(&name) && name.starts_with(&filter.prefix)
        };
        Ok(stored.into_iter().filter(file).collect())
    }

    async fn read(&self, cx: &Context, which: &Stored, range: Range<u64>) -> Result<ByteStream> {
        let session = self
            .0
            .open(cx, Op::Get, |open| {
                open.which = Some(which.clone());
                open.from = range.start;
                open.to = range.end;
            })
            .await?;
        let expected = if self.abilities().ranges {
            range.end - range.start
        } else {
            which.bytes
        };
        let reading = Reading {
            sums: session.sums(),
            session: Some(session),
            expected,
            path: which.name.clone(),
        };
        Ok(Box::pin(futures::stream::unfold(
            reading,
            |mut reading| async move {
                let next = reading.next().await.transpose()?;
                Some((next, reading))
            },
        )))
    }

    async fn sums(&self, cx: &Context, which: &Stored) -> Result<Option<String>> {
        let found = self
            .text(cx, Op::Sums, |open| open.which = Some(which.clone()))
            .await?;
        Ok(found.map(|(text, _)| String::from_utf8_lossy(&text).into_owned()))
    }

    async fn delete(&self, cx: &Context, which: &Stored) -> Result<()> {
        let delete = self
            .0
            .call(cx, Op::Delete, |open| open.which = Some(which.clone()));
        delete.await.map(drop)
    }

    async fn note(&self, cx: &Context, name: &NoteName) -> Result<Option<Note>> {
        let found = self
            .text(&of(cx, &name.site), Op::NoteGet, |open| {
                open.note = Some(ask(name, &Was::Any));
            })
            .await?;
        Ok(found.map(|(body, done)| Note {
            body,
            etag: done.etag,
        }))
    }

    async fn set_note(&self, cx: &Context, name: &NoteName, body: Bytes, was: Was) -> Result<()> {
        let mut session = self
            .0
            .open(&of(cx, &name.site), Op::NoteSet, |open| {
                open.note = Some(ask(name, &was));
            })
            .await?;
        let set = async {
            send_text(&mut session, &body).await?;
            session.done().await
        };
        match set.await {
            Ok(_) => Ok(()),
            Err(error) => Err(session.fail(error).await),
        }
    }

    async fn notes(&self, cx: &Context, site: &str, prefix: &str) -> Result<Vec<NoteSeen>> {
        let items = self.items(&of(cx, site), Op::NoteList, prefix).await?;
        let mut seen = Vec::new();
        for item in items {
            // One that is left out could be the lease of another run.
            let (Some(name), Some(modified)) = (item.note, item.modified) else {
                return Err(self.named(plugin("a note of its list lacks `note` or `modified`")));
            };
            if name.starts_with(prefix) {
                let site = site.to_owned();
                let name = NoteName { site, name };
                seen.push(NoteSeen { name, modified });
            }
        }
        Ok(seen)
    }

    async fn remove_note(&self, cx: &Context, name: &NoteName) -> Result<()> {
        let cx = of(cx, &name.site);
        let removed = self.0.call(&cx, Op::NoteRemove, |open| {
            open.note = Some(ask(name, &Was::Any));
        });
        removed.await.map(drop)
    }
}

/// Notes are a site's: the site of the note, which need not be that of the run.
fn of(cx: &Context, site: &str) -> Context {
    Context {
        site: site.into(),
        ..cx.clone()
    }
}

fn ask(name: &NoteName, was: &Was) -> NoteAsk {
    let (word, etag) = match was {
        Was::Any => ("any", ""),
        Was::Absent => ("absent", ""),
        Was::Same(etag) => ("same", etag.as_str()),
    };
    NoteAsk {
        name: name.name.clone(),
        was: word.into(),
        etag: etag.into(),
    }
}

async fn send_text(session: &mut Session, text: &Bytes) -> Result<()> {
    let mut rest = text.clone();
    while !rest.is_empty() {
        let chunk = rest.split_to(rest.len().min(FRAME_MAX_BYTES));
        session.write(Frame::Data(chunk)).await?;
    }
    let mut sums = session.sums();
    sums.update(text);
    session.send(&Message::End(sums.end(0))).await
}

fn candidates(name: &ArchiveName, complete: bool) -> Vec<String> {
    name.candidates(complete).take(NAMES_TRIED).collect()
}

/// An archive on its way into a process.
struct RemoteUpload {
    session: Session,
}

#[async_trait]
impl Upload for RemoteUpload {
    async fn write(&mut self, chunk: Bytes) -> Result<()> {
        let mut rest = chunk;
        while !rest.is_empty() {
            let part = rest.split_to(rest.len().min(FRAME_MAX_BYTES));
            self.session.write(Frame::Data(part)).await?;
        }
        Ok(())
    }

    async fn publish(mut self: Box<Self>, name: &ArchiveName, seal: &Seal) -> Result<Stored> {
        let publish = Publish::new(candidates(name, seal.complete), seal);
        let published = async {
            self.session
                .send(&Message::Publish(Box::new(publish)))
                .await?;
            let done = self.session.done().await?;
            let stored = done
                .stored
                .ok_or_else(|| plugin("`done` of `put` has no `stored`"))?;
            if stored.bytes != seal.bytes {
                return Err(plugin(format!(
                    "{} bytes were sent, `{}` has {}",
                    seal.bytes, stored.name, stored.bytes
                )));
            }
            Ok(stored)
        };
        match published.await {
            Ok(stored) => Ok(stored),
            Err(error) => Err(self.session.fail(error).await),
        }
    }

    async fn abort(mut self: Box<Self>) -> Result<()> {
        self.session.end().await;
        Ok(())
    }
}

/// Bytes of an archive on their way out of a process.
struct Reading {
    session: Option<Session>,
    sums: super::message::Sums,
    expected: u64,
    path: String,
}

impl Reading {
    async fn next(&mut self) -> Result<Option<Bytes>> {
        let Some(session) = &mut self.session else {
            return Ok(None);
        };
        let step = match session.next().await {
            Ok(Came::Data(bytes)) => {
                self.sums.update(&bytes);
                if self.sums.bytes() <= self.expected {
                    return Ok(Some(bytes));
                }
                Err(plugin(format!(
                    "`{}`: more than the {} bytes that were asked for came",
                    self.path, self.expected
                )))
            }
            Ok(Came::Message(Message::End(end))) => {
                let fresh = session.sums();
                let sums = std::mem::replace(&mut self.sums, fresh);
                let came = sums.bytes();
                sums.compare(&self.path, &end).and_then(|()| {
                    if came == self.expected {
                        Ok(())
                    } else {
                        Err(plugin(format!(
                            "`{}`: {came} of {} bytes came",
                            self.path, self.expected
                        )))
                    }
                })
            }
            Ok(Came::Message(other)) => Err(out_of_place(&other)),
            Err(error) => Err(error),
        };
        let ended = match step {
            Ok(()) => session.done().await.map(drop),
            Err(error) => Err(error),
        };
        let session = self.session.take();
        match (ended, session) {
            (Err(error), Some(session)) => Err(session.fail(error).await),
            (ended, _) => ended.map(|()| None),
        }
    }
}
