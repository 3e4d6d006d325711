//! Putting a server's databases back: definitions first, rows over many connections, then what needs the rows.
//!
//! Statements run as they stand in the archive; only `USE` and the few names of databases in them follow `--into`. Secondary keys of large
//! tables are added after their rows. What the server acknowledges is counted, and each table's definition is compared in the end.

mod finish;
mod local;
mod rows;
mod schema;

use crate::mysql::catalogue::{Filter, Table, TableKind};
use crate::mysql::connection::{Connection, Server, ident};
use crate::mysql::mark::{self, Unfinished};
use crate::mysql::{LAYOUT, Mysql, SERVER_GROUP, catalogue, name_of, object_unit, part};
use bk_core::context::Context;
use bk_core::error::{Error, ErrorKind, Result, conflict, unsupported};
use bk_core::source::{
    Body, Existing, Input, Member, RestoreOptions, Selected, Stage, Tally, UnitCount,
};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

/// Things kept on purpose that are named one by one.
const KEPT_NAMED: usize = 100;

pub(super) async fn restore(
    source: &Mysql,
    cx: &Context,
    input: Input,
    how: &RestoreOptions,
) -> Result<Tally> {
    let mut connection = source.access.connect(cx).await?;
    if how.forget_unfinished {
        mark::forget(&mut connection).await?;
        return Ok(Tally::default());
    }
    if input.facts().layout > LAYOUT {
        return Err(unsupported(format!(
            "the databases in the archive have layout {}; this version knows {LAYOUT}",
            input.facts().layout
        ))
        .hint("use a newer bk"));
    }
    if how.into_place.is_some() {
        return Err(unsupported("a server cannot be restored into a folder")
            .hint("--into mysql/shop=shop_copy gives a database another name"));
    }
    let server = Server::ask(&mut connection).await?;
    let mut restoring = Restoring::new(source, cx, how, server, connection, &input);
    let done = restoring.run(input).await;
    restoring.connection.end().await;
    done?;
    Ok(restoring.tally)
}

struct Restoring<'a> {
    source: &'a Mysql,
    cx: &'a Context,
    how: &'a RestoreOptions,
    server: Server,
    connection: Connection,
    existing: Existing,
    /// Group to database in the target.
    names: HashMap<String, String>,
    /// What the backup's own selection took.
    filter: Filter,
    /// Units that failed when they were backed up.
    failed: HashSet<(String, String)>,
    /// Bytes of rows per unit.
    sizes: HashMap<(String, String), u64>,
    /// Tables that this restore made or keeps, by unit.
    tables: HashMap<(String, String), Made>,
    /// Same family and version as the archive's server: definitions must come back equal.
    same_server: bool,
    /// Accounts that were left as they are: their grants are left as well.
    skipped_accounts: HashSet<String>,
    counts: BTreeMap<(String, String, Stage), Count>,
    tally: Tally,
}

/// What came back of a unit in a stage.
#[derive(Clone, Copy, Debug, Default)]
struct Count {
    members: u64,
    rows: u64,
    bytes: u64,
}

impl Count {
    /// One member more.
    fn add(&mut self, rows: u64, bytes: u64) {
        self.members += 1;
        self.rows += rows;
        self.bytes += bytes;
    }
}

/// A table of this restore.
#[derive(Clone, Debug, Default)]
struct Made {
    /// As the archive has it, without foreign keys.
    create: Vec<u8>,
    /// Keys that are added after the rows.
    deferred: Vec<Vec<u8>>,
    /// Columns of type ENUM: their error value warns.
    enums: Vec<String>,
    /// How its columns are loaded, where they can be.
    load: Option<HashMap<String, local::Via>>,
    /// It was there and stays: rows replace rows.
    merged: bool,
}

impl<'a> Restoring<'a> {
    fn new(
        source: &'a Mysql,
        cx: &'a Context,
        how: &'a RestoreOptions,
        server: Server,
        connection: Connection,
        input: &Input,
    ) -> Self {
        let facts = input.facts();
        let family = if server.is_maria() {
            "mariadb"
        } else {
            "mysql"
        };
        let same_server = facts.more["flavour"] == family
            && facts.more["version"] == server.version_text.as_str();
        Self {
            source,
            cx,
            how,
            connection,
            existing: how.existing.unwrap_or(Existing::Replace),
            names: how.into_group.iter().cloned().collect(),
            filter: Filter::from_selection(&facts.selection),
            failed: input.failed_units().iter().cloned().collect(),
            sizes: input
                .units(Stage::Data)
                .map(|unit| ((unit.group.clone(), unit.name.clone()), unit.bytes))
                .collect(),
            tables: HashMap::new(),
            same_server,
            skipped_accounts: HashSet::new(),
            server,
            counts: BTreeMap::new(),
            tally: Tally::default(),
        }
    }

    async fn run(&mut self, mut input: Input) -> Result<()> {
        self.refuse_existing().await?;
        let mine = Unfinished {
            id: self.how.id.clone(),
            archive: self.how.archive.clone(),
            selected: self
                .how
                .selected
                .iter()
                .map(|s| self.in_target(s))
                .collect(),
        };
        mark::begin(&mut self.connection, &mine).await?;
        for sql in [
            "SET foreign_key_checks=0",
            "SET SESSION lock_wait_timeout=50",
        ] {
            self.connection.run(sql).await?;
        }
        if self.existing == Existing::Replace {
            self.make_way().await?;
        }
        self.schema(&mut input).await?;
        self.rows(&mut input).await?;
        // Nothing of this source is Large, but the stages are read in order.
        let large = input.stage(Stage::Large).await?;
        while large.next().await?.is_some() {}
        self.add_deferred_keys().await?;
        self.finish(&mut input).await?;
        self.compare_definitions().await?;
        mark::finish(&mut self.connection, &self.how.id).await?;
        self.tally.units = std::mem::take(&mut self.counts)
            .into_iter()
            .map(|((group, name, stage), count)| UnitCount {
                group,
                name,
                stage,
                members: count.members,
                rows: count.rows,
                bytes: count.bytes,
            })
            .collect();
        Ok(())
    }

