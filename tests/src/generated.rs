//! A source of one body of any size, which is made while it is read.

use crate::data;
use async_trait::async_trait;
use bk_core::context::Context;
use bk_core::error::Result;
use bk_core::name::MemberPath;
use bk_core::source::{
    Counted, Facts, Health, Input, Meta, Output, PointInTime, RestoreOptions, Snapshot,
    SnapshotOptions, Source, Stage, Tally,
};
use bytes::Bytes;

/// A stream of chunks that differ and do not shrink, made as fast as memory is copied: 1 MiB of noise, each time with another number in front.
pub fn chunks(mib: u64) -> impl Iterator<Item = Bytes> {
    let noise = data::noise(20, 1 << 20);
    (0..mib).map(move |n| {
        let mut chunk = noise.clone();
        chunk[..8].copy_from_slice(&n.to_le_bytes());
        chunk.into()
    })
}

/// The source. It restores nothing.
pub struct Generated {
    mib: u64,
}

impl Generated {
    /// Of so many MiB.
    pub fn new(mib: u64) -> Self {
        Self { mib }
    }
}

#[async_trait]
impl Source for Generated {
    async fn check(&self, _cx: &Context) -> Result<Health> {
        Ok(Health {
            identity: "generated".into(),
            describe: "generated".into(),
            warnings: Vec::new(),
        })
    }

    async fn snapshot(&self, _cx: &Context, _how: &SnapshotOptions) -> Result<Box<dyn Snapshot>> {
        Ok(Box::new(Generated { mib: self.mib }))
    }

    async fn restore(&self, _cx: &Context, _: Input, _: &RestoreOptions) -> Result<Tally> {
        Ok(Tally::default())
    }
}

#[async_trait]
impl Snapshot for Generated {
    fn at(&self) -> PointInTime {
        PointInTime {
            instant: "2026-08-22T03:15:00Z".parse().unwrap(),
            consistency: "none".into(),
            position: None,
        }
    }

    async fn write(&mut self, _cx: &Context, stage: Stage, out: &Output) -> Result<()> {
        // Members of 4 MiB, as a dump writes them, on lanes of 16.
        const MEMBER_MIB: u64 = 4;
        if stage != Stage::Data {
            return Ok(());
        }
        let mut stream = chunks(self.mib);
        out.expect("g", "u").await?;
        let mut members = 0;
        'lanes: loop {
            let mut lane = out.lane("u").await?;
            lane.unit("g", "u");
            for _ in 0..4 {
                let body: Vec<Bytes> = stream.by_ref().take(MEMBER_MIB as usize).collect();
                if body.is_empty() {
                    lane.close().await?;
                    break 'lanes;
                }
                let path = MemberPath::new(format!("g/u/{members:08}"))?;
                lane.member(path, Meta::default(), body.concat().into())
                    .await?;
                members += 1;
            }
            lane.close().await?;
        }
        out.end("g", "u", Counted { rows: members }).await
    }

    async fn close(self: Box<Self>, _cx: &Context) -> Result<Facts> {
        Ok(Facts {
            layout: 1,
            ..Facts::default()
        })
    }
}
