//! Which databases and what in them the settings of a source select, as globs.

use bk_core::error::{Result, not_found};
use bk_core::settings::Settings;
use globset::{GlobBuilder, GlobMatcher};
use serde_json::{Value, json};

/// `databases` and `exclude` of the settings. An exclusion is `DATABASE` or `DATABASE/NAME`.
#[derive(Clone, Debug, Default)]
pub struct DatabaseFilter {
    databases: Option<Vec<GlobMatcher>>,
    exclude: Vec<GlobMatcher>,
    words: (Option<Vec<String>>, Option<Vec<String>>),
}

impl DatabaseFilter {
    /// Compiles the globs.
    pub fn new(
        databases: Option<Vec<String>>,
        exclude: Option<Vec<String>>,
    ) -> std::result::Result<Self, globset::Error> {
        // Where databases are named, a slash is a part of a name; else it stands before a part of a database.
        let compile = |globs: &Vec<String>, slash_separates| {
            globs
                .iter()
                .map(|glob| {
                    Ok(GlobBuilder::new(glob)
                        .literal_separator(slash_separates)
                        .build()?
                        .compile_matcher())
                })
                .collect::<std::result::Result<Vec<_>, globset::Error>>()
        };
        Ok(Self {
            databases: databases
                .as_ref()
                .map(|globs| compile(globs, false))
                .transpose()?,
            exclude: exclude
                .as_ref()
                .map(|globs| compile(globs, true))
                .transpose()?
                .unwrap_or_default(),
            words: (databases, exclude),
        })
    }

    /// From the settings `databases` and `exclude`; an empty list or a glob that is none is a fault of theirs.
    pub fn from_settings(
        settings: &Settings,
        databases: Option<&Vec<String>>,
        exclude: Option<&Vec<String>>,
    ) -> Result<Self> {
        for (key, list) in [("databases", databases), ("exclude", exclude)] {
            if list.is_some_and(Vec::is_empty) {
                return Err(settings.fault(
                    key,
                    "is an empty list",
                    Some("leave the line out to have all, or name what you mean"),
                ));
            }
        }
        Self::new(databases.cloned(), exclude.cloned())
            .map_err(|e| settings.fault("databases", format!("has a glob that is none: {e}"), None))
    }

    /// As it goes into the facts.
    pub fn selection(&self) -> Value {
        json!({ "databases": self.words.0, "exclude": self.words.1 })
    }

    /// From the facts.
    pub fn from_selection(selection: &Value) -> Self {
        let list = |key: &str| -> Option<Vec<String>> {
            serde_json::from_value(selection.get(key)?.clone()).ok()?
        };
        Self::new(list("databases"), list("exclude")).unwrap_or_default()
    }

    /// Whether a database is taken.
    pub fn takes_database(&self, name: &str) -> bool {
        self.databases
            .as_ref()
            .is_none_or(|globs| globs.iter().any(|glob| glob.is_match(name)))
            && !self.exclude.iter().any(|glob| glob.is_match(name))
    }

    /// Whether a database stands in the settings under its own name.
    pub fn names_database(&self, name: &str) -> bool {
        self.words.0.iter().flatten().any(|word| word == name)
    }

    /// Whether what is called so in a database that is taken is taken too.
    pub fn takes(&self, database: &str, name: &str) -> bool {
        let path = format!("{database}/{name}");
        !self.exclude.iter().any(|glob| glob.is_match(&path))
    }

    /// A database that the settings name without a glob must be there.
    pub fn all_named_are_there(&self, found: &[String]) -> Result<()> {
        for name in self.words.0.iter().flatten() {
            let plain = !name.contains(['*', '?', '[', '{', '\\']);
            if plain && !found.iter().any(|database| database == name) {
                return Err(not_found(format!("database `{name}` is not there")).hint(
                    "mend `databases`, or grant the account rights on it: what it may not see is not shown to it",
                ));
            }
        }
        Ok(())
    }
}
