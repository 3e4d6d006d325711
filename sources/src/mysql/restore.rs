//! Putting a server's databases back: definitions first, rows over many connections, then what needs the rows.
//!
//! Statements run as they stand in the archive; only `USE` and the few names of databases in them follow `--into`. Secondary keys of large
//! tables are added after their rows. What the server acknowledges is counted, and each table's definition is compared in the end.

mod finish;
pub(super) mod foreign;
mod local;
mod parents;
mod rows;
mod schema;

use crate::mysql::accounts::Account;
use crate::mysql::catalogue::{Filter, Table, TableKind};
use crate::mysql::connection::{self, Connection, Server, full, ident, quoted};
use crate::mysql::mark;
use crate::mysql::{
    Definer, LAYOUT, Mysql, SERVER_GROUP, catalogue, is_servers_own, name_of, object_unit, part,
};
use bk_core::context::Context;
use bk_core::error::{Error, ErrorKind, Result, conflict, unsupported};
use bk_core::source::{
    Body, Existing, Input, Member, RestoreOptions, Selected, Stage, Tally, UnitCount,
};
use bk_core::unfinished::Unfinished;
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
    input.facts().refuse_newer_layout("the databases", LAYOUT)?;
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
    /// Units that the server refused.
    broken: BTreeSet<(String, String)>,
    /// Where the mark stands.
    mark: mark::Where,
    /// Bytes of rows per unit.
    sizes: HashMap<(String, String), u64>,
    /// Tables that this restore made or keeps, by unit.
    tables: HashMap<(String, String), Made>,
    /// Same family and version as the archive's server: definitions must come back equal.
    same_server: bool,
    /// Accounts that the target had before.
    accounts_here: Option<HashSet<String>>,
    /// Accounts that were left as they are: their grants are left as well.
    skipped_accounts: HashSet<String>,
    /// Definers of the archive that neither the target has nor this restore makes.
    missing_definers: HashSet<String>,
    /// Definers that the archive names.
    definers: Vec<String>,
    /// Rights on routines that were dropped to make way: the server forgets them with the routine.
    routine_rights: Vec<String>,
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
            broken: BTreeSet::new(),
            mark: mark::Where::OwnDatabase,
            sizes: input
                .units(Stage::Data)
                .map(|unit| ((unit.group.clone(), unit.name.clone()), unit.bytes))
                .collect(),
            tables: HashMap::new(),
            same_server,
            accounts_here: None,
            skipped_accounts: HashSet::new(),
            missing_definers: HashSet::new(),
            definers: serde_json::from_value(facts.more["definers"].clone()).unwrap_or_default(),
            routine_rights: Vec::new(),
            server,
            counts: BTreeMap::new(),
            tally: Tally::default(),
        }
    }

    async fn run(&mut self, mut input: Input) -> Result<()> {
        self.refuse_targets()?;
        self.refuse_existing().await?;
        self.refuse_parents_that_do_not_fit(&input).await?;
        self.name_missing_definers().await?;
        self.begin().await?;
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
        self.give_rights_back().await?;
        self.compare_definitions().await?;
        self.name_orphans().await?;
        let left: Vec<_> = self.broken.iter().map(|unit| self.left(unit)).collect();
        mark::finish(&mut self.connection, &self.how.id, &left).await?;
        self.tally.units = self.take_counts();
        Ok(())
    }

    /// The mark, before the first write.
    async fn begin(&mut self) -> Result<()> {
        let selected = self.how.selected.iter();
        let mine = Unfinished {
            id: self.how.id.clone(),
            archive: self.how.archive.clone(),
            selected: selected.map(|s| self.in_target(s)).collect(),
        };
        let databases = mark::databases(&mine.selected);
        self.mark = mark::begin(&mut self.connection, &mine, &databases).await?;
        Ok(())
    }

    fn take_counts(&mut self) -> Vec<UnitCount> {
        std::mem::take(&mut self.counts)
            .into_iter()
            .map(|((group, name, stage), count)| UnitCount {
                group,
                name,
                stage,
                members: count.members,
                rows: count.rows,
                bytes: count.bytes,
            })
            .collect()
    }

    /// Kept on purpose, and named as long as the list is no book.
    fn keep(&mut self, what: String) {
        if self.tally.kept.len() < KEPT_NAMED {
            self.tally.kept.push(what);
        }
    }

    async fn drop_object(&mut self, object: &Object, database: &str) -> Result<()> {
        // Packages are known in this mode only.
        let mode = match object {
            Object::Program(kind, _) if kind.starts_with("PACKAGE") => "ORACLE",
            _ => "",
        };
        self.connection
            .run(format!("SET sql_mode='{mode}'"))
            .await?;
        if let Object::Program(kind, name) = object {
            self.remember_rights(database, kind, name).await;
        }
        self.connection.run(object.drop(database)).await?;
        self.connection.run("SET sql_mode=''").await
    }

    /// Rights that others have on a routine which is about to be dropped. Accounts are not what is restored here, so they keep theirs.
    async fn remember_rights(&mut self, database: &str, kind: &str, name: &str) {
        // Who may not read the rights cannot give them back either.
        let rows = self
            .connection
            .rows(format!(
                "SELECT User, Host, Proc_priv FROM mysql.procs_priv WHERE Db = {} AND Routine_name = {} AND Routine_type = {}",
                quoted(database),
                quoted(name),
                quoted(kind)
            ))
            .await
            .unwrap_or_default();
        for row in rows {
            let (user, host) = (row.word(0), row.word(1));
            let account = Account {
                role: host.is_empty(),
                user,
                host,
            };
            let words = row.word(2).to_uppercase();
            let (option, rights): (Vec<_>, Vec<_>) =
                words.split(',').partition(|word| *word == "GRANT");
            let rights = if rights.is_empty() {
                "USAGE".to_owned()
            } else {
                rights.join(", ")
            };
            let option = if option.is_empty() {
                ""
            } else {
                " WITH GRANT OPTION"
            };
            self.routine_rights.push(format!(
                "GRANT {rights} ON {kind} {} TO {}{option}",
                full(database, name),
                account.sql()
            ));
        }
    }

    /// Gives them back where the routine is there again.
    async fn give_rights_back(&mut self) -> Result<()> {
        for sql in std::mem::take(&mut self.routine_rights) {
            match self.connection.run(sql).await {
                Err(error) if stops(&error) => return Err(error),
                // Not restored, or of another kind now: then nobody has rights on it.
                _ => {}
            }
        }
        Ok(())
    }

    /// The target's database for a group.
    fn database(&self, group: &str) -> String {
        name_of(self.names.get(group).map_or(group, String::as_str))
    }

    /// A table of the archive as it is called in the target, quoted.
    fn full(&self, unit: &(String, String)) -> String {
        full(&self.database(&unit.0), &name_of(&unit.1))
    }

    async fn run_of_script(&mut self, sql: &[u8]) -> Result<()> {
        self.connection
            .run_of_script(sql)
            .await
            .map_err(connection::error)
    }

    /// A unit that did not come whole, as the mark keeps it.
    fn left(&self, unit: &(String, String)) -> Selected {
        self.in_target(&Selected {
            group: unit.0.clone(),
            unit: Some(unit.1.clone()).filter(|name| !name.is_empty()),
        })
    }

    /// A unit that the server refused: it is named, the rest goes on. Where the connection itself is gone, nothing does.
    async fn fail(&mut self, unit: &(String, String), shown: &str, error: Error) -> Result<()> {
        let error = error.within(format!("`{shown}`"));
        if stops(&error) || self.connection.run("DO 0").await.is_err() {
            return Err(error);
        }
        self.tally.failed.push(error.to_string());
        self.broken.insert(unit.clone());
        Ok(())
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

    fn count(&mut self, unit: &(String, String), stage: Stage, rows: u64, bytes: u64) {
        self.counts
            .entry((unit.0.clone(), unit.1.clone(), stage))
            .or_default()
            .add(rows, bytes);
    }

    /// Under another name, a text that names its old database still means that one.
    fn warn_of_old_name(&mut self, group: &str, what: &str, sql: &[u8]) {
        let (old, new) = (name_of(group), self.database(group));
        let word = format!("{}.", ident(&old));
        if old != new && sql.windows(word.len()).any(|w| w == word.as_bytes()) {
            self.tally.warnings.push(format!(
                "{what} in {} still names {}",
                ident(&new),
                ident(&old)
            ));
        }
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

    /// No group is written into a database of the server's own, and no two into one.
    fn refuse_targets(&self) -> Result<()> {
        let mut targets: HashMap<String, &str> = HashMap::new();
        for selected in self.how.selected.iter().filter(|s| s.group != SERVER_GROUP) {
            let database = self.database(&selected.group);
            if is_servers_own(&database) {
                return Err(
                    conflict(format!("{} belongs to the server itself", ident(&database)))
                        .hint("give --into another name, or leave it out with --exclude"),
                );
            }
            let key = if self.server.lower_case_names {
                database.to_lowercase()
            } else {
                database.clone()
            };
            match targets.insert(key, &selected.group) {
                Some(other) if other != selected.group => {
                    return Err(conflict(format!(
                        "`{other}` and `{}` would both become {}",
                        selected.group,
                        ident(&database)
                    ))
                    .hint("give each a name of its own with --into"));
                }
                _ => {}
            }
        }
        Ok(())
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

    /// Before the first write: what runs as somebody whom the target does not know fails as soon as it is used.
    async fn name_missing_definers(&mut self) -> Result<()> {
        let makes_accounts = self.how.selected.iter().any(|s| s.group == SERVER_GROUP);
        if self.definers.is_empty() || makes_accounts {
            return Ok(());
        }
        // Who may not read the accounts cannot know; the server will say so when a view is made.
        let Ok(rows) = self
            .connection
            .rows("SELECT User, Host FROM mysql.user")
            .await
        else {
            return Ok(());
        };
        let here: HashSet<String> = rows
            .iter()
            .map(|row| format!("{}@{}", ident(&row.word(0)), ident(&row.word(1))))
            .collect();
        self.missing_definers = self
            .definers
            .iter()
            .filter(|name| !here.contains(*name))
            .cloned()
            .collect();
        if self.missing_definers.is_empty() {
            return Ok(());
        }
        let mut names: Vec<_> = self.missing_definers.iter().cloned().collect();
        names.sort();
        self.tally.warnings.push(match self.source.settings.definer {
            Definer::Keep => format!(
                "these definers are not accounts of the target, so what runs as them fails until they are: {}; restore the accounts, or set definer = \"current\"",
                names.join(", ")
            ),
            Definer::Current => format!("the restoring account stands in for {}", names.join(", ")),
        });
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
                    self.keep(format!("{database}/{unit}"));
                } else {
                    goes.push(object);
                }
            }
            if whole && kept == 0 && self.mark == mark::Where::OwnDatabase {
                self.connection
                    .run(format!("DROP DATABASE IF EXISTS {}", ident(&database)))
                    .await?;
                continue;
            }
            for object in goes {
                self.drop_object(&object, &database).await?;
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
                format!("DROP {kind} IF EXISTS {}", full(database, name))
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
