//! Tables of the target that are not restored, but point to tables that are.
//!
//! Such a parent is dropped and made again, since no server swaps one under its children. What would no longer fit is refused before
//! anything is written; rows that point to nothing afterwards are named.

use super::schema::is_index;
use super::{Restoring, body_of};
use crate::mysql::catalogue;
use crate::mysql::connection::{full, ident};
use crate::mysql::lexer::{CreateTable, Splitter, behind_quote, quoted_names};
use crate::mysql::name_of;
use bk_core::error::{Error, ErrorKind, Result, conflict};
use bk_core::source::{Existing, Input, Stage};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

/// A foreign key of a table that is not restored.
struct ForeignKey {
    child: (String, String),
    parent: (String, String),
    columns: Vec<Pair>,
}

/// A column of the child, and the one that it points to.
struct Pair {
    own: String,
    other: String,
}

impl ForeignKey {
    /// How many rows of the child point to nothing.
    fn orphans(&self) -> String {
        let join = |word: &str, each: &dyn Fn(&Pair) -> String| {
            self.columns.iter().map(each).collect::<Vec<_>>().join(word)
        };
        format!(
            "SELECT COUNT(*) FROM {} c WHERE {} AND NOT EXISTS (SELECT 1 FROM {} p WHERE {})",
            full(&self.child.0, &self.child.1),
            join(" AND ", &|pair| format!(
                "c.{} IS NOT NULL",
                ident(&pair.own)
            )),
            full(&self.parent.0, &self.parent.1),
            join(" AND ", &|pair| format!(
                "p.{} = c.{}",
                ident(&pair.other),
                ident(&pair.own)
            ))
        )
    }
}

impl Restoring<'_> {
    /// Foreign keys into these databases.
    async fn foreign_keys(&mut self, schemas: BTreeSet<String>) -> Result<Vec<ForeignKey>> {
        if schemas.is_empty() {
            return Ok(Vec::new());
        }
        let list = catalogue::list(&schemas.into_iter().collect::<Vec<_>>());
        let rows = self
            .connection
            .rows(format!(
                "SELECT CONSTRAINT_NAME, TABLE_SCHEMA, TABLE_NAME, COLUMN_NAME, REFERENCED_TABLE_SCHEMA, REFERENCED_TABLE_NAME, REFERENCED_COLUMN_NAME \
                 FROM information_schema.KEY_COLUMN_USAGE WHERE REFERENCED_TABLE_SCHEMA IN ({list}) ORDER BY TABLE_SCHEMA, TABLE_NAME, CONSTRAINT_NAME, ORDINAL_POSITION"
            ))
            .await?;
        let mut keys: BTreeMap<(String, String, String), ForeignKey> = BTreeMap::new();
        for row in rows {
            let child = (row.word(1), row.word(2));
            let key = keys
                .entry((child.0.clone(), child.1.clone(), row.word(0)))
                .or_insert_with(|| ForeignKey {
                    child,
                    parent: (row.word(4), row.word(5)),
                    columns: Vec::new(),
                });
            key.columns.push(Pair {
                own: row.word(3),
                other: row.word(6),
            });
        }
        Ok(keys.into_values().collect())
    }

    /// Tables that this restore did not write may point to rows that are gone now.
    pub(super) async fn name_orphans(&mut self) -> Result<()> {
        let ours: HashSet<(String, String)> = self
            .tables
            .keys()
            .filter(|unit| !self.broken.contains(*unit))
            .map(|unit| (self.database(&unit.0), name_of(&unit.1)))
            .collect();
        let schemas = ours.iter().map(|(database, _)| database.clone()).collect();
        for key in self.foreign_keys(schemas).await? {
            if ours.contains(&key.child) || !ours.contains(&key.parent) {
                continue;
            }
            let orphans = self
                .connection
                .value(key.orphans())
                .await?
                .unwrap_or_default();
            if orphans != "0" {
                self.tally.failed.push(format!(
                    "{orphans} rows of {} point to rows of {} that are not in the archive",
                    full(&key.child.0, &key.child.1),
                    full(&key.parent.0, &key.parent.1)
                ));
            }
        }
        Ok(())
    }

    /// Before the first write: a parent of the archive whose columns or keys its children in the target could not point to.
    pub(super) async fn refuse_parents_that_do_not_fit(&mut self, input: &Input) -> Result<()> {
        if self.existing != Existing::Replace {
            return Ok(());
        }
        let selected: HashMap<(String, String), (String, String)> = input
            .units(Stage::Schema)
            .filter(|unit| !unit.name.is_empty())
            .map(|unit| {
                let unit = (unit.group.clone(), unit.name.clone());
                ((self.database(&unit.0), name_of(&unit.1)), unit)
            })
            .collect();
        let whole: HashSet<String> = self
            .how
            .selected
            .iter()
            .filter(|s| s.unit.is_none())
            .map(|s| self.database(&s.group))
            .collect();
        let schemas = selected
            .keys()
            .map(|(database, _)| database.clone())
            .collect();
        // What lies in a database that is replaced whole goes with its parent.
        let keys: Vec<ForeignKey> = self
            .foreign_keys(schemas)
            .await?
            .into_iter()
            .filter(|key| {
                selected.contains_key(&key.parent)
                    && !selected.contains_key(&key.child)
                    && !whole.contains(&key.child.0)
            })
            .collect();
        if keys.is_empty() {
            return Ok(());
        }
        let wanted: HashSet<(String, String)> = keys
            .iter()
            .filter_map(|key| selected.get(&key.parent).cloned())
            .collect();
        let archived = archived_tables(input, &wanted).await?;
        for key in &keys {
            let Some(table) = selected
                .get(&key.parent)
                .and_then(|unit| archived.get(unit))
            else {
                continue;
            };
            if let Some(why) = self.misfit(key, table).await? {
                return Err(conflict(format!(
                    "{} points to {}, which could not be replaced under it: {why}; nothing was written",
                    full(&key.child.0, &key.child.1),
                    full(&key.parent.0, &key.parent.1),
                ))
                .hint("restore both, or all of the database; or --into another database"));
            }
        }
        Ok(())
    }

    /// Why a foreign key of the target could not point to the archive's table.
    async fn misfit(&mut self, key: &ForeignKey, parent: &CreateTable) -> Result<Option<String>> {
        let child = full(&key.child.0, &key.child.1);
        let shown = self
            .connection
            .row(format!("SHOW CREATE TABLE {child}"))
            .await?
            .ok_or_else(|| Error::new(ErrorKind::NotFound, format!("{child} is gone")))?;
        let Some(child) = CreateTable::parse(shown.bytes(1).unwrap_or_default()) else {
            return Ok(None);
        };
        for pair in &key.columns {
            let Some(there) = Column::of(parent, &pair.other) else {
                return Ok(Some(format!(
                    "it has no column {} in the archive",
                    ident(&pair.other)
                )));
            };
            if let Some(here) = Column::of(&child, &pair.own)
                && !here.fits(&there)
            {
                return Ok(Some(format!(
                    "its column {} is {there} in the archive, and {} is {here}",
                    ident(&pair.other),
                    ident(&pair.own)
                )));
            }
        }
        let others: Vec<&str> = key.columns.iter().map(|pair| pair.other.as_str()).collect();
        let has_key = parent.clauses.iter().any(|clause| {
            let names = quoted_names(clause);
            let skipped = usize::from(!clause.starts_with(b"PRIMARY KEY"));
            let is_key = is_index(clause);
            is_key
                && names
                    .iter()
                    .skip(skipped)
                    .take(others.len())
                    .eq(others.iter())
        });
        Ok((!has_key).then(|| format!("it has no key on {} in the archive", others.join(", "))))
    }
}

