//! The bucket's own expiry. Archives are born without a tag, and no rule of ours matches them; after a pruning those that are wanted for a limited
//! time get the tag of their tier. So when nobody prunes any more, old ones go by themselves one day and the newest stay for ever.

use super::client::Fault;
use super::list::Version;
use super::settings::{Lifecycle, Transition as Colder};
use super::store::Store;
use aws_sdk_s3::error::BuildError;
use aws_sdk_s3::types::{
    AbortIncompleteMultipartUpload, BucketLifecycleConfiguration, ExpirationStatus,
    LifecycleExpiration, LifecycleRule, LifecycleRuleAndOperator, LifecycleRuleFilter,
    NoncurrentVersionExpiration, NoncurrentVersionTransition, Tag, Tagging, Transition,
    TransitionDefaultMinimumObjectSize, TransitionStorageClass,
};
use bk_core::context::Context;
use bk_core::error::{Error, ErrorKind, Result, bug};
use bk_core::sink::{Filter, Outlook, Stored, Wanted, Was};
use futures::StreamExt;
use jiff::{Timestamp, ToSpan};
use std::collections::{BTreeMap, BTreeSet};

const TAG: &str = "bk-tier";
/// Days that an archive outlives its tier, so that the rule never wins over `bk prune`.
const GRACE_DAYS: u32 = 7;
const ABORT_DAYS: i32 = 2;
const NOTES_DAYS: i32 = 2;
const TAGS_AT_ONCE: usize = 16;
const TIERS_NOTE: &str = "tiers";

impl Store {
    /// Tags what is wanted for a limited time, untags what must stay, keeps the rules. A note says which versions may have a tag, and says so
    /// before they have it: whatever is cut in between, the next pruning knows all of them.
    pub async fn settle(&self, cx: &Context, all: &[(Stored, Wanted)]) -> Result<Vec<String>> {
        let before = self.noted_tiers(cx).await?;
        if self.settings.lifecycle == Lifecycle::Off && before.is_empty() {
            return Ok(Vec::new());
        }
        let off = self.settings.lifecycle == Lifecycle::Off || all.is_empty();
        let mut now: BTreeMap<String, String> = BTreeMap::new();
        let mut tiers: BTreeMap<&str, u32> = BTreeMap::new();
        let mut free: Vec<&Stored> = Vec::new();
        let mut tag: Vec<(&Stored, &str)> = Vec::new();
        for (stored, wanted) in all {
            let word = word(stored);
            match (wanted, before.get(&word)) {
                (Wanted::For(tier), was) if !off => {
                    now.insert(word, tier.rule.to_owned());
                    tiers.insert(tier.rule, tier.days);
                    if was.is_none_or(|rule| rule != tier.rule) {
                        tag.push((stored, tier.rule));
                        // A tag of another tier goes first: its rule may be about to get shorter.
                        free.extend(was.map(|_| stored));
                    }
                }
                (Wanted::NoMore, Some(rule)) if !off => {
                    now.insert(word, rule.clone());
                }
                (_, Some(_)) => free.push(stored),
                (_, None) => {}
            }
        }
        let mut freed = 0;
        for stored in free {
            freed += u32::from(self.untag(cx, stored).await?);
        }
        if off {
            // Without a list everything that was ever tagged is freed.
            let listed: BTreeSet<String> = all.iter().map(|(stored, _)| word(stored)).collect();
            for word in before.keys().filter(|word| !listed.contains(*word)) {
                freed += u32::from(self.untag(cx, &of_word(word)).await?);
            }
        }
        if !off {
            self.keep_unlisted(cx, all, &before, &mut now).await?;
        }
        let wrote = self.keep_rules(cx, &tiers, off, &now).await?;
        let mut both = before.clone();
        both.extend(now.clone());
        if !tag.is_empty() {
            self.note_tiers(cx, &both).await?;
        }
        for (stored, rule) in &tag {
            self.set_tag(cx, stored, Some(rule)).await?;
        }
        if now != before {
            self.note_tiers(cx, &now).await?;
        }
        let mut lines = Vec::new();
        if wrote {
            lines.push(format!(
                "wrote the rules bk:{}:… of `{}`",
                self.site,
                self.bucket()
            ));
        }
        if !tag.is_empty() {
            lines.push(format!(
                "{} archives tagged for the store's own expiry",
                tag.len()
            ));
        }
        if freed > 0 {
            lines.push(format!(
                "{freed} archives freed from the store's own expiry"
            ));
        }
        Ok(lines)
    }

