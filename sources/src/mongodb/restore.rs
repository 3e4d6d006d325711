//! Putting databases back: collections with their options, documents over many connections, what the log adds, then indexes, views, users.

pub mod archive_file;
mod definitions;
pub mod foreign;
pub mod indexes;
pub mod insert;
mod users;

use crate::mongodb::bson::{self, Writing};
use crate::mongodb::catalogue::{self, Collection, Filter};
use crate::mongodb::connection::{Connection, code};
use crate::mongodb::mark;
use crate::mongodb::metadata::Kind;
use crate::mongodb::names::{name_of, part};
use crate::mongodb::oplog::replay::Replay;
use crate::mongodb::server::Server;
use crate::mongodb::{LAYOUT, Mongodb};
use bk_core::context::Context;
use bk_core::error::{Error, Result, bug, conflict, unsupported};
use bk_core::source::{Existing, Input, RestoreOptions, Selected, Stage, Tally, UnitCount};
use bk_core::unfinished::Unfinished;
use bytes::Bytes;
use indexes::Which;
use insert::{Inserted, Limits, Target};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

/// Group of what belongs to the server and to no database.
pub const SERVER_GROUP: &str = ".";
/// The unit of users and roles.
pub const USERS_UNIT: &str = "users";
/// Things kept on purpose that are named one by one.
const KEPT_NAMED: usize = 100;

type Unit = (String, String);

/// Restores what is selected.
pub async fn restore(
    source: &Mongodb,
    cx: &Context,
    input: Input,
    how: &RestoreOptions,
) -> Result<Tally> {
    let connection = source.access.connect(cx).await?;
    if how.forget_unfinished {
        mark::forget(&connection).await?;
        return Ok(Tally::default());
    }
    input.facts().refuse_newer_layout("the databases", LAYOUT)?;
    if how.into_place.is_some() {
        return Err(unsupported("a server cannot be restored into a folder")
            .hint("--into mongodb/app=app_copy gives a database another name"));
    }
    let server = Server::ask(&connection).await?;
    let mut restoring = Restoring::new(source, cx, how, server, connection, &input);
    restoring.run(input).await?;
    Ok(restoring.tally)
}

struct Restoring<'a> {
    cx: &'a Context,
    how: &'a RestoreOptions,
    connection: Connection,
    limits: Limits,
    permits: Arc<Semaphore>,
    parallel: usize,
    existing: Existing,
    /// Group to database in the target.
    names: HashMap<String, String>,
    /// What the backup's own selection took.
    filter: Filter,
    /// Units that failed when they were backed up.
    failed: HashSet<Unit>,
    /// Units of which something was refused: they stay in the mark.
    broken: BTreeSet<Unit>,
    /// Units into which nothing more is written.
    unusable: BTreeSet<Unit>,
    mark: mark::Where,
    /// Collections and views of this restore.
    made: BTreeMap<Unit, Made>,
    /// Documents that a collection still waits for; nothing for one that has none.
    waits: HashMap<Unit, u64>,
    /// Collections that the log says something of.
    logged: HashSet<Unit>,
    /// Options of collections, each kept once: those of a hundred thousand are mostly the same.
    known_options: HashSet<Arc<[u8]>>,
    /// Of units that are no collection, or none yet.
    counts: BTreeMap<Unit, Vec<(Stage, Count)>>,
    tally: Tally,
}

/// What came back of a unit in a stage.
#[derive(Clone, Copy, Debug, Default)]
struct Count {
    members: u64,
    rows: u64,
    bytes: u64,
}

/// A collection of this restore.
#[derive(Clone, Debug)]
struct Made {
    database: Arc<str>,
    name: String,
    kind: Kind,
    capped: bool,
    /// Where its documents go, where that is another.
    buckets: Option<String>,
    /// Whether the server knows the raw form of its documents only by name.
    raw: bool,
    /// But for those that it has anyway.
    indexes: Arc<[Vec<u8>]>,
    options: Arc<[u8]>,
    /// What came back of it.
    counts: Vec<(Stage, Count)>,
}

