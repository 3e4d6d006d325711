//! What others made: answers of `_all_docs?include_docs=true`, files of couchdb-dump, files of couchbackup; alone, in a folder or a tar,
//! compressed or not.
//!
//! The first pass reads all of it and writes nothing: what was cut off is found there. Documents travel as the JSON that stands there.

use super::{Done, Restoring, USERS};
use crate::couchdb::catalogue::{self, Definition};
use crate::couchdb::documents::leaf_of;
use crate::couchdb::json;
use crate::couchdb::restore::items::{Form, Items};
use crate::couchdb::restore::merge::Winners;
use crate::couchdb::restore::writing::{Target, Written};
use crate::couchdb::revision::{DESIGN, Envelope};
use crate::couchdb::{Couchdb, UNIT, mark};
use crate::parts::part;
use bk_core::context::Context;
use bk_core::error::{Error, Result};
use bk_core::source::{Body, Candidate, Claim, Input, Kind, Member, RestoreOptions, Stage, Tally};
use bytes::Bytes;
use std::collections::BTreeMap;

/// What goes to the server together.
const BLOCK_BYTES: usize = 4 << 20;
const BLOCK_DOCUMENTS: usize = 500;
/// What tools put beside their dumps: known, and no database.
const MANIFEST: &str = "backup_manifest.json";
/// Dropped documents that are named one by one.
const NAMED: usize = 10;

/// A file of one database.
pub fn claim(what: &Candidate) -> Vec<Claim> {
    if what.kind != Kind::File {
        return Vec::new();
    }
    let path = what.path.to_string();
    let name = path.rsplit('/').next().unwrap_or(&path);
    let claim = |stage, unit, left_out| Claim {
        stage,
        unit,
        path: what.path.clone(),
        unpacked: true,
        left_out,
    };
    if name == MANIFEST {
        return vec![claim(Stage::Schema, None, true)];
    }
    if Form::of(&what.head).is_none() {
        return Vec::new();
    }
    let unit = Some((part(database_of(name)), UNIT.to_owned()));
    vec![
        claim(Stage::Schema, unit.clone(), false),
        claim(Stage::Data, unit, false),
    ]
}

/// A file is called after its database.
fn database_of(name: &str) -> &str {
    let mut name = name;
    for suffix in [
        ".gz",
        ".xz",
        ".zst",
        ".json",
        ".jsonl",
        ".txt",
        ".couchbackup",
        ".backup",
    ] {
        name = name.strip_suffix(suffix).unwrap_or(name);
    }
    name
}

/// Restores it.
pub async fn restore(
    source: &Couchdb,
    cx: &Context,
    input: Input,
    how: &RestoreOptions,
) -> Result<Tally> {
    let mut restoring = Restoring::new(source, cx, &input, how).await?;
    restoring.foreign(input).await?;
    Ok(restoring.tally)
}

/// Reads all documents; says of each file what is not whole in it.
pub async fn examine(cx: &Context, mut input: Input) -> Result<Vec<String>> {
    let mut lacking = Vec::new();
    let members = input.stage(Stage::Data).await?;
    while let Some(member) = members.next().await? {
        let path = member.path.to_string();
        let left = looked_through(cx, member).await?;
        lacking.extend(left.said(&path));
    }
    Ok(lacking)
}

/// Every document of a member, read and not written.
async fn looked_through(cx: &Context, member: Member) -> Result<Left> {
    let path = member.path.to_string();
    let within = |e: Error| e.within(format!("`{path}`"));
    let (mut reading, mut left) = (Reading::of(member), Left::default());
    while let Some(items) = reading.next().await.map_err(within)? {
        cx.check_cancelled()?;
        for item in items {
            ready(&item, &mut left).map_err(within)?;
        }
    }
    Ok(left)
}

/// A document of others, ready for `_bulk_docs`.
struct Ready {
    json: Bytes,
    is_design: bool,
}

/// What was left out of the documents of a file.
#[derive(Default)]
struct Left {
    count: u64,
    named: Vec<String>,
}

impl Left {
    fn out(&mut self, what: String) {
        self.count += 1;
        if self.named.len() < NAMED {
            self.named.push(what);
        }
    }

    /// The same in one line, where there is any.
    fn said(&self, path: &str) -> Option<String> {
        let more = match self.count as usize - self.named.len() {
            0 => String::new(),
            more => format!("; and {more} more"),
        };
        (self.count > 0).then(|| {
            format!(
                "`{path}`: {} documents are not whole in it: {}{more}",
                self.count,
                self.named.join("; ")
            )
        })
    }
}