    /// What has a tag, is not in the list and is still there (it could not be read today) stays known.
    async fn keep_unlisted(
        &self,
        cx: &Context,
        all: &[(Stored, Wanted)],
        before: &BTreeMap<String, String>,
        now: &mut BTreeMap<String, String>,
    ) -> Result<()> {
        let listed: BTreeSet<String> = all.iter().map(|(stored, _)| word(stored)).collect();
        for (word, rule) in before.iter().filter(|(word, _)| !listed.contains(*word)) {
            let stored = of_word(word);
            let version = self.version_of(cx, &stored).await?;
            let key = self.key(&stored.name);
            match self.head(cx, &key, version.as_deref()).await {
                Err(fault) if fault.is_not_found() => {}
                _ => {
                    now.insert(word.clone(), rule.clone());
                }
            }
        }
        Ok(())
    }

    /// A pinned archive must not wait for the next pruning.
    pub async fn never_expire(&self, cx: &Context, which: &Stored) -> Result<()> {
        let mut noted = self.noted_tiers(cx).await?;
        if noted.remove(&word(which)).is_some() {
            self.untag(cx, which).await?;
            self.note_tiers(cx, &noted).await?;
        }
        Ok(())
    }

    /// What may have a tag. Where the note is lost and rules of ours are there, the tags themselves are read.
    async fn noted_tiers(&self, cx: &Context) -> Result<BTreeMap<String, String>> {
        let note = self.note(cx, &self.own_note(TIERS_NOTE)).await?;
        let noted = note.and_then(|note| serde_json::from_slice(&note.body).ok());
        if let Some(noted) = noted {
            return Ok(noted);
        }
        let own = format!("bk:{}:", self.site);
        let rules = match self.rules(cx).await {
            Ok((rules, _)) => rules,
            // Without the right to look at them none was ever written.
            Err(fault) if fault.is_denied() || fault.is_unsupported() => return Ok(BTreeMap::new()),
            Err(fault) => return Err(fault.while_trying("read the lifecycle rules")),
        };
        if !rules
            .iter()
            .any(|rule| rule.id().is_some_and(|id| id.starts_with(&own)))
        {
            return Ok(BTreeMap::new());
        }
        let stored = self.list(cx, &Filter::default()).await?;
        let ours: Vec<Stored> = stored
            .into_iter()
            .filter(|s| !s.name.starts_with('/'))
            .collect();
        let mut found = BTreeMap::new();
        for stored in ours {
            let version = self.version_of(cx, &stored).await?;
            match self
                .tags(cx, &self.key(&stored.name), version.as_deref())
                .await
            {
                Ok(tags) => {
                    let tier = tags.into_iter().find(|(name, _)| name == TAG);
                    found.extend(tier.map(|(_, rule)| (word(&stored), rule)));
                }
                Err(fault) if fault.is_not_found() => {}
                Err(fault) => return Err(fault.while_trying("read the tags of archives")),
            }
        }
        Ok(found)
    }

    async fn note_tiers(&self, cx: &Context, tiers: &BTreeMap<String, String>) -> Result<()> {
        let body = serde_json::to_vec(tiers).map_err(|e| bug(e.to_string()))?;
        self.set_note(cx, &self.own_note(TIERS_NOTE), body.into(), Was::Any)
            .await
    }