impl Made {
    /// Where its documents go.
    fn data_name(&self) -> &str {
        self.buckets.as_deref().unwrap_or(&self.name)
    }
}

/// How much of a collection's documents was written.
#[derive(Clone, Copy, Debug)]
enum Written {
    /// A member, of so many bytes.
    Member(u64),
    /// A part of a larger file.
    Part(u64),
}

/// What a task did.
enum Done {
    Documents(Unit, Inserted, Written),
    Indexes(Unit, Vec<String>),
}

impl<'a> Restoring<'a> {
    fn new(
        source: &Mongodb,
        cx: &'a Context,
        how: &'a RestoreOptions,
        server: Server,
        connection: Connection,
        input: &Input,
    ) -> Self {
        let unit = |count: UnitCount| (count.group, count.name);
        let parallel = usize::from(source.settings.parallel);
        Self {
            cx,
            how,
            connection,
            limits: Limits::of(&server),
            permits: Arc::new(Semaphore::new(parallel)),
            parallel,
            existing: how.existing.unwrap_or(Existing::Replace),
            names: how.into_group.iter().cloned().collect(),
            filter: Filter::from_selection(&input.facts().selection),
            failed: input.failed_units().iter().cloned().collect(),
            broken: BTreeSet::new(),
            unusable: BTreeSet::new(),
            mark: mark::Where::OwnDatabase,
            made: BTreeMap::new(),
            waits: input
                .units(Stage::Data)
                .filter(|count| count.rows > 0)
                .map(|count| {
                    let rows = count.rows;
                    (unit(count), rows)
                })
                .collect(),
            logged: input.units(Stage::Finish).map(unit).collect(),
            known_options: HashSet::new(),
            counts: BTreeMap::new(),
            tally: Tally::default(),
        }
    }

    async fn run(&mut self, mut input: Input) -> Result<()> {
        self.refuse_targets()?;
        self.refuse_existing().await?;
        self.definitions(&mut input).await?;
        let mine = self.begin().await?;
        self.documents(&mut input).await?;
        // Nothing of this source is Large, but the stages are read in order.
        let large = input.stage(Stage::Large).await?;
        while large.next().await?.is_some() {}
        self.finish(&mut input).await?;
        self.end(&mine).await
    }

    /// All definitions are known: refuses those that the target cannot have, sets the mark, makes way, and makes the collections.
    async fn begin(&mut self) -> Result<Unfinished> {
        self.try_definitions().await?;
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
        self.mark = mark::begin(&self.connection, &mine, &mark::databases(&mine.selected)).await?;
        if self.existing == Existing::Replace {
            self.make_way().await?;
        }
        self.make_collections().await?;
        Ok(mine)
    }

    /// What comes after all documents; then the mark goes.
    async fn end(&mut self, mine: &Unfinished) -> Result<()> {
        self.views().await?;
        self.expiring_indexes().await?;
        let left: Vec<_> = self.broken.iter().map(|unit| self.left(unit)).collect();
        mark::finish(&self.connection, mine, left, &self.mark).await?;
        self.tally.units = self.take_counts();
        Ok(())
    }

    fn take_counts(&mut self) -> Vec<UnitCount> {
        let made = std::mem::take(&mut self.made).into_iter();
        let others = std::mem::take(&mut self.counts).into_iter();
        made.map(|(unit, made)| (unit, made.counts))
            .chain(others)
            .flat_map(|((group, name), counts)| {
                counts.into_iter().map(move |(stage, count)| UnitCount {
                    group: group.clone(),
                    name: name.clone(),
                    stage,
                    members: count.members,
                    rows: count.rows,
                    bytes: count.bytes,
                })
            })
            .collect()
    }

    /// One member more.
    fn count(&mut self, unit: &Unit, stage: Stage, rows: u64, bytes: u64) {
        self.count_rows(unit, stage, rows, bytes);
        self.counted(unit, stage).members += 1;
    }

