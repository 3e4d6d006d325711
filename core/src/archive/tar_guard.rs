//! A look at the headers of a tar that others made, on their way to whoever reads it: names and records that would fill the memory are refused
//! before they are read.
//!
//! It only follows where each header begins. Where that cannot be followed (a header's own checksum is wrong) it looks no further, for nobody
//! reads on from there.

use crate::error::Error;
use std::io::Read;

/// Longest body of a header that belongs to another one. (A path has at most 4,096 bytes; records of extended attributes are longer.)
const MAX_EXTENSION_BYTES: u64 = 1 << 20;
const RECORD: usize = 512;

/// Where the next bytes belong.
enum At {
    /// A header, of which so much is there.
    Header(usize),
    /// More map of a sparse file, the same.
    SparseMap(usize, u64),
    /// A body and its padding: so many bytes follow.
    Body(u64),
    /// Nowhere that is known.
    Lost,
}

/// Passes a tar on.
pub struct Guarded<R> {
    stream: R,
    at: At,
    record: [u8; RECORD],
    /// Records of the header that comes next, while they go by.
    extended: Option<Vec<u8>>,
    /// The size that they give it.
    size: Option<u64>,
}

impl<R: Read> Guarded<R> {
    /// From its first byte.
    pub fn new(stream: R) -> Self {
        Self {
            stream,
            at: At::Header(0),
            record: [0; RECORD],
            extended: None,
            size: None,
        }
    }

    fn see(&mut self, mut bytes: &[u8]) -> Result<(), Error> {
        while !bytes.is_empty() {
            let taken = match &mut self.at {
                At::Lost => return Ok(()),
                At::Header(filled) | At::SparseMap(filled, _) => {
                    let taken = bytes.len().min(RECORD - *filled);
                    self.record[*filled..*filled + taken].copy_from_slice(&bytes[..taken]);
                    *filled += taken;
                    taken
                }
                At::Body(left) => {
                    let taken = usize::try_from(*left)
                        .unwrap_or(usize::MAX)
                        .min(bytes.len());
                    *left -= taken as u64;
                    if let Some(extended) = &mut self.extended {
                        extended.extend_from_slice(&bytes[..taken]);
                    }
                    taken
                }
            };
            bytes = &bytes[taken..];
            self.at = match self.at {
                At::Header(RECORD) => self.header()?,
                At::SparseMap(RECORD, size) if self.record[504] != 0 => At::SparseMap(0, size),
                At::SparseMap(RECORD, size) => self.body(size),
                At::Body(0) => self.next(),
                At::Header(filled) => At::Header(filled),
                At::SparseMap(filled, size) => At::SparseMap(filled, size),
                At::Body(left) => At::Body(left),
                At::Lost => At::Lost,
            };
        }
        Ok(())
    }

    fn header(&mut self) -> Result<At, Error> {
        let header = tar::Header::from_byte_slice(&self.record);
        if self.record.iter().all(|byte| *byte == 0) {
            return Ok(At::Header(0));
        }
        let (Ok(size), true) = (header.entry_size(), is_sound(&self.record)) else {
            return Ok(At::Lost);
        };
        let kind = header.entry_type();
        let belongs_to_another = kind.is_gnu_longname()
            || kind.is_gnu_longlink()
            || kind.is_pax_local_extensions()
            || kind.is_pax_global_extensions();
        if belongs_to_another {
            if size > MAX_EXTENSION_BYTES {
                return Err(Error::corrupt(format!(
                    "a name or an extended header in the tar has {size} bytes; no honest one has more than {MAX_EXTENSION_BYTES}"
                )));
            }
            self.extended = kind.is_pax_local_extensions().then(Vec::new);
            return Ok(self.body(size));
        }
        let size = self.size.take().unwrap_or(size);
        if kind.is_gnu_sparse() && self.record[482] != 0 {
            return Ok(At::SparseMap(0, size));
        }
        Ok(self.body(size))
    }

