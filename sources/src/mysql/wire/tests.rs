//! The protocol against servers that say one thing and no more.

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

/// Takes nothing more.
struct HungUp;

impl AsyncWrite for HungUp {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, _: &[u8]) -> Poll<io::Result<usize>> {
        Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()))
    }
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// Keeps what it is sent.
struct Kept(std::sync::Arc<std::sync::Mutex<Vec<u8>>>);

impl AsyncWrite for Kept {
    fn poll_write(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.0.lock().unwrap().extend_from_slice(bytes);
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

/// What is sent to it is lost.
fn over(said: Said) -> Wire {
    Wire::over(Box::new(tokio::io::join(said, tokio::io::sink())))
}

fn wire(payloads: &[&[u8]], piece: usize) -> Wire {
    over(Said(packets(payloads), piece))
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
        (vec![&[2][..], b"column", &[ERROR, 1, 4, b'!']], "1025"),
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
async fn a_row_that_is_too_large_is_named_and_the_next_one_read() {
    let end = [END, 0, 0, 0, 0];
    let part = vec![b'x'; PART_BYTES];
    let mut wire = wire(
        &[&[1], b"column", &end, &part, b"end", &[1, b'1'], &end],
        1 << 20,
    );
    wire.limit_rows(PART_BYTES as u64);
    wire.ask(b"SELECT").await.unwrap();
    let mut cells = Vec::new();
    let error = wire.row(&mut cells).await.err();
    let bytes = PART_BYTES as u64 + 3;
    assert!(
        matches!(error, Some(Error::RowTooLarge(b)) if b == bytes),
        "{error:?}"
    );
    assert_eq!(wire.joined.capacity(), 0);
    let row = wire.row(&mut cells).await.unwrap().unwrap();
    assert_eq!(row.cell(0), Some(&b"1"[..]));
}

#[tokio::test]
async fn a_connection_that_was_left_in_the_middle_of_an_answer_is_not_used_again() {
    let (silent, _other) = tokio::io::duplex(1 << 10);
    let mut wire = Wire::over(Box::new(silent));
    let left = tokio::time::timeout(Duration::ZERO, wire.run(b"START TRANSACTION")).await;
    assert!(left.is_err());
    let error = wire.run(b"SELECT").await.unwrap_err().to_string();
    assert!(error.contains("in the middle of an answer"), "{error}");
}

#[tokio::test]
async fn the_last_words_of_a_server_that_hangs_up_are_heard() {
    let words = [&[ERROR, 0xBF, 0x0F][..], b"goodbye"].concat();
    let mut said = (words.len() as u32).to_le_bytes().to_vec();
    said.extend(&words);
    // Whether the statement still goes out or not.
    for written in [true, false] {
        let heard = Said(said.clone(), 1000);
        let mut wire = if written {
            over(heard)
        } else {
            Wire::over(Box::new(tokio::io::join(heard, HungUp)))
        };
        let error = wire.run(b"SELECT").await.unwrap_err();
        // Of the connection, not of the statement: the next one would have no better fate.
        assert!(matches!(error, Error::Io(_)));
        assert_eq!(error.to_string(), "error 4031: goodbye");
        assert!(wire.is_broken());
        let next = wire.run(b"SELECT").await.unwrap_err().to_string();
        assert_eq!(next, "the connection was lost");
    }
}

#[tokio::test]
async fn what_the_server_said_is_kept_and_further_answers_are_read() {
    let ok: &[u8] = &[
        OK, 0xFC, 44, 1, 0, 8, 0, 2, 0, 10, b'R', b'e', b'c', b'o', b'r', b'd', b's', b':', b' ',
        b'3',
    ];
    let end: &[u8] = &[END, 0, 0, 8, 0];
    let last: &[u8] = &[OK, 0, 0, 2, 0, 0, 0];
    let first = packets(&[ok, &[1], b"column", end, &[1, b'1'], end, last]);
    let end: &[u8] = &[END, 0, 0, 0, 0];
    let second = packets(&[&[1], b"column", end, &[1, b'5'], end]);
    let mut wire = over(Said([first, second].concat(), 1000));
    let told = wire.run(b"CALL p()").await.unwrap();
    assert_eq!((told.affected, told.warnings), (300, 2));
    assert_eq!(told.info, "Records: 3");
    let rows = wire.all(b"SELECT").await.unwrap();
    assert_eq!(rows[0].text(0).as_deref(), Some("5"));
}

#[tokio::test]
async fn a_statement_of_16_mib_goes_in_parts() {
    let mut wire = wire(&[], 1000);
    let sent = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
    wire.stream = Box::new(tokio::io::join(tokio::io::empty(), Kept(sent.clone())));
    let sql = vec![b'x'; PART_BYTES - 1];
    wire.send(Buf::chain(&[COM_QUERY][..], &sql[..]))
        .await
        .unwrap();
    let sent = sent.lock().unwrap();
    assert_eq!(&sent[..5], [0xFF, 0xFF, 0xFF, 0, COM_QUERY]);
    assert_eq!(&sent[4 + PART_BYTES..], [0, 0, 0, 1]);
}

#[tokio::test]
async fn a_server_that_asks_for_a_local_file_gets_none() {
    let mut said = packets(&[&[LOCAL_FILE, b'/', b'x']]);
    // Between the two stands our empty packet.
    said.extend([7, 0, 0, 3, OK, 0, 0, 2, 0, 0, 0]);
    let sent = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
    let both = tokio::io::join(Said(said, 1000), Kept(sent.clone()));
    let mut wire = Wire::over(Box::new(both));
    let error = wire.run(b"SELECT").await.unwrap_err().to_string();
    assert!(error.contains("none is sent"), "{error}");
    assert!(!wire.is_broken());
    assert_eq!(*sent.lock().unwrap(), b"\x07\0\0\0\x03SELECT\0\0\0\x02");
}

#[tokio::test]
async fn rows_that_nobody_wanted_do_not_stand_before_the_next_answer() {
    let end: &[u8] = &[END, 0, 0, 0, 0];
    let mut said = packets(&[&[1], b"column", end, &[1, b'1'], &[1, b'2'], end]);
    said.extend(packets(&[&[1], b"column", end, &[1, b'3'], end]));
    let mut wire = over(Said(said, 1000));
    wire.ask(b"SELECT").await.unwrap();
    wire.row(&mut Vec::new()).await.unwrap();
    let rows = wire.all(b"SELECT").await.unwrap();
    assert_eq!(rows[0].text(0).as_deref(), Some("3"));
}
