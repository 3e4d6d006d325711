//! The kit on our sinks and sources, and the mutants that it must catch: each check has a fake with that one defect.

use async_trait::async_trait;
use bk_core::context::Context;
use bk_core::layout::Layout;
use bk_core::settings::Settings;
use bk_core::sink::Sink;
use bk_core::source::Source;
use bk_sinks::local::Local;
use bk_sources::files::{Files, FilesSettings};
use bk_tests::engine::Site;
use bk_tests::fakes::{FakeSource, MemorySink, SinkDefect, SourceDefect};
use bk_tests::source_suite::Subject;
use bk_tests::{data, sink_suite, source_suite};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

fn context() -> Context {
    Site::default().context()
}

async fn every_sink_check(empty: impl Fn() -> Arc<dyn Sink>) -> Vec<(&'static str, String)> {
    let mut failed = Vec::new();
    for (name, check) in sink_suite::CHECKS {
        if let Err(why) = check(&context(), &empty()).await {
            failed.push((*name, why));
        }
    }
    failed
}

#[tokio::test(flavor = "multi_thread")]
async fn the_sink_in_memory_passes_the_suite_with_and_without_ranges() {
    assert_eq!(
        every_sink_check(|| Arc::new(MemorySink::default())).await,
        []
    );
    assert_eq!(
        every_sink_check(|| Arc::new(MemorySink::default().without_ranges())).await,
        []
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_local_sink_passes_the_suite() {
    let folders = std::sync::Mutex::new(Vec::new());
    for layout in [Layout::Flat, Layout::Dates] {
        let empty = || {
            let folder = tempfile::tempdir().unwrap();
            let local = Local::new(folder.path().join("deep/out"));
            let sink: Arc<dyn Sink> = Arc::new(local.with_layout(layout));
            folders.lock().unwrap().push(folder);
            sink
        };
        assert_eq!(every_sink_check(empty).await, [], "{layout:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_defect_of_a_sink_is_caught_by_its_check() {
    let caught_by = [
        (
            SinkDefect::LosesTheLastByte,
            "what_is_published_reads_back_byte_for_byte",
        ),
        (
            SinkDefect::VisibleBeforePublish,
            "nothing_is_visible_before_publish",
        ),
        (SinkDefect::AbortKeeps, "abort_leaves_nothing"),
        (
            SinkDefect::OverwritesTheDay,
            "a_second_archive_of_a_day_leaves_the_first",
        ),
        (SinkDefect::ListsAWrongSize, "the_listed_size_is_the_size"),
        (
            SinkDefect::DeletesANeighbour,
            "deleting_one_leaves_its_neighbours",
        ),
        (
            SinkDefect::MissingReadsEmpty,
            "what_is_not_there_is_not_found",
        ),
        (
            SinkDefect::NotesIgnoreWas,
            "a_note_changes_only_from_what_it_was",
        ),
        (
            SinkDefect::NotesStay,
            "notes_are_listed_and_removed_by_name",
        ),
        (SinkDefect::SumsOfAnother, "the_sum_file_names_the_archive"),
        (
            SinkDefect::PartialAsWhole,
            "a_partial_has_a_name_of_its_own",
        ),
        (SinkDefect::RangeOffByOne, "any_range_reads_back"),
    ];
    let checks: std::collections::BTreeSet<_> = caught_by.iter().map(|(_, check)| *check).collect();
    assert_eq!(
        checks.len(),
        sink_suite::CHECKS.len(),
        "a check without a mutant"
    );
    for (defect, check) in caught_by {
        let failed = every_sink_check(|| Arc::new(MemorySink::mutant(defect))).await;
        assert!(
            failed.iter().any(|(name, _)| *name == check),
            "{defect:?} was not caught by {check}, only by {failed:?}"
        );
    }
}

/// The fake source as a subject.
struct Fake {
    source: std::sync::Mutex<FakeSource>,
}

impl Fake {
    fn new(defect: Option<SourceDefect>) -> Self {
        Self {
            source: std::sync::Mutex::new(FakeSource {
                defect,
                ..FakeSource::small(3, 4)
            }),
        }
    }
}

#[async_trait]
impl Subject for Fake {
    fn source(&self) -> Arc<dyn Source> {
        Arc::new(self.source.lock().unwrap().clone())
    }

    async fn seed(&self) {
        let source = self.source.lock().unwrap();
        *source.store.lock().unwrap() = FakeSource::small(3, 4).store.lock().unwrap().clone();
    }

    async fn wipe(&self) {
        self.source.lock().unwrap().store.lock().unwrap().clear();
    }

    async fn add_stranger(&self, group: &str) {
        self.source.lock().unwrap().store.lock().unwrap().insert(
            (group.into(), "stranger".into()),
            BTreeMap::from([("s".into(), "s".into())]),
        );
    }

    async fn digest(&self) -> BTreeMap<(String, String), String> {
        let source = self.source.lock().unwrap();
        let store = source.store.lock().unwrap();
        store
            .iter()
            .map(|(unit, members)| (unit.clone(), format!("{members:?}")))
            .collect()
    }

    async fn die_midway(&self) -> bool {
        self.source.lock().unwrap().restore_dies_after = Some(5);
        true
    }

    async fn stop_dying(&self) {
        self.source.lock().unwrap().restore_dies_after = None;
    }

    fn open_snapshots(&self) -> i64 {
        self.source
            .lock()
            .unwrap()
            .open_snapshots
            .load(std::sync::atomic::Ordering::SeqCst)
    }
}

/// A folder as a subject.
struct Folder {
    root: tempfile::TempDir,
    bad: std::sync::atomic::AtomicBool,
}

impl Folder {
    fn path(&self) -> PathBuf {
        self.root.path().join("tree")
    }
}

#[async_trait]
impl Subject for Folder {
    fn source(&self) -> Arc<dyn Source> {
        let settings = Settings {
            instance: "it".into(),
            folder: self.root.path().into(),
            table: Default::default(),
        };
        let files = Files::new(
            &settings,
            FilesSettings {
                path: "tree".into(),
                include: None,
                exclude: None,
            },
        )
        .unwrap();
        if self.bad.swap(false, std::sync::atomic::Ordering::SeqCst) {
            return Arc::new(DiesMidway(files, self.path()));
        }
        Arc::new(files)
    }

    async fn seed(&self) {
        data::odd_tree(&self.path());
        set_times(&self.path());
    }

    async fn wipe(&self) {
        if self.path().exists() {
            std::fs::remove_dir_all(self.path()).unwrap();
        }
        std::fs::create_dir(self.path()).unwrap();
    }

    async fn add_stranger(&self, group: &str) {
        let folder = if group == "." {
            self.path()
        } else {
            self.path().join(group).join("stranger")
        };
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join("file"), "strange").unwrap();
    }

    async fn digest(&self) -> BTreeMap<(String, String), String> {
        let mut units: BTreeMap<(String, String), String> = BTreeMap::new();
        for (path, what) in data::digest(&self.path()) {
            let text = bk_core::name::escape(&path);
            // A folder's own time is its group's; strangers change it.
            let parts: Vec<&str> = text.split('/').filter(|p| !p.is_empty()).collect();
            let is_folder = what.starts_with("folder");
            let unit = match (parts.as_slice(), is_folder) {
                ([], _) | ([_], true) => continue,
                ([_], false) => (".".to_owned(), ".".to_owned()),
                ([group, _], false) => ((*group).to_owned(), ".".to_owned()),
                ([group, unit, ..], _) => ((*group).to_owned(), (*unit).to_owned()),
            };
            // Restoring one unit gives it files of its own: which names in other units share an inode is not its digest.
            let first = what
                .split(" first ")
                .nth(1)
                .and_then(|rest| rest.split(" mode ").next());
            let elsewhere = first.is_some_and(|first| {
                first == text || !first.starts_with(&format!("{}/{}/", unit.0, unit.1))
            });
            let what = match what.split_once(" first ") {
                Some((before, after)) if elsewhere => format!(
                    "{before} mode {}",
                    after.split(" mode ").nth(1).unwrap_or_default()
                ),
                _ => what,
            };
            units
                .entry(unit)
                .or_default()
                .push_str(&format!("{text}: {what}\n"));
        }
        units
    }

    async fn die_midway(&self) -> bool {
        self.bad.store(true, std::sync::atomic::Ordering::SeqCst);
        true
    }
}

/// The same time for everything, so that the same tree gives the same blocks.
fn set_times(path: &std::path::Path) {
    let meta = std::fs::symlink_metadata(path).unwrap();
    if meta.is_dir() {
        std::fs::read_dir(path)
            .unwrap()
            .for_each(|entry| set_times(&entry.unwrap().path()));
    }
    let stamp = rustix::fs::Timespec {
        tv_sec: 1_700_000_000,
        tv_nsec: 5,
    };
    let times = rustix::fs::Timestamps {
        last_access: stamp,
        last_modification: stamp,
    };
    rustix::fs::utimensat(
        rustix::fs::CWD,
        path,
        &times,
        rustix::fs::AtFlags::SYMLINK_NOFOLLOW,
    )
    .unwrap();
}

/// The files source whose target turns bad under it: a folder stands where a file must go.
struct DiesMidway(Files, PathBuf);

#[async_trait]
impl Source for DiesMidway {
    async fn check(&self, cx: &Context) -> bk_core::Result<bk_core::source::Health> {
        self.0.check(cx).await
    }

    async fn snapshot(
        &self,
        cx: &Context,
        how: &bk_core::source::SnapshotOptions,
    ) -> bk_core::Result<Box<dyn bk_core::source::Snapshot>> {
        self.0.snapshot(cx, how).await
    }

    async fn restore(
        &self,
        cx: &Context,
        input: bk_core::source::Input,
        how: &bk_core::source::RestoreOptions,
    ) -> bk_core::Result<bk_core::source::Tally> {
        std::fs::create_dir_all(self.1.join("sizes/small/record/in the way")).unwrap();
        let done = self.0.restore(cx, input, how).await;
        std::fs::remove_dir_all(self.1.join("sizes/small/record")).unwrap();
        done
    }
}

async fn every_source_check(subject: impl Fn() -> Box<dyn Subject>) -> Vec<(&'static str, String)> {
    let mut failed = Vec::new();
    for (name, check) in source_suite::CHECKS {
        if let Err(why) = check(&*subject()).await {
            failed.push((*name, why));
        }
    }
    failed
}

#[tokio::test(flavor = "multi_thread")]
async fn the_fake_source_passes_the_suite() {
    assert_eq!(every_source_check(|| Box::new(Fake::new(None))).await, []);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_files_source_passes_the_suite() {
    let subject = || -> Box<dyn Subject> {
        Box::new(Folder {
            root: tempfile::tempdir().unwrap(),
            bad: Default::default(),
        })
    };
    assert_eq!(every_source_check(subject).await, []);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_defect_of_a_source_is_caught_by_its_check() {
    let caught_by = [
        (
            SourceDefect::SnapshotNotClosed,
            "a_snapshot_is_closed_when_another_source_fails",
        ),
        (SourceDefect::UnitWithoutEnd, "every_expected_unit_ends"),
        (SourceDefect::ShortBody, "what_was_there_comes_back"),
        (SourceDefect::LosesAUnit, "what_was_there_comes_back"),
        (SourceDefect::WrongCount, "a_restore_counts_what_it_wrote"),
        (
            SourceDefect::ReplacesANeighbour,
            "replacing_a_unit_leaves_its_neighbours",
        ),
        (
            SourceDefect::ReplaceKeepsTheRest,
            "replacing_a_group_removes_what_the_archive_has_not",
        ),
        (SourceDefect::MergeDropsTheRest, "merging_keeps_the_rest"),
        (SourceDefect::CheckChangesThings, "check_changes_nothing"),
        (
            SourceDefect::SequenceNumberInAMember,
            "the_same_data_gives_the_same_blocks",
        ),
        (
            SourceDefect::RestoresTheExcluded,
            "the_excluded_is_not_written",
        ),
        (
            SourceDefect::RefuseWrites,
            "refuse_writes_nothing_where_something_is",
        ),
        (
            SourceDefect::NoMark,
            "a_half_restored_target_is_not_backed_up_as_good",
        ),
    ];
    let checks: std::collections::BTreeSet<_> = caught_by.iter().map(|(_, check)| *check).collect();
    assert_eq!(
        checks.len(),
        source_suite::CHECKS.len(),
        "a check without a mutant"
    );
    for (defect, check) in caught_by {
        let failed = every_source_check(|| Box::new(Fake::new(Some(defect)))).await;
        assert!(
            failed.iter().any(|(name, _)| *name == check),
            "{defect:?} was not caught by {check}, only by {failed:?}"
        );
    }
}
