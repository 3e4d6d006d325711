//! SQL as far as one must read it to cut it: statements out of a script as the plain client cuts them, clauses out of a CREATE TABLE.
//!
//! Bytes, not characters: quotes and backslashes are ASCII in every character set that a script can be in. A delimiter counts outside of
//! quotes and plain comments, also inside `/*! */`; `--` begins a comment only before white space.

use bk_core::error::{Error, ErrorKind, Result};

/// A statement that is longer than this is refused.
const STATEMENT_MAX_BYTES: usize = 1 << 30;

/// Cuts a script, piece by piece, into statements.
#[derive(Debug)]
pub struct Splitter {
    buffer: Vec<u8>,
    /// Where the statement begins that is scanned.
    from: usize,
    /// Up to where the buffer was scanned, and in what.
    at: usize,
    state: State,
    delimiter: Vec<u8>,
    line_start: bool,
    /// Line of the next byte that is scanned, from 1.
    line: u64,
    statement_line: u64,
    /// `NO_BACKSLASH_ESCAPES` is on in the session.
    pub no_backslash_escapes: bool,
    ended: bool,
    /// The last statement had no delimiter behind it.
    unterminated: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Plain,
    Quote(u8),
    LineComment,
    BlockComment,
}

/// A statement, and the line on which it begins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Statement {
    /// Without its delimiter.
    pub sql: Vec<u8>,
    /// From 1.
    pub line: u64,
}

impl Default for Splitter {
    fn default() -> Self {
        Self {
            buffer: Vec::new(),
            from: 0,
            at: 0,
            state: State::Plain,
            delimiter: b";".to_vec(),
            line_start: true,
            line: 1,
            statement_line: 1,
            no_backslash_escapes: false,
            ended: false,
            unterminated: false,
        }
    }
}

/// Result of a look at one byte: go on with so many more, or wait for the next piece.
enum Step {
    Over(usize),
    Wait,
    /// A statement ends here; so many bytes of delimiter follow.
    Statement(usize),
}

impl Splitter {
    /// All statements of a script that is at hand.
    pub fn all(script: &[u8]) -> Result<Vec<Statement>> {
        let mut splitter = Self::default();
        splitter.push(script)?;
        splitter.end();
        let mut statements = Vec::new();
        while let Some(statement) = splitter.next_statement()? {
            // A routine that was made without backslash escapes is read without them, as the session says before it.
            if statement.sql.starts_with(b"SET ") {
                splitter.follow_mode(&statement.sql);
            }
            statements.push(statement);
        }
        Ok(statements)
    }

    /// The next piece.
    pub fn push(&mut self, piece: &[u8]) -> Result<()> {
        self.buffer.drain(..self.from);
        self.at -= self.from;
        self.from = 0;
        if self.buffer.len() + piece.len() > STATEMENT_MAX_BYTES {
            return Err(Error::new(
                ErrorKind::Unsupported,
                format!(
                    "the statement in line {} is longer than 1 GiB",
                    self.statement_line
                ),
            ));
        }
        self.buffer.extend_from_slice(piece);
        Ok(())
    }

    /// Nothing follows: what is left is the last statement.
    pub fn end(&mut self) {
        self.ended = true;
    }

    /// The next whole statement; nothing until another piece comes, or at the end.
    pub fn next_statement(&mut self) -> Result<Option<Statement>> {
        loop {
            if self.at >= self.buffer.len() {
                return Ok(self.ended.then(|| self.rest()).flatten());
            }
            match self.step()? {
                Step::Over(bytes) => self.advance(bytes),
                Step::Wait => return Ok(None),
                Step::Statement(delimiter) => {
                    let sql = self.cut(delimiter);
                    if has_words(&sql) {
                        return Ok(Some(self.statement(sql)));
                    }
                }
            }
        }
    }

    /// A mode that the script sets counts from the next statement on, as it does for the client.
    pub fn follow_mode(&mut self, sql: &[u8]) {
        const NAME: &[u8] = b"SQL_MODE";
        let upper = sql.to_ascii_uppercase();
        let mut from = 0;
        while let Some(at) = find(&upper[from..], NAME) {
            let (before, behind) = (&upper[..from + at], &upper[from + at + NAME.len()..]);
            // `@OLD_SQL_MODE=@@SQL_MODE` reads it only.
            let own_name = !before.ends_with(b"_");
            if own_name && behind.trim_ascii_start().starts_with(b"=") {
                self.no_backslash_escapes = find(&upper, b"NO_BACKSLASH_ESCAPES").is_some();
            }
            from += at + NAME.len();
        }
    }

