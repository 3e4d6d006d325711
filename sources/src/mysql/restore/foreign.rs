//! Dumps that others made: what mysqldump and mariadb-dump write, as a file, in Tutor's archives, compressed or not.
//!
//! The first pass reads the whole script and writes nothing: a dump that was cut off, a selection that matches nothing, a target that
//! must not be touched are found there. The second sends it as the plain client would, with two differences: rows go over several
//! connections where the script is a dump, and what belongs to the server and not to its databases does not run. A statement that the
//! server refuses fails its unit by name, and the rest goes on.

mod accounts;
mod loaders;
mod replay;
mod script;
mod survey;

use crate::mysql::connection::{self, Server, ident};
use crate::mysql::restore::{Restoring, mark};
use crate::mysql::{ACCOUNTS_UNIT, Mysql, SERVER_GROUP, name_of, part};
use bk_core::context::Context;
use bk_core::error::{Error, ErrorKind, Result, conflict, unsupported};
use bk_core::selector::Matched;
use bk_core::source::{
    Candidate, Claim, Existing, Input, Kind, RestoreOptions, Selected, Stage, Tally,
};
use script::Script;
use std::collections::{BTreeMap, BTreeSet};
use survey::Survey;

/// Other databases' dumps are SQL too.
const OTHERS: [&[u8]; 3] = [
    b"PostgreSQL database",
    b"PRAGMA foreign_keys",
    b"-- CockroachDB",
];

/// A lone script, or a member that is one.
pub fn claim(what: &Candidate) -> Vec<Claim> {
    let path = what.path.to_string().to_lowercase();
    let plain = [".gz", ".xz", ".zst"]
        .iter()
        .find_map(|suffix| path.strip_suffix(suffix))
        .unwrap_or(&path);
    let is_sql = plain.strip_suffix(".sql").is_some();
    let head = &what.head;
    let holds = |word: &[u8]| crate::mysql::lexer::find(head, word).is_some();
    let is_script = what.kind == Kind::File && is_sql && !OTHERS.iter().any(|word| holds(word));
    if !is_script {
        return Vec::new();
    }
    [Stage::Schema, Stage::Data]
        .into_iter()
        .map(|stage| Claim {
            stage,
            unit: None,
            path: what.path.clone(),
            unpacked: true,
            left_out: false,
        })
        .collect()
}

pub async fn restore(
    source: &Mysql,
    cx: &Context,
    mut input: Input,
    how: &RestoreOptions,
) -> Result<Tally> {
    if how.existing == Some(Existing::Merge) {
        return Err(unsupported("rows of a dump cannot be merged into tables: it does not say by what")
            .hint("repeat with --existing replace or refuse, or --into another database and copy from there"));
    }
    let default = how.into_place.as_ref().map(|p| p.display().to_string());
    let mut survey = Survey::default();
    let members = input.stage(Stage::Schema).await?;
    while let Some(member) = members.next().await? {
        let shown = member.path.to_string();
        let mut script = Script::of(member);
        survey
            .read(cx, &mut script, default.as_deref(), how.partial_too)
            .await
            .map_err(|e| e.within(format!("`{shown}`")))?;
    }
    if let Some(place) = default.as_ref().filter(|_| survey.names_database) {
        return Err(conflict(format!(
            "the script names its databases itself, so `--into {}={place}` would not move them",
            cx.instance
        ))
        .hint(format!(
            "give each its new name: --into {}/DATABASE=NEW",
            cx.instance
        )));
    }
    let chosen = Chosen::of(&survey, cx, how)?;
    let how = RestoreOptions {
        selected: chosen.selected(),
        ..how.clone()
    };
    let mut connection = source.access.connect(cx).await?;
    let server = Server::ask(&mut connection).await?;
    let mut restoring = Restoring::new(source, cx, &how, server, connection, &input);
    restoring.definers = survey.definers.iter().cloned().collect();
    let done = restoring.foreign(input, &survey, &chosen, default).await;
    restoring.connection.end().await;
    done?;
    Ok(restoring.tally)
}

/// What of a script is restored.
struct Chosen {
    units: BTreeSet<(String, String)>,
    /// Groups of which every unit is.
    whole: BTreeSet<String>,
    accounts: bool,
}

impl Chosen {
    /// A selector that matches nothing in the script is an error.
    fn of(survey: &Survey, cx: &Context, how: &RestoreOptions) -> Result<Self> {
        let mut matched = Matched::new(&how.selection);
        let mut units = BTreeSet::new();
        let mut left_out = BTreeSet::new();
        for (group, unit) in survey.names() {
            matched.see(&cx.instance, group, unit);
            if how.selection.takes(&cx.instance, group, unit) {
                units.insert((group.to_owned(), unit.to_owned()));
            } else {
                left_out.insert(group.to_owned());
            }
        }
        matched.finish()?;
        for (group, _) in &how.into_group {
            if !units.iter().any(|(of, _)| of == group) {
                return Err(Error::new(
                    ErrorKind::NotFound,
                    format!(
                        "`--into {}/{group}=…`: the script has no such database, or it is not among what is restored",
                        cx.instance
                    ),
                ));
            }
        }
        let whole = survey
            .groups
            .iter()
            .filter(|group| {
                !left_out.contains(*group) && how.selection.takes_group(&cx.instance, group)
            })
            .cloned()
            .collect();
        let accounts = units.remove(&(SERVER_GROUP.to_owned(), ACCOUNTS_UNIT.to_owned()));
        Ok(Self {
            units,
            whole,
            accounts,
        })
    }

