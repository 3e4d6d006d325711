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
    let mut from = 0;
    for (at, byte) in bytes.iter().enumerate() {
        let escape = ESCAPES[usize::from(*byte)];
        if escape != 0 {
            out.extend_from_slice(&bytes[from..at]);
            out.extend_from_slice(&[b'\\', escape]);
            from = at + 1;
        }
    }
    out.extend_from_slice(&bytes[from..]);
    out.push(b'\'');
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
    fn negative_zero_stays_a_double() {
        let mut out = Vec::new();
        Literal::Double.write(&mut out, Some(b"-0"));
        assert_eq!(out, b"-0e0");
    }
}