    /// Takes our tag off. Gone is fine.
    async fn untag(&self, cx: &Context, stored: &Stored) -> Result<bool> {
        match self.set_tag(cx, stored, None).await {
            Ok(()) => Ok(true),
            Err(error) if error.kind == ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Our tag on this very version; other tags stay.
    async fn set_tag(&self, cx: &Context, stored: &Stored, rule: Option<&str>) -> Result<()> {
        let key = self.key(&stored.name);
        let version = self.version_of(cx, stored).await?;
        let doing = format!("tag `{}`", stored.name);
        let mut tags = self
            .tags(cx, &key, version.as_deref())
            .await
            .map_err(|fault| fault.while_trying(&doing))?;
        tags.retain(|(name, _)| name != TAG);
        if let Some(rule) = rule {
            tags.push((TAG.into(), rule.into()));
        }
        let tags = tags
            .into_iter()
            .map(|(key, value)| Tag::builder().key(key).value(value).build())
            .collect::<Result<Vec<_>, _>>()
            .map_err(|e| unbuilt(&e))?;
        let tagging = Tagging::builder()
            .set_tag_set(Some(tags))
            .build()
            .map_err(|e| unbuilt(&e))?;
        self.clients
            .ask(cx, 0, || {
                self.clients
                    .deleting
                    .put_object_tagging()
                    .bucket(self.bucket())
                    .key(&key)
                    .set_version_id(version.clone())
                    .tagging(tagging.clone())
                    .send()
            })
            .await
            .map(|_| ())
            .map_err(|fault| fault.while_trying(&doing))
    }

    async fn tags(
        &self,
        cx: &Context,
        key: &str,
        version: Option<&str>,
    ) -> Result<Vec<(String, String)>, Fault> {
        let answer = self
            .clients
            .ask(cx, 0, || {
                self.clients
                    .deleting
                    .get_object_tagging()
                    .bucket(self.bucket())
                    .key(key)
                    .set_version_id(version.map(str::to_owned))
                    .send()
            })
            .await?;
        Ok(answer
            .tag_set()
            .iter()
            .map(|tag| (tag.key().to_owned(), tag.value().to_owned()))
            .collect())
    }

    /// The rules, and what else is set with them.
    async fn rules(
        &self,
        cx: &Context,
    ) -> Result<
        (
            Vec<LifecycleRule>,
            Option<TransitionDefaultMinimumObjectSize>,
        ),
        Fault,
    > {
        let answer = self
            .clients
            .ask(cx, 0, || {
                self.clients
                    .deleting
                    .get_bucket_lifecycle_configuration()
                    .bucket(self.bucket())
                    .send()
            })
            .await;
        match answer {
            Ok(answer) => Ok((
                answer.rules().to_vec(),
                answer.transition_default_minimum_object_size().cloned(),
            )),
            // Any other 404 is no word about rules: what is written next replaces all of them.
            Err(fault) if fault.code == "NoSuchLifecycleConfiguration" => Ok((Vec::new(), None)),
            Err(fault) => Err(fault),
        }
    }

    /// Reads all rules, changes ours, writes all, and reads again: the store knows no change of a single one.
    async fn keep_rules(
        &self,
        cx: &Context,
        tiers: &BTreeMap<&str, u32>,
        off: bool,
        tagged: &BTreeMap<String, String>,
    ) -> Result<bool> {
        let doing = format!("keep the lifecycle rules of `{}`", self.bucket());
        let (there, smallest) = self
            .rules(cx)
            .await
            .map_err(|fault| fault.while_trying(&doing))?;
        let own = format!("bk:{}:", self.site);
        let (ours, others): (Vec<_>, Vec<_>) = there
            .iter()
            .cloned()
            .partition(|rule| rule.id().is_some_and(|id| id.starts_with(&own)));
        let wanted = if off {
            Vec::new()
        } else {
            let mut wanted = self.wanted(&own, tiers).map_err(|e| unbuilt(&e))?;
            // What is let go but still lies there keeps the rule of its tag.
            let kept = ours.iter().filter(|rule| {
                let tier = rule
                    .id()
                    .and_then(|id| id.strip_prefix(&own))
                    .unwrap_or_default();
                !tiers.contains_key(tier) && tagged.values().any(|rule| rule == tier)
            });
            wanted.extend(kept.cloned().collect::<Vec<_>>());
            wanted
        };
        if said_all(&ours) == said_all(&wanted) {
            return Ok(false);
        }
        let rules: Vec<_> = others
            .iter()
            .cloned()
            .chain(wanted.iter().cloned())
            .collect();
        if rules.is_empty() {
            return self.remove_rules(cx, &doing).await.map(|()| true);
        }
        let configuration = BucketLifecycleConfiguration::builder()
            .set_rules(Some(rules))
            .build()
            .map_err(|e| unbuilt(&e))?;
        self.clients
            .ask(cx, 0, || {
                self.clients
                    .deleting
                    .put_bucket_lifecycle_configuration()
                    .bucket(self.bucket())
                    .lifecycle_configuration(configuration.clone())
                    .set_transition_default_minimum_object_size(smallest.clone())
                    .send()
            })
            .await
            .map_err(|fault| fault.while_trying(&doing))?;
        let (after, _) = self
            .rules(cx)
            .await
            .map_err(|fault| fault.while_trying(&doing))?;
        let expected: Vec<_> = others.into_iter().chain(wanted).collect();
        if said_all(&after) == said_all(&expected) {
            return Ok(true);
        }
        Err(Error::new(
            ErrorKind::Conflict,
            format!("the lifecycle rules of `{}` are not what was written: another program changes them too", self.bucket()),
        )
        .hint("look at them, then bk prune"))
    }

    async fn remove_rules(&self, cx: &Context, doing: &str) -> Result<()> {
        self.clients
            .ask(cx, 0, || {
                self.clients
                    .deleting
                    .delete_bucket_lifecycle()
                    .bucket(self.bucket())
                    .send()
            })
            .await
            .map(|_| ())
            .map_err(|fault| fault.while_trying(doing))
    }

    fn wanted(
        &self,
        own: &str,
        tiers: &BTreeMap<&str, u32>,
    ) -> Result<Vec<LifecycleRule>, BuildError> {
        let mut rules = Vec::new();
        for (rule, days) in tiers {
            rules.push(self.tier_rule(&format!("{own}{rule}"), rule, days + GRACE_DAYS)?);
        }
        let prefix = |prefix: &str| LifecycleRuleFilter::builder().prefix(prefix).build();
        rules.push(
            LifecycleRule::builder()
                .id(format!("{own}tidy"))
                .status(ExpirationStatus::Enabled)
                .filter(prefix(&self.prefix))
                .expiration(
                    LifecycleExpiration::builder()
                        .expired_object_delete_marker(true)
                        .build(),
                )
                .abort_incomplete_multipart_upload(
                    AbortIncompleteMultipartUpload::builder()
                        .days_after_initiation(ABORT_DAYS)
                        .build(),
                )
                .build()?,
        );
        rules.push(
            LifecycleRule::builder()
                .id(format!("{own}notes"))
                .status(ExpirationStatus::Enabled)
                .filter(prefix(&format!("{}.bk/", self.prefix)))
                .noncurrent_version_expiration(
                    NoncurrentVersionExpiration::builder()
                        .noncurrent_days(NOTES_DAYS)
                        .build(),
                )
                .build()?,
        );
        Ok(rules)
    }

    fn tier_rule(&self, id: &str, tier: &str, days: u32) -> Result<LifecycleRule, BuildError> {
        let days = i32::try_from(days).unwrap_or(i32::MAX);
        let both = LifecycleRuleAndOperator::builder()
            .prefix(&self.prefix)
            .tags(Tag::builder().key(TAG).value(tier).build()?)
            .build();
        let mut rule = LifecycleRule::builder()
            .id(id)
            .status(ExpirationStatus::Enabled)
            .filter(LifecycleRuleFilter::builder().and(both).build())
            .expiration(LifecycleExpiration::builder().days(days).build())
            .noncurrent_version_expiration(
                NoncurrentVersionExpiration::builder()
                    .noncurrent_days(days)
                    .build(),
            );
        if let Some(Colder { days: after, class }) = &self.settings.transition
            && (*after as i32) < days
        {
            let class = TransitionStorageClass::from(class.as_str());
            rule = rule
                .transitions(
                    Transition::builder()
                        .days(*after as i32)
                        .storage_class(class.clone())
                        .build(),
                )
                .noncurrent_version_transitions(
                    NoncurrentVersionTransition::builder()
                        .noncurrent_days(*after as i32)
                        .storage_class(class)
                        .build(),
                );
        }
        rule.build()
    }

    /// What the bucket's rules will do to each version, and which of them are dangerous.
    pub async fn outlook(&self, cx: &Context, newest: Option<&Stored>) -> Result<Outlook> {
        let mut outlook = Outlook::default();
        let rules = match self.rules(cx).await {
            Ok((rules, _)) => rules,
            Err(fault) if fault.is_denied() || fault.is_unsupported() => {
                outlook.warnings.push(format!(
                    "its lifecycle rules cannot be read ({}): what expires by itself is not known",
                    fault.words()
                ));
                return Ok(outlook);
            }
            Err(fault) => return Err(fault.while_trying("read the lifecycle rules")),
        };
        let rules: Vec<Rule> = rules
            .iter()
            .filter(|rule| *rule.status() == ExpirationStatus::Enabled)
            .map(Rule::read)
            .collect();
        let by_tag = rules.iter().any(|rule| !rule.tags.is_empty());
        let versions = self.versions_of_archives(cx).await?;
        let tags = if by_tag {
            self.all_tags(cx, &versions).await?
        } else {
            BTreeMap::new()
        };
        let newest = newest.map(|s| (self.key(&s.name), s.version.clone()));
        for fate in fates(&versions, &rules, &tags) {
            let name = fate
                .version
                .key
                .strip_prefix(&self.prefix)
                .unwrap_or(&fate.version.key);
            let line = format!("{name} version {}: {}", fate.version.id, fate.words());
            let is_newest = newest.as_ref().is_some_and(|(key, version)| {
                *key == fate.version.key && (version.is_empty() || *version == fate.version.id)
            });
            if is_newest {
                outlook
                    .warnings
                    .push(format!("the newest whole archive would go: {line}"));
            }
            outlook.lines.push(line);
        }
        self.rights(cx, &mut outlook).await?;
        Ok(outlook)
    }

    async fn all_tags(
        &self,
        cx: &Context,
        versions: &[Version],
    ) -> Result<BTreeMap<(String, String), Vec<(String, String)>>> {
        let of = versions
            .iter()
            .filter(|v| !v.marker)
            .map(|v| (v.key.clone(), v.id.clone()))
            .collect::<Vec<_>>();
        let kept = self.versioning(cx).await? != super::store::Versioning::Never;
        let asked = futures::stream::iter(of)
            .map(|(key, id)| async move {
                let version = kept.then_some(id.as_str());
                let tags = self.tags(cx, &key, version).await;
                ((key, id), tags)
            })
            .buffer_unordered(TAGS_AT_ONCE)
            .collect::<Vec<_>>()
            .await;
        let mut all = BTreeMap::new();
        for (of, tags) in asked {
            match tags {
                Ok(tags) => all.insert(of, tags),
                Err(fault) if fault.is_not_found() => None,
                Err(fault) => return Err(fault.while_trying("read the tags of archives")),
            };
        }
        Ok(all)
    }

    /// Whether the key of every night may do more than write. Tagging counts as deleting, where rules go by tags.
    async fn rights(&self, cx: &Context, outlook: &mut Outlook) -> Result<()> {
        let key = format!("{}.bk/{}/may-tag", self.prefix, self.site);
        self.put_small(cx, &key, bytes::Bytes::from_static(b"x"), None)
            .await
            .map_err(|fault| fault.while_trying(&format!("write `{key}`")))?;
        let tagging = Tagging::builder()
            .tag_set(
                Tag::builder()
                    .key(TAG)
                    .value("none")
                    .build()
                    .map_err(|e| unbuilt(&e))?,
            )
            .build()
            .map_err(|e| unbuilt(&e))?;
        let may_tag = self
            .clients
            .ask(cx, 0, || {
                self.clients
                    .s3
                    .put_object_tagging()
                    .bucket(self.bucket())
                    .key(&key)
                    .tagging(tagging.clone())
                    .send()
            })
            .await
            .is_ok();
        let mut may_delete = false;
        for version in self.versions_of(cx, &key).await? {
            may_delete |= self
                .clients
                .ask(cx, 0, || {
                    self.clients
                        .s3
                        .delete_object()
                        .bucket(self.bucket())
                        .key(&key)
                        .version_id(&version.id)
                        .send()
                })
                .await
                .is_ok();
        }
        if !may_delete {
            self.remove_everything(cx, &key).await;
        }
        let separate = self.settings.delete_access_key.is_some();
        if separate && (may_delete || may_tag) {
            let what = match (may_delete, may_tag) {
                (true, true) => "delete and tag",
                (true, false) => "delete",
                _ => "tag, which with rules by tags is a right to delete",
            };
            outlook.warnings.push(format!(
                "`access_key` may {what}, although `delete_access_key` is there for that: bk check --policy prints what it needs"
            ));
        }
        if !separate && !may_delete {
            outlook
                .lines
                .push("the key may not delete: pruning needs `delete_access_key`, or the bucket's own rules".into());
        }
        Ok(())
    }
}

/// The copy that a word of the note names.
fn of_word(word: &str) -> Stored {
    let (version, name) = word.split_once(' ').unwrap_or(("", word));
    Stored {
        name: name.to_owned(),
        version: version.to_owned(),
        bytes: 0,
        modified: Timestamp::UNIX_EPOCH,
        etag: String::new(),
        remarks: Vec::new(),
    }
}

/// Names a copy in the note of tiers.
fn word(stored: &Stored) -> String {
    format!("{} {}", stored.version, stored.name)
}

fn unbuilt(error: &BuildError) -> Error {
    bug(format!("a request could not be made: {error}"))
}

/// A rule as far as it lets things go.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
struct Rule {
    id: String,
    prefix: String,
    tags: Vec<(String, String)>,
    larger_than: Option<i64>,
    smaller_than: Option<i64>,
    days: Option<i32>,
    date: Option<i64>,
    noncurrent_days: Option<i32>,
    newer_noncurrent: Option<i32>,
    rest: String,
}

impl Rule {
    fn read(rule: &LifecycleRule) -> Self {
        let filter = rule.filter();
        let and = filter.and_then(LifecycleRuleFilter::and);
        let tags = filter
            .and_then(LifecycleRuleFilter::tag)
            .into_iter()
            .chain(and.into_iter().flat_map(LifecycleRuleAndOperator::tags))
            .map(|tag| (tag.key().to_owned(), tag.value().to_owned()))
            .collect();
        #[expect(deprecated, reason = "rules of other programs still write it so")]
        let old = rule.prefix();
        let prefix = filter
            .and_then(LifecycleRuleFilter::prefix)
            .or(and.and_then(LifecycleRuleAndOperator::prefix))
            .or(old);
        let expiration = rule.expiration();
        let noncurrent = rule.noncurrent_version_expiration();
        let colder: Vec<String> = rule
            .transitions()
            .iter()
            .map(|t| format!("{:?} {:?}", t.days(), t.storage_class()))
            .collect();
        Self {
            id: rule.id().unwrap_or_default().to_owned(),
            prefix: prefix.unwrap_or_default().to_owned(),
            tags,
            larger_than: filter
                .and_then(LifecycleRuleFilter::object_size_greater_than)
                .or(and.and_then(LifecycleRuleAndOperator::object_size_greater_than)),
            smaller_than: filter
                .and_then(LifecycleRuleFilter::object_size_less_than)
                .or(and.and_then(LifecycleRuleAndOperator::object_size_less_than)),
            days: expiration
                .and_then(LifecycleExpiration::days)
                .filter(|d| *d > 0),
            date: expiration
                .and_then(LifecycleExpiration::date)
                .map(aws_sdk_s3::primitives::DateTime::secs),
            noncurrent_days: noncurrent.and_then(NoncurrentVersionExpiration::noncurrent_days),
            newer_noncurrent: noncurrent
                .and_then(NoncurrentVersionExpiration::newer_noncurrent_versions),
            rest: format!(
                "{:?} {:?} {:?} {colder:?}",
                rule.status(),
                expiration
                    .and_then(LifecycleExpiration::expired_object_delete_marker)
                    .unwrap_or(false),
                rule.abort_incomplete_multipart_upload()
                    .and_then(AbortIncompleteMultipartUpload::days_after_initiation),
            ),
        }
    }

    fn takes(&self, version: &Version, tags: &[(String, String)]) -> bool {
        version.key.starts_with(&self.prefix)
            && self.tags.iter().all(|tag| tags.contains(tag))
            && self.larger_than.is_none_or(|n| version.bytes as i64 > n)
            && self.smaller_than.is_none_or(|n| (version.bytes as i64) < n)
    }
}

/// Rules in a form that does not depend on how a store writes them.
fn said_all(rules: &[LifecycleRule]) -> BTreeSet<Rule> {
    rules.iter().map(Rule::read).collect()
}

/// What becomes of a version.
struct Fate<'a> {
    version: &'a Version,
    hidden: Option<Timestamp>,
    gone: Option<Timestamp>,
    rule: String,
}

impl Fate<'_> {
    fn words(&self) -> String {
        let day = |at: Timestamp| at.strftime("%Y-%m-%d").to_string();
        match (self.hidden, self.gone) {
            (Some(hidden), Some(gone)) => format!(
                "hidden after {}, gone after {} by rule `{}`",
                day(hidden),
                day(gone),
                self.rule
            ),
            (Some(hidden), None) => {
                format!("hidden after {} by rule `{}`", day(hidden), self.rule)
            }
            (None, Some(gone)) => format!("gone after {} by rule `{}`", day(gone), self.rule),
            (None, None) => "stays".into(),
        }
    }
}

