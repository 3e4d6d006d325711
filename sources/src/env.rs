//! Variables of the environment by prefix, as one protected member. They come back as a file that a shell can read.

use async_trait::async_trait;
use bk_core::context::Context;
use bk_core::error::{Error, Result, conflict, settings, unsupported};
use bk_core::name::MemberPath;
use bk_core::plugin::Plugin;
use bk_core::replace;
use bk_core::settings::Settings;
use bk_core::source::{
    Counted, Existing, Facts, Health, Input, Meta, Output, PointInTime, RestoreOptions, Snapshot,
    SnapshotOptions, Source, Stage, Tally, UnitCount,
};
use schemars::JsonSchema;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::PathBuf;
use std::sync::Arc;

/// The one member: a JSON object of names and values.
const MEMBER: &str = "environment.json";
/// Far more than any environment has.
const MOST_BYTES: usize = 16 << 20;

/// Settings of the source `env`.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct EnvSettings {
    /// Variables whose names begin so: `DECUBE`.
    pub prefix: String,
    /// The file that a restore writes, readable by its owner alone: lines `NAME='value'`. Relative to the settings file. Without it `--into NAME=FILE`
    /// must say it.
    #[serde(default)]
    pub file: Option<PathBuf>,
}

/// The plugin.
pub fn plugin() -> Plugin<dyn Source> {
    Plugin {
        name: "env".into(),
        about: "variables of the environment, by prefix".into(),
        schema: Arc::new(|| schemars::schema_for!(EnvSettings)),
        build: Arc::new(|settings: Settings| Ok(Arc::new(Env::new(&settings)?))),
    }
}

/// The source.
#[derive(Clone, Debug)]
pub struct Env {
    prefix: String,
    file: Option<PathBuf>,
}

impl Env {
    fn new(settings: &Settings) -> Result<Self> {
        let parsed: EnvSettings = settings.parse()?;
        let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
        if parsed.prefix.is_empty() || !parsed.prefix.chars().all(is_name) {
            let hint = "write the first letters of the names: prefix = \"DECUBE\"";
            let what = format!("`prefix` is `{}`, which begins no name", parsed.prefix);
            return Err(settings.fault("prefix", what, Some(hint)));
        }
        Ok(Self {
            prefix: parsed.prefix,
            file: parsed.file.map(|file| settings.path(&file)),
        })
    }

    /// Those that are set now. One that is no UTF-8 cannot be written down, and is an error.
    fn set_now(&self) -> Result<BTreeMap<String, String>> {
        let mut found = BTreeMap::new();
        for (name, value) in std::env::vars_os() {
            let Some(name) = name.to_str().filter(|name| name.starts_with(&self.prefix)) else {
                continue;
            };
            let value = value
                .into_string()
                .map_err(|_| unsupported(format!("the variable `{name}` is not UTF-8")))?;
            if is_name(name) {
                found.insert(name.to_owned(), value);
            }
        }
        Ok(found)
    }

    /// The same, and at least one: nothing at all is no backup.
    fn variables(&self) -> Result<BTreeMap<String, String>> {
        let found = self.set_now()?;
        if found.is_empty() {
            return Err(
                settings(format!("no variable begins with `{}`", self.prefix))
                    .hint("are they set for bk too, in its unit, its Job or its container?"),
            );
        }
        Ok(found)
    }
}

#[async_trait]
impl Source for Env {
    async fn check(&self, _cx: &Context) -> Result<Health> {
        // A restore can start where none is set.
        let found = self.set_now()?;
        Ok(Health {
            identity: String::new(),
            describe: format!("{} variables {}*", found.len(), self.prefix),
            warnings: vec![
                "values are kept as they are, and archives are not encrypted: whoever reads one reads them".into(),
            ],
        })
    }

    async fn snapshot(&self, cx: &Context, _how: &SnapshotOptions) -> Result<Box<dyn Snapshot>> {
        Ok(Box::new(Variables {
            at: PointInTime {
                instant: cx.clock.now(),
                consistency: "snapshot".into(),
                position: None,
            },
            found: self.variables()?,
        }))
    }

