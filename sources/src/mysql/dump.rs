//! Rows to segments: members of SQL that load alone, cut where the rows' own keys say so.
//!
//! A segment is named by the hash of its first row's key. Where no key orders the table, the row's own bytes stand for it. The hash is XXH3 of 64 bits:
//! each row is hashed, and nobody gains from forging a border.

use crate::mysql::catalogue::{Shape, Table, TableKind, select};
use crate::mysql::connection::{Connection, ident};
use crate::mysql::ddl::{DATA_PREAMBLE, HISTORY_PREAMBLE, PREAMBLE, use_database};
use crate::mysql::literal::Literal;
use crate::mysql::wire::{self, Row};
use crate::segment::{self, Room};
use bk_core::context::Context;
use bk_core::error::Result;
use bk_core::name::MemberPath;
use bk_core::source::{Lane, Meta, Output};
use bytes::Bytes;
use std::collections::HashMap;
use twox_hash::XxHash3_64;

const STATEMENT_BYTES: usize = 1 << 20;
/// Rows between two looks at whether the run must stop.
const ROWS_BETWEEN_LOOKS: u64 = 4096;

/// What was read of a table.
#[derive(Clone, Copy, Debug, Default)]
pub struct Read {
    /// Rows.
    pub rows: u64,
    /// Bytes of segments.
    pub bytes: u64,
    /// Cells of utf8 columns that are no UTF-8; they are carried as the bytes that they are.
    pub invalid: u64,
}

/// Reads a table into a lane. `written` is told after each segment how many bytes there are so far.
pub async fn table(
    cx: &Context,
    connection: &mut Connection,
    lane: &mut Lane,
    out: &Output,
    (table, shape): (&Table, &Shape),
    mut written: impl FnMut(u64) + Send,
) -> Result<Read> {
    let sql = select(table, &shape.columns, shape.key.as_ref());
    let refused = |error| match error {
        // Its quoted SQL may take twice as much, in a segment with others.
        wire::Error::RowTooLarge(bytes) => {
            out.too_large(bytes, 2 * bytes + segment::MAX_BYTES as u64)
        }
        error => crate::mysql::refused("reading", error),
    };
    connection.conn.limit_rows(out.largest_record());
    connection.conn.ask(sql.as_bytes()).await.map_err(refused)?;
    let mut cells = Vec::with_capacity(shape.columns.len());
    let mut segments = Segments::new(table, shape);
    let mut read = Read::default();
    while let Some(row) = connection.conn.row(&mut cells).await.map_err(refused)? {
        segments.row(shape, &row, &mut read);
        connection.conn.free();
        read.rows += 1;
        if read.rows % ROWS_BETWEEN_LOOKS == 0 {
            cx.check_cancelled()?;
        }
        segments.room.make(out, segments.buffer.len()).await?;
        if segments.is_full() {
            segments.flush(lane, out, &mut read).await?;
            written(read.bytes);
        }
    }
    segments.flush(lane, out, &mut read).await?;
    written(read.bytes);
    Ok(read)
}

/// Reads to the end of a table whose dump has failed: its connection, and the snapshot that it holds, are still wanted.
pub async fn read_to_its_end(cx: &Context, connection: &mut Connection) {
    let mut cells = Vec::new();
    for n in 1_u64.. {
        if n.is_multiple_of(ROWS_BETWEEN_LOOKS) && cx.check_cancelled().is_err() {
            return;
        }
        match connection.conn.row(&mut cells).await {
            Ok(Some(_)) | Err(wire::Error::RowTooLarge(_)) => {}
            Ok(None) | Err(_) => return,
        }
    }
}

/// The segment that is being filled.
struct Segments {
    folder: String,
    preamble: Vec<u8>,
    insert: Vec<u8>,
    buffer: Vec<u8>,
    /// Where the last statement's first row begins.
    statement_from: usize,
    first_key: Option<u64>,
    last_cuts: bool,
    key: Vec<u8>,
    names: HashMap<u64, u32>,
    room: Room,
}

