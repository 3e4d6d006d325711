//! The snapshot: what each stage writes, in the order of dependence.

mod readers;

use crate::mysql::accounts::{self, Accounts};
use crate::mysql::catalogue::{self, Named, Table, TableKind};
use crate::mysql::connection::{Connection, Server};
use crate::mysql::lock::{self, Instant};
use crate::mysql::mark;
use crate::mysql::{
    ACCOUNTS_UNIT, LAYOUT, Mysql, SERVER_GROUP, ddl, lexer, name_of, object_unit, part,
};
use async_trait::async_trait;
use bk_core::context::Context;
use bk_core::error::{Error, ErrorKind, Result};
use bk_core::name::MemberPath;
use bk_core::source::{
    Counted, Facts, Lane, Meta, Output, PointInTime, Snapshot, SnapshotOptions, Stage,
};
use bk_core::unfinished::Unfinished;
use bytes::Bytes;
use readers::Reading;
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

/// Warnings that are said one by one.
const WARNINGS_NAMED: usize = 50;

/// Definers that the facts name.
const DEFINERS_NAMED: usize = 200;

/// Fixes the point in time.
pub(super) async fn take(
    source: &Mysql,
    cx: &Context,
    _how: &SnapshotOptions,
) -> Result<MysqlSnapshot> {
    let mut connection = source.access.connect(cx).await?;
    let server = Server::ask(&mut connection).await?;
    if source.settings.flush_logs {
        connection.run("FLUSH BINARY LOGS").await?;
    }
    let marks = mark::read(&mut connection).await?;
    let mut instant = lock::take(
        &source.access,
        cx,
        &server,
        &source.settings,
        &source.filter,
    )
    .await?;
    source.filter.0.all_named_are_there(&instant.databases)?;
    let warnings = std::mem::take(&mut instant.warnings);
    tracing::info!(
        instance = %cx.instance,
        consistency = instant.consistency,
        held_ms = instant.held_micros as u64 / 1000,
        tables = instant.tables.len(),
        "snapshot"
    );
    Ok(MysqlSnapshot {
        connection,
        server,
        instant,
        marks,
        warnings,
        more_warnings: 0,
        with_accounts: source.with_accounts(),
        accounts: Accounts::default(),
        selection: source.filter.0.selection(),
        texts: Arc::default(),
        foreign_keys: BTreeMap::new(),
        definers: BTreeSet::new(),
        broken: HashSet::new(),
    })
}

/// A server at an instant.
pub(super) struct MysqlSnapshot {
    /// Reads definitions, never data.
    connection: Connection,
    server: Server,
    instant: Instant,
    marks: Vec<Unfinished>,
    warnings: Vec<String>,
    more_warnings: u64,
    with_accounts: bool,
    accounts: Accounts,
    selection: serde_json::Value,
    /// Hash of each table's definition, compared after its rows were read.
    texts: Arc<HashMap<(String, String), u64>>,
    foreign_keys: BTreeMap<(String, String), Vec<u8>>,
    /// Whom routines, triggers, views and events run as.
    definers: BTreeSet<String>,
    /// Tables that failed already: their later stages are not written.
    broken: HashSet<(String, String)>,
}

#[async_trait]
impl Snapshot for MysqlSnapshot {
    fn at(&self) -> PointInTime {
        PointInTime {
            instant: self.instant.at,
            consistency: self.instant.consistency.into(),
            position: self.instant.position.clone(),
        }
    }

    async fn write(&mut self, cx: &Context, stage: Stage, out: &Output) -> Result<()> {
        match stage {
            Stage::Schema => self.schema(cx, out).await,
            Stage::Data => self.data(cx, out).await,
            Stage::Large => Ok(()),
            Stage::Finish => self.finish(cx, out).await,
        }
    }

