//! Archives that no honest writer makes: blocks changed and sealed again, members that lie, digests that were or were not recomputed.

use crate::fakes::MemorySink;
use bk_core::archive::format::{FORMAT, FormatMember, Stage, UnitLine};
use bk_core::archive::memory::Division;
use bk_core::archive::writer::{self, BlockInfo, NoEnvelope};
use bk_core::archive::xz::{self, FOOTER_BYTES, Record};
use bk_core::manifest::{Instance, Manifest, State, Totals};
use bk_core::source::Facts;
use bk_core::tee::Tee;
use bytes::Bytes;

/// The tar bytes of every block of an archive.
pub fn raw_blocks(archive: &[u8]) -> Vec<Vec<u8>> {
    let footer = &archive[archive.len() - FOOTER_BYTES..];
    let index_len = xz::index_bytes_from_footer(footer).unwrap() as usize;
    let index = &archive[archive.len() - FOOTER_BYTES - index_len..archive.len() - FOOTER_BYTES];
    let mut at = xz::STREAM_HEADER.len();
    xz::parse_index(index)
        .unwrap()
        .into_iter()
        .map(|record| {
            let stored = &archive[at..at + record.stored() as usize];
            at += record.stored() as usize;
            xz::decode(stored, record).unwrap()
        })
        .collect()
}

/// A valid xz file of these blocks: sums of the container are right, digests of the format are whatever the blocks say.
pub fn seal_again(blocks: &[Vec<u8>]) -> Bytes {
    let mut out = xz::STREAM_HEADER.to_vec();
    let mut records: Vec<Record> = Vec::new();
    for raw in blocks {
        let block = xz::encode(raw, 1).unwrap();
        records.push(block.record);
        out.extend_from_slice(&block.bytes);
    }
    out.extend_from_slice(&xz::index_and_footer(&records));
    out.into()
}

/// An archive of one instance `files` whose single data block holds `tar`, every digest right: only its members lie.
pub async fn sealed(tar: Vec<u8>, stage: Stage, members: u64, bytes: u64) -> Bytes {
    let sink = MemorySink::default();
    let cx = crate::engine::Site::default().context();
    let name = bk_core::backup::archive_name(
        &Default::default(),
        "2026-08-22T00:00:00Z".parse().unwrap(),
        &"f".repeat(32),
    );
    let mut tee = Tee::new(std::time::Duration::from_secs(60), cx.cancel.clone());
    tee.add(
        "memory",
        bk_core::sink::Sink::create(&sink, &cx, &name, Default::default())
            .await
            .unwrap(),
        |_| {},
    );
    let head = FormatMember {
        format: FORMAT.into(),
        needs: Vec::new(),
        tool: "bk 0.1.0".into(),
        site: "main".into(),
        id: "f".repeat(32),
        created: name.start,
    };
    let (entrance, writer) = writer::start(
        &Division::minimum(),
        bk_core::archive::xz::Compression::Preset(1),
        &head,
        Box::new(NoEnvelope),
        tee,
        cx.cancel.clone(),
    )
    .await
    .unwrap();
    let writing = tokio::spawn(writer.run());
    let unit = ("g".to_owned(), "u".to_owned());
    let pieces: Vec<Vec<u8>> = tar.chunks(4 << 20).map(<[u8]>::to_vec).collect();
    for (n, raw) in pieces.into_iter().enumerate() {
        let info = BlockInfo {
            instance: Some("files".into()),
            stage: Some(stage),
            first: Some("forged".into()),
            units: vec![(unit.0.clone(), unit.1.clone(), 0, raw.len() as u64)],
            continues: n > 0,
            ..BlockInfo::default()
        };
        entrance.submit(vec![(raw, info)]).await.unwrap();
    }
    let line = UnitLine {
        instance: "files".into(),
        group: unit.0,
        name: unit.1,
        stage,
        members,
        rows: members,
        bytes,
        failed: None,
    };
    entrance.unit(line).await.unwrap();
    entrance.end().await.unwrap();
    let writer = writing.await.unwrap().unwrap();
    let (written, _, tee) = writer
        .finish(manifest(&name, members, bytes))
        .await
        .unwrap();
    let seal = bk_core::sink::Seal {
        sha256: written.sha256,
        bytes: written.bytes,
        id: "f".repeat(32),
        site: "main".into(),
        complete: true,
    };
    for (_, upload) in tee.close().await {
        upload.unwrap().publish(&name, &seal).await.unwrap();
    }
    sink.archive(&sink.names()[0]).unwrap()
}

fn manifest(name: &bk_core::name::ArchiveName, members: u64, bytes: u64) -> Manifest {
    let instance = Instance {
        name: "files".into(),
        plugin: "files".into(),
        identity: "elsewhere".into(),
        describe: "forged".into(),
        state: State::Whole,
        at: None,
        totals: Totals {
            units: 1,
            failed: 0,
            members,
            rows: members,
            bytes,
        },
        failed: Vec::new(),
        error: None,
        facts: Facts {
            layout: 1,
            ..Facts::default()
        },
    };
    Manifest {
        format: FORMAT.into(),
        needs: Vec::new(),
        id: "f".repeat(32),
        site: "main".into(),
        name: name.plain(),
        label: None,
        created: name.start,
        finished: name.start,
        tool: "bk 0.1.0".into(),
        complete: true,
        subset: false,
        skew_ms: 0,
        parent: None,
        blocks: 0,
        index: Vec::new(),
        instances: vec![instance],
    }
}
