//! What a statement of a script does, as far as its replay must know: whose it is, and whether it runs at all.
//!
//! Only the first words of a statement are read. The marks of comments that run (`/*!50003 … */`) are passed over, what is in them counts.

mod rows;

use crate::mysql::lexer::{behind_quote, find};
pub use rows::Rows;
use std::ops::Range;

/// A name as it stands in a statement.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Name {
    /// The database, where it is named.
    pub database: Option<String>,
    /// The thing's own.
    pub own: String,
    /// Where the database's name stands, or the name of a database itself.
    pub at: Range<usize>,
}

/// What a statement does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    /// Names the database for what follows.
    Use(Name),
    /// CREATE DATABASE.
    CreateDatabase(Name),
    /// DROP DATABASE.
    DropDatabase(Name),
    /// ALTER DATABASE.
    AlterDatabase(Name),
    /// Makes a table.
    CreateTable(Name),
    /// Makes a view; a placeholder for one is a view too.
    CreateView(Name),
    /// Makes a sequence of MariaDB.
    CreateSequence(Name),
    /// Makes a routine, package or event: its kind in capitals.
    CreateProgram(String, Name),
    /// Makes a trigger, on this table.
    CreateTrigger(Name, Name),
    /// Drops something: its kind in capitals.
    Drop(String, Name),
    /// INSERT or REPLACE.
    Insert(Name),
    /// ALTER TABLE, CREATE INDEX, TRUNCATE, UPDATE, DELETE: changes one table.
    AlterTable(Name),
    /// Variables of the session or of the user.
    Set,
    /// Belongs to the server as a whole, or to its log: never run. The words that a person is told.
    Server(&'static str),
    /// Locks and transactions. A dump that is loaded over several connections has no use for its own.
    Transaction,
    /// Means nothing to a restore: FLUSH, what keeps the session out of the log.
    Idle,
    /// Users, roles and rights: the account that it is about, as `user@host`.
    Account(String),
    /// For the plain client, not for the server.
    Client(String),
    /// Anything else: it runs in the database that was named last.
    Other,
}

impl What {
    /// Reads a statement's first words.
    pub fn of(sql: &[u8]) -> Self {
        let mut words = Words::new(sql);
        let Some(first) = words.word() else {
            words.pass_over();
            let rest = &sql[words.at..];
            // `/*M!999999\- … */` says that the client shall take no commands; it has none.
            return if rest.starts_with(b"\\") && rest.get(1) != Some(&b'-') {
                Self::Client(shown(rest))
            } else {
                Self::Other
            };
        };
        match first.as_str() {
            "USE" => words.database().map_or(Self::Other, Self::Use),
            "CREATE" => create(&mut words),
            "DROP" => drop(&mut words),
            "ALTER" => alter(&mut words),
            "INSERT" | "REPLACE" => {
                words.skip(&["LOW_PRIORITY", "DELAYED", "HIGH_PRIORITY", "IGNORE", "INTO"]);
                words.name().map_or(Self::Other, Self::Insert)
            }
            "SET" => set(&mut words, sql),
            "TRUNCATE" => {
                words.skip(&["TABLE"]);
                words.name().map_or(Self::Other, Self::AlterTable)
            }
            // With several tables it is not one table's.
            "UPDATE" => {
                words.skip(&["LOW_PRIORITY", "IGNORE"]);
                match (words.name(), words.word().as_deref()) {
                    (Some(name), Some("SET")) => Self::AlterTable(name),
                    _ => Self::Other,
                }
            }
            "DELETE" => {
                words.skip(&["LOW_PRIORITY", "QUICK", "IGNORE"]);
                match (words.word().as_deref(), words.name()) {
                    (Some("FROM"), Some(name)) if !words.is_next(b',') => Self::AlterTable(name),
                    _ => Self::Other,
                }
            }
            "LOCK" | "UNLOCK" | "BEGIN" | "COMMIT" | "ROLLBACK" | "SAVEPOINT" => Self::Transaction,
            "FLUSH" => Self::Idle,
            "SHUTDOWN" | "RESTART" | "KILL" | "CLONE" | "XA" | "BINLOG" | "IMPORT" => {
                Self::Server("an act of the server")
            }
            "START" | "STOP" => match words.word().as_deref() {
                Some("TRANSACTION") => Self::Transaction,
                _ => Self::Server("starting or stopping replication"),
            },
            "CHANGE" | "RESET" | "PURGE" => Self::Server("a position of replication"),
            "GRANT" | "REVOKE" => Self::Account(grantee(sql)),
            "RENAME" => match words.word().as_deref() {
                Some("USER") => Self::Account(words.account()),
                _ => Self::Other,
            },
            "INSTALL" | "UNINSTALL" => Self::Server("a plugin of the server"),
            "SOURCE" | "SYSTEM" | "TEE" | "PAGER" => Self::Client(shown(sql)),
            _ => Self::Other,
        }
    }
}