    /// Whether what was read so far ends inside of quotes or of a comment.
    pub fn is_open(&self) -> bool {
        matches!(self.state, State::Quote(_) | State::BlockComment)
    }

    /// The line that was reached, from 1.
    pub fn line(&self) -> u64 {
        self.line
    }

    /// Whether the last statement had no delimiter behind it.
    pub fn is_unterminated(&self) -> bool {
        self.unterminated
    }

    fn advance(&mut self, bytes: usize) {
        let to = (self.at + bytes).min(self.buffer.len());
        let over = &self.buffer[self.at..to];
        self.line += over.split(|b| *b == b'\n').count() as u64 - 1;
        if let Some(at) = over.iter().rposition(|b| *b == b'\n') {
            self.line_start = is_blank(&over[at + 1..]);
        } else if !over.is_empty() {
            self.line_start = self.line_start && is_blank(over);
        }
        self.at = to;
    }

    /// Takes the statement before the delimiter.
    fn cut(&mut self, delimiter: usize) -> Vec<u8> {
        let sql = self.buffer[self.from..self.at].to_vec();
        self.at += delimiter;
        self.from = self.at;
        self.line_start = false;
        sql
    }

    /// What was scanned of the statement.
    fn so_far(&self) -> &[u8] {
        &self.buffer[self.from..self.at]
    }

    fn statement(&mut self, sql: Vec<u8>) -> Statement {
        let lead = sql.iter().take_while(|b| b.is_ascii_whitespace()).count();
        let breaks = |bytes: &[u8]| bytes.split(|b| *b == b'\n').count() as u64 - 1;
        let line = self.line - breaks(&sql[lead..]);
        self.statement_line = self.line;
        Statement {
            sql: sql.trim_ascii().to_vec(),
            line,
        }
    }

    fn rest(&mut self) -> Option<Statement> {
        let sql = self.buffer.split_off(self.from);
        self.buffer.clear();
        (self.from, self.at) = (0, 0);
        self.unterminated = has_words(&sql);
        self.unterminated.then(|| self.statement(sql))
    }

    fn step(&mut self) -> Result<Step> {
        let rest = &self.buffer[self.at..];
        let wait_or = |step| if self.ended { step } else { Step::Wait };
        Ok(match self.state {
            State::Quote(quote) => {
                let plain = rest
                    .iter()
                    .take_while(|b| **b != quote && **b != b'\\')
                    .count();
                match rest.get(plain) {
                    None => Step::Over(plain),
                    Some(b'\\') if quote == b'`' || self.no_backslash_escapes => {
                        Step::Over(plain + 1)
                    }
                    Some(b'\\') if plain + 1 == rest.len() => {
                        if plain > 0 {
                            Step::Over(plain)
                        } else {
                            wait_or(Step::Over(1))
                        }
                    }
                    Some(b'\\') => Step::Over(plain + 2),
                    // A doubled quote ends one string and begins the next: the same for cutting.
                    Some(_) => {
                        self.state = State::Plain;
                        Step::Over(plain + 1)
                    }
                }
            }
            State::LineComment => {
                let plain = rest.iter().take_while(|b| **b != b'\n').count();
                if plain < rest.len() {
                    self.state = State::Plain;
                }
                Step::Over(plain.max(1))
            }
            State::BlockComment => match find(rest, b"*/") {
                Some(at) => {
                    self.state = State::Plain;
                    Step::Over(at + 2)
                }
                None if rest.len() > 1 => Step::Over(rest.len() - 1),
                None => wait_or(Step::Over(1)),
            },
            State::Plain => return self.plain(),
        })
    }

