//! Bytes ↔ frames of the plugin protocol, and nothing else: one byte of kind, four of length (big-endian), the body.

use crate::error::{Error, Result, plugin};
use bytes::{Buf, BufMut, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// The longest body of a frame.
pub const FRAME_MAX_BYTES: usize = 1 << 20;
const HEADER_BYTES: usize = 5;
const MESSAGE: u8 = b'J';
const DATA: u8 = b'D';

/// One frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame {
    /// A message: one JSON object.
    Message(Bytes),
    /// Bytes of the entry that is open.
    Data(Bytes),
}

/// Cuts a stream into frames.
pub struct FrameReader<R> {
    stream: R,
    header: BytesMut,
    body: BytesMut,
}

impl<R: AsyncRead + Unpin> FrameReader<R> {
    /// Frames of this stream.
    pub fn new(stream: R) -> Self {
        Self {
            stream,
            header: BytesMut::with_capacity(HEADER_BYTES),
            body: BytesMut::new(),
        }
    }

    /// The next frame, or nothing where the stream ends between two. Safe to drop while waiting. `Plugin`: the stream is no stream of frames.
    pub async fn next(&mut self) -> Result<Option<Frame>> {
        while self.header.len() < HEADER_BYTES {
            let room = HEADER_BYTES - self.header.len();
            let mut limited = (&mut self.header).limit(room);
            if self.stream.read_buf(&mut limited).await.map_err(broken)? == 0 {
                return if self.header.is_empty() {
                    Ok(None)
                } else {
                    Err(plugin("its output ended inside a frame"))
                };
            }
            if !matches!(self.header[0], MESSAGE | DATA) {
                return Err(plugin(format!(
                    "its output is no stream of frames: a frame begins with `{}`, not with `J` or `D`",
                    self.header[..1].escape_ascii()
                ))
                .hint("a plugin writes frames to standard output, and words for people to standard error"));
            }
        }
        let len = (&self.header[1..]).get_u32() as usize;
        if len > FRAME_MAX_BYTES {
            return Err(plugin(format!(
                "it announces a frame of {len} bytes; at most {FRAME_MAX_BYTES} are allowed"
            )));
        }
        if self.body.capacity() == 0 {
            self.body.reserve(len);
        }
        while self.body.len() < len {
            let room = len - self.body.len();
            let mut limited = (&mut self.body).limit(room);
            if self.stream.read_buf(&mut limited).await.map_err(broken)? == 0 {
                return Err(plugin("its output ended inside a frame"));
            }
        }
        let kind = self.header[0];
        self.header.clear();
        let body = std::mem::take(&mut self.body).freeze();
        Ok(Some(if kind == MESSAGE {
            Frame::Message(body)
        } else {
            Frame::Data(body)
        }))
    }
}

/// Writes frames.
pub struct FrameWriter<W> {
    stream: W,
}

impl<W: AsyncWrite + Unpin> FrameWriter<W> {
    /// Into this stream.
    pub fn new(stream: W) -> Self {
        Self { stream }
    }

    /// Writes a frame and flushes it. An error: the other side reads no more. Half a frame may be written when it is dropped while it waits.
    pub async fn write(&mut self, frame: &Frame) -> std::io::Result<()> {
        let (kind, body) = match frame {
            Frame::Message(body) => (MESSAGE, body),
            Frame::Data(body) => (DATA, body),
        };
        let mut header = [0; HEADER_BYTES];
        header[0] = kind;
        header[1..].copy_from_slice(&(body.len() as u32).to_be_bytes());
        let mut both = Buf::chain(&header[..], &body[..]);
        self.stream.write_all_buf(&mut both).await?;
        self.stream.flush().await
    }
}

fn broken(error: std::io::Error) -> Error {
    plugin(format!("its output cannot be read: {error}")).because(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn frames(bytes: &[u8]) -> Result<Vec<Frame>> {
        let mut reader = FrameReader::new(bytes);
        let mut frames = Vec::new();
        while let Some(frame) = reader.next().await? {
            frames.push(frame);
        }
        Ok(frames)
    }

    #[tokio::test]
    async fn frames_come_back_as_they_were_written() {
        let sent = [
            Frame::Message(Bytes::from_static(b"{}")),
            Frame::Data(Bytes::new()),
            Frame::Data(vec![7; FRAME_MAX_BYTES].into()),
        ];
        let mut bytes = Vec::new();
        let mut writer = FrameWriter::new(&mut bytes);
        for frame in &sent {
            writer.write(frame).await.unwrap();
        }
        assert_eq!(frames(&bytes).await.unwrap(), sent);
        for cut in [1, 4, 6, 9, bytes.len() - 1] {
            let error = frames(&bytes[..cut]).await.unwrap_err();
            assert_eq!(error.what, "its output ended inside a frame", "{cut}");
        }
    }

    #[tokio::test]
    async fn words_and_giants_are_no_frames() {
        let words = frames(b"hello\n").await.unwrap_err();
        assert!(words.what.contains("begins with `h`"), "{words}");
        let giant = frames(&[b'D', 0x40, 0, 0, 0]).await.unwrap_err();
        assert!(giant.what.contains("1073741824 bytes"), "{giant}");
    }
}
