//! Deleting what retention lets go, on one sink at a time, after reading what is deleted and what is kept for it.

use crate::archive::read_at::SinkReadAt;
use crate::archive::tail::Opened;
use crate::catalog::{self, Catalogue, Entry, Summary};
use crate::config::SinkInstance;
use crate::context::Context;
use crate::error::{Error, ErrorKind, Result, bug, not_found};
use crate::event::Moment;
use crate::pins;
use crate::retention::{self, Policy, Verdict, tomorrow};
use crate::sink::{Care, NoteName, Stored, Wanted, Was};
use crate::verify::dates::Dates;
use jiff::tz::TimeZone;
use jiff::{Timestamp, ToSpan};
use serde::Serialize;
use std::collections::HashMap;
use std::sync::Arc;

/// Minutes after which another's lease counts no more.
const LEASE_MINUTES: i64 = 10;
const LEASE_PREFIX: &str = "lease-";
/// How often a pruner that met another steps back before it gives up.
const LEASE_TRIES: u32 = 3;
/// Leases written within so many seconds met each other.
const SAME_MOMENT_SECONDS: i64 = 5;
/// Copies that are deleted between two looks at the lease.
const BATCH: usize = 20;
const GIVE_BACK_LIMIT: std::time::Duration = std::time::Duration::from_secs(20);

/// How to prune.
#[derive(Clone, Debug, Default)]
pub struct PruneOptions {
    /// Decide and say, delete nothing.
    pub dry_run: bool,
    /// Release the holds while this archive (id, name or version) is the newest.
    pub accept: Option<String>,
}

/// What pruning a sink did.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Pruned {
    /// The sink.
    pub sink: String,
    /// Every archive with its reasons, newest first.
    pub verdict: Verdict,
    /// Names by id.
    pub names: Vec<(String, String)>,
    /// Ids that are gone now.
    pub deleted: Vec<String>,
    /// Copies that no rule keeps of archives that stay elsewhere: what goes, or would go.
    pub surplus: Vec<Stored>,
    /// Those of them that are gone now.
    pub cleared: Vec<Stored>,
    /// Ids that the next day's run will let go.
    pub tomorrow: Vec<String>,
    /// What could not be deleted, and why.
    pub failed: Vec<String>,
    /// What was told to the sink's own expiry.
    pub settled: Vec<String>,
}

impl Pruned {
    /// In few words, for the report of a backup.
    pub fn lines(&self) -> Vec<String> {
        let mut lines: Vec<_> = self
            .verdict
            .holds
            .iter()
            .map(|hold| format!("retention holds: {hold}"))
            .collect();
        if !self.deleted.is_empty() {
            lines.push(format!("{} old archives deleted", self.deleted.len()));
        }
        if !self.cleared.is_empty() {
            lines.push(format!(
                "{} taken out of folders for which no rule keeps it",
                match self.cleared.len() {
                    1 => "an archive".to_owned(),
                    many => format!("{many} archives"),
                }
            ));
        }
        lines.extend(self.failed.iter().cloned());
        lines.extend(self.settled.iter().cloned());
        lines
    }
}

/// Prunes one sink.
pub async fn prune_sink(
    cx: &Context,
    instance: &SinkInstance,
    zone: &TimeZone,
    options: &PruneOptions,
) -> Result<Pruned> {
    let Some(keep) = instance.policy.keep else {
        let mut pruned = Pruned {
            sink: instance.name.clone(),
            ..Pruned::default()
        };
        if !options.dry_run {
            // Where nothing is let go any more, nothing may go by itself either.
            pruned.settled = told(instance.sink.settle(cx, &[]).await);
        }
        return Ok(pruned);
    };
    let lease = if options.dry_run {
        None
    } else {
        match Lease::take(cx, instance).await {
            // Where nothing more can be written, deleting is what helps.
            Err(error) if error.kind == ErrorKind::NoSpace => {
                tracing::warn!(%error, "the sink is full: pruned without a lease");
                None
            }
            lease => Some(lease?),
        }
    };
    let pruned = prune_held(cx, instance, zone, options, &keep, lease.as_ref()).await;
    if let Some(lease) = lease {
        lease.give_back(cx, instance).await;
    }
    pruned
}

