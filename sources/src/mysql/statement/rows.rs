//! Rows of literals in an INSERT: where each begins and ends.

use super::{Token, Words};

/// Rows of an INSERT that holds nothing but literals.
#[derive(Debug, PartialEq, Eq)]
pub struct Rows {
    /// Up to and with VALUES.
    pub head: usize,
    /// Where each row's bracket opens.
    pub starts: Vec<usize>,
    /// Behind each row's bracket.
    pub ends: Vec<usize>,
}

impl Rows {
    /// Finds them; nothing where a value is more than a literal, or something follows the rows.
    pub fn of(sql: &[u8], no_backslash_escapes: bool) -> Option<Self> {
        let head = values_at(sql)?;
        let mut rows = Self {
            head,
            starts: Vec::new(),
            ends: Vec::new(),
        };
        let mut at = head;
        loop {
            at += blank(&sql[at..]);
            rows.starts.push(at);
            at = behind_row(sql, at, no_backslash_escapes)?;
            rows.ends.push(at);
            at += blank(&sql[at..]);
            match sql.get(at) {
                None => return Some(rows),
                Some(b',') => at += 1,
                Some(_) => return None,
            }
        }
    }

    /// The same rows as statements shorter than `limit`, one row in each at least.
    pub fn pieces<'s>(&'s self, sql: &'s [u8], limit: usize) -> impl Iterator<Item = Vec<u8>> + 's {
        let room = limit.saturating_sub(self.head + 1);
        let mut from = 0;
        std::iter::from_fn(move || {
            let begin = *self.starts.get(from)?;
            from += self.fitting(from, room);
            Some([&sql[..self.head], &sql[begin..self.ends[from - 1]]].concat())
        })
    }

    /// How many rows from this one on take no more than `room` bytes; one at least.
    pub fn fitting(&self, from: usize, room: usize) -> usize {
        let begin = self.starts[from];
        self.ends[from..]
            .partition_point(|end| end - begin <= room)
            .max(1)
    }
}

/// Behind the word VALUES, which follows the table or its columns.
fn values_at(sql: &[u8]) -> Option<usize> {
    let mut words = Words::new(sql);
    let mut depth = 0_u32;
    while let Some(token) = words.next_token() {
        match token {
            Token::Sign(b'(') => depth += 1,
            Token::Sign(b')') => depth = depth.checked_sub(1)?,
            Token::Word(word)
                if depth == 0
                    && (word.eq_ignore_ascii_case("VALUES")
                        || word.eq_ignore_ascii_case("VALUE")) =>
            {
                return Some(words.at);
            }
            Token::Word(word) if word.eq_ignore_ascii_case("SELECT") => return None,
            _ => {}
        }
    }
    None
}

fn blank(bytes: &[u8]) -> usize {
    bytes.iter().take_while(|b| b.is_ascii_whitespace()).count()
}

fn behind_row(sql: &[u8], from: usize, no_backslash_escapes: bool) -> Option<usize> {
    let mut at = from + 1;
    if sql.get(from) != Some(&b'(') {
        return None;
    }
    at += blank(&sql[at..]);
    if sql.get(at) == Some(&b')') {
        return Some(at + 1);
    }
    loop {
        at += blank(&sql[at..]);
        at = behind_literal(sql, at, no_backslash_escapes)?;
        at += blank(&sql[at..]);
        match sql.get(at)? {
            b',' => at += 1,
            b')' => return Some(at + 1),
            _ => return None,
        }
    }
}

/// Behind `'text'`, `_utf8mb4 'text'`, `0x12`, `x'12'`, `b'1'`, `-1.5e3`, `NULL`, `TRUE`, `FALSE` or `DEFAULT`.
fn behind_literal(sql: &[u8], from: usize, no_backslash_escapes: bool) -> Option<usize> {
    let string = |at: usize| {
        let quote = *sql.get(at)?;
        matches!(quote, b'\'' | b'"')
            .then(|| behind_string(sql, at, quote, no_backslash_escapes))
            .flatten()
    };
    if let Some(end) = string(from) {
        return Some(end);
    }
    let word = sql[from..]
        .iter()
        .take_while(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-' | b'+'))
        .count();
    let text = &sql[from..from + word];
    let behind = from + word;
    match text.first()? {
        b'_' => string(behind + blank(&sql[behind..])),
        b'x' | b'X' | b'b' | b'B' | b'n' | b'N' if text.len() == 1 => string(behind),
        b'0'..=b'9' | b'-' | b'+' | b'.' => Some(behind),
        _ => ["NULL", "TRUE", "FALSE", "DEFAULT"]
            .iter()
            .any(|known| text.eq_ignore_ascii_case(known.as_bytes()))
            .then_some(behind),
    }
}

fn behind_string(sql: &[u8], from: usize, quote: u8, no_backslash_escapes: bool) -> Option<usize> {
    let mut at = from + 1;
    loop {
        match *sql.get(at)? {
            b'\\' if !no_backslash_escapes => at += 2,
            b if b == quote => {
                if sql.get(at + 1) != Some(&quote) {
                    return Some(at + 1);
                }
                at += 2;
            }
            _ => at += 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_cut_into_statements_that_fit() {
        let sql = b"INSERT INTO t VALUES (1),(22),(333),(4)";
        let rows = Rows::of(sql, false).unwrap();
        let pieces: Vec<_> = rows
            .pieces(sql, 29)
            .map(|piece| String::from_utf8(piece).unwrap())
            .collect();
        assert_eq!(
            pieces,
            [
                "INSERT INTO t VALUES(1),(22)",
                "INSERT INTO t VALUES(333)",
                "INSERT INTO t VALUES(4)"
            ]
        );
    }

    #[test]
    fn rows_of_literals_are_found_and_anything_else_is_not() {
        let count = |sql: &str| Rows::of(sql.as_bytes(), false).map(|rows| rows.starts.len());
        assert_eq!(
            count("INSERT INTO `t` VALUES (1,'a\\'),(',NULL),\n(-1.5e3, _binary 'x', 0xAB)"),
            Some(2)
        );
        assert_eq!(
            count("INSERT INTO t (`a`,b) VALUES (x'00',\"it\"\"s\",DEFAULT);"),
            None
        );
        assert_eq!(count("INSERT INTO t VALUES (NOW())"), None);
        assert_eq!(count("INSERT INTO t SELECT 1"), None);
        assert_eq!(
            count("INSERT INTO t VALUES (1) ON DUPLICATE KEY UPDATE a=1"),
            None
        );
        assert_eq!(
            Rows::of(b"INSERT INTO t VALUES ('\\'),('b')", true).map(|rows| rows.starts.len()),
            Some(2)
        );
    }
}