impl Restoring<'_> {
    async fn foreign(&mut self, mut input: Input) -> Result<()> {
        let found = catalogue::databases(&self.connection).await?;
        self.survey(&mut input).await?;
        self.refuse(&found).await?;
        let mine = self.unfinished();
        mark::begin(&self.connection, &mine).await?;
        let rights = self.take_over(&found).await?;
        self.make(&found).await?;
        self.find_winners_of_others(&input).await?;
        let members = input.stage(Stage::Data).await?;
        let mut designs: Vec<(String, Vec<Bytes>)> = Vec::new();
        while let Some(member) = members.next().await? {
            let (group, path) = (member.unit.0.clone(), member.path.to_string());
            let Some(database) = self.databases.get(&group) else {
                continue;
            };
            let (target, winners) = (database.target.clone(), database.winners.clone());
            let mut left = Left::default();
            let (mut held, mut block, mut later) = (0, Vec::new(), Vec::new());
            let mut reading = Reading::of(member);
            self.count(&group, Stage::Data, (1, 0, 0));
            while let Some(items) = reading.next().await.map_err(|e| e.within(&path))? {
                self.cx.check_cancelled()?;
                for item in items {
                    match ready(&item, &mut left)? {
                        None => {}
                        Some(ready) if ready.is_design => later.push(ready.json),
                        Some(ready) => {
                            held += ready.json.len();
                            block.push(ready.json);
                        }
                    }
                    if held >= BLOCK_BYTES || block.len() >= BLOCK_DOCUMENTS {
                        held = 0;
                        let block = std::mem::take(&mut block);
                        self.block(&group, &target, &block, winners.as_deref())
                            .await?;
                    }
                }
            }
            self.block(&group, &target, &block, winners.as_deref())
                .await?;
            designs.push((group.clone(), later));
            self.tally.failed.extend(left.said(&path));
            let broken = reading.items.broken();
            if broken > 0 {
                self.tally.warnings.push(format!(
                    "`{path}`: {broken} lines were cut off by an interruption; whoever resumed it wrote their documents again"
                ));
            }
        }
        for (group, documents) in designs {
            if let Some(database) = self.databases.get(&group) {
                let (target, winners) = (database.target.clone(), database.winners.clone());
                self.block(&group, &target, &documents, winners.as_deref())
                    .await?;
            }
        }
        for (group, body) in rights {
            self.rights(&group, &body).await?;
        }
        self.end(&mine).await
    }

    /// Dumps of others do not say how a database was made, nor who may read it: one that is there is made anew as it was.
    async fn take_over(&mut self, found: &[String]) -> Result<Vec<(String, Bytes)>> {
        let mut rights = Vec::new();
        for (group, database) in &mut self.databases {
            let name = database.target.database.clone();
            if !found.contains(&name) {
                continue;
            }
            if let Some(info) = catalogue::info(&self.connection, &name).await? {
                let how = (name.as_str(), &info);
                database.definition =
                    catalogue::definition(&self.connection, &self.server, how).await?;
                let body = catalogue::security(&self.connection, &name).await?;
                rights.push((group.clone(), body));
            }
        }
        Ok(rights)
    }

    async fn block(
        &mut self,
        group: &str,
        target: &Target,
        documents: &[Bytes],
        winners: Option<&Winners>,
    ) -> Result<()> {
        if documents.is_empty() {
            return Ok(());
        }
        if target.database == USERS
            && let Some(database) = self.databases.get_mut(group)
        {
            for document in documents {
                database.ids.insert(leaf_of(document)?.id);
            }
        }
        let mut written: Written = target.write(documents).await?;
        if let Some(winners) = winners {
            written.add(winners.settle(target, documents, 0).await?);
        }
        let bytes = documents.iter().map(Bytes::len).sum::<usize>() as u64;
        self.take_done(Done {
            group: group.to_owned(),
            stage: Stage::Data,
            members: 0,
            written,
            bytes,
        });
        Ok(())
    }

    /// Reads all of it: what was cut off ends the restore before anything is written.
    async fn survey(&mut self, input: &mut Input) -> Result<()> {
        let members = input.stage(Stage::Schema).await?;
        while let Some(member) = members.next().await? {
            let group = member.unit.0.clone();
            looked_through(self.cx, member).await?;
            self.count(&group, Stage::Schema, (1, 0, 0));
            let definition = Definition {
                name: self.database(&group),
                ..Definition::default()
            };
            self.add(group, definition);
        }
        Ok(())
    }

    async fn find_winners_of_others(&mut self, input: &Input) -> Result<()> {
        if self
            .databases
            .values()
            .all(|database| !database.target.merged)
        {
            return Ok(());
        }
        let mut winners: BTreeMap<String, Winners> = BTreeMap::new();
        let members = input.look(Stage::Data).await?;
        while let Some(member) = members.next().await? {
            let group = member.unit.0.clone();
            let mut reading = Reading::of(member);
            while let Some(items) = reading.next().await? {
                for item in items {
                    if let Some(ready) = ready(&item, &mut Left::default())? {
                        winners
                            .entry(group.clone())
                            .or_default()
                            .see(&ready.json, 0)?;
                    }
                }
            }
        }
        for (group, winners) in winners {
            if let Some(database) = self.databases.get_mut(&group)
                && database.target.merged
            {
                database.winners = Some(winners.into());
            }
        }
        Ok(())
    }
}

