//! One xz Block alone, and the frame around many: Stream Header, Index, Footer (the xz file format, version 1.2.1).
//!
//! A Block is encoded by liblzma's raw LZMA2 encoder and framed here, or, when its bytes do not shrink, framed as LZMA2 uncompressed
//! chunks; both carry their sizes in the Block Header. Decoding wraps one Block into a whole Stream and hands it to liblzma's strict
//! stream decoder, so every field of the header, the padding and the CRC64 is checked by code that is not ours.

use crate::archive::format::{BLOCK_MAX_BYTES, Codec};
use crate::error::{Error, Result, bug};
use xz2::stream::{Action, Filters, LzmaOptions, Status, Stream};

/// Stream Header: magic, flags "check is CRC64", CRC32 of the flags.
pub const STREAM_HEADER: [u8; 12] = [
    0xFD, b'7', b'z', b'X', b'Z', 0, 0, 4, 0xE6, 0xD6, 0xB4, 0x46,
];
/// Bytes of the Stream Footer.
pub const FOOTER_BYTES: usize = 12;
const CHECK_BYTES: u64 = 8;
/// LZMA2 knows no smaller dictionary. One larger than its block would be memory cleared for nothing.
const DICTIONARY_MIN_BYTES: u32 = 4096;
const SAMPLE_BYTES: usize = 16 * 1024;
/// The decoder needs the dictionary and little more; 8 MiB blocks never need a larger one.
const DECODER_MEMORY_BYTES: u64 = 64 << 20;

/// A finished Block.
#[derive(Debug)]
pub struct Block {
    /// Header, data, padding and check: what stands in the file.
    pub bytes: Vec<u8>,
    /// How the data is coded.
    pub codec: Codec,
    /// The two numbers of its Index Record.
    pub record: Record,
}

/// One Record of the Index: sizes of a Block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record {
    /// Size without the padding.
    pub unpadded: u64,
    /// Size of what is inside.
    pub raw: u64,
}

impl Record {
    /// Bytes that the Block takes in the file.
    pub fn stored(self) -> u64 {
        self.unpadded.next_multiple_of(4)
    }
}

/// What is done to a Block's bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    /// LZMA2 with this preset, 0 to 9; what would not shrink is stored.
    Preset(u32),
    /// Nothing.
    Stored,
}

impl Compression {
    /// What one encoder holds, in bytes.
    pub fn memory_bytes(self) -> u64 {
        match self {
            Self::Preset(preset) => encoder_memory_bytes(preset),
            Self::Stored => 0,
        }
    }

    /// Encodes one Block; `raw` is never empty.
    pub fn encode(self, raw: &[u8]) -> Result<Block> {
        match self {
            Self::Preset(preset) => encode(raw, preset),
            Self::Stored => Ok(stored(raw, DICTIONARY_MIN_BYTES)),
        }
    }
}

/// Encodes one Block; `raw` is never empty. Stores it when it would not shrink.
pub fn encode(raw: &[u8], preset: u32) -> Result<Block> {
    let dictionary = dictionary_bytes(preset).min(
        (raw.len() as u32)
            .next_power_of_two()
            .max(DICTIONARY_MIN_BYTES),
    );
    if looks_random(raw)? {
        return Ok(stored(raw, dictionary));
    }
    let data = lzma2(raw, preset, dictionary)?;
    if data.len() >= raw.len() {
        return Ok(stored(raw, dictionary));
    }
    let write = |out: &mut Vec<u8>| out.extend_from_slice(&data);
    Ok(frame(data.len(), write, raw, dictionary, Codec::Lzma2))
}

/// Three samples through zstd -1: bytes that gain less than 3 % there are stored, xz would crawl over them for nothing.
fn looks_random(raw: &[u8]) -> Result<bool> {
    if raw.len() < SAMPLE_BYTES {
        return Ok(false);
    }
    let last = raw.len() - SAMPLE_BYTES;
    let mut shrunk = 0;
    for at in [0, last / 2, last] {
        let sample = &raw[at..at + SAMPLE_BYTES];
        shrunk += zstd::bulk::compress(sample, 1)
            .map_err(|e| bug(format!("zstd failed on a sample: {e}")))?
            .len();
    }
    Ok(shrunk * 100 >= 3 * SAMPLE_BYTES * 97)
}

