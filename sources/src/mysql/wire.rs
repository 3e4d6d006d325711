//! The text protocol: statements out, rows in, as the server sent them, in one buffer that is used again.
//!
//! Our own, since rows are what a backup consists of: the drivers make a vector of each cell and copy each packet twice, which was half of the
//! time that reading took. What packets mean is the protocol's pages "Packets" and "`COM_QUERY` Response"; greetings and proofs of passwords
//! are `mysql_common`'s. Nothing is announced that is not needed: neither several statements at once nor compression.

mod login;
pub mod tls;

use crate::mysql::connection::{Access, Cells};
use bytes::Buf;
use rustls::ClientConfig;
use std::ops::Range;
use std::time::Duration;
use std::{fmt, io};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

const READ_BYTES: usize = 256 << 10;
/// A packet of this length goes on in the next one.
const PART_BYTES: usize = (1 << 24) - 1;
/// The largest row that a server sends.
const ROW_MAX_BYTES: u64 = 1 << 30;
/// How long is waited for the last words of a server that hung up.
const LAST_WORDS: Duration = Duration::from_secs(1);
const LAST_WORDS_BYTES: usize = 4096;
/// `ER_NOT_ALLOWED_COMMAND`.
const NOT_ALLOWED: u16 = 1148;

/// Bytes of a local file that go at once: the server's `max_allowed_packet` bounds them.
const FILE_PART_BYTES: usize = 128 << 10;

const COM_QUIT: u8 = 1;
const COM_QUERY: u8 = 3;
const OK: u8 = 0;
const NULL: u8 = 0xFB;
const LOCAL_FILE: u8 = 0xFB;
const END: u8 = 0xFE;
const ERROR: u8 = 0xFF;
/// Among the flags of a status: another answer follows.
const MORE_ANSWERS: u16 = 8;

/// Why a statement did not do what it says.
#[derive(Debug)]
pub enum Error {
    /// The server said so.
    Server(ServerError),
    /// The connection, or what came over it.
    Io(io::Error),
    /// A row of so many bytes, more than were asked for. The next one can be read.
    RowTooLarge(u64),
    /// Nothing of the server's: the run was stopped, a setting cannot be read.
    Ours(bk_core::Error),
}

/// What the server said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerError {
    /// Its number.
    pub code: u16,
    /// Its words.
    pub message: String,
}

/// The result of what goes to the server.
pub type Result<T> = std::result::Result<T, Error>;

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Server(error) => write!(f, "error {}: {}", error.code, error.message),
            Self::Io(error) => write!(f, "{error}"),
            Self::RowTooLarge(bytes) => write!(f, "a row of {bytes} bytes"),
            Self::Ours(error) => write!(f, "{error}"),
        }
    }
}

impl From<io::Error> for Error {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl From<bk_core::Error> for Error {
    fn from(error: bk_core::Error) -> Self {
        Self::Ours(error)
    }
}

/// What the server said of a statement without rows.
#[derive(Clone, Debug, Default)]
pub struct Told {
    /// Rows that it changed.
    pub affected: u64,
    /// Warnings that it gave.
    pub warnings: u16,
    /// `Records: 3  Duplicates: 0  Warnings: 0`.
    pub info: String,
}

/// A socket, plain or encrypted.
trait Stream: AsyncRead + AsyncWrite + Send + Sync + Unpin {}
impl<S: AsyncRead + AsyncWrite + Send + Sync + Unpin> Stream for S {}

/// What is read before a server is dialled: no server waits for a slow command that gives a password.
pub struct Secrets {
    /// Empty where there is none.
    pub password: String,
    /// Nothing where nothing is to be encrypted.
    pub tls: Option<ClientConfig>,
}

/// A connection, logged in.
pub struct Wire {
    stream: Box<dyn Stream>,
    buffer: Vec<u8>,
    /// What of the buffer was received and not yet taken.
    received: Range<usize>,
    /// A packet that came in parts.
    joined: Vec<u8>,
    sequence: u8,
    /// Columns of the answer whose rows are still coming.
    columns: Option<usize>,
    /// Another answer follows this one.
    more: bool,
    /// Rows beyond it are read and not kept.
    row_limit: u64,
    /// A packet is on its way. Still so when the next is wanted: whoever waited for it went away, and nobody knows what stands where.
    underway: bool,
    broken: bool,
}

/// Where the last packet lies.
enum Place {
    Buffer(Range<usize>),
    Joined,
    /// Nowhere: it had so many bytes.
    TooLarge(u64),
}

/// One row, and where its cells stand in it.
pub struct Row<'a> {
    packet: &'a [u8],
    cells: &'a [Option<Range<usize>>],
}

