//! What a person selects: `instance[/group[/unit]]`, with globs in each part.

use crate::error::{Error, Result, not_found, settings};
use globset::{GlobBuilder, GlobMatcher};
use std::collections::BTreeSet;
use std::fmt;

/// One selector as it was typed.
#[derive(Clone, Debug)]
pub struct Selector {
    text: String,
    parts: Vec<Part>,
}

#[derive(Clone, Debug)]
enum Part {
    Exactly(String),
    Glob(GlobMatcher),
}

impl Part {
    fn new(text: &str) -> Result<Self> {
        if !text.contains(['*', '?', '[', '{']) {
            return Ok(Self::Exactly(text.to_owned()));
        }
        // Names carry escapes of their own, so a backslash means itself.
        let glob = GlobBuilder::new(text)
            .literal_separator(false)
            .backslash_escape(false)
            .build();
        glob.map(|g| Self::Glob(g.compile_matcher())).map_err(|e| {
            settings(format!(
                "the selector part `{text}` is no glob: {}",
                e.kind()
            ))
        })
    }

    fn matches(&self, name: &str) -> bool {
        match self {
            Self::Exactly(text) => text == name,
            Self::Glob(glob) => glob.is_match(name),
        }
    }
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl Selector {
    /// Parses what was typed. The unit part takes the rest, so a unit's name may hold `/`.
    pub fn parse(text: &str) -> Result<Self> {
        let parts: Vec<_> = text.splitn(3, '/').collect();
        if parts.iter().any(|part| part.is_empty()) {
            return Err(settings(format!("the selector `{text}` has an empty part"))
                .hint("write instance, instance/group or instance/group/unit"));
        }
        Ok(Self {
            text: text.to_owned(),
            parts: parts.into_iter().map(Part::new).collect::<Result<_>>()?,
        })
    }

    /// Whether it speaks of this instance at all.
    pub fn touches(&self, instance: &str) -> bool {
        self.parts[0].matches(instance)
    }

    /// Whether it takes all of this instance.
    pub fn takes_instance(&self, instance: &str) -> bool {
        self.parts.len() == 1 && self.touches(instance)
    }

    /// Whether it takes all of this group.
    pub fn takes_group(&self, instance: &str, group: &str) -> bool {
        self.parts.len() <= 2 && self.takes(instance, group, "")
    }

    /// Whether it takes this unit.
    pub fn takes(&self, instance: &str, group: &str, unit: &str) -> bool {
        let names = [instance, group, unit];
        self.parts
            .iter()
            .zip(names)
            .all(|(part, name)| part.matches(name))
    }
}

/// `--only` and `--exclude` together.
#[derive(Clone, Debug, Default)]
pub struct Selection {
    /// Nothing: everything.
    pub only: Vec<Selector>,
    /// Wins over `only`.
    pub exclude: Vec<Selector>,
}

impl Selection {
    /// Parses both lists.
    pub fn parse(only: &[String], exclude: &[String]) -> Result<Self> {
        let parse = |list: &[String]| {
            list.iter()
                .map(|text| Selector::parse(text))
                .collect::<Result<Vec<_>>>()
        };
        Ok(Self {
            only: parse(only)?,
            exclude: parse(exclude)?,
        })
    }

    /// Whether everything is selected.
    pub fn is_everything(&self) -> bool {
        self.only.is_empty() && self.exclude.is_empty()
    }

    /// Whether the unit is selected. What makes a group (unit "") goes with any unit of it, so it is asked without its name.
    pub fn takes(&self, instance: &str, group: &str, unit: &str) -> bool {
        let only = self.only.is_empty() || self.only.iter().any(|s| s.takes(instance, group, unit));
        only && !self.exclude.iter().any(|s| s.takes(instance, group, unit))
    }

    /// Whether all of a group is selected, whatever is in it.
    pub fn takes_group(&self, instance: &str, group: &str) -> bool {
        let only = self.only.is_empty() || self.only.iter().any(|s| s.takes_group(instance, group));
        let names = [instance, group];
        let leaves_out = |s: &Selector| {
            s.parts
                .iter()
                .zip(names)
                .all(|(part, name)| part.matches(name))
        };
        only && !self.exclude.iter().any(leaves_out)
    }

    /// What of it speaks of this instance.
    #[must_use]
    pub fn of_instance(&self, instance: &str) -> Self {
        let of = |list: &[Selector]| {
            let touching = list.iter().filter(|s| s.touches(instance));
            touching.cloned().collect()
        };
        Self {
            only: of(&self.only),
            exclude: of(&self.exclude),
        }
    }

    /// Whether the instance may hold anything selected.
    pub fn touches_instance(&self, instance: &str) -> bool {
        let only = self.only.is_empty() || self.only.iter().any(|s| s.touches(instance));
        only && !self.exclude.iter().any(|s| s.takes_instance(instance))
    }

    /// Whether somebody asked for this very unit, or for units like it, and not only for its group.
    pub fn names_unit(&self, group: &str, unit: &str) -> bool {
        let names = [group, unit];
        self.only.iter().any(|selector| {
            let parts = selector.parts.iter().skip(1);
            selector.parts.len() == 3 && parts.zip(names).all(|(part, name)| part.matches(name))
        })
    }