    fn count_rows(&mut self, unit: &Unit, stage: Stage, rows: u64, bytes: u64) {
        let count = self.counted(unit, stage);
        count.rows += rows;
        count.bytes += bytes;
    }

    fn counted(&mut self, unit: &Unit, stage: Stage) -> &mut Count {
        let counts = match self.made.get_mut(unit) {
            Some(made) => &mut made.counts,
            None => self.counts.entry(unit.clone()).or_default(),
        };
        let at = counts.iter().position(|(known, _)| *known == stage);
        let at = at.unwrap_or_else(|| {
            // Most have one, and there may be a hundred thousand.
            counts.reserve_exact(1);
            counts.push((stage, Count::default()));
            counts.len() - 1
        });
        &mut counts[at].1
    }

    /// The target's database for a group.
    fn database(&self, group: &str) -> String {
        name_of(self.names.get(group).map_or(group, String::as_str))
    }

    fn in_target(&self, selected: &Selected) -> Selected {
        Selected {
            group: if selected.group == SERVER_GROUP {
                SERVER_GROUP.into()
            } else {
                part(&self.database(&selected.group))
            },
            unit: selected.unit.clone(),
        }
    }

    /// A unit that did not come whole, as the mark keeps it.
    fn left(&self, unit: &Unit) -> Selected {
        self.in_target(&Selected {
            group: unit.0.clone(),
            unit: Some(unit.1.clone()).filter(|name| !name.is_empty()),
        })
    }

    fn fail(&mut self, unit: &Unit, why: String) {
        self.tally.failed.push(why);
        self.broken.insert(unit.clone());
    }

    /// The same of one into which nothing more can be written.
    fn give_up(&mut self, unit: &Unit, why: String) {
        self.fail(unit, why);
        self.unusable.insert(unit.clone());
    }

    /// Kept on purpose, and named as long as the list is no book.
    fn keep(&mut self, what: String) {
        if self.tally.kept.len() < KEPT_NAMED {
            self.tally.kept.push(what);
        }
    }