fn shown(sql: &[u8]) -> String {
    let line = sql.split(|b| *b == b'\n').next().unwrap_or_default();
    String::from_utf8_lossy(&line[..line.len().min(60)]).into_owned()
}

fn create(words: &mut Words<'_>) -> What {
    let mut kind = words.kind();
    if kind == "PACKAGE" && words.skip(&["BODY"]) {
        kind = "PACKAGE BODY".into();
    }
    if kind == "INDEX" {
        return indexed(words);
    }
    // A temporary table is its session's.
    if words.temporary {
        return What::Other;
    }
    words.skip(&["IF", "NOT", "EXISTS"]);
    match kind.as_str() {
        "USER" | "ROLE" => return What::Account(words.account()),
        "SERVER" => return What::Server("a server of FEDERATED tables"),
        "TABLESPACE" | "LOGFILE" | "UNDO" => return What::Server("a tablespace"),
        "DATABASE" | "SCHEMA" => {
            return words.database().map_or(What::Other, What::CreateDatabase);
        }
        _ => {}
    }
    let Some(name) = words.name() else {
        return What::Other;
    };
    match kind.as_str() {
        "TABLE" => What::CreateTable(name),
        "VIEW" => What::CreateView(name),
        "SEQUENCE" => What::CreateSequence(name),
        "PROCEDURE" | "FUNCTION" | "EVENT" | "PACKAGE" | "PACKAGE BODY" => {
            What::CreateProgram(kind, name)
        }
        "TRIGGER" => {
            while let Some(word) = words.word() {
                if word == "ON" {
                    return words
                        .name()
                        .map_or(What::Other, |table| What::CreateTrigger(name, table));
                }
            }
            What::Other
        }
        _ => What::Other,
    }
}

/// `INDEX i USING BTREE ON t`.
fn indexed(words: &mut Words<'_>) -> What {
    while let Some(token) = words.next_token() {
        if matches!(&token, Token::Word(word) if word.eq_ignore_ascii_case("ON")) {
            return words.name().map_or(What::Other, What::AlterTable);
        }
    }
    What::Other
}

fn drop(words: &mut Words<'_>) -> What {
    let mut kind = words.kind();
    if kind == "PACKAGE" && words.skip(&["BODY"]) {
        kind = "PACKAGE BODY".into();
    }
    words.skip(&["IF", "EXISTS"]);
    match kind.as_str() {
        "USER" | "ROLE" => What::Account(words.account()),
        "SERVER" => What::Server("a server of FEDERATED tables"),
        "TABLESPACE" | "LOGFILE" | "UNDO" => What::Server("a tablespace"),
        "DATABASE" | "SCHEMA" => words.database().map_or(What::Other, What::DropDatabase),
        "INDEX" => indexed(words),
        "" => What::Other,
        _ if words.temporary => What::Other,
        // Several at once are not one unit's.
        _ => match words.name() {
            Some(name) if !words.is_next(b',') => What::Drop(kind, name),
            _ => What::Other,
        },
    }
}

fn alter(words: &mut Words<'_>) -> What {
    let kind = words.kind();
    words.skip(&["IF", "EXISTS"]);
    match kind.as_str() {
        "USER" | "ROLE" => What::Account(words.account()),
        "DATABASE" | "SCHEMA" => words.database().map_or(What::Other, What::AlterDatabase),
        "TABLE" => words.name().map_or(What::Other, What::AlterTable),
        "INSTANCE" => What::Server("the server's instance"),
        "TABLESPACE" | "LOGFILE" | "UNDO" => What::Server("a tablespace"),
        _ => What::Other,
    }
}