    fn selected(&self) -> Vec<Selected> {
        let units = self.units.iter().map(|(group, unit)| Selected {
            group: group.clone(),
            unit: Some(unit.clone()),
        });
        let accounts = self.accounts.then(|| Selected {
            group: SERVER_GROUP.into(),
            unit: Some(ACCOUNTS_UNIT.into()),
        });
        units.chain(accounts).collect()
    }

    /// Whether anything of a database is.
    fn has_database(&self, database: &str) -> bool {
        let group = part(database);
        self.whole.contains(&group) || self.units.iter().any(|(of, _)| *of == group)
    }

    fn has_unit(&self, database: &str, unit: &str) -> bool {
        self.units.contains(&(part(database), unit.to_owned()))
    }
}

impl Restoring<'_> {
    async fn foreign(
        &mut self,
        mut input: Input,
        survey: &Survey,
        chosen: &Chosen,
        default: Option<String>,
    ) -> Result<()> {
        self.refuse_targets()?;
        if self.existing == Existing::Refuse {
            self.refuse_existing().await?;
            self.refuse_to_drop(survey, chosen).await?;
        }
        self.name_missing_definers().await?;
        self.begin().await?;
        self.connection.run("SET foreign_key_checks=0").await?;
        let statements = survey.grants.statements();
        if chosen.accounts {
            self.tally.warnings.extend(statements.warnings);
            let first = statements.first.iter().map(|sql| sql.trim().as_bytes());
            self.accounts(first).await?;
        }
        self.make_way_for(survey, chosen).await?;
        if let Some(database) = &default {
            let name = ident(database);
            self.connection
                .run(format!("CREATE DATABASE IF NOT EXISTS {name}"))
                .await?;
        }
        let failed = self
            .replay(&mut input, survey, chosen, default.as_deref())
            .await?;
        if chosen.accounts {
            self.grants_of_parts(&statements.grants).await?;
        }
        self.give_rights_back().await?;
        self.tally.failed.extend(survey.cut_off.iter().cloned());
        self.name_left_out(survey);
        self.name_orphans().await?;
        let failed: Vec<_> = failed.iter().map(|s| self.in_target(s)).collect();
        mark::finish(&mut self.connection, &self.how.id, &failed).await?;
        self.tally.units = self.take_counts();
        Ok(())
    }

    /// `--existing refuse`: a database that the script drops must hold nothing.
    async fn refuse_to_drop(&mut self, survey: &Survey, chosen: &Chosen) -> Result<()> {
        for name in &survey.dropped {
            let group = part(name);
            if !chosen.whole.contains(&group) {
                continue;
            }
            let database = self.database(&group);
            if let Some(there) = self.objects(&database).await?.keys().next() {
                return Err(conflict(format!(
                    "the script drops {}, which holds `{there}`",
                    ident(&database)
                ))
                .hint("repeat with --existing replace, or --into another database"));
            }
        }
        Ok(())
    }

    /// What the script makes goes first; what it does not name stays, unless the script drops the whole database itself.
    async fn make_way_for(&mut self, survey: &Survey, chosen: &Chosen) -> Result<()> {
        let mut groups: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
        for (group, unit) in &chosen.units {
            let makes = survey.units.get(&(group.clone(), unit.clone()));
            if makes == Some(&true) {
                groups.entry(group).or_default().insert(unit);
            }
        }
        for (group, units) in groups {
            self.cx.check_cancelled()?;
            let database = self.database(group);
            let goes_whole = chosen.whole.contains(group)
                && survey.dropped.contains(&name_of(group))
                && self.mark == mark::Where::OwnDatabase;
            if goes_whole {
                // The script says so itself, and makes it again.
                continue;
            }
            let is_whole = chosen.whole.contains(group) && survey.created.contains(&name_of(group));
            for (unit, object) in self.objects(&database).await? {
                if units.contains(unit.as_str()) {
                    self.drop_object(&object, &database).await?;
                } else if is_whole {
                    self.keep(format!("{database}/{unit}"));
                }
            }
        }
        Ok(())
    }

    /// Rights on tables, columns and routines, which must be there first.
    async fn grants_of_parts(&mut self, grants: &[String]) -> Result<()> {
        for sql in grants {
            let (label, sql) = crate::mysql::accounts::labelled(sql.as_bytes());
            if label.is_some_and(|label| self.skipped_accounts.contains(&label)) {
                continue;
            }
            if let Err(error) = self.connection.run_of_script(sql).await {
                let shown = String::from_utf8_lossy(sql).into_owned();
                self.tally
                    .failed
                    .push(format!("`{shown}`: {}", connection::error(error)));
            }
        }
        Ok(())
    }

    fn name_left_out(&mut self, survey: &Survey) {
        for (what, line) in &survey.left_out {
            self.tally.warnings.push(format!(
                "{what} is not restored; the script speaks of it in line {line}"
            ));
        }
        // A dump without --routines has them as rows of the server's own table only.
        for (database, name) in survey.grants.programs() {
            let group = part(&database);
            let known = survey.names().any(|(of, unit)| {
                of == group && unit.split_once(':').is_some_and(|(_, n)| n == part(&name))
            });
            let servers = crate::mysql::is_servers_own(&database);
            if !known && !servers {
                self.tally.failed.push(format!("{}.{} stands in the dump as a row of the server's own table only: dump it again with --routines --events", ident(&database), ident(&name)));
            }
        }
    }
}
