//! Somebody else's archives: a sink that is only read, whatever its account may do. What the engine likes to remember of it lies elsewhere, or nowhere.

use super::{
    Abilities, ByteStream, Filter, Health, Note, NoteName, NoteSeen, Origin, Outlook, Sink,
    SizeHint, Stored, Upload, Was,
};
use crate::context::Context;
use crate::error::{Error, ErrorKind, Result};
use crate::name::ArchiveName;
use async_trait::async_trait;
use bytes::Bytes;
use std::ops::Range;
use std::sync::Arc;

/// Reads from one sink, and keeps notes on it in another.
pub struct ReadOnly {
    name: String,
    inner: Arc<dyn Sink>,
    notes: Option<Arc<dyn Sink>>,
}

impl ReadOnly {
    /// Nothing is remembered; notes that others left there are read.
    pub fn new(name: &str, inner: Arc<dyn Sink>) -> Self {
        Self {
            name: name.to_owned(),
            inner,
            notes: None,
        }
    }

    /// Notes on it lie in `notes`, under names that begin with the sink's own.
    pub fn with_notes_in(name: &str, inner: Arc<dyn Sink>, notes: Arc<dyn Sink>) -> Self {
        Self {
            name: name.to_owned(),
            inner,
            notes: Some(notes),
        }
    }

    fn refused(&self) -> Error {
        Error::new(
            ErrorKind::Denied,
            format!("`{}` is only read from here", self.name),
        )
        .hint("take `read_only` out of its settings if it may be written to")
    }

    /// The name of a note on this sink, in the other one.
    fn there(&self, name: &NoteName) -> NoteName {
        NoteName {
            site: name.site.clone(),
            name: format!("{}{}", self.prefix(), name.name),
        }
    }

    fn prefix(&self) -> String {
        format!("of-{}-", self.name)
    }
}

#[async_trait]
impl Sink for ReadOnly {
    fn abilities(&self) -> Abilities {
        self.inner.abilities()
    }

    async fn check(&self, cx: &Context) -> Result<Health> {
        let listed = self.inner.list(cx, &Filter::default()).await?;
        Ok(Health {
            identity: self.name.clone(),
            describe: format!("only read, {} files", listed.len()),
            warnings: Vec::new(),
        })
    }

    async fn create(
        &self,
        _cx: &Context,
        _name: &ArchiveName,
        _hint: SizeHint,
    ) -> Result<Box<dyn Upload>> {
        Err(self.refused())
    }

    async fn list(&self, cx: &Context, filter: &Filter) -> Result<Vec<Stored>> {
        self.inner.list(cx, filter).await
    }

    async fn read(&self, cx: &Context, which: &Stored, range: Range<u64>) -> Result<ByteStream> {
        self.inner.read(cx, which, range).await
    }

    async fn sums(&self, cx: &Context, which: &Stored) -> Result<Option<String>> {
        self.inner.sums(cx, which).await
    }

    async fn md5(&self, cx: &Context, which: &Stored) -> Result<Option<[u8; 16]>> {
        self.inner.md5(cx, which).await
    }

    async fn delete(&self, _cx: &Context, _which: &Stored) -> Result<()> {
        Err(self.refused())
    }

    async fn policy(&self, cx: &Context) -> Result<Option<String>> {
        self.inner.policy(cx).await
    }

    async fn origin(&self, cx: &Context, which: &Stored) -> Result<Option<Origin>> {
        self.inner.origin(cx, which).await
    }

    async fn note(&self, cx: &Context, name: &NoteName) -> Result<Option<Note>> {
        match &self.notes {
            Some(notes) => notes.note(cx, &self.there(name)).await,
            None => self.inner.note(cx, name).await,
        }
    }

    async fn set_note(&self, cx: &Context, name: &NoteName, body: Bytes, was: Was) -> Result<()> {
        match &self.notes {
            Some(notes) => notes.set_note(cx, &self.there(name), body, was).await,
            None => Err(self.refused()),
        }
    }

    async fn notes(&self, cx: &Context, site: &str, prefix: &str) -> Result<Vec<NoteSeen>> {
        let Some(notes) = &self.notes else {
            return self.inner.notes(cx, site, prefix).await;
        };
        let own = self.prefix();
        let mut seen = notes.notes(cx, site, &format!("{own}{prefix}")).await?;
        for note in &mut seen {
            note.name.name = note.name.name.split_off(own.len());
        }
        Ok(seen)
    }

    async fn remove_note(&self, cx: &Context, name: &NoteName) -> Result<()> {
        match &self.notes {
            Some(notes) => notes.remove_note(cx, &self.there(name)).await,
            None => Err(self.refused()),
        }
    }

    async fn outlook(&self, cx: &Context, newest: Option<&Stored>) -> Result<Outlook> {
        self.inner.outlook(cx, newest).await
    }
}