async fn prune_held(
    cx: &Context,
    instance: &SinkInstance,
    zone: &TimeZone,
    options: &PruneOptions,
    keep: &retention::Keep,
    lease: Option<&Lease>,
) -> Result<Pruned> {
    let catalogue = Catalogue::of(cx, instance, Care::Delete).await?;
    let pinned = pins::pinned(cx, &instance.sink).await?;
    let checks = Dates::read_all(cx, &instance.sink).await?;
    let mut measure = pins::measure(cx, &instance.sink).await?;
    let entries: Vec<&Entry> = catalogue
        .entries
        .iter()
        .filter(|e| e.summary().is_some())
        .collect();
    let now = cx.clock.now();
    let newest_whole = |until: Timestamp| {
        let mut summaries = entries.iter().filter_map(|entry| entry.summary());
        let whole = summaries.find(|s| s.is_full() && s.created <= until);
        whole.map(|summary| summary.created)
    };
    if let Some(wish) = &options.accept {
        let accepted = accepted(wish, &entries)?;
        let is_present = !retention::is_future(accepted.created, now);
        let whole = newest_whole(accepted.created).filter(|_| is_present);
        if !options.dry_run {
            pins::accept(cx, &instance.sink, &accepted.id, whole).await?;
        }
        measure.accepted.insert(accepted.id.clone());
        measure.since = measure.since.max(whole);
    }
    let known = catalog::known(entries.iter().copied(), &pinned, &checks);
    let policy = Policy {
        keep,
        layout: instance.sink.layout(),
        zone,
    };
    let verdict = retention::decide(&known, &policy, now, &measure);
    let tomorrow = tomorrow(&known, &policy, &verdict, now);
    let going = going(&entries, &verdict);
    let surplus = going.iter().filter(|(_, elsewhere)| elsewhere.is_some());
    let surplus = surplus.map(|(entry, _)| entry.stored.clone()).collect();
    let names = entries
        .iter()
        .filter_map(|e| Some((e.summary()?.id.clone(), e.stored.name.clone())))
        .collect();
    let mut pruned = Pruned {
        sink: instance.name.clone(),
        verdict,
        names,
        surplus,
        tomorrow,
        ..Pruned::default()
    };
    if !options.dry_run && pruned.verdict.holds.is_empty() {
        let whole = newest_whole(now).filter(|whole| measure.usual_until < Some(*whole));
        // Without it the next run measures by the archives that are left.
        if let Some(whole) = whole
            && let Err(error) = pins::usual(cx, &instance.sink, whole).await
        {
            tracing::warn!(%error, "what is usual is not noted");
        }
    }
    if !options.dry_run {
        let sound: Vec<&Entry> = entries
            .iter()
            .copied()
            .filter(|entry| checks.damage(entry).is_none())
            .collect();
        if let Err(error) = delete_all(cx, instance, (&sound, going), lease, &mut pruned).await {
            if pruned.deleted.is_empty() && pruned.cleared.is_empty() {
                return Err(error);
            }
            // What is gone already must be in the report.
            pruned.failed.push(format!("stopped midway: {error}"));
        }
        pruned.settled = settle(cx, instance, (&entries, &sound), &pruned).await;
    }
    Ok(pruned)
}

fn accepted<'e>(wish: &str, entries: &[&'e Entry]) -> Result<&'e Summary> {
    let fits = |entry: &&&Entry| {
        entry.summary().is_some_and(|s| s.id == *wish)
            || entry.stored.name == *wish
            || entry.version() == *wish
    };
    let found = entries.iter().find(fits).and_then(|entry| entry.summary());
    found
        .ok_or_else(|| not_found(format!("there is no archive `{wish}` to accept")).hint("bk list"))
}

