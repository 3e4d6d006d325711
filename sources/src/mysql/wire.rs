//! The text protocol for those who read tables: rows as the server sent them, in one buffer that is used again.
//!
//! The driver makes a vector of each cell and copies each packet twice, which is half of the time that reading takes. So the connections
//! that read tables speak the protocol here; all else goes by the driver. Packets and answers: the MySQL client/server protocol's pages
//! "Packets" and "`COM_QUERY` Response". Nothing is announced that would not be needed: no local files, no several statements, no compression.

mod login;

use crate::mysql::connection::{Access, Cells};
use mysql_async::{Error, IoError, ServerError};
use std::io;
use std::ops::Range;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

const READ_BYTES: usize = 256 << 10;
/// A packet of this length goes on in the next one.
const PART_BYTES: usize = (1 << 24) - 1;
/// The largest row that a server sends.
const ROW_MAX_BYTES: usize = 1 << 30;

const COM_QUIT: u8 = 1;
const COM_QUERY: u8 = 3;
const OK: u8 = 0;
const NULL: u8 = 0xFB;
const LOCAL_FILE: u8 = 0xFB;
const END: u8 = 0xFE;
const ERROR: u8 = 0xFF;

/// A socket, plain or encrypted.
trait Stream: AsyncRead + AsyncWrite + Send + Sync + Unpin {}
impl<S: AsyncRead + AsyncWrite + Send + Sync + Unpin> Stream for S {}

/// A connection that reads.
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
    broken: bool,
}

/// Where the last packet lies.
#[derive(Clone)]
enum Place {
    Buffer(Range<usize>),
    Joined,
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
    pub async fn connect(access: &Access) -> Result<Self, Error> {
        login::connect(access).await
    }

    fn over(stream: Box<dyn Stream>) -> Self {
        Self {
            stream,
            buffer: vec![0; READ_BYTES],
            received: 0..0,
            joined: Vec::new(),
            sequence: 0,
            columns: None,
            broken: false,
        }
    }

    /// Whether nothing more can come over it.
    pub fn is_broken(&self) -> bool {
        self.broken
    }

    /// Sends a statement; its rows, if it has any, are next.
    pub async fn ask(&mut self, sql: &[u8]) -> Result<(), Error> {
        self.skip_rows().await?;
        self.sequence = 0;
        self.send(&[&[COM_QUERY], sql].concat()).await?;
        let place = self.packet().await?;
        let answer = self.bytes(&place);
        match answer.first() {
            Some(&OK) => return Ok(()),
            Some(&ERROR) => return Err(said(answer)),
            Some(&LOCAL_FILE) => {
                return Err(self.lost("the server asked for a local file, and gets none"));
            }
            _ => {}
        }
        let mut at = 0;
        let Some(columns) = number(answer, &mut at) else {
            return Err(self.lost("an answer that has no number of columns"));
        };
        for _ in 0..columns {
            self.packet().await?;
        }
        let place = self.packet().await?;
        if !is_end(self.bytes(&place)) {
            return Err(self.lost("columns that have no end"));
        }
        self.columns = Some(columns);
        Ok(())
    }