    async fn close(mut self: Box<Self>, _cx: &Context) -> Result<Facts> {
        let mut notes = vec![
            format!(
                "{} at {}",
                self.server.name(),
                self.instant.position.as_deref().unwrap_or("no position")
            ),
            format!(
                "{} databases, {} accounts",
                self.instant.databases.len(),
                self.accounts.count
            ),
        ];
        if self.instant.held_micros > 0 {
            notes.push(format!(
                "writers were held for {} ms",
                self.instant.held_micros / 1000
            ));
        }
        if self.more_warnings > 0 {
            self.warnings
                .push(format!("and {} more warnings", self.more_warnings));
        }
        let facts = Facts {
            layout: LAYOUT,
            selection: self.selection.clone(),
            more: json!({
                "flavour": if self.server.is_maria() { "mariadb" } else { "mysql" },
                "version": self.server.version_text,
                "lower_case_names": self.server.lower_case_names,
                "consistency": self.instant.consistency,
                "position": self.instant.position,
                "definers": self.definers.iter().take(DEFINERS_NAMED).collect::<Vec<_>>(),
            }),
            notes,
            warnings: self.warnings.clone(),
        };
        let Instant {
            readers,
            guard,
            plain_tables,
            ..
        } = self.instant;
        let all = readers
            .into_iter()
            .chain(guard)
            .chain(plain_tables)
            .chain([self.connection]);
        futures::future::join_all(all.map(Connection::end)).await;
        Ok(facts)
    }
}

impl MysqlSnapshot {
    fn remember_definer(&mut self, text: &[u8]) {
        self.definers
            .extend(ddl::definer(text).map(|(definer, _)| definer));
    }

    fn warn(&mut self, warning: String) {
        if self.warnings.len() < WARNINGS_NAMED {
            self.warnings.push(warning);
        } else {
            self.more_warnings += 1;
        }
    }

    async fn schema(&mut self, cx: &Context, out: &Output) -> Result<()> {
        let mut writing = Writing::begin(out, "schema").await?;
        if self.with_accounts {
            self.write_accounts(cx, &mut writing).await?;
        }
        for database in self.instant.databases.clone() {
            let text = ddl::database(&mut self.connection, &database).await?;
            let group = part(&database);
            writing.lane.unit(&group, "");
            writing.member(format!("{group}/create.sql"), text).await?;
        }
        let tables = self.instant.tables.clone();
        // A table's default may ask a sequence, and a MERGE table names other tables.
        let rank = |table: &Table| match table.kind {
            TableKind::Sequence => 0,
            _ if table.has_rows() => 1,
            _ => 2,
        };
        let mut ordered: Vec<_> = tables
            .iter()
            .filter(|t| t.kind != TableKind::View)
            .collect();
        ordered.sort_by_key(|table| rank(table));
        for table in ordered {
            cx.check_cancelled()?;
            let unit = table.unit();
            writing.expect(&unit).await?;
            match self.table_text(cx, table).await {
                Ok(text) => {
                    writing
                        .member(format!("{}/{}/schema.sql", unit.0, unit.1), text)
                        .await?;
                }
                Err(error) if is_the_runs(&error) => return Err(error),
                Err(error) => {
                    self.broken.insert(unit.clone());
                    writing.fail(&unit, &error).await?;
                }
            }
            writing.end(&unit, 0).await?;
        }
        self.fail_marked(cx, &mut writing).await?;
        writing.close().await
    }

    /// What an unfinished restore owes and what is not even there yet fails as well: a database that was dropped and not made again is
    /// no smaller server.
    async fn fail_marked(&mut self, cx: &Context, writing: &mut Writing<'_>) -> Result<()> {
        let mut here = self.units();
        let selected = self.marks.iter().flat_map(|mark| &mark.selected);
        let programs: BTreeSet<String> = selected
            .filter(|s| s.unit.as_ref().is_some_and(|unit| unit.contains(':')))
            .map(|s| s.group.clone())
            .collect();
        for group in programs {
            let database = name_of(&group);
            let mut named = catalogue::routines(&mut self.connection, &database).await?;
            named.extend(catalogue::events(&mut self.connection, &database).await?);
            here.extend(
                named
                    .iter()
                    .map(|n| (group.clone(), object_unit(&n.kind, &n.name))),
            );
        }
        let mut missing = BTreeSet::new();
        for selected in self.marks.iter().flat_map(|mark| &mark.selected) {
            match &selected.unit {
                None if selected.group != SERVER_GROUP => {
                    missing.insert((selected.group.clone(), "*".to_owned()))
                }
                Some(unit) => missing.insert((selected.group.clone(), unit.clone())),
                _ => false,
            };
        }
        for unit in missing.into_iter().filter(|unit| !here.contains(unit)) {
            writing.expect(&unit).await?;
            writing
                .fail(
                    &unit,
                    &bk_core::unfinished::refusal(&self.marks, &cx.instance),
                )
                .await?;
            writing.end(&unit, 0).await?;
        }
        Ok(())
    }

