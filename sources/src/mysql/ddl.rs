//! Statements that make things again: what SHOW CREATE says, with the session that it must run in.
//!
//! Never from `information_schema`, which mangles 4-byte characters. Each text is followed by the settings under which it was made, since a
//! routine's meaning depends on its SQL mode and its character set.

use crate::mysql::catalogue::{Named, Table};
use crate::mysql::connection::{Cells, Connection, full, ident, quoted};
use crate::mysql::lexer::{CreateTable, behind_quote, is_foreign_key, outside_quotes};
use bk_core::error::{Error, ErrorKind, Result};
use std::fmt::Write;

/// What every member begins with.
pub const PREAMBLE: &str = "SET NAMES utf8mb4;\nSET time_zone='+00:00', sql_mode='NO_AUTO_VALUE_ON_ZERO,ALLOW_INVALID_DATES', foreign_key_checks=0, unique_checks=0, sql_notes=0;\n";
/// What a table's rows need besides.
pub const DATA_PREAMBLE: &str = "/*M!100200 SET check_constraint_checks=0 */;\n";
/// Rows of the past keep their own times.
pub const HISTORY_PREAMBLE: &str = "/*M!101100 SET system_versioning_insert_history=1 */;\n";
/// A server that adds a key of its own to tables without one must not: the table would differ.
const NO_GENERATED_KEY: &str = "/*!80030 SET @bk=IF(@@sql_generate_invisible_primary_key,'SET SESSION sql_generate_invisible_primary_key=0','DO 0') */;\n/*!80030 PREPARE bk FROM @bk */;\n/*!80030 EXECUTE bk */;\n";

/// `USE`.
pub fn use_database(database: &str) -> String {
    format!("USE {};\n", ident(database))
}

/// The database itself.
pub async fn database(connection: &mut Connection, name: &str) -> Result<Vec<u8>> {
    let create = created(
        connection,
        &format!("SHOW CREATE DATABASE IF NOT EXISTS {}", ident(name)),
        1,
        &format!("database {}", ident(name)),
    )
    .await?;
    Ok([PREAMBLE.as_bytes(), &create, b";\n"].concat())
}

/// A table in two parts: without its foreign keys, and the statement that adds them.
pub struct TableText {
    /// As SHOW CREATE TABLE says it.
    pub shown: Vec<u8>,
    /// The member that makes the table.
    pub schema: Vec<u8>,
    /// The member that adds its foreign keys, if it has any.
    pub foreign_keys: Option<Vec<u8>>,
}

/// A table.
pub async fn table(connection: &mut Connection, table: &Table) -> Result<TableText> {
    let shown = show_create_table(connection, table).await?;
    let unreadable = || {
        Error::new(
            ErrorKind::Unsupported,
            format!(
                "the server's CREATE TABLE for {} cannot be read",
                table.full()
            ),
        )
    };
    let begin = [PREAMBLE, &use_database(&table.database)].concat();
    let Some(mut parts) = CreateTable::parse(&shown) else {
        return Err(unreadable());
    };
    let (foreign, own): (Vec<_>, Vec<_>) = parts
        .clauses
        .into_iter()
        .partition(|clause| is_foreign_key(clause));
    parts.clauses = own;
    parts.inherit_collation();
    if table.engine == "ARCHIVE" {
        // Its counter moves by itself, and refuses numbers below it.
        parts.tail = without_counter_in(&parts.tail);
    }
    let schema = [
        begin.as_bytes(),
        NO_GENERATED_KEY.as_bytes(),
        &parts.text(),
        b";\n",
    ]
    .concat();
    let foreign_keys = (!foreign.is_empty()).then(|| {
        let adds: Vec<_> = foreign
            .iter()
            .map(|clause| [b"ADD ", &clause[..]].concat())
            .collect();
        let alter = format!("ALTER TABLE {}\n  ", ident(&table.name));
        // A key on columns that are not unique was allowed when it was made.
        let lenient = "/*!80400 SET SESSION restrict_fk_on_non_standard_key=OFF */;\n";
        [
            begin.as_bytes(),
            lenient.as_bytes(),
            alter.as_bytes(),
            &adds.join(&b",\n  "[..]),
            b";\n",
        ]
        .concat()
    });
    Ok(TableText {
        shown,
        schema,
        foreign_keys,
    })
}

