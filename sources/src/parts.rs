//! Names of databases and what is in them as parts of a selector.

/// A name as one part: the words of `bk_core::name::escape`, without `/`, and neither `.` nor `..` alone.
pub fn part(name: &str) -> String {
    let text = bk_core::name::escape(name.as_bytes()).replace('/', "\\x2f");
    match text.as_str() {
        "." | ".." => text.replace('.', "\\x2e"),
        _ => text,
    }
}

/// The name behind a group or unit.
pub fn name_of(part: &str) -> String {
    String::from_utf8_lossy(&bk_core::name::unescape(part)).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_come_back_as_names() {
        for name in ["a/b", ".", "..", "new\nline", "back\\slash", "emoji😀"] {
            let part = part(name);
            assert!(!part.contains('/') && part != "." && part != "..");
            assert_eq!(name_of(&part), name);
        }
    }
}