/// The archive's definitions of these tables.
async fn archived_tables(
    input: &Input,
    wanted: &HashSet<(String, String)>,
) -> Result<HashMap<(String, String), CreateTable>> {
    let mut found = HashMap::new();
    let members = input.look(Stage::Schema).await?;
    while let Some(member) = members.next().await? {
        let unit = member.unit.clone();
        if !wanted.contains(&unit) {
            continue;
        }
        let body = body_of(member).await?;
        for statement in Splitter::all(&body)? {
            if statement.sql.starts_with(b"CREATE ")
                && let Some(table) = CreateTable::parse(&statement.sql)
            {
                found.insert(unit.clone(), table);
            }
        }
    }
    Ok(found)
}

/// What of a column must be the same on both sides of a foreign key: the servers' manuals, "FOREIGN KEY Constraints". Lengths of strings
/// may differ, and so may the width that integers are shown with.
#[derive(Debug)]
struct Column {
    kind: String,
    unsigned: bool,
    collation: Option<String>,
}

impl std::fmt::Display for Column {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let unsigned = if self.unsigned { " unsigned" } else { "" };
        let collation = self.collation.as_deref().map(|name| format!(" {name}"));
        write!(
            f,
            "{}{unsigned}{}",
            self.kind,
            collation.unwrap_or_default()
        )
    }
}

impl Column {
    fn fits(&self, other: &Self) -> bool {
        // A character set that is named alone has its default collation, whatever that is.
        let beneath =
            |a: &str, b: &str| a == b || a.strip_prefix(b).is_some_and(|r| r.starts_with('_'));
        let collation = match (&self.collation, &other.collation) {
            (Some(a), Some(b)) => beneath(a, b) || beneath(b, a),
            _ => true,
        };
        self.kind == other.kind && self.unsigned == other.unsigned && collation
    }

    fn of(table: &CreateTable, name: &str) -> Option<Self> {
        let clause = table.clauses.iter().find(|clause| {
            clause.starts_with(b"`") && quoted_names(clause).first().is_some_and(|n| n == name)
        })?;
        let text =
            String::from_utf8_lossy(&clause[behind_quote(clause, 0, b'`')? + 1..]).into_owned();
        let text = text.trim_start();
        let kind: String = text
            .chars()
            .take_while(char::is_ascii_alphanumeric)
            .collect();
        let is_text =
            kind.ends_with("char") || kind.ends_with("text") || kind == "enum" || kind == "set";
        let exact = matches!(kind.as_str(), "decimal" | "binary");
        let length: String = if exact {
            text[kind.len()..]
                .chars()
                .take_while(|c| *c != ' ')
                .collect()
        } else {
            String::new()
        };
        let tail = String::from_utf8_lossy(&table.tail).into_owned();
        Some(Self {
            unsigned: text.contains(" unsigned"),
            collation: is_text
                .then(|| collation(text).or_else(|| collation(&tail)))
                .flatten(),
            kind: kind + &length,
        })
    }
}

/// The collation that a definition names, or its character set where it names that alone.
fn collation(text: &str) -> Option<String> {
    ["COLLATE ", "COLLATE=", "CHARACTER SET ", "CHARSET="]
        .iter()
        .find_map(|word| text.split_once(word))
        .map(|(_, rest)| {
            rest.chars()
                .take_while(|c| c.is_ascii_alphanumeric() || *c == '_')
                .collect()
        })
}