    fn plain(&mut self) -> Result<Step> {
        if self.line_start {
            let rest = &self.buffer[self.at..];
            if matches!(rest[0], b' ' | b'\t') {
                return Ok(Step::Over(1));
            }
            if !has_words(self.so_far()) {
                if may_be(rest, b"delimiter") {
                    return self.delimiter_line();
                }
                if let Some(step) = self.clients_line() {
                    return Ok(step);
                }
            }
        }
        let rest = &self.buffer[self.at..];
        let wait_or = |step| if self.ended { step } else { Step::Wait };
        if rest.starts_with(&self.delimiter) {
            return Ok(Step::Statement(self.delimiter.len()));
        }
        if self.delimiter.starts_with(rest) {
            return Ok(wait_or(Step::Over(1)));
        }
        Ok(match rest[0] {
            quote @ (b'\'' | b'"' | b'`') => {
                self.state = State::Quote(quote);
                Step::Over(1)
            }
            b'#' => {
                self.state = State::LineComment;
                Step::Over(1)
            }
            b'-' if rest.len() < 3 && !self.ended => Step::Wait,
            b'-' if rest.get(1) == Some(&b'-') && rest.get(2).is_none_or(|b| *b <= b' ') => {
                self.state = State::LineComment;
                Step::Over(2)
            }
            b'/' if rest.len() < 4 && !self.ended => Step::Wait,
            // What stands in `/*! */` and `/*M! */` runs, and a delimiter in it counts.
            b'/' if rest.get(1) == Some(&b'*')
                && rest.get(2) != Some(&b'!')
                && !rest[2..].starts_with(b"M!") =>
            {
                self.state = State::BlockComment;
                Step::Over(2)
            }
            _ => {
                let first = self.delimiter[0];
                let plain = rest[1..]
                    .iter()
                    .take_while(|b| {
                        !matches!(**b, b'\'' | b'"' | b'`' | b'#' | b'-' | b'/' | b'\n')
                            && **b != first
                    })
                    .count();
                // Behind a line end a `DELIMITER` may stand.
                Step::Over(1 + if rest[0] == b'\n' { 0 } else { plain })
            }
        })
    }

    /// How far it is to the end of the line, if that is here.
    fn line_end(&self) -> Option<usize> {
        let rest = &self.buffer[self.at..];
        let end = rest.iter().position(|b| *b == b'\n');
        end.or(self.ended.then_some(rest.len()))
    }

    /// `DELIMITER x` belongs to the client: it is never sent.
    fn delimiter_line(&mut self) -> Result<Step> {
        let rest = &self.buffer[self.at..];
        let Some(end) = self.line_end() else {
            return Ok(Step::Wait);
        };
        let line = &rest[..end];
        let is_command = line.len() > 9
            && line[..9].eq_ignore_ascii_case(b"delimiter")
            && line[9].is_ascii_whitespace();
        if !is_command {
            return Ok(Step::Over(1));
        }
        let word: Vec<u8> = line[9..]
            .trim_ascii_start()
            .iter()
            .copied()
            .take_while(|b| !b.is_ascii_whitespace())
            .collect();
        if word.is_empty() {
            return Err(Error::new(
                ErrorKind::Unsupported,
                format!("DELIMITER in line {} names none", self.line),
            ));
        }
        self.delimiter = word;
        self.advance(end);
        self.from = self.at;
        Ok(Step::Over(0))
    }

    /// What the client takes out of a line by itself where a statement begins: `--` without white space is a comment there, and
    /// `USE x` needs no delimiter.
    fn clients_line(&mut self) -> Option<Step> {
        let rest = &self.buffer[self.at..];
        let comment = rest.starts_with(b"--") && rest.get(2).is_some_and(|b| *b > b' ');
        let maybe_use = may_be(rest, b"use");
        if !comment && !maybe_use {
            return None;
        }
        let Some(end) = self.line_end() else {
            return Some(Step::Wait);
        };
        let line = &rest[..end];
        if comment {
            self.advance(end);
            self.from = self.at;
            return Some(Step::Over(0));
        }
        let is_use = line.get(3).is_some_and(u8::is_ascii_whitespace)
            && line[..3].eq_ignore_ascii_case(b"use")
            && find(line, &self.delimiter).is_none();
        is_use.then(|| {
            self.advance(end);
            Step::Statement(0)
        })
    }
}

fn is_blank(bytes: &[u8]) -> bool {
    bytes.iter().all(|b| matches!(b, b' ' | b'\t'))
}

/// Whether bytes at the start of a line begin with this word, or may once more of them are there.
fn may_be(rest: &[u8], word: &[u8]) -> bool {
    let len = rest.len().min(word.len());
    rest[..len].eq_ignore_ascii_case(&word[..len])
}

/// Where bytes stand in others.
pub fn find(bytes: &[u8], what: &[u8]) -> Option<usize> {
    bytes.windows(what.len()).position(|window| window == what)
}

/// Whether there is more than white space and plain comments: a statement of nothing else is an error at the server.
pub fn has_words(sql: &[u8]) -> bool {
    let mut rest = sql.trim_ascii_start();
    loop {
        let skipped = match rest {
            [] => return false,
            [b'#', ..] => rest.iter().position(|b| *b == b'\n'),
            [b'-', b'-', next, ..] if *next <= b' ' => rest.iter().position(|b| *b == b'\n'),
            [b'-', b'-'] => None,
            [b'/', b'*', b'!', ..] | [b'/', b'*', b'M', b'!', ..] => return true,
            [b'/', b'*', ..] => find(&rest[2..], b"*/").map(|at| at + 3),
            _ => return true,
        };
        match skipped {
            None => return false,
            Some(at) => rest = rest[at + 1..].trim_ascii_start(),
        }
    }
}

