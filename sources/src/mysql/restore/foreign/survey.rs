//! The first pass over a script: what it makes, whether it is whole, and what must be known before anything is written.

use crate::mysql::restore::foreign::accounts::GrantTables;
use crate::mysql::restore::foreign::script::Script;
use crate::mysql::statement::{Name, What};
use crate::mysql::{ACCOUNTS_UNIT, SERVER_GROUP, ddl, is_servers_own, mark, object_unit, part};
use bk_core::context::Context;
use bk_core::error::{Error, ErrorKind, Result};
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// What a script holds.
#[derive(Default)]
pub struct Survey {
    /// Every unit that it makes or fills; whether it makes it.
    pub units: BTreeMap<(String, String), bool>,
    /// Databases that it drops before it makes them.
    pub dropped: BTreeSet<String>,
    /// Databases that it makes.
    pub created: BTreeSet<String>,
    /// Unit of each trigger's table.
    pub triggers: HashMap<(String, String), String>,
    /// Whom its views and programs run as.
    pub definers: BTreeSet<String>,
    /// Rows of the server's own tables of accounts.
    pub grants: GrantTables,
    /// Accounts that it makes by statements.
    pub account_statements: bool,
    /// What it says and is not done, with the first line of each.
    pub left_out: BTreeMap<&'static str, u64>,
    /// Groups that it speaks of in any way.
    pub groups: BTreeSet<String>,
    /// Whether it names a database by itself.
    pub names_database: bool,
    /// Where it was cut off, and that was allowed.
    pub cut_off: Vec<String>,
}

/// Whose a statement is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Whose {
    /// A unit's.
    Unit(String, String),
    /// A database's.
    Database(String),
    /// The server's own schema.
    Servers,
    /// Of accounts.
    Accounts,
    /// The session's.
    Session,
}

/// The database that a script named last.
#[derive(Clone, Debug, Default)]
pub struct Place {
    /// Its name in the script.
    pub database: Option<String>,
}

impl Place {
    fn of(&self, name: &Name) -> Option<String> {
        name.database.clone().or_else(|| self.database.clone())
    }

    /// Whose it is; nothing where it needs a database and none was named.
    pub fn whose(&self, what: &What) -> Option<Whose> {
        let unit = |name: &Name, unit: String| {
            let database = self.of(name)?;
            // A mark of ours that lay among the tables when they were dumped is no table.
            Some(if is_servers_own(&database) || name.own == mark::NAME {
                Whose::Servers
            } else {
                Whose::Unit(database, unit)
            })
        };
        let database = |name: &Name| {
            Some(if is_servers_own(&name.own) {
                Whose::Servers
            } else {
                Whose::Database(name.own.clone())
            })
        };
        match what {
            What::Use(name)
            | What::CreateDatabase(name)
            | What::DropDatabase(name)
            | What::AlterDatabase(name) => database(name),
            What::CreateTable(name)
            | What::CreateView(name)
            | What::CreateSequence(name)
            | What::Insert(name)
            | What::AlterTable(name) => unit(name, part(&name.own)),
            What::CreateProgram(kind, name) => unit(name, object_unit(kind, &name.own)),
            What::CreateTrigger(name, table) => unit(
                if table.database.is_some() {
                    table
                } else {
                    name
                },
                part(&table.own),
            ),
            What::Drop(kind, name) => match kind.as_str() {
                "TABLE" | "VIEW" | "SEQUENCE" => unit(name, part(&name.own)),
                "TRIGGER" => unit(name, format!("trigger:{}", name.own)),
                kind => unit(name, object_unit(kind, &name.own)),
            },
            What::Account(_) => Some(Whose::Accounts),
            What::Set | What::Transaction | What::Idle | What::Server(_) | What::Client(_) => {
                Some(Whose::Session)
            }
            What::Other => Some(match &self.database {
                Some(name) if is_servers_own(name) => Whose::Servers,
                Some(name) => Whose::Database(name.clone()),
                None => Whose::Session,
            }),
        }
    }
}

