//! Whatever a command prints: its standard output is the backup, the standard input of another the restore. What a plugin file of commands is,
//! without the file.

use bk_core::error::Result;
use bk_core::name::MemberPath;
use bk_core::plugin::Plugin;
use bk_core::plugin::command::{CommandSource, Part};
use bk_core::plugin::manifest::patience;
use bk_core::secret::Secret;
use bk_core::settings::{Settings, Span};
use bk_core::source::{Existing, Source};
use schemars::JsonSchema;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

/// Settings of the source `command`.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CommandSettings {
    /// Program and arguments whose standard output is the backup; no shell looks at them. Its end and exit status 0 say that this is whole.
    pub backup: Vec<String>,
    /// Program and arguments that take it back on standard input. Without it bk can extract, and not restore.
    #[serde(default)]
    pub restore: Option<Vec<String>>,
    /// Program and arguments that end with 0 where both could start now, and change nothing.
    #[serde(default)]
    pub check: Option<Vec<String>>,
    /// Name of the member in the archive: `tree.ldif`. Without it `output`.
    #[serde(default)]
    pub entry: Option<String>,
    /// Variables of the commands, beside PATH, HOME, LANG and TZ; secrets belong here: `{ PGPASSWORD = { env = "PGPASSWORD" } }`.
    #[serde(default)]
    pub env: Option<BTreeMap<String, Secret>>,
    /// Where they are run, relative to the settings file; without it, where that lies.
    #[serde(default)]
    pub folder: Option<PathBuf>,
    /// A command that is silent for so long is ended: `2h`. Without it 10 minutes.
    #[serde(default)]
    pub patience: Option<Span>,
    /// What the restore does with what is there: `replace`, which is taken for granted, or `merge`.
    #[serde(default)]
    pub existing: Option<Effect>,
}

/// What a restore does with what is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Effect {
    /// The archive wins, the rest stays.
    Merge,
    /// It ends equal to the archive.
    Replace,
}

/// The plugin.
pub fn plugin() -> Plugin<dyn Source> {
    Plugin {
        name: "command".into(),
        about: "what a command prints; another takes it back".into(),
        schema: Arc::new(|| schemars::schema_for!(CommandSettings)),
        build: Arc::new(|settings: Settings| Ok(Arc::new(source(&settings)?))),
    }
}

fn source(settings: &Settings) -> Result<CommandSource> {
    let parsed: CommandSettings = settings.parse()?;
    let entry = parsed.entry.unwrap_or_else(|| "output".into());
    let entry = MemberPath::new(entry.as_bytes()).map_err(|error| {
        settings.fault(
            "entry",
            format!("`entry`: {error}"),
            Some("entry = \"tree.ldif\""),
        )
    })?;
    let text = |argv: Vec<String>| argv.into_iter().map(Part::Text).collect();
    let variables = parsed.env.unwrap_or_default().into_iter();
    Ok(CommandSource {
        entry,
        backup: text(parsed.backup),
        restore: parsed.restore.map(text),
        check: parsed.check.map(text),
        variables: variables
            .map(|(name, value)| (name, Part::Secret(value.relative_to(&settings.folder))))
            .collect(),
        folder: Some(absolute(match parsed.folder {
            Some(folder) => settings.path(&folder),
            None => settings.folder.clone(),
        })),
        patience: patience(parsed.patience),
        existing: match parsed.existing {
            Some(Effect::Merge) => Existing::Merge,
            _ => Existing::Replace,
        },
        about: "a command".into(),
        proof: None,
    })
}

/// From wherever bk itself was started.
fn absolute(folder: PathBuf) -> PathBuf {
    std::path::absolute(&folder).unwrap_or(folder)
}