    /// The next row. Its cells are found in `cells`, which is used again.
    pub async fn row<'a>(
        &'a mut self,
        cells: &'a mut Vec<Option<Range<usize>>>,
    ) -> Result<Option<Row<'a>>, Error> {
        let Some(columns) = self.columns else {
            return Ok(None);
        };
        let place = self.packet().await?;
        let packet = self.bytes(&place);
        if is_end(packet) {
            self.columns = None;
            return Ok(None);
        }
        if packet.first() == Some(&ERROR) {
            let error = said(packet);
            self.columns = None;
            return Err(error);
        }
        if split(packet, cells).is_none() || cells.len() != columns {
            return Err(self.lost("a row that does not have the cells of its columns"));
        }
        let packet = self.bytes(&place);
        Ok(Some(Row { packet, cells }))
    }

    /// A statement and all its rows.
    pub async fn all(&mut self, sql: &[u8]) -> Result<Vec<Cells>, Error> {
        self.ask(sql).await?;
        let mut all = Vec::new();
        let mut cells = Vec::new();
        while let Some(row) = self.row(&mut cells).await? {
            let owned = (0..row.cells.len()).map(|n| row.cell(n).map(<[u8]>::to_vec));
            all.push(Cells::new(owned.collect()));
        }
        Ok(all)
    }

    /// Says goodbye.
    pub async fn quit(mut self) -> Result<(), Error> {
        self.sequence = 0;
        self.send(&[COM_QUIT]).await?;
        let closed = self.stream.shutdown().await;
        closed.map_err(failed)
    }

    /// Rows that nobody wanted to the end stand before the next answer.
    async fn skip_rows(&mut self) -> Result<(), Error> {
        let mut cells = Vec::new();
        while self.row(&mut cells).await?.is_some() {}
        Ok(())
    }

    async fn send(&mut self, payload: &[u8]) -> Result<(), Error> {
        if payload.len() >= PART_BYTES {
            return Err(self.lost("a statement of 16 MiB"));
        }
        let mut packet = (payload.len() as u32).to_le_bytes();
        packet[3] = self.sequence;
        self.sequence = self.sequence.wrapping_add(1);
        let sent = async {
            self.stream.write_all(&[&packet, payload].concat()).await?;
            self.stream.flush().await
        };
        let sent = sent.await;
        self.noting(sent)
    }

    async fn packet(&mut self) -> Result<Place, Error> {
        let read = self.read_packet().await;
        self.noting(read)
    }

    async fn read_packet(&mut self) -> io::Result<Place> {
        if self.joined.capacity() > READ_BYTES {
            self.joined = Vec::new();
        }
        self.joined.clear();
        loop {
            let head = self.take(4).await?;
            let &[a, b, c, sequence] = &self.buffer[head] else {
                return Err(invalid("a packet without a head"));
            };
            if sequence != self.sequence {
                return Err(invalid("a packet out of order"));
            }
            self.sequence = sequence.wrapping_add(1);
            let len = u32::from_le_bytes([a, b, c, 0]) as usize;
            let part = self.take(len).await?;
            if len < PART_BYTES && self.joined.is_empty() {
                return Ok(Place::Buffer(part));
            }
            self.joined.extend_from_slice(&self.buffer[part]);
            if len < PART_BYTES {
                return Ok(Place::Joined);
            }
            if self.joined.len() > ROW_MAX_BYTES {
                return Err(invalid("a packet of over 1 GiB"));
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
        }
    }

    fn noting<T>(&mut self, done: io::Result<T>) -> Result<T, Error> {
        self.broken |= done.is_err();
        done.map_err(failed)
    }

    /// What came is not what the protocol says: nothing after it could be trusted.
    fn lost(&mut self, what: &str) -> Error {
        self.broken = true;
        failed(invalid(what))
    }
}

fn failed(error: io::Error) -> Error {
    Error::Io(IoError::Io(error))
}

fn invalid(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("protocol: {what}"))
}

fn is_end(packet: &[u8]) -> bool {
    packet.first() == Some(&END) && packet.len() < 9
}