/// SHOW CREATE TABLE.
pub async fn show_create_table(connection: &mut Connection, table: &Table) -> Result<Vec<u8>> {
    created(
        connection,
        &format!("SHOW CREATE TABLE {}", table.full()),
        1,
        &format!("table {}", table.full()),
    )
    .await
}

/// The same text without the counter that every insert moves.
pub fn without_counter(shown: &[u8]) -> Vec<u8> {
    let tail = CreateTable::parse(shown).map_or(0, |parts| shown.len() - parts.tail.len());
    [&shown[..tail], &without_counter_in(&shown[tail..])].concat()
}

fn without_counter_in(options: &[u8]) -> Vec<u8> {
    const WORD: &[u8] = b" AUTO_INCREMENT=";
    let Some(from) = options.windows(WORD.len()).position(|w| w == WORD) else {
        return options.to_vec();
    };
    let behind = &options[from + WORD.len()..];
    let digits = behind.iter().take_while(|b| b.is_ascii_digit()).count();
    [&options[..from], &behind[digits..]].concat()
}

/// A sequence and where it stands.
pub async fn sequence(
    connection: &mut Connection,
    table: &Table,
    value: Option<&(String, String)>,
) -> Result<Vec<u8>> {
    let create = created(
        connection,
        &format!("SHOW CREATE SEQUENCE {}", table.full()),
        1,
        &format!("sequence {}", table.full()),
    )
    .await?;
    let mut text = [
        PREAMBLE.as_bytes(),
        use_database(&table.database).as_bytes(),
        &create,
        b";\n",
    ]
    .concat();
    if let Some((next, cycles)) = value {
        text.extend_from_slice(
            format!("DO SETVAL({},{next},0,{cycles});\n", ident(&table.name)).as_bytes(),
        );
    }
    Ok(text)
}

/// A view, made again under the character set in which it was written.
pub async fn view(connection: &mut Connection, table: &Table) -> Result<Vec<u8>> {
    connection
        .run(format!("USE {}", ident(&table.database)))
        .await?;
    let row = shown(
        connection,
        &format!("SHOW CREATE VIEW {}", ident(&table.name)),
        &format!("view {}", table.full()),
    )
    .await?;
    let create = text_of(&row, 1, &format!("view {}", table.full()))?;
    let session = format!(
        "SET character_set_client={}, collation_connection={};\n",
        row.word(2),
        row.word(3)
    );
    Ok([
        PREAMBLE.as_bytes(),
        use_database(&table.database).as_bytes(),
        session.as_bytes(),
        &create,
        b";\n",
    ]
    .concat())
}

/// A routine, package, trigger or event.
pub async fn program(connection: &mut Connection, named: &Named) -> Result<Vec<u8>> {
    connection
        .run(format!("USE {}", ident(&named.database)))
        .await?;
    let what = format!(
        "{} {}",
        named.kind.to_lowercase(),
        full(&named.database, &named.name)
    );
    let row = shown(
        connection,
        &format!("SHOW CREATE {} {}", named.kind, ident(&named.name)),
        &what,
    )
    .await?;
    // Name, SQL mode, (time zone of an event,) text, client's character set, connection's collation, database's collation.
    let event = named.kind == "EVENT";
    let shift = usize::from(event);
    let create = text_of(&row, 2 + shift, &what)?;
    let mut session = format!(
        "SET character_set_client={}, collation_connection={}, sql_mode={}",
        row.word(3 + shift),
        row.word(4 + shift),
        quoted(&row.word(1))
    );
    if event {
        let _ = write!(session, ", time_zone={}", quoted(&row.word(2)));
    }
    session += ";\n";
    let (before, after) = collation_around(connection, named, &row.word(5 + shift)).await?;
    let delimiter = delimiter_for(&create);
    Ok([
        PREAMBLE.as_bytes(),
        use_database(&named.database).as_bytes(),
        before.as_bytes(),
        session.as_bytes(),
        format!("DELIMITER {delimiter}\n").as_bytes(),
        &create,
        format!("\n{delimiter}\nDELIMITER ;\n").as_bytes(),
        after.as_bytes(),
    ]
    .concat())
}