impl Segments {
    fn new(table: &Table, shape: &Shape) -> Self {
        let mut preamble = [PREAMBLE, DATA_PREAMBLE].concat();
        if table.kind == TableKind::Versioned {
            preamble += HISTORY_PREAMBLE;
        }
        preamble += &use_database(&table.database);
        let columns: Vec<_> = shape.columns.iter().map(|c| ident(&c.name)).collect();
        let (group, unit) = table.unit();
        Self {
            folder: format!("{group}/{unit}"),
            preamble: preamble.into_bytes(),
            insert: format!(
                "INSERT INTO {} ({}) VALUES\n",
                ident(&table.name),
                columns.join(",")
            )
            .into_bytes(),
            buffer: Vec::new(),
            statement_from: 0,
            first_key: None,
            last_cuts: false,
            key: Vec::new(),
            names: HashMap::new(),
            room: Room::default(),
        }
    }

    fn row(&mut self, shape: &Shape, row: &Row<'_>, read: &mut Read) {
        if self.buffer.is_empty() {
            self.buffer.extend_from_slice(&self.preamble);
            self.begin_statement();
        } else if self.buffer.len() - self.statement_from >= STATEMENT_BYTES {
            self.buffer.extend_from_slice(b";\n");
            self.begin_statement();
        } else {
            self.buffer.extend_from_slice(b",\n");
        }
        let from = self.buffer.len();
        self.buffer.push(b'(');
        for (n, column) in shape.columns.iter().enumerate() {
            if n > 0 {
                self.buffer.push(b',');
            }
            let cell = row.cell(n);
            let literal = match cell {
                Some(bytes) if column.utf8 && std::str::from_utf8(bytes).is_err() => {
                    read.invalid += 1;
                    Literal::Binary
                }
                _ => column.literal,
            };
            literal.write(&mut self.buffer, cell);
        }
        self.buffer.push(b')');
        if self.buffer.len() - from > STATEMENT_BYTES && from > self.statement_from {
            self.own_statement(from);
        }
        let len = (self.buffer.len() - from) as u64;
        let hash = match &shape.key {
            Some((_, parts)) => self.hash_of_key(parts, row),
            None => XxHash3_64::oneshot(&self.buffer[from..]),
        };
        self.first_key.get_or_insert(hash);
        self.last_cuts = segment::ends_after(hash, len);
    }

    fn begin_statement(&mut self) {
        self.buffer.extend_from_slice(&self.insert);
        self.statement_from = self.buffer.len();
    }

    /// A row that is larger than a statement should be gets one of its own.
    fn own_statement(&mut self, from: usize) {
        let row = self.buffer.split_off(from);
        self.buffer.truncate(from - 2);
        self.buffer.extend_from_slice(b";\n");
        self.begin_statement();
        self.buffer.extend_from_slice(&row);
    }

    fn hash_of_key(&mut self, parts: &[usize], row: &Row<'_>) -> u64 {
        self.key.clear();
        for part in parts {
            let bytes = row.cell(*part).unwrap_or_default();
            self.key
                .extend_from_slice(&(bytes.len() as u64).to_le_bytes());
            self.key.extend_from_slice(bytes);
        }
        XxHash3_64::oneshot(&self.key)
    }

    fn is_full(&self) -> bool {
        self.last_cuts || self.buffer.len() >= segment::MAX_BYTES
    }

    async fn flush(&mut self, lane: &mut Lane, out: &Output, read: &mut Read) -> Result<()> {
        let Some(first) = self.first_key.take() else {
            return Ok(());
        };
        self.buffer.extend_from_slice(b";\n");
        self.room.make(out, self.buffer.len()).await?;
        let body = Bytes::from(std::mem::take(&mut self.buffer));
        read.bytes += body.len() as u64;
        // Rows that are equal in all their columns can begin two segments.
        let seen = self.names.entry(first).or_default();
        *seen += 1;
        let name = match *seen {
            1 => format!("{}/{first:016x}.sql", self.folder),
            n => format!("{}/{first:016x}-{n}.sql", self.folder),
        };
        self.last_cuts = false;
        let written = lane
            .member(MemberPath::new(name)?, Meta::default(), body.clone())
            .await;
        // The lane has copied it: the next segment is filled where this one lay, unless it was a giant.
        let mut emptied = Vec::from(body);
        emptied.clear();
        emptied.shrink_to(segment::UNRESERVED_BYTES);
        self.buffer = emptied;
        self.room.give_back();
        written
    }
}
