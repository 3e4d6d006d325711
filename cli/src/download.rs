//! Small files by address: plugins, and lists of them. Never more than a plugin's file is long.

use bk_core::error::{Error, ErrorKind, Result, settings};
use reqwest::Url;
use std::time::Duration;

const CONNECT: Duration = Duration::from_secs(10);
const SILENCE: Duration = Duration::from_mins(1);
/// The longest file.
const MOST_BYTES: usize = 512 << 20;

/// Whether this is an address and no path.
pub fn is_address(text: &str) -> bool {
    text.starts_with("https://") || text.starts_with("http://")
}

/// What `relative` is, said of the place `of`: both may be addresses or paths.
pub fn beside(of: &str, relative: &str) -> String {
    if is_address(of) {
        let joined = Url::parse(of).and_then(|of| of.join(relative));
        return joined.map_or_else(|_| relative.to_owned(), |url| url.to_string());
    }
    if is_address(relative) || relative.starts_with('/') {
        return relative.to_owned();
    }
    let folder = std::path::Path::new(of).parent();
    let folder = folder.unwrap_or(std::path::Path::new("."));
    folder.join(relative).to_string_lossy().into_owned()
}

/// The bytes at an address or a path.
pub async fn get(place: &str) -> Result<Vec<u8>> {
    if !is_address(place) {
        let path = std::path::Path::new(place);
        return std::fs::read(path).map_err(|e| Error::io("read", path, e));
    }
    let secret = |url: Url| !url.username().is_empty() || url.password().is_some();
    if Url::parse(place).is_ok_and(secret) {
        return Err(
            settings("an address with a name or a password in it would be written down")
                .hint("serve it without, or fetch the file and name its path"),
        );
    }
    // A second call finds it installed, which is as good.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let failed = |error: reqwest::Error| {
        let mut words = error.without_url().to_string();
        words.insert_str(0, &format!("{place}: "));
        Error::new(ErrorKind::Unreachable, words)
    };
    let client = reqwest::Client::builder()
        .connect_timeout(CONNECT)
        .read_timeout(SILENCE)
        .user_agent("bk")
        .build()
        .map_err(failed)?;
    let mut answer = client.get(place).send().await.map_err(failed)?;
    if !answer.status().is_success() {
        let kind = match answer.status().as_u16() {
            404 | 410 => ErrorKind::NotFound,
            _ => ErrorKind::Unreachable,
        };
        let what = format!("{place} answered {}", answer.status());
        return Err(Error::new(kind, what));
    }
    let mut bytes = Vec::new();
    while let Some(chunk) = answer.chunk().await.map_err(failed)? {
        bytes.extend_from_slice(&chunk);
        if bytes.len() > MOST_BYTES {
            return Err(settings(format!("{place} is longer than any plugin")));
        }
    }
    Ok(bytes)
}