/// The preset's dictionary, but never larger than a Block.
fn dictionary_bytes(preset: u32) -> u32 {
    let bytes = match preset {
        0 => 1 << 18,
        1 => 1 << 20,
        2 => 1 << 21,
        3 | 4 => 1 << 22,
        _ => 1 << 23,
    };
    bytes.min(BLOCK_MAX_BYTES as u32)
}

/// What one encoder of this preset holds, in bytes (liblzma's own figures, rounded up).
fn encoder_memory_bytes(preset: u32) -> u64 {
    match preset {
        0 => 4 << 20,
        1 => 10 << 20,
        2 => 18 << 20,
        3 => 33 << 20,
        4 => 49 << 20,
        _ => 95 << 20,
    }
}

fn lzma2(raw: &[u8], preset: u32, dictionary: u32) -> Result<Vec<u8>> {
    let failed = |e: xz2::stream::Error| bug(format!("the xz encoder failed: {e}"));
    let mut options = LzmaOptions::new_preset(preset).map_err(failed)?;
    options.dict_size(dictionary);
    let mut filters = Filters::new();
    filters.lzma2(&options);
    let mut encoder = Stream::new_raw_encoder(&filters).map_err(failed)?;
    let mut data = Vec::with_capacity(raw.len() / 3 + 4096);
    loop {
        let consumed = encoder.total_in() as usize;
        let status = encoder
            .process_vec(&raw[consumed..], &mut data, Action::Finish)
            .map_err(failed)?;
        match status {
            Status::StreamEnd => return Ok(data),
            _ => data.reserve(raw.len() / 4 + 4096),
        }
    }
}

/// LZMA2 "uncompressed chunk" form: control 1 (reset) then 2, 64 KiB at most in each, 0 at the end.
fn stored(raw: &[u8], dictionary: u32) -> Block {
    const CHUNK_BYTES: usize = 1 << 16;
    let len = raw.len() + raw.len().div_ceil(CHUNK_BYTES) * 3 + 1;
    let write = |out: &mut Vec<u8>| {
        for (i, chunk) in raw.chunks(CHUNK_BYTES).enumerate() {
            out.push(if i == 0 { 1 } else { 2 });
            out.extend_from_slice(&((chunk.len() - 1) as u16).to_be_bytes());
            out.extend_from_slice(chunk);
        }
        out.push(0);
    };
    frame(len, write, raw, dictionary, Codec::Stored)
}

/// Header, data of this length, padding and check, written once into a buffer that fits.
fn frame(
    len: usize,
    write: impl FnOnce(&mut Vec<u8>),
    raw: &[u8],
    dictionary: u32,
    codec: Codec,
) -> Block {
    let mut header = vec![0, 0xC0];
    push_vli(&mut header, len as u64);
    push_vli(&mut header, raw.len() as u64);
    header.extend_from_slice(&[0x21, 1, dictionary_code(dictionary)]);
    header.resize(header.len().next_multiple_of(4), 0);
    header[0] = (header.len() / 4) as u8;
    let crc = crc32(&header);
    header.extend_from_slice(&crc.to_le_bytes());

    let unpadded = header.len() as u64 + len as u64 + CHECK_BYTES;
    let mut bytes = Vec::with_capacity(unpadded.next_multiple_of(4) as usize);
    bytes.extend_from_slice(&header);
    write(&mut bytes);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes.extend_from_slice(&crc64(raw).to_le_bytes());
    Block {
        bytes,
        codec,
        record: Record {
            unpadded,
            raw: raw.len() as u64,
        },
    }
}

/// The LZMA2 property byte of the smallest dictionary that holds `bytes`.
fn dictionary_code(bytes: u32) -> u8 {
    (0_u8..40)
        .find(|code| (2 | u64::from(code & 1)) << (code / 2 + 11) >= u64::from(bytes))
        .unwrap_or(40)
}

