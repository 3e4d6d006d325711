//! A standby site: restored from the newest archive of another site again and again, never onto that site, and not when it has that archive already.

use crate::config::Config;
use crate::context::Context;
use crate::error::{Error, ErrorKind, Result, conflict};
use crate::plan::RestorePlan;
use crate::source::{Health, Memory};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

/// Beside the settings, where no target has a place for it.
const FILE: &str = "bk-standby.json";

/// Which archive a standby site has.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct State {
    /// Its id.
    pub archive: String,
    /// When it was made.
    pub created: Timestamp,
    /// By which site.
    pub site: String,
    /// What of it was restored, and under which names.
    #[serde(default)]
    pub selection: Vec<String>,
    /// What becomes another when a target is made anew, by source and group.
    #[serde(default)]
    pub targets: BTreeMap<String, BTreeMap<String, String>>,
}

/// What is to be done about an archive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// It is newer than what is there, or the targets are no longer what they were.
    Restore,
    /// It is there.
    Already,
}

/// The target must be known, and not the server that the archive came from. `given` is who it is where it cannot be asked.
pub fn refuse_home(name: &str, health: &Health, archived: &str, given: Option<&str>) -> Result<()> {
    let identity = match health.identity.as_str() {
        "" => given.unwrap_or_default(),
        known => known,
    };
    if archived.is_empty() {
        return Err(conflict(format!("who the source of the archive was is not in it, so that `{name}` may be the very server that it came from"))
            .hint("let the account that backs up read it (bk check says what is missing), and make a new archive"));
    }
    if identity.is_empty() {
        return Err(conflict(format!("who the target `{name}` is cannot be read, so that it may be the very server that the archive came from"))
            .hint("give the account the right to read it, or say it with --cluster-id"));
    }
    if identity == archived {
        return Err(conflict(format!(
            "`{name}` is the very server that the archive came from ({})",
            health.describe
        ))
        .hint("--standby restores only into another one"));
    }
    Ok(())
}

/// Where the state of this standby site is.
pub struct Remembered<'a> {
    place: Place<'a>,
    selection: Vec<String>,
}

enum Place<'a> {
    Target(&'a str, &'a dyn Memory),
    File(PathBuf),
}

impl<'a> Remembered<'a> {
    /// In a file where one is named; else in the first target that has a place for it; else in the cluster in which this runs; else beside the settings.
    /// `selection` is what of an archive this run is about, as it was typed.
    pub fn of(
        config: &'a Config,
        file: Option<PathBuf>,
        selection: Vec<String>,
        around: Option<&'a dyn Memory>,
    ) -> Self {
        let in_target = || {
            let mut memories = config
                .sources
                .iter()
                .filter_map(|source| Some((source.name.as_str(), source.source.memory()?)));
            memories.next()
        };
        let place = match file {
            Some(file) => Place::File(file),
            None => match (in_target(), around) {
                (Some((name, memory)), _) => Place::Target(name, memory),
                (None, Some(memory)) => Place::Target("", memory),
                (None, None) => Place::File(config.folder.join(FILE)),
            },
        };
        Self { place, selection }
    }

    async fn read(&self, cx: &Context) -> Result<Option<State>> {
        let text = match &self.place {
            Place::Target(name, memory) => memory.read(&cx.for_instance(name)).await?,
            Place::File(path) => match std::fs::read_to_string(path) {
                Ok(text) => Some(text),
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
                Err(error) => return Err(Error::io("read", path, error)),
            },
        };
        let parsed = text.map(|text| serde_json::from_str(&text)).transpose();
        parsed.map_err(|e| {
            conflict("what this standby site remembers of its last restore cannot be read")
                .because(e)
                .hint(format!(
                    "look at {}, then remove it and repeat",
                    self.describe()
                ))
        })
    }

    fn describe(&self) -> String {
        match &self.place {
            Place::Target("", _) => "the ConfigMap `bk-standby`".into(),
            Place::Target(name, _) => format!("the ConfigMap `bk-standby` in `{name}`"),
            Place::File(path) => format!("`{}`", path.display()),
        }
    }

    async fn targets(
        &self,
        cx: &Context,
        plan: &RestorePlan,
    ) -> Result<BTreeMap<String, BTreeMap<String, String>>> {
        let Place::Target(name, memory) = &self.place else {
            return Ok(BTreeMap::new());
        };
        let mut all = BTreeMap::new();
        for target in plan.targets.iter().filter(|target| target.source == *name) {
            let renamed: BTreeMap<&str, &str> = target
                .groups
                .iter()
                .map(|(from, to)| (from.as_str(), to.as_str()))
                .collect();
            let groups: BTreeSet<String> = target
                .selected
                .iter()
                .map(|s| {
                    renamed
                        .get(s.group.as_str())
                        .map_or_else(|| s.group.clone(), |to| (*to).to_owned())
                })
                .collect();
            let groups: Vec<String> = groups.into_iter().collect();
            let found = memory.incarnations(&cx.for_instance(name), &groups).await?;
            all.insert(target.source.clone(), found);
        }
        Ok(all)
    }

    /// Whether the planned archive is to be restored. One that is older, or another site's, is refused.
    pub async fn next(&self, cx: &Context, plan: &RestorePlan) -> Result<Next> {
        let Some(state) = self.read(cx).await? else {
            return Ok(Next::Restore);
        };
        if state.site != plan.site {
            return Err(conflict(format!(
                "this standby site has an archive of the site `{}`, and `{}` is of `{}`",
                state.site, plan.name, plan.site
            ))
            .hint(format!("where that is meant, remove {}", self.describe())));
        }
        if plan.created < state.created {
            return Err(conflict(format!(
                "this standby site has an archive of {}, and `{}` is of {}, which is older",
                state.created, plan.name, plan.created
            ))
            .hint("repeat without --if-newer to go back"));
        }
        if state.archive == plan.archive
            && state.selection == self.selection
            && state.targets == self.targets(cx, plan).await?
        {
            return Ok(Next::Already);
        }
        Ok(Next::Restore)
    }

    /// After everything was restored and counted.
    pub async fn remember(&self, cx: &Context, plan: &RestorePlan) -> Result<()> {
        let state = State {
            archive: plan.archive.clone(),
            created: plan.created,
            site: plan.site.clone(),
            selection: self.selection.clone(),
            targets: self.targets(cx, plan).await?,
        };
        let text = serde_json::to_string(&state).map_err(|e| crate::error::bug(e.to_string()))?;
        match &self.place {
            Place::Target(name, memory) => memory.write(&cx.for_instance(name), &text).await,
            Place::File(path) => crate::replace::file(path, text.as_bytes(), None),
        }
    }
}

/// An archive that is older than it may be: the site is restored, and stale.
pub fn stale(cx: &Context, plan: &RestorePlan, max_age: std::time::Duration) -> Option<Error> {
    let age = cx.clock.now().duration_since(plan.created).unsigned_abs();
    (age > max_age).then(|| {
        Error::new(
            ErrorKind::Conflict,
            format!(
                "the newest archive, `{}`, is of {}: older than --max-age",
                plan.name, plan.created
            ),
        )
        .hint("look why no newer one was made")
    })
}