fn set(words: &mut Words<'_>, sql: &[u8]) -> What {
    let upper = sql.to_ascii_uppercase();
    let has = |word: &[u8]| find(&upper, word).is_some();
    if has(b"GTID_PURGED") || has(b"GTID_SLAVE_POS") {
        return What::Server("the set of transactions that replication has seen (GTID)");
    }
    // Said of this session it is harmless, and needs a right: what is restored goes into the log like everything else.
    let alone = !sql.contains(&b',');
    if has(b"SQL_LOG_BIN") && alone && !has(b"@MYSQLDUMP_TEMP_LOG_BIN = @@") {
        return What::Idle;
    }
    if has(b"AUTOCOMMIT") && alone {
        return What::Transaction;
    }
    if matches!(
        words.word().as_deref(),
        Some("PASSWORD" | "ROLE" | "DEFAULT")
    ) {
        return What::Account(grantee(sql));
    }
    let mut all = Words::new(sql);
    while let Some(token) = all.next_token() {
        let Token::Word(word) = token else { continue };
        if ["GLOBAL", "PERSIST", "PERSIST_ONLY"].contains(&word.to_uppercase().as_str()) {
            // Around the rows of the server's own tables, which are not restored.
            return if has(b"INNODB_STATS_AUTO_RECALC") {
                What::Idle
            } else {
                What::Server("a setting of the whole server")
            };
        }
    }
    What::Set
}

/// Whom a GRANT or SET PASSWORD is about, as `user@host`; empty where it does not say.
fn grantee(sql: &[u8]) -> String {
    let mut words = Words::new(sql);
    while let Some(token) = words.next_token() {
        if let Token::Word(word) = token
            && ["TO", "FROM", "FOR"].contains(&word.to_uppercase().as_str())
        {
            return words.account();
        }
    }
    String::new()
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Token {
    Word(String),
    Quoted(String),
    Sign(u8),
}

/// The words of a statement from its front.
struct Words<'s> {
    sql: &'s [u8],
    at: usize,
    /// Where the last token began.
    from: usize,
    /// TEMPORARY stood before the kind.
    temporary: bool,
}

impl<'s> Words<'s> {
    fn new(sql: &'s [u8]) -> Self {
        Self {
            sql,
            at: 0,
            from: 0,
            temporary: false,
        }
    }

    /// Whether this sign is next.
    fn is_next(&mut self, sign: u8) -> bool {
        self.pass_over();
        self.sql.get(self.at) == Some(&sign)
    }

    fn pass_over(&mut self) {
        loop {
            let rest = &self.sql[self.at..];
            let marks = match rest {
                [b'/', b'*', b'M', b'!', more @ ..] => 4 + digits(more),
                [b'/', b'*', b'!', more @ ..] => 3 + digits(more),
                [b'/', b'*', more @ ..] => find(more, b"*/").map_or(rest.len(), |at| at + 4),
                [b'*', b'/', ..] => 2,
                [b'#', ..] => line_end(rest),
                [b'-', b'-', next, ..] if *next <= b' ' => line_end(rest),
                [b, ..] if b.is_ascii_whitespace() => 1,
                _ => return,
            };
            self.at += marks;
        }
    }