impl Survey {
    /// Reads a whole script. `default` is the database for one that names none; `partial_too` lets through one that was cut off.
    pub async fn read(
        &mut self,
        cx: &Context,
        script: &mut Script,
        default: Option<&str>,
        partial_too: bool,
    ) -> Result<()> {
        let mut place = Place {
            database: default.map(ToOwned::to_owned),
        };
        let mut last = None;
        while let Some((statement, what)) = script.next().await? {
            cx.check_cancelled()?;
            let in_line = |error: Error| error.within(format!("line {}", statement.line));
            let whose = place
                .whose(&what)
                .ok_or_else(|| in_line(without_database()))?;
            self.statement(&statement.sql, &what, &whose, statement.line)
                .map_err(in_line)?;
            if whose == Whose::Servers && !script.is_dump() && !matches!(what, What::Use(_)) {
                let what = "what is in the server's own schemas";
                self.left_out.entry(what).or_insert(statement.line);
            }
            if let (What::Insert(name), Some(database)) = (&what, &place.database)
                && whose == Whose::Servers
                && database.eq_ignore_ascii_case("mysql")
            {
                self.grants.rows(&name.own, &statement.sql);
            }
            if let What::Use(name) = &what {
                place.database = Some(name.own.clone());
            }
            last = Some(whose);
        }
        match script.cut_off() {
            Some(line) if !partial_too => Err(cut_off(line, last.as_ref())),
            Some(line) => {
                self.cut_off.push(format!(
                    "the dump was cut off in line {line}: what stood behind is missing"
                ));
                Ok(())
            }
            None => Ok(()),
        }
    }

    fn statement(&mut self, sql: &[u8], what: &What, whose: &Whose, line: u64) -> Result<()> {
        match what {
            What::Use(name) => self.names_database |= !is_servers_own(&name.own),
            What::CreateDatabase(name) => {
                self.names_database |= !is_servers_own(&name.own);
                self.created.insert(name.own.clone());
            }
            What::DropDatabase(name) => {
                self.dropped.insert(name.own.clone());
            }
            What::CreateTrigger(trigger, table) => {
                if let Whose::Unit(database, _) = whose {
                    let key = (database.clone(), trigger.own.clone());
                    self.triggers.insert(key, part(&table.own));
                }
            }
            What::CreateTable(name) if *whose == Whose::Servers => {
                self.grants.table(&name.own, sql);
            }
            What::Account(_) => self.account_statements = true,
            What::Server(what) => {
                self.left_out.entry(what).or_insert(line);
            }
            What::Client(words) => {
                return Err(Error::new(
                    ErrorKind::Unsupported,
                    format!("`{words}` is a command of the plain client"),
                )
                .hint("take the line out of the script, and restore what it includes by itself"));
            }
            _ => {}
        }
        if let Whose::Unit(database, _) | Whose::Database(database) = whose {
            self.groups.insert(part(database));
        }
        let Whose::Unit(database, unit) = whose else {
            return Ok(());
        };
        if matches!(
            what,
            What::CreateView(_) | What::CreateProgram(..) | What::CreateTrigger(..)
        ) && let Some((definer, _)) = ddl::definer(sql)
        {
            self.definers.insert(definer);
        }
        let makes = matches!(
            what,
            What::CreateTable(_)
                | What::CreateView(_)
                | What::CreateSequence(_)
                | What::CreateProgram(..)
        );
        // A trigger that is dropped says not whose it was.
        if makes || !unit.starts_with("trigger:") {
            *self
                .units
                .entry((part(database), unit.clone()))
                .or_default() |= makes;
        }
        Ok(())
    }

    /// Whether it has accounts of any kind.
    pub fn has_accounts(&self) -> bool {
        self.account_statements || !self.grants.is_empty()
    }

    /// Groups and units that a selection can name.
    pub fn names(&self) -> impl Iterator<Item = (&str, &str)> {
        let accounts = self.has_accounts().then_some((SERVER_GROUP, ACCOUNTS_UNIT));
        self.units
            .keys()
            .map(|(group, unit)| (group.as_str(), unit.as_str()))
            .chain(accounts)
    }
}

fn without_database() -> Error {
    Error::new(
        ErrorKind::Settings,
        "the script names no database for what follows",
    )
    .hint("say into which: --into SOURCE=DATABASE")
}

fn cut_off(line: u64, last: Option<&Whose>) -> Error {
    let at = match last {
        Some(Whose::Unit(database, unit)) => format!(", behind `{database}`.`{unit}`"),
        _ => String::new(),
    };
    Error::corrupt(format!(
        "the dump was cut off in line {line}{at}; nothing was written"
    ))
    .hint("take a whole one, or repeat with --allow-partial to restore what is there")
}