    /// Why an instance is not touched, in the words of a plan.
    pub fn why_not(&self, instance: &str) -> &'static str {
        if self.exclude.iter().any(|s| s.takes_instance(instance)) {
            "--exclude"
        } else {
            "--only"
        }
    }
}

/// Follows which selectors matched anything, so that one that matched nothing can be named.
#[derive(Debug)]
pub struct Matched<'a> {
    selection: &'a Selection,
    unmatched: Vec<&'a Selector>,
    names: BTreeSet<String>,
}

/// Names that are kept to find the nearest of.
const NAMES_KEPT: usize = 50_000;

impl<'a> Matched<'a> {
    /// Nothing has matched yet.
    pub fn new(selection: &'a Selection) -> Self {
        Self {
            selection,
            unmatched: selection.only.iter().chain(&selection.exclude).collect(),
            names: BTreeSet::new(),
        }
    }

    /// A unit went by.
    pub fn see(&mut self, instance: &str, group: &str, unit: &str) {
        if self.unmatched.is_empty() {
            return;
        }
        self.unmatched.retain(|s| !s.takes(instance, group, unit));
        if self.names.len() < NAMES_KEPT {
            self.names.insert(instance.to_owned());
            self.names.insert(format!("{instance}/{group}"));
            self.names.insert(format!("{instance}/{group}/{unit}"));
        }
    }

    /// An instance went by, whatever it holds.
    pub fn see_instance(&mut self, instance: &str) {
        self.unmatched.retain(|s| !s.takes_instance(instance));
        self.names.insert(instance.to_owned());
    }

    /// An instance went by whose units are known only when they are read; its source follows its selectors itself.
    pub fn leave_to(&mut self, instance: &str) {
        self.unmatched.retain(|s| !s.touches(instance));
        self.names.insert(instance.to_owned());
    }

    /// `NotFound` with the nearest names when a selector matched nothing.
    pub fn finish(self) -> Result<()> {
        let Some(selector) = self.unmatched.first() else {
            return Ok(());
        };
        let flag = if self
            .selection
            .only
            .iter()
            .any(|s| std::ptr::eq(s, *selector))
        {
            "--only"
        } else {
            "--exclude"
        };
        let error = not_found(format!(
            "`{flag} {selector}` matches nothing in the archive"
        ));
        Err(
            match nearest(&selector.text, self.names.iter().map(String::as_str)) {
                near if near.is_empty() => {
                    let instances: Vec<_> = self
                        .names
                        .iter()
                        .filter(|name| !name.contains('/'))
                        .map(|name| format!("`{name}`"))
                        .collect();
                    error.hint(format!(
                        "the archive holds {}; bk show --units lists all",
                        instances.join(", ")
                    ))
                }
                near => error.hint(format!("the nearest names: {}", near.join(", "))),
            },
        )
    }
}

/// Up to three names like this one, the nearest first.
pub fn nearest<'a>(name: &str, names: impl Iterator<Item = &'a str>) -> Vec<String> {
    let mut scored: Vec<_> = names
        .map(|other| (strsim::normalized_damerau_levenshtein(name, other), other))
        .filter(|(score, _)| *score > 0.4)
        .collect();
    scored.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(b.1)));
    scored
        .into_iter()
        .take(3)
        .map(|(_, other)| format!("`{other}`"))
        .collect()
}

/// What to type in the place of `name`: the one most like it, else what `otherwise` says.
pub fn did_you_mean<'a>(
    name: &str,
    names: impl Iterator<Item = &'a str>,
    otherwise: impl FnOnce() -> String,
) -> String {
    match nearest(name, names).first() {
        Some(near) => format!("did you mean {near}?"),
        None => otherwise(),
    }
}

/// `instance[/group]=new`, as `--into` takes it.
pub fn parse_into(text: &str) -> Result<(String, Option<String>, String)> {
    let usage = || -> Error {
        settings(format!("`--into {text}` is not understood"))
            .hint("write --into instance/group=new, or --into instance=PLACE")
    };
    let (from, to) = text.split_once('=').ok_or_else(usage)?;
    let (instance, group) = match from.split_once('/') {
        Some((instance, group)) => (instance, Some(group.to_owned())),
        None => (from, None),
    };
    if instance.is_empty() || to.is_empty() || group.as_deref() == Some("") {
        return Err(usage());
    }
    Ok((instance.to_owned(), group, to.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_selector_takes_what_it_names_and_what_is_beneath() {
        let selection =
            Selection::parse(&["mysql/shop".into(), "caddy".into()], &["*/*/tmp*".into()]).unwrap();
        assert!(selection.takes("mysql", "shop", "orders"));
        assert!(!selection.takes("mysql", "notes", "orders"));
        assert!(selection.takes("caddy", "x", "y"));
        assert!(!selection.takes("caddy", "x", "tmp1"));
        assert!(Selector::parse("a//b").is_err());
    }

    #[test]
    fn a_selector_that_matches_nothing_is_named_with_what_is_near() {
        let selection = Selection::parse(&["mysql/shpo".into()], &[]).unwrap();
        let mut matched = Matched::new(&selection);
        matched.see("mysql", "shop", "orders");
        let error = matched.finish().unwrap_err();
        assert_eq!(error.kind, crate::ErrorKind::NotFound);
        assert!(error.hint.unwrap().contains("`mysql/shop`"));
    }
}