/// A CREATE TABLE in parts: up to its bracket, the clauses between the brackets, what follows.
#[derive(Debug, PartialEq, Eq)]
pub struct CreateTable {
    /// `CREATE TABLE … (`.
    pub head: Vec<u8>,
    /// Columns, keys and constraints, without white space around them.
    pub clauses: Vec<Vec<u8>>,
    /// `) ENGINE=…`.
    pub tail: Vec<u8>,
}

impl CreateTable {
    /// Cuts one.
    pub fn parse(sql: &[u8]) -> Option<Self> {
        let mut depth = 0_u32;
        let mut from = 0;
        let mut open = None;
        let mut clauses = Vec::new();
        let mut at = 0;
        while at < sql.len() {
            match sql[at] {
                quote @ (b'\'' | b'"' | b'`') => at = behind_quote(sql, at, quote)?,
                b'(' => {
                    depth += 1;
                    if depth == 1 {
                        open = Some(at);
                        from = at + 1;
                    }
                }
                b',' if depth == 1 => {
                    clauses.push(sql[from..at].trim_ascii().to_vec());
                    from = at + 1;
                }
                b')' => {
                    depth = depth.checked_sub(1)?;
                    if depth == 0 {
                        clauses.push(sql[from..at].trim_ascii().to_vec());
                        return Some(Self {
                            head: sql[..=open?].to_vec(),
                            clauses,
                            tail: sql[at..].to_vec(),
                        });
                    }
                }
                _ => {}
            }
            at += 1;
        }
        None
    }

    /// Columns that have the table's own collation without having been given it. MySQL prints it for them, and takes it for given when it
    /// reads it: the table that is made would print `CHARACTER SET` besides. Without the words the column inherits again.
    pub fn inherit_collation(&mut self) {
        const TABLE: &[u8] = b" COLLATE=";
        let Some(at) = find(&self.tail, TABLE) else {
            return;
        };
        let name = self.tail[at + TABLE.len()..]
            .iter()
            .take_while(|b| b.is_ascii_alphanumeric() || **b == b'_');
        let words = [b" COLLATE ", &name.copied().collect::<Vec<_>>()[..]].concat();
        for clause in self
            .clauses
            .iter_mut()
            .filter(|clause| clause.starts_with(b"`"))
        {
            let Some(from) = outside_quotes(clause, &words) else {
                continue;
            };
            let behind = from + words.len();
            let whole = clause.get(behind).is_none_or(|b| *b == b' ');
            if whole && outside_quotes(clause, b" CHARACTER SET ").is_none() {
                clause.drain(from..behind);
            }
        }
    }

    /// Puts it together again.
    pub fn text(&self) -> Vec<u8> {
        let mut out = self.head.clone();
        out.extend_from_slice(b"\n  ");
        out.extend_from_slice(&self.clauses.join(&b",\n  "[..]));
        out.push(b'\n');
        out.extend_from_slice(&self.tail);
        out
    }
}

/// Whether a clause is a foreign key.
pub fn is_foreign_key(clause: &[u8]) -> bool {
    if clause.starts_with(b"FOREIGN KEY") {
        return true;
    }
    let Some(rest) = clause.strip_prefix(b"CONSTRAINT ") else {
        return false;
    };
    let end = if rest.first() == Some(&b'`') {
        behind_quote(rest, 0, b'`').map(|at| at + 1)
    } else {
        rest.iter().position(|b| *b == b' ')
    };
    end.is_some_and(|at| rest[at..].trim_ascii_start().starts_with(b"FOREIGN KEY"))
}

/// The names in backticks of a clause, in order, unquoted.
pub fn quoted_names(clause: &[u8]) -> Vec<String> {
    let mut names = Vec::new();
    let mut at = 0;
    while at < clause.len() {
        match clause[at] {
            b'`' => {
                let Some(end) = behind_quote(clause, at, b'`') else {
                    return names;
                };
                names.push(String::from_utf8_lossy(&clause[at + 1..end]).replace("``", "`"));
                at = end;
            }
            quote @ (b'\'' | b'"') => match behind_quote(clause, at, quote) {
                Some(end) => at = end,
                None => return names,
            },
            _ => {}
        }
        at += 1;
    }
    names
}

