//! In which folder of a sink an archive lies.

use crate::name::ArchiveName;
use jiff::civil::Date;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// Where new archives go. Those that lie elsewhere are listed all the same, so the layout of a sink may change.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Layout {
    /// All in the sink's own folder.
    #[default]
    Flat,
    /// A folder for each day: `2026-08-22/`.
    Dates,
    /// A folder for each period of each tier: `daily/20260822/`, `weekly/2026-week34/`, `monthly/2026-08/`, `yearly/2026/`. One archive may lie in
    /// several of them, stored once where the sink can.
    Tiers,
}

impl Layout {
    /// The folder of an archive that asks for this name; nothing for the sink's own.
    pub fn folder(self, name: &ArchiveName) -> Option<String> {
        match self {
            Self::Flat => None,
            Self::Dates => Some(name.day.clone()),
            Self::Tiers => Some(name.tier.folder(name.day.parse().ok()?)),
        }
    }

    /// A file of this archive, beneath the sink's folder.
    pub fn path(self, name: &ArchiveName, file: &str) -> String {
        match self.folder(name) {
            Some(folder) => format!("{folder}/{file}"),
            None => file.to_owned(),
        }
    }
}

/// For which period an archive stands in the layout `tiers`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Tier {
    /// Its day.
    #[default]
    Daily,
    /// Its ISO week.
    Weekly,
    /// Its month.
    Monthly,
    /// Its year.
    Yearly,
}

impl Tier {
    /// All, the shortest first.
    pub const ALL: [Self; 4] = [Self::Daily, Self::Weekly, Self::Monthly, Self::Yearly];
    /// Those that an archive of the day is promoted to.
    pub const PROMOTED: [Self; 3] = [Self::Weekly, Self::Monthly, Self::Yearly];

    /// Its word in settings, folders and reports.
    pub fn word(self) -> &'static str {
        match self {
            Self::Daily => "daily",
            Self::Weekly => "weekly",
            Self::Monthly => "monthly",
            Self::Yearly => "yearly",
        }
    }

    /// The folder of the period that this day lies in: `weekly/2026-week53` for 2027-01-01.
    pub fn folder(self, day: Date) -> String {
        let period = match self {
            Self::Daily => day.strftime("%Y%m%d"),
            Self::Weekly => day.strftime("%G-week%V"),
            Self::Monthly => day.strftime("%Y-%m"),
            Self::Yearly => day.strftime("%Y"),
        };
        format!("{}/{period}", self.word())
    }

    /// The tier in whose folder a stored archive lies; nothing outside of them.
    pub fn of(stored: &str) -> Option<Self> {
        let (folder, _) = stored.rsplit_once('/')?;
        let (tier, period) = folder.split_once('/')?;
        let tier: Self = tier.parse().ok()?;
        tier.is_period(period).then_some(tier)
    }

    fn is_period(self, text: &str) -> bool {
        // `0` stands for any digit.
        let shape = match self {
            Self::Daily => "00000000",
            Self::Weekly => "0000-week00",
            Self::Monthly => "0000-00",
            Self::Yearly => "0000",
        };
        let fits = |(is, must): (u8, u8)| is == must || must == b'0' && is.is_ascii_digit();
        text.len() == shape.len() && text.bytes().zip(shape.bytes()).all(fits)
    }
}

impl fmt::Display for Tier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

impl FromStr for Tier {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|tier| tier.word() == text);
        found.ok_or_else(|| format!("`{text}` is none of daily, weekly, monthly and yearly"))
    }
}

/// Whether a folder with this path beneath the sink's is one that a layout makes: archives in it are listed.
pub fn is_folder(path: &str) -> bool {
    match path.split_once('/') {
        None => is_day(path) || path.parse::<Tier>().is_ok(),
        Some(_) => Tier::of(&format!("{path}/")).is_some(),
    }
}

fn is_day(name: &str) -> bool {
    name.len() == "2026-08-22".len() && Date::strptime("%Y-%m-%d", name).is_ok()
}

/// The folders above a path, the innermost first: `weekly/2026-week34`, then `weekly`.
pub fn folders_above(path: &str) -> impl Iterator<Item = &str> {
    path.rmatch_indices('/').map(|(at, _)| &path[..at])
}

/// A path without its folders: what stands in the sum file beside it.
pub fn file_name(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use jiff::civil::date;

    #[test]
    fn periods_have_the_folders_of_their_iso_weeks_months_and_years() {
        let folders = |day| Tier::ALL.map(|tier: Tier| tier.folder(day)).join(" ");
        assert_eq!(
            folders(date(2027, 1, 1)),
            "daily/20270101 weekly/2026-week53 monthly/2027-01 yearly/2027"
        );
        assert_eq!(
            folders(date(2025, 12, 29)),
            "daily/20251229 weekly/2026-week01 monthly/2025-12 yearly/2025"
        );
        for tier in Tier::ALL {
            let folder = tier.folder(date(2024, 2, 29));
            assert!(is_folder(&folder) && is_folder(tier.word()));
            assert_eq!(Tier::of(&format!("{folder}/backup.tar.xz")), Some(tier));
        }
    }

    #[test]
    fn other_folders_are_nobodys() {
        for other in [
            "weekly/20260822",
            "daily/2026-08",
            "hourly",
            "daily/x/y",
            "2026-08",
            "a",
        ] {
            assert!(!is_folder(other), "{other}");
        }
        assert_eq!(Tier::of("backup.tar.xz"), None);
        assert_eq!(Tier::of("2026-08-22/backup.tar.xz"), None);
    }
}