/// What is deleted, and the newest whole one that stays for it among the `sound` ones, are read: a note alone deletes nothing.
async fn delete_all(
    cx: &Context,
    instance: &SinkInstance,
    (sound, going): (&[&Entry], Vec<Going<'_>>),
    lease: Option<&Lease>,
    pruned: &mut Pruned,
) -> Result<()> {
    if going.is_empty() {
        return Ok(());
    }
    let stays = |entry: &&&Entry| {
        let whole = entry.summary().is_some_and(|s| s.complete);
        whole && !going.iter().any(|(gone, _)| std::ptr::eq(*gone, **entry))
    };
    let Some(newest) = sound.iter().find(stays) else {
        return Err(bug("retention would leave no whole archive"));
    };
    check_is(cx, instance, newest).await.map_err(|e| {
        e.within("the newest archive that would stay cannot be read, so nothing was deleted")
    })?;
    for (n, (entry, elsewhere)) in going.into_iter().enumerate() {
        cx.check_cancelled()?;
        if let Some(lease) = lease.filter(|_| n % BATCH == 0) {
            lease.renew(cx, instance).await?;
        }
        let Some(summary) = entry.summary() else {
            continue;
        };
        let deleted = delete(cx, instance, entry, elsewhere).await;
        if deleted.is_ok() && elsewhere.is_none() {
            let dropped = serde_json::json!({
                "archive": summary.id, "name": entry.stored.name, "version": entry.stored.version, "sink": instance.name
            });
            cx.for_instance(&instance.name)
                .reached(Moment::ArchiveDropped, &dropped);
        }
        match (deleted, elsewhere) {
            (Ok(()), None) if pruned.deleted.contains(&summary.id) => {}
            (Ok(()), None) => pruned.deleted.push(summary.id.clone()),
            (Ok(()), Some(_)) => pruned.cleared.push(entry.stored.clone()),
            (Err(error), _) => pruned
                .failed
                .push(format!("`{}` was not deleted: {error}", entry.stored.name)),
        }
    }
    Ok(())
}

/// A copy that goes; one of an archive that stays comes with the one that it is kept in.
type Going<'e> = (&'e Entry, Option<&'e Entry>);

fn going<'e>(entries: &[&'e Entry], verdict: &Verdict) -> Vec<Going<'e>> {
    if !verdict.holds.is_empty() {
        return Vec::new();
    }
    let mut copies: HashMap<&str, Vec<&'e Entry>> = HashMap::new();
    for entry in entries {
        if let Some(summary) = entry.summary() {
            copies.entry(summary.id.as_str()).or_default().push(entry);
        }
    }
    let mut going = Vec::new();
    for decision in &verdict.decisions {
        let entries = copies.remove(decision.id.as_str()).unwrap_or_default();
        let placed = entries.iter().map(|entry| entry.tier()).collect();
        let wanted = |entry: &&Entry| decision.wants(entry.tier(), &placed);
        let (stay, go): (Vec<_>, Vec<_>) = entries.into_iter().partition(wanted);
        match stay.first() {
            Some(elsewhere) => going.extend(go.into_iter().map(|entry| (entry, Some(*elsewhere)))),
            None if !decision.keep => going.extend(go.into_iter().map(|entry| (entry, None))),
            // Where it is wanted it does not lie: it stays where it does.
            None => {}
        }
    }
    going
}

/// What goes is read first, and what it is kept in elsewhere too.
async fn delete(
    cx: &Context,
    instance: &SinkInstance,
    entry: &Entry,
    elsewhere: Option<&Entry>,
) -> Result<()> {
    check_is(cx, instance, entry).await?;
    if let Some(elsewhere) = elsewhere {
        check_is(cx, instance, elsewhere).await?;
    }
    instance.sink.delete(cx, &entry.stored).await
}

/// Tells the sink for how long what stays is wanted: never while retention holds, and only what it was told goes by itself one day.
async fn settle(
    cx: &Context,
    instance: &SinkInstance,
    (entries, sound): (&[&Entry], &[&Entry]),
    pruned: &Pruned,
) -> Vec<String> {
    let held = !pruned.verdict.holds.is_empty();
    let is_left = |entry: &&&Entry| {
        let id = entry.summary().map(|s| &s.id);
        id.is_some_and(|id| !pruned.deleted.contains(id)) && !pruned.cleared.contains(&entry.stored)
    };
    // The newest whole one is what everything else goes for: without it nothing is let go.
    let newest = sound
        .iter()
        .filter(is_left)
        .find(|entry| entry.summary().is_some_and(Summary::is_full));
    let proven = match newest {
        Some(newest) if !held => check_is(cx, instance, newest).await,
        _ => Ok(()),
    };
    if let Err(error) = proven {
        return vec![format!(
            "the sink's own expiry was not set: the newest archive cannot be read: {error}"
        )];
    }
    let wanted = |entry: &&Entry| {
        let id = &entry.summary()?.id;
        let decision = pruned.verdict.decisions.iter().find(|d| d.id == *id)?;
        let wanted = match (decision.keep, decision.lifetime_in(entry.tier())) {
            _ if held => Wanted::Always,
            (false, _) => Wanted::NoMore,
            (true, Some(lifetime)) => Wanted::For(lifetime),
            (true, None) => Wanted::Always,
        };
        Some((entry.stored.clone(), wanted))
    };
    let all: Vec<_> = entries.iter().filter(is_left).filter_map(wanted).collect();
    told(instance.sink.settle(cx, &all).await)
}

fn told(settled: Result<Vec<String>>) -> Vec<String> {
    settled.unwrap_or_else(|error| vec![format!("the sink's own expiry was not set: {error}")])
}

/// The stored file is the very archive that the catalogue says.
async fn check_is(cx: &Context, instance: &SinkInstance, entry: &Entry) -> Result<()> {
    let read = Arc::new(SinkReadAt::new(
        cx.clone(),
        instance.sink.clone(),
        entry.stored.clone(),
    ));
    let opened = Opened::open(read).await?;
    let said = entry.summary().map(|summary| Summary {
        sha256: None,
        ..summary.clone()
    });
    // Everything that decided: a note that lies of a date or a size deletes nothing.
    let same = said.is_some_and(|said| said == Summary::from(&opened.manifest));
    if same {
        Ok(())
    } else {
        Err(Error::corrupt(format!(
            "`{}` is another archive than the catalogue says",
            entry.stored.name
        )))
    }
}

