//! A script as it comes out of a file: statements with their lines, as the plain client would send them.

use crate::mysql::lexer::{Splitter, Statement, find};
use crate::mysql::statement::What;
use bk_core::error::{Error, ErrorKind, Result};
use bk_core::source::{Body, Member};

/// How much of the end is kept to find the last line of a dump.
const END_BYTES: usize = 512;
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";
/// What stands at the front and at the end of a dump of mysqldump or mariadb-dump, unless comments were left out.
const DUMP_BEGINS: [&[u8]; 2] = [b"-- MySQL dump ", b"-- MariaDB dump "];
const DUMP_ENDS: &[u8] = b"-- Dump completed";

/// A script on its way.
pub struct Script {
    body: Option<Body>,
    splitter: Splitter,
    begun: bool,
    /// Every line ends with CR LF, as the first one does; the client reads LF.
    windows_lines: bool,
    held_return: bool,
    is_dump: bool,
    end: Vec<u8>,
}

impl Script {
    /// Of a member.
    pub fn of(member: Member) -> Self {
        Self {
            body: Some(member.body),
            splitter: Splitter::default(),
            begun: false,
            windows_lines: false,
            held_return: false,
            is_dump: false,
            end: Vec::new(),
        }
    }

    /// The next statement and what it does.
    pub async fn next(&mut self) -> Result<Option<(Statement, What)>> {
        loop {
            if let Some(statement) = self.splitter.next_statement()? {
                // A dump ends each of its statements: this is a piece of one.
                if self.is_dump && self.splitter.is_unterminated() {
                    return Ok(None);
                }
                let what = What::of(&statement.sql);
                if what == What::Set {
                    self.splitter.follow_mode(&statement.sql);
                }
                return Ok(Some((statement, what)));
            }
            match self.piece().await? {
                Some(piece) => self.take(&piece)?,
                None if self.body.is_some() => {
                    self.body = None;
                    self.splitter.end();
                }
                None => return Ok(None),
            }
        }
    }

    /// Whether backslashes are plain characters in quotes now.
    pub fn no_backslash_escapes(&self) -> bool {
        self.splitter.no_backslash_escapes
    }

    /// Whether it is the work of mysqldump or mariadb-dump.
    pub fn is_dump(&self) -> bool {
        self.is_dump
    }

    /// After the last statement: the line in which it was cut off, if it was.
    pub fn cut_off(&self) -> Option<u64> {
        let unfinished = self.is_dump && find(&self.end, DUMP_ENDS).is_none();
        (unfinished || self.splitter.is_open()).then(|| self.splitter.line())
    }

    async fn piece(&mut self) -> Result<Option<Vec<u8>>> {
        Ok(match &mut self.body {
            Some(Body::Whole(bytes)) if !bytes.is_empty() => Some(std::mem::take(bytes).into()),
            Some(Body::Stream(stream)) => stream.next().await?.map(Into::into),
            _ => None,
        })
    }

    fn take(&mut self, piece: &[u8]) -> Result<()> {
        let mut piece = piece;
        if !self.begun {
            self.begun = true;
            if piece.starts_with(b"\xff\xfe") || piece.starts_with(b"\xfe\xff") {
                return Err(
                    Error::new(ErrorKind::Unsupported, "the script is in UTF-16")
                        .hint("turn it into UTF-8 first: iconv -f UTF-16 -t UTF-8"),
                );
            }
            piece = piece.strip_prefix(BYTE_ORDER_MARK).unwrap_or(piece);
            let front = &piece[..piece.len().min(2048)];
            self.is_dump = DUMP_BEGINS.iter().any(|word| find(front, word).is_some());
            let line_end = piece.iter().position(|b| *b == b'\n');
            self.windows_lines = line_end.is_some_and(|at| piece[..at].ends_with(b"\r"));
        }
        let kept = self.end.len().min(END_BYTES);
        self.end.drain(..self.end.len() - kept);
        self.end
            .extend_from_slice(&piece[piece.len().saturating_sub(END_BYTES)..]);
        if self.windows_lines {
            let plain = self.with_plain_lines(piece);
            return self.splitter.push(&plain);
        }
        self.splitter.push(piece)
    }

    fn with_plain_lines(&mut self, piece: &[u8]) -> Vec<u8> {
        let mut out = Vec::with_capacity(piece.len() + 1);
        for byte in piece {
            if std::mem::take(&mut self.held_return) && *byte != b'\n' {
                out.push(b'\r');
            }
            if *byte == b'\r' {
                self.held_return = true;
            } else {
                out.push(*byte);
            }
        }
        out
    }
}