/// Decodes one Block that is known to hold `record.raw` bytes; anything else, before or behind, is corrupt.
pub fn decode(stored: &[u8], record: Record) -> Result<Vec<u8>> {
    let corrupt = |why: &str| Error::corrupt(format!("a block does not decode: {why}"));
    if record.stored() != stored.len() as u64 || record.raw > BLOCK_MAX_BYTES {
        return Err(corrupt("its size is not what the index says"));
    }
    let frame_end = index_and_footer(&[record]);
    let mut decoder = Stream::new_stream_decoder(DECODER_MEMORY_BYTES, 0)
        .map_err(|e| bug(format!("no xz decoder: {e}")))?;
    // One byte more than promised, so that a longer block is seen and not cut.
    let mut raw = Vec::with_capacity(record.raw as usize + 1);
    for (part, last) in [
        (&STREAM_HEADER[..], false),
        (stored, false),
        (&frame_end[..], true),
    ] {
        let mut rest = part;
        while !rest.is_empty() {
            let before = decoder.total_in();
            let action = if last { Action::Finish } else { Action::Run };
            let status = decoder
                .process_vec(rest, &mut raw, action)
                .map_err(|e| corrupt(&e.to_string()))?;
            let consumed = (decoder.total_in() - before) as usize;
            rest = &rest[consumed..];
            if status == Status::StreamEnd {
                let whole = last && rest.is_empty() && raw.len() as u64 == record.raw;
                return if whole {
                    Ok(raw)
                } else {
                    Err(corrupt("it ends early or goes on"))
                };
            }
            if raw.len() as u64 > record.raw || (consumed == 0 && raw.len() == raw.capacity()) {
                return Err(corrupt("it is longer than the index says"));
            }
        }
    }
    Err(corrupt("it does not end"))
}

/// The two sizes that a Block Header of ours says, for reading a first Block without the Index.
pub fn record_of_block(block: &[u8]) -> Option<Record> {
    if *block.get(1)? != 0xC0 {
        return None;
    }
    let mut at = 2;
    let data = read_vli(block, &mut at).ok()?;
    let raw = read_vli(block, &mut at).ok()?;
    let header = (u64::from(block[0]) + 1) * 4;
    Some(Record {
        unpadded: header.checked_add(data)?.checked_add(CHECK_BYTES)?,
        raw,
    })
}

/// Index and Stream Footer for these Blocks.
pub fn index_and_footer(records: &[Record]) -> Vec<u8> {
    let mut index = vec![0];
    push_vli(&mut index, records.len() as u64);
    for record in records {
        push_vli(&mut index, record.unpadded);
        push_vli(&mut index, record.raw);
    }
    index.resize(index.len().next_multiple_of(4), 0);
    let crc = crc32(&index);
    index.extend_from_slice(&crc.to_le_bytes());

    let mut tail = Vec::with_capacity(6);
    tail.extend_from_slice(&((index.len() / 4 - 1) as u32).to_le_bytes());
    tail.extend_from_slice(&STREAM_HEADER[6..8]);
    index.extend_from_slice(&crc32(&tail).to_le_bytes());
    index.extend_from_slice(&tail);
    index.extend_from_slice(b"YZ");
    index
}

/// Bytes of the Index that this Footer closes.
pub fn index_bytes_from_footer(footer: &[u8]) -> Result<u64> {
    let corrupt = |why| {
        Error::corrupt(format!(
            "the file does not end as an xz archive ends: {why}"
        ))
    };
    let footer: &[u8; FOOTER_BYTES] = footer
        .try_into()
        .map_err(|_| corrupt("it is shorter than a footer"))?;
    if &footer[10..] != b"YZ" {
        return Err(corrupt("it was cut short, or bytes were added"));
    }
    if footer[8..10] != STREAM_HEADER[6..8] {
        return Err(corrupt("its check is not CRC64"));
    }
    let word = |at: usize| u32::from_le_bytes(footer[at..at + 4].try_into().expect("four bytes"));
    if word(0) != crc32(&footer[4..10]) {
        return Err(corrupt("the footer's own sum is wrong"));
    }
    Ok((u64::from(word(4)) + 1) * 4)
}

