//! INSERT segments turned into `LOAD DATA LOCAL` on their way: what the literals of our own segments say, without the quotes.
//!
//! Every escape that a segment uses means the same to LOAD DATA. What it takes differently (ENUM's error value, a negative zero, history)
//! goes by INSERT. LOCAL turns errors into warnings, so records, skipped and warnings are checked; the caller falls back to INSERT.

use crate::mysql::connection::{Connection, ident, number_of};
use crate::mysql::lexer::{CreateTable, Statement, behind_quote, outside_quotes, quoted_names};
use crate::mysql::wire;
use std::collections::HashMap;

/// What a column's field becomes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Via {
    /// The bytes as they are.
    Plain,
    /// The number of a member of ENUM.
    Enum,
    /// The numbers of members of SET.
    Set,
    /// Text of a type that takes no bytes.
    Convert,
}

/// How the columns of a table are loaded; nothing for tables whose rows go by INSERT.
pub fn columns(table: &CreateTable) -> Option<HashMap<String, Via>> {
    let tail = String::from_utf8_lossy(&table.tail);
    // Only where a statement is there whole or not at all, and never where rows have times of their own.
    if !tail.contains("ENGINE=InnoDB") || tail.contains("WITH SYSTEM VERSIONING") {
        return None;
    }
    let mut columns = HashMap::new();
    for clause in table
        .clauses
        .iter()
        .filter(|clause| clause.starts_with(b"`"))
    {
        let end = behind_quote(clause, 0, b'`')?;
        let name = quoted_names(&clause[..=end]).pop()?;
        let kind = clause[end + 1..].trim_ascii_start();
        let via = if kind.starts_with(b"enum(") {
            Via::Enum
        } else if kind.starts_with(b"set(") {
            Via::Set
        } else if [&b"json"[..], b"uuid", b"inet4", b"inet6"]
            .iter()
            .any(|word| kind.starts_with(word))
        {
            Via::Convert
        } else {
            Via::Plain
        };
        columns.insert(name, via);
    }
    Some(columns)
}

/// A segment as LOAD DATA takes it.
#[derive(Debug, PartialEq, Eq)]
pub struct Load {
    /// The statement.
    pub sql: String,
    /// Its data.
    pub data: Vec<u8>,
    /// Rows in it.
    pub rows: u64,
}

/// Turns the INSERT statements of a segment into one load; nothing where one of its values must go by INSERT.
pub fn transcode(statements: &[Statement], columns: &HashMap<String, Via>) -> Option<Load> {
    let mut load: Option<Load> = None;
    let mut vias = Vec::new();
    let inserts = statements
        .iter()
        .filter(|s| s.sql.starts_with(b"INSERT INTO "));
    for statement in inserts {
        let sql = &statement.sql[..];
        let head = outside_quotes(sql, b") VALUES")?;
        let load = match &mut load {
            Some(load) => load,
            none => {
                let mut names = quoted_names(&sql[..head]).into_iter();
                let table = names.next()?;
                let names: Vec<String> = names.collect();
                vias = names
                    .iter()
                    .map(|name| columns.get(name).copied())
                    .collect::<Option<Vec<_>>>()?;
                if vias.is_empty() {
                    return None;
                }
                none.insert(Load {
                    sql: statement_for(&table, &names, &vias),
                    data: Vec::with_capacity(statements.iter().map(|s| s.sql.len()).sum()),
                    rows: 0,
                })
            }
        };
        load.rows += rows(&sql[head + b") VALUES".len()..], &vias, &mut load.data)?;
    }
    load
}

fn statement_for(table: &str, names: &[String], vias: &[Via]) -> String {
    let mut fields = Vec::new();
    let mut sets = Vec::new();
    for (n, (name, via)) in names.iter().zip(vias).enumerate() {
        match via {
            Via::Plain => fields.push(ident(name)),
            Via::Enum | Via::Set => {
                fields.push(format!("@bk{n}"));
                sets.push(format!("{}=CAST(@bk{n} AS UNSIGNED)", ident(name)));
            }
            Via::Convert => {
                fields.push(format!("@bk{n}"));
                sets.push(format!("{}=CONVERT(@bk{n} USING utf8mb4)", ident(name)));
            }
        }
    }
    let set = if sets.is_empty() {
        String::new()
    } else {
        format!(" SET {}", sets.join(","))
    };
    format!(
        "LOAD DATA LOCAL INFILE 'bk' INTO TABLE {} CHARACTER SET binary FIELDS TERMINATED BY '\\t' ESCAPED BY '\\\\' LINES TERMINATED BY '\\n' ({}){set}",
        ident(table),
        fields.join(",")
    )
}

