//! What proves that bytes arrived: sums of parts and of the whole object, and the one try that shows which of them a store really checks.
//! Some answer every sum with success (an emulator), some drop unknown ones in silence; so a wrong sum must be refused before a right one counts.

use super::settings::Checksum;
use aws_sdk_s3::types::ChecksumAlgorithm;
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use crc_fast::{CrcAlgorithm, Digest};
use md5::Digest as _;
use serde::{Deserialize, Serialize};

/// What a store checks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Proof {
    /// CRC-64/NVME of parts, and of the object as one.
    Crc64nvme,
    /// CRC-32C of parts, and of their sums.
    Crc32c,
    /// MD5 of parts, and the ETag.
    Md5,
    /// Nothing: the archive is read back.
    None,
}

impl Proof {
    /// As the settings say, or nothing where it must be tried.
    pub fn set(checksum: Checksum) -> Option<Self> {
        match checksum {
            Checksum::Auto => None,
            Checksum::Crc64nvme => Some(Self::Crc64nvme),
            Checksum::Crc32c => Some(Self::Crc32c),
            Checksum::Md5 => Some(Self::Md5),
            Checksum::None => Some(Self::None),
        }
    }

    /// The name of its algorithm in requests.
    pub fn algorithm(self) -> Option<ChecksumAlgorithm> {
        match self {
            Self::Crc64nvme => Some(ChecksumAlgorithm::Crc64Nvme),
            Self::Crc32c => Some(ChecksumAlgorithm::Crc32C),
            Self::Md5 | Self::None => None,
        }
    }

    /// For people.
    pub fn words(self) -> &'static str {
        match self {
            Self::Crc64nvme => "CRC-64/NVME",
            Self::Crc32c => "CRC-32C",
            Self::Md5 => "MD5",
            Self::None => "no sum (every archive is read back)",
        }
    }
}

/// Sums of one body, as they are sent.
#[derive(Clone, Debug, Default)]
pub struct Sums {
    /// Base64, big-endian.
    pub crc64: Option<String>,
    /// Base64, big-endian.
    pub crc32c: Option<String>,
    /// Base64.
    pub md5: Option<String>,
    /// The number itself, to join parts.
    crc64_value: u64,
    crc32c_value: u32,
    md5_value: [u8; 16],
    bytes: u64,
}

impl Sums {
    /// Of these bytes, as far as the proof needs them.
    pub fn of(proof: Proof, bytes: &[u8]) -> Self {
        let mut sums = Self {
            bytes: bytes.len() as u64,
            ..Self::default()
        };
        match proof {
            Proof::Crc64nvme => {
                let mut digest = Digest::new(CrcAlgorithm::Crc64Nvme);
                digest.update(bytes);
                sums.crc64_value = digest.finalize();
                sums.crc64 = Some(BASE64_STANDARD.encode(sums.crc64_value.to_be_bytes()));
            }
            Proof::Crc32c => {
                sums.crc32c_value = crc32c(bytes);
                sums.crc32c = Some(BASE64_STANDARD.encode(sums.crc32c_value.to_be_bytes()));
            }
            Proof::Md5 | Proof::None => {
                sums.md5_value = md5::Md5::digest(bytes).into();
                sums.md5 = Some(BASE64_STANDARD.encode(sums.md5_value));
            }
        }
        sums
    }

    /// How many bytes they are of.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The ETag that an unencrypted part of these bytes has.
    pub fn etag(&self) -> String {
        hex(&self.md5_value)
    }
}

fn crc32c(bytes: &[u8]) -> u32 {
    let mut digest = Digest::new(CrcAlgorithm::Crc32Iscsi);
    digest.update(bytes);
    digest.finalize() as u32
}

/// An MD5 as others write it: 32 hexadecimal digits, or base64.
pub fn md5_in(text: &str) -> Option<[u8; 16]> {
    let text = text.trim().trim_matches('"');
    if text.len() == 32 {
        let mut sum = [0; 16];
        for (n, byte) in sum.iter_mut().enumerate() {
            *byte = u8::from_str_radix(text.get(2 * n..2 * n + 2)?, 16).ok()?;
        }
        return Some(sum);
    }
    BASE64_STANDARD.decode(text).ok()?.try_into().ok()
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// What a store must say of the whole object, from the sums of its parts in order.
pub fn of_whole(proof: Proof, parts: &[Sums]) -> Option<String> {
    match proof {
        Proof::Crc64nvme => {
            let whole = parts.iter().fold(0, |sum, part| {
                crc_fast::checksum_combine(
                    CrcAlgorithm::Crc64Nvme,
                    sum,
                    part.crc64_value,
                    part.bytes,
                )
            });
            Some(BASE64_STANDARD.encode(whole.to_be_bytes()))
        }
        Proof::Crc32c => {
            let joined: Vec<u8> = parts
                .iter()
                .flat_map(|p| p.crc32c_value.to_be_bytes())
                .collect();
            let sum = BASE64_STANDARD.encode(crc32c(&joined).to_be_bytes());
            Some(format!("{sum}-{}", parts.len()))
        }
        Proof::Md5 => {
            let joined: Vec<u8> = parts.iter().flat_map(|p| p.md5_value).collect();
            let sum: [u8; 16] = md5::Md5::digest(&joined).into();
            Some(format!("{}-{}", hex(&sum), parts.len()))
        }
        Proof::None => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_of_parts_join_to_the_sum_of_the_whole() {
        let body: Vec<u8> = (0..100_000_u32).map(|n| (n * 7 + n / 251) as u8).collect();
        for cut in [1, 4096, 99_999] {
            let parts = [&body[..cut], &body[cut..]].map(|part| Sums::of(Proof::Crc64nvme, part));
            assert_eq!(
                of_whole(Proof::Crc64nvme, &parts),
                Sums::of(Proof::Crc64nvme, &body).crc64
            );
        }
        // The check value of the field's tables for "123456789".
        let sums = Sums::of(Proof::Crc64nvme, b"123456789");
        assert_eq!(sums.crc64_value, 0xae8b_1486_0a79_9888);
        assert_eq!(
            Sums::of(Proof::Crc32c, b"123456789").crc32c_value,
            0xe306_9283
        );
    }
}
