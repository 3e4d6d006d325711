//! Cells to SQL literals that come back equal on both servers, through the plain client as well.

/// How a column's cells are selected and written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Literal {
    /// Numbers, as they are printed.
    Bare,
    /// FLOAT by way of DOUBLE: the text protocol prints six digits.
    Float,
    /// DOUBLE: a bare `-0` would be an integer.
    Double,
    /// BIT: big-endian bytes.
    Bit,
    /// ENUM by its number: as text, its error value becomes the member `''`.
    Enum,
    /// SET by its number. Never by `+0`, which is a DOUBLE and loses members beyond the 53rd.
    Set,
    /// Text in utf8 and what compares like it, dates, JSON, UUID, INET.
    Text,
    /// Text in any other character set, as stored; BLOB, GEOMETRY, VECTOR.
    Binary,
}

impl Literal {
    /// By `information_schema.COLUMNS`: `DATA_TYPE` and `CHARACTER_SET_NAME`.
    pub fn of(data_type: &str, charset: Option<&str>) -> Self {
        match data_type {
            "tinyint" | "smallint" | "mediumint" | "int" | "bigint" | "decimal" | "year" => {
                Self::Bare
            }
            "float" => Self::Float,
            "double" => Self::Double,
            "bit" => Self::Bit,
            "enum" => Self::Enum,
            "set" => Self::Set,
            "char" | "varchar" | "tinytext" | "text" | "mediumtext" | "longtext" => match charset {
                Some("utf8mb4" | "utf8mb3" | "utf8" | "ascii") => Self::Text,
                _ => Self::Binary,
            },
            "date" | "time" | "datetime" | "timestamp" | "json" | "uuid" | "inet4" | "inet6" => {
                Self::Text
            }
            _ => Self::Binary,
        }
    }

    /// What stands in the SELECT for this column, whose name is quoted.
    pub fn select(self, column: &str) -> String {
        match self {
            Self::Float => format!("{column}+0e0"),
            Self::Enum => format!("{column}+0"),
            Self::Set => format!("CAST({column} AS UNSIGNED)"),
            _ => column.to_owned(),
        }
    }

    /// Appends the literal of a cell.
    pub fn write(self, out: &mut Vec<u8>, cell: Option<&[u8]>) {
        let Some(cell) = cell else {
            out.extend_from_slice(b"NULL");
            return;
        };
        match self {
            Self::Double | Self::Float if cell == b"-0" => out.extend_from_slice(b"-0e0"),
            Self::Bare | Self::Float | Self::Double | Self::Enum | Self::Set => {
                out.extend_from_slice(cell);
            }
            Self::Bit => hex(out, cell),
            Self::Text => quote(out, cell),
            Self::Binary => {
                out.extend_from_slice(b"_binary");
                quote(out, cell);
            }
        }
    }
}

fn hex(out: &mut Vec<u8>, bytes: &[u8]) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    out.extend_from_slice(b"0x");
    for byte in bytes {
        out.push(DIGITS[usize::from(byte >> 4)]);
        out.push(DIGITS[usize::from(byte & 15)]);
    }
}

/// What follows the backslash for bytes that are escaped; 0 for those that are not. The plain client ends at a NUL and turns CR LF into
/// LF, so both are escaped.
const ESCAPES: [u8; 256] = {
    let mut table = [0; 256];
    table[0] = b'0';
    table[b'\n' as usize] = b'n';
    table[b'\r' as usize] = b'r';
    table[b'\t' as usize] = b't';
    table[b'\\' as usize] = b'\\';
    table[b'\'' as usize] = b'\'';
    table[0x1A] = b'Z';
    table
};

/// Appends `'…'`.
pub fn quote(out: &mut Vec<u8>, bytes: &[u8]) {
    out.reserve(bytes.len() + 2);
    out.push(b'\'');
    let mut rest = bytes;
    while !rest.is_empty() {
        let plain = plain_bytes(rest);
        let (copied, more) = rest.split_at(plain);
        out.extend_from_slice(copied);
        rest = more;
        if let Some((byte, more)) = rest.split_first() {
            out.extend_from_slice(&[b'\\', ESCAPES[usize::from(*byte)]]);
            rest = more;
        }
    }
    out.push(b'\'');
}

/// How many bytes stand before the first that is escaped. Eight at a time as long as none of them is a control, `'` or `\`.
fn plain_bytes(bytes: &[u8]) -> usize {
    const EACH: u64 = u64::from_le_bytes([1; 8]);
    const HIGH: u64 = EACH * 0x80;
    let has_zero = |word: u64| word.wrapping_sub(EACH) & !word & HIGH;
    let mut at = 0;
    while let Some(eight) = bytes.get(at..at + 8) {
        let word = u64::from_le_bytes(eight.try_into().unwrap_or_default());
        let control = word.wrapping_sub(EACH * 0x20) & !word & HIGH;
        let quote = has_zero(word ^ (EACH * u64::from(b'\'')));
        let backslash = has_zero(word ^ (EACH * u64::from(b'\\')));
        if control | quote | backslash != 0
            && let Some(n) = eight.iter().position(|b| ESCAPES[usize::from(*b)] != 0)
        {
            return at + n;
        }
        at += 8;
    }
    let tail = bytes[at..].iter();
    let plain = tail.take_while(|b| ESCAPES[usize::from(**b)] == 0);
    at + plain.count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotes_escape_what_the_plain_client_would_change() {
        let mut out = Vec::new();
        quote(&mut out, b"a\0b\n\r\\'\x1a\"%_\xff");
        assert_eq!(out, b"'a\\0b\\n\\r\\\\\\'\\Z\"%_\xff'");
    }

    #[test]
    fn every_byte_at_every_place_is_quoted_alike() {
        for byte in 0..=255_u8 {
            for at in 0..20 {
                let mut bytes = vec![b'p'; 20];
                bytes[at] = byte;
                let mut out = Vec::new();
                quote(&mut out, &bytes);
                let expected = match ESCAPES[usize::from(byte)] {
                    0 => vec![byte],
                    escape => vec![b'\\', escape],
                };
                let expected = [&vec![b'p'; at][..], &expected, &vec![b'p'; 19 - at]].concat();
                assert_eq!(out, [b"'", &expected[..], b"'"].concat(), "{byte} at {at}");
            }
        }
    }

    #[test]
    fn negative_zero_stays_a_double() {
        let mut out = Vec::new();
        Literal::Double.write(&mut out, Some(b"-0"));
        assert_eq!(out, b"-0e0");
    }
}