fn after(at: Timestamp, days: i32) -> Timestamp {
    at.checked_add((i64::from(days) * 24).hours())
        .unwrap_or(Timestamp::MAX)
}

/// Every version that a rule lets go. A current one is first hidden, then runs out as one that is not current; an earlier one runs out from the
/// moment in which another took its place.
fn fates<'a>(
    versions: &'a [Version],
    rules: &[Rule],
    tags: &BTreeMap<(String, String), Vec<(String, String)>>,
) -> Vec<Fate<'a>> {
    let mut fates = Vec::new();
    for (n, version) in versions.iter().enumerate().filter(|(_, v)| !v.marker) {
        let tags = tags
            .get(&(version.key.clone(), version.id.clone()))
            .map_or(&[][..], Vec::as_slice);
        let matching = || rules.iter().filter(|rule| rule.takes(version, tags));
        // Newest first: what stands before it took its place.
        let successor = n
            .checked_sub(1)
            .and_then(|before| versions.get(before))
            .filter(|before| before.key == version.key);
        let rank = versions[..n]
            .iter()
            .rev()
            .take_while(|v| v.key == version.key)
            .filter(|v| !v.marker && !v.latest)
            .count() as i32;
        let noncurrent = |from: Timestamp| {
            matching()
                .filter(|rule| rule.newer_noncurrent.is_none_or(|newer| rank >= newer))
                .filter_map(|rule| Some((after(from, rule.noncurrent_days?), rule)))
                .min_by_key(|(at, _)| *at)
        };
        if let Some(successor) = successor {
            if let Some((gone, rule)) = noncurrent(successor.modified) {
                fates.push(Fate {
                    version,
                    hidden: None,
                    gone: Some(gone),
                    rule: rule.id.clone(),
                });
            }
            continue;
        }
        let hides = matching()
            .filter_map(|rule| {
                let by_date = rule.date.and_then(|d| Timestamp::from_second(d).ok());
                let at = rule
                    .days
                    .map(|days| after(version.modified, days))
                    .or(by_date)?;
                Some((at, rule))
            })
            .min_by_key(|(at, _)| *at);
        if let Some((hidden, rule)) = hides {
            let unversioned = version.id == super::store::NULL;
            fates.push(Fate {
                version,
                hidden: (!unversioned).then_some(hidden),
                gone: if unversioned {
                    Some(hidden)
                } else {
                    noncurrent(hidden).map(|(at, _)| at)
                },
                rule: rule.id.clone(),
            });
        }
    }
    fates
}
