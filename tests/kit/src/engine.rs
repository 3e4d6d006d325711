//! Backups and restores in process: the engine with any sources, sinks, limits and clock.

use bk_core::archive::memory::Division;
use bk_core::archive::read_at::{ReadAt, SinkReadAt};
use bk_core::archive::tail::{Line, Opened};
use bk_core::backup::{Backup, Limits, archive_name, draw_id};
use bk_core::config::{ArchiveSettings, Config, SinkInstance, SinkPolicy, SourceInstance};
use bk_core::context::{Clock, Context, FixedClock, SystemClock};
use bk_core::event::Quiet;
use bk_core::layout::Tier;
use bk_core::plan::BackupPlan;
use bk_core::report::{BackupReport, RestoreReport};
use bk_core::restore::{Request, prepare};
use bk_core::sink::Sink;
use bk_core::source::Source;
use std::collections::BTreeSet;
use std::sync::Arc;

/// A site in process: sources, sinks, settings, a clock.
#[derive(Clone)]
pub struct Site {
    pub sources: Vec<SourceInstance>,
    pub sinks: Vec<SinkInstance>,
    pub archive: ArchiveSettings,
    pub limits: Limits,
    pub clock: Arc<dyn Clock>,
    pub cancel: tokio_util::sync::CancellationToken,
}

impl Default for Site {
    fn default() -> Self {
        let limits = Limits {
            unreachable: std::time::Duration::ZERO,
            ..Limits::default()
        };
        Self {
            sources: Vec::new(),
            sinks: Vec::new(),
            archive: ArchiveSettings::default(),
            limits,
            clock: Arc::new(SystemClock),
            cancel: Default::default(),
        }
    }
}

impl Site {
    /// With a source more.
    #[must_use]
    pub fn source(mut self, name: &str, source: impl Source + 'static) -> Self {
        self.sources.push(SourceInstance {
            name: name.into(),
            plugin: "fake".into(),
            after: Vec::new(),
            hooks: bk_core::hooks::Hooks::default(),
            source: Arc::new(source),
        });
        self
    }

    /// With a sink more.
    #[must_use]
    pub fn sink(mut self, name: &str, sink: impl Sink + 'static) -> Self {
        self.sinks.push(SinkInstance {
            name: name.into(),
            plugin: "memory".into(),
            policy: SinkPolicy::default(),
            sink: Arc::new(sink),
        });
        self
    }

    /// The last sink is optional.
    #[must_use]
    pub fn optional(mut self) -> Self {
        self.sinks.last_mut().unwrap().policy.required = false;
        self
    }

    /// The last sink keeps so much.
    #[must_use]
    pub fn keep(mut self, keep: bk_core::retention::Keep) -> Self {
        self.sinks.last_mut().unwrap().policy.keep = Some(keep);
        self
    }

    /// Every limit at its minimum.
    #[must_use]
    pub fn minimal(mut self) -> Self {
        self.limits.division = Some(Division::minimum());
        self
    }

    /// At this instant.
    #[must_use]
    pub fn at(mut self, time: &str) -> Self {
        self.clock = Arc::new(FixedClock(time.parse().unwrap()));
        self
    }

    pub fn context(&self) -> Context {
        Context {
            instance: "test".into(),
            site: self.archive.site.as_str().into(),
            cancel: self.cancel.clone(),
            clock: self.clock.clone(),
            progress: Arc::new(Quiet),
        }
    }

    /// Runs a backup.
    pub async fn backup(&self) -> BackupReport {
        self.backup_into(None).await
    }

    /// Runs a backup with `--tier`.
    pub async fn backup_into(&self, tier: Option<Tier>) -> BackupReport {
        let created = self.clock.now();
        let id = draw_id().unwrap();
        let plan = BackupPlan {
            name: archive_name(&self.archive, created, &id).in_tier(tier.unwrap_or_default()),
            id,
            created,
            label: None,
            pin: false,
            tier,
            subset: false,
            not_backed_up: Vec::new(),
        };
        let backup = Backup {
            settings: &self.archive,
            sources: &self.sources,
            sinks: &self.sinks,
            plan,
            limits: self.limits.clone(),
        };
        backup.run(&self.context()).await
    }

    /// As settings would have it.
    pub fn config(&self) -> Config {
        Config {
            run: bk_core::hooks::Hooks::default(),
            event_hooks: Vec::new(),
            plugins_root: bk_core::plugin::root::Root("/nowhere".into()),
            path: "plugins.toml".into(),
            folder: ".".into(),
            archive: self.archive.clone(),
            plugins: Vec::new(),
            sources: self.sources.clone(),
            sinks: self.sinks.clone(),
            not_enabled: Vec::new(),
            warnings: Vec::new(),
            values: Vec::new(),
        }
    }

    /// Plans and runs a restore.
    pub async fn restore(&self, request: Request) -> bk_core::Result<RestoreReport> {
        let cx = self.context();
        let config = self.config();
        // The manifest names the plugin that wrote it; these all say "fake".
        let prepared = prepare(&cx, &config, request).await?;
        Ok(prepared.run(&cx).await)
    }
}

/// An archive on a sink, opened.
pub async fn open(site: &Site, sink: &Arc<dyn Sink>, name: &str) -> bk_core::Result<Opened> {
    let stored = sink
        .list(&site.context(), &Default::default())
        .await?
        .into_iter()
        .find(|s| s.name == name)
        .expect("the archive is listed");
    let read: Arc<dyn ReadAt> = Arc::new(SinkReadAt::new(site.context(), sink.clone(), stored));
    Opened::open(read).await
}

/// Raw sums of the data blocks of an archive, as a set, and how many there are.
pub async fn raw_sums(opened: &Opened) -> BTreeSet<String> {
    let mut sums = BTreeSet::new();
    let mut lines = opened.lines().await.unwrap();
    while let Some(batch) = lines.next_piece().await.unwrap() {
        for line in batch {
            if let Line::Block(block) = line
                && block.instance.is_some()
            {
                sums.insert(block.raw_sum);
            }
        }
    }
    sums
}