/// Parameters without a character set have the database's of the day they were made; it may have changed since.
async fn collation_around(
    connection: &mut Connection,
    named: &Named,
    then: &str,
) -> Result<(String, String)> {
    let now = connection
        .value("SELECT @@collation_database")
        .await?
        .unwrap_or_default();
    if then.is_empty() || then == now {
        return Ok((String::new(), String::new()));
    }
    let alter = |collation: &str| {
        format!(
            "ALTER DATABASE {} COLLATE {collation};\n",
            ident(&named.database)
        )
    };
    Ok((alter(then), alter(&now)))
}

/// Whom a view, routine, trigger or event runs as, as `` `user`@`host` ``, and where that stands in the text.
pub fn definer(text: &[u8]) -> Option<(String, std::ops::Range<usize>)> {
    const WORD: &[u8] = b"DEFINER=";
    let from = outside_quotes(text, WORD)? + WORD.len();
    let user = behind_quote(text, from, *text.get(from)?)?;
    let host = text.get(user + 1..user + 3).filter(|at| at[0] == b'@')?[1];
    let end = behind_quote(text, user + 2, host)? + 1;
    Some((
        String::from_utf8_lossy(&text[from..end]).into_owned(),
        from..end,
    ))
}

/// A delimiter that the text does not hold.
fn delimiter_for(text: &[u8]) -> String {
    let mut delimiter = ";;".to_owned();
    while text
        .windows(delimiter.len())
        .any(|w| w == delimiter.as_bytes())
    {
        delimiter.push(if delimiter.len().is_multiple_of(2) {
            '$'
        } else {
            ';'
        });
    }
    delimiter
}

async fn shown(connection: &mut Connection, sql: &str, what: &str) -> Result<Cells> {
    connection
        .row(sql)
        .await
        .map_err(|error| error.within(what))?
        .ok_or_else(|| Error::new(ErrorKind::NotFound, format!("{what} is gone")))
}

async fn created(
    connection: &mut Connection,
    sql: &str,
    column: usize,
    what: &str,
) -> Result<Vec<u8>> {
    let row = shown(connection, sql, what).await?;
    text_of(&row, column, what)
}

/// A text that is NULL is a right that is missing, never nothing.
fn text_of(row: &Cells, column: usize, what: &str) -> Result<Vec<u8>> {
    row.bytes(column).map(<[u8]>::to_vec).ok_or_else(|| {
        Error::new(
            ErrorKind::Denied,
            format!("the server does not show the text of {what}"),
        )
        .hint("bk check names the rights that are missing")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_definer_is_found_where_it_stands() {
        let text =
            b"SET NAMES x;\nCREATE DEFINER=`a``b`@`10.%` VIEW `v` AS select 'DEFINER=`x`@`y`'";
        let (definer, range) = definer(text).unwrap();
        assert_eq!(definer, "`a``b`@`10.%`");
        assert_eq!(&text[range.end..range.end + 5], b" VIEW");
        assert!(super::definer(b"select 'DEFINER=`x`@`y`'").is_none());
    }

    #[test]
    fn the_counter_is_left_out_and_a_comment_that_speaks_of_it_is_not() {
        let shown = b"CREATE TABLE `t` (\n  `a` int COMMENT ' AUTO_INCREMENT=5'\n) ENGINE=InnoDB AUTO_INCREMENT=42 DEFAULT CHARSET=utf8mb4";
        let without = String::from_utf8(without_counter(shown)).unwrap();
        assert!(
            without.contains("' AUTO_INCREMENT=5'")
                && without.ends_with("ENGINE=InnoDB DEFAULT CHARSET=utf8mb4"),
            "{without}"
        );
    }
}