impl Row<'_> {
    /// A cell; nothing for NULL.
    pub fn cell(&self, n: usize) -> Option<&[u8]> {
        let place = self.cells.get(n)?.clone()?;
        self.packet.get(place)
    }
}

impl Wire {
    /// Connects and logs in.
    pub async fn connect(access: &Access, secrets: Secrets) -> Result<Self> {
        login::connect(access, secrets).await
    }

    fn over(stream: Box<dyn Stream>) -> Self {
        Self {
            stream,
            buffer: vec![0; READ_BYTES],
            received: 0..0,
            joined: Vec::new(),
            sequence: 0,
            columns: None,
            more: false,
            row_limit: ROW_MAX_BYTES,
            underway: false,
            broken: false,
        }
    }

    /// Whether nothing more can come over it.
    pub fn is_broken(&self) -> bool {
        self.broken
    }

    /// Sends a statement; its rows, if it has any, are next.
    pub async fn ask(&mut self, sql: &[u8]) -> Result<Told> {
        self.ask_with(sql, None).await
    }

    /// The same, for a statement that loads a local file: what it holds. No file of this machine is ever opened, whatever a server asks for.
    pub async fn ask_with(&mut self, sql: &[u8], file: Option<&[u8]>) -> Result<Told> {
        self.is_in_step()?;
        match self.skip().await {
            // An end of rows that nobody wanted.
            Ok(()) => {}
            Err(Error::Server(_)) if !self.broken => {}
            Err(error) => return Err(error),
        }
        self.sequence = 0;
        self.send(Buf::chain(&[COM_QUERY][..], sql)).await?;
        self.answer(file).await
    }

    async fn answer(&mut self, file: Option<&[u8]>) -> Result<Told> {
        self.more = false;
        let mut place = self.packet().await?;
        let asks_for_file = self.bytes(&place).first() == Some(&LOCAL_FILE);
        if asks_for_file {
            for part in file.unwrap_or_default().chunks(FILE_PART_BYTES) {
                self.send(part).await?;
            }
            self.send(&[][..]).await?;
            place = self.packet().await?;
        }
        let answer = self.bytes(&place);
        match answer.first() {
            Some(&OK) => {
                let Some((told, status)) = told(answer) else {
                    return Err(self.lost("an answer that is cut off"));
                };
                self.more = status & MORE_ANSWERS != 0;
                if asks_for_file && file.is_none() {
                    return Err(Error::Server(ServerError {
                        code: NOT_ALLOWED,
                        message: "a file of this machine was asked for, and none is sent".into(),
                    }));
                }
                return Ok(told);
            }
            Some(&ERROR) => return Err(self.refusal(answer)),
            _ if asks_for_file => return Err(self.lost("a file that was sent has no answer")),
            _ => {}
        }
        let mut at = 0;
        let Some(columns) = number(answer, &mut at) else {
            return Err(self.lost("an answer that has no number of columns"));
        };
        for n in 0..=columns {
            let place = self.packet().await?;
            match self.bytes(&place) {
                packet if packet.first() == Some(&ERROR) => return Err(self.refusal(packet)),
                packet if n == columns && !is_end(packet) => {
                    return Err(self.lost("columns that have no end"));
                }
                _ => {}
            }
        }
        self.columns = Some(columns);
        Ok(Told::default())
    }