/// Rows of literals to lines of fields.
fn rows(mut rest: &[u8], vias: &[Via], out: &mut Vec<u8>) -> Option<u64> {
    let mut count = 0;
    rest = rest.trim_ascii();
    loop {
        rest = rest.strip_prefix(b"(")?;
        for (n, via) in vias.iter().enumerate() {
            if n > 0 {
                rest = rest.strip_prefix(b",")?;
                out.push(b'\t');
            }
            rest = cell(rest, *via, out)?;
        }
        rest = rest.strip_prefix(b")")?;
        out.push(b'\n');
        count += 1;
        match rest {
            [] => return Some(count),
            [b',', more @ ..] => rest = more.trim_ascii_start(),
            _ => return None,
        }
    }
}

/// One literal; what follows it.
fn cell<'a>(rest: &'a [u8], via: Via, out: &mut Vec<u8>) -> Option<&'a [u8]> {
    let rest = rest.strip_prefix(b"_binary").unwrap_or(rest);
    if rest.first() == Some(&b'\'') {
        let mut at = 1;
        loop {
            match *rest.get(at)? {
                b'\'' => break,
                b'\\' => at += 2,
                _ => at += 1,
            }
        }
        out.extend_from_slice(&rest[1..at]);
        return Some(&rest[at + 1..]);
    }
    let len = rest.iter().position(|b| matches!(b, b',' | b')'))?;
    let word = &rest[..len];
    match word {
        b"NULL" => out.extend_from_slice(b"\\N"),
        b"-0e0" => return None,
        b"0" if via == Via::Enum => return None,
        [b'0', b'x', digits @ ..] => {
            for pair in digits.chunks_exact(2) {
                let byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
                match byte {
                    0 => out.extend_from_slice(b"\\0"),
                    b'\t' | b'\n' | b'\\' => out.extend_from_slice(&[
                        b'\\',
                        match byte {
                            b'\t' => b't',
                            b'\n' => b'n',
                            other => other,
                        },
                    ]),
                    other => out.push(other),
                }
            }
        }
        _ => out.extend_from_slice(word),
    }
    Some(&rest[len..])
}

/// Loads it. The rows that the server took; nothing when it took them otherwise than they are, and they were taken back.
pub async fn run(connection: &mut Connection, load: Load) -> wire::Result<Option<u64>> {
    connection.run_counted(b"START TRANSACTION").await?;
    let told = connection
        .conn
        .ask_with(load.sql.as_bytes(), Some(&load.data))
        .await?;
    if told.warnings == 0
        && number_of(&told.info, "Records: ") == Some(load.rows)
        && number_of(&told.info, "Skipped: ") == Some(0)
    {
        connection.run_counted(b"COMMIT").await?;
        return Ok(Some(load.rows));
    }
    connection.run_counted(b"ROLLBACK").await?;
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mysql::lexer::Splitter;

    fn table() -> HashMap<String, Via> {
        let sql = b"CREATE TABLE `t` (\n  `a` int,\n  `e` enum('x'),\n  `j` json,\n  `b` bit(9)\n) ENGINE=InnoDB";
        columns(&CreateTable::parse(sql).unwrap()).unwrap()
    }

    #[test]
    fn literals_become_fields() {
        let script = b"USE `d`;\nINSERT INTO `t` (`a`,`e`,`j`,`b`) VALUES\n(1,1,'{\\'a\\':\\n1,2)}',0x0009),\n(NULL,NULL,_binary'(\\\\',NULL);\nINSERT INTO `t` (`a`,`e`,`j`,`b`) VALUES\n(-2.5e3,2,'',0x5c61);\n";
        let load = transcode(&Splitter::all(script).unwrap(), &table()).unwrap();
        assert_eq!(load.rows, 3);
        assert_eq!(
            String::from_utf8(load.data).unwrap(),
            "1\t1\t{\\'a\\':\\n1,2)}\t\\0\\t\n\\N\t\\N\t(\\\\\t\\N\n-2.5e3\t2\t\t\\\\a\n"
        );
        assert!(
            load.sql.ends_with(
                "(`a`,@bk1,@bk2,`b`) SET `e`=CAST(@bk1 AS UNSIGNED),`j`=CONVERT(@bk2 USING utf8mb4)"
            ),
            "{}",
            load.sql
        );
    }

    #[test]
    fn what_load_data_takes_otherwise_goes_by_insert() {
        for value in [
            "(1,0,NULL,NULL)",
            "(-0e0,1,NULL,NULL)",
            "(1,1,NOW(),NULL)",
            "(1,1)",
        ] {
            let script = format!("INSERT INTO `t` (`a`,`e`,`j`,`b`) VALUES\n{value};\n");
            assert_eq!(
                transcode(&Splitter::all(script.as_bytes()).unwrap(), &table()),
                None,
                "{value}"
            );
        }
    }
}