    /// The target's database for a group.
    fn database(&self, group: &str) -> String {
        name_of(self.names.get(group).map_or(group, String::as_str))
    }

    fn in_target(&self, selected: &Selected) -> Selected {
        Selected {
            group: part(&self.database(&selected.group)),
            unit: selected.unit.clone(),
        }
    }

    fn count(&mut self, unit: &(String, String), stage: Stage, rows: u64, bytes: u64) {
        self.counts
            .entry((unit.0.clone(), unit.1.clone(), stage))
            .or_default()
            .add(rows, bytes);
    }

    /// What stands in a target database, by unit name.
    async fn objects(&mut self, database: &str) -> Result<BTreeMap<String, Object>> {
        let everything = Filter::default();
        let mut objects = BTreeMap::new();
        for table in
            catalogue::tables(&mut self.connection, &[database.to_owned()], &everything).await?
        {
            objects.insert(part(&table.name), Object::Table(table));
        }
        for routine in catalogue::routines(&mut self.connection, database).await? {
            let object = Object::Program(routine.kind.clone(), routine.name.clone());
            objects.insert(object_unit(&routine.kind, &routine.name), object);
        }
        for event in catalogue::events(&mut self.connection, database).await? {
            let object = Object::Program(event.kind.clone(), event.name.clone());
            objects.insert(object_unit(&event.kind, &event.name), object);
        }
        Ok(objects)
    }

    /// `--existing refuse`: before anything is written.
    async fn refuse_existing(&mut self) -> Result<()> {
        if self.existing != Existing::Refuse {
            return Ok(());
        }
        for selected in self.how.selected.clone() {
            if selected.group == SERVER_GROUP {
                continue;
            }
            let database = self.database(&selected.group);
            let objects = self.objects(&database).await?;
            let there = match &selected.unit {
                None => objects.keys().next().cloned(),
                Some(unit) => objects.contains_key(unit).then(|| unit.clone()),
            };
            if let Some(there) = there {
                return Err(conflict(format!("{} holds `{there}` already", ident(&database)))
                    .hint("repeat with --existing replace or --existing merge, or --into another database"));
            }
        }
        Ok(())
    }

    /// `--existing replace`: what is selected goes, but for what the backup left out or could not read.
    async fn make_way(&mut self) -> Result<()> {
        let mut groups: BTreeMap<String, BTreeSet<Option<String>>> = BTreeMap::new();
        for selected in &self.how.selected {
            if selected.group != SERVER_GROUP {
                groups
                    .entry(selected.group.clone())
                    .or_default()
                    .insert(selected.unit.clone());
            }
        }
        for (group, units) in groups {
            self.cx.check_cancelled()?;
            let database = self.database(&group);
            let objects = self.objects(&database).await?;
            let whole = units.contains(&None);
            let (mut goes, mut kept) = (Vec::new(), 0);
            for (unit, object) in objects {
                if !whole && !units.contains(&Some(unit.clone())) {
                    continue;
                }
                let left_out = !self.filter.takes(&name_of(&group), &name_of(&unit));
                if left_out || self.failed.contains(&(group.clone(), unit.clone())) {
                    kept += 1;
                    if self.tally.kept.len() < KEPT_NAMED {
                        self.tally.kept.push(format!("{database}/{unit}"));
                    }
                } else {
                    goes.push(object);
                }
            }
            if whole && kept == 0 {
                self.connection
                    .run(format!("DROP DATABASE IF EXISTS {}", ident(&database)))
                    .await?;
                continue;
            }
            for object in goes {
                self.connection.run(object.drop(&database)).await?;
            }
        }
        Ok(())
    }
}

/// Something in a target database.
enum Object {
    Table(Table),
    Program(String, String),
}

impl Object {
    fn drop(&self, database: &str) -> String {
        match self {
            Self::Table(table) => {
                let kind = match table.kind {
                    TableKind::View => "VIEW",
                    TableKind::Sequence => "SEQUENCE",
                    TableKind::Base | TableKind::Versioned => "TABLE",
                };
                format!("DROP {kind} IF EXISTS {}", table.full())
            }
            Self::Program(kind, name) => {
                format!("DROP {kind} IF EXISTS {}.{}", ident(database), ident(name))
            }
        }
    }
}

/// The bytes of a member. Only a single giant row makes one over 16 MiB.
async fn body_of(member: Member) -> Result<Vec<u8>> {
    match member.body {
        Body::Whole(bytes) => Ok(bytes.into()),
        Body::Stream(mut stream) => {
            let mut bytes = Vec::with_capacity(member.len.unwrap_or_default() as usize);
            while let Some(chunk) = stream.next().await? {
                bytes.extend_from_slice(&chunk);
            }
            Ok(bytes)
        }
    }
}

/// What stops a restore at once; anything else fails a unit by name.
fn stops(error: &Error) -> bool {
    matches!(
        error.kind,
        ErrorKind::Cancelled
            | ErrorKind::Bug
            | ErrorKind::Plugin
            | ErrorKind::Auth
            | ErrorKind::Corrupt
    )
}