    /// Tables, views and sequences.
    fn units(&self) -> HashSet<(String, String)> {
        self.instant.tables.iter().map(Table::unit).collect()
    }

    async fn write_accounts(&mut self, cx: &Context, writing: &mut Writing<'_>) -> Result<()> {
        let unit = (SERVER_GROUP.to_owned(), ACCOUNTS_UNIT.to_owned());
        writing.expect(&unit).await?;
        let read = match mark::refusal(&self.marks, &cx.instance, &unit) {
            Some(refusal) => Err(refusal),
            None => accounts::read(&mut self.connection, &self.server).await,
        };
        match read {
            Ok(mut accounts) => {
                for warning in std::mem::take(&mut accounts.warnings) {
                    self.warn(warning);
                }
                writing
                    .member("accounts.sql".into(), accounts.first.clone().into_bytes())
                    .await?;
                self.accounts = accounts;
            }
            Err(error) if is_the_runs(&error) => return Err(error),
            Err(error) => {
                let error = match error.kind {
                    ErrorKind::Conflict => error,
                    _ => error
                        .hint("GRANT SELECT ON mysql.* to the account, or set accounts = false"),
                };
                self.broken.insert(unit.clone());
                writing.fail(&unit, &error).await?;
            }
        }
        writing.end(&unit, self.accounts.count).await
    }

    async fn table_text(&mut self, cx: &Context, table: &Table) -> Result<Vec<u8>> {
        let unit = table.unit();
        if let Some(refusal) = mark::refusal(&self.marks, &cx.instance, &unit) {
            return Err(refusal);
        }
        if table.kind == TableKind::Sequence {
            let key = (table.database.clone(), table.name.clone());
            let value = self.instant.sequences.get(&key);
            return ddl::sequence(&mut self.connection, table, value).await;
        }
        let text = ddl::table(&mut self.connection, table).await?;
        Arc::make_mut(&mut self.texts).insert(unit.clone(), hash_of(&text.shown));
        if let Some(keys) = text.foreign_keys {
            self.foreign_keys.insert(unit, keys);
        }
        Ok(text.schema)
    }

    /// Rows, over all connections. Tables without transactions first: their locks are given back as soon as they are read.
    async fn data(&mut self, cx: &Context, out: &Output) -> Result<()> {
        let units: Vec<_> = self
            .instant
            .tables
            .iter()
            .filter(|table| table.has_rows() && !self.broken.contains(&table.unit()))
            .cloned()
            .collect();
        let (plain, rest): (Vec<_>, Vec<_>) =
            units.into_iter().partition(|table| !table.transactional());
        self.read_all(cx, out, plain).await?;
        if let Some(lock) = self.instant.plain_tables.take() {
            lock.end().await;
        }
        self.read_all(cx, out, rest).await?;
        // Snapshots hold back the server's purge: they end as soon as nothing is read from them.
        for reader in self.instant.readers.drain(..) {
            reader.end().await;
        }
        Ok(())
    }

    async fn read_all(&mut self, cx: &Context, out: &Output, tables: Vec<Table>) -> Result<()> {
        if tables.is_empty() {
            return Ok(());
        }
        let readers = std::mem::take(&mut self.instant.readers);
        let reading = Reading::new(cx, out, &self.server, self.texts.clone(), tables);
        let (readers, read) = reading.run(readers).await;
        self.instant.readers = readers;
        let notes = read?;
        for warning in notes.warnings {
            self.warn(warning);
        }
        self.broken.extend(notes.broken);
        Ok(())
    }