/// Members of a document that only say how it was asked for.
const READ_ONLY: [&str; 4] = [
    "_revs_info",
    "_local_seq",
    "_conflicts",
    "_deleted_conflicts",
];

/// A document as it can be written; nothing for what is none. Rows hold one beside its key.
fn ready(item: &Bytes, left: &mut Left) -> Result<Option<Ready>> {
    let members = json::members(item)?;
    let value = |wanted: &str| {
        members
            .iter()
            .find(|(name, _)| name == wanted)
            .map(|(_, raw)| raw.get())
    };
    let document = match value("_id") {
        Some(_) => item.clone(),
        None => match value("doc") {
            Some(doc) if doc.starts_with('{') => item.slice_ref(doc.as_bytes()),
            _ => {
                let which = value("id").or_else(|| value("key")).unwrap_or("a row");
                // A deleted document has a row only where it was asked for by its key.
                if !value("value").is_some_and(|value| value.contains("\"deleted\":true")) {
                    left.out(format!("{which} has no document"));
                }
                return Ok(None);
            }
        },
    };
    let envelope: Envelope<'_> = serde_json::from_slice(&document)
        .map_err(|e| Error::corrupt("a document cannot be read").because(e))?;
    if envelope.rev.is_empty() {
        left.out(format!("`{}` has no revision", envelope.id));
        return Ok(None);
    }
    let is_design = envelope.id.starts_with(DESIGN);
    let members = json::members(&document)?;
    let needs_change = members
        .iter()
        .any(|(name, _)| name == "_attachments" || READ_ONLY.contains(&&**name));
    if !needs_change {
        return Ok(Some(Ready {
            json: document.clone(),
            is_design,
        }));
    }
    let mut inline = None;
    if let Some(raw) = envelope.attachments {
        inline = Some(given_attachments(&envelope.id, raw.get(), left)?);
    }
    let kept = members
        .iter()
        .filter(|(name, _)| !READ_ONLY.contains(&&**name))
        .map(|(name, raw)| {
            let value = match &inline {
                Some(inline) if name == "_attachments" => inline.as_str(),
                _ => raw.get(),
            };
            (&**name, value)
        });
    Ok(Some(Ready {
        json: json::object(kept).into(),
        is_design,
    }))
}

/// Attachments that came with their bytes. Others of couchbackup are called in its manner; those of which a stub alone stands there are lost.
fn given_attachments(id: &str, raw: &str, left: &mut Left) -> Result<String> {
    let mut kept = Vec::new();
    for (name, raw) in json::members(raw.as_bytes())? {
        let fields = json::members(raw.get().as_bytes())?;
        let field = |wanted: &str| {
            fields
                .iter()
                .find(|(name, _)| name == wanted)
                .map(|(_, raw)| raw.get())
        };
        let Some(data) = field("data") else {
            left.out(format!("attachment `{name}` of `{id}` is not in it"));
            continue;
        };
        let kind = field("content_type")
            .or_else(|| field("contentType"))
            .unwrap_or("\"application/octet-stream\"");
        let mut object = vec![("content_type", kind), ("data", data)];
        object.extend(field("revpos").map(|revpos| ("revpos", revpos)));
        let object = String::from_utf8_lossy(&json::object(object)).into_owned();
        kept.push((name.into_owned(), object));
    }
    let all = json::object(kept.iter().map(|(n, v)| (n.as_str(), v.as_str())));
    Ok(String::from_utf8_lossy(&all).into_owned())
}

/// A member of others, document by document.
struct Reading {
    body: Option<Body>,
    items: Items,
    ended: bool,
}

impl Reading {
    fn of(member: Member) -> Self {
        Self {
            body: Some(member.body),
            items: Items::default(),
            ended: false,
        }
    }

    /// The documents of the next piece, or nothing at the end.
    async fn next(&mut self) -> Result<Option<Vec<Bytes>>> {
        if self.ended {
            return Ok(None);
        }
        let chunk = match &mut self.body {
            Some(Body::Stream(stream)) => stream.next().await?,
            Some(Body::Whole(_)) => match self.body.take() {
                Some(Body::Whole(bytes)) => Some(bytes),
                _ => None,
            },
            None => None,
        };
        if let Some(chunk) = chunk {
            return self.items.take(&chunk).map(Some);
        }
        self.ended = true;
        self.items.finish().map(Some)
    }
}
