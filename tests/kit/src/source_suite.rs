//! What every source must do. A subject says how to fill, empty and digest what the source reads.

use crate::engine::{Site, open, raw_sums};
use crate::fakes::MemorySink;
use crate::{Outcome, hold};
use async_trait::async_trait;
use bk_core::report::{Class, RestoreReport};
use bk_core::restore::Request;
use bk_core::selector::Selection;
use bk_core::sink::Sink;
use bk_core::source::{Existing, Source};
use futures::future::BoxFuture;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Something that a source backs up. It holds at least two groups, one with at least two units.
#[async_trait]
pub trait Subject: Send + Sync {
    /// The source.
    fn source(&self) -> Arc<dyn Source>;
    /// Fills it with the same things each time; equal calls give equal digests.
    async fn seed(&self);
    /// Empties it.
    async fn wipe(&self);
    /// Adds something to a unit's neighbourhood: a unit that no archive has, in group `group`.
    async fn add_stranger(&self, group: &str);
    /// What is there, by group and unit.
    async fn digest(&self) -> BTreeMap<(String, String), String>;
    /// Makes the next restore die midway; false where that cannot be done.
    async fn die_midway(&self) -> bool;
    /// Restores are whole again.
    async fn stop_dying(&self) {}
    /// Snapshots that are open, where that can be told.
    fn open_snapshots(&self) -> i64 {
        0
    }
}

/// A check of a source.
pub type Check = for<'a> fn(&'a dyn Subject) -> BoxFuture<'a, Outcome>;

macro_rules! checks {
    ($($name:ident),* $(,)?) => {
        /// All checks, by name.
        pub const CHECKS: &[(&str, Check)] = &[$((stringify!($name), |subject| Box::pin($name(subject)))),*];
    };
}

checks![
    what_was_there_comes_back,
    check_changes_nothing,
    the_same_data_gives_the_same_blocks,
    every_expected_unit_ends,
    a_snapshot_is_closed_when_another_source_fails,
    a_restore_counts_what_it_wrote,
    replacing_a_unit_leaves_its_neighbours,
    replacing_a_group_removes_what_the_archive_has_not,
    merging_keeps_the_rest,
    refuse_writes_nothing_where_something_is,
    the_excluded_is_not_written,
    a_half_restored_target_is_not_backed_up_as_good,
];

struct Given<'a> {
    subject: &'a dyn Subject,
    site: Site,
    memory: MemorySink,
    before: BTreeMap<(String, String), String>,
}

/// Seeded, and backed up once.
async fn given(subject: &dyn Subject) -> Result<Given<'_>, String> {
    subject.wipe().await;
    subject.seed().await;
    let before = subject.digest().await;
    let memory = MemorySink::default();
    let mut site = Site::default().sink("memory", memory.clone());
    site.sources.push(bk_core::config::SourceInstance {
        name: "it".into(),
        plugin: "fake".into(),
        after: Vec::new(),
        hooks: bk_core::hooks::Hooks::default(),
        source: subject.source(),
    });
    let report = site.backup().await;
    hold(report.complete && report.causes.is_empty(), || {
        format!(
            "the backup is not whole: {:?} {:?}",
            report.causes, report.sources
        )
    })?;
    Ok(Given {
        subject,
        site,
        memory,
        before,
    })
}