/// One pruner at a time on a shared sink: each writes a note of its own and looks whether it is alone. It needs no condition of the sink, only
/// its clock. Pruning is safe without it, since every copy is read again before it goes; the lease saves two from the same work.
struct Lease {
    name: NoteName,
}

#[derive(Serialize)]
struct LeaseNote {
    since: Timestamp,
}

impl Lease {
    async fn take(cx: &Context, instance: &SinkInstance) -> Result<Self> {
        for attempt in 1.. {
            let lease = Self {
                name: NoteName {
                    site: cx.site.to_string(),
                    name: format!("{LEASE_PREFIX}{}", crate::backup::draw_id()?),
                },
            };
            lease.write(cx, instance).await?;
            let met = lease.others(cx, instance).await;
            let Ok(Meeting::Alone) = met else {
                lease.give_back(cx, instance).await;
                if attempt < LEASE_TRIES && matches!(met, Ok(Meeting::Together)) {
                    let pause = 1 + u64::from(chance()?) % 30;
                    // Whoever waits less finds the other gone.
                    cx.pause(std::time::Duration::from_secs(pause)).await?;
                    continue;
                }
                met?;
                return Err(Self::locked(instance));
            };
            return Ok(lease);
        }
        Err(Self::locked(instance))
    }

    fn locked(instance: &SinkInstance) -> Error {
        Error::new(
            ErrorKind::Locked,
            format!("another run prunes `{}`", instance.name),
        )
        .hint("wait some minutes and repeat")
    }

    async fn write(&self, cx: &Context, instance: &SinkInstance) -> Result<()> {
        let body = serde_json::to_vec(&LeaseNote {
            since: cx.clock.now(),
        })
        .map_err(|e| bug(e.to_string()))?;
        let written = instance
            .sink
            .set_note(cx, &self.name, body.into(), Was::Any)
            .await;
        written.map_err(|e| e.within("the lease for pruning"))
    }

    /// Who else holds one that has not run out, by the sink's clock.
    async fn others(&self, cx: &Context, instance: &SinkInstance) -> Result<Meeting> {
        let seen = instance.sink.notes(cx, &cx.site, LEASE_PREFIX).await?;
        let Some(own) = seen.iter().find(|note| note.name == self.name) else {
            return Err(Error::new(
                ErrorKind::Locked,
                format!("the lease for pruning `{}` is gone", instance.name),
            ));
        };
        let (alive, over): (Vec<_>, Vec<_>) = seen
            .iter()
            .filter(|note| note.name != self.name)
            .partition(|note| note.modified + LEASE_MINUTES.minutes() > own.modified);
        for left in over {
            // Of a run that was killed.
            if let Err(error) = instance.sink.remove_note(cx, &left.name).await {
                tracing::debug!(%error, "a lease that ran out stays");
            }
        }
        Ok(if alive.is_empty() {
            Meeting::Alone
        } else if alive
            .iter()
            .all(|note| note.modified + SAME_MOMENT_SECONDS.seconds() > own.modified)
        {
            Meeting::Together
        } else {
            Meeting::Held
        })
    }

    /// Before each batch of deletions: written anew, and still alone.
    async fn renew(&self, cx: &Context, instance: &SinkInstance) -> Result<()> {
        self.write(cx, instance).await?;
        match self.others(cx, instance).await? {
            Meeting::Alone | Meeting::Together => Ok(()),
            Meeting::Held => Err(Self::locked(instance)),
        }
    }

    async fn give_back(self, cx: &Context, instance: &SinkInstance) {
        // A run that was told to stop gives it back too, within a limit.
        let cx = cx.unstopped();
        let late = || Error::new(ErrorKind::Unreachable, "it took too long");
        let removed = cx.within(
            GIVE_BACK_LIMIT,
            late,
            instance.sink.remove_note(&cx, &self.name),
        );
        if let Err(error) = removed.await {
            tracing::debug!(%error, "lease not given back, it ends by itself");
        }
    }
}

/// What a pruner finds beside its own lease.
enum Meeting {
    Alone,
    /// Others began in the same moment: all step back.
    Together,
    /// Somebody held it before.
    Held,
}

fn chance() -> Result<u32> {
    let id = crate::backup::draw_id()?;
    u32::from_str_radix(&id[..8], 16).map_err(|e| bug(e.to_string()))
}