/// The Records of an Index (without the footer).
pub fn parse_index(index: &[u8]) -> Result<Vec<Record>> {
    let corrupt = |why: &str| Error::corrupt(format!("the xz index is damaged: {why}"));
    if index.len() < 8 || index[0] != 0 {
        return Err(corrupt("it does not begin as one"));
    }
    let (body, crc) = index.split_at(index.len() - 4);
    if crc32(body).to_le_bytes() != crc {
        return Err(corrupt("its sum is wrong"));
    }
    let mut at = 1;
    let count = read_vli(body, &mut at)?;
    if count > body.len() as u64 / 2 {
        return Err(corrupt("it promises more blocks than it can hold"));
    }
    let mut records = Vec::with_capacity(count as usize);
    for _ in 0..count {
        let record = Record {
            unpadded: read_vli(body, &mut at)?,
            raw: read_vli(body, &mut at)?,
        };
        if record.unpadded < 16
            || record.unpadded > 2 * BLOCK_MAX_BYTES
            || record.raw == 0
            || record.raw > BLOCK_MAX_BYTES
        {
            return Err(corrupt("a block's size is out of bounds"));
        }
        records.push(record);
    }
    if body.len() - at > 3 || body[at..].iter().any(|b| *b != 0) {
        return Err(corrupt("bytes follow its last record"));
    }
    Ok(records)
}

fn push_vli(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn read_vli(bytes: &[u8], at: &mut usize) -> Result<u64> {
    let mut value = 0_u64;
    for shift in (0..63).step_by(7) {
        let byte = *bytes
            .get(*at)
            .ok_or_else(|| Error::corrupt("the xz index is damaged: a number is cut off"))?;
        *at += 1;
        value |= u64::from(byte & 0x7F) << shift;
        if byte & 0x80 == 0 {
            // The shortest form only, as the format demands.
            if byte == 0 && shift != 0 {
                break;
            }
            return Ok(value);
        }
    }
    Err(Error::corrupt(
        "the xz index is damaged: a number is malformed",
    ))
}

fn crc32(bytes: &[u8]) -> u32 {
    crc_fast::checksum(crc_fast::CrcAlgorithm::Crc32IsoHdlc, bytes) as u32
}

fn crc64(bytes: &[u8]) -> u64 {
    crc_fast::checksum(crc_fast::CrcAlgorithm::Crc64Xz, bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noise(len: usize) -> Vec<u8> {
        let mut out = vec![0; len];
        blake3::Hasher::new().finalize_xof().fill(&mut out);
        out
    }

    #[test]
    fn blocks_of_every_kind_decode_to_what_went_in() {
        let text = b"the same words again and again ".repeat(40_000);
        for raw in [
            &b"x"[..],
            &text,
            &noise(1 << 20),
            &noise(65_536),
            &noise(65_537),
            &vec![0; 8 << 20],
        ] {
            for preset in [0, 1, 6] {
                let block = encode(raw, preset).unwrap();
                assert_eq!(block.bytes.len() as u64, block.record.stored());
                assert_eq!(decode(&block.bytes, block.record).unwrap(), raw);
            }
        }
        assert_eq!(encode(&noise(1 << 20), 1).unwrap().codec, Codec::Stored);
        assert_eq!(encode(&text, 1).unwrap().codec, Codec::Lzma2);
    }

    #[test]
    fn an_index_says_the_records_that_it_was_made_of() {
        let records: Vec<_> = (1..300_u64)
            .map(|n| Record {
                unpadded: 16 + n * 977,
                raw: n * 13_001 % 8_000_000 + 1,
            })
            .collect();
        let bytes = index_and_footer(&records);
        let (index, footer) = bytes.split_at(bytes.len() - FOOTER_BYTES);
        assert_eq!(index_bytes_from_footer(footer).unwrap(), index.len() as u64);
        assert_eq!(parse_index(index).unwrap(), records);
    }

    #[test]
    fn a_block_longer_or_shorter_than_promised_is_corrupt() {
        let block = encode(&b"words ".repeat(5000), 1).unwrap();
        for raw in [block.record.raw - 1, block.record.raw + 1, 1] {
            assert!(
                decode(
                    &block.bytes,
                    Record {
                        raw,
                        ..block.record
                    }
                )
                .is_err()
            );
        }
    }
}