    async fn finish(&mut self, cx: &Context, out: &Output) -> Result<()> {
        let mut writing = Writing::begin(out, "finish").await?;
        let databases = self.instant.databases.clone();
        for database in &databases {
            for routine in catalogue::routines(&mut self.connection, database).await? {
                cx.check_cancelled()?;
                self.program(cx, &mut writing, &routine).await?;
            }
        }
        if self.with_accounts && self.accounts.grants.len() > ddl::PREAMBLE.len() {
            let unit = (SERVER_GROUP.to_owned(), ACCOUNTS_UNIT.to_owned());
            writing.expect(&unit).await?;
            let grants = std::mem::take(&mut self.accounts.grants);
            writing
                .member("grants.sql".into(), grants.into_bytes())
                .await?;
            writing.end(&unit, 0).await?;
        }
        self.triggers_and_foreign_keys(cx, &mut writing, &databases)
            .await?;
        self.views(cx, &mut writing).await?;
        for database in &databases {
            for event in catalogue::events(&mut self.connection, database).await? {
                cx.check_cancelled()?;
                self.program(cx, &mut writing, &event).await?;
            }
        }
        writing.close().await
    }

    /// Triggers and foreign keys belong to their table's unit. All triggers come before all foreign keys.
    async fn triggers_and_foreign_keys(
        &mut self,
        cx: &Context,
        writing: &mut Writing<'_>,
        databases: &[String],
    ) -> Result<()> {
        let taken = self.units();
        let mut open: BTreeSet<(String, String)> = BTreeSet::new();
        let keys = std::mem::take(&mut self.foreign_keys);
        for database in databases {
            for (n, trigger) in catalogue::triggers(&mut self.connection, database)
                .await?
                .iter()
                .enumerate()
            {
                cx.check_cancelled()?;
                let unit = (part(database), part(&trigger.table));
                if !taken.contains(&unit) || self.broken.contains(&unit) {
                    continue;
                }
                if open.insert(unit.clone()) {
                    writing.expect(&unit).await?;
                }
                match ddl::program(&mut self.connection, trigger).await {
                    Ok(text) => {
                        self.remember_definer(&text);
                        let path = format!(
                            "{}/{}/trigger:{n:05}:{}.sql",
                            unit.0,
                            unit.1,
                            part(&trigger.name)
                        );
                        writing.lane.unit(&unit.0, &unit.1);
                        writing.member(path, text).await?;
                    }
                    Err(error) if is_the_runs(&error) => return Err(error),
                    Err(error) => writing.fail(&unit, &error).await?,
                }
            }
        }
        for (unit, text) in keys {
            if self.broken.contains(&unit) {
                continue;
            }
            if open.insert(unit.clone()) {
                writing.expect(&unit).await?;
            }
            writing.lane.unit(&unit.0, &unit.1);
            writing
                .member(format!("{}/{}/foreign_keys.sql", unit.0, unit.1), text)
                .await?;
        }
        for unit in open {
            writing.end(&unit, 0).await?;
        }
        Ok(())
    }

    async fn program(
        &mut self,
        cx: &Context,
        writing: &mut Writing<'_>,
        named: &Named,
    ) -> Result<()> {
        let unit = (part(&named.database), object_unit(&named.kind, &named.name));
        writing.expect(&unit).await?;
        let text = match mark::refusal(&self.marks, &cx.instance, &unit) {
            Some(refusal) => Err(refusal),
            None => ddl::program(&mut self.connection, named).await,
        };
        if let Ok(text) = &text {
            self.remember_definer(text);
        }
        match text {
            Ok(text) => {
                writing
                    .member(format!("{}/{}.sql", unit.0, unit.1), text)
                    .await?;
            }
            Err(error) if is_the_runs(&error) => return Err(error),
            Err(error) => writing.fail(&unit, &error).await?,
        }
        writing.end(&unit, 0).await
    }

