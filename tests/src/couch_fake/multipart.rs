//! Documents with attachments behind them, both ways.

use super::json::quoted;
use super::tree::{Attachment, Leaf};

/// What stands in a document for its attachments.
pub fn listed(leaf: &Leaf, how: Listed) -> String {
    let entries: Vec<String> = leaf
        .attachments
        .iter()
        .map(|a| {
            let mut fields = vec![
                format!("\"content_type\":{}", quoted(&a.content_type)),
                format!("\"revpos\":{}", a.revpos),
                format!("\"digest\":{}", quoted(&a.digest)),
            ];
            match how {
                Listed::Stubs | Listed::StubsWithEncoding => {
                    fields.extend([format!("\"length\":{}", a.length), "\"stub\":true".into()]);
                    if how == Listed::StubsWithEncoding && a.gzip {
                        fields.push("\"encoding\":\"gzip\"".into());
                        fields.push(format!("\"encoded_length\":{}", a.stored.len()));
                    }
                }
                Listed::Follow => {
                    fields.push(format!("\"length\":{}", a.length));
                    fields.push("\"follows\":true".into());
                    if a.gzip {
                        fields.push("\"encoding\":\"gzip\"".into());
                        fields.push(format!("\"encoded_length\":{}", a.stored.len()));
                    }
                }
                Listed::Inline => {
                    use base64::Engine;
                    let data = base64::prelude::BASE64_STANDARD.encode(plain(a));
                    fields.push(format!("\"data\":\"{data}\""));
                }
            }
            format!("{}:{{{}}}", quoted(&a.name), fields.join(","))
        })
        .collect();
    format!("{{{}}}", entries.join(","))
}

/// How attachments are told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Listed {
    Stubs,
    StubsWithEncoding,
    Follow,
    Inline,
}

/// Bytes as they were given.
pub fn plain(attachment: &Attachment) -> Vec<u8> {
    use std::io::Read;
    if !attachment.gzip {
        return attachment.stored.to_vec();
    }
    let mut out = Vec::new();
    flate2::read::GzDecoder::new(&attachment.stored[..])
        .read_to_end(&mut out)
        .unwrap();
    out
}

/// A document and what is behind it. After the last line nothing comes.
pub fn related(json: &str, leaf: &Leaf, boundary: &str) -> Vec<u8> {
    let mut out =
        format!("--{boundary}\r\nContent-Type: application/json\r\n\r\n{json}").into_bytes();
    for a in &leaf.attachments {
        let encoding = if a.gzip {
            "Content-Encoding: gzip\r\n"
        } else {
            ""
        };
        let head = format!(
            "\r\n--{boundary}\r\nContent-Disposition: attachment; filename=\"{}\"\r\nContent-Type: {}\r\nContent-Length: {}\r\n{encoding}\r\n",
            a.name,
            a.content_type,
            a.stored.len(),
        );
        out.extend_from_slice(head.as_bytes());
        out.extend_from_slice(&a.stored);
    }
    out.extend_from_slice(format!("\r\n--{boundary}--").as_bytes());
    out
}

/// The document of a body, and the parts behind it with what stands before each cut off.
pub fn parts<'a>(
    body: &'a [u8],
    boundary: &str,
    lengths: impl Fn(&str) -> Option<Vec<usize>>,
) -> Option<(&'a str, Vec<&'a [u8]>)> {
    let line = format!("--{boundary}");
    let body = body.strip_prefix(line.as_bytes())?;
    let head = find(body, b"\r\n\r\n")? + 4;
    let end = format!("\r\n--{boundary}");
    let len = find(&body[head..], end.as_bytes())?;
    let json = std::str::from_utf8(&body[head..head + len]).ok()?;
    let mut rest = &body[head + len..];
    let mut found = Vec::new();
    for len in lengths(json)? {
        rest = rest.strip_prefix(end.as_bytes())?;
        rest = &rest[find(rest, b"\r\n\r\n")? + 4..];
        found.push(rest.get(..len)?);
        rest = &rest[len..];
    }
    (rest == format!("{end}--").as_bytes()).then_some((json, found))
}

fn find(bytes: &[u8], what: &[u8]) -> Option<usize> {
    bytes.windows(what.len()).position(|window| window == what)
}