    fn body(&mut self, size: u64) -> At {
        match size.checked_next_multiple_of(RECORD as u64) {
            Some(0) => self.next(),
            Some(left) => At::Body(left),
            None => At::Lost,
        }
    }

    /// A body is over.
    fn next(&mut self) -> At {
        if let Some(extended) = self.extended.take() {
            let records = tar::PaxExtensions::new(&extended);
            let size = records
                .flatten()
                .filter(|record| record.key_bytes() == b"size");
            self.size = size
                .last()
                .and_then(|record| record.value().ok()?.parse().ok());
        }
        At::Header(0)
    }
}

/// Whether a header's checksum is right. (POSIX.1-1988 ustar: the sum of all bytes, its own field read as spaces.)
fn is_sound(record: &[u8; RECORD]) -> bool {
    let sum = |range: &[u8]| range.iter().map(|byte| u32::from(*byte)).sum::<u32>();
    let expected = sum(&record[..148]) + 8 * 32 + sum(&record[156..]);
    tar::Header::from_byte_slice(record)
        .cksum()
        .is_ok_and(|told| told == expected)
}

impl<R: Read> Read for Guarded<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let read = self.stream.read(buffer)?;
        self.see(&buffer[..read]).map_err(std::io::Error::other)?;
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn passed(tar: &[u8], step: usize) -> std::io::Result<Vec<u8>> {
        let mut guarded = Guarded::new(tar);
        let (mut out, mut buffer) = (Vec::new(), vec![0; step]);
        loop {
            match guarded.read(&mut buffer)? {
                0 => return Ok(out),
                read => out.extend_from_slice(&buffer[..read]),
            }
        }
    }

    fn member(builder: &mut tar::Builder<Vec<u8>>, kind: tar::EntryType, name: &str, body: &[u8]) {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_size(body.len() as u64);
        header.set_path(name).unwrap();
        header.set_cksum();
        builder.append(&header, body).unwrap();
    }

    #[test]
    fn an_honest_tar_passes_whole_and_a_name_without_end_does_not() {
        let mut builder = tar::Builder::new(Vec::new());
        // What looks like a header inside a body is none.
        let mut bait = tar::Header::new_gnu();
        bait.set_entry_type(tar::EntryType::GNULongName);
        bait.set_size(1 << 40);
        bait.set_cksum();
        member(
            &mut builder,
            tar::EntryType::Regular,
            "bait",
            bait.as_bytes(),
        );
        let mut size = tar::Header::new_ustar();
        size.set_size(0);
        builder
            .append_pax_extensions([("size", &b"1024"[..])])
            .unwrap();
        let mut lying = tar::Header::new_ustar();
        lying.set_path("sized").unwrap();
        lying.set_size(0);
        lying.set_cksum();
        let tar = builder.get_mut();
        tar.extend_from_slice(lying.as_bytes());
        tar.extend_from_slice(&[bait.as_bytes().as_slice(), &[1; 512]].concat());
        let long = "l".repeat(3000);
        member(
            &mut builder,
            tar::EntryType::GNULongName,
            "././@LongLink",
            long.as_bytes(),
        );
        member(&mut builder, tar::EntryType::Regular, "l", b"body");
        let honest = builder.into_inner().unwrap();
        for step in [1, 7, 512, 1000, 1 << 20] {
            assert_eq!(passed(&honest, step).unwrap(), honest, "{step}");
        }
        for kind in [b'L', b'K', b'x', b'g'] {
            let mut builder = tar::Builder::new(Vec::new());
            let body = vec![b'n'; (1 << 20) + 1];
            member(&mut builder, tar::EntryType::new(kind), "evil", &body);
            let evil = builder.into_inner().unwrap();
            let why = passed(&evil, 4096).unwrap_err().to_string();
            assert!(why.contains("1048577 bytes"), "{why}");
        }
    }
}