    /// The next row. Its cells are found in `cells`, which is used again.
    pub async fn row<'a>(
        &'a mut self,
        cells: &'a mut Vec<Option<Range<usize>>>,
    ) -> Result<Option<Row<'a>>> {
        let Some(columns) = self.columns else {
            return Ok(None);
        };
        self.is_in_step()?;
        let place = self.packet().await?;
        if let Place::TooLarge(bytes) = place {
            return Err(Error::RowTooLarge(bytes));
        }
        let packet = self.bytes(&place);
        if is_end(packet) {
            self.more = status_of_end(packet) & MORE_ANSWERS != 0;
            self.columns = None;
            return Ok(None);
        }
        if packet.first() == Some(&ERROR) {
            let error = self.refusal(packet);
            self.columns = None;
            return Err(error);
        }
        if split(packet, columns, cells).is_none() {
            return Err(self.lost("a row that does not have the cells of its columns"));
        }
        let packet = self.bytes(&place);
        Ok(Some(Row { packet, cells }))
    }

    /// How large a row may be, from here on.
    pub fn limit_rows(&mut self, bytes: u64) {
        self.row_limit = bytes.min(ROW_MAX_BYTES);
    }

    /// Gives back the room of a large row.
    pub fn free(&mut self) {
        if self.joined.capacity() > READ_BYTES {
            self.joined = Vec::new();
        }
    }

    /// A statement and all rows of its first answer.
    pub async fn all(&mut self, sql: &[u8]) -> Result<Vec<Cells>> {
        self.ask(sql).await?;
        let mut all = Vec::new();
        let mut cells = Vec::new();
        while let Some(row) = self.row(&mut cells).await? {
            let owned = (0..row.cells.len()).map(|n| row.cell(n).map(<[u8]>::to_vec));
            all.push(Cells::new(owned.collect()));
        }
        self.skip().await?;
        Ok(all)
    }

    /// A statement whose rows nobody wants.
    pub async fn run(&mut self, sql: &[u8]) -> Result<Told> {
        let told = self.ask(sql).await?;
        self.skip().await?;
        Ok(told)
    }

    /// Says goodbye.
    pub async fn quit(mut self) -> Result<()> {
        self.sequence = 0;
        self.send(&[COM_QUIT][..]).await?;
        Ok(self.stream.shutdown().await?)
    }

    /// Rows and answers that nobody wanted to the end stand before the next one.
    async fn skip(&mut self) -> Result<()> {
        let mut cells = Vec::new();
        loop {
            loop {
                match self.row(&mut cells).await {
                    Ok(Some(_)) | Err(Error::RowTooLarge(_)) => {}
                    Ok(None) => break,
                    Err(error) => return Err(error),
                }
            }
            if !self.more {
                return Ok(());
            }
            self.answer(None).await?;
        }
    }

    async fn send(&mut self, payload: impl Buf) -> Result<()> {
        self.underway = true;
        let Err(error) = self.send_packets(payload).await else {
            return Ok(());
        };
        self.broken = true;
        // A server that takes no more, for its size or for a kill, has said why before it hung up.
        match tokio::time::timeout(LAST_WORDS, self.read_packet()).await {
            Ok(Ok(place)) if self.bytes(&place).first() == Some(&ERROR) => {
                Err(self.refusal(self.bytes(&place)))
            }
            _ => Err(error.into()),
        }
    }

    async fn send_packets(&mut self, mut payload: impl Buf) -> io::Result<()> {
        loop {
            let part = payload.remaining().min(PART_BYTES);
            let mut head = (part as u32).to_le_bytes();
            head[3] = self.sequence;
            self.sequence = self.sequence.wrapping_add(1);
            let mut packet = Buf::chain(&head[..], (&mut payload).take(part));
            self.stream.write_all_buf(&mut packet).await?;
            if part < PART_BYTES {
                return self.stream.flush().await;
            }
        }
    }

    async fn packet(&mut self) -> Result<Place> {
        self.underway = true;
        let read = self.read_packet().await;
        self.broken |= read.is_err();
        self.underway = false;
        Ok(read?)
    }

    async fn read_packet(&mut self) -> io::Result<Place> {
        self.free();
        self.joined.clear();
        let mut bytes = 0;
        loop {
            let head = self.take(4).await?;
            let &[a, b, c, sequence] = &self.buffer[head] else {
                return Err(invalid("a packet without a head"));
            };
            let len = u32::from_le_bytes([a, b, c, 0]) as usize;
            let in_order = sequence == self.sequence;
            if !in_order && len > LAST_WORDS_BYTES {
                return Err(invalid("a packet out of order"));
            }
            let part = self.take(len).await?;
            if !in_order {
                // What a server says unasked, since it ends the connection, has a number of its own.
                if self.buffer[part.clone()].first() != Some(&ERROR) {
                    return Err(invalid("a packet out of order"));
                }
                self.broken = true;
            }
            self.sequence = sequence.wrapping_add(1);
            if len < PART_BYTES && bytes == 0 {
                return Ok(Place::Buffer(part));
            }
            bytes += len as u64;
            if bytes <= self.row_limit {
                self.joined.extend_from_slice(&self.buffer[part]);
            } else {
                self.free();
            }
            match (len < PART_BYTES, bytes <= self.row_limit) {
                (false, _) => {}
                (true, true) => return Ok(Place::Joined),
                (true, false) => return Ok(Place::TooLarge(bytes)),
            }
        }
    }

    /// The next bytes, which then stand in the buffer.
    async fn take(&mut self, bytes: usize) -> io::Result<Range<usize>> {
        if self.received.len() < bytes {
            self.receive(bytes).await?;
        }
        let from = self.received.start;
        self.received.start += bytes;
        Ok(from..from + bytes)
    }

    async fn receive(&mut self, bytes: usize) -> io::Result<()> {
        self.buffer.copy_within(self.received.clone(), 0);
        self.received = 0..self.received.len();
        let wanted = bytes.max(READ_BYTES);
        if self.buffer.len() < wanted {
            self.buffer.resize(wanted, 0);
        } else if self.buffer.len() > wanted && self.received.end <= wanted {
            self.buffer.truncate(wanted);
            self.buffer.shrink_to_fit();
        }
        while self.received.len() < bytes {
            let free = &mut self.buffer[self.received.end..];
            let read = self.stream.read(free).await?;
            if read == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            self.received.end += read;
        }
        Ok(())
    }

    fn bytes(&self, place: &Place) -> &[u8] {
        match place {
            Place::Buffer(range) => &self.buffer[range.clone()],
            Place::Joined => &self.joined,
            Place::TooLarge(_) => &[],
        }
    }

    /// An answer that nobody read to its end would be taken for the next one's.
    fn is_in_step(&mut self) -> Result<()> {
        if self.broken {
            return Err(
                io::Error::new(io::ErrorKind::NotConnected, "the connection was lost").into(),
            );
        }
        if self.underway {
            return Err(self.lost("the connection was left in the middle of an answer"));
        }
        Ok(())
    }

    /// What the server said; of the connection, where it hung up with it.
    fn refusal(&self, packet: &[u8]) -> Error {
        match said(packet) {
            error if self.broken => io::Error::other(error.to_string()).into(),
            error => error,
        }
    }

    /// What came is not what the protocol says: nothing after it could be trusted.
    fn lost(&mut self, what: &str) -> Error {
        self.broken = true;
        invalid(what).into()
    }
}