    /// No group is written into a database of the server's own, and no two into one.
    fn refuse_targets(&self) -> Result<()> {
        let mut targets: HashMap<String, &str> = HashMap::new();
        for selected in self.how.selected.iter().filter(|s| s.group != SERVER_GROUP) {
            let database = self.database(&selected.group);
            if matches!(database.as_str(), "local" | "config") || database == mark::NAME {
                return Err(
                    conflict(format!("`{database}` belongs to the server itself"))
                        .hint("give --into another name, or leave it out with --exclude"),
                );
            }
            // Names that differ in case alone are one database to the server.
            match targets.insert(database.to_lowercase(), &selected.group) {
                Some(other) if other != selected.group => {
                    return Err(conflict(format!(
                        "`{other}` and `{}` would both become `{database}`",
                        selected.group
                    ))
                    .hint("give each a name of its own with --into"));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// What stands in a target database, by unit name.
    async fn there(&self, database: &str) -> Result<BTreeMap<String, Collection>> {
        let (found, _) =
            catalogue::collections(&self.connection, database, &Filter::default()).await?;
        Ok(found.into_iter().map(|c| (part(&c.name), c)).collect())
    }

    /// Groups of the selection with their units; nothing for a group that is selected whole.
    fn groups(&self) -> BTreeMap<String, Option<BTreeSet<String>>> {
        let mut groups: BTreeMap<String, Option<BTreeSet<String>>> = BTreeMap::new();
        for selected in self.how.selected.iter().filter(|s| s.group != SERVER_GROUP) {
            let units = groups
                .entry(selected.group.clone())
                .or_insert_with(|| Some(BTreeSet::new()));
            match (&selected.unit, units) {
                (None, units) => *units = None,
                (Some(unit), Some(units)) => {
                    units.insert(unit.clone());
                }
                (Some(_), None) => {}
            }
        }
        groups
    }

    /// Before anything is written: `--existing refuse`, and what cannot be merged.
    async fn refuse_existing(&self) -> Result<()> {
        if self.existing == Existing::Replace {
            return Ok(());
        }
        for (group, units) in self.groups() {
            let database = self.database(&group);
            for (name, there) in self.there(&database).await? {
                if units.as_ref().is_some_and(|units| !units.contains(&name)) {
                    continue;
                }
                if self.existing == Existing::Refuse {
                    return Err(conflict(format!("`{database}` holds `{name}` already")).hint(
                        "repeat with --existing replace or --existing merge, or --into another database",
                    ));
                }
                if there.capped || there.kind == Kind::TimeSeries {
                    let what = if there.capped {
                        "capped"
                    } else {
                        "a time series"
                    };
                    return Err(conflict(format!(
                        "`{}` is {what}: documents in it cannot be replaced one by one",
                        there.full()
                    ))
                    .hint("repeat with --existing replace, or leave it out with --exclude"));
                }
            }
        }
        Ok(())
    }

    /// `--existing replace`: what is selected goes, but for what the backup left out or could not read.
    async fn make_way(&mut self) -> Result<()> {
        for (group, units) in self.groups() {
            self.cx.check_cancelled()?;
            let database = self.database(&group);
            let (mut goes, mut kept) = (Vec::new(), 0);
            for there in catalogue::names(&self.connection, &database).await? {
                let name = part(&there);
                if units.as_ref().is_some_and(|units| !units.contains(&name)) {
                    continue;
                }
                let left_out = !self.filter.takes(&name_of(&group), &there);
                if left_out || self.failed.contains(&(group.clone(), name.clone())) {
                    kept += 1;
                    self.keep(format!("{database}/{name}"));
                } else {
                    goes.push(there);
                }
            }
            if units.is_none()
                && kept == 0
                && self.mark == mark::Where::OwnDatabase
                && database != "admin"
            {
                self.connection
                    .run(&database, Writing::new().int("dropDatabase", 1))
                    .await
                    .map_err(|failure| failure.error.within(format!("dropping `{database}`")))?;
                continue;
            }
            for name in goes {
                self.drop_collection(&database, &name).await?;
            }
        }
        Ok(())
    }

    async fn drop_collection(&self, database: &str, name: &str) -> Result<()> {
        let command = Writing::new().text("drop", name);
        match self.connection.run(database, command).await {
            Ok(_) => Ok(()),
            Err(failure) if failure.code == Some(code::NAMESPACE_NOT_FOUND) => Ok(()),
            Err(failure) => Err(failure
                .error
                .within(format!("dropping `{database}.{name}`"))),
        }
    }

    fn target(&self, made: &Made) -> Target {
        Target {
            connection: self.connection.clone(),
            cx: self.cx.clone(),
            database: made.database.to_string(),
            collection: made.data_name().to_owned(),
            ordered: made.capped,
            raw: made.raw,
            limits: self.limits,
        }
    }

    /// Documents; a collection's indexes follow as soon as it is full.
    async fn documents(&mut self, input: &mut Input) -> Result<()> {
        let members = input.stage(Stage::Data).await?;
        let mut tasks: JoinSet<Result<Done>> = JoinSet::new();
        let empty: Vec<Unit> = self
            .made
            .keys()
            .filter(|unit| self.waits.get(*unit).is_none_or(|waits| *waits == 0))
            .cloned()
            .collect();
        for unit in empty {
            self.build_indexes(&unit, &mut tasks);
        }
        while let Some(member) = members.next().await? {
            let unit = member.unit.clone();
            let body = member.bytes().await?;
            if !self.made.contains_key(&unit) {
                return Err(Error::corrupt(format!(
                    "`{}/{}` has documents and no definition",
                    unit.0, unit.1
                )));
            }
            let written = Written::Member(body.len() as u64);
            self.write(&mut tasks, unit, body, written).await?;
        }
        while let Some(done) = tasks.join_next().await {
            self.done(done, &mut tasks)?;
        }
        Ok(())
    }

    /// Writes whole documents of a collection beside others. Those of a capped one come in their order: this one waits for itself alone.
    async fn write(
        &mut self,
        tasks: &mut JoinSet<Result<Done>>,
        unit: Unit,
        body: Bytes,
        written: Written,
    ) -> Result<()> {
        self.cx.check_cancelled()?;
        while let Some(done) = tasks.try_join_next() {
            self.done(done, tasks)?;
        }
        let Some(made) = self
            .made
            .get(&unit)
            .filter(|_| !self.unusable.contains(&unit))
        else {
            return Ok(());
        };
        let target = self.target(made);
        let ordered = target.ordered;
        let permits = self.permits.clone();
        let insert = async move {
            let _permit = permits
                .acquire_owned()
                .await
                .map_err(|e| bug(e.to_string()))?;
            let inserted = target
                .insert_all(&body)
                .await
                .map_err(|e| within(&target, e))?;
            Ok(Done::Documents(unit, inserted, written))
        };
        if ordered {
            let done = insert.await;
            return self.done(Ok(done), tasks);
        }
        // No more bodies are held than are written.
        while tasks.len() >= self.parallel {
            match tasks.join_next().await {
                Some(done) => self.done(done, tasks)?,
                None => break,
            }
        }
        tasks.spawn(insert);
        Ok(())
    }

    fn done(
        &mut self,
        done: Result<Result<Done>, tokio::task::JoinError>,
        tasks: &mut JoinSet<Result<Done>>,
    ) -> Result<()> {
        match done.map_err(|e| bug(format!("a task ended: {e}")))?? {
            Done::Documents(unit, inserted, written) => {
                match written {
                    Written::Member(bytes) => {
                        self.count(&unit, Stage::Data, inserted.documents, bytes);
                    }
                    Written::Part(bytes) => {
                        self.count_rows(&unit, Stage::Data, inserted.documents, bytes);
                    }
                }
                if inserted.rejected > 0 {
                    let name = format!("{}.{}", self.database(&unit.0), name_of(&unit.1));
                    let named = inserted.why.join("; ");
                    self.fail(
                        &unit,
                        format!(
                            "`{name}`: {} documents were refused: {named}",
                            inserted.rejected
                        ),
                    );
                }
                let full = self.waits.get_mut(&unit).is_some_and(|waits| {
                    *waits = waits.saturating_sub(inserted.documents + inserted.rejected);
                    *waits == 0
                });
                if full {
                    self.build_indexes(&unit, tasks);
                }
            }
            Done::Indexes(unit, refused) => {
                for why in refused {
                    self.fail(&unit, why);
                }
            }
        }
        Ok(())
    }

    /// What the log still changes gets its indexes afterwards: two states of a unique key may lie side by side until then.
    fn build_indexes(&self, unit: &Unit, tasks: &mut JoinSet<Result<Done>>) {
        let Some(made) = self.made.get(unit).filter(|made| made.kind != Kind::View) else {
            return;
        };
        let specifications = indexes::specifications(&made.options, &made.indexes, Which::Lasting);
        if specifications.is_empty() || self.logged.contains(unit) || self.unusable.contains(unit) {
            return;
        }
        let (connection, unit, made) = (self.connection.clone(), unit.clone(), made.clone());
        let permits = self.permits.clone();
        tasks.spawn(async move {
            let _permit = permits
                .acquire_owned()
                .await
                .map_err(|e| bug(e.to_string()))?;
            let refused =
                indexes::build(&connection, &made.database, &made.name, &specifications).await?;
            Ok(Done::Indexes(unit, refused))
        });
    }

    /// What the log adds, then the indexes that waited for it; users and roles.
    async fn finish(&mut self, input: &mut Input) -> Result<()> {
        let members = input.stage(Stage::Finish).await?;
        let mut replays: BTreeMap<Unit, Replay> = BTreeMap::new();
        let (mut users, mut roles) = (Vec::new(), Vec::new());
        while let Some(member) = members.next().await? {
            self.cx.check_cancelled()?;
            let (unit, path) = (member.unit.clone(), member.path.to_string());
            let body = member.bytes().await?;
            if unit.0 == SERVER_GROUP {
                let documents = bson::documents(&body)
                    .map(|d| d.map(<[u8]>::to_vec))
                    .collect::<Result<Vec<_>>>()?;
                self.count(
                    &unit,
                    Stage::Finish,
                    documents.len() as u64,
                    body.len() as u64,
                );
                match path.as_str() {
                    "admin/system.users.bson" => users = documents,
                    "admin/system.roles.bson" => roles = documents,
                    // The form in which users are kept is the target's own.
                    _ => {}
                }
                continue;
            }
            if self.unusable.contains(&unit) {
                continue;
            }
            if !replays.contains_key(&unit) {
                let Some(made) = self.made.get(&unit) else {
                    return Err(Error::corrupt(format!(
                        "`{}/{}` has a log and no definition",
                        unit.0, unit.1
                    )));
                };
                replays.insert(unit.clone(), Replay::new(self.target(made)));
            }
            let Some(replay) = replays.get_mut(&unit) else {
                continue;
            };
            let before = replay.entries;
            let taken = replay.take(&body).await;
            let rows = replay.entries - before;
            match taken {
                Ok(()) => self.count(&unit, Stage::Finish, rows, body.len() as u64),
                Err(error) => self.replay_failed(&unit, error)?,
            }
        }
        for (unit, replay) in replays {
            if !self.unusable.contains(&unit)
                && let Err(error) = replay.finish().await
            {
                self.replay_failed(&unit, error)?;
            }
        }
        self.indexes_of_the_logged().await?;
        self.users(&users, &roles).await
    }

    /// Indexes that waited for what the log still changes.
    async fn indexes_of_the_logged(&mut self) -> Result<()> {
        let waiting: Vec<Unit> = self.logged.drain().collect();
        let mut tasks = JoinSet::new();
        for unit in waiting {
            self.build_indexes(&unit, &mut tasks);
        }
        while let Some(done) = tasks.join_next().await {
            self.done(done, &mut tasks)?;
        }
        Ok(())
    }

    fn replay_failed(&mut self, unit: &Unit, error: Error) -> Result<()> {
        if crate::mongodb::is_the_runs(&error) {
            return Err(error);
        }
        let name = format!("{}.{}", self.database(&unit.0), name_of(&unit.1));
        self.give_up(unit, format!("`{name}`: what was written during the backup could not be taken from its log: {error}"));
        Ok(())
    }

    async fn users(&mut self, users: &[Vec<u8>], roles: &[Vec<u8>]) -> Result<()> {
        if users.is_empty() && roles.is_empty() {
            return Ok(());
        }
        match users::merge(&self.connection, users, roles, self.existing).await? {
            users::Merged::Done => {}
            users::Merged::Not(why) => self.tally.warnings.push(why),
        }
        Ok(())
    }

    /// Last of all: from now on documents go away by themselves.
    async fn expiring_indexes(&mut self) -> Result<()> {
        let expiring: Vec<(Unit, Made, Vec<Vec<u8>>)> = self
            .made
            .iter()
            .filter(|(unit, _)| !self.unusable.contains(*unit))
            .map(|(unit, made)| {
                let specifications =
                    indexes::specifications(&made.options, &made.indexes, Which::Expiring);
                (unit.clone(), made.clone(), specifications)
            })
            .filter(|(_, _, specifications)| !specifications.is_empty())
            .collect();
        for (unit, made, specifications) in expiring {
            for why in indexes::build(
                &self.connection,
                &made.database,
                &made.name,
                &specifications,
            )
            .await?
            {
                self.fail(&unit, why);
            }
        }
        Ok(())
    }
}

fn within(target: &Target, error: Error) -> Error {
    error.within(format!(
        "writing into `{}.{}`",
        target.database, target.collection
    ))
}