    fn next_token(&mut self) -> Option<Token> {
        self.pass_over();
        self.from = self.at;
        let first = *self.sql.get(self.at)?;
        if matches!(first, b'`' | b'"' | b'\'') {
            let end = behind_quote(self.sql, self.at, first)?;
            let text = String::from_utf8_lossy(&self.sql[self.at + 1..end]);
            let quote = char::from(first).to_string();
            self.at = end + 1;
            return Some(Token::Quoted(text.replace(&quote.repeat(2), &quote)));
        }
        let is_word = |b: &u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'$') || *b >= 0x80;
        let len = self.sql[self.at..]
            .iter()
            .take_while(|b| is_word(b))
            .count();
        if len == 0 {
            self.at += 1;
            return Some(Token::Sign(first));
        }
        let text = String::from_utf8_lossy(&self.sql[self.at..self.at + len]).into_owned();
        self.at += len;
        Some(Token::Word(text))
    }

    /// The next word in capitals, if one is next.
    fn word(&mut self) -> Option<String> {
        let at = self.at;
        if let Some(Token::Word(word)) = self.next_token() {
            return Some(word.to_uppercase());
        }
        self.at = at;
        None
    }

    /// Passes over any of these words, in any order; whether there was one.
    fn skip(&mut self, words: &[&str]) -> bool {
        let mut any = false;
        loop {
            let at = self.at;
            match self.word() {
                Some(word) if words.contains(&word.as_str()) => any = true,
                _ => {
                    self.at = at;
                    return any;
                }
            }
        }
    }

    /// The kind of thing that is made, behind OR REPLACE, DEFINER and the like.
    fn kind(&mut self) -> String {
        const KINDS: [&str; 18] = [
            "DATABASE",
            "SCHEMA",
            "TABLE",
            "VIEW",
            "TRIGGER",
            "PROCEDURE",
            "FUNCTION",
            "EVENT",
            "SEQUENCE",
            "PACKAGE",
            "USER",
            "ROLE",
            "INDEX",
            "SERVER",
            "TABLESPACE",
            "LOGFILE",
            "UNDO",
            "INSTANCE",
        ];
        while let Some(token) = self.next_token() {
            match token {
                Token::Word(word) => {
                    let word = word.to_uppercase();
                    if KINDS.contains(&word.as_str()) {
                        return word;
                    }
                    self.temporary |= word == "TEMPORARY";
                    if word == "DEFINER" {
                        self.definer();
                    }
                }
                Token::Sign(b';' | b'(') => break,
                _ => {}
            }
        }
        String::new()
    }

    /// `=user@host`, so that a user who is called TABLE is none. `SQL SECURITY DEFINER` has no sign behind it.
    fn definer(&mut self) {
        let at = self.at;
        if self.next_token() != Some(Token::Sign(b'=')) {
            self.at = at;
            return;
        }
        self.next_token();
        let at = self.at;
        match self.next_token() {
            Some(Token::Sign(b'@' | b'(')) => {
                self.next_token();
            }
            _ => self.at = at,
        }
    }

    fn text(&mut self) -> Option<String> {
        match self.next_token()? {
            Token::Word(text) | Token::Quoted(text) => Some(text),
            Token::Sign(_) => None,
        }
    }

    /// `name` or `database.name`.
    fn name(&mut self) -> Option<Name> {
        let first = self.text()?;
        let at = self.from..self.at;
        let behind = self.at;
        if self.next_token() == Some(Token::Sign(b'.')) {
            return Some(Name {
                database: Some(first),
                own: self.text()?,
                at,
            });
        }
        self.at = behind;
        Some(Name {
            database: None,
            own: first,
            at: at.start..at.start,
        })
    }

    fn database(&mut self) -> Option<Name> {
        self.skip(&["IF", "NOT", "EXISTS"]);
        let name = self.text()?;
        Some(Name {
            database: None,
            own: name,
            at: self.from..self.at,
        })
    }

    /// `user@host` as accounts are labelled.
    fn account(&mut self) -> String {
        self.skip(&["IF", "NOT", "EXISTS"]);
        let Some(user) = self.text() else {
            return String::new();
        };
        let host = if self.next_token() == Some(Token::Sign(b'@')) {
            self.text().unwrap_or_default()
        } else {
            "%".into()
        };
        let escape = |text: &str| bk_core::name::escape(text.as_bytes());
        format!("{}@{}", escape(&user), escape(&host))
    }
}

fn digits(bytes: &[u8]) -> usize {
    bytes.iter().take_while(|b| b.is_ascii_digit()).count()
}

