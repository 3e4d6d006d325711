//! A plugin in Rust: a source whose one member is as long as its settings say. The smallest use of `bk_core::plugin::guest`, and what the cost of the
//! protocol is measured with.

use async_trait::async_trait;
use bk_core::Result;
use bk_core::error::conflict;
use bk_core::plugin::guest::{self, Backup, Guest, Restore};
use bk_core::plugin::message::{Done, Entry, Open};
use bk_core::source::{Existing, Facts, Health, Stage};
use bytes::Bytes;

const CHUNK_BYTES: u64 = 1 << 20;

struct Long;

impl Long {
    fn bytes(open: &Open) -> u64 {
        open.settings["mib"].as_u64().unwrap_or_default() << 20
    }
}

#[async_trait]
impl Guest for Long {
    async fn check(&self, open: &Open) -> Result<Health> {
        Ok(Health {
            identity: "bk-guest".into(),
            describe: format!("{} bytes", Self::bytes(open)),
            warnings: Vec::new(),
        })
    }

    async fn backup(&self, open: &Open, out: &mut Backup) -> Result<Done> {
        out.snapshot().await?;
        let bytes = Self::bytes(open);
        out.begin(Entry {
            stage: Stage::Large,
            len: Some(bytes),
            ..guest::entry("long")
        })
        .await?;
        let chunk = Bytes::from((0..CHUNK_BYTES).map(|n| n as u8).collect::<Vec<u8>>());
        for _ in 0..bytes / CHUNK_BYTES {
            out.write(chunk.clone()).await?;
        }
        out.end(1).await?;
        Ok(Done {
            facts: Some(Facts {
                layout: 1,
                ..Facts::default()
            }),
            ..Done::default()
        })
    }

    async fn restore(&self, open: &Open, input: &mut Restore) -> Result<Done> {
        let asked = open.restore.as_ref().and_then(|ask| ask.existing);
        if asked == Some(Existing::Refuse) {
            return Err(conflict("its bytes are always there"));
        }
        while input.next().await?.is_some() {
            while input.chunk().await?.is_some() {}
            input.ok(1).await?;
        }
        Ok(Done::default())
    }
}

#[tokio::main]
async fn main() {
    std::process::exit(guest::serve_source("bk-guest", "1.0.0", &Long).await);
}