/// The server's error: a code of two bytes, `#` and a state of five where it has one, a text.
fn said(packet: &[u8]) -> Error {
    let code = match packet {
        [_, low, high, ..] => u16::from_le_bytes([*low, *high]),
        _ => 0,
    };
    let rest = packet.get(3..).unwrap_or_default();
    let (state, message) = match rest.split_first() {
        Some((b'#', more)) if more.len() >= 5 => more.split_at(5),
        _ => (&[][..], rest),
    };
    Error::Server(ServerError {
        code,
        state: String::from_utf8_lossy(state).into_owned(),
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
fn split(packet: &[u8], cells: &mut Vec<Option<Range<usize>>>) -> Option<()> {
    cells.clear();
    let mut at = 0;
    while let Some(first) = packet.get(at) {
        if *first == NULL {
            cells.push(None);
            at += 1;
            continue;
        }
        let len = number(packet, &mut at)?;
        let end = at.checked_add(len).filter(|end| *end <= packet.len())?;
        cells.push(Some(at..end));
        at = end;
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::pin::Pin;
    use std::task::{Context, Poll};
    use tokio::io::ReadBuf;

    /// A server that has said all it will say. Gives its bytes in pieces of the length asked for.
    struct Said(Vec<u8>, usize);

    impl AsyncRead for Said {
        fn poll_read(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
            into: &mut ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            let n = self.1.min(into.remaining()).min(self.0.len());
            into.put_slice(&self.0[..n]);
            self.0.drain(..n);
            Poll::Ready(Ok(()))
        }
    }

    impl AsyncWrite for Said {
        fn poll_write(
            self: Pin<&mut Self>,
            _: &mut Context<'_>,
            bytes: &[u8],
        ) -> Poll<io::Result<usize>> {
            Poll::Ready(Ok(bytes.len()))
        }
        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    fn packets(payloads: &[&[u8]]) -> Vec<u8> {
        let mut all = Vec::new();
        for (n, payload) in payloads.iter().enumerate() {
            let mut head = (payload.len() as u32).to_le_bytes();
            head[3] = n as u8 + 1;
            all.extend_from_slice(&head);
            all.extend_from_slice(payload);
        }
        all
    }

    fn wire(payloads: &[&[u8]], piece: usize) -> Wire {
        Wire::over(Box::new(Said(packets(payloads), piece)))
    }

    #[tokio::test]
    async fn rows_come_whole_however_they_arrive() {
        let answer: &[&[u8]] = &[
            &[2],
            b"column",
            b"column",
            &[END, 0, 0, 0, 0],
            &[1, b'7', NULL],
            &[0, 3, b'a', b'b', b'c'],
            &[END, 0, 0, 0, 0],
        ];
        for piece in [1, 3, 1000] {
            let rows = wire(answer, piece).all(b"SELECT").await.unwrap();
            let found: Vec<_> = rows.iter().map(|r| (r.bytes(0), r.bytes(1))).collect();
            assert_eq!(
                found,
                [(Some(&b"7"[..]), None), (Some(b""), Some(&b"abc"[..]))],
                "pieces of {piece}"
            );
        }
    }

    #[tokio::test]
    async fn a_row_of_several_packets_is_one() {
        let cell = vec![b'x'; PART_BYTES + 100];
        let mut row = vec![0xFD];
        row.extend_from_slice(&(cell.len() as u32).to_le_bytes()[..3]);
        row[0] = 0xFE;
        row.truncate(1);
        row.extend_from_slice(&(cell.len() as u64).to_le_bytes());
        row.extend_from_slice(&cell);
        let (first, second) = row.split_at(PART_BYTES);
        let end = [END, 0, 0, 0, 0];
        let mut wire = wire(&[&[1], b"column", &end, first, second, &end], 1 << 20);
        let rows = wire.all(b"SELECT").await.unwrap();
        assert_eq!(rows.len(), 1);
        assert!(rows[0].bytes(0) == Some(&cell));
    }

    #[tokio::test]
    async fn what_the_protocol_does_not_say_is_an_error() {
        let end: &[u8] = &[END, 0, 0, 0, 0];
        for (answer, what) in [
            (vec![&[LOCAL_FILE, b'/', b'x'][..]], "a local file"),
            (vec![&[1], b"column", end, &[5, b'a']], "the cells"),
            (vec![&[1], b"column", end, &[1, b'a', NULL]], "the cells"),
            (vec![&[1], b"column", b"none"], "no end"),
            (vec![&[1], b"column", end], "unexpected end of file"),
            (
                vec![&[ERROR, 1, 4, b'#', b'4', b'2', b'0', b'0', b'0', b'!']],
                "1025",
            ),
        ] {
            let mut wire = wire(&answer, 1000);
            let error = wire.all(b"SELECT").await.unwrap_err().to_string();
            assert!(error.contains(what), "{error}");
            assert_eq!(wire.is_broken(), what != "1025");
        }
    }

    #[tokio::test]
    async fn rows_that_nobody_wanted_do_not_stand_before_the_next_answer() {
        let end: &[u8] = &[END, 0, 0, 0, 0];
        let mut said = packets(&[&[1], b"column", end, &[1, b'1'], &[1, b'2'], end]);
        said.extend(packets(&[&[1], b"column", end, &[1, b'3'], end]));
        let mut wire = Wire::over(Box::new(Said(said, 1000)));
        wire.ask(b"SELECT").await.unwrap();
        wire.row(&mut Vec::new()).await.unwrap();
        let rows = wire.all(b"SELECT").await.unwrap();
        assert_eq!(rows[0].text(0).as_deref(), Some("3"));
    }
}