    async fn restore(
        &self,
        _cx: &Context,
        mut input: Input,
        how: &RestoreOptions,
    ) -> Result<Tally> {
        let mut tally = Tally::default();
        if how.forget_unfinished {
            return Ok(tally);
        }
        let file = how.into_place.as_ref().or(self.file.as_ref());
        let file = file.ok_or_else(|| {
            unsupported("nobody can set variables of other processes").hint(
                "say which file they are written to: --into env=FILE, or `file` in the settings",
            )
        })?;
        match how.existing {
            Some(Existing::Merge) => {
                return Err(unsupported("a file of variables is replaced, not merged")
                    .hint("leave --existing out, or use --into env=ANOTHER"));
            }
            Some(Existing::Refuse) if file.exists() => {
                return Err(conflict(format!("`{}` is there already", file.display()))
                    .hint("repeat with --existing replace"));
            }
            _ => {}
        }
        for stage in Stage::ALL {
            let members = input.stage(stage).await?;
            while let Some(member) = members.next().await? {
                let unit = member.unit.clone();
                let body = member.bytes_up_to(MOST_BYTES).await?;
                let found: BTreeMap<String, String> = serde_json::from_slice(&body)
                    .map_err(|e| Error::corrupt(format!("`{MEMBER}`: {e}")).because(e))?;
                // A shell will read them: what is no name of a variable could be anything.
                if let Some(strange) = found.keys().find(|name| !is_name(name)) {
                    let what =
                        format!("`{MEMBER}`: `{}` names no variable", strange.escape_debug());
                    return Err(Error::corrupt(what));
                }
                replace::file(file, lines(&found).as_bytes(), None)?;
                tally.units.push(UnitCount {
                    group: unit.0,
                    name: unit.1,
                    stage,
                    members: 1,
                    rows: found.len() as u64,
                    bytes: body.len() as u64,
                });
            }
        }
        Ok(tally)
    }
}

fn is_name(name: &str) -> bool {
    let may = |c: char| c.is_ascii_alphanumeric() || c == '_';
    !name.starts_with(|c: char| c.is_ascii_digit()) && !name.is_empty() && name.chars().all(may)
}

/// `NAME='value'` as a shell reads it.
fn lines(found: &BTreeMap<String, String>) -> String {
    found.iter().fold(String::new(), |mut text, (name, value)| {
        // Writing into a text cannot fail.
        let _ = writeln!(text, "{name}='{}'", value.replace('\'', r"'\''"));
        text
    })
}

struct Variables {
    at: PointInTime,
    found: BTreeMap<String, String>,
}

#[async_trait]
impl Snapshot for Variables {
    fn at(&self) -> PointInTime {
        self.at.clone()
    }

    async fn write(&mut self, _cx: &Context, stage: Stage, out: &Output) -> Result<()> {
        if stage != Stage::Data {
            return Ok(());
        }
        out.expect(".", ".").await?;
        let mut lane = out.lane("env").await?;
        lane.unit(".", ".");
        let body = serde_json::to_vec_pretty(&self.found)
            .map_err(|e| bk_core::error::bug(e.to_string()).because(e))?;
        let path = MemberPath::new(MEMBER.as_bytes())?;
        lane.member(path, Meta::default(), body.into()).await?;
        lane.close().await?;
        let rows = self.found.len() as u64;
        out.end(".", ".", Counted { rows }).await
    }

    async fn close(self: Box<Self>, _cx: &Context) -> Result<Facts> {
        Ok(Facts {
            layout: 1,
            ..Facts::default()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shell_reads_the_values_as_they_were() {
        let values = [
            "plain",
            "with space",
            "it's",
            "$HOME `x` \\ \"q\"",
            "two\nlines",
            "",
        ];
        let found: BTreeMap<String, String> = values
            .iter()
            .enumerate()
            .map(|(n, value)| (format!("BK_T{n}"), (*value).to_owned()))
            .collect();
        let folder = std::env::temp_dir().join(format!("bk-env-test-{}", std::process::id()));
        let file = folder.join("x.env");
        replace::file(&file, lines(&found).as_bytes(), None).unwrap();
        for (name, value) in &found {
            let script = format!("set -a; . '{}'; printf %s \"${name}\"", file.display());
            let said = std::process::Command::new("sh")
                .args(["-c", &script])
                .output()
                .unwrap();
            assert_eq!(String::from_utf8(said.stdout).unwrap(), *value);
        }
        std::fs::remove_dir_all(folder).unwrap();
    }
}