impl Given<'_> {
    async fn restore(
        &self,
        only: &[&str],
        exclude: &[&str],
        existing: Option<Existing>,
    ) -> Result<RestoreReport, String> {
        let list = |list: &[&str]| list.iter().map(|s| format!("it/{s}")).collect::<Vec<_>>();
        let selection = Selection::parse(&list(only), &list(exclude)).map_err(|e| e.to_string())?;
        self.site
            .restore(Request {
                selection,
                existing,
                ..Request::default()
            })
            .await
            .map_err(|e| e.to_string())
    }

    async fn differs(&self) -> Option<String> {
        let now = self.subject.digest().await;
        let all = self
            .before
            .keys()
            .chain(now.keys())
            .find(|key| self.before.get(*key) != now.get(*key))?;
        Some(format!(
            "{all:?}: before {:?}, now {:?}",
            self.before.get(all),
            now.get(all)
        ))
    }

    /// The group with the most units, one of them, and another group where there is one.
    fn places(&self) -> Result<(String, String, Option<String>), String> {
        let mut groups: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        self.before
            .keys()
            .for_each(|(g, u)| groups.entry(g).or_default().push(u));
        let (group, units) = groups
            .iter()
            .max_by_key(|(_, units)| units.len())
            .filter(|(_, units)| units.len() > 1)
            .ok_or("the subject has no group of two units")?;
        let other = groups.keys().find(|g| *g != group);
        Ok((
            (*group).to_owned(),
            units[0].to_owned(),
            other.map(|other| (*other).to_owned()),
        ))
    }
}

fn clean(report: &RestoreReport) -> Outcome {
    hold(report.causes.is_empty(), || {
        format!("the restore says {:?}", report.causes)
    })
}

async fn what_was_there_comes_back(subject: &dyn Subject) -> Outcome {
    let given = given(subject).await?;
    subject.wipe().await;
    let report = given.restore(&[], &[], None).await?;
    if let Some(difference) = given.differs().await {
        return Err(difference);
    }
    clean(&report)
}

async fn check_changes_nothing(subject: &dyn Subject) -> Outcome {
    subject.wipe().await;
    subject.seed().await;
    let before = subject.digest().await;
    subject
        .source()
        .check(&Site::default().context())
        .await
        .map_err(|e| e.to_string())?;
    hold(before == subject.digest().await, || {
        "`check` changed something".into()
    })
}

async fn the_same_data_gives_the_same_blocks(subject: &dyn Subject) -> Outcome {
    let given = given(subject).await?;
    let report = given.site.backup().await;
    hold(report.complete, || "the second backup is not whole".into())?;
    let sink: Arc<dyn Sink> = Arc::new(given.memory.clone());
    let mut sets = Vec::new();
    for name in given.memory.names() {
        sets.push(
            raw_sums(
                &open(&given.site, &sink, &name)
                    .await
                    .map_err(|e| e.to_string())?,
            )
            .await,
        );
    }
    hold(sets.len() == 2 && sets[0] == sets[1], || {
        format!(
            "{} of {} blocks are not in the other archive",
            sets[0].difference(&sets[1]).count(),
            sets[0].len()
        )
    })
}

async fn every_expected_unit_ends(subject: &dyn Subject) -> Outcome {
    given(subject).await.map(drop)
}

async fn a_snapshot_is_closed_when_another_source_fails(subject: &dyn Subject) -> Outcome {
    subject.wipe().await;
    subject.seed().await;
    let mut broken = crate::fakes::FakeSource::small(1, 1);
    broken.refuses = Some(("snapshot", bk_core::ErrorKind::Auth));
    let mut site = Site::default()
        .sink("memory", MemorySink::default())
        .source("broken", broken);
    site.sources.push(bk_core::config::SourceInstance {
        name: "it".into(),
        plugin: "fake".into(),
        after: Vec::new(),
        hooks: bk_core::hooks::Hooks::default(),
        source: subject.source(),
    });
    let report = site.backup().await;
    hold(!report.complete, || {
        "a failed source made a whole archive".into()
    })?;
    hold(subject.open_snapshots() == 0, || {
        format!("{} snapshots are still open", subject.open_snapshots())
    })
}

async fn a_restore_counts_what_it_wrote(subject: &dyn Subject) -> Outcome {
    let given = given(subject).await?;
    subject.wipe().await;
    clean(&given.restore(&[], &[], None).await?)
}

async fn replacing_a_unit_leaves_its_neighbours(subject: &dyn Subject) -> Outcome {
    let given = given(subject).await?;
    let (group, unit, _) = given.places()?;
    subject.add_stranger(&group).await;
    let with_stranger = subject.digest().await;
    clean(
        &given
            .restore(&[&format!("{group}/{unit}")], &[], Some(Existing::Replace))
            .await?,
    )?;
    hold(with_stranger == subject.digest().await, || {
        format!("replacing `{group}/{unit}` changed more than it")
    })
}