fn invalid(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("protocol: {what}"))
}

fn is_end(packet: &[u8]) -> bool {
    packet.first() == Some(&END) && packet.len() < 9
}

fn word(bytes: &[u8], at: usize) -> Option<u16> {
    let &[low, high] = bytes.get(at..at + 2)? else {
        return None;
    };
    Some(u16::from_le_bytes([low, high]))
}

fn status_of_end(packet: &[u8]) -> u16 {
    word(packet, 3).unwrap_or_default()
}

/// What an OK packet says, and its status.
fn told(packet: &[u8]) -> Option<(Told, u16)> {
    let mut at = 1;
    let affected = number(packet, &mut at)? as u64;
    let _last_id = number(packet, &mut at)?;
    let status = word(packet, at)?;
    let warnings = word(packet, at + 2)?;
    at += 4;
    // The pages call it the rest of the packet; both families put its length before it.
    let rest = packet.get(at..)?;
    let info = match number(packet, &mut at) {
        Some(len) if packet.len() == at + len => &packet[at..],
        _ => rest,
    };
    let told = Told {
        affected,
        warnings,
        info: String::from_utf8_lossy(info).into_owned(),
    };
    Some((told, status))
}

/// The server's error: a code of two bytes, `#` and a state of five where it has one, a text.
fn said(packet: &[u8]) -> Error {
    let code = word(packet, 1).unwrap_or_default();
    let rest = packet.get(3..).unwrap_or_default();
    let message = match rest.split_first() {
        Some((b'#', more)) if more.len() >= 5 => &more[5..],
        _ => rest,
    };
    Error::Server(ServerError {
        code,
        message: String::from_utf8_lossy(message).into_owned(),
    })
}

/// A length-encoded number at `at`, which then stands behind it.
fn number(bytes: &[u8], at: &mut usize) -> Option<usize> {
    let first = *bytes.get(*at)?;
    let len = match first {
        0..=0xFA => {
            *at += 1;
            return Some(usize::from(first));
        }
        0xFC => 2,
        0xFD => 3,
        0xFE => 8,
        _ => return None,
    };
    let digits = bytes.get(*at + 1..*at + 1 + len)?;
    *at += 1 + len;
    let mut word = [0; 8];
    word[..len].copy_from_slice(digits);
    usize::try_from(u64::from_le_bytes(word)).ok()
}

/// Finds the cells of a row: nothing else may stand in it.
fn split(packet: &[u8], columns: usize, cells: &mut Vec<Option<Range<usize>>>) -> Option<()> {
    cells.clear();
    let mut at = 0;
    for _ in 0..columns {
        if *packet.get(at)? == NULL {
            cells.push(None);
            at += 1;
            continue;
        }
        let len = number(packet, &mut at)?;
        let end = at.checked_add(len).filter(|end| *end <= packet.len())?;
        cells.push(Some(at..end));
        at = end;
    }
    (at == packet.len()).then_some(())
}

#[cfg(test)]
mod tests;