    /// Views after the views that they read.
    async fn views(&mut self, cx: &Context, writing: &mut Writing<'_>) -> Result<()> {
        let views: Vec<_> = self
            .instant
            .tables
            .iter()
            .filter(|table| table.kind == TableKind::View)
            .cloned()
            .collect();
        let mut texts = Vec::new();
        for view in &views {
            cx.check_cancelled()?;
            let unit = view.unit();
            let text = match mark::refusal(&self.marks, &cx.instance, &unit) {
                Some(refusal) => Err(refusal),
                None => ddl::view(&mut self.connection, view).await,
            };
            if let Ok(text) = &text {
                self.remember_definer(text);
            }
            texts.push(text);
        }
        for n in by_dependence(&views, &texts) {
            let unit = views[n].unit();
            writing.expect(&unit).await?;
            match &texts[n] {
                Ok(text) => {
                    writing
                        .member(format!("{}/{}/view.sql", unit.0, unit.1), text.clone())
                        .await?;
                }
                Err(error) if is_the_runs(error) => return Err(error.duplicate()),
                Err(error) => writing.fail(&unit, error).await?,
            }
            writing.end(&unit, 0).await?;
        }
        Ok(())
    }
}

/// Places of the views so that each comes after those whose names its text quotes; what is left of a circle comes in its own order.
fn by_dependence(views: &[Table], texts: &[Result<Vec<u8>>]) -> Vec<usize> {
    let mut places: HashMap<(&str, &str), usize> = HashMap::new();
    for (n, view) in views.iter().enumerate() {
        places.insert((&view.database, &view.name), n);
    }
    let needs: Vec<HashSet<usize>> = texts
        .iter()
        .enumerate()
        .map(|(n, text)| {
            let names = text
                .as_ref()
                .map_or_else(|_| Vec::new(), |text| lexer::quoted_names(text));
            let own = views[n].database.as_str();
            let alone = names
                .iter()
                .filter_map(|name| places.get(&(own, name.as_str())));
            let pairs = names
                .windows(2)
                .filter_map(|w| places.get(&(w[0].as_str(), w[1].as_str())));
            alone
                .chain(pairs)
                .copied()
                .filter(|other| *other != n)
                .collect()
        })
        .collect();
    let mut order = Vec::with_capacity(views.len());
    let mut done = HashSet::new();
    while order.len() < views.len() {
        let ready: Vec<_> = (0..views.len())
            .filter(|n| !done.contains(n) && needs[*n].is_subset(&done))
            .collect();
        let next = if ready.is_empty() {
            (0..views.len())
                .filter(|n| !done.contains(n))
                .take(1)
                .collect()
        } else {
            ready
        };
        done.extend(next.iter().copied());
        order.extend(next);
    }
    order
}

/// What stops the run or the instance, not a unit.
fn is_the_runs(error: &Error) -> bool {
    matches!(
        error.kind,
        ErrorKind::Cancelled | ErrorKind::Bug | ErrorKind::Plugin
    )
}

fn hash_of(shown: &[u8]) -> u64 {
    bk_core::name::hash64(&ddl::without_counter(shown))
}

/// One lane, units one after the other.
struct Writing<'a> {
    out: &'a Output,
    lane: Lane,
}

impl<'a> Writing<'a> {
    async fn begin(out: &'a Output, key: &str) -> Result<Self> {
        Ok(Self {
            out,
            lane: out.lane(key).await?,
        })
    }

    async fn expect(&mut self, unit: &(String, String)) -> Result<()> {
        self.out.expect(&unit.0, &unit.1).await?;
        self.lane.unit(&unit.0, &unit.1);
        Ok(())
    }

    async fn member(&mut self, path: String, text: Vec<u8>) -> Result<()> {
        self.lane
            .member(MemberPath::new(path)?, Meta::default(), Bytes::from(text))
            .await
    }

    async fn fail(&self, unit: &(String, String), why: &Error) -> Result<()> {
        self.out.fail(&unit.0, &unit.1, why).await
    }

    async fn end(&self, unit: &(String, String), rows: u64) -> Result<()> {
        self.out.end(&unit.0, &unit.1, Counted { rows }).await
    }

    async fn close(self) -> Result<()> {
        self.lane.close().await
    }
}