async fn replacing_a_group_removes_what_the_archive_has_not(subject: &dyn Subject) -> Outcome {
    let given = given(subject).await?;
    let (group, _, other) = given.places()?;
    subject.add_stranger(&group).await;
    if let Some(other) = &other {
        subject.add_stranger(other).await;
    }
    let others = |digest: BTreeMap<(String, String), String>| {
        digest
            .into_iter()
            .filter(|((g, _), _)| *g != group)
            .collect::<BTreeMap<_, _>>()
    };
    let before = others(subject.digest().await);
    clean(
        &given
            .restore(&[&group], &[], Some(Existing::Replace))
            .await?,
    )?;
    let now = subject.digest().await;
    hold(
        now.iter()
            .filter(|((g, _), _)| *g == group)
            .eq(given.before.iter().filter(|((g, _), _)| *g == group)),
        || format!("`{group}` is not equal to the archive"),
    )?;
    hold(others(now) == before, || {
        format!("replacing `{group}` changed another group")
    })
}

async fn merging_keeps_the_rest(subject: &dyn Subject) -> Outcome {
    let given = given(subject).await?;
    let (group, unit, _) = given.places()?;
    subject.add_stranger(&group).await;
    let before = subject.digest().await;
    clean(
        &given
            .restore(&[&format!("{group}/{unit}")], &[], Some(Existing::Merge))
            .await?,
    )?;
    hold(before == subject.digest().await, || {
        "merging one unit changed the rest".into()
    })
}

async fn refuse_writes_nothing_where_something_is(subject: &dyn Subject) -> Outcome {
    let given = given(subject).await?;
    let report = given.restore(&[], &[], Some(Existing::Refuse)).await?;
    hold(
        report
            .causes
            .first()
            .is_some_and(|c| c.class == Class::Refused),
        || format!("it was not refused: {:?}", report.causes),
    )?;
    hold(given.differs().await.is_none(), || {
        "something was written".into()
    })
}

async fn the_excluded_is_not_written(subject: &dyn Subject) -> Outcome {
    let given = given(subject).await?;
    let (group, _, _) = given.places()?;
    subject.wipe().await;
    clean(&given.restore(&[], &[&group], None).await?)?;
    let expected: BTreeMap<_, _> = given
        .before
        .iter()
        .filter(|((g, _), _)| *g != group)
        .map(|(k, v)| (k.clone(), v.clone()))
        .collect();
    let now = subject.digest().await;
    hold(now == expected, || {
        format!(
            "expected {:?}, got {:?}",
            expected.keys().collect::<Vec<_>>(),
            now.keys().collect::<Vec<_>>()
        )
    })
}

async fn a_half_restored_target_is_not_backed_up_as_good(subject: &dyn Subject) -> Outcome {
    let given = given(subject).await?;
    subject.wipe().await;
    if !subject.die_midway().await {
        return Ok(());
    }
    let mut site = given.site.clone();
    site.sources[0].source = subject.source();
    let wiped = subject.digest().await;
    let died = site
        .restore(Request::default())
        .await
        .map_err(|e| e.to_string())?;
    hold(!died.causes.is_empty(), || "the restore did not die".into())?;
    // One that writes all of it at its end, or nothing, is not half restored.
    if subject.digest().await != wiped {
        let names = given.memory.names().len();
        let report = site.backup().await;
        hold(
            report
                .causes
                .first()
                .is_some_and(|c| c.class == Class::Refused),
            || format!("a half-restored target was backed up: {:?}", report.causes),
        )?;
        hold(given.memory.names().len() == names, || {
            "an archive was published".into()
        })?;
    }
    // The same restore again finishes it.
    subject.stop_dying().await;
    let mut given = given;
    given.site.sources[0].source = subject.source();
    site.sources[0].source = subject.source();
    clean(&given.restore(&[], &[], None).await?)?;
    hold(site.backup().await.complete, || {
        "the mark still stands".into()
    })
}