/// Where a word stands outside of all quotes.
pub fn outside_quotes(text: &[u8], word: &[u8]) -> Option<usize> {
    let mut at = 0;
    while at < text.len() {
        match text[at] {
            quote @ (b'\'' | b'"' | b'`') => at = behind_quote(text, at, quote)?,
            _ if text[at..].starts_with(word) => return Some(at),
            _ => {}
        }
        at += 1;
    }
    None
}

/// Place of the closing quote; a doubled one does not close.
pub fn behind_quote(sql: &[u8], from: usize, quote: u8) -> Option<usize> {
    let mut at = from + 1;
    while at < sql.len() {
        match sql[at] {
            b'\\' if quote != b'`' => at += 1,
            b if b == quote => {
                if sql.get(at + 1) != Some(&quote) {
                    return Some(at);
                }
                at += 1;
            }
            _ => {}
        }
        at += 1;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cut(script: &str) -> Vec<String> {
        let whole: Vec<_> = Splitter::all(script.as_bytes())
            .unwrap()
            .into_iter()
            .map(|s| String::from_utf8(s.sql).unwrap())
            .collect();
        // Byte by byte it must come out the same.
        let mut splitter = Splitter::default();
        let mut pieces = Vec::new();
        for byte in script.as_bytes() {
            splitter.push(&[*byte]).unwrap();
            while let Some(s) = splitter.next_statement().unwrap() {
                pieces.push(String::from_utf8(s.sql).unwrap());
            }
        }
        splitter.end();
        while let Some(s) = splitter.next_statement().unwrap() {
            pieces.push(String::from_utf8(s.sql).unwrap());
        }
        assert_eq!(whole, pieces, "of {script:?}");
        whole
    }

    #[test]
    fn statements_are_cut_as_the_plain_client_cuts_them() {
        assert_eq!(cut("a;b ;\nc"), ["a", "b", "c"]);
        assert_eq!(
            cut("select ';' , \";\", `;`; x"),
            ["select ';' , \";\", `;`", "x"]
        );
        assert_eq!(cut("s 'a\\';b'; t 'it''s;'"), ["s 'a\\';b'", "t 'it''s;'"]);
        assert_eq!(
            cut("select 5--1; -- a; b\n# c;\n/* d; */ e"),
            ["select 5--1", "-- a; b\n# c;\n/* d; */ e"]
        );
        assert_eq!(cut("-- only words\n;/* no */;x"), ["x"]);
        assert_eq!(
            cut("/*!50003 a */;/*M!100 b */;"),
            ["/*!50003 a */", "/*M!100 b */"]
        );
        assert_eq!(
            cut("DELIMITER ;;\nCREATE x BEGIN a; b; END ;;\ndelimiter ;\nc;"),
            ["CREATE x BEGIN a; b; END", "c"]
        );
        assert_eq!(
            cut("DELIMITER //\nselect 1/2 //\nDELIMITER ;\n"),
            ["select 1/2"]
        );
        assert_eq!(cut("select `a\\`; b"), ["select `a\\`", "b"]);
        assert_eq!(
            cut("use shop\nCREATE TABLE t;\n use b ; c"),
            ["use shop", "CREATE TABLE t", "use b", "c"]
        );
        assert_eq!(
            cut("  DELIMITER //\na; b//\n\tdelimiter ;\nc;"),
            ["a; b", "c"]
        );
        assert_eq!(cut("--it's a comment\n------\na;"), ["a"]);
        assert_eq!(cut("a\n--b;"), ["a\n--b"]);
    }

    #[test]
    fn a_create_table_is_cut_into_clauses_whatever_its_names_hold() {
        let sql = b"CREATE TABLE `a,(b` (\n  `x` int COMMENT 'a,\\')(',\n  `y` enum('a''b','c)') DEFAULT 'c)',\n  PRIMARY KEY (`x`,`y`),\n  CONSTRAINT `f,1` FOREIGN KEY (`x`) REFERENCES `o`.`p` (`q`)\n) ENGINE=InnoDB COMMENT='x)('";
        let table = CreateTable::parse(sql).unwrap();
        assert_eq!(table.clauses.len(), 4);
        assert!(is_foreign_key(&table.clauses[3]) && !is_foreign_key(&table.clauses[2]));
        assert_eq!(table.text(), sql);
        assert_eq!(quoted_names(&table.clauses[3]), ["f,1", "x", "o", "p", "q"]);
    }
}