fn line_end(bytes: &[u8]) -> usize {
    let end = bytes.iter().position(|b| *b == b'\n');
    end.map_or(bytes.len(), |at| at + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> Name {
        let (database, name) = match text.split_once('.') {
            Some((database, name)) => (Some(database.to_owned()), name),
            None => (None, text),
        };
        Name {
            database,
            own: name.to_owned(),
            at: 0..0,
        }
    }

    fn of(sql: &str) -> What {
        let plain = |mut name: Name| {
            name.at = 0..0;
            name
        };
        match What::of(sql.as_bytes()) {
            What::Use(n) => What::Use(plain(n)),
            What::CreateDatabase(n) => What::CreateDatabase(plain(n)),
            What::DropDatabase(n) => What::DropDatabase(plain(n)),
            What::AlterDatabase(n) => What::AlterDatabase(plain(n)),
            What::CreateTable(n) => What::CreateTable(plain(n)),
            What::CreateView(n) => What::CreateView(plain(n)),
            What::CreateProgram(kind, n) => What::CreateProgram(kind, plain(n)),
            What::CreateTrigger(n, t) => What::CreateTrigger(plain(n), plain(t)),
            What::Drop(kind, n) => What::Drop(kind, plain(n)),
            What::Insert(n) => What::Insert(plain(n)),
            What::AlterTable(n) => What::AlterTable(plain(n)),
            other => other,
        }
    }

    #[test]
    fn statements_of_dumps_are_known_by_their_first_words() {
        assert_eq!(of("USE `a b`"), What::Use(name("a b")));
        assert_eq!(
            of(
                "CREATE DATABASE /*!32312 IF NOT EXISTS*/ `x` /*!40100 DEFAULT CHARACTER SET utf8mb4 */"
            ),
            What::CreateDatabase(name("x"))
        );
        assert_eq!(
            of("/*!40000 DROP DATABASE IF EXISTS `x`*/"),
            What::DropDatabase(name("x"))
        );
        assert_eq!(
            of("CREATE TABLE IF NOT EXISTS t (a int)"),
            What::CreateTable(name("t"))
        );
        assert_eq!(
            of(
                "/*!50001 CREATE ALGORITHM=UNDEFINED */\n/*!50013 DEFINER=`table`@`%` SQL SECURITY DEFINER */\n/*!50001 VIEW `v` AS select 1 */"
            ),
            What::CreateView(name("v"))
        );
        assert_eq!(
            of(
                "/*!50003 CREATE*/ /*!50017 DEFINER=`root`@`localhost`*/ /*!50003 TRIGGER `g` BEFORE INSERT ON `t` FOR EACH ROW BEGIN END */"
            ),
            What::CreateTrigger(name("g"), name("t"))
        );
        assert_eq!(
            of(
                "/*!50106 CREATE*/ /*!50117 DEFINER=`r`@`l`*/ /*!50106 EVENT `e` ON SCHEDULE EVERY 1 DAY DO SELECT 1 */"
            ),
            What::CreateProgram("EVENT".into(), name("e"))
        );
        assert_eq!(
            of("CREATE DEFINER=CURRENT_USER PROCEDURE `d`.`p`() SELECT 1"),
            What::CreateProgram("PROCEDURE".into(), name("d.p"))
        );
        assert_eq!(
            of("INSERT  IGNORE INTO `t` VALUES (1)"),
            What::Insert(name("t"))
        );
        assert_eq!(
            of("/*!40000 ALTER TABLE `t` DISABLE KEYS */"),
            What::AlterTable(name("t"))
        );
        assert_eq!(
            of("/*!50001 DROP VIEW IF EXISTS `v`*/"),
            What::Drop("VIEW".into(), name("v"))
        );
        assert_eq!(of("LOCK TABLES `t` WRITE"), What::Transaction);
        assert_eq!(of("SET autocommit=0"), What::Transaction);
        assert_eq!(of("SET FOREIGN_KEY_CHECKS=0, AUTOCOMMIT=0"), What::Set);
        assert!(matches!(of("SET @a=1, GLOBAL x=2"), What::Server(_)));
        assert_eq!(of("TRUNCATE t"), What::AlterTable(name("t")));
        assert_eq!(of("DELETE FROM d.t WHERE 1"), What::AlterTable(name("d.t")));
        assert_eq!(of("DELETE a FROM a JOIN b"), What::Other);
        assert_eq!(of("UPDATE t, u SET t.a=1"), What::Other);
        assert_eq!(of("DROP TABLE a, b"), What::Other);
        assert_eq!(of("CREATE TEMPORARY TABLE x (a INT)"), What::Other);
        assert_eq!(
            of("CREATE UNIQUE INDEX i USING BTREE ON t(a)"),
            What::AlterTable(name("t"))
        );
        assert_eq!(of("-- x\n\\! cmd"), What::Client("\\! cmd".into()));
        assert_eq!(of("SET @@SESSION.SQL_LOG_BIN= 0"), What::Idle);
        assert!(matches!(
            of("SET @@GLOBAL.GTID_PURGED=/*!80000 '+'*/ 'x:1'"),
            What::Server(_)
        ));
        assert_eq!(
            of("/*!40101 SET @saved_cs_client = @@character_set_client */"),
            What::Set
        );
        assert_eq!(
            of("GRANT USAGE ON *.* TO `a`@`h` WITH GRANT OPTION"),
            What::Account("a@h".into())
        );
        assert_eq!(of("\\! rm x"), What::Client("\\! rm x".into()));
    }
}
